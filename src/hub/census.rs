//! Which channels are busy: counted for a while after somebody has asked, and not otherwise.
//!
//! An event of a channel then costs two additions at the channel's entry, a client none.

use std::cmp::Reverse;

use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::channels::Channels;
use super::subscriber::ChannelKey;
use crate::protocol::ChannelName;

/// Channels of one shard that are told.
const TOLD: usize = 20;

/// Channels of one shard that are counted from one census to the next. Where more are busy, those
/// that come later are left out: none of so many stands out.
const COUNTED: usize = 10_000;

/// Counting goes on for this long after a census: as long as several of them may take.
const INTEREST: Duration = Duration::from_secs(15);

/// A census: where each shard sends what it has counted since the last one.
pub type CensusReply = mpsc::Sender<Vec<ChannelLoad>>;

/// What a channel has carried on one shard since the last census.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelLoad {
    /// The channel.
    pub channel: ChannelName,
    /// Events for its clients.
    pub events: u64,
    /// Events handed to clients that may have them, counted once a client.
    pub deliveries: u64,
    /// Clients it has now.
    pub clients: usize,
}

/// Whether channels are counted, and which have been.
#[derive(Default)]
pub(super) struct Census {
    until: Option<Instant>,
    counted: Vec<ChannelKey>,
}

/// What one channel's entry counts.
#[derive(Clone, Copy, Default)]
pub(super) struct Load {
    events: u64,
    deliveries: u64,
}

impl Channels {
    /// Whether [`Channels::count`] is to be called.
    pub(super) fn are_counted(&self) -> bool {
        self.census.until.is_some()
    }

    /// Counts an event that is handed to so many clients.
    pub(super) fn count(&mut self, key: ChannelKey, clients: usize) {
        let census = &mut self.census.counted;
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        if channel.load.events == 0 {
            if census.len() == COUNTED {
                return;
            }
            census.push(key);
        }
        channel.load.events += 1;
        channel.load.deliveries += clients as u64;
    }

    /// Tells the busiest channels since the last census, and goes on counting for a while.
    pub(super) fn take_census(&mut self, now: Instant) -> Vec<ChannelLoad> {
        self.census.until = Some(now + INTEREST);
        let mut loads: Vec<_> = std::mem::take(&mut self.census.counted)
            .into_iter()
            .filter_map(|key| {
                let channel = self.channels.get_mut(key)?;
                let Load { events, deliveries } = std::mem::take(&mut channel.load);
                // Nothing: the channel is gone, and another one has its place.
                (events > 0).then(|| ChannelLoad {
                    channel: channel.name.clone(),
                    events,
                    deliveries,
                    clients: channel.members_of(true),
                })
            })
            .collect();
        loads.sort_unstable_by_key(|load| Reverse((load.deliveries, load.events)));
        loads.truncate(TOLD);
        loads
    }

    /// Stops counting once nobody has asked for long enough.
    pub(super) fn end_census(&mut self, now: Instant) {
        if self.census.until.is_some_and(|until| until <= now) {
            for key in std::mem::take(&mut self.census.counted) {
                if let Some(channel) = self.channels.get_mut(key) {
                    channel.load = Load::default();
                }
            }
            self.census.until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(names: usize) -> (Channels, Vec<ChannelKey>) {
        let mut channels = Channels::new(0);
        let keys = (0..names)
            .map(|number| channels.acquire(&format!("c{number}").parse().unwrap()))
            .collect();
        (channels, keys)
    }

    #[test]
    fn the_busiest_are_told_by_deliveries_and_then_forgotten() {
        let (mut channels, keys) = channels(100);
        let now = Instant::now();
        assert!(!channels.are_counted());
        assert_eq!(channels.take_census(now), []);
        assert!(channels.are_counted());
        for (clients, &key) in keys.iter().enumerate() {
            channels.count(key, clients);
            channels.count(key, clients);
        }
        let told = channels.take_census(now);
        assert_eq!(told.len(), TOLD);
        assert_eq!(told[0].channel.as_str(), "c99");
        assert_eq!((told[0].events, told[0].deliveries), (2, 198));
        assert_eq!(channels.take_census(now), []);
    }

    #[test]
    fn it_ends_when_nobody_asks_and_does_not_remember() {
        let (mut channels, keys) = channels(1);
        let now = Instant::now();
        channels.take_census(now);
        channels.count(keys[0], 1);
        channels.end_census(now + INTEREST / 2);
        assert!(channels.are_counted());
        channels.end_census(now + INTEREST);
        assert!(!channels.are_counted());
        assert_eq!(channels.take_census(now), []);
    }

    #[test]
    fn what_is_counted_is_bounded_and_a_channel_in_another_s_place_is_told_once() {
        let (mut channels, keys) = channels(COUNTED + 10);
        let now = Instant::now();
        channels.take_census(now);
        for &key in &keys {
            channels.count(key, 1);
        }
        assert_eq!(channels.census.counted.len(), COUNTED);
        channels.release(keys[0], now);
        channels.expire(now + Duration::from_secs(60));
        let key = channels.acquire(&"another".parse().unwrap());
        assert_eq!(key, keys[0]);
        channels.take_census(now);
        channels.count(key, 5);
        channels.release(key, now);
        channels.expire(now + Duration::from_secs(60));
        let key = channels.acquire(&"third".parse().unwrap());
        channels.count(key, 7);
        let told = channels.take_census(now);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].channel.as_str(), "third");
    }
}
