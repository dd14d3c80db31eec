//! Redis in a small world: what the function library does, in units of a few milliseconds.

use std::time::Duration;

use super::setup::{Kept, is_restricted};
use crate::continuity::{HistoryPage, Issued, Link, Linked, Retention};
use crate::protocol::{Cursor, EventId};

/// How far a standby may be behind its primary.
pub(super) const LAG: u64 = 2;

pub(super) fn lag_bound() -> Duration {
    Duration::from_millis(LAG)
}

/// The histories and the state of one primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    pub(super) issued: Option<Issued>,
    /// The state is what this process wrote last; otherwise ids jump ahead.
    is_own_state: bool,
    /// The newest milliseconds this process knows of.
    memory_ms: u64,
    histories: [History; 2],
    pub(super) retention: Retention,
    pub(super) evictable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct History {
    /// None: there is no key.
    events: Vec<Kept>,
    expires_ms: u64,
}

impl Primary {
    /// One that has issued `last`, with ids known from `epoch` on.
    pub(super) fn new(epoch: EventId, last: EventId, ttl: u64, evictable: bool) -> Self {
        Self {
            issued: Some(Issued { epoch, last }),
            is_own_state: true,
            memory_ms: last.ms(),
            histories: Default::default(),
            retention: Retention::constant(Duration::from_millis(ttl)),
            evictable,
        }
    }

    pub(super) fn issue(&mut self, now: u64) -> EventId {
        let id = match self.issued {
            Some(Issued { last, .. }) if self.is_own_state => {
                if now > last.ms() {
                    EventId::new(now, 0)
                } else {
                    last.next()
                }
            }
            state => {
                let known = state.map_or(0, |issued| issued.last.ms());
                EventId::new(now.max(known).max(self.memory_ms) + LAG, 0)
            }
        };
        self.issued = Some(Issued {
            epoch: self.issued.map_or(id, |issued| issued.epoch),
            last: id,
        });
        self.is_own_state = true;
        self.memory_ms = id.ms();
        id
    }

    /// Issues the id of a probe, and names the epoch.
    pub(super) fn probe(&mut self, now: u64) -> (EventId, EventId) {
        let id = self.issue(now);
        (id, self.issued.map_or(id, |issued| issued.epoch))
    }

    /// `restricted`: of a world that restricts, whether the event is. `ends`: the channel ends with it.
    pub(super) fn publish(
        &mut self,
        now: u64,
        channel: usize,
        length: usize,
        restricted: Option<bool>,
        ends: bool,
    ) -> Kept {
        self.expire(now);
        let prev = self.histories[channel].events.last();
        let prev = prev.map_or(EventId::ZERO, |event| event.link.id);
        let mut id = self.issue(now);
        if restricted.is_some_and(|restricted| restricted != is_restricted(id)) {
            id = self.issue(now);
        }
        let kept = Kept {
            link: Link { id, prev },
            ends,
        };
        let history = &mut self.histories[channel];
        history.events.push(kept);
        let excess = history.events.len().saturating_sub(length);
        history.events.drain(..excess);
        let ttl = u64::try_from(self.retention.ttl.as_millis()).unwrap();
        history.expires_ms = id.ms() + ttl;
        kept
    }

    /// Removes the keys whose time is over.
    pub(super) fn expire(&mut self, now: u64) {
        for history in &mut self.histories {
            if now > history.expires_ms {
                *history = History::default();
            }
        }
    }

    pub(super) fn flush(&mut self) {
        self.issued = None;
        self.is_own_state = false;
        self.histories = Default::default();
    }

    pub(super) fn promote(&mut self, now: u64) {
        self.is_own_state = false;
        self.memory_ms = 0;
        self.expire(now);
    }

    pub(super) fn evict(&mut self, channel: usize) {
        self.histories[channel] = History::default();
    }

    pub(super) fn holds_any(&self, channel: usize) -> bool {
        !self.histories[channel].events.is_empty()
    }

