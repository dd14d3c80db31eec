//! How a client that comes back gets what it missed, and joins the live events without a seam.
//!
//! Pure: a [`Replay`] looks at what is known of each channel, and says what must be read or what
//! is to be sent. `hub::resume` reads, waits and writes.
//!
//! Each step moves the client's cursor: everything up to its position has been sent. The step
//! that finds all tails reaching back to the position sends their rest and hands the client over
//! to the live events. So nothing but the tails, which are bounded, waits for a replay, however
//! slow its client is.

use std::time::Duration;

use super::ends::{ends_of, is_over};
use super::judge::{ChannelEnd, Evidence, HistoryPage, Linked, is_past_all, judge};
use super::rules::Rule;
use super::tail::{Entry, Tail, cut};
use crate::protocol::{Cursor, EventId, GapReason};

/// A client on its way to the live events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Replay {
    /// Where it is among all events, those it may not have included.
    cursor: Cursor,
    /// Where it is among those it may have: to a client the others are ids of other channels.
    told: Cursor,
    /// For each channel the first id that is asked for.
    floors: Vec<EventId>,
    /// The cursor is our own, of a client that has had nothing: of a history only what follows
    /// the floor is to be judged.
    trusted: bool,
    /// It wants each channel from its first event, and has had nothing yet.
    from_start: bool,
    /// It goes on when it is known which channels have ended.
    asks_for_ends: bool,
    /// So many channels, the first, have to have ended for the stream to end.
    counted: usize,
    lag_bound: Duration,
}

/// What is known of a channel.
#[derive(Debug)]
pub(crate) struct View<'a, E> {
    pub(crate) tail: &'a Tail<E>,
    /// A read of its history, asked for since the channel is active: a subscription that was lost
    /// meanwhile takes it along.
    pub(crate) page: Option<&'a HistoryPage<E>>,
    /// The page was read for this very step, so it is newer than the client's cursor.
    pub(crate) fresh: bool,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step<E> {
    /// The histories of these channels (by index) must be read, each from this id on.
    Read(Vec<(usize, EventId)>),
    /// This is to be sent.
    Send(Part<E>),
}

/// A stretch of a replay.
#[derive(Debug)]
pub(crate) struct Part<E> {
    /// Channels (by index) that cannot be proven complete; to be told before the events.
    pub(crate) gaps: Vec<Gap>,
    /// The events that the client may have, in the order of their ids.
    pub(crate) events: Vec<E>,
    /// Where the client is afterwards. It names no event that the client may not have.
    pub(crate) cursor: Cursor,
    /// Nothing is missing any more: the next event is a live one, after the cursor's position.
    pub(crate) live: bool,
    /// There is nothing, and it is not live: the replica is behind what was read. It is worth
    /// another step a little later.
    pub(crate) is_behind: bool,
    /// History was read for it.
    pub(crate) from_history: bool,
    /// The id that gaps are told with is an event's: as a cursor it would prove something. A
    /// client cut off between two gaps must not have it yet.
    pub(crate) gap_id_proves: bool,
    /// Channels that have ended, with all their events told; known of a part that is live.
    pub(crate) ends: Vec<End>,
    /// Later ends come by themselves.
    pub(crate) ends_through: EventId,
    /// The end of the last of them, where all of the stream's channels have ended.
    pub(crate) last_end: Option<EventId>,
    /// The client had all of this before: there is nothing to tell it, and never will be.
    pub(crate) is_over: bool,
}

/// A channel that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The channel's index.
    pub(crate) channel: usize,
    pub(crate) end: ChannelEnd,
}

/// A channel that cannot be proven complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The channel's index.
    pub(crate) channel: usize,
    pub(crate) reason: GapReason,
    /// What the client had, if that is known.
    pub(crate) after: Option<EventId>,
    /// What is still there.
    pub(crate) oldest: Option<EventId>,
}

impl<E> Part<E> {
    /// Nothing but the step to the live events after `cursor`.
    pub(crate) fn live(cursor: Cursor) -> Self {
        Self {
            gaps: Vec::new(),
            events: Vec::new(),
            cursor,
            live: true,
            is_behind: false,
            from_history: false,
            gap_id_proves: false,
            ends: Vec::new(),
            ends_through: cursor.position(),
            last_end: None,
            is_over: false,
        }
    }

