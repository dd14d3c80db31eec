//! What a small world is made of.

use super::world::START_MS;
use crate::continuity::{Entry, Link, Linked};
use crate::protocol::{Cursor, EndReason, EventId};

/// What a world is made of, and how often each thing may happen in it.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) name: &'static str,
    pub(super) ttl: u64,
    /// The most events of a history.
    pub(super) length: usize,
    pub(super) evictable: bool,
    /// The channels of each client.
    pub(super) clients: Vec<Vec<usize>>,
    /// Events are published to these.
    pub(super) channels: Vec<usize>,
    pub(super) replicas: usize,
    /// How many of them are connected from the start.
    pub(super) connected: usize,
    /// The most events of a page, and of a part.
    pub(super) page_events: usize,
    pub(super) part_events: usize,
    /// The most events of a page that a backfill reads.
    pub(super) backfill_events: usize,
    /// Events of each channel from before the start, and from when.
    pub(super) before: usize,
    pub(super) before_ms: u64,
    pub(super) budget: Budget,
    /// Events may be for others than the clients: see [`is_restricted`].
    pub(super) restricts: bool,
    /// Channels may end.
    pub(super) ends: bool,
    /// Clients may come with cursors that were never told.
    pub(super) foreign: Vec<Cursor>,
    /// Clients may ask for the newest event of each channel.
    pub(super) newest: bool,
    /// Clients may ask for everything.
    pub(super) from_start: bool,
    /// A replaced primary goes on for the replicas connected to it.
    pub(super) isolation: bool,
    /// Pages may hold more than was asked for.
    pub(super) shared_reads: bool,
    /// Pages are used for later steps too.
    pub(super) reused_pages: bool,
    /// Pages are used even when the subscription was lost since they were asked for. Wrong.
    pub(super) stale_pages: bool,
}

impl Setup {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            ttl: 5,
            length: 2,
            evictable: false,
            clients: vec![vec![0]],
            channels: vec![0],
            replicas: 1,
            connected: 1,
            page_events: usize::MAX,
            part_events: usize::MAX,
            backfill_events: usize::MAX,
            before: 0,
            before_ms: START_MS - 1,
            restricts: false,
            ends: false,
            budget: Budget::default(),
            foreign: Vec::new(),
            newest: false,
            from_start: false,
            isolation: false,
            shared_reads: false,
            reused_pages: false,
            stale_pages: false,
        }
    }
}

/// A kept event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kept {
    pub(super) link: Link,
    /// The channel ends with it.
    pub(super) ends: bool,
}

impl Linked for Kept {
    fn link(&self) -> Link {
        self.link
    }

    fn end(&self) -> Option<EndReason> {
        self.ends.then_some(EndReason::Done)
    }
}

impl Entry for Kept {
    fn cost_bytes(&self) -> usize {
        1
    }
}

/// In a world that restricts, whether an event is for none of the clients. Its id says so, which
/// nobody but the model looks at.
pub(super) fn is_restricted(id: EventId) -> bool {
    id.n() % 2 == 1
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) ticks: u8,
    pub(super) publishes: u8,
    pub(super) probes: u8,
    pub(super) connects: u8,
    pub(super) losses: u8,
    pub(super) failovers: u8,
    pub(super) flushes: u8,
    pub(super) evictions: u8,
    pub(super) raises: u8,
    pub(super) tells: u8,
    /// Messages that never arrive, although the connection goes on.
    pub(super) drops: u8,
}
