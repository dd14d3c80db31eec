//! One replica's view of the kept events of one primary.
//!
//! A [`Feed`] is a state machine: [`Feed::on`] takes an [`Input`] and appends the [`Action`]s that
//! follow from it. Nothing in it waits. Its driver must do this much:
//!
//! - It subscribes to every wanted channel. When all are subscribed and a probe has come back it
//!   reads the newest id issued, and says [`Input::Connected`].
//! - It answers each [`Action::Read`] with an [`Input::Page`] of the same server. While
//!   [`Feed::is_reading`], what arrives waits outside, in order.
//! - It hands on what arrives in the order of the connection. Channels that are subscribed later
//!   become active behind what arrived before ([`Input::Subscribed`]); so do all channels of a new
//!   connection, after [`Action::Started`].
//! - When the connection ends it names the live events that were not handled, and says
//!   [`Input::Lost`].
//!
//! Each [`Feed`] is one ordering domain: ids of several primaries never meet in one.

mod arrivals;
mod start;

use std::hash::Hash;
use std::time::Duration;

use crate::continuity::arrival::seen_in;
use crate::continuity::judge::{GapNotice, HistoryPage, Link, Retention};
use crate::continuity::positions::Positions;
pub(crate) use crate::continuity::recovery::PageSize;
use crate::continuity::recovery::Recovery;
use crate::continuity::table::Table;
use crate::continuity::tail::Entry;
use crate::protocol::{Cursor, EventId};

/// An id that is further ahead of the newest known one than this, and than the time that has
/// passed since that was new, counts only if Redis says that it has issued it. A forged id would
/// move every cursor to where no event follows for long, and hide the events before it. Probes,
/// which only replicas send, say every few seconds where ids are; a jump of the ids costs one read.
const MAX_AHEAD: Duration = Duration::from_secs(5);

/// What a feed does not learn from its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FeedSettings {
    /// How far a replica of Redis may be behind its primary when it takes over.
    pub(crate) lag_bound: Duration,
    /// What may be collected of missed events before it is told.
    pub(crate) max_recovery_bytes: usize,
}

/// What has happened. `K` names a channel, `E` is a kept event.
#[derive(Debug)]
pub(crate) enum Input<K, E> {
    /// A shard wants the channel.
    Wanted(K),
    /// No shard wants the channel any more.
    Unwanted(K),
    /// Every wanted channel is subscribed or refused, and a probe has come back.
    Connected {
        subscribed: Vec<K>,
        refused: Vec<K>,
        /// The newest id issued; what is newer arrives. `None`: Redis issues no ids.
        newest: Option<EventId>,
    },
    /// These channels are subscribed, and everything that arrived before is handled.
    Subscribed {
        channels: Vec<K>,
        /// The newest id that had been issued by then.
        newest: Option<EventId>,
    },
    /// A kept event arrived; `None`: of a channel that is not wanted any more.
    Kept { channel: Option<K>, event: E },
    /// A live event arrived, or was not handled when the connection was lost.
    Live(K),
    /// A probe arrived: so did everything that was published before it.
    Probe { id: EventId, epoch: EventId },
    /// The answer to an [`Action::Read`]; `None`: Redis does not give it.
    Page {
        channel: K,
        page: Option<HistoryPage<E>>,
    },
    /// A client got what is in this page.
    ClientRead { channel: K, page: HistoryPage<Link> },
    /// How long Redis says that histories last.
    Retention(Retention),
    /// The connection is lost.
    Lost,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action<K, E> {
    /// Deliver a kept event.
    Event {
        channel: K,
        event: E,
        /// Later events of other channels were delivered before.
        late: bool,
        /// It was read from history.
        recovered: bool,
    },
    /// Deliver a kept event as a live one: there are no ids here.
    AsLive { channel: K, event: E },
    /// Tell the channel's clients that something may be missing.
    Gap {
        channel: K,
        notice: GapNotice,
        /// Later events of other channels were delivered before.
        late: bool,
    },
    /// Read the channel's history.
    Read {
        channel: K,
        /// What is known of the channel so far.
        cursor: Cursor,
        from: EventId,
        size: PageSize,
    },
    /// Every event of these channels arrives, after `position` where ids are known.
    Active {
        channels: Vec<K>,
        position: Option<EventId>,
    },
    /// Everything up to here was delivered.
    Position(EventId),
    /// Redis has lost ids that it had issued: those that follow are lower than what was delivered.
    Rewound { from: EventId, to: EventId },
    /// What was missed is delivered. The channels are active when everything that arrived
    /// meanwhile is handled: [`Input::Subscribed`] says so.
    Started {
        channels: Vec<K>,
        newest: Option<EventId>,
    },
    /// An event is dropped: Redis never issued its id.
    NeverIssued { channel: K, id: EventId },
    /// Redis has begun a new sequence of ids.
    NewEpoch(EventId),
    /// Ids of a living primary went back: the connection must be given up.
    WentBack { from: EventId, to: EventId },
}

/// What was seen of a channel since it is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Record {
    /// Every event of it has arrived since this was set, or is going to be read from history.
    active: bool,
    /// The newest kept event; all before it were delivered. `None`: none yet.
    seen: Option<EventId>,
    /// What follows `seen` was missed and not read yet.
    has_hole: bool,
    /// Live events came, which cannot be read again.
    had_live: bool,
}

