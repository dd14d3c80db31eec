//! Whether the machine has something else to do: figures from a busy one are no figures.

use std::fs;

use anyhow::{Context, Result};

use crate::clock::{NANOS_PER_SECOND, as_f64, now_ns, sleep_until};

const LOOK_FOR_NS: u64 = NANOS_PER_SECOND / 4;
/// Above it a run is marked.
const QUIET: f64 = 0.1;

/// The share of all cores' time that was used during a quarter of a second, by whatever.
pub(crate) fn busy_share() -> Result<f64> {
    let (busy_before, all_before) = times()?;
    sleep_until(now_ns() + LOOK_FOR_NS);
    let (busy, all) = times()?;
    Ok(as_f64(busy - busy_before) / as_f64((all - all_before).max(1)))
}

pub(crate) fn is_quiet(busy_share: f64) -> bool {
    busy_share <= QUIET
}

/// Busy and all clock ticks of all cores since boot (proc_stat(5)).
fn times() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|tick| tick.parse().ok())
        .collect();
    let all = ticks.iter().sum();
    // Idle, and idle while a disk is waited for.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}
