//! What an event that arrives, or a read for a client, proves of its channel.

use std::time::Duration;

use super::judge::{HistoryPage, Link, Linked, Retention};
use super::rules::Rule;
use crate::protocol::{Cursor, EventId};

/// How an event that arrives relates to what was seen of its channel before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It follows.
    Next,
    /// It was seen already: a recovery and the subscription overlap.
    Known,
    /// An event between is missing, and is to be read from history.
    Hole,
    /// It continues another history than the one that was seen.
    OtherHistory,
}

/// Judges an event. `seen` is the newest event of its channel; `None`: none since the channel was
/// subscribed.
pub(super) fn arrival(seen: Option<EventId>, event: Link, retention: Retention) -> Arrival {
    let Some(seen) = seen else {
        return Arrival::Next;
    };
    if event.id <= seen {
        Arrival::Known
    } else if event.prev == seen {
        Arrival::Next
    } else if event.prev > seen {
        if Rule::HoleIsRead.is_off() {
            return Arrival::Next;
        }
        Arrival::Hole
    } else {
        // An expired history restarts with `prev` 0-0. That is legitimate once `seen` itself is
        // older than the TTL that applied to it, like an event after the id before it.
        let ttl = retention.after(seen.pred());
        let expired = event.prev == EventId::ZERO && event.id.since(seen) >= ttl;
        if expired || Rule::OtherHistory.is_off() {
            Arrival::Next
        } else {
            Arrival::OtherHistory
        }
    }
}

/// The newest event that a client may have from a read of its channel's history, where the
/// subscription saw everything up to `position`. It counts as seen, because a failover can also
/// take back what was published before the channel was subscribed. What is later arrives.
pub(super) fn seen_in<E: Linked>(page: &HistoryPage<E>, position: EventId) -> Option<EventId> {
    let ids = page.events.iter().map(|event| event.link().id);
    let reaches_on = page.complete || page.end() > position;
    ids.take_while(|id| *id <= position)
        .last()
        .filter(|_| reaches_on && !Rule::ReadIsSeen.is_off())
}

/// Where the recovery of a channel begins: `seen` is its newest event, `position` the id up to
/// which everything was seen when the subscription was lost, `durable` the newest earlier one that
/// was at least the lag bound old by then. Only the latter confirms an event: the primary may have
/// been replaced for as long as the bound before it was left.
pub(super) fn missed_from(
    seen: Option<EventId>,
    position: EventId,
    durable: Option<EventId>,
    lag_bound: Duration,
) -> Cursor {
    let seen = seen.unwrap_or_default();
    let confirmed = Cursor::new(seen, durable.unwrap_or_default()).is_confirmed(lag_bound);
    if confirmed || Rule::SeenIsConfirmed.is_off() {
        Cursor::new(seen, position)
    } else {
        Cursor::unconfirmed(seen, position, lag_bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::continuity::Issued;

    const LAG: Duration = Duration::from_millis(10);

    fn link(id: u64, prev: u64) -> Link {
        Link {
            id: EventId::new(id, 0),
            prev: EventId::new(prev, 0),
        }
    }

    #[test]
    fn what_a_client_has_read_was_seen_up_to_the_position() {
        let last = EventId::new(1_000, 0);
        let page = HistoryPage {
            issued: Some(Issued {
                epoch: EventId::new(1, 0),
                last,
            }),
            now_ms: last.ms(),
            retention: Retention::constant(Duration::from_secs(60)),
            evictable: false,
            oldest: Some(link(100, 0)),
            from: EventId::new(100, 0),
            events: vec![link(100, 0), link(200, 100), link(300, 200)],
            complete: true,
            ended: None,
        };
        let seen = seen_in(&page, EventId::new(250, 0));
        assert_eq!(seen, Some(EventId::new(200, 0)));
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
        assert_eq!(
            arrival(seen, link(249, 0), retention),
            Arrival::OtherHistory
        );
        let seen = Some(EventId::new(200, 1));
        assert_eq!(
            arrival(seen, link(250, 0), retention),
            Arrival::OtherHistory
        );
    }

    #[test]
    fn only_a_durable_position_confirms_what_was_seen() {
        let id = |ms| EventId::new(ms, 0);
        let from = |durable| missed_from(Some(id(100)), id(200), durable, LAG).read_from(LAG);
        assert_eq!(from(None), id(100));
        assert_eq!(from(Some(id(110))), id(100));
        assert_eq!(from(Some(id(111))), id(200));
        assert_eq!(
            missed_from(None, id(200), None, LAG),
            Cursor::fresh(id(200))
        );
    }
}