impl Record {
    const ACTIVE: Self = Self {
        active: true,
        seen: None,
        has_hole: false,
        had_live: false,
    };
}

/// What the feed reads before it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Waiting<K: Hash + Ord, E> {
    #[default]
    Nothing,
    /// What was missed before the connection began.
    Start(Box<Start<K, E>>),
    /// What was missed before this event.
    Hole {
        channel: K,
        event: E,
        recovery: Box<Recovery<K, E>>,
    },
    /// What the history says about this event.
    Look { channel: K, event: E, doubt: Doubt },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Start<K: Hash + Ord, E> {
    subscribed: Vec<K>,
    refused: Vec<K>,
    newest: Option<EventId>,
    recovery: Recovery<K, E>,
}

/// Why an event is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doubt {
    /// It does not continue what was seen.
    OtherHistory,
    /// Its id is far ahead of all others.
    FarAhead,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Feed<K: Hash + Ord, E> {
    settings: FeedSettings,
    retention: Retention,
    records: Table<K, Record>,
    /// Everything up to this id was delivered, or told as missing. `None`: there are no ids here,
    /// and kept events are live ones.
    position: Option<EventId>,
    positions: Positions,
    /// The driver's clock, and when the position moved last.
    now: Duration,
    moved_at: Duration,
    /// A probe of this connection had an id, so clients may be told the position.
    is_confirmed: bool,
    /// Channels were called active without a position.
    active_without_position: bool,
    /// The newest id that a probe of this connection had.
    probed: EventId,
    epoch: Option<EventId>,
    /// What is not newer was read when this connection began.
    read_through: EventId,
    waiting: Waiting<K, E>,
}

type Actions<K, E> = Vec<Action<K, E>>;

impl<K: Clone + Hash + Ord, E: Entry> Feed<K, E> {
    pub(crate) fn new(settings: FeedSettings, retention: Retention) -> Self {
        Self {
            settings,
            retention,
            records: Table::default(),
            position: None,
            positions: Positions::new(settings.lag_bound),
            now: Duration::ZERO,
            moved_at: Duration::ZERO,
            is_confirmed: false,
            active_without_position: false,
            probed: EventId::ZERO,
            epoch: None,
            read_through: EventId::ZERO,
            waiting: Waiting::Nothing,
        }
    }

    /// What follows happens at this time of a clock that never steps.
    pub(crate) fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Whether the feed waits for a page. Until it comes, nothing that arrives may be handed on.
    pub(crate) fn is_reading(&self) -> bool {
        !matches!(self.waiting, Waiting::Nothing)
    }

    /// Whether every event of the channel arrives.
    pub(crate) fn is_active(&self, channel: &K) -> bool {
        self.records
            .get(channel)
            .is_some_and(|record| record.active)
    }

    /// The position as clients may be told it, together with the news that a channel is active.
    pub(crate) fn active_position(&mut self) -> Option<EventId> {
        let position = self.position.filter(|_| self.is_confirmed);
        self.active_without_position |= position.is_none();
        position
    }

    /// Takes an input, and appends what follows from it.
    pub(crate) fn on(&mut self, input: Input<K, E>, actions: &mut Actions<K, E>) {
        match input {
            Input::Wanted(channel) => {
                self.records.entry(channel).or_default();
            }
            Input::Unwanted(channel) => self.records.remove(&channel),
            Input::Connected {
                subscribed,
                refused,
                newest,
            } => self.connected(subscribed, refused, newest, actions),
            Input::Subscribed { channels, newest } => self.subscribed(channels, newest, actions),
            Input::Kept {
                channel: Some(channel),
                event,
            } => self.kept(channel, event, actions),
            Input::Kept {
                channel: None,
                event,
            } => {
                let id = event.link().id;
                if !self.is_far_ahead(id) {
                    self.advance(id);
                }
            }
            Input::Live(channel) => {
                if let Some(record) = self.records.get_mut(&channel) {
                    record.had_live = true;
                }
            }
            Input::Probe { id, epoch } => self.probe(id, epoch, actions),
            Input::Page { channel, page } => self.page(&channel, page, actions),
            Input::ClientRead { channel, page } => {
                if let Some(position) = self.position
                    && let Some(record) = self.records.get_mut(&channel)
                    && record.active
                {
                    record.seen = record.seen.max(seen_in(&page, position));
                }
            }
            Input::Retention(retention) => self.retention = retention,
            Input::Lost => self.waiting = Waiting::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
