//! Counting deliveries: latency, throughput over time, faults.

use hdrhistogram::Histogram;

use crate::clock::NANOS_PER_SECOND;
use crate::worker::messages::{Connects, Counts, Faults, Measured};

/// Width of a throughput bucket.
pub(crate) const BUCKET_NS: u64 = NANOS_PER_SECOND / 10;

/// A phase is at most a day.
const MAX_BUCKETS: usize = 864_000;

const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600 * NANOS_PER_SECOND;
/// Three digits: percentiles are right to one part in a thousand.
const DIGITS: u8 = 3;

/// A latency histogram in nanoseconds, from a microsecond to an hour.
pub(crate) fn latency_histogram() -> Histogram<u64> {
    // The bounds are constants that `hdrhistogram` accepts, as a test shows.
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS).unwrap_or_else(|_| unreachable!())
}

pub(crate) fn counts(histogram: &Histogram<u64>) -> Counts {
    histogram
        .iter_recorded()
        .map(|value| {
            (
                value.value_iterated_to(),
                value.count_since_last_iteration(),
            )
        })
        .collect()
}

pub(crate) fn add_counts(histogram: &mut Histogram<u64>, counts: &Counts) {
    for (value, count) in counts {
        histogram.saturating_record_n(*value, *count);
    }
}

/// What one client process counts; all but `ready` begins anew with each phase.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) ready: u64,
    pub(crate) delivered: u64,
    pub(crate) received_bytes: u64,
    pub(crate) last_delivery_ns: u64,
    pub(crate) latency: Histogram<u64>,
    pub(crate) faults: Faults,
    pub(crate) heartbeats: u64,
    pub(crate) gaps: u64,
    pub(crate) churned: u64,
    pub(crate) slow_closed: u64,
    start_ns: u64,
    buckets: Vec<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            ready: 0,
            delivered: 0,
            received_bytes: 0,
            last_delivery_ns: 0,
            latency: latency_histogram(),
            faults: Faults::default(),
            heartbeats: 0,
            gaps: 0,
            churned: 0,
            slow_closed: 0,
            start_ns: u64::MAX,
            buckets: Vec::new(),
        }
    }

    pub(crate) fn begin_phase(&mut self, start_ns: u64) {
        *self = Self {
            ready: self.ready,
            start_ns,
            ..Self::new()
        };
    }

    /// Deliveries of one read, all received at `now_ns`.
    #[inline]
    pub(crate) fn received(&mut self, deliveries: u64, now_ns: u64) {
        let Some(elapsed_ns) = now_ns.checked_sub(self.start_ns) else {
            return;
        };
        let bucket = usize::try_from(elapsed_ns / BUCKET_NS)
            .unwrap_or(usize::MAX)
            .min(MAX_BUCKETS);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += deliveries;
        }
        self.delivered += deliveries;
        self.last_delivery_ns = now_ns;
    }

    pub(crate) fn measured(&self, connects: Connects) -> Measured {
        Measured {
            delivered: self.delivered,
            received_bytes: self.received_bytes,
            last_delivery_ns: self.last_delivery_ns,
            latency_ns: counts(&self.latency),
            buckets: self.buckets.clone(),
            faults: self.faults,
            heartbeats: self.heartbeats,
            gaps: self.gaps,
            churned: self.churned,
            slow_closed: self.slow_closed,
            connects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_the_way_between_processes() {
        let mut one = latency_histogram();
        for value in [900, 5_000, 77_000_000, HIGHEST_NS] {
            one.saturating_record_n(value, 3);
        }
        let mut two = latency_histogram();
        add_counts(&mut two, &counts(&one));
        assert_eq!(one, two);
    }

    #[test]
    fn deliveries_fall_into_their_buckets() {
        let mut tally = Tally::new();
        tally.begin_phase(1_000);
        tally.received(2, 999);
        tally.received(3, 1_000);
        tally.received(4, 1_000 + 2 * BUCKET_NS);
        assert_eq!(tally.measured(Connects::default()).buckets, [3, 0, 4]);
        assert_eq!(tally.delivered, 7);
    }
}
