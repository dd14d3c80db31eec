//! What several channels have missed: what to read of it, and in which order to tell it.
//!
//! Pages of all channels are collected and told in windows. A window ends at an id up to which
//! every channel is read, so what is told is in order over all channels, and a gap that is found
//! later concerns only later ids. Usually there is one window. More are needed when the collected
//! events exceed their bound: then the newest of them are dropped, and read again for a later
//! window.

use std::collections::VecDeque;
use std::hash::Hash;
use std::time::Duration;

use crate::continuity::judge::{Evidence, HistoryPage, judge};
use crate::continuity::rules::Rule;
use crate::continuity::table::Table;
use crate::continuity::tail::Entry;
use crate::protocol::{Cursor, EventId, GapReason};

/// How much a read may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PageSize {
    /// Little: most channels have missed little or nothing. Perhaps no event.
    First,
    /// More: the channel has missed much. Perhaps no event.
    Next,
    /// At least one event, however large it is.
    OneEvent,
}

/// Where the recovery of a channel goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ReadFrom {
    /// Everything up to its position was seen, or read.
    cursor: Cursor,
    /// The first id of the page.
    from: EventId,
    /// The same primary has vouched for the cursor's event already.
    event_was_read: bool,
}

impl ReadFrom {
    /// The first page of a channel.
    fn start(cursor: Cursor, lag_bound: Duration) -> Self {
        Self {
            cursor,
            from: cursor.read_from(lag_bound),
            event_was_read: false,
        }
    }

    /// The page after one that ended with `last`.
    fn after(self, last: EventId) -> Self {
        let cursor = if last > self.cursor.position() {
            Cursor::new(last, EventId::ZERO)
        } else {
            self.cursor
        };
        Self {
            cursor,
            from: last.next(),
            event_was_read: true,
        }
    }

    /// A page that begins with `event`, which was read before and not told.
    fn again(event: EventId) -> Self {
        Self {
            cursor: Cursor::fresh(event.pred()),
            from: event,
            event_was_read: true,
        }
    }
}

/// What one page adds.
struct Found<E> {
    gap: Option<GapReason>,
    /// What is retained, oldest first; it follows the gap.
    events: Vec<E>,
    goes_on: Option<ReadFrom>,
}

/// Judges a page of one channel. What is later than `until` arrives by itself: taking it from here
/// would let it overtake what other channels have before it.
fn recover<E: Entry>(
    at: ReadFrom,
    page: &HistoryPage<E>,
    until: EventId,
    lag_bound: Duration,
) -> Found<E> {
    let evidence = Evidence {
        page,
        floor: EventId::ZERO,
    };
    let cursor = at.cursor;
    let reasons = judge(cursor, at.event_was_read, &[Some(evidence)], lag_bound);
    let mut gap = reasons.into_iter().flatten().next().map(live_reason);
    let until = if Rule::RecoverUpToBound.is_off() {
        EventId::MAX
    } else {
        until
    };
    let is_missed = |event: &&E| event.link().id > cursor.position() && event.link().id <= until;
    let events: Vec<E> = page.events.iter().filter(is_missed).cloned().collect();
    let goes_on = match page.events.last().map(|last| last.link().id) {
        _ if page.complete => None,
        Some(last) if last >= until => None,
        Some(last) => Some(at.after(last)),
        // None of its events can be read, so everything behind them stays unread.
        None => {
            gap.get_or_insert(GapReason::Lost);
            None
        }
    };
    Found {
        gap,
        events,
        goes_on,
    }
}

