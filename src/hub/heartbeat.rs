//! One sweep for all heartbeats of a shard, instead of a timer a connection.
//!
//! A wheel of slots, each a tick long. A connection is in the slot
//! in which it would have been silent for its interval; when the sweep comes there and finds that
//! something was sent meanwhile, it only moves the connection on. So each connection is looked at
//! about once an interval, whatever it is sent; and one that has to end within it (its token
//! expires, it is old enough), then too.

use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::subscriber::Subscriber;

/// Ticks in the configured heartbeat interval, or more: silence is measured this finely.
const TICKS_PER_INTERVAL: u32 = 32;

/// A tick is at most an eighth of the shortest interval that a stream may ask for.
const LONGEST_TICK: Duration = Duration::from_millis(250);

/// The longest interval that a stream may ask for. It decides how many slots there are: 240, or at most
/// 20,000 with the shortest and 14,400 with the longest interval of the configuration.
const LONGEST_OWN_INTERVAL: Duration = Duration::from_secs(60);

/// Every open stream of the shard, by when it is due.
pub(super) struct HeartbeatWheel {
    slots: Vec<Vec<Weak<Subscriber>>>,
    /// Ticks since the start.
    now: u64,
    tick: Duration,
    /// The configured interval, in ticks.
    interval: u64,
    /// The longest interval, in ticks.
    longest: u64,
}

