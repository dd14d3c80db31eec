//! One sweep for all heartbeats of a shard, instead of a timer a connection.
//!
//! A wheel of slots, each a fraction of the heartbeat interval. A connection stands in the slot
//! in which it would have been silent for the interval; when the sweep comes there and finds that
//! something was sent meanwhile, it only moves the connection on. So each connection is looked at
//! about once an interval, whatever it is sent; and one that has to end within it (its token
//! expires, it is old enough), then too.

use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::subscriber::Subscriber;

/// Steps of the sweep in a heartbeat interval: silence is measured this finely.
pub(super) const TICKS_PER_INTERVAL: u64 = 32;

/// One more than an interval has ticks, so that the slot being swept is never one being filled.
const SLOTS: u64 = TICKS_PER_INTERVAL + 1;

/// Every open stream of the shard, by when it is due.
pub(super) struct HeartbeatWheel {
    slots: Vec<Vec<Weak<Subscriber>>>,
    /// Ticks since the start.
    now: u64,
    tick: Duration,
}

impl HeartbeatWheel {
    /// A wheel for heartbeats at this interval.
    pub(super) fn new(heartbeat: Duration) -> Self {
        let tick = heartbeat.div_f64(TICKS_PER_INTERVAL as f64);
        Self {
            tick: tick.max(Duration::from_millis(1)),
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            // So that a time before the start can be told.
            now: TICKS_PER_INTERVAL,
        }
    }

    /// How long a tick takes.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// The current tick.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Adds a stream just opened. Its first heartbeat comes at a random time in the second half
    /// of the interval, so that streams opened together are not swept together for ever.
    pub(super) fn insert(&mut self, subscriber: &Rc<Subscriber>) {
        let early = fastrand::u64(0..TICKS_PER_INTERVAL / 2);
        subscriber.last_push.set(self.now - early);
        let due = self.now + TICKS_PER_INTERVAL - early;
        self.place(Rc::downgrade(subscriber), self.or_at_end(due, subscriber));
    }

    /// The tick `due`, or an earlier one in which the stream will have to end: its token will have
    /// expired, or it will be old enough.
    fn or_at_end(&self, due: u64, subscriber: &Subscriber) -> u64 {
        let expires = subscriber.expires_at().map(|at| {
            let left = at.duration_since(SystemTime::now());
            left.unwrap_or_default()
        });
        let ends = subscriber
            .ends_at
            .get()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let Some(left) = expires.into_iter().chain(ends).min() else {
            return due;
        };
        let ticks = u64::try_from(left.as_nanos() / self.tick.as_nanos()).unwrap_or(u64::MAX);
        due.min(self.now.saturating_add(ticks).saturating_add(1))
    }

    fn place(&mut self, subscriber: Weak<Subscriber>, due: u64) {
        if let Some(slot) = self.slot(due) {
            slot.push(subscriber);
        }
    }

    fn slot(&mut self, tick: u64) -> Option<&mut Vec<Weak<Subscriber>>> {
        usize::try_from(tick % SLOTS)
            .ok()
            .and_then(|slot| self.slots.get_mut(slot))
    }

    /// Moves on by one tick and hands the streams whose turn it is to `visit`, and whether they
    /// have been silent for the interval. Every stream has its turn at least once an interval, and
    /// a tick after it has to end. Streams that are gone are forgotten.
    pub(super) fn advance(&mut self, mut visit: impl FnMut(&Subscriber, bool)) {
        self.now += 1;
        let due_now = self.slot(self.now).map(std::mem::take).unwrap_or_default();
        for weak in due_now {
            let Some(subscriber) = weak.upgrade() else {
                continue;
            };
            let mut due = subscriber.last_push.get() + TICKS_PER_INTERVAL;
            let is_silent = due <= self.now;
            visit(&subscriber, is_silent);
            if is_silent {
                subscriber.last_push.set(self.now);
                due = self.now + TICKS_PER_INTERVAL;
            }
            if subscriber.mailbox.borrow().end_reason().is_none() {
                due = self.or_at_end(due, &subscriber);
            }
            self.place(weak, due);
        }
    }

