//! A client in a small world, and what it is owed.

use std::rc::Rc;

use super::primary::Primary;
use super::setup::{Kept, is_restricted};
use crate::continuity::{HistoryPage, Link, Linked, Part, Replay};
use crate::protocol::{Cursor, EventId};

/// A published event, as nobody in the world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Published {
    pub(super) channel: usize,
    pub(super) id: EventId,
    /// Only a primary that was replaced had it.
    pub(super) lost: bool,
    /// The channel ended with it.
    pub(super) ends: bool,
}

/// A page with everything there was at the moment it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Read {
    pub(super) page: HistoryPage<Kept>,
    pub(super) now: u64,
    pub(super) primary: Rc<Primary>,
    /// The connection of the replica during which it was asked for.
    pub(super) era: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    From(EventId),
    Newest,
}

/// A read that the client's replay waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    /// The channel's index among the client's.
    pub(super) index: usize,
    pub(super) wanted: Wanted,
    /// The answer, on its way.
    pub(super) answer: Option<Rc<Read>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Away,
    /// `replay` is none until the newest pages are there.
    Replaying {
        replay: Option<Replay>,
        /// And whether it was read for this step.
        pages: Vec<Option<(Rc<Read>, bool)>>,
        pending: Vec<Pending>,
        /// It has been told nothing yet.
        is_first: bool,
    },
    Live {
        skip_through: EventId,
        told: Cursor,
    },
    /// It was told that nothing comes, and does not come back.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) channels: Vec<usize>,
    /// Events may be for others.
    restricts: bool,
    pub(super) stage: Stage,
    pub(super) replica: usize,
    /// What it would send.
    pub(super) cursor: Option<Cursor>,
    /// It has been told of ends up to this id, unless it only asked for what comes.
    pub(super) ends_through: EventId,
    pub(super) asks_for_ends: bool,
    /// Its newest event on this connection.
    last: Option<EventId>,
    /// The id of the last gap that it was told while it was live.
    gap: EventId,
    /// For each channel: what is later is owed. `None`: it has not begun.
    pub(super) start: [Option<EventId>; 2],
    /// Events it has had, was told a gap about, or could never know of.
    pub(super) settled: Vec<EventId>,
    /// Events it has had.
    had: Vec<EventId>,
    /// It has had events that were lost, and was not told.
    is_past: [bool; 2],
}

impl Client {
    pub(super) fn new(channels: &[usize], restricts: bool) -> Self {
        Self {
            restricts,
            channels: channels.to_vec(),
            stage: Stage::Away,
            replica: 0,
            cursor: None,
            ends_through: EventId::ZERO,
            asks_for_ends: true,
            last: None,
            gap: EventId::ZERO,
            start: [None; 2],
            settled: Vec::new(),
            had: Vec::new(),
            is_past: [false; 2],
        }
    }

    pub(super) fn connect(&mut self, replica: usize, stage: Stage) {
        self.replica = replica;
        self.stage = stage;
        self.last = None;
        self.gap = EventId::ZERO;
        self.ends_through = EventId::ZERO;
        self.asks_for_ends = true;
    }

    pub(super) fn disconnect(&mut self) {
        self.stage = Stage::Away;
        self.last = None;
    }

    pub(super) fn minds_end(&self, id: EventId) -> bool {
        self.asks_for_ends || id > self.ends_through
    }

    /// The end of a channel.
    pub(super) fn take_end(
        &self,
        channel: usize,
        end: EventId,
        published: &[Published],
    ) -> Result<(), String> {
        let of_channel = published.iter().filter(|event| event.channel == channel);
        let of_channel: Vec<_> = of_channel.copied().collect();
        match self.owed(&of_channel, end) {
            Some(event) => Err(format!("the end {end} comes before {event:?}")),
            None => Ok(()),
        }
    }

    /// The end of the stream, after the last end of its channels.
    pub(super) fn finish(&mut self, last_end: EventId) {
        self.cursor = Some(Cursor::new(last_end, EventId::ZERO));
        self.disconnect();
    }

    /// A gap of a live stream; its id is `told`.
    pub(super) fn take_live_gap(
        &mut self,
        channel: usize,
        told: EventId,
        through: EventId,
        published: &[Published],
    ) -> Result<(), String> {
        self.gap = self.gap.max(told);
        // Several channels may have one, each with events of its own after it.
        self.take_gap(channel, None, through, &[], published)
    }

