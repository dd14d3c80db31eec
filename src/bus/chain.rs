//! Whether the kept events of a channel arrive without a hole. Pure.

use std::time::Duration;

use crate::protocol::{
    Cursor, EventId, Evidence, GapReason, HistoryPage, Issued, Link, Linked, Retention, judge,
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
        // A history that expired begins anew.
        let expired = event.prev == EventId::ZERO && event.id.since(seen) >= retention.after(seen);
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

/// Judges the read of one channel from [`Cursor::read_from`] on.
pub(crate) fn recover<E: Linked + Clone>(
    cursor: Cursor,
    page: &HistoryPage<E>,
    lag_bound: Duration,
) -> Recovered<E> {
    let evidence = Evidence {
        page,
        floor: EventId::ZERO,
    };
    let gap = judge(cursor, false, &[Some(evidence)], lag_bound)
        .into_iter()
        .flatten()
        .next()
        // To clients that were there all the time only one thing matters.
        .map(|reason| match reason {
            GapReason::Rewound | GapReason::UnknownId => GapReason::Rewound,
            _ => GapReason::Lost,
        });
    let position = if gap == Some(GapReason::Rewound) && is_past(cursor, page.issued) {
        page.end()
    } else {
        cursor.position()
    };
    let events: Vec<E> = page
        .events
        .iter()
        .filter(|event| event.link().id > position)
        .cloned()
        .collect();
    let goes_on = match events.last() {
        Some(last) if !page.complete => Some(Cursor::new(last.link().id, EventId::ZERO)),
        _ => None,
    };
    Recovered {
        gap,
        events,
        goes_on,
    }
}

/// Whether the cursor is past every id that was issued.
fn is_past(cursor: Cursor, issued: Option<Issued>) -> bool {
    issued.is_none_or(|issued| cursor.position() > issued.last)
}
