//! The recent kept events of a channel, so that most clients that come back cost no read.

use std::collections::VecDeque;

use super::judge::{ChannelEnd, HistoryPage, Linked};
use crate::protocol::EventId;

/// What a tail holds.
pub(crate) trait Entry: Linked + Clone {
    /// What it takes, in memory.
    fn cost_bytes(&self) -> usize;
}

impl Entry for super::judge::KeptEvent {
    fn cost_bytes(&self) -> usize {
        let payload_bytes = self.event.as_ref().map_or(0, |event| event.payload_len());
        payload_bytes + size_of::<Self>()
    }
}

/// Whether the channel has ended, as far as its events have arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    /// Nothing has arrived yet, and nothing was read.
    #[default]
    Unknown,
    Open,
    Ended(ChannelEnd),
}

impl From<Option<ChannelEnd>> for Ending {
    fn from(end: Option<ChannelEnd>) -> Self {
        end.map_or(Self::Open, Self::Ended)
    }
}

/// How much one tail may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// The newest kept events of one channel, without a hole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tail<E> {
    /// Every event of the channel after this id stands in `events`. `None`: since when events
    /// arrive is not known, so nothing is kept.
    complete_after: Option<EventId>,
    /// The event just before those, where it is known.
    before: Option<EventId>,
    events: VecDeque<E>,
    bytes: usize,
    ending: Ending,
}

impl<E> Default for Tail<E> {
    fn default() -> Self {
        Self {
            complete_after: None,
            before: None,
            events: VecDeque::new(),
            bytes: 0,
            ending: Ending::Unknown,
        }
    }
}

impl<E: Entry> Tail<E> {
    /// From now on every event after `position` is appended. Without effect on a tail that knows
    /// of an earlier beginning.
    pub(crate) fn start(&mut self, position: EventId) {
        self.complete_after.get_or_insert(position);
    }

    /// Begins anew: what was before `position` may have holes.
    pub(crate) fn restart(&mut self, position: EventId) {
        *self = Self {
            complete_after: self.complete_after.map(|_| position),
            ..Self::default()
        };
    }

    /// Takes the next event of the channel; one that it has already is ignored.
    pub(crate) fn append(&mut self, event: E, limits: TailLimits) {
        let link = event.link();
        let is_known = self
            .events
            .back()
            .is_some_and(|newest| link.id <= newest.link().id);
        let Some(complete_after) = self.complete_after else {
            return;
        };
        if is_known || link.id <= complete_after {
            return;
        }
        if self.events.is_empty() {
            self.before = Some(link.prev);
        }
        self.bytes += event.cost_bytes();
        self.ending = event.channel_end().into();
        self.events.push_back(event);
        self.trim(limits);
    }

    /// Takes what a read of the history tells about the time before the tail, if both meet.
    pub(crate) fn extend(&mut self, page: &HistoryPage<E>, limits: TailLimits) {
        let Some(complete_after) = self.complete_after else {
            return;
        };
        if self.ending == Ending::Unknown
            && let Some(ended) = page.ended_by(complete_after)
        {
            self.ending = ended.into();
        }
        // A history that began anew (`prev` is 0-0) says nothing of what was before it.
        let (begin, before) = match page.events.first().map(Linked::link) {
            Some(first) if first.prev > EventId::ZERO => (first.prev, Some(first.prev)),
            Some(first) => (first.id.pred(), None),
            None if page.oldest.is_some() => (page.from, None),
            None => return,
        };
        if page.end() < complete_after || begin >= complete_after {
            return;
        }
        // What is later comes with the events of other channels, in order; not from here.
        let earlier = page.events.iter().cloned();
        let mut events: VecDeque<E> = earlier
            .take_while(|event| event.link().id <= complete_after)
            .collect();
        events.append(&mut self.events);
        self.bytes = events.iter().map(Entry::cost_bytes).sum();
        self.before = before.or_else(|| events.front().map(|first| first.link().prev));
        self.events = events;
        self.complete_after = Some(begin);
        self.trim(limits);
    }

    fn trim(&mut self, limits: TailLimits) {
        while self.events.len() > limits.events || self.bytes > limits.bytes {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.cost_bytes();
            self.complete_after = Some(oldest.link().id);
            self.before = Some(oldest.link().id);
        }
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    /// Whether the channel has ended, as far as its events have arrived.
    pub(crate) fn ending(&self) -> Ending {
        self.ending
    }

    /// The end of the channel, where it is known to have ended.
    pub(crate) fn ended(&self) -> Option<ChannelEnd> {
        match self.ending {
            Ending::Ended(end) => Some(end),
            Ending::Unknown | Ending::Open => None,
        }
    }

    /// What its events take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The newest event.
    pub(crate) fn newest(&self) -> Option<EventId> {
        self.events.back().map(|event| event.link().id)
    }

    /// Whether it holds every event after `position`.
    pub(crate) fn covers(&self, position: EventId) -> bool {
        self.complete_after.is_some_and(|after| after <= position)
    }

    /// Whether `id` is known to be an event of the channel.
    pub(crate) fn holds(&self, id: EventId) -> bool {
        self.before == Some(id)
            || self
                .events
                .binary_search_by(|event| event.link().id.cmp(&id))
                .is_ok()
    }

    /// The events after `position`, oldest first.
    pub(crate) fn after(&self, position: EventId) -> impl Iterator<Item = &E> {
        let at = self
            .events
            .partition_point(|event| event.link().id <= position);
        self.events.range(at..)
    }
}

/// Cuts `events` where they exceed `most_bytes`, but for one, and tells whether it did.
pub(super) fn cut<E: Entry>(events: &mut Vec<E>, most_bytes: usize) -> bool {
    let mut bytes = 0;
    let fits = events
        .iter()
        .take_while(|event| {
            let is_first = bytes == 0;
            bytes += event.cost_bytes();
            is_first || bytes <= most_bytes
        })
        .count();
    let is_cut = fits < events.len();
    events.truncate(fits);
    is_cut
}

#[cfg(test)]
impl Entry for super::judge::Link {
    fn cost_bytes(&self) -> usize {
        1
    }
}
