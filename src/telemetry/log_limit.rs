//! Lines that somebody else may cause as often as they like.

use std::time::Duration;

use tokio::time::Instant;

/// Such lines are written this often at the most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets a line pass once an interval, and counts those that it holds back: what a broken publisher
/// causes must not fill the log.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    quiet_until: Option<Instant>,
    held_back: u64,
}

impl LogLimit {
    /// How many lines were held back since the last one, where another may be written now.
    pub(crate) fn pass(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.quiet_until.is_some_and(|until| now < until) {
            self.held_back += 1;
            return None;
        }
        self.quiet_until = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_and_the_next_tells_how_many_did_not() {
        let mut limit = LogLimit::default();
        assert_eq!(limit.pass(), Some(0));
        assert_eq!((limit.pass(), limit.pass()), (None, None));
        limit.quiet_until = Some(Instant::now());
        assert_eq!((limit.pass(), limit.pass()), (Some(2), None));
    }
}
