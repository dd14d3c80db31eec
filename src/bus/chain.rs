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

/// What a read tells of the time when nothing arrived.
#[derive(Debug)]
pub(crate) struct Recovered<E> {
    /// Why what is recovered is not everything.
    pub(crate) gap: Option<GapReason>,
    /// What is retained, oldest first.
    pub(crate) events: Vec<E>,
    /// More is to be read from here on.
    pub(crate) goes_on: Option<Cursor>,
}

/// Where the backfill of a channel begins: `seen` is its newest event, `position` the id up to
/// which everything was seen when the subscription was lost.
pub(crate) fn backfill_from(seen: Option<EventId>, position: EventId) -> Cursor {
    Cursor::new(seen.unwrap_or_default(), position)
}

/// Judges the read of one channel from [`Cursor::read_from`] on. What is later than `until`, the
/// first id that came after all channels were subscribed, arrives by itself: taking it from here
/// would let it overtake what other channels have before it.
pub(crate) fn recover<E: Linked + Clone>(
    cursor: Cursor,
    page: &HistoryPage<E>,
    until: EventId,
    lag_bound: Duration,
) -> Recovered<E> {
    let evidence = Evidence {
        page,
        floor: EventId::ZERO,
    };
    let mut gap = judge(cursor, false, &[Some(evidence)], lag_bound)
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
    let end = page.end();
    let goes_on = if page.complete || end >= until {
        None
    } else if end > cursor.position() {
        Some(Cursor::new(end, EventId::ZERO))
    } else {
        // So small a page leads nowhere, and everything behind it stays unread.
        gap.get_or_insert(GapReason::Lost);
        None
    };
    Recovered {
        gap,
        events,
        goes_on,
    }
}
