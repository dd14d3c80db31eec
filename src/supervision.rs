//! What the service manager is told (`Type=notify`, `sd_notify(3)`): that the gateway serves, that
//! it stops, and, as long as it is true, that its threads turn.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) all of it does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

/// Beats in the time that the service manager waits for one: a late one is no end.
const BEATS_IN_TIME: u32 = 3;

/// Counted up by a thread that turns. Each has its own, and writes it a few times a minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Counts on a shard's own thread, for ever: a task that holds up the others on the thread
    /// holds this one up too. Does nothing where no service manager waits for it.
    pub(crate) async fn beat(self) {
        let Some(time) = sd_notify::watchdog_enabled() else {
            return std::future::pending().await;
        };
        // Twice as often as it is looked at, so that a look finds a new one.
        let mut beats = interval(time / (BEATS_IN_TIME * 2));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What is known of the pulses.
struct Watchdog {
    pulses: Vec<(Pulse, u64)>,
}

impl Watchdog {
    fn new(pulses: Vec<Pulse>) -> Self {
        let pulses = pulses.into_iter().map(|pulse| (pulse, 0)).collect();
        Self { pulses }
    }

    /// Whether every thread has counted since the last time all had.
    fn all_turn(&mut self) -> bool {
        let now = |pulse: &Pulse| pulse.0.load(Ordering::Relaxed);
        let all = self.pulses.iter().all(|(pulse, seen)| now(pulse) != *seen);
        if all {
            for (pulse, seen) in &mut self.pulses {
                *seen = now(pulse);
            }
        }
        all
    }
}

/// Tells the service manager, a third of its time apart, that the shards' threads turn, and by
/// running at all that the control runtime does. One that hangs is not told of, and the service
/// manager starts the gateway anew.
pub(crate) async fn watch(pulses: Vec<Pulse>) {
    let Some(time) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut watchdog = Watchdog::new(pulses);
    let pause = time / BEATS_IN_TIME;
    let mut looks = interval_at(Instant::now() + pause, pause);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if watchdog.all_turn() {
            // One after the other: what is not read does not pile up here.
            let _ = tell([NotifyState::Watchdog]).await;
        } else {
            tracing::warn!("a shard's thread has not turned since the last look");
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
            tracing::warn!(%error, "the service manager cannot be told");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_that_hangs_stops_the_watchdog_until_it_turns_again() {
        let pulses = [Pulse::default(), Pulse::default()];
        let turn = |number: usize| pulses[number].0.fetch_add(1, Ordering::Relaxed);
        let mut watchdog = Watchdog::new(pulses.to_vec());
        assert!(!watchdog.all_turn());
        turn(0);
        turn(1);
        assert!(watchdog.all_turn());
        turn(0);
        turn(0);
        assert!(!watchdog.all_turn());
        turn(1);
        assert!(watchdog.all_turn());
    }
}
