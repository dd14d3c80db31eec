//! Whether the shards' threads turn, for those who start a gateway anew that hangs: the service
//! manager (`Type=notify`, `sd_notify(3)`), which is told that the gateway serves, that it stops and,
//! as long as it is true, that its threads turn; and whoever asks `/livez`.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) nobody is told anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

/// A thread that has not turned for so long hangs. A service manager has a time of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks in the time that hanging takes: one that finds nothing new is no end.
const LOOKS_IN_TIME: u32 = 3;

/// How long a thread may stand still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    /// The service manager's, where one watches, so that both say the same.
    pub(crate) fn here() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        // Zero, which systemd does not say, is no time to look in.
        Self(watchdog.filter(|time| !time.is_zero()).unwrap_or(PATIENCE))
    }

    fn between_looks(self) -> Duration {
        self.0 / LOOKS_IN_TIME
    }

    /// Twice as often as it is looked at, so that a look finds a new one.
    fn between_beats(self) -> Duration {
        self.between_looks() / 2
    }
}

/// Counted up by a thread that turns. Each has its own, and writes it a few times a minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Counts on a shard's own thread, for ever: a task that holds up the others on the thread
    /// holds this one up too.
    pub(crate) async fn beat(self, patience: Patience) {
        let mut beats = interval(patience.between_beats());
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How many shards hang: written by [`watch`], read by `/livez`.
#[derive(Clone, Debug, Default)]
pub struct Hanging(Arc<AtomicUsize>);

impl Hanging {
    /// Shards that have not turned for as long as it takes.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is known of a pulse.
struct Watched {
    pulse: Pulse,
    seen: u64,
    /// Looks, one after the other, that found nothing new. Looks, and not time: a process that was
    /// stopped as a whole (a debugger, a machine that slept) has not hung when it goes on.
    idle_looks: u32,
}

/// What is known of all pulses.
struct Watchdog(Vec<Watched>);

impl Watchdog {
    fn new(pulses: Vec<Pulse>) -> Self {
        let watched = |pulse| Watched {
            pulse,
            seen: 0,
            idle_looks: 0,
        };
        Self(pulses.into_iter().map(watched).collect())
    }

    fn look(&mut self) {
        for watched in &mut self.0 {
            let now = watched.pulse.0.load(Ordering::Relaxed);
            watched.idle_looks = if now == watched.seen {
                watched.idle_looks.saturating_add(1)
            } else {
                0
            };
            watched.seen = now;
        }
    }

    /// The numbers of those that have not turned for so many looks.
    fn idle_for(&self, looks: u32) -> Vec<usize> {
        let shards = self.0.iter().enumerate();
        shards
            .filter(|(_, watched)| watched.idle_looks >= looks)
            .map(|(number, _)| number)
            .collect()
    }
}

/// Looks at the pulses for ever. The service manager is told each time that all threads have turned,
/// the control runtime by running at all; when it is told nothing for its time, it starts the
/// gateway anew.
pub(crate) async fn watch(pulses: Vec<Pulse>, patience: Patience, hanging: Hanging) {
    let is_watched = sd_notify::watchdog_enabled().is_some();
    let mut watchdog = Watchdog::new(pulses);
    let pause = patience.between_looks();
    let mut looks = interval_at(Instant::now() + pause, pause);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        watchdog.look();
        let shards = watchdog.idle_for(LOOKS_IN_TIME).len();
        hanging.0.store(shards, Ordering::Relaxed);
        let idle = watchdog.idle_for(1);
        if !idle.is_empty() {
            tracing::warn!(shards = ?idle, "shard threads stalled");
        } else if is_watched {
            // One after the other: what is not read does not pile up here.
            let _ = tell([NotifyState::Watchdog]).await;
        }
    }
}

/// Streams are served.
pub(crate) fn ready() {
    tell([NotifyState::Ready]);
}

/// A drain of at most `longest` begins. The service manager waits that long, whatever its unit says.
pub(crate) fn stopping(longest: Duration) {
    let microseconds = u32::try_from(longest.as_micros()).unwrap_or(u32::MAX);
    tell([
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(microseconds),
    ]);
}

/// On a thread where it may wait: sending blocks while the service manager does not read, and that is
/// no reason for the control runtime to stand still.
fn tell(state: impl AsRef<[NotifyState<'static>]> + Send + 'static) -> JoinHandle<()> {
    spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(state.as_ref()) {
            tracing::warn!(%error, "notifying the service manager failed");
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn one_thread_that_stands_still_is_seen_at_once_and_hangs_after_some_looks() {
        let pulses = [Pulse::default(), Pulse::default()];
        let turn = |number: usize| pulses[number].0.fetch_add(1, Ordering::Relaxed);
        let mut watchdog = Watchdog::new(pulses.to_vec());
        turn(0);
        turn(1);
        watchdog.look();
        assert!(watchdog.idle_for(1).is_empty());
        for looks in 1..=LOOKS_IN_TIME {
            turn(0);
            watchdog.look();
            assert_eq!(watchdog.idle_for(1), [1]);
            assert_eq!(
                watchdog.idle_for(LOOKS_IN_TIME).is_empty(),
                looks < LOOKS_IN_TIME
            );
        }
        turn(0);
        turn(1);
        watchdog.look();
        assert!(watchdog.idle_for(1).is_empty());
    }

    #[tokio::test]
    async fn a_shard_that_stops_beating_hangs_until_it_beats_again() {
        let patience = Patience(Duration::from_millis(60));
        let (turning, stuck) = (Pulse::default(), Pulse::default());
        let hanging = Hanging::default();
        tokio::spawn(turning.clone().beat(patience));
        let beating = tokio::spawn(stuck.clone().beat(patience));
        let pulses = vec![turning, stuck.clone()];
        tokio::spawn(watch(pulses, patience, hanging.clone()));
        let until = async |shards| {
            let reached = async {
                while hanging.shards() != shards {
                    yield_now().await;
                }
            };
            timeout(Duration::from_secs(30), reached).await.unwrap();
        };
        beating.abort();
        until(1).await;
        tokio::spawn(stuck.beat(patience));
        until(0).await;
    }
}
