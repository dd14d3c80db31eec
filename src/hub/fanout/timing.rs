//! How long events take, from their publication and their arrival to the sockets.
//!
//! A fan-out pass notes when its events arrived, and each parcel of it carries a reference to
//! that and to the time of publication. When a parcel is written, one look at a clock that is read
//! now and then, and one count, are all there is to do. What waits for a client that is not ready
//! leaves its pass.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::hub::ShardStats;

/// Writes between two readings of the clock. A write takes some microseconds, so what is measured
/// is off by some tenth of a millisecond at most.
const USES_OF_A_READING: u32 = 16;

/// The time, read once for several writes.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// The time of day at the start, as it would be by the present time of day.
    unix_at_start: Cell<Duration>,
    /// Since the start.
    now: Cell<Duration>,
    uses_left: Cell<u32>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let clock = Self {
            started: Instant::now(),
            unix_at_start: Cell::default(),
            now: Cell::default(),
            uses_left: Cell::default(),
        };
        clock.follow_time_of_day();
        clock
    }

    /// Takes note of a time of day that was set: to be called a few times a second.
    pub(crate) fn follow_time_of_day(&self) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_start = unix.unwrap_or_default().saturating_sub(self.read());
        self.unix_at_start.set(at_start);
    }

    /// Reads the time.
    pub(crate) fn read(&self) -> Duration {
        self.now.set(self.started.elapsed());
        self.uses_left.set(USES_OF_A_READING);
        self.now.get()
    }

    /// The time of a write right after another one, or after [`expire`](Self::expire).
    pub(crate) fn now(&self) -> Duration {
        match self.uses_left.get().checked_sub(1) {
            Some(left) => self.uses_left.set(left),
            None => return self.read(),
        }
        self.now.get()
    }

    /// Time has passed since the last write: the next one reads the clock.
    pub(crate) fn expire(&self) {
        self.uses_left.set(0);
    }

    /// When that was, in time since the start.
    fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.started)
    }

    /// How long ago, at `now`, something was published. Redis' time of day may be ahead of ours.
    fn since_published(&self, published_ms: u64, now: Duration) -> Duration {
        let unix = self.unix_at_start.get().saturating_add(now);
        unix.saturating_sub(Duration::from_millis(published_ms))
    }
}

/// A fan-out pass: counted once the last of its parcels is gone.
#[derive(Debug)]
pub(crate) struct FanoutPass {
    arrived: Duration,
    /// Zero: nothing was written.
    last_write: Cell<Duration>,
    events: Cell<u64>,
    stats: Arc<ShardStats>,
}

impl FanoutPass {
    /// Events that arrived at this replica at `arrived`, the first of them.
    pub(crate) fn new(clock: &Clock, arrived: Instant, stats: &Arc<ShardStats>) -> Rc<Self> {
        Rc::new(Self {
            arrived: clock.at(arrived),
            last_write: Cell::default(),
            events: Cell::default(),
            stats: Arc::clone(stats),
        })
    }

    /// Notes a write, or an attempt that found the socket full.
    pub(crate) fn note_write(&self, now: Duration) {
        self.last_write.set(now);
    }

    /// Notes so many events more that somebody is to get.
    pub(crate) fn count_events(&self, events: u32) {
        self.events.set(self.events.get() + u64::from(events));
    }
}

impl Drop for FanoutPass {
    fn drop(&mut self) {
        let written = self.last_write.get();
        if written > Duration::ZERO {
            let took = written.saturating_sub(self.arrived);
            self.stats.fanout.add(took, self.events.get());
        }
    }
}

/// When the events of a parcel were published, and in which pass they arrived.
#[derive(Debug)]
pub(crate) struct Timing {
    /// Kept events: live ones do not say when they were published.
    pub(crate) kept: u32,
    /// The earliest publication of a kept one, in Unix milliseconds by the clock of Redis.
    pub(crate) published_ms: u64,
    /// `None`: its client was not ready to take it, which says nothing of the fan-out.
    pub(crate) pass: Option<Rc<FanoutPass>>,
}

impl Timing {
    /// The same, outside of its pass.
    pub(crate) fn outside(&self) -> Self {
        Self {
            pass: None,
            ..*self
        }
    }

    /// Counts a write at `now`.
    pub(crate) fn written(&self, clock: &Clock, now: Duration, stats: &ShardStats) {
        if let Some(pass) = &self.pass {
            pass.note_write(now);
        }
        if self.kept > 0 {
            let took = clock.since_published(self.published_ms, now);
            stats.delivery.add(took, self.kept.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_serves_some_writes_and_no_pause() {
        let clock = Clock::start();
        let read = clock.read();
        for _ in 0..USES_OF_A_READING {
            assert_eq!(clock.now(), read);
        }
        assert!(clock.now() > read);
        let read = clock.read();
        clock.expire();
        assert!(clock.now() > read);
    }

    #[test]
    fn what_is_published_by_a_clock_ahead_of_ours_took_no_time() {
        let clock = Clock::start();
        let now = clock.read();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap();
        let took = clock.since_published(unix_ms - 1000, now);
        assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(60));
        assert_eq!(clock.since_published(unix_ms + 60_000, now), Duration::ZERO);
        assert_eq!(clock.since_published(u64::MAX, now), Duration::ZERO);
    }
}
