//! Quantiles of counts by upper bound.

use std::collections::BTreeMap;

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

    /// The time in seconds that this share of all took at the most; within a bound, in proportion,
    /// and above the last one, that one. `None`: there was nothing.
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
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            // Without a bound: more than any other.
            let upper = if *bound == u64::MAX {
                lower
            } else {
                *bound as f64
            };
            let count = *count as f64;
            if count > 0.0 && below + count >= wanted {
                let within = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some((lower + (upper - lower) * within) / 1e6);
            }
            below += count;
            lower = upper;
        }
        Some(lower / 1e6)
    }
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
        assert_eq!(quantile(&[(1000, 10)], 0.5), Some(0.0005));
        assert_eq!(quantile(&[(1000, 50), (3000, 50)], 0.75), Some(0.002));
        assert_eq!(
            quantile(&[(1000, 1), (3000, 0), (4000, 1)], 1.0),
            Some(0.004)
        );
        assert_eq!(quantile(&[(1000, 1), (u64::MAX, 99)], 0.99), Some(0.001));
        // Sums that do not fit are as large as can be.
        let most = quantile(&[(u64::MAX, u64::MAX), (1, u64::MAX)], 0.1);
        assert!(most.is_some_and(|seconds| seconds > 0.0 && seconds <= 1e-6));
    }

    #[test]
    fn only_what_is_new_counts() {
        let (before, after) = (
            BTreeMap::from([(1000, 5), (2000, 5)]),
            BTreeMap::from([(1000, 5), (2000, 7)]),
        );
        let mut latency = Latency::default();
        latency.add_between(&before, &after);
        assert_eq!(latency.quantile(0.5), Some(0.0015));
    }
}
