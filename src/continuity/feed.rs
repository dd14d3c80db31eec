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

use std::hash::Hash;
use std::time::Duration;

use super::arrival::{Arrival, arrival, missed_from, seen_in};
use super::judge::{GapNotice, HistoryPage, Link, Retention};
use super::positions::Positions;
pub(crate) use super::recovery::PageSize;
use super::recovery::{Recovery, Wanted};
use super::rules::Rule;
use super::table::Table;
use super::tail::Entry;
use crate::protocol::{Cursor, EventId, GapReason};

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

    // What a new connection begins with.

    fn connected(
        &mut self,
        subscribed: Vec<K>,
        refused: Vec<K>,
        newest: Option<EventId>,
        actions: &mut Actions<K, E>,
    ) {
        let missed: Vec<_> = match (self.position, newest) {
            (Some(position), Some(_)) => subscribed
                .iter()
                .filter_map(|channel| Some((channel.clone(), self.missed(channel, position)?)))
                .collect(),
            _ => Vec::new(),
        };
        let recovery = Recovery::new(
            missed,
            newest.unwrap_or_default(),
            self.settings.lag_bound,
            self.settings.max_recovery_bytes,
        );
        self.waiting = Waiting::Start(Box::new(Start {
            subscribed,
            refused,
            newest,
            recovery,
        }));
        self.go_on(actions);
    }

    /// From where on a channel must be read because its subscription was interrupted.
    fn missed(&self, channel: &K, position: EventId) -> Option<Cursor> {
        let record = self.records.get(channel).filter(|record| record.active)?;
        if Rule::ReadWhatWasMissed.is_off() {
            return None;
        }
        match (record.has_hole, record.seen) {
            (false, seen) => {
                let (durable, lag_bound) = (self.positions.durable(), self.settings.lag_bound);
                Some(missed_from(seen, position, durable, lag_bound))
            }
            (true, Some(seen)) => Some(Cursor::new(seen, EventId::ZERO)),
            (true, None) => None,
        }
    }

    /// Reads, and delivers what is complete, until a page must be waited for.
    fn go_on(&mut self, actions: &mut Actions<K, E>) {
        loop {
            match std::mem::take(&mut self.waiting) {
                Waiting::Start(mut start) => {
                    if !read_on(&mut start.recovery, actions) {
                        self.waiting = Waiting::Start(start);
                        return;
                    }
                    self.note_rewound(start.newest, actions);
                    self.deliver_window(&mut start.recovery, true, actions);
                    if start.recovery.is_done() {
                        return self.finish_start(*start, actions);
                    }
                    self.waiting = Waiting::Start(start);
                }
                Waiting::Hole {
                    channel,
                    event,
                    mut recovery,
                } => {
                    let has_read = read_on(&mut recovery, actions);
                    if has_read {
                        self.deliver_window(&mut recovery, false, actions);
                        if recovery.is_done() {
                            return self.deliver_after_read(channel, event, actions);
                        }
                    }
                    self.waiting = Waiting::Hole {
                        channel,
                        event,
                        recovery,
                    };
                    if !has_read {
                        return;
                    }
                }
                waiting @ (Waiting::Look { .. } | Waiting::Nothing) => {
                    self.waiting = waiting;
                    return;
                }
            }
        }
    }

    /// Nothing of a new sequence of ids is late.
    fn note_rewound(&mut self, newest: Option<EventId>, actions: &mut Actions<K, E>) {
        if let (Some(from), Some(to)) = (self.position, newest)
            && to < from
        {
            actions.push(Action::Rewound { from, to });
            self.position = Some(EventId::ZERO);
            self.positions = Positions::new(self.settings.lag_bound);
        }
    }

    /// `is_start`: a gap also speaks of the live events that were lost with the connection.
    fn deliver_window(
        &mut self,
        recovery: &mut Recovery<K, E>,
        is_start: bool,
        actions: &mut Actions<K, E>,
    ) {
        let window = recovery.window();
        let first = window.events.first().map(|(_, event)| event.link().id);
        // The cursor of a client that gets a gap: just below what follows.
        let told = first.map_or(window.end, EventId::pred);
        let gaps_at = actions.len();
        for (channel, gap, complete_after) in window.gaps {
            if let Some(record) = self.records.get_mut(&channel) {
                record.seen = None;
                record.had_live &= !is_start;
                let mut notice = GapNotice::kept(gap.reason, Some(gap.after), gap.oldest, told);
                notice.complete_after = Some(complete_after);
                let late = self.position.is_some_and(|position| told < position);
                actions.push(Action::Gap {
                    channel,
                    notice,
                    late,
                });
            }
        }
        let gaps = actions.len() - gaps_at;
        for (channel, event) in window.events {
            if let Some(record) = self.records.get_mut(&channel) {
                record.seen = Some(event.link().id);
                self.deliver(channel, event, true, actions);
            }
        }
        if Rule::GapsFirst.is_off() {
            actions
                .get_mut(gaps_at..)
                .unwrap_or_default()
                .rotate_left(gaps);
        }
    }

    fn finish_start(&mut self, start: Start<K, E>, actions: &mut Actions<K, E>) {
        for channel in start.recovery.channels() {
            if let Some(record) = self.records.get_mut(channel) {
                record.has_hole = false;
            }
        }
        let keeps = self.position.is_some() && start.newest.is_some();
        for (channel, record) in self.records.iter_mut() {
            let cannot_tell = record.has_hole || !keeps && record.seen.is_some();
            if record.active && (record.had_live || cannot_tell) {
                let complete_after = start.newest.filter(|_| cannot_tell);
                actions.push(Action::Gap {
                    channel: channel.clone(),
                    notice: GapNotice::live(record.seen, complete_after),
                    late: false,
                });
            }
            record.had_live = false;
            if cannot_tell {
                record.seen = None;
                record.has_hole = false;
            }
        }
        self.activate(&start.subscribed);
        if start.newest.is_none() {
            self.positions = Positions::new(self.settings.lag_bound);
        }
        self.position = None;
        if let Some(newest) = start.newest {
            self.reach(newest);
        }
        self.read_through = start.newest.unwrap_or_default();
        self.is_confirmed = false;
        self.active_without_position = false;
        self.probed = EventId::ZERO;
        // Of what is refused nothing arrives on this connection.
        for channel in &start.refused {
            if let Some(record) = self.records.get_mut(channel)
                && record.active
            {
                record.has_hole = true;
                record.had_live = true;
            }
        }
        actions.push(Action::Started {
            channels: start.subscribed,
            newest: start.newest,
        });
    }

    fn subscribed(
        &mut self,
        channels: Vec<K>,
        newest: Option<EventId>,
        actions: &mut Actions<K, E>,
    ) {
        if let Some(newest) = newest {
            self.advance(newest);
        }
        self.activate(&channels);
        let position = newest.and(self.position).filter(|_| self.is_confirmed);
        self.active_without_position |= position.is_none();
        actions.push(Action::Active { channels, position });
    }

    fn activate(&mut self, channels: &[K]) {
        for channel in channels {
            if let Some(record) = self.records.get_mut(channel)
                && !record.active
            {
                *record = Record::ACTIVE;
            }
        }
    }

    // What arrives.

    fn kept(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        let id = event.link().id;
        if self.position.is_none() {
            if let Some(record) = self.records.get_mut(&channel) {
                record.had_live = true;
            }
            actions.push(Action::AsLive { channel, event });
        } else if self.is_far_ahead(id) {
            actions.push(look(&channel, id));
            self.waiting = Waiting::Look {
                channel,
                event,
                doubt: Doubt::FarAhead,
            };
        } else {
            self.in_order(channel, event, actions);
        }
    }

    fn is_far_ahead(&self, id: EventId) -> bool {
        let ahead = MAX_AHEAD.saturating_add(self.now.saturating_sub(self.moved_at));
        self.position.is_some_and(|newest| id.since(newest) > ahead)
    }

    /// Delivers a kept event of a wanted channel, unless something before it is missing.
    fn in_order(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        let link = event.link();
        let Some(record) = self.records.get_mut(&channel) else {
            return;
        };
        if !record.active || link.id <= self.read_through {
            // It was read already, or came before the channel was active.
            return self.advance(link.id);
        }
        let seen = record.seen;
        match arrival(seen, link, self.retention) {
            Arrival::Known => {}
            Arrival::Next => {
                record.seen = Some(link.id);
                self.deliver(channel, event, false, actions);
            }
            Arrival::Hole => {
                record.has_hole = true;
                let cursor = Cursor::new(seen.unwrap_or_default(), EventId::ZERO);
                let recovery = Recovery::new(
                    [(channel.clone(), cursor)],
                    link.prev,
                    self.settings.lag_bound,
                    self.settings.max_recovery_bytes,
                );
                self.waiting = Waiting::Hole {
                    channel,
                    event,
                    recovery: Box::new(recovery),
                };
                self.go_on(actions);
            }
            Arrival::OtherHistory => {
                record.has_hole = true;
                actions.push(look(&channel, seen.unwrap_or_default()));
                self.waiting = Waiting::Look {
                    channel,
                    event,
                    doubt: Doubt::OtherHistory,
                };
            }
        }
    }

    fn page(&mut self, channel: &K, page: Option<HistoryPage<E>>, actions: &mut Actions<K, E>) {
        if let Some(page) = &page {
            self.retention = page.retention;
        }
        match std::mem::take(&mut self.waiting) {
            Waiting::Start(mut start) => {
                start.recovery.take(channel, page);
                self.waiting = Waiting::Start(start);
                self.go_on(actions);
            }
            Waiting::Hole {
                channel: of,
                event,
                mut recovery,
            } => {
                recovery.take(channel, page);
                self.waiting = Waiting::Hole {
                    channel: of,
                    event,
                    recovery,
                };
                self.go_on(actions);
            }
            Waiting::Look {
                channel: of,
                event,
                doubt,
            } if of == *channel => self.looked(of, event, doubt, page, actions),
            waiting @ (Waiting::Look { .. } | Waiting::Nothing) => self.waiting = waiting,
        }
    }

    /// Goes on with an event that was looked up.
    fn looked(
        &mut self,
        channel: K,
        event: E,
        doubt: Doubt,
        page: Option<HistoryPage<E>>,
        actions: &mut Actions<K, E>,
    ) {
        let id = event.link().id;
        match doubt {
            Doubt::FarAhead => {
                let issued = page.and_then(|page| page.issued);
                if issued.is_some_and(|issued| id <= issued.last) {
                    self.in_order(channel, event, actions);
                } else {
                    actions.push(Action::NeverIssued { channel, id });
                }
            }
            Doubt::OtherHistory => {
                let seen = self.records.get(&channel).and_then(|record| record.seen);
                // The page may say that histories last shorter than was known.
                if arrival(seen, event.link(), self.retention) != Arrival::Next {
                    let oldest = page.and_then(|page| page.oldest).map(|oldest| oldest.id);
                    actions.push(Action::Gap {
                        channel: channel.clone(),
                        notice: GapNotice::kept(GapReason::Rewound, seen, oldest, id.pred()),
                        late: false,
                    });
                }
                self.deliver_after_read(channel, event, actions);
            }
        }
    }

    /// Delivers an event after everything before it was read.
    fn deliver_after_read(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        if let Some(record) = self.records.get_mut(&channel) {
            record.has_hole = false;
            record.seen = Some(event.link().id);
        }
        self.deliver(channel, event, false, actions);
    }

    fn deliver(&mut self, channel: K, event: E, recovered: bool, actions: &mut Actions<K, E>) {
        let id = event.link().id;
        let late = self.position.is_some_and(|position| id <= position);
        actions.push(Action::Event {
            channel,
            event,
            late,
            recovered,
        });
        self.advance(id);
    }

    fn advance(&mut self, id: EventId) {
        if self.position.is_some_and(|position| position < id) {
            self.reach(id);
        }
    }

    fn reach(&mut self, id: EventId) {
        self.position = Some(id);
        self.positions.note(id);
        self.moved_at = self.now;
    }

    fn probe(&mut self, id: EventId, epoch: EventId, actions: &mut Actions<K, E>) {
        if id < self.probed {
            let from = self.probed;
            actions.push(Action::WentBack { from, to: id });
            return;
        }
        self.probed = id;
        if self.epoch.is_some_and(|known| known != epoch) {
            actions.push(Action::NewEpoch(epoch));
        }
        self.epoch = Some(epoch);
        self.is_confirmed = true;
        let position = self.position.map_or(id, |position| position.max(id));
        self.reach(position);
        if std::mem::take(&mut self.active_without_position) {
            // A channel that Redis refuses was active on an earlier connection, and is not now.
            let active = self.records.iter();
            let channels = active
                .filter(|(_, record)| record.active && !record.has_hole)
                .map(|(channel, _)| channel.clone())
                .collect();
            actions.push(Action::Active {
                channels,
                position: Some(position),
            });
        }
        actions.push(Action::Position(position));
    }
}

/// Sends the reads of a recovery, and says whether a window is complete.
fn read_on<K: Clone + Hash + Ord, E: Entry>(
    recovery: &mut Recovery<K, E>,
    actions: &mut Actions<K, E>,
) -> bool {
    recovery.advance(|wanted| {
        let Wanted {
            channel,
            cursor,
            from,
            size,
        } = wanted;
        actions.push(Action::Read {
            channel,
            cursor,
            from,
            size,
        });
    })
}

/// What the history says about `id`: the newest id issued, and its oldest event.
fn look<K: Clone, E>(channel: &K, id: EventId) -> Action<K, E> {
    Action::Read {
        channel: channel.clone(),
        cursor: Cursor::new(id, EventId::ZERO),
        from: id,
        size: PageSize::First,
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