impl HeartbeatWheel {
    /// A wheel for heartbeats at this interval, where a stream does not ask for another.
    pub(super) fn new(heartbeat: Duration) -> Self {
        let tick = (heartbeat / TICKS_PER_INTERVAL).clamp(Duration::from_millis(1), LONGEST_TICK);
        let longest = whole_ticks(heartbeat.max(LONGEST_OWN_INTERVAL), tick);
        Self {
            tick,
            // One more, so that the slot being swept is never one being filled.
            slots: (0..=longest).map(|_| Vec::new()).collect(),
            // So that a time before the start can be told.
            now: longest,
            interval: whole_ticks(heartbeat, tick),
            longest,
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

    /// Adds a stream just opened, with an interval of its own or the configured one. Its first heartbeat comes at a random time in the second half
    /// of the interval, so that streams opened together are not swept together for ever.
    pub(super) fn insert(&mut self, subscriber: &Rc<Subscriber>, own: Option<Duration>) {
        let interval = own.map_or(self.interval, |own| {
            whole_ticks(own, self.tick).min(self.longest)
        });
        subscriber.interval.set(interval);
        let early = fastrand::u64(0..=interval / 2);
        subscriber.last_push.set(self.now - early);
        let due = self.now + interval - early;
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
        usize::try_from(tick % (self.longest + 1))
            .ok()
            .and_then(|slot| self.slots.get_mut(slot))
    }

    /// Moves on by one tick and hands the streams whose turn it is to `visit`, and whether they
    /// have been silent for their interval. Every stream has its turn at least once in its interval, and
    /// a tick after it has to end. Streams that are gone are forgotten.
    pub(super) fn advance(&mut self, mut visit: impl FnMut(&Subscriber, bool)) {
        self.now += 1;
        let due_now = self.slot(self.now).map(std::mem::take).unwrap_or_default();
        for weak in due_now {
            let Some(subscriber) = weak.upgrade() else {
                continue;
            };
            let interval = subscriber.interval.get();
            let mut due = subscriber.last_push.get() + interval;
            let is_silent = due <= self.now;
            visit(&subscriber, is_silent);
            if is_silent {
                subscriber.last_push.set(self.now);
                due = self.now + interval;
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

/// The ticks that pass within a time, at least one.
fn whole_ticks(time: Duration, tick: Duration) -> u64 {
    let ticks = time.as_nanos() / tick.as_nanos();
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Session;
    use crate::protocol::{ControlForm, Framing};

    /// As long as 32 ticks of the longest.
    const INTERVAL: Duration = Duration::from_secs(8);
    const TICKS: u64 = TICKS_PER_INTERVAL as u64;

    /// Ticks at which heartbeats came, of `ticks`; something is pushed at the ticks `pushes`.
    fn beats(ticks: u64, pushes: &[u64]) -> Vec<u64> {
        own_beats(None, ticks, pushes)
    }

    /// The same, of a stream that may have an interval of its own.
    fn own_beats(own: Option<Duration>, ticks: u64, pushes: &[u64]) -> Vec<u64> {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        let subscriber = Rc::new(Subscriber::new(Framing::Chunked, ControlForm::Event, None));
        wheel.insert(&subscriber, own);
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
            let beats = beats(TICKS * 10, &[]);
            let first = beats[0];
            assert!((TICKS / 2..=TICKS).contains(&first));
            for (number, beat) in beats.iter().enumerate() {
                assert_eq!(*beat, first + number as u64 * TICKS);
            }
        }
    }

    #[test]
    fn a_stream_has_an_interval_of_its_own() {
        for (seconds, ticks) in [(2, 8), (5, 20), (60, 240)] {
            let own = Some(Duration::from_secs(seconds));
            let beats = own_beats(own, ticks * 10, &[]);
            assert!((ticks / 2..=ticks).contains(&beats[0]), "{beats:?}");
            let apart = beats.windows(2).all(|pair| pair[1] - pair[0] == ticks);
            assert!(apart && beats.len() >= 9, "{beats:?}");
            // More often than half of the shortest interval, after which the first beat may be due.
            let pushes: Vec<u64> = (0..ticks * 10).step_by(3).collect();
            assert_eq!(own_beats(own, ticks * 10, &pushes), Vec::<u64>::new());
        }
    }

    /// Whatever the configured interval is: never later than asked, and not much earlier.
    #[test]
    fn every_interval_fits_every_configuration() {
        for configured in [100, 333, 1_000, 15_000, 60_000, 3_600_000] {
            let configured = Duration::from_millis(configured);
            let mut wheel = HeartbeatWheel::new(configured);
            assert!(wheel.slots.len() < 20_000, "{}", wheel.slots.len());
            for own in [None, Some(2), Some(59), Some(60)] {
                let own = own.map(Duration::from_secs);
                let subscriber = Rc::new(Subscriber::new(Framing::Plain, ControlForm::Event, None));
                wheel.insert(&subscriber, own);
                let ticks = u32::try_from(subscriber.interval.get()).unwrap();
                let (found, asked) = (wheel.tick * ticks, own.unwrap_or(configured));
                assert!(
                    found <= asked && found + wheel.tick > asked,
                    "{found:?} {asked:?}"
                );
            }
        }
    }

    #[test]
    fn silence_is_counted_from_what_was_sent_last() {
        let pushes: Vec<u64> = (0..100).map(|push| push * 10).collect();
        assert_eq!(beats(1000, &pushes), Vec::<u64>::new());
        assert_eq!(beats(60, &[10, 20]), vec![20 + TICKS]);
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
        for (ticks_left, due, is_ageing) in [
            (0, 1, false),
            (3, 4, false),
            (1 << 30, TICKS, false),
            (0, 1, true),
            (3, 4, true),
            (1 << 30, TICKS, true),
        ] {
            let left = LONGEST_TICK * ticks_left + LONGEST_TICK / 2;
            let subscriber = Rc::new(if is_ageing {
                ageing(left)
            } else {
                expiring(left)
            });
            wheel.insert(&subscriber, None);
            let mut ticks = 0;
            let mut is_visited = false;
            while !is_visited {
                ticks += 1;
                wheel.advance(|_, _| is_visited = true);
            }
            assert!(ticks <= due, "{ticks} for {ticks_left}");
            // It is looked at each tick until it is told that its stream ends.
            drop(subscriber);
        }
    }

    #[test]
    fn streams_that_are_gone_are_forgotten() {
        let mut wheel = HeartbeatWheel::new(INTERVAL);
        for _ in 0..100 {
            let subscriber = Subscriber::new(Framing::Chunked, ControlForm::Event, None);
            wheel.insert(&Rc::new(subscriber), None);
        }
        for _ in 0..=TICKS {
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
        all.iter()
            .for_each(|subscriber| wheel.insert(subscriber, None));
        assert!(wheel.slots.iter().all(|slot| slot.len() < 200));
        assert_eq!(wheel.subscribers().count(), 1600);
    }
}