    /// The id that gaps are told with: just below the first event that follows.
    pub(crate) fn gap_id(&self) -> EventId
    where
        E: Linked,
    {
        self.events
            .first()
            .map_or(self.cursor.position(), |first| first.link().id.pred())
    }
}

impl Replay {
    /// A client that sent `cursor`, on so many channels.
    pub(crate) fn resume(cursor: Cursor, channels: usize, lag_bound: Duration) -> Self {
        Self {
            cursor,
            told: cursor,
            floors: vec![EventId::ZERO; channels],
            trusted: false,
            from_start: false,
            asks_for_ends: true,
            counted: channels,
            lag_bound,
        }
    }

    /// The stream ends when its first so many channels have ended.
    pub(crate) fn counting(mut self, channels: usize) -> Self {
        self.counted = channels;
        self
    }

    /// A new client that wants each channel from its first event.
    pub(crate) fn from_start(channels: usize, lag_bound: Duration) -> Self {
        Self {
            trusted: true,
            from_start: true,
            ..Self::resume(Cursor::default(), channels, lag_bound)
        }
    }

    /// A new client that wants what comes after `position`. A channel that ended before is one on
    /// which nothing comes.
    pub(crate) fn fresh(position: EventId, channels: usize, lag_bound: Duration) -> Self {
        Self {
            asks_for_ends: false,
            ..Self::resume(Cursor::fresh(position), channels, lag_bound)
        }
    }

    /// A new client that wants each channel from this id on.
    fn from_floors(floors: Vec<EventId>, lag_bound: Duration) -> Self {
        let first = floors.iter().min().copied().unwrap_or_default();
        let cursor = Cursor::fresh(first.pred());
        Self {
            cursor,
            told: cursor,
            counted: floors.len(),
            floors,
            trusted: true,
            from_start: false,
            asks_for_ends: true,
            lag_bound,
        }
    }

    /// A new client that wants what these pages, the newest events of each channel, hold of events
    /// that it `may_have`: its cursor must name no other.
    pub(crate) fn newest<'a, E: Linked + 'a>(
        pages: impl Iterator<Item = &'a HistoryPage<E>>,
        may_have: impl Fn(&E) -> bool,
        lag_bound: Duration,
    ) -> Self {
        let floor = |page: &HistoryPage<E>| {
            let first = page.events.iter().find(|event| may_have(event));
            first.map_or_else(|| page.end().next(), |first| first.link().id)
        };
        Self::from_floors(pages.map(floor).collect(), lag_bound)
    }

