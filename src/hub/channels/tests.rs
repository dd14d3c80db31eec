use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

#[test]
fn interest_that_comes_and_goes_before_it_is_told_is_never_told() {
    let mut channels = Channels::default();
    let now = Instant::now();
    let key = channels.acquire(&name("a"));
    channels.release(key, now);
    channels.expire(now + LINGER);
    assert_eq!(channels.take_changes(), vec![]);
}

#[test]
fn a_channel_wanted_again_in_time_keeps_its_generation() {
    let mut channels = Channels::default();
    let now = Instant::now();
    let key = channels.acquire(&name("a"));
    let first = channels.take_changes();
    channels.release(key, now);
    assert_eq!(channels.acquire(&name("a")), key);
    channels.expire(now + LINGER);
    assert_eq!(channels.take_changes(), vec![]);
    assert_eq!(first.len(), 1);
    channels.release(key, now + LINGER);
    channels.expire(now + LINGER + LINGER);
    assert_eq!(channels.take_changes(), vec![(name("a"), None)]);
}

#[test]
fn news_about_an_earlier_interest_is_not_taken_for_this_one() {
    let mut channels = Channels::default();
    let now = Instant::now();
    let key = channels.acquire(&name("a"));
    let earlier = channels.take_changes()[0].1.unwrap();
    channels.release(key, now);
    channels.expire(now + LINGER);
    let key = channels.acquire(&name("a"));
    channels.activate("a", earlier, None);
    assert!(!channels.all_active(&[key]));
    let later = channels.take_changes()[0].1.unwrap();
    channels.activate("a", later, None);
    assert!(channels.all_active(&[key]));
    channels.deactivate_all();
    assert!(!channels.all_active(&[key]));
}

#[test]
fn past_the_bound_channels_do_not_linger() {
    let mut channels = Channels::default();
    let now = Instant::now();
    for number in 0..MOST_LINGERING + 10 {
        let key = channels.acquire(&name(&number.to_string()));
        channels.release(key, now);
    }
    assert_eq!(channels.len(), MOST_LINGERING);
}

proptest! {
    /// A bus that applies every change it is told ends with exactly the wanted channels.
    #[test]
    fn what_the_bus_knows_is_what_is_wanted(
        steps in proptest::collection::vec((0usize..4, 0usize..5), 1..200),
    ) {
        let mut channels = Channels::default();
        let mut now = Instant::now();
        let mut held: Vec<(usize, ChannelKey)> = Vec::new();
        let mut bus = HashSet::new();
        for (step, which) in steps {
            match step {
                0 => held.push((which, channels.acquire(&name(&which.to_string())))),
                1 if !held.is_empty() => {
                    let (_, key) = held.swap_remove(which % held.len());
                    channels.release(key, now);
                }
                2 => for (name, generation) in channels.take_changes() {
                    if generation.is_some() { bus.insert(name) } else { bus.remove(&name) };
                },
                _ => {
                    now += LINGER / 2;
                    channels.expire(now);
                }
            }
        }
        channels.expire(now + LINGER);
        for (name, generation) in channels.take_changes() {
            if generation.is_some() { bus.insert(name) } else { bus.remove(&name) };
        }
        let wanted: HashSet<_> = held.iter().map(|(which, _)| name(&which.to_string())).collect();
        prop_assert_eq!(bus, wanted);
        prop_assert_eq!(channels.len(), channels.keys.len());
    }
}
