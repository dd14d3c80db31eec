//! Whether the kept events of a channel arrive without a hole. Pure.

use std::time::Duration;

use crate::protocol::{
    Cursor, EventId, Evidence, GapReason, HistoryPage, Link, Linked, Retention, judge,
};

/// How an event that arrives stands to what was seen of its channel before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It follows.
    Next,
    /// It was seen already: backfill and subscription overlap.
    Known,
    /// Something between is missing, and is to be read from history.
    Hole,
    /// The history that it continues is not the one that was seen.
    Rewound,
}

/// Judges an event. `seen` is the newest of its channel; `None`: none since it is subscribed.
pub(crate) fn arrival(seen: Option<EventId>, event: Link, retention: Retention) -> Arrival {
    let Some(seen) = seen else {
        return Arrival::Next;
    };
    if event.id <= seen {
        Arrival::Known
    } else if event.prev == seen {
        Arrival::Next
    } else if event.prev > seen {
        Arrival::Hole
    } else {
        // A history that expired begins anew. What was seen itself is retained like an event
        // after the id before it.
        let ttl = retention.after(seen.pred());
        let expired = event.prev == EventId::ZERO && event.id.since(seen) >= ttl;
        if expired {
            Arrival::Next
        } else {
            Arrival::Rewound
        }
    }
}

/// Where the recovery of a channel goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecoverFrom {
    /// Everything up to its position was seen, or read.
    pub(crate) cursor: Cursor,
    /// The first id of the next page.
    pub(crate) from: EventId,
    /// An earlier page has held the cursor's event: the same primary vouches for it.
    event_was_read: bool,
}

