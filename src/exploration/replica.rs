//! A replica in a small world: one subscriber connection, and the tails of its channels.

use std::collections::VecDeque;

use super::primary::{LAG, Primary, lag_bound};
use super::setup::is_restricted;
use crate::bus::chain::{Arrival, RecoverFrom, arrival, backfill_from, recover, seen_in};
use crate::hub::tail::{Tail, TailLimits};
use crate::protocol::{EventId, HistoryPage, Link};

/// What Redis has sent to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Event(usize, Link),
    Probe(EventId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Connection {
    Down,
    /// Subscribed, the first probe is back; what was missed is being read.
    Recovering {
        probe: EventId,
        channels: [Recovery; 2],
    },
    Up,
}

/// How far the backfill of a channel is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    /// From where on the next page is to be read; `None`: all is read.
    pub(super) cursor: Option<RecoverFrom>,
    gap: bool,
    events: Vec<Link>,
}

/// What the clients of a replica are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Event(usize, Link),
    Gap(usize, EventId),
}

impl Told {
    pub(super) fn id(self) -> EventId {
        match self {
            Self::Event(_, link) => link.id,
            Self::Gap(_, id) => id,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) connection: Connection,
    /// Counts the connections: what was read during an earlier one is of no use.
    pub(super) era: u8,
    /// Connected to the primary that was replaced.
    pub(super) is_behind: bool,
    pub(super) queue: VecDeque<Message>,
    seen: [Option<EventId>; 2],
    /// Events may be for others than the clients.
    restricts: bool,
    /// The newest that are for everybody.
    pub(super) newest: [EventId; 2],
    pub(super) gaps: [EventId; 2],
    pub(super) position: Option<EventId>,
    /// Earlier positions: the first is the settled one once it is old enough.
    positions: VecDeque<EventId>,
    pub(super) tails: [Tail<Link>; 2],
}

impl Replica {
    pub(super) fn down(restricts: bool) -> Self {
        Self {
            restricts,
            connection: Connection::Down,
            era: 0,
            is_behind: false,
            queue: VecDeque::new(),
            seen: [None; 2],
            newest: [EventId::ZERO; 2],
            gaps: [EventId::ZERO; 2],
            position: None,
            positions: VecDeque::new(),
            tails: Default::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection == Connection::Up
    }

    pub(super) fn is_subscribed(&self) -> bool {
        self.connection != Connection::Down
    }

    pub(super) fn lose(&mut self) {
        self.connection = Connection::Down;
        self.era += 1;
        self.is_behind = false;
        self.queue.clear();
    }

    /// All channels are subscribed and the first probe is back.
    pub(super) fn connect(&mut self, probe: EventId, wanted: &[usize]) {
        let recovery = |channel: usize| Recovery {
            cursor: self
                .position
                .filter(|_| wanted.contains(&channel))
                .map(|position| {
                    let settled = self.settled();
                    let cursor = backfill_from(self.seen[channel], position, settled, lag_bound());
                    RecoverFrom::start(cursor, lag_bound())
                }),
            gap: false,
            events: Vec::new(),
        };
        let channels = [recovery(0), recovery(1)];
        self.connection = Connection::Recovering { probe, channels };
    }

    /// The next read of a channel's backfill.
    pub(super) fn backfill(&self, channel: usize) -> Option<RecoverFrom> {
        match &self.connection {
            Connection::Recovering { channels, .. } => channels[channel].cursor,
            _ => None,
        }
    }

    /// Takes a page of the backfill; tells whether it left a gap.
    pub(super) fn recover(&mut self, channel: usize, page: &HistoryPage<Link>) -> bool {
        let Connection::Recovering { channels, probe } = &mut self.connection else {
            return false;
        };
        let recovery = &mut channels[channel];
        let cursor = recovery.cursor.unwrap();
        let recovered = recover(cursor, page, *probe, lag_bound());
        if recovered.gap.is_some() {
            // What earlier pages held is no longer there either.
            recovery.events.clear();
            recovery.gap = true;
        }
        recovery.events.extend(recovered.events);
        recovery.cursor = recovered.goes_on;
        recovered.gap.is_some()
    }

    /// What follows a complete backfill, in order.
    pub(super) fn finish_recovery(&mut self) -> Option<Vec<Told>> {
        let Connection::Recovering { probe, channels } = &self.connection else {
            return None;
        };
        if channels.iter().any(|recovery| recovery.cursor.is_some()) {
            return None;
        }
        let probe = *probe;
        let mut told = Vec::new();
        for (channel, recovery) in channels.iter().enumerate() {
            let first = recovery.events.first().map(|event| event.id.pred());
            if recovery.gap {
                told.push(Told::Gap(channel, first.unwrap_or(probe)));
            }
            let last = recovery.events.last().map(|event| event.id);
            if recovery.gap || last.is_some() {
                self.seen[channel] = last;
            }
            let events = recovery.events.iter();
            told.extend(events.map(|event| Told::Event(channel, *event)));
        }
        // Every gap comes before every event: a client cut off between them is past neither.
        told.sort_by_key(|told| (matches!(told, Told::Event(..)), told.id()));
        self.connection = Connection::Up;
        for item in &told {
            self.note(*item);
        }
        for tail in &mut self.tails {
            tail.start(probe);
        }
        self.reach(probe);
        Some(told)
    }

    /// Handles the next message.
    pub(super) fn handle(
        &mut self,
        primary: &Primary,
        has_lost: bool,
    ) -> Result<Vec<Told>, String> {
        let (channel, link) = match self.queue.pop_front() {
            None => return Ok(Vec::new()),
            Some(Message::Probe(id)) => {
                self.reach(id);
                return Ok(Vec::new());
            }
            Some(Message::Event(channel, link)) => (channel, link),
        };
        let arrival = arrival(self.seen[channel], link, primary.retention);
        if !has_lost && matches!(arrival, Arrival::Hole | Arrival::Rewound) {
            return Err(format!("{link:?} is a {arrival:?}, but nothing was lost"));
        }
        let told = match arrival {
            Arrival::Known => Vec::new(),
            Arrival::Next => vec![Told::Event(channel, link)],
            Arrival::Hole if !self.is_behind => {
                return Err(format!("{link:?} leaves a hole on a connection"));
            }
            // A hole is where the backfill was read from another primary.
            Arrival::Hole | Arrival::Rewound => vec![
                Told::Gap(channel, link.id.pred()),
                Told::Event(channel, link),
            ],
        };
        for item in &told {
            self.note(*item);
        }
        if !told.is_empty() {
            self.seen[channel] = Some(link.id);
        }
        self.reach(link.id);
        Ok(told)
    }

    /// Takes note of a read for a client.
    pub(super) fn take_page(&mut self, channel: usize, page: &HistoryPage<Link>) {
        self.tails[channel].extend(page, TAIL);
        let seen = seen_in(page, self.position.unwrap_or_default());
        self.seen[channel] = self.seen[channel].max(seen);
    }

    fn note(&mut self, told: Told) {
        match told {
            Told::Gap(channel, id) => {
                self.tails[channel].restart(id);
                self.newest[channel] = EventId::ZERO;
                self.gaps[channel] = self.gaps[channel].max(id);
            }
            Told::Event(channel, link) => {
                if !(self.restricts && is_restricted(link.id)) {
                    self.newest[channel] = self.newest[channel].max(link.id);
                }
                self.tails[channel].append(link, TAIL);
            }
        }
    }

    fn reach(&mut self, position: EventId) {
        if self.position >= Some(position) {
            return;
        }
        self.position = Some(position);
        self.positions.push_back(position);
        let is_settled = |id: &EventId| position.ms().saturating_sub(id.ms()) >= LAG;
        while self.positions.get(1).is_some_and(is_settled) {
            self.positions.pop_front();
        }
    }

    /// The newest position that is at least the lag bound old.
    pub(super) fn settled(&self) -> Option<EventId> {
        let (first, newest) = (*self.positions.front()?, self.position?);
        (newest.ms().saturating_sub(first.ms()) >= LAG).then_some(first)
    }
}

/// So small that it is trimmed even in small worlds.
const TAIL: TailLimits = TailLimits {
    events: 2,
    bytes: 2,
};
