//! A replica in a small world: the feed of one subscriber connection, and a shard that it drives.

use std::collections::VecDeque;
use std::time::Duration;

use super::primary::{Primary, lag_bound};
use super::setup::{Kept, is_restricted};
use crate::continuity::{
    Action, Feed, FeedSettings, HistoryPage, Input, Link, Linked, Positions, Retention, Tail,
    TailLimits,
};
use crate::protocol::{Cursor, EventId};

/// What waits for the replica, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Event(usize, Kept),
    Probe {
        id: EventId,
        epoch: EventId,
        /// The one that a connection begins with: it is handled as soon as it can be.
        is_first: bool,
    },
    /// The replica's own note: all channels are active behind it.
    Mark {
        newest: EventId,
    },
}

/// What the clients of a replica are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Event {
        channel: usize,
        link: Link,
        late: bool,
        ends: bool,
    },
    Gap {
        channel: usize,
        /// The id of the `$gap`.
        id: EventId,
        /// What follows is complete.
        through: EventId,
    },
    Rewound,
}

/// A page that the feed waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) cursor: Cursor,
    pub(super) from: EventId,
}

/// What a shard knows, as `hub` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shard {
    pub(super) tails: [Tail<Kept>; 2],
    pub(super) positions: Positions,
    /// The newest events that are for everybody.
    pub(super) newest: [EventId; 2],
    pub(super) gaps: [EventId; 2],
}

impl Shard {
    pub(super) fn position(&self) -> Option<EventId> {
        self.positions.newest()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    feed: Feed<usize, Kept>,
    pub(super) shard: Shard,
    wanted: Vec<usize>,
    is_connected: bool,
    /// The channels are active: streams may be opened.
    is_active: bool,
    /// Counts the connections: what was read during an earlier one is of no use.
    pub(super) era: u8,
    /// Connected to the primary that was replaced.
    pub(super) is_behind: bool,
    pub(super) queue: VecDeque<Message>,
    reads: [Option<Wanted>; 2],
    /// An event of the channel was told since the last gap: the next one is held against it.
    has_seen: [bool; 2],
    /// A page of the channel did not prove it complete, so a gap may be told.
    may_have_gap: [bool; 2],
    /// Events may be for others than the clients.
    restricts: bool,
}

impl Replica {
    pub(super) fn down(wanted: &[usize], ttl: u64, restricts: bool) -> Self {
        let settings = FeedSettings {
            lag_bound: lag_bound(),
            // A few events: larger recoveries are told in windows.
            max_recovery_bytes: 2,
        };
        let retention = Retention::constant(Duration::from_millis(ttl));
        let mut replica = Self {
            feed: Feed::new(settings, retention),
            shard: Shard {
                tails: Default::default(),
                positions: Positions::new(lag_bound()),
                newest: [EventId::ZERO; 2],
                gaps: [EventId::ZERO; 2],
            },
            wanted: wanted.to_vec(),
            is_connected: false,
            is_active: false,
            era: 0,
            is_behind: false,
            queue: VecDeque::new(),
            reads: [None; 2],
            has_seen: [false; 2],
            may_have_gap: [false; 2],
            restricts,
        };
        for channel in wanted {
            replica.feed.on(Input::Wanted(*channel), &mut Vec::new());
        }
        replica
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_connected && self.is_active
    }

    pub(super) fn is_subscribed(&self) -> bool {
        self.is_connected
    }

    pub(super) fn may_handle(&self) -> bool {
        self.is_connected && !self.queue.is_empty() && !self.feed.is_reading()
    }

    /// Whether the next message is an event, and another one of its channel waits behind it: from
    /// that the replica learns that it has missed one.
    pub(super) fn may_drop(&self) -> bool {
        let Some(Message::Event(channel, _)) = self.queue.front() else {
            return false;
        };
        let is_later =
            |message: &Message| matches!(message, Message::Event(of, _) if of == channel);
        self.has_seen[*channel] && self.queue.iter().skip(1).any(is_later)
    }

    /// Whether everything that arrived is told.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && !self.feed.is_reading()
    }

    pub(super) fn lose(&mut self) {
        self.is_connected = false;
        self.is_active = false;
        self.era += 1;
        self.is_behind = false;
        self.queue.clear();
        self.reads = [None; 2];
        self.feed.on(Input::Lost, &mut Vec::new());
    }

    /// All channels are subscribed and the first probe is back.
    pub(super) fn connect(&mut self, id: EventId, epoch: EventId) -> Result<Vec<Told>, String> {
        self.is_connected = true;
        self.may_have_gap = [false; 2];
        self.queue.push_back(Message::Probe {
            id,
            epoch,
            is_first: true,
        });
        self.input(Input::Connected {
            subscribed: self.wanted.clone(),
            refused: Vec::new(),
            newest: Some(id),
        })
    }

    /// The page of a channel that the feed waits for.
    pub(super) fn read(&self, channel: usize) -> Option<Wanted> {
        self.reads[channel]
    }

    /// Takes a page. `is_proven`: everything after what the feed knew of the channel was retained.
    pub(super) fn take_read(
        &mut self,
        channel: usize,
        page: HistoryPage<Kept>,
        is_proven: bool,
    ) -> Result<Vec<Told>, String> {
        self.reads[channel] = None;
        self.may_have_gap[channel] |= !is_proven;
        let page = Some(page);
        self.input(Input::Page { channel, page })
    }

