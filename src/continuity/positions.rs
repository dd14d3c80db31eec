//! Up to which id a replica has seen everything, and which of these positions are durable.

use std::collections::VecDeque;
use std::time::Duration;

use super::rules::Rule;
use crate::protocol::{Cursor, EventId};

/// Positions kept within the lag bound: the durable one is at most this share of it older than
/// necessary.
const SAMPLES: u32 = 16;

/// The newest position, and the newest one that no failover can take back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Positions {
    lag_bound: Duration,
    /// Oldest first; the first is the durable one, once it is old enough. At most a few more
    /// than [`SAMPLES`], because each is later than the one before by a share of the bound.
    samples: VecDeque<EventId>,
    newest: Option<EventId>,
}

impl Positions {
    pub(crate) fn new(lag_bound: Duration) -> Self {
        Self {
            lag_bound,
            samples: VecDeque::new(),
            newest: None,
        }
    }

    /// Everything up to `position` has been seen.
    pub(crate) fn note(&mut self, position: EventId) {
        if self.newest.is_some_and(|newest| position <= newest) {
            return;
        }
        self.newest = Some(position);
        let step = self.lag_bound / SAMPLES;
        let is_later = |last: &EventId| position.since(*last) >= step && position.ms() > last.ms();
        if self.samples.back().is_none_or(is_later) {
            self.samples.push_back(position);
        }
        while self
            .samples
            .get(1)
            .is_some_and(|second| position.since(*second) >= self.lag_bound)
        {
            self.samples.pop_front();
        }
    }

    /// The id up to which everything has been seen.
    pub(crate) fn newest(&self) -> Option<EventId> {
        self.newest
    }

    /// The newest known position that is at least the lag bound old: no failover takes it back.
    pub(crate) fn durable(&self) -> Option<EventId> {
        if Rule::DurablePosition.is_off() {
            return self.newest;
        }
        let (first, newest) = (*self.samples.front()?, self.newest?);
        (newest.since(first) >= self.lag_bound).then_some(first)
    }
}

/// The cursor that a heartbeat tells a live client, where it is later than all that the client
/// knows. `told` it was told last; kept events up to `skip_through` are of no concern to it;
/// `newest` and `gap` are the newest event of its channels and the id of their newest gap.
pub(crate) fn heartbeat_cursor(
    told: Cursor,
    skip_through: EventId,
    newest: EventId,
    gap: EventId,
    durable: EventId,
) -> Option<Cursor> {
    let event = if newest > skip_through {
        newest
    } else {
        told.event()
    };
    let gap = if Rule::HeartbeatAfterGap.is_off() {
        EventId::ZERO
    } else {
        gap
    };
    let is_later = durable > event && durable > told.position() && durable > gap;
    // What was had before a gap may be of a history that is no more: the position speaks for it.
    let event = if event > gap { event } else { EventId::ZERO };
    is_later.then(|| Cursor::new(event, durable))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that begin anew jump, which settles a position from before.
    #[test]
    fn a_heartbeat_tells_nothing_from_before_a_gap() {
        let id = |ms| EventId::new(ms, 0);
        let told = Cursor::new(id(70), id(80));
        let tell = |newest, settled| heartbeat_cursor(told, id(60), newest, id(100), id(settled));
        for settled in [75, 90, 100] {
            assert_eq!(tell(id(70), settled), None);
        }
        assert_eq!(tell(id(70), 101), Some(Cursor::fresh(id(101))));
        assert_eq!(tell(EventId::ZERO, 101), Some(Cursor::fresh(id(101))));
        assert_eq!(tell(id(105), 104), None);
        assert_eq!(tell(id(105), 106), Some(Cursor::new(id(105), id(106))));
    }

    #[test]
    fn what_is_settled_is_old_enough_and_not_much_older() {
        let lag = Duration::from_secs(60);
        let mut positions = Positions::new(lag);
        assert_eq!((positions.newest(), positions.durable()), (None, None));
        for ms in (1_000_000..2_000_000).step_by(700) {
            let now = EventId::new(ms, 0);
            positions.note(now);
            assert_eq!(positions.newest(), Some(now));
            assert!(positions.samples.len() <= SAMPLES as usize + 2);
            match positions.durable() {
                None => assert!(ms < 1_000_000 + 61_000),
                Some(settled) => {
                    let age = now.since(settled);
                    assert!(age >= lag && age < lag + lag / 10, "{age:?}");
                }
            }
        }
    }

    #[test]
    fn a_jump_of_the_ids_settles_what_was_before_it() {
        let mut positions = Positions::new(Duration::from_secs(60));
        positions.note(EventId::new(1_000, 0));
        positions.note(EventId::new(61_000, 0));
        assert_eq!(positions.durable(), Some(EventId::new(1_000, 0)));
        positions.note(EventId::new(5, 0));
        assert_eq!(positions.newest(), Some(EventId::new(61_000, 0)));
    }
}
