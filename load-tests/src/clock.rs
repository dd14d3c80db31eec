//! The one clock of a run: `CLOCK_MONOTONIC` in nanoseconds, the same in every process of a machine,
//! so that a publish time can travel inside an event.

use std::time::Duration;

use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};

pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds of the machine's monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * NANOS_PER_SECOND + time.tv_nsec.unsigned_abs()
}

/// Returns at `deadline_ns` or as soon after it as the kernel wakes this thread.
pub(crate) fn sleep_until(deadline_ns: u64) {
    let request = Timespec {
        tv_sec: i64::try_from(deadline_ns / NANOS_PER_SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(deadline_ns % NANOS_PER_SECOND).unwrap_or(0),
    };
    // An interrupted sleep is begun again; the deadline is absolute, so nothing is added.
    while now_ns() < deadline_ns && clock_nanosleep_absolute(ClockId::Monotonic, &request).is_err()
    {
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn seconds(nanos: u64) -> f64 {
    as_f64(nanos) / as_f64(NANOS_PER_SECOND)
}

/// Counts and times here stay far below 2^53, where the conversion is exact.
#[allow(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Rounds to the nearest whole number; anything below zero becomes zero.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "float-to-integer casts saturate, which is what is wanted"
)]
pub(crate) fn whole(value: f64) -> u64 {
    value.round() as u64
}