/// To clients that were connected all the time only one thing matters.
fn live_reason(reason: GapReason) -> GapReason {
    match reason {
        GapReason::Rewound | GapReason::UnknownId => GapReason::Rewound,
        _ => GapReason::Lost,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item<E> {
    Event(E),
    Gap(RecoveredGap),
}

/// A gap, before it is known with which id it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RecoveredGap {
    pub(super) reason: GapReason,
    pub(super) after: EventId,
    pub(super) oldest: Option<EventId>,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Missing<E> {
    /// What is to be read next. `None`: everything is read, or given up.
    at: Option<ReadFrom>,
    size: PageSize,
    /// The read under way.
    reading: Option<ReadFrom>,
    /// What was read and not told yet.
    items: VecDeque<Item<E>>,
}

impl<E: Entry> Missing<E> {
    /// Up to which id everything is read.
    fn read_to(&self) -> EventId {
        self.at
            .map_or(EventId::MAX, |at| at.cursor.position().max(at.from.pred()))
    }

    /// Whether something up to `horizon` is still to be read.
    fn is_unread(&self, horizon: EventId) -> bool {
        self.at.is_some() && self.read_to() < horizon
    }

    /// Up to which id everything can be told: a gap waits until the events before it are told.
    fn told_to(&self) -> EventId {
        let mut before = None;
        for item in &self.items {
            match (item, before) {
                (Item::Event(event), _) => before = Some(event.link().id),
                (Item::Gap(_), Some(before)) => return before,
                (Item::Gap(_), None) => {}
            }
        }
        self.read_to()
    }

    fn front_event(&self) -> Option<EventId> {
        match self.items.front()? {
            Item::Event(event) => Some(event.link().id),
            Item::Gap(_) => None,
        }
    }

    fn events(&self) -> impl Iterator<Item = &E> {
        self.items.iter().filter_map(|item| match item {
            Item::Event(event) => Some(event),
            Item::Gap(_) => None,
        })
    }

    /// Drops what is later than `horizon`, to be read again. Returns the bytes.
    fn cut(&mut self, horizon: EventId) -> usize {
        let is_later =
            |item: &Item<E>| matches!(item, Item::Event(event) if event.link().id > horizon);
        let Some(kept) = self.items.iter().position(is_later) else {
            return 0;
        };
        let mut bytes = 0;
        let mut first = None;
        for item in self.items.drain(kept..) {
            if let Item::Event(event) = item {
                bytes += event.cost_bytes();
                first.get_or_insert(event.link().id);
            }
        }
        if let Some(first) = first {
            self.at = Some(ReadFrom::again(first));
        }
        bytes
    }
}

/// What is to be told next: all gaps before any event, because a client that is cut off after an
/// event has a cursor that proves complete what it was not told.
pub(super) struct Window<K, E> {
    /// Each with the id after which every event of its channel follows.
    pub(super) gaps: Vec<(K, RecoveredGap, EventId)>,
    /// In order of their ids.
    pub(super) events: Vec<(K, E)>,
    /// Up to here everything is told.
    pub(super) end: EventId,
}

/// A read that is to be sent.
#[derive(Debug)]
pub(super) struct Wanted<K> {
    pub(super) channel: K,
    /// What was seen or read before.
    pub(super) cursor: Cursor,
    pub(super) from: EventId,
    pub(super) size: PageSize,
}

/// The recovery of several channels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery<K: Hash + Ord, E> {
    /// What is later arrives by itself.
    until: EventId,
    lag_bound: Duration,
    max_bytes: usize,
    bytes: usize,
    /// What is later waits for another window.
    horizon: EventId,
    channels: Table<K, Missing<E>>,
    /// How many of them are [unread](Missing::is_unread), as of the last look at each.
    unread: usize,
    to_look_at: ToLookAt<K>,
}

/// The channels whose next read may have to be sent. There can be hundreds of thousands of channels, so a
/// page of one must not cost a look at all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ToLookAt<K> {
    All,
    These(Vec<K>),
}