    /// A heartbeat.
    pub(super) fn take_cursor(&mut self, cursor: Cursor) -> Result<(), String> {
        let last = self.last.unwrap_or_default().max(self.gap);
        if cursor.position() <= last {
            return Err(format!("a heartbeat with {cursor} after {last}"));
        }
        self.cursor = Some(cursor);
        Ok(())
    }

    pub(super) fn settle(&mut self, id: EventId) {
        if let Err(at) = self.settled.binary_search(&id) {
            self.settled.insert(at, id);
        }
    }

    /// Whether an event is for it.
    pub(super) fn may_have(&self, id: EventId) -> bool {
        !(self.restricts && is_restricted(id))
    }

    pub(super) fn take_event(
        &mut self,
        channel: usize,
        link: Link,
        lost: bool,
        late: bool,
    ) -> Result<(), String> {
        if !self.may_have(link.id) {
            return Err(format!("{link:?} is not for it"));
        }
        if self.had.binary_search(&link.id).is_ok() && late {
            return Err(format!("{link:?} comes twice"));
        }
        // A late event has no id on the wire.
        if !late && self.last.is_some_and(|last| link.id <= last) {
            return Err(format!("{link:?} after {:?}", self.last));
        }
        if self.is_past[channel] && !lost {
            return Err(format!(
                "{link:?} follows events that were lost, without a gap"
            ));
        }
        self.is_past[channel] |= lost;
        if !late {
            self.last = Some(link.id);
            self.cursor = Some(Cursor::new(link.id, EventId::ZERO));
        }
        self.settle(link.id);
        if let Err(at) = self.had.binary_search(&link.id) {
            self.had.insert(at, link.id);
        }
        Ok(())
    }

    /// A gap. It covers what was `published` up to `through`, but for what follows it.
    pub(super) fn take_gap(
        &mut self,
        channel: usize,
        id: Option<EventId>,
        through: EventId,
        follows: &[Kept],
        published: &[Published],
    ) -> Result<(), String> {
        if let Some(id) = id {
            if self.last.is_some_and(|last| id < last) {
                return Err(format!("a gap at {id} after {:?}", self.last));
            }
            self.cursor = Some(Cursor::new(id, EventId::ZERO));
        }
        self.is_past[channel] = false;
        let newest = published.last().map_or(EventId::ZERO, |event| event.id);
        self.start[channel].get_or_insert(through.min(newest));
        for event in published {
            let is_covered = event.channel == channel
                && event.id <= through
                && follows.iter().all(|follows| follows.link.id != event.id);
            if is_covered {
                self.settle(event.id);
            }
        }
        Ok(())
    }

    /// Takes the first `most` things of a part; tells whether that was all.
    pub(super) fn take_part(
        &mut self,
        part: &Part<Kept>,
        most: usize,
        published: &[Published],
        channel_of: impl Fn(EventId) -> (usize, bool),
    ) -> Result<bool, String> {
        let mut taken = 0;
        for (number, gap) in part.gaps.iter().enumerate() {
            if taken == most {
                return Ok(false);
            }
            taken += 1;
            let channel = self.channels[gap.channel];
            let through = part.cursor.position();
            // A client cut off between two gaps has not been told of the second.
            let is_last = number + 1 == part.gaps.len();
            let id = is_last.then(|| part.gap_id());
            self.take_gap(channel, id, through, &part.events, published)?;
        }
        for event in &part.events {
            if taken == most {
                return Ok(false);
            }
            taken += 1;
            let (channel, lost) = channel_of(event.link.id);
            self.take_event(channel, event.link(), lost, false)?;
        }
        if !part.gaps.is_empty() && part.events.is_empty() {
            self.cursor = Some(part.cursor);
        }
        Ok(true)
    }

    /// Forgives events that were lost before the client could know of them, and notes which it
    /// had. `isolated`: published when their primary was replaced already.
    pub(super) fn lose(&mut self, event: Published, isolated: bool) {
        if !self.channels.contains(&event.channel) {
            return;
        }
        let cursor = self.cursor;
        let is_behind = cursor.is_none_or(|cursor| event.id > cursor.position()) || isolated;
        if self.had.binary_search(&event.id).is_ok() {
            self.is_past[event.channel] = true;
        } else if is_behind {
            self.settle(event.id);
        }
    }

    /// What is owed up to `position`.
    pub(super) fn owed(&self, published: &[Published], position: EventId) -> Option<Published> {
        let is_owed = |event: &&Published| {
            self.channels.contains(&event.channel)
                && self.may_have(event.id)
                && self.start[event.channel].is_some_and(|start| event.id > start)
                && event.id <= position
                && self.settled.binary_search(&event.id).is_err()
        };
        published.iter().find(is_owed).copied()
    }
}
