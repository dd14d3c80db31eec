//! What a channel's history says, and what of it proves that a client misses nothing.
//!
//! The rules are those of `docs/protocol.md`, section "What is proven".

use std::sync::Arc;
use std::time::Duration;

use super::rules::Rule;
use crate::protocol::{Audience, Cursor, EndReason, Event, EventId, GapReason};

/// An event with its place in the history of its channel.
#[derive(Clone, Debug)]
pub struct KeptEvent {
    /// Its id.
    pub id: EventId,
    /// The id before it in its channel; [`EventId::ZERO`] for the first.
    pub prev: EventId,
    /// When it was published, in Unix milliseconds by the clock of Redis.
    pub published_ms: u64,
    /// What clients get. `None` when it may not be delivered: it still stands in the chain.
    pub event: Option<Arc<Event>>,
    /// How the channel ends with it, if it does.
    pub end: Option<EndReason>,
}

/// How long histories last. A history without new events expires after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Retention {
    /// After the newest event.
    pub ttl: Duration,
    /// What it was before it was raised…
    pub old_ttl: Duration,
    /// …at this id.
    pub ttl_since: EventId,
}

impl Retention {
    /// A time that never was another.
    pub fn constant(ttl: Duration) -> Self {
        Self {
            ttl,
            old_ttl: ttl,
            ttl_since: EventId::ZERO,
        }
    }

    /// How long an event published after `position` is certain to be retained, its history's
    /// length aside.
    pub fn after(&self, position: EventId) -> Duration {
        if position >= self.ttl_since || Rule::OldTtl.is_off() {
            self.ttl
        } else {
            self.ttl.min(self.old_ttl)
        }
    }
}

/// The ids that a primary has issued, for events and probes of all channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Issued {
    /// The first, as far back as the primary knows.
    pub epoch: EventId,
    /// The newest.
    pub last: EventId,
}

/// An event's id and the one before it in its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The event.
    pub id: EventId,
    /// The event before.
    pub prev: EventId,
}

/// The end of a channel: its last event, after which nothing is published while it is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelEnd {
    /// The last event.
    pub id: EventId,
    /// How it ended.
    pub reason: EndReason,
}

/// One read of a channel's history, all of it taken at the same moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HistoryPage<E> {
    /// `None`: the primary has never issued an id, or has lost all memory of it.
    pub issued: Option<Issued>,
    /// The clock by which histories expire, in Unix milliseconds. Ids may be ahead of it; they
    /// are behind it while none is issued.
    pub now_ms: u64,
    /// How long events last.
    pub retention: Retention,
    /// Redis may remove histories to save memory.
    pub evictable: bool,
    /// The oldest event retained.
    pub oldest: Option<Link>,
    /// Every event retained from this id on stands in `events`…
    pub from: EventId,
    /// …oldest first…
    pub events: Vec<E>,
    /// …up to the newest, or only so many of them.
    pub complete: bool,
    /// The channel has ended. Known of a page that is complete.
    pub ended: Option<ChannelEnd>,
}

/// What has a place in a history.
pub trait Linked {
    /// Its own id and the one before it.
    fn link(&self) -> Link;

    /// How the channel ends with it, if it does.
    fn end(&self) -> Option<EndReason> {
        None
    }

    /// The end of its channel, if it is the last.
    fn channel_end(&self) -> Option<ChannelEnd> {
        let id = self.link().id;
        self.end().map(|reason| ChannelEnd { id, reason })
    }
}

impl Linked for Link {
    fn link(&self) -> Link {
        *self
    }
}

impl Linked for KeptEvent {
    fn link(&self) -> Link {
        Link {
            id: self.id,
            prev: self.prev,
        }
    }

    fn end(&self) -> Option<EndReason> {
        self.end
    }
}

impl KeptEvent {
    /// The sessions it is for; `None`: everybody.
    pub fn audience(&self) -> Option<&Arc<Audience>> {
        self.event.as_ref().and_then(|event| event.audience())
    }
}

impl<E> HistoryPage<E> {
    /// The same page with other events in the same places.
    pub fn map<F>(&self, event: impl FnMut(&E) -> F) -> HistoryPage<F> {
        HistoryPage {
            issued: self.issued,
            now_ms: self.now_ms,
            retention: self.retention,
            evictable: self.evictable,
            oldest: self.oldest,
            from: self.from,
            events: self.events.iter().map(event).collect(),
            complete: self.complete,
            ended: self.ended,
        }
    }

