//! Cores: a process inherits the affinity of the thread that starts it.

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins this thread, and whatever it starts from now on.
pub(crate) fn pin_to(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        ensure!(*core < CpuSet::MAX_CPU, "there is no core {core}");
        set.set(*core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("pinning to cores {cores:?}"))
}

/// Runs `start` with this thread on `cores`, so that what it starts stays there.
pub(crate) fn on_cores<T>(cores: &[usize], start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None).context("reading the affinity")?;
    pin_to(cores)?;
    let started = start();
    sched_setaffinity(None, &before).context("restoring the affinity")?;
    started
}