    /// Handles the next message.
    pub(super) fn handle(&mut self, has_lost: bool) -> Result<Vec<Told>, String> {
        let Some(message) = self.queue.pop_front() else {
            return Ok(Vec::new());
        };
        let told = self.input(match message {
            Message::Event(channel, event) => Input::Kept {
                channel: Some(channel),
                event,
            },
            Message::Probe { id, epoch, .. } => Input::Probe { id, epoch },
            Message::Mark { newest } => Input::Subscribed {
                channels: self.wanted.clone(),
                newest: Some(newest),
            },
        })?;
        if self.feed.is_reading() && !has_lost {
            return Err(format!("{message:?} needs a read, but nothing was lost"));
        }
        Ok(told)
    }

    /// What the feed does with an input, and with what can be handled at once after it.
    fn input(&mut self, input: Input<usize, Kept>) -> Result<Vec<Told>, String> {
        let mut told = Vec::new();
        self.drive(input, &mut told)?;
        while !self.feed.is_reading()
            && let Some(message @ (Message::Probe { is_first: true, .. } | Message::Mark { .. })) =
                self.queue.front().copied()
        {
            self.queue.pop_front();
            let input = match message {
                Message::Mark { newest } => Input::Subscribed {
                    channels: self.wanted.clone(),
                    newest: Some(newest),
                },
                Message::Probe { id, epoch, .. } => Input::Probe { id, epoch },
                Message::Event(..) => continue,
            };
            self.drive(input, &mut told)?;
        }
        Ok(told)
    }

    fn drive(&mut self, input: Input<usize, Kept>, told: &mut Vec<Told>) -> Result<(), String> {
        let mut actions = Vec::new();
        self.feed.on(input, &mut actions);
        // Hash maps have no order; the worlds must.
        actions.sort_by_key(|action| match action {
            Action::Read { channel, .. } => Some(*channel),
            _ => None,
        });
        for action in actions {
            self.perform(action, told)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action<usize, Kept>, told: &mut Vec<Told>) -> Result<(), String> {
        let shard = &mut self.shard;
        match action {
            Action::Event {
                channel,
                event,
                late,
                ..
            } => {
                let link = event.link();
                shard.positions.note(link.id);
                if !(self.restricts && is_restricted(link.id)) {
                    shard.newest[channel] = shard.newest[channel].max(link.id);
                }
                shard.tails[channel].append(event, TAIL);
                self.has_seen[channel] = true;
                told.push(Told::Event {
                    channel,
                    link,
                    late,
                    ends: event.ends,
                });
            }
            Action::Gap {
                channel, notice, ..
            } => {
                let Some(through) = notice.complete_after else {
                    return Err(format!("a gap of live events: {notice:?}"));
                };
                // Without an id: the connection was lost while a hole was read, after a gap in it.
                if notice.id.is_some() && !self.may_have_gap[channel] {
                    return Err(format!("{notice:?} of {channel}, which is proven"));
                }
                let id = notice.id.unwrap_or_default();
                shard.tails[channel].restart(through);
                self.has_seen[channel] = false;
                shard.newest[channel] = EventId::ZERO;
                shard.gaps[channel] = shard.gaps[channel].max(through);
                told.push(Told::Gap {
                    channel,
                    id,
                    through,
                });
            }
            Action::Read {
                channel,
                cursor,
                from,
                ..
            } => {
                let wanted = Wanted { cursor, from };
                if self.reads[channel].replace(wanted).is_some() {
                    return Err(format!("{channel} is read twice"));
                }
            }
            Action::Active { channels, position } => {
                let Some(position) = position else {
                    return Err("active without a position".to_owned());
                };
                shard.positions.note(position);
                for channel in channels {
                    shard.tails[channel].start(position);
                }
                self.is_active = true;
            }
            Action::Position(position) => shard.positions.note(position),
            Action::Rewound { to, .. } => {
                shard.positions = Positions::new(lag_bound());
                shard.positions.note(to);
                shard.tails = Default::default();
                shard.newest = [EventId::ZERO; 2];
                shard.gaps = [EventId::ZERO; 2];
                told.push(Told::Rewound);
            }
            Action::Started { newest, .. } => {
                let newest = newest.unwrap_or_default();
                self.queue.push_back(Message::Mark { newest });
            }
            Action::NewEpoch(_) => {}
            other @ (Action::AsLive { .. }
            | Action::NeverIssued { .. }
            | Action::WentBack { .. }) => return Err(format!("{other:?}")),
        }
        Ok(())
    }

    /// Takes note of a read for a client.
    pub(super) fn take_page(&mut self, channel: usize, page: &HistoryPage<Kept>) {
        self.shard.tails[channel].extend(page, TAIL);
        let page = page.map(Linked::link);
        self.feed
            .on(Input::ClientRead { channel, page }, &mut Vec::new());
    }

    /// The primary that it is connected to.
    pub(super) fn source<'a>(
        &self,
        primary: &'a Primary,
        replaced: Option<&'a Primary>,
    ) -> &'a Primary {
        replaced.filter(|_| self.is_behind).unwrap_or(primary)
    }
}

/// So small that it is trimmed even in small worlds.
const TAIL: TailLimits = TailLimits {
    events: 2,
    bytes: 2,
};