    /// Up to where everything is sent.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next step. `views` are the stream's channels, all of them active; `seen` is the
    /// newest id up to which this replica has seen everything; at most about `most_bytes` are
    /// sent, and of these only what the client `may_have`.
    pub(crate) fn step<E: Entry>(
        &mut self,
        views: &[View<'_, E>],
        seen: Option<EventId>,
        most_bytes: usize,
        may_have: impl Fn(&E) -> bool,
    ) -> Step<E> {
        let pages = match self.sources(views, seen) {
            Ok(pages) => pages,
            Err(reads) => return Step::Read(reads),
        };
        let position = self.cursor.position();
        let mut gaps = self.gaps(views, &pages);
        let Stretch {
            begin,
            known_through,
            caught,
            meets_tails,
        } = Stretch::of(views, &pages, position, seen);
        let mut events = self.collect(views, &pages, begin, known_through, meets_tails);
        events.sort_unstable_by_key(|event| event.link().id);
        let is_whole = !cut(&mut events, most_bytes);
        let last = events.last().map(|event| event.link().id);
        let end = if is_whole {
            known_through.max(last.unwrap_or_default())
        } else {
            last.unwrap_or(begin)
        };
        let holds_nothing = events.is_empty();
        // The event of a cursor is lost to all channels, or proven to all.
        let keeps_event = gaps.len() < views.len();
        let had = last.or(keeps_event.then_some(self.cursor.event()));
        let live = is_whole && meets_tails && had <= Some(caught);
        let ends_through = end.min(caught);
        let asks = live && self.asks_for_ends;
        let (ends, unknown) = ends_of(views, ends_through, asks);
        if !unknown.is_empty() {
            let from_here = |channel| (channel, position);
            return Step::Read(unknown.into_iter().map(from_here).collect());
        }
        let counted = ends.iter().filter(|end| end.channel < self.counted);
        let last_end = counted.clone().map(|end| end.end.id).max();
        let last_end = last_end.filter(|_| counted.count() == self.counted);
        let is_over = is_over(position, last_end, !gaps.is_empty());
        events.retain(may_have);

        let last_told = events.last().map(|event| event.link().id);
        self.cursor = self.advance(self.cursor, last, end, keeps_event);
        self.told = self.advance(self.told, last_told, end, keeps_event);
        // A start of which nothing could be told yet is still one.
        self.from_start &= self.cursor.position() == position && gaps.is_empty();
        self.trusted = self.from_start;
        if !meets_tails
            && self.cursor.position() == position
            && self.skip_early_pages(&pages)
            && keeps_event
        {
            // They are found again.
            gaps.clear();
        }
        let mut part = Part {
            gaps,
            events,
            cursor: self.told,
            live,
            is_behind: holds_nothing && !live,
            from_history: pages.iter().any(Option::is_some),
            gap_id_proves: false,
            ends,
            ends_through,
            last_end,
            is_over,
        };
        let gap_id = part.gap_id();
        part.gap_id_proves = views.iter().any(|view| view.tail.holds(gap_id))
            || pages.iter().flatten().any(|page| page.holds(gap_id));
        Step::Send(part)
    }

    /// `cursor` once everything up to `end` was told, of which `last` is the newest event.
    fn advance(
        &self,
        cursor: Cursor,
        last: Option<EventId>,
        end: EventId,
        keeps_event: bool,
    ) -> Cursor {
        let had = Some(cursor.event()).filter(|_| keeps_event);
        let had = had.unwrap_or_default();
        match last {
            None if cursor.is_confirmed(self.lag_bound) => Cursor::new(had, end),
            // What was read just now may yet be taken back by a failover.
            _ => Cursor::unconfirmed(last.unwrap_or(had), end, self.lag_bound),
        }
    }

    /// A page that begins with the cursor's event may end before its position, where a channel has many
    /// events that the client did not ask for then. It has told of the event; what follows the position
    /// is read next, by itself.
    fn skip_early_pages<E: Linked>(&mut self, pages: &[Option<&HistoryPage<E>>]) -> bool {
        let position = self.cursor.position();
        let ends_early = |page: &&HistoryPage<E>| !page.complete && page.end() <= position;
        let is_early = pages.iter().flatten().any(ends_early);
        if is_early {
            self.floors.fill(position.next());
            self.trusted = true;
        }
        is_early
    }

    /// The events after `begin` that were asked for: up to `known_through` from where each channel is
    /// known, and the rest of the tails if they meet it.
    fn collect<E: Entry>(
        &self,
        views: &[View<'_, E>],
        pages: &[Option<&HistoryPage<E>>],
        begin: EventId,
        known_through: EventId,
        meets_tails: bool,
    ) -> Vec<E> {
        let mut events: Vec<E> = Vec::new();
        for ((view, page), floor) in views.iter().zip(pages).zip(&self.floors) {
            let is_asked_for = |event: &&E| event.link().id > begin && event.link().id >= *floor;
            let is_told = |event: &&E| is_asked_for(event) && event.link().id <= known_through;
            match page {
                Some(page) => events.extend(page.events.iter().filter(is_told).cloned()),
                None => events.extend(view.tail.after(begin).filter(is_told).cloned()),
            }
            if meets_tails {
                events.extend(view.tail.after(known_through).filter(is_asked_for).cloned());
            }
        }
        events
    }

    /// For each channel the page to take its events from, or `None`: its tail. Otherwise what must
    /// be read first.
    #[expect(clippy::type_complexity, reason = "either of two lists")]
    fn sources<'a, E: Entry>(
        &self,
        views: &[View<'a, E>],
        seen: Option<EventId>,
    ) -> Result<Vec<Option<&'a HistoryPage<E>>>, Vec<(usize, EventId)>> {
        let position = self.cursor.position();
        let event = self.cursor.event();
        let pages = || {
            views.iter().zip(&self.floors).map(|(view, floor)| {
                view.page
                    .filter(|page| self.may_use(page, view.fresh, *floor))
            })
        };
        let event_is_certain = self.trusted
            || self.cursor.is_confirmed(self.lag_bound)
            || views.iter().any(|view| view.tail.holds(event))
            || pages().flatten().any(|page| page.holds(event));
        let was_issued = self.trusted || seen.is_some_and(|seen| position <= seen);
        let is_any_read = pages().any(|page| page.is_some());
        let mut reads = Vec::new();
        let mut sources = Vec::new();
        for (channel, ((view, page), floor)) in
            views.iter().zip(pages()).zip(&self.floors).enumerate()
        {
            let is_seen = event_is_certain && view.tail.covers(position);
            match page {
                _ if is_seen && was_issued => sources.push(None),
                Some(page) => sources.push(Some(page)),
                None if is_seen && is_any_read => sources.push(None),
                None => reads.push((channel, self.cursor.read_from(self.lag_bound).max(*floor))),
            }
        }
        if reads.is_empty() {
            Ok(sources)
        } else {
            Err(reads)
        }
    }

    /// Whether a page tells what this step needs of its channel.
    fn may_use<E: Entry>(&self, page: &HistoryPage<E>, fresh: bool, floor: EventId) -> bool {
        let position = self.cursor.position();
        let asked = self.cursor.read_from(self.lag_bound).max(floor);
        let reaches_back = page.from <= asked;
        let reaches_on = if page.complete {
            fresh || page.end() >= position
        } else {
            // One that begins earlier was read for others, too; a later one that begins here
            // would not tell more.
            page.end() > position || page.from == asked
        };
        reaches_back && reaches_on
    }

    fn gaps<E: Entry>(&self, views: &[View<'_, E>], pages: &[Option<&HistoryPage<E>>]) -> Vec<Gap> {
        let evidence: Vec<_> = pages
            .iter()
            .zip(&self.floors)
            .map(|(page, floor)| {
                page.map(|page| Evidence {
                    page,
                    floor: *floor,
                })
            })
            .collect();
        let event = self.cursor.event();
        let event_was_seen = views.iter().any(|view| view.tail.holds(event));
        let reasons: Vec<_> = if self.trusted {
            let from_floor = |evidence: &Evidence<'_, E>| {
                if self.from_start {
                    evidence.page.incomplete_from_start()
                } else {
                    evidence.page.incomplete_after(evidence.floor.pred())
                }
            };
            let evidence = evidence.iter().map(Option::as_ref);
            evidence
                .map(|evidence| evidence.and_then(from_floor))
                .collect()
        } else {
            judge(self.cursor, event_was_seen, &evidence, self.lag_bound)
        };
        reasons
            .into_iter()
            .zip(pages)
            .enumerate()
            .filter_map(|(channel, (reason, page))| {
                Some(Gap {
                    channel,
                    reason: reason?,
                    after: Some(self.told.position()),
                    oldest: page.and_then(|page| page.oldest).map(|oldest| oldest.id),
                })
            })
            .collect()
    }
}

/// The ids that a step is about.
struct Stretch {
    /// Everything up to here was sent.
    begin: EventId,
    /// Every channel is known up to here.
    known_through: EventId,
    /// Every event up to here has come to this replica, too.
    caught: EventId,
    /// The tails reach back to `known_through`, so that their rest may follow.
    meets_tails: bool,
}

impl Stretch {
    fn of<E: Entry>(
        views: &[View<'_, E>],
        pages: &[Option<&HistoryPage<E>>],
        position: EventId,
        seen: Option<EventId>,
    ) -> Self {
        let seen_through = seen.unwrap_or_default();
        let newest = views.iter().filter_map(|view| view.tail.newest()).max();
        let caught = newest.unwrap_or_default().max(seen_through);
        let known = |page: &Option<&HistoryPage<E>>| page.map_or(seen_through, HistoryPage::end);
        let (begin, known_through) = if is_past_all(pages, position) {
            // Nothing comes after an id that was never issued: the client begins again at the
            // position of this replica.
            let begin = position.min(seen_through);
            (begin, begin)
        } else {
            let known_through = pages.iter().map(known).min().unwrap_or_default();
            (position, known_through.max(position))
        };
        // What the replica has yet to see comes live, so that a loss of it is noticed.
        let seam = known_through.min(caught).max(begin);
        let meets_tails =
            Rule::SeamMeetsTails.is_off() || views.iter().all(|view| view.tail.covers(seam));
        Self {
            begin,
            known_through: if meets_tails { seam } else { known_through },
            caught,
            meets_tails,
        }
    }
}

#[cfg(test)]
mod tests;