    /// Whether every event after `position` is certain to be retained, the history's length
    /// aside. An age is a difference of ids, unless ids have stood still: histories expire
    /// nevertheless.
    fn retains(&self, position: EventId) -> bool {
        let now_ms = if Rule::ClockOfRedis.is_off() {
            0
        } else {
            self.now_ms
        };
        let newest = self
            .issued
            .map(|issued| issued.last.max(EventId::new(now_ms, 0)));
        let age = newest.map(|newest| newest.since(position));
        let is_young = age.is_some_and(|age| age < self.retention.after(position));
        let may_be_evicted = self.evictable && !Rule::NotEvicted.is_off();
        !may_be_evicted && (is_young || Rule::YoungerThanTtl.is_off())
    }
}

impl<E: Linked> HistoryPage<E> {
    /// Up to which id the page tells everything, from [`from`](Self::from) on.
    pub fn end(&self) -> EventId {
        match (self.complete, self.events.last()) {
            (false, Some(last)) => last.link().id,
            _ => self.issued.map_or(EventId::ZERO, |issued| issued.last),
        }
    }

    /// The channel's end, where it came at `position` or before, or `None` where it had not ended by
    /// then; outside `None` where the page does not tell.
    #[expect(clippy::option_option, reason = "whether it is known, and what it is")]
    pub fn ended_by(&self, position: EventId) -> Option<Option<ChannelEnd>> {
        let is_told = if self.complete {
            self.end() >= position
        } else {
            // What follows an event says that it was not the end.
            self.end() > position
        };
        is_told.then(|| self.ended_through(position))
    }

    /// The channel's end, where it came at `position` or before.
    pub(super) fn ended_through(&self, position: EventId) -> Option<ChannelEnd> {
        let has_come = |end: &ChannelEnd| end.id <= position || Rule::EndHasArrived.is_off();
        self.ended.filter(has_come)
    }

    /// Whether `id` is known to be an event of the channel.
    pub fn holds(&self, id: EventId) -> bool {
        self.oldest.is_some_and(|oldest| oldest.prev == id)
            || self
                .events
                .binary_search_by(|event| event.link().id.cmp(&id))
                .is_ok()
    }

    /// Why the page does not prove that it holds everything after `position`, from the first of
    /// its events on.
    pub fn incomplete_after(&self, position: EventId) -> Option<GapReason> {
        if self.issued.is_some_and(|issued| issued.last <= position) {
            // Nothing was published since.
            return None;
        }
        let first = match (self.oldest, self.first_after(position)) {
            // The newest event of a history is never trimmed: nothing came after the position.
            (Some(_), None) => return None,
            (_, first) => first,
        };
        match first {
            // No id lies between.
            Some(first) if first.id == position.next() => None,
            Some(first) if first.prev > position && !Rule::ChannelGoesOn.is_off() => {
                Some(GapReason::Expired)
            }
            Some(first) if first.prev > EventId::ZERO => None,
            // The history began anew, or is not there: an earlier one may have held something.
            _ => (!self.retains(position)).then_some(GapReason::Expired),
        }
    }

    /// Why the page does not prove that the history begins with its channel's first event. Without a
    /// history there is nothing to miss.
    pub(super) fn incomplete_from_start(&self) -> Option<GapReason> {
        let is_first = |oldest: Link| oldest.prev == EventId::ZERO || Rule::StartIsFirst.is_off();
        let is_cut = self.oldest.is_some_and(|oldest| !is_first(oldest));
        is_cut.then_some(GapReason::Expired)
    }

    fn first_after(&self, position: EventId) -> Option<Link> {
        let at = self
            .events
            .partition_point(|event| event.link().id <= position);
        self.events.get(at).map(Linked::link)
    }
}

/// A stretch of a channel that cannot be proven complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapNotice {
    /// Why.
    pub reason: GapReason,
    /// The newest id that is certain.
    pub after: Option<EventId>,
    /// The oldest kept event that is still retained, if it is known.
    pub oldest: Option<EventId>,
    /// The id of the `$gap`: just below the next kept event, of whichever channel. `None` where
    /// only live events are missing.
    pub id: Option<EventId>,
    /// Every kept event of the channel after this id follows. `None` where none is missing.
    pub complete_after: Option<EventId>,
}

