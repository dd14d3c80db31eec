//! When each event is due. An open loop: due times never depend on how the server keeps up.

use serde::{Deserialize, Serialize};

use crate::clock::{NANOS_PER_SECOND, as_f64, whole};

/// Events `first..first + count` of a run, evenly spaced, the channels in turn.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) start_ns: u64,
    /// Over all channels together.
    pub(crate) events_per_second: f64,
    /// How many events of the run were scheduled before this schedule.
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) channels: u32,
}

impl Schedule {
    /// The time event `index` (counted over the run) is due.
    pub(crate) fn due_ns(&self, index: u64) -> u64 {
        let offset = as_f64(index.saturating_sub(self.first)) * as_f64(NANOS_PER_SECOND)
            / self.events_per_second;
        self.start_ns + whole(offset)
    }

    pub(crate) fn end_ns(&self) -> u64 {
        self.due_ns(self.first + self.count)
    }

    /// How many events of the run are due by `now_ns`, this schedule's earlier ones included.
    pub(crate) fn due_by(&self, now_ns: u64) -> u64 {
        if now_ns < self.start_ns {
            return self.first;
        }
        let elapsed =
            as_f64(now_ns - self.start_ns) * self.events_per_second / as_f64(NANOS_PER_SECOND);
        self.first + self.count.min(whole(elapsed.floor()) + 1)
    }

    /// Which channel event `index` goes to, and its sequence number there.
    pub(crate) fn place(&self, index: u64) -> (u32, u32) {
        let channels = u64::from(self.channels.max(1));
        let channel = u32::try_from(index % channels).unwrap_or(u32::MAX);
        (
            channel,
            u32::try_from(index / channels + 1).unwrap_or(u32::MAX),
        )
    }

    /// The run's event that is `sequence` on `channel`.
    pub(crate) fn index(&self, channel: u32, sequence: u32) -> u64 {
        u64::from(sequence.saturating_sub(1)) * u64::from(self.channels) + u64::from(channel)
    }

    /// The last sequence number of `channel` once all is published; 0: none.
    pub(crate) fn last_sequence(&self, channel: u32) -> u32 {
        self.sequence_after(channel, self.first + self.count)
    }

    /// The first sequence number of `channel` that is due at or after `time_ns`.
    pub(crate) fn first_sequence_from(&self, channel: u32, time_ns: u64) -> u32 {
        self.sequence_after(channel, self.due_by(time_ns)) + 1
    }

    /// How many of the run's first `published` events went to `channel`.
    fn sequence_after(&self, channel: u32, published: u64) -> u32 {
        let channels = u64::from(self.channels.max(1));
        let more = u64::from(u64::from(channel) < published % channels);
        u32::try_from(published / channels + more).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        start_ns: 1_000,
        events_per_second: 1e6,
        first: 10,
        count: 100,
        channels: 7,
    };

    #[test]
    fn times_follow_from_the_rate_alone() {
        assert_eq!(SCHEDULE.due_ns(10), 1_000);
        assert_eq!(SCHEDULE.due_ns(13), 4_000);
        assert_eq!(SCHEDULE.end_ns(), 101_000);
        assert_eq!(SCHEDULE.due_by(999), 10);
        assert_eq!(SCHEDULE.due_by(1_000), 11);
        assert_eq!(SCHEDULE.due_by(4_000), 14);
        assert_eq!(SCHEDULE.due_by(u64::MAX / 2), 110);
    }

    #[test]
    fn channels_take_turns_and_count_from_one() {
        let mut last = [0_u32; 7];
        for index in 0..110 {
            let (channel, sequence) = SCHEDULE.place(index);
            assert_eq!(SCHEDULE.index(channel, sequence), index);
            let before = &mut last[usize::try_from(channel).unwrap()];
            assert_eq!(sequence, *before + 1);
            *before = sequence;
        }
        for channel in 0..7 {
            assert_eq!(
                SCHEDULE.last_sequence(channel),
                last[usize::try_from(channel).unwrap()]
            );
        }
    }

    #[test]
    fn who_joins_late_is_owed_what_is_due_later() {
        // Events 10 (channel 3, number 2) at 1000 ns, 11 (channel 4, number 2) at 2000 ns.
        assert_eq!(SCHEDULE.first_sequence_from(3, 999), 2);
        assert_eq!(SCHEDULE.first_sequence_from(3, 1_000), 3);
        assert_eq!(SCHEDULE.first_sequence_from(4, 1_500), 2);
        assert_eq!(SCHEDULE.first_sequence_from(4, 2_500), 3);
    }
}