    pub(super) fn raise_ttl(&mut self, ttl: u64) {
        self.retention = Retention {
            ttl: Duration::from_millis(ttl),
            old_ttl: self.retention.ttl,
            ttl_since: self.issued.map_or(EventId::ZERO, |issued| issued.last),
        };
    }

    pub(super) fn page(
        &self,
        now: u64,
        channel: usize,
        from: EventId,
        most: usize,
    ) -> HistoryPage<Kept> {
        let mut alive = self.clone();
        alive.expire(now);
        let events = &alive.histories[channel].events;
        let wanted = events.iter().filter(|event| event.link.id >= from);
        let page: Vec<Kept> = wanted.clone().take(most).copied().collect();
        HistoryPage {
            issued: self.issued,
            now_ms: now,
            retention: self.retention,
            evictable: self.evictable,
            oldest: events.first().map(Linked::link),
            from,
            complete: page.len() == wanted.clone().count(),
            ended: {
                let is_complete = page.len() == wanted.count();
                let last = events.last().filter(|_| is_complete);
                last.and_then(Linked::channel_end)
            },
            events: page,
        }
    }

    /// The last event of a channel that has ended.
    pub(super) fn end_of(&self, now: u64, channel: usize) -> Option<EventId> {
        let mut alive = self.clone();
        alive.expire(now);
        let last = alive.histories[channel].events.last().copied();
        last.filter(|last| last.ends).map(|last| last.link.id)
    }

    /// The newest `count` events.
    pub(super) fn newest_page(&self, now: u64, channel: usize, count: usize) -> HistoryPage<Kept> {
        let all = self.page(now, channel, EventId::ZERO, usize::MAX);
        let skipped = all.events.len().saturating_sub(count);
        let from = match all.events.get(skipped) {
            Some(first) if all.events.len() >= count => first.link.id,
            _ => EventId::ZERO,
        };
        self.page(now, channel, from, usize::MAX)
    }

    /// What section 4 of the design says of a cursor, by somebody who sees everything: for each
    /// channel whether it is proven complete.
    pub(super) fn proves(&self, now: u64, cursor: Cursor, channels: &[usize]) -> Vec<bool> {
        let mut alive = self.clone();
        alive.expire(now);
        let position = cursor.position();
        let Some(issued) = self.issued else {
            return vec![false; channels.len()];
        };
        if cursor == Cursor::default() {
            let is_first = |channel: &usize| {
                let oldest = alive.histories[*channel].events.first();
                oldest.is_none_or(|oldest| oldest.link.prev == EventId::ZERO)
            };
            return channels.iter().map(is_first).collect();
        }
        let was_issued = position <= issued.last && position >= issued.epoch;
        let holds = |channel: &usize| {
            let events = &alive.histories[*channel].events;
            let oldest_prev = events.first().map(|event| event.link.prev);
            events.iter().any(|event| event.link.id == cursor.event())
                || oldest_prev == Some(cursor.event())
        };
        let vouched = position.ms().saturating_sub(cursor.event().ms()) > LAG;
        let survived = vouched || channels.iter().any(holds);
        let ttl = if position >= self.retention.ttl_since {
            self.retention.ttl
        } else {
            self.retention.ttl.min(self.retention.old_ttl)
        };
        let newest_ms = issued.last.ms().max(now);
        let is_young = u128::from(newest_ms.saturating_sub(position.ms())) < ttl.as_millis();
        channels
            .iter()
            .map(|channel| {
                let events = &alive.histories[*channel].events;
                let mut links = events.iter().map(|event| event.link);
                let first = links.find(|link| link.id > position);
                let follows = issued.last <= position
                    || match first {
                        Some(first) if first.id == position.next() => true,
                        Some(first) if first.prev > EventId::ZERO => first.prev <= position,
                        None if !events.is_empty() => true,
                        _ => is_young && !self.evictable,
                    };
                was_issued && survived && follows
            })
            .collect()
    }
}