impl GapNotice {
    /// Kept events may be missing; every event after `id` follows.
    pub fn kept(
        reason: GapReason,
        after: Option<EventId>,
        oldest: Option<EventId>,
        id: EventId,
    ) -> Self {
        Self {
            reason,
            after,
            oldest,
            id: Some(id),
            complete_after: Some(id),
        }
    }

    /// Live events were lost, and kept ones too where every kept event only follows from
    /// `complete_after` on.
    pub fn live(after: Option<EventId>, complete_after: Option<EventId>) -> Self {
        Self {
            reason: GapReason::Lost,
            after,
            oldest: None,
            id: None,
            complete_after,
        }
    }
}

/// What a read says of one channel of a stream.
#[derive(Debug)]
pub(crate) struct Evidence<'a, E> {
    /// Read from [`Cursor::read_from`] on, or from the floor where that is later.
    pub(crate) page: &'a HistoryPage<E>,
    /// What is before it the client never asked for.
    pub(crate) floor: EventId,
}

/// Judges a cursor: for each channel why it cannot be proven complete, or `None` where it is.
///
/// A channel without evidence is one of which this replica has seen every event after the
/// cursor's position. `event_was_seen`: it has seen the cursor's event in one of the channels.
pub(crate) fn judge<E: Linked>(
    cursor: Cursor,
    event_was_seen: bool,
    channels: &[Option<Evidence<'_, E>>],
    lag_bound: Duration,
) -> Vec<Option<GapReason>> {
    let pages = || channels.iter().flatten().map(|evidence| evidence.page);
    let everywhere = |reason| vec![Some(reason); channels.len()];
    if pages().next().is_some() {
        // The newest read knows best which ids were issued.
        let newest = pages()
            .filter_map(|page| page.issued)
            .map(|issued| issued.last);
        match newest.max() {
            None => return everywhere(GapReason::Rewound),
            Some(last) if cursor.position() > last && !Rule::CursorWasIssued.is_off() => {
                return everywhere(GapReason::UnknownId);
            }
            Some(_) => {}
        }
        let is_older =
            |issued: Option<Issued>| issued.is_none_or(|issued| cursor.position() < issued.epoch);
        if pages().any(|page| is_older(page.issued)) && !Rule::RedisRemembers.is_off() {
            return everywhere(GapReason::Rewound);
        }
    }
    let event_is_certain = event_was_seen
        || Rule::EventCounts.is_off()
        || cursor.is_confirmed(confirmed_after(lag_bound))
        || pages().any(|page| page.holds(cursor.event()));
    channels
        .iter()
        .map(|evidence| match evidence {
            Some(Evidence { page, floor }) if event_is_certain => {
                page.incomplete_after(cursor.position().max(floor.pred()))
            }
            Some(Evidence { page, .. }) => Some(lost_event(page, cursor)),
            None if event_is_certain => None,
            None => Some(GapReason::Rewound),
        })
        .collect()
}

/// Whether the histories that were read know of no id as late as `position`.
pub(super) fn is_past_all<E>(pages: &[Option<&HistoryPage<E>>], position: EventId) -> bool {
    let mut pages = pages.iter().flatten().peekable();
    pages.peek().is_some()
        && pages.all(|page| page.issued.is_none_or(|issued| issued.last < position))
}

/// By how much a position must be later than the event that it confirms.
fn confirmed_after(lag_bound: Duration) -> Duration {
    if Rule::LagBound.is_off() {
        Duration::ZERO
    } else {
        lag_bound
    }
}

/// Why the event of a cursor is in none of the histories.
fn lost_event<E: Linked>(page: &HistoryPage<E>, cursor: Cursor) -> GapReason {
    match page.oldest {
        Some(oldest) if oldest.id > cursor.event() => GapReason::Expired,
        Some(_) => GapReason::Rewound,
        // The event itself is retained like one after the id before it.
        None if page.retains(cursor.event().pred()) => GapReason::Rewound,
        None => GapReason::Expired,
    }
}
