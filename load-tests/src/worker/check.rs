//! The check of every delivery: one [`Sequence`] for each channel of each client.

/// Holes remembered one by one; past that the oldest hole is lost for good.
const MAX_REMEMBERED_HOLES: usize = 64;

/// What the arrival of one sequence number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first one on this stream: where it begins is not judged here.
    First,
    InOrder,
    /// So many numbers were skipped; they may still come late.
    Skipped(u32),
    /// Had been skipped, came after a later one.
    Reordered,
    Duplicate,
}

/// Where one client stands on one channel.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// The number expected next; 0: nothing has come yet.
    next: u32,
    holes: Vec<Hole>,
}

/// Skipped numbers, `first..end`.
#[derive(Debug)]
struct Hole {
    first: u32,
    end: u32,
}

impl Sequence {
    #[inline]
    pub(crate) fn accept(&mut self, sequence: u32) -> Arrival {
        if sequence == self.next && self.next != 0 {
            self.next = sequence + 1;
            return Arrival::InOrder;
        }
        self.accept_out_of_order(sequence)
    }

    #[cold]
    fn accept_out_of_order(&mut self, sequence: u32) -> Arrival {
        let expected = self.next;
        if expected == 0 {
            self.next = sequence + 1;
            return Arrival::First;
        }
        if sequence > expected {
            if self.holes.len() == MAX_REMEMBERED_HOLES {
                self.holes.remove(0);
            }
            self.holes.push(Hole {
                first: expected,
                end: sequence,
            });
            self.next = sequence + 1;
            return Arrival::Skipped(sequence - expected);
        }
        let Some(at) = self
            .holes
            .iter()
            .position(|hole| (hole.first..hole.end).contains(&sequence))
        else {
            return Arrival::Duplicate;
        };
        let hole = self.holes.remove(at);
        for part in [
            Hole {
                first: hole.first,
                end: sequence,
            },
            Hole {
                first: sequence + 1,
                end: hole.end,
            },
        ] {
            if part.first < part.end && self.holes.len() < MAX_REMEMBERED_HOLES {
                self.holes.push(part);
            }
        }
        Arrival::Reordered
    }

    /// The number expected next; 0: nothing has come yet.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// The stream is new again: whatever comes next is its first.
    pub(crate) fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::Arrival::{Duplicate, First, InOrder, Reordered, Skipped};
    use super::*;

    fn arrivals(numbers: &[u32]) -> Vec<Arrival> {
        let mut sequence = Sequence::default();
        numbers
            .iter()
            .map(|number| sequence.accept(*number))
            .collect()
    }

    #[test]
    fn in_order() {
        assert_eq!(arrivals(&[0, 1, 2, 3]), [First, InOrder, InOrder, InOrder]);
    }

    #[test]
    fn a_later_start_is_a_start() {
        assert_eq!(arrivals(&[7, 8]), [First, InOrder]);
    }

    #[test]
    fn loss() {
        assert_eq!(
            arrivals(&[0, 1, 4, 5]),
            [First, InOrder, Skipped(2), InOrder]
        );
    }

    #[test]
    fn duplicates() {
        assert_eq!(
            arrivals(&[0, 1, 1, 0, 2]),
            [First, InOrder, Duplicate, Duplicate, InOrder]
        );
    }

    #[test]
    fn reordering_is_told_from_duplicates() {
        assert_eq!(
            arrivals(&[0, 1, 5, 3, 2, 4, 3, 6]),
            [
                First,
                InOrder,
                Skipped(3),
                Reordered,
                Reordered,
                Reordered,
                Duplicate,
                InOrder
            ]
        );
    }

    #[test]
    fn many_holes_stay_bounded() {
        let mut sequence = Sequence::default();
        for number in (0..1000).step_by(2) {
            sequence.accept(number);
        }
        assert_eq!(sequence.holes.len(), MAX_REMEMBERED_HOLES);
        assert_eq!(sequence.accept(997), Reordered);
        assert_eq!(sequence.accept(1), Duplicate, "a forgotten hole stays lost");
    }
}
