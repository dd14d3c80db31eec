//! Histories in memory. Pure: the time is told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::bus::KeepOptions;
use crate::continuity::{ChannelEnd, HistoryPage, Issued, KeptEvent, Linked, Retention};
use crate::hub::HistoryRead;
use crate::protocol::{ChannelName, EndReason, Event, EventId};

/// One read, as behind Redis.
const MAX_PAGE_EVENTS: usize = 1024;
const MAX_PAGE_BYTES: usize = 1 << 20;

/// What an event, a channel or an idempotency key takes beside its text.
const OVERHEAD_BYTES: usize = 256;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of one channel.
    pub(super) events: usize,
    /// After the newest event of a channel, and for an idempotency key.
    pub(super) ttl: Duration,
    /// In all.
    pub(super) bytes: usize,
}

/// There is no room.
#[derive(Debug, thiserror::Error)]
#[error("the histories in memory are full ({} MiB); Redis keeps more", .bytes >> 20)]
pub(super) struct Full {
    bytes: usize,
}

/// Why an event is not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotKept {
    #[error(transparent)]
    Full(#[from] Full),
    /// Its channel has ended.
    #[error("the channel has ended: {0}")]
    Ended(EndReason),
}

/// The histories of all channels.
pub(super) struct Store {
    limits: Limits,
    issued: Issued,
    histories: HashMap<ChannelName, History>,
    /// The id that was issued for an idempotency key.
    keys: HashMap<(ChannelName, Box<str>), EventId>,
    /// When keys expire, in order: all live equally long.
    key_expiry: VecDeque<(u64, ChannelName, Box<str>)>,
    bytes: usize,
}

struct History {
    events: VecDeque<KeptEvent>,
    bytes: usize,
    expires_ms: u64,
    /// Its own length, above the configured one.
    length: Option<usize>,
}

