//! What the kernel counts of this process, under the names that Prometheus' clients agree on.
//!
//! The collector of the `prometheus` crate cuts the CPU's time to whole seconds, which says nothing
//! of a few seconds' load.

use procfs::process::{LimitValue, Process, Stat};
use procfs::{boot_time_secs, page_size, ticks_per_second};
use prometheus::proto::MetricFamily;

use super::family::{counter, counters, float, gauge, label};

/// The thread that owns Redis, the admin listener and signals.
const CONTROL: &str = "control";

/// The families, or those of them that can be had.
pub(super) fn families(shards: usize) -> Vec<MetricFamily> {
    let Ok(process) = Process::myself() else {
        return Vec::new();
    };
    let mut families = Vec::new();
    if let Ok(stat) = process.stat() {
        families.extend(of_stat(&stat));
    }
    if let Ok(open) = process.fd_count() {
        let help = "Open file descriptors.";
        families.push(gauge("process_open_fds", help, open as f64));
    }
    if let Ok(limits) = process.limits()
        && let LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        let help = "Most file descriptors that may be open.";
        families.push(gauge("process_max_fds", help, float(most)));
    }
    families.extend(thread_cpu(&process, shards));
    families
}

/// What this process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProcessUsage {
    pub(crate) cpu_seconds: f64,
    pub(crate) memory_bytes: u64,
}

/// Reads it; nothing where the kernel does not say.
pub(crate) fn process_usage() -> ProcessUsage {
    let stat = Process::myself().and_then(|process| process.stat());
    stat.map_or_else(
        |_| ProcessUsage::default(),
        |stat| ProcessUsage {
            cpu_seconds: seconds(&stat),
            memory_bytes: stat.rss * page_size(),
        },
    )
}

fn of_stat(stat: &Stat) -> Vec<MetricFamily> {
    let mut families = vec![
        counter(
            "process_cpu_seconds_total",
            "User and system CPU time.",
            seconds(stat),
        ),
        gauge(
            "process_resident_memory_bytes",
            "Resident memory.",
            float(stat.rss * page_size()),
        ),
        gauge(
            "process_virtual_memory_bytes",
            "Virtual memory.",
            float(stat.vsize),
        ),
    ];
    if let Ok(booted) = boot_time_secs() {
        let after_boot = float(stat.starttime) / float(ticks_per_second());
        families.push(gauge(
            "process_start_time_seconds",
            "Start of the process, in Unix time.",
            float(booted) + after_boot,
        ));
    }
    families
}

fn seconds(stat: &Stat) -> f64 {
    float(stat.utime + stat.stime) / float(ticks_per_second())
}

/// The CPU's time by thread: a shard is one, so one that uses a whole core is at its end.
fn thread_cpu(process: &Process, shards: usize) -> Option<MetricFamily> {
    let mut control = 0.0;
    let mut by_shard = vec![0.0; shards];
    for task in process.tasks().ok()?.flatten() {
        // A thread may have ended since.
        let Ok(stat) = task.stat() else { continue };
        let shard = stat
            .comm
            .strip_prefix("shard-")
            .and_then(|n| n.parse().ok());
        let shard = shard.and_then(|number: usize| by_shard.get_mut(number));
        // The others look up names and answer scrapes, on behalf of the control runtime.
        *shard.unwrap_or(&mut control) += seconds(&stat);
    }
    let shards = by_shard.into_iter().enumerate();
    let shards = shards.map(|(number, seconds)| (format!("shard-{number}"), seconds));
    let threads = shards.chain([(CONTROL.to_owned(), control)]);
    Some(counters(
        "fanfare_thread_cpu_seconds_total",
        "CPU time of each shard, and of everything else: Redis, the admin listener.",
        threads.map(|(thread, seconds)| (vec![label("thread", thread)], seconds)),
    ))
}
