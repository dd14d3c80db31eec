//! Quantiles of counts by upper bound.

use std::collections::BTreeMap;

use crate::hub::LATENCY_BOUNDS_US;

/// The last bound of this version, in seconds: what took longer is only known to have.
#[expect(clippy::cast_precision_loss, reason = "a few seconds")]
pub(super) const MOST_SECONDS: f64 = match LATENCY_BOUNDS_US.last() {
    Some(bound) => *bound as f64 / 1e6,
    None => 0.0,
};

/// How many took how long: by the upper bound in microseconds.
#[derive(Debug, Default)]
pub(super) struct Latency(BTreeMap<u64, u64>);

impl Latency {
    /// Adds what was counted between two moments.
    pub(super) fn add_between(&mut self, before: &BTreeMap<u64, u64>, after: &BTreeMap<u64, u64>) {
        for (bound, total) in after {
            let counted = total.saturating_sub(before.get(bound).copied().unwrap_or(0));
            let sum = self.0.entry(*bound).or_default();
            *sum = sum.saturating_add(counted);
        }
    }

    /// The time in seconds that this share of all took at the most; within a bucket, in proportion,
    /// and above the last bound, that one. `None`: there was nothing.
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self
            .0
            .values()
            .fold(0, |all, count| all.saturating_add(*count));
        if all == 0 {
            return None;
        }
        let wanted = share * all as f64;
        let (mut below, mut present) = (0.0, 0);
        for (bound, count) in &self.0 {
            let count = *count as f64;
            if count > 0.0 && below + count >= wanted {
                let lower = lower_edge(*bound).max(present);
                // Without a bound: more than any other.
                let upper = if *bound == u64::MAX { lower } else { *bound };
                let within = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some((lower as f64 + (upper - lower) as f64 * within) / 1e6);
            }
            below += count;
            present = *bound;
        }
        Some(present as f64 / 1e6)
    }
}

/// Where the bucket with this upper bound begins: buckets that are empty are not reported, so it
/// is not the bound before.
fn lower_edge(bound: u64) -> u64 {
    let below = LATENCY_BOUNDS_US.partition_point(|other| *other < bound);
    let last_below = below.checked_sub(1);
    last_below
        .and_then(|at| LATENCY_BOUNDS_US.get(at).copied())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantile(counts: &[(u64, u64)], share: f64) -> Option<f64> {
        let mut latency = Latency::default();
        latency.add_between(&BTreeMap::new(), &counts.iter().copied().collect());
        latency.quantile(share)
    }

    #[test]
    fn a_quantile_lies_within_its_bounds() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1000, 0)], 0.5), None);
        assert_eq!(quantile(&[(100, 10)], 0.5), Some(0.00005));
        // From 500 to 1000 µs, whatever was or was not reported below.
        assert_eq!(quantile(&[(1000, 10)], 0.5), Some(0.00075));
        assert_eq!(quantile(&[(100, 50), (1000, 50)], 0.75), Some(0.00075));
        let most_are_late = quantile(&[(100, 1), (500_000, 99)], 0.5).unwrap();
        assert!((0.42..0.43).contains(&most_are_late), "{most_are_late}");
        assert_eq!(
            quantile(&[(1000, 1), (1500, 0), (5000, 1)], 1.0),
            Some(0.005)
        );
        // Above the last bound, though nothing below it was reported.
        assert_eq!(quantile(&[(u64::MAX, 1)], 0.5), Some(30.0));
        assert_eq!(quantile(&[(1000, 1), (u64::MAX, 99)], 0.99), Some(30.0));
        // Bounds that another version may have.
        assert_eq!(quantile(&[(1100, 1), (1200, 1)], 0.75), Some(0.00115));
        assert_eq!(quantile(&[(60_000_000, 0), (u64::MAX, 1)], 0.5), Some(60.0));
        // Sums that do not fit are as large as can be.
        let most = quantile(&[(u64::MAX, u64::MAX), (1, u64::MAX)], 0.1);
        assert!(most.is_some_and(|seconds| seconds > 0.0 && seconds <= 1e-6));
    }

    #[test]
    fn only_what_is_new_counts() {
        let (before, after) = (
            BTreeMap::from([(1000, 5), (1500, 5)]),
            BTreeMap::from([(1000, 5), (1500, 7)]),
        );
        let mut latency = Latency::default();
        latency.add_between(&before, &after);
        assert_eq!(latency.quantile(0.5), Some(0.00125));
    }
}