impl Store {
    pub(super) fn new(limits: Limits, now_ms: u64) -> Self {
        let first = EventId::new(now_ms, 0);
        Self {
            limits,
            issued: Issued {
                epoch: first,
                last: first,
            },
            histories: HashMap::new(),
            keys: HashMap::new(),
            key_expiry: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The first id issued.
    pub(super) fn epoch(&self) -> EventId {
        self.issued.epoch
    }

    /// The newest id issued.
    pub(super) fn last(&self) -> EventId {
        self.issued.last
    }

    /// Issues an id although nothing is published, and forgets what has expired.
    pub(super) fn probe(&mut self, now_ms: u64) -> EventId {
        self.expire(now_ms);
        self.issue(now_ms)
    }

    fn issue(&mut self, now_ms: u64) -> EventId {
        let last = &mut self.issued.last;
        *last = last.next().max(EventId::new(now_ms, 0));
        *last
    }

    /// Keeps an event. Returns its id and, unless its idempotency key has one already, the event
    /// to be delivered.
    ///
    /// # Errors
    /// When the channel has ended, or there is no room.
    pub(super) fn publish(
        &mut self,
        channel: &ChannelName,
        event: Option<Event>,
        options: &KeepOptions,
        now_ms: u64,
    ) -> Result<(EventId, Option<KeptEvent>), NotKept> {
        self.expire_keys(now_ms);
        let key = options
            .key
            .as_ref()
            .map(|key| (channel.clone(), Box::<str>::from(key.as_str())));
        if let Some(first) = key.as_ref().and_then(|key| self.keys.get(key)) {
            return Ok((*first, None));
        }
        self.expire_history(channel, now_ms);
        if let Some(end) = self.end_of(channel) {
            return Err(NotKept::Ended(end.reason));
        }

        let is_event = |event: &Event| options.end.is_none() || !event.data().is_empty();
        let mut kept = KeptEvent {
            id: EventId::ZERO,
            prev: EventId::ZERO,
            published_ms: now_ms,
            event: event.filter(is_event).map(Arc::new),
            end: options.end,
        };
        let history = self.histories.get(channel);
        let asked = options.history.map(|length| length as usize);
        let own = asked.filter(|length| *length > self.limits.events);
        let own = own.or(history.and_then(|history| history.length));
        let most = asked.or(own).unwrap_or(self.limits.events).max(1);
        let trimmed = history.map_or(0, |history| (history.events.len() + 1).saturating_sub(most));
        let freed: usize = history
            .into_iter()
            .flat_map(|history| history.events.iter().take(trimmed))
            .map(cost_bytes)
            .sum();
        let new_channel = history.map_or(channel_cost(channel), |_| 0);
        let new_key = key.as_ref().map_or(0, key_cost);
        let bytes = self.bytes - freed + cost_bytes(&kept) + new_channel + new_key;
        if bytes > self.limits.bytes {
            let bytes = self.limits.bytes;
            return Err(Full { bytes }.into());
        }

        let id = self.issue(now_ms);
        let expires_ms = id.ms().saturating_add(millis(self.limits.ttl));
        self.bytes = bytes;
        let history = self
            .histories
            .entry(channel.clone())
            .or_insert_with(|| History {
                events: VecDeque::new(),
                bytes: channel_cost(channel),
                expires_ms,
                length: None,
            });
        kept.id = id;
        kept.prev = history.events.back().map_or(EventId::ZERO, |last| last.id);
        history.events.push_back(kept.clone());
        history.events.drain(..trimmed);
        history.bytes = history.bytes + cost_bytes(&kept) - freed;
        history.expires_ms = expires_ms;
        history.length = own;
        if let Some(key) = key {
            let expires_ms = now_ms.saturating_add(millis(self.limits.ttl));
            self.key_expiry
                .push_back((expires_ms, key.0.clone(), key.1.clone()));
            self.keys.insert(key, id);
        }
        Ok((id, Some(kept)))
    }

    /// Reads a part of a channel's history.
    pub(super) fn read(
        &mut self,
        channel: &ChannelName,
        read: HistoryRead,
        now_ms: u64,
    ) -> HistoryPage<KeptEvent> {
        self.expire_history(channel, now_ms);
        let events = self.histories.get(channel).map(|history| &history.events);
        let all = events.map_or(0, VecDeque::len);
        let (first, from) = match (events, read) {
            (Some(events), HistoryRead::From { id, preceding }) => {
                let at = events.partition_point(|event| event.id < id);
                let first = at.saturating_sub(preceding as usize);
                let start = events.get(first).map_or(id, |event| event.id.min(id));
                (first, start)
            }
            (Some(events), HistoryRead::Newest(count)) => {
                let first = all.saturating_sub(count as usize);
                (
                    first,
                    events.get(first).map_or(EventId::ZERO, |event| event.id),
                )
            }
            (None, HistoryRead::From { id, .. }) => (0, id),
            (None, HistoryRead::Newest(_)) => (0, EventId::ZERO),
        };
        let mut bytes = 0;
        let page: Vec<_> = events
            .into_iter()
            .flat_map(|events| events.range(first..))
            .take(MAX_PAGE_EVENTS)
            .enumerate()
            .take_while(|(number, event)| {
                bytes += cost_bytes(event);
                // Who begins with the last known event gets the one after it too.
                *number < 2 || bytes <= MAX_PAGE_BYTES
            })
            .map(|(_, event)| event.clone())
            .collect();
        let complete = first + page.len() == all;
        HistoryPage {
            now_ms,
            issued: Some(self.issued),
            retention: Retention::constant(self.limits.ttl),
            evictable: false,
            oldest: events.and_then(|events| events.front().map(Linked::link)),
            from,
            complete,
            events: page,
            ended: self.end_of(channel).filter(|_| complete),
        }
    }

    /// The end of a channel, while it is kept.
    fn end_of(&self, channel: &ChannelName) -> Option<ChannelEnd> {
        self.histories.get(channel)?.events.back()?.channel_end()
    }

    /// Forgets what has expired.
    fn expire(&mut self, now_ms: u64) {
        self.expire_keys(now_ms);
        let mut freed = 0;
        self.histories.retain(|_, history| {
            let lives = history.expires_ms > now_ms;
            freed += if lives { 0 } else { history.bytes };
            lives
        });
        self.bytes -= freed;
        if self.histories.len() * 4 < self.histories.capacity() {
            self.histories.shrink_to(self.histories.len() * 2);
        }
    }

    fn expire_history(&mut self, channel: &ChannelName, now_ms: u64) {
        let expires_ms = self
            .histories
            .get(channel)
            .map(|history| history.expires_ms);
        if expires_ms.is_some_and(|at| at <= now_ms)
            && let Some(history) = self.histories.remove(channel)
        {
            self.bytes -= history.bytes;
        }
    }

    fn expire_keys(&mut self, now_ms: u64) {
        while self
            .key_expiry
            .front()
            .is_some_and(|(expires_ms, ..)| *expires_ms <= now_ms)
            && let Some((_, channel, key)) = self.key_expiry.pop_front()
        {
            let key = (channel, key);
            self.bytes -= key_cost(&key);
            self.keys.remove(&key);
        }
    }
}

fn cost_bytes(event: &KeptEvent) -> usize {
    let payload_bytes = event.event.as_ref().map_or(0, |event| event.payload_len());
    payload_bytes + OVERHEAD_BYTES
}

fn channel_cost(channel: &ChannelName) -> usize {
    channel.as_str().len() + OVERHEAD_BYTES
}

fn key_cost((channel, key): &(ChannelName, Box<str>)) -> usize {
    channel.as_str().len() + key.len() * 2 + OVERHEAD_BYTES
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const LIMITS: Limits = Limits {
        events: 3,
        ttl: Duration::from_millis(100),
        bytes: 1 << 20,
    };

    fn channel(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    fn publish(store: &mut Store, name: &str, data: &str, now_ms: u64) -> (EventId, EventId) {
        let event = Event::new(Bytes::copy_from_slice(data.as_bytes()), 1 << 20).unwrap();
        let options = KeepOptions::default();
        let stored = store.publish(&channel(name), Some(event), &options, now_ms);
        let kept = stored.unwrap().1.unwrap();
        (kept.id, kept.prev)
    }

    fn ids(page: &HistoryPage<KeptEvent>) -> Vec<EventId> {
        page.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn ids_grow_over_all_channels_even_within_a_millisecond_and_when_the_clock_stands() {
        let mut store = Store::new(LIMITS, 1000);
        let (a1, a1_prev) = publish(&mut store, "a", "x", 1000);
        let (b1, _) = publish(&mut store, "b", "x", 1000);
        let (a2, a2_prev) = publish(&mut store, "a", "x", 900);
        assert_eq!(a1_prev, EventId::ZERO);
        assert_eq!(a2_prev, a1);
        assert!(a1 > EventId::new(1000, 0) && b1 > a1 && a2 > b1);
        assert!(store.probe(1001) > a2);
    }

    #[test]
    fn a_history_is_cut_to_its_length_and_says_what_was_before() {
        let mut store = Store::new(LIMITS, 1000);
        let all: Vec<_> = (0..5)
            .map(|n| publish(&mut store, "a", "x", 1001 + n).0)
            .collect();
        let from = HistoryRead::From {
            id: EventId::ZERO,
            preceding: 0,
        };
        let page = store.read(&channel("a"), from, 1010);
        assert_eq!(ids(&page), all[2..]);
        assert_eq!(page.oldest.map(|oldest| oldest.prev), Some(all[1]));
        assert!(page.complete);
        let page = store.read(&channel("a"), HistoryRead::Newest(2), 1010);
        assert_eq!((ids(&page), page.from), (all[3..].to_vec(), all[3]));
        let read = HistoryRead::From {
            id: all[4],
            preceding: 1,
        };
        let page = store.read(&channel("a"), read, 1010);
        assert_eq!((ids(&page), page.from), (all[3..].to_vec(), all[3]));
        let read = HistoryRead::From {
            id: all[4].next(),
            preceding: 0,
        };
        let page = store.read(&channel("a"), read, 1010);
        assert!(page.events.is_empty() && page.complete && page.from == all[4].next());
    }

    #[test]
    fn long_histories_are_read_in_pages() {
        let limits = Limits {
            events: 5000,
            bytes: 64 << 20,
            ..LIMITS
        };
        let mut store = Store::new(limits, 1000);
        let mebibyte = "x".repeat(1 << 20);
        let big: Vec<_> = (0..4)
            .map(|_| publish(&mut store, "big", &mebibyte, 1001).0)
            .collect();
        let read = |id| HistoryRead::From { id, preceding: 0 };
        let page = store.read(&channel("big"), read(big[1]), 1001);
        assert_eq!((ids(&page), page.complete), (big[1..3].to_vec(), false));
        for _ in 0..2000 {
            publish(&mut store, "many", "x", 1001);
        }
        let page = store.read(&channel("many"), read(EventId::ZERO), 1001);
        assert_eq!((page.events.len(), page.complete), (1024, false));
        let page = store.read(&channel("many"), read(page.end().next()), 1001);
        assert_eq!((page.events.len(), page.complete), (976, true));
    }

    #[test]
    fn what_expires_is_gone_and_its_bytes_are_free() {
        let mut store = Store::new(LIMITS, 1000);
        publish(&mut store, "a", "x", 1000);
        publish(&mut store, "b", "x", 1050);
        let page = store.read(&channel("a"), HistoryRead::Newest(9), 1099);
        assert_eq!(page.events.len(), 1);
        let page = store.read(&channel("a"), HistoryRead::Newest(9), 1101);
        assert!(page.events.is_empty() && page.oldest.is_none() && page.complete);
        assert_eq!(publish(&mut store, "a", "x", 1101).1, EventId::ZERO);
        store.probe(2000);
        assert_eq!(store.bytes, 0);
    }

    #[test]
    fn an_idempotency_key_stands_for_one_event() {
        let mut store = Store::new(LIMITS, 1000);
        let mut publish = |name: &str, now_ms| {
            let options = KeepOptions {
                key: Some("k".into()),
                ..KeepOptions::default()
            };
            let stored = store.publish(&channel(name), None, &options, now_ms);
            let (id, kept) = stored.unwrap();
            (id, kept.is_some())
        };
        let (first, is_new) = publish("a", 1000);
        assert!(is_new);
        assert_eq!(publish("a", 1099), (first, false));
        assert!(publish("b", 1099).1);
        assert!(publish("a", 1100).1);
        store.probe(3000);
        assert_eq!((store.bytes, store.keys.len()), (0, 0));
    }

    #[test]
    fn publishers_are_refused_where_there_is_no_room() {
        let limits = Limits {
            bytes: 4000,
            ..LIMITS
        };
        let mut store = Store::new(limits, 1000);
        let data = || Event::new(Bytes::from(vec![b'x'; 700]), 1 << 20).unwrap();
        let options = KeepOptions::default();
        let mut room = 0;
        while store
            .publish(&channel(&format!("c{room}")), Some(data()), &options, 1000)
            .is_ok()
        {
            room += 1;
        }
        assert_eq!(room, 3);
        // Where as much is forgotten as comes there is room.
        for _ in 0..5 {
            let options = KeepOptions {
                history: Some(1),
                ..KeepOptions::default()
            };
            let stored = store.publish(&channel("c0"), Some(data()), &options, 1000);
            assert!(stored.is_ok());
        }
        assert!(store.bytes <= 4000);
    }
}