    /// Every open stream.
    pub(super) fn subscribers(&self) -> impl Iterator<Item = Rc<Subscriber>> {
        self.slots.iter().flatten().filter_map(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Session;
    use crate::protocol::{ControlForm, Framing};

    const INTERVAL: Duration = Duration::from_secs(32);

    /// Ticks at which heartbeats came, of `ticks`; something is pushed at the ticks `pushes`.
    fn beats(ticks: u64, pushes: &[u64]) -> Vec<u64> {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        let subscriber = Rc::new(Subscriber::new(Framing::Chunked, ControlForm::Event, None));
        wheel.insert(&subscriber);
        let start = wheel.now();
        let mut beats = Vec::new();
        for _ in 0..ticks {
            let now = wheel.now() + 1 - start;
            wheel.advance(|_, is_silent| {
                if is_silent {
                    beats.push(now);
                }
            });
            if pushes.contains(&now) {
                subscriber.last_push.set(wheel.now());
            }
        }
        beats
    }

    #[test]
    fn a_silent_stream_gets_one_an_interval_and_never_waits_longer() {
        for _ in 0..50 {
            let beats = beats(TICKS_PER_INTERVAL * 10, &[]);
            let first = beats[0];
            assert!((TICKS_PER_INTERVAL / 2..=TICKS_PER_INTERVAL).contains(&first));
            for (number, beat) in beats.iter().enumerate() {
                assert_eq!(*beat, first + number as u64 * TICKS_PER_INTERVAL);
            }
        }
    }

    #[test]
    fn silence_is_counted_from_what_was_sent_last() {
        let pushes: Vec<u64> = (0..100).map(|push| push * 10).collect();
        assert_eq!(beats(1000, &pushes), Vec::<u64>::new());
        assert_eq!(beats(60, &[10, 20]), vec![20 + TICKS_PER_INTERVAL]);
    }

    /// What is visited is compared with the clock by the hub; here only that it is, in time.
    #[test]
    fn a_stream_has_its_turn_when_it_has_to_end() {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        let (framing, control) = (Framing::Plain, ControlForm::Event);
        let expiring = |left: Duration| {
            let session = Session::new(&serde_json::Map::new(), Some(SystemTime::now() + left));
            Subscriber::new(framing, control, Some(std::sync::Arc::new(session)))
        };
        let ageing = |left: Duration| {
            let subscriber = Subscriber::new(framing, control, None);
            subscriber.ends_at.set(Some(Instant::now() + left));
            subscriber
        };
        for (seconds, due, is_ageing) in [
            (0, 1, false),
            (3, 4, false),
            (1 << 30, TICKS_PER_INTERVAL, false),
            (0, 1, true),
            (3, 4, true),
            (1 << 30, TICKS_PER_INTERVAL, true),
        ] {
            let left = Duration::from_millis(seconds * 1000 + 500);
            let subscriber = Rc::new(if is_ageing {
                ageing(left)
            } else {
                expiring(left)
            });
            wheel.insert(&subscriber);
            let mut ticks = 0;
            let mut is_visited = false;
            while !is_visited {
                ticks += 1;
                wheel.advance(|_, _| is_visited = true);
            }
            assert!(ticks <= due, "{ticks} for {seconds}");
            // It is looked at each tick until it is told that its stream ends.
            drop(subscriber);
        }
    }

    #[test]
    fn streams_that_are_gone_are_forgotten() {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        for _ in 0..100 {
            wheel.insert(&Rc::new(Subscriber::new(
                Framing::Chunked,
                ControlForm::Event,
                None,
            )));
        }
        for _ in 0..=TICKS_PER_INTERVAL {
            wheel.advance(|_, _| panic!("nobody is there"));
        }
        assert_eq!(wheel.slots.iter().map(Vec::len).sum::<usize>(), 0);
    }

    #[test]
    fn streams_opened_together_are_spread() {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        let all: Vec<_> = (0..1600)
            .map(|_| Rc::new(Subscriber::new(Framing::Chunked, ControlForm::Event, None)))
            .collect();
        all.iter().for_each(|subscriber| wheel.insert(subscriber));
        assert!(wheel.slots.iter().all(|slot| slot.len() < 200));
        assert_eq!(wheel.subscribers().count(), 1600);
    }
}