impl RecoverFrom {
    /// The first page.
    pub(crate) fn start(cursor: Cursor, lag_bound: Duration) -> Self {
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
}

/// What a read tells of the time when nothing arrived.
#[derive(Debug)]
pub(crate) struct Recovered<E> {
    /// Why what is recovered is not everything. Then it replaces what earlier pages told, and all
    /// gaps are told before the events of any channel.
    pub(crate) gap: Option<GapReason>,
    /// What is retained, oldest first.
    pub(crate) events: Vec<E>,
    /// More is to be read.
    pub(crate) goes_on: Option<RecoverFrom>,
}

/// The newest event that a client may have from a read of its channel's history, where the
/// subscription saw everything up to `position`: to be noted as seen, since a failover can take
/// back what was published before the channel was subscribed, too. What is later arrives.
pub(crate) fn seen_in<E: Linked>(page: &HistoryPage<E>, position: EventId) -> Option<EventId> {
    let ids = page.events.iter().map(|event| event.link().id);
    let reaches_on = page.complete || page.end() > position;
    ids.take_while(|id| *id <= position)
        .last()
        .filter(|_| reaches_on)
}

/// Where the backfill of a channel begins: `seen` is its newest event, `position` the id up to
/// which everything was seen when the subscription was lost, `settled` the newest earlier one that
/// was at least the lag bound old by then. Only the latter vouches for an event: a primary may
/// have been replaced for as long as the bound before it was left.
pub(crate) fn backfill_from(
    seen: Option<EventId>,
    position: EventId,
    settled: Option<EventId>,
    lag_bound: Duration,
) -> Cursor {
    let seen = seen.unwrap_or_default();
    let is_vouched = Cursor::new(seen, settled.unwrap_or_default()).is_vouched(lag_bound);
    if is_vouched {
        Cursor::new(seen, position)
    } else {
        Cursor::unvouched(seen, position, lag_bound)
    }
}

/// Judges a page of one channel. What is later than `until`, the first id that came after all
/// channels were subscribed, arrives by itself: taking it from here would let it overtake what
/// other channels have before it.
pub(crate) fn recover<E: Linked + Clone>(
    begin: RecoverFrom,
    page: &HistoryPage<E>,
    until: EventId,
    lag_bound: Duration,
) -> Recovered<E> {
    let evidence = Evidence {
        page,
        floor: EventId::ZERO,
    };
    let cursor = begin.cursor;
    let mut gap = judge(cursor, begin.event_was_read, &[Some(evidence)], lag_bound)
        .into_iter()
        .flatten()
        .next()
        // To clients that were there all the time only one thing matters.
        .map(|reason| match reason {
            GapReason::Rewound | GapReason::UnknownId => GapReason::Rewound,
            _ => GapReason::Lost,
        });
    let is_missed = |event: &&E| event.link().id > cursor.position() && event.link().id <= until;
    let events: Vec<E> = page.events.iter().filter(is_missed).cloned().collect();
    let goes_on = match page.events.last().map(|last| last.link().id) {
        _ if page.complete => None,
        Some(last) if last >= until => None,
        Some(last) => Some(begin.after(last)),
        // None of its events can be read, and everything behind them stays unread.
        None => {
            gap.get_or_insert(GapReason::Lost);
            None
        }
    };
    Recovered {
        gap,
        events,
        goes_on,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Issued;

    const LAG: Duration = Duration::from_millis(10);

    fn link(id: u64, prev: u64) -> Link {
        Link {
            id: EventId::new(id, 0),
            prev: EventId::new(prev, 0),
        }
    }

    fn page(from: u64, events: &[Link], complete: bool) -> HistoryPage<Link> {
        let last = EventId::new(1_000, 0);
        HistoryPage {
            issued: Some(Issued {
                epoch: EventId::new(1, 0),
                last,
            }),
            now_ms: last.ms(),
            retention: Retention::constant(Duration::from_secs(60)),
            evictable: false,
            oldest: Some(link(100, 0)),
            from: EventId::new(from, 0),
            events: events.to_vec(),
            complete,
        }
    }

    #[test]
    fn a_cut_page_is_followed_by_another_one() {
        let cursor = Cursor::new(EventId::new(100, 0), EventId::ZERO);
        let cut = page(100, &[link(100, 0), link(200, 100)], false);
        let recovered = recover(RecoverFrom::start(cursor, LAG), &cut, EventId::MAX, LAG);
        assert_eq!(recovered.gap, None);
        assert_eq!(recovered.events, [link(200, 100)]);
        let next = recovered.goes_on.unwrap();
        assert_eq!(next.from, EventId::new(200, 0).next());
        // It need not hold the event before.
        let rest = page(201, &[link(300, 200)], true);
        let recovered = recover(next, &rest, EventId::MAX, LAG);
        assert_eq!(recovered.gap, None);
        assert_eq!(recovered.events, [link(300, 200)]);
        let rest = page(201, &[link(300, 250)], true);
        let recovered = recover(next, &rest, EventId::MAX, LAG);
        assert_eq!(recovered.gap, Some(GapReason::Lost));
    }

    #[test]
    fn a_page_of_the_known_event_alone_leads_on() {
        let cursor = Cursor::new(EventId::new(100, 0), EventId::new(105, 0));
        let begin = RecoverFrom::start(cursor, LAG);
        let recovered = recover(begin, &page(100, &[link(100, 0)], false), EventId::MAX, LAG);
        assert_eq!(recovered.gap, None);
        let next = recovered.goes_on.unwrap();
        assert_eq!((next.from, next.cursor), (EventId::new(100, 1), cursor));
        let recovered = recover(next, &page(101, &[link(200, 100)], true), EventId::MAX, LAG);
        assert_eq!(
            (recovered.gap, recovered.events),
            (None, vec![link(200, 100)])
        );
    }

    #[test]
    fn a_page_that_leads_nowhere_is_a_gap_and_not_the_end() {
        let cursor = Cursor::new(EventId::new(100, 0), EventId::ZERO);
        let begin = RecoverFrom::start(cursor, LAG);
        let recovered = recover(begin, &page(100, &[], false), EventId::MAX, LAG);
        assert!(recovered.gap.is_some());
        assert_eq!(recovered.goes_on, None);
    }

    #[test]
    fn what_the_subscription_brings_is_not_recovered() {
        let cursor = Cursor::new(EventId::new(100, 0), EventId::ZERO);
        let whole = page(100, &[link(100, 0), link(200, 100), link(300, 200)], true);
        let begin = RecoverFrom::start(cursor, LAG);
        let recovered = recover(begin, &whole, EventId::new(250, 0), LAG);
        assert_eq!(recovered.events, [link(200, 100)]);
        assert_eq!(
            seen_in(&whole, EventId::new(250, 0)),
            Some(EventId::new(200, 0))
        );
    }

    #[test]
    fn a_raised_ttl_does_not_hold_for_what_was_there_before() {
        let retention = Retention {
            ttl: Duration::from_millis(100),
            old_ttl: Duration::from_millis(50),
            ttl_since: EventId::new(200, 0),
        };
        let seen = Some(EventId::new(200, 0));
        assert_eq!(arrival(seen, link(250, 0), retention), Arrival::Next);
        assert_eq!(arrival(seen, link(249, 0), retention), Arrival::Rewound);
        let seen = Some(EventId::new(200, 1));
        assert_eq!(arrival(seen, link(250, 0), retention), Arrival::Rewound);
    }

    #[test]
    fn only_a_settled_position_vouches_for_what_was_seen() {
        let id = |ms| EventId::new(ms, 0);
        let from = |settled| backfill_from(Some(id(100)), id(200), settled, LAG).read_from(LAG);
        assert_eq!(from(None), id(100));
        assert_eq!(from(Some(id(110))), id(100));
        assert_eq!(from(Some(id(111))), id(200));
        assert_eq!(
            backfill_from(None, id(200), None, LAG),
            Cursor::fresh(id(200))
        );
    }
}