impl<K: Clone + Hash + Ord, E: Entry> Recovery<K, E> {
    pub(super) fn new(
        missed: impl IntoIterator<Item = (K, Cursor)>,
        until: EventId,
        lag_bound: Duration,
        max_bytes: usize,
    ) -> Self {
        let mut channels = Table::default();
        for (channel, cursor) in missed {
            channels.entry(channel).or_insert(Missing {
                at: Some(ReadFrom::start(cursor, lag_bound)),
                size: PageSize::First,
                reading: None,
                items: VecDeque::new(),
            });
        }
        Self {
            until,
            lag_bound,
            max_bytes,
            bytes: 0,
            horizon: EventId::MAX,
            channels,
            unread: 0,
            to_look_at: ToLookAt::All,
        }
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &K> {
        self.channels.iter().map(|(channel, _)| channel)
    }

    /// Calls `read` for everything that is to be read now, and says whether nothing is missing for
    /// the next window.
    pub(super) fn advance(&mut self, mut read: impl FnMut(Wanted<K>)) -> bool {
        let horizon = self.horizon;
        let mut look = |channel: &K, missing: &mut Missing<E>| {
            let Some(at) = missing.at.filter(|_| missing.is_unread(horizon)) else {
                return false;
            };
            if missing.reading.is_none() {
                missing.reading = Some(at);
                read(Wanted {
                    channel: channel.clone(),
                    cursor: at.cursor,
                    from: at.from,
                    size: missing.size,
                });
            }
            true
        };
        let none = ToLookAt::These(Vec::new());
        match std::mem::replace(&mut self.to_look_at, none) {
            ToLookAt::All => {
                let channels = self.channels.iter_mut();
                let looks =
                    channels.filter_map(|(channel, missing)| look(channel, missing).then_some(()));
                self.unread = looks.count();
            }
            ToLookAt::These(channels) => {
                for channel in channels {
                    if let Some(missing) = self.channels.get_mut(&channel) {
                        look(&channel, missing);
                    }
                }
            }
        }
        self.unread == 0
    }

    /// Takes a page of a channel; `None`: Redis does not give it.
    pub(super) fn take(&mut self, channel: &K, page: Option<HistoryPage<E>>) {
        let was_unread = self.is_unread(channel);
        self.take_page(channel, page);
        let is_unread = self.is_unread(channel);
        // Otherwise the horizon has changed, and all are counted again.
        if let ToLookAt::These(channels) = &mut self.to_look_at {
            channels.push(channel.clone());
            self.unread += usize::from(is_unread);
            self.unread -= usize::from(was_unread);
        }
    }

    fn is_unread(&self, channel: &K) -> bool {
        let missing = self.channels.get(channel);
        missing.is_some_and(|missing| missing.is_unread(self.horizon))
    }

    fn take_page(&mut self, channel: &K, page: Option<HistoryPage<E>>) {
        let Some(missing) = self.channels.get_mut(channel) else {
            return;
        };
        // What was read meanwhile may have been dropped: then it must be read again first.
        let Some(at) = missing.reading.take().filter(|at| missing.at == Some(*at)) else {
            return;
        };
        let Some(page) = page else {
            missing.items.push_back(Item::Gap(RecoveredGap {
                reason: GapReason::Lost,
                after: at.cursor.position(),
                oldest: None,
            }));
            missing.at = None;
            return;
        };
        if !page.complete && page.events.is_empty() && missing.size != PageSize::OneEvent {
            missing.size = PageSize::OneEvent;
            return;
        }
        missing.size = PageSize::Next;
        let found = recover(at, &page, self.until, self.lag_bound);
        if let Some(reason) = found.gap {
            missing.items.push_back(Item::Gap(RecoveredGap {
                reason,
                after: at.cursor.position(),
                oldest: page.oldest.map(|oldest| oldest.id),
            }));
        }
        for event in found.events {
            self.bytes += event.cost_bytes();
            missing.items.push_back(Item::Event(event));
        }
        missing.at = found.goes_on;
        self.bytes -= missing.cut(self.horizon);
        if self.bytes > self.max_bytes {
            self.lower_horizon();
        }
    }

    /// Keeps the older half of what is collected, but at least one event.
    fn lower_horizon(&mut self) {
        let events = self
            .channels
            .iter()
            .flat_map(|(_, missing)| missing.events());
        let mut costs: Vec<_> = events
            .map(|event| (event.link().id, event.cost_bytes()))
            .collect();
        costs.sort_unstable();
        let mut bytes = 0;
        for (number, (id, cost)) in costs.into_iter().enumerate() {
            bytes += cost;
            if number > 0 && bytes > self.max_bytes / 2 {
                break;
            }
            self.horizon = id;
        }
        for (_, missing) in self.channels.iter_mut() {
            self.bytes -= missing.cut(self.horizon);
        }
        self.to_look_at = ToLookAt::All;
    }

    /// What can be told once [`Self::advance`] says that nothing is missing for it.
    pub(super) fn window(&mut self) -> Window<K, E> {
        let told_to = self.channels.iter().map(|(_, missing)| missing.told_to());
        let end = told_to.min().unwrap_or(EventId::MAX).min(self.horizon);
        let mut window = Window {
            gaps: Vec::new(),
            events: Vec::new(),
            end: end.min(self.until),
        };
        for (channel, missing) in self.channels.iter_mut() {
            while let Some(Item::Gap(gap)) = missing.items.front() {
                let gap = *gap;
                missing.items.pop_front();
                let complete_after = match missing.front_event() {
                    Some(first) => first.pred(),
                    None => missing.read_to().min(self.until),
                };
                window.gaps.push((channel.clone(), gap, complete_after));
            }
            while missing.front_event().is_some_and(|id| id <= end) {
                if let Some(Item::Event(event)) = missing.items.pop_front() {
                    self.bytes -= event.cost_bytes();
                    window.events.push((channel.clone(), event));
                }
            }
        }
        window.events.sort_by_key(|(_, event)| event.link().id);
        self.horizon = EventId::MAX;
        self.to_look_at = ToLookAt::All;
        window
    }

    /// Whether everything is told.
    pub(super) fn is_done(&self) -> bool {
        let mut channels = self.channels.iter();
        channels.all(|(_, missing)| missing.at.is_none() && missing.items.is_empty())
    }
}

#[cfg(test)]
mod tests;
