//! The reconnection time that streams are opened with.

use std::fmt;
use std::time::Duration;

/// A range that reconnection times are drawn from, so that clients cut off together do not come
/// back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRange {
    least_ms: u64,
    most_ms: u64,
}

impl RetryRange {
    /// A range of whole milliseconds; `None` when `least` is above `most` or `most` is above
    /// [`MAX_RETRY`](super::MAX_RETRY).
    pub fn new(least: Duration, most: Duration) -> Option<Self> {
        if least > most || most > super::MAX_RETRY {
            return None;
        }
        Some(Self {
            least_ms: u64::try_from(least.as_millis()).ok()?,
            most_ms: u64::try_from(most.as_millis()).ok()?,
        })
    }

    /// A time from the range, each as likely as any other.
    pub fn draw(&self) -> Duration {
        Duration::from_millis(fastrand::u64(self.least_ms..=self.most_ms))
    }
}

impl Default for RetryRange {
    /// Two to six seconds.
    fn default() -> Self {
        Self {
            least_ms: 2_000,
            most_ms: 6_000,
        }
    }
}

impl fmt::Display for RetryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms,{}ms", self.least_ms, self.most_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_inside_and_spread() {
        let range = RetryRange::new(Duration::from_secs(2), Duration::from_secs(6)).unwrap();
        let draws: Vec<_> = (0..1000).map(|_| range.draw().as_millis()).collect();
        assert!(draws.iter().all(|ms| (2000..=6000).contains(ms)));
        assert!(draws.iter().any(|&ms| ms < 3000) && draws.iter().any(|&ms| ms > 5000));
    }

    #[test]
    fn a_range_the_wrong_way_round_is_refused() {
        assert_eq!(
            RetryRange::new(Duration::from_secs(2), Duration::ZERO),
            None
        );
    }
}
