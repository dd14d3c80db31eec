//! Pages of two channels, recovered in order and within bounds.

use super::*;
use crate::continuity::{Issued, Link, Retention};

const LAG: Duration = Duration::from_millis(10);

fn id(ms: u64) -> EventId {
    EventId::new(ms, 0)
}

fn link(id: u64, prev: u64) -> Link {
    Link {
        id: EventId::new(id, 0),
        prev: EventId::new(prev, 0),
    }
}

fn page(from: u64, events: &[Link], complete: bool) -> HistoryPage<Link> {
    let last = EventId::new(1_000, 0);
    HistoryPage {
        issued: Some(Issued {
            epoch: EventId::new(1, 0),
            last,
        }),
        now_ms: last.ms(),
        retention: Retention::constant(Duration::from_secs(60)),
        evictable: false,
        oldest: Some(link(100, 0)),
        from: EventId::new(from, 0),
        events: events.to_vec(),
        complete,
        ended: None,
    }
}

#[test]
fn a_cut_page_is_followed_by_another_one() {
    let start = ReadFrom::start(Cursor::new(id(100), EventId::ZERO), LAG);
    let cut = page(100, &[link(100, 0), link(200, 100)], false);
    let found = recover(start, &cut, EventId::MAX, LAG);
    assert_eq!((found.gap, found.events), (None, vec![link(200, 100)]));
    let next = found.goes_on.unwrap();
    assert_eq!(next.from, id(200).next());
    // It need not hold the event before.
    for (prev, gap) in [(200, None), (250, Some(GapReason::Lost))] {
        let rest = page(201, &[link(300, prev)], true);
        let found = recover(next, &rest, EventId::MAX, LAG);
        assert_eq!((found.gap, found.events), (gap, vec![link(300, prev)]));
    }
}

#[test]
fn a_page_of_the_known_event_alone_leads_on() {
    let cursor = Cursor::new(id(100), id(105));
    let start = ReadFrom::start(cursor, LAG);
    let found = recover(start, &page(100, &[link(100, 0)], false), EventId::MAX, LAG);
    assert_eq!(found.gap, None);
    let next = found.goes_on.unwrap();
    assert_eq!((next.from, next.cursor), (EventId::new(100, 1), cursor));
    let found = recover(next, &page(101, &[link(200, 100)], true), EventId::MAX, LAG);
    assert_eq!((found.gap, found.events), (None, vec![link(200, 100)]));
}

#[test]
fn a_page_that_leads_nowhere_is_a_gap_and_not_the_end() {
    let start = ReadFrom::start(Cursor::new(id(100), EventId::ZERO), LAG);
    let found = recover(start, &page(100, &[], false), EventId::MAX, LAG);
    assert!(found.gap.is_some());
    assert_eq!(found.goes_on, None);
}

#[test]
fn what_the_subscription_brings_is_not_recovered() {
    let start = ReadFrom::start(Cursor::new(id(100), EventId::ZERO), LAG);
    let whole = page(100, &[link(100, 0), link(200, 100), link(300, 200)], true);
    let found = recover(start, &whole, id(250), LAG);
    assert_eq!(found.events, [link(200, 100)]);
}

/// The channels `a` and `b` of so many events each; a page holds two. What is told, one word
/// each.
fn told(events: u64, max_bytes: usize) -> (String, usize, usize) {
    let history = |channel: &str| -> Vec<Link> {
        let ms = |number: u64| 100 + 2 * number + u64::from(channel == "b");
        let event = |number: u64| link(ms(number), if number == 0 { 0 } else { ms(number - 1) });
        (0..=events).map(event).collect()
    };
    let missed = ["a", "b"].map(|name| (name, Cursor::new(history(name)[0].id, EventId::ZERO)));
    let mut recovery = Recovery::<&str, Link>::new(missed, id(900), LAG, max_bytes);
    let (mut told, mut windows, mut most) = (String::new(), 0, 0);
    while !recovery.is_done() {
        let mut reads = Vec::new();
        if recovery.advance(|wanted| reads.push(wanted)) {
            let window = recovery.window();
            assert!(window.gaps.is_empty());
            windows += 1;
            for (channel, event) in window.events {
                told += &format!("{channel}{} ", event.id.ms());
            }
        }
        for Wanted { channel, from, .. } in reads {
            let all = history(channel)
                .into_iter()
                .filter(|event| event.id >= from);
            let all: Vec<_> = all.collect();
            let some = &all[..all.len().min(2)];
            recovery.take(
                &channel,
                Some(page(from.ms(), some, some.len() == all.len())),
            );
            most = most.max(recovery.bytes);
        }
    }
    assert_eq!(recovery.bytes, 0);
    (told.trim_end().to_owned(), windows, most)
}

#[test]
fn what_exceeds_the_bound_is_told_in_windows() {
    let (all, windows, _) = told(20, usize::MAX);
    assert_eq!(windows, 1);
    assert!(
        all.starts_with("a102 b103 a104 b105") && all.ends_with("a140 b141"),
        "{all}"
    );
    for max_bytes in [1, 2, 3, 7, 20, 39] {
        let (in_windows, windows, most) = told(20, max_bytes);
        assert_eq!(in_windows, all, "{max_bytes}");
        assert!(
            windows > 1 && most <= max_bytes,
            "{max_bytes}: {windows} {most}"
        );
    }
}

#[test]
fn a_gap_waits_for_the_events_before_it() {
    let missed = ["a", "b"].map(|name| (name, Cursor::new(id(100), EventId::ZERO)));
    let mut recovery = Recovery::<&str, Link>::new(missed, id(900), LAG, usize::MAX);
    let mut reads = 0;
    assert!(!recovery.advance(|_| reads += 1));
    recovery.take(
        &"a",
        Some(page(100, &[link(100, 0), link(200, 100)], false)),
    );
    recovery.take(&"b", Some(page(100, &[link(100, 0), link(300, 100)], true)));
    assert!(!recovery.advance(|_| reads += 1));
    recovery.take(&"a", None);
    assert!(recovery.advance(|_| reads += 1));
    let window = recovery.window();
    assert_eq!(
        (window.gaps.len(), window.events),
        (0, vec![("a", link(200, 100))])
    );
    assert!(!recovery.is_done() && recovery.advance(|_| reads += 1));
    let window = recovery.window();
    let (channel, gap, complete_after) = window.gaps[0];
    assert_eq!(
        (channel, gap.after, complete_after),
        ("a", id(200), id(900))
    );
    assert_eq!(window.events, [("b", link(300, 100))]);
    assert!(recovery.is_done());
    assert_eq!(reads, 3);
}
