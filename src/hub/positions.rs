//! Up to which id a replica has seen everything, and what of that it may vouch for.

use std::collections::VecDeque;
use std::time::Duration;

use crate::protocol::EventId;

/// Positions kept within the lag bound: what is vouched for is at most this share of it older
/// than need be.
const SAMPLES: u32 = 16;

/// The newest position, and the newest one that no failover can take back.
#[derive(Debug)]
pub(crate) struct Positions {
    lag_bound: Duration,
    /// Oldest first; the first is the settled one, once it is old enough. At most a few more
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

    /// The newest known position that is at least the lag bound old.
    pub(crate) fn settled(&self) -> Option<EventId> {
        let (first, newest) = (*self.samples.front()?, self.newest?);
        (newest.since(first) >= self.lag_bound).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_old_enough_and_not_much_older() {
        let lag = Duration::from_secs(60);
        let mut positions = Positions::new(lag);
        assert_eq!((positions.newest(), positions.settled()), (None, None));
        for ms in (1_000_000..2_000_000).step_by(700) {
            let now = EventId::new(ms, 0);
            positions.note(now);
            assert_eq!(positions.newest(), Some(now));
            assert!(positions.samples.len() <= SAMPLES as usize + 2);
            match positions.settled() {
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
        assert_eq!(positions.settled(), Some(EventId::new(1_000, 0)));
        positions.note(EventId::new(5, 0));
        assert_eq!(positions.newest(), Some(EventId::new(61_000, 0)));
    }
}
