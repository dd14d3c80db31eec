//! What the kernel counts of this process, under the names that Prometheus' clients agree on.
//!
//! The collector of the `prometheus` crate cuts the CPU's time to whole seconds, which says nothing
//! of a few seconds' load.

use std::sync::atomic::{AtomicU64, Ordering};

use procfs::process::{LimitValue, Process, Stat};
use procfs::{boot_time_secs, page_size, ticks_per_second};
use prometheus::proto::MetricFamily;

use super::family::{counter, counters, float, gauge, label};

/// Everything that is no shard: the thread that owns Redis, the admin listener and signals, and
/// those that look up names, answer scrapes and send spans on its behalf.
const CONTROL: &str = "control";

/// The families, or those of them that can be had.
pub(super) fn families(threads: &ThreadCpu) -> Vec<MetricFamily> {
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
    families.extend(threads.family(&process));
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
    in_seconds(ticks(stat))
}

fn ticks(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}

fn in_seconds(ticks: u64) -> f64 {
    float(ticks) / float(ticks_per_second())
}

/// The CPU's time by thread: a shard is one, so one that uses a whole core is at its end.
///
/// Threads of the control runtime come and go, and what one used is gone with it. So everything
/// else is what the process has used and the shards have not.
#[derive(Debug)]
pub(super) struct ThreadCpu {
    shards: Box<[Told]>,
    control: Told,
}

/// The most ticks that were told of a thread: a counter never falls, though the kernel's numbers
/// are not all of the same moment.
#[derive(Debug, Default)]
struct Told(AtomicU64);

impl Told {
    fn at_least(&self, ticks: u64) -> u64 {
        self.0.fetch_max(ticks, Ordering::Relaxed).max(ticks)
    }
}

impl ThreadCpu {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Told::default()).collect(),
            control: Told::default(),
        }
    }

    fn family(&self, process: &Process) -> Option<MetricFamily> {
        let mut by_shard = vec![0; self.shards.len()];
        for task in process.tasks().ok()?.flatten() {
            // A thread may have ended since.
            let Ok(stat) = task.stat() else { continue };
            let number = stat.comm.strip_prefix("shard-");
            let number = number.and_then(|number| number.parse::<usize>().ok());
            if let Some(shard) = number.and_then(|number| by_shard.get_mut(number)) {
                *shard += ticks(&stat);
            }
        }
        let told = self.shards.iter().zip(by_shard);
        let by_shard: Vec<u64> = told.map(|(told, ticks)| told.at_least(ticks)).collect();
        // Read last, so that it holds all of the shards' time.
        let all = ticks(&process.stat().ok()?);
        let others = all.saturating_sub(by_shard.iter().sum());
        let control = (CONTROL.to_owned(), self.control.at_least(others));
        let shards = by_shard.into_iter().enumerate();
        let shards = shards.map(|(number, ticks)| (format!("shard-{number}"), ticks));
        Some(counters(
            "fanfare_thread_cpu_seconds_total",
            "CPU time of each shard, and of everything else together: Redis, the admin listener.",
            shards.chain([control]).map(|(thread, ticks)| {
                let labels = vec![label("thread", thread)];
                (labels, in_seconds(ticks))
            }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn control(threads: &ThreadCpu) -> f64 {
        let family = threads.family(&Process::myself().unwrap()).unwrap();
        let metrics = family.get_metric();
        metrics.last().unwrap().get_counter().get_value()
    }

    #[test]
    fn what_a_thread_has_used_stays_when_it_ends() {
        let threads = ThreadCpu::new(0);
        let before = control(&threads);
        let end = Instant::now() + Duration::from_secs(10);
        // Until the kernel has counted a tenth of a second for it.
        let told = std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                while control(&threads) < before + 0.1 && Instant::now() < end {}
                control(&threads)
            });
            work.join().unwrap()
        });
        assert!(told >= before + 0.1, "{before} {told}");
        assert!(control(&threads) >= told);
    }

    #[test]
    fn what_was_told_does_not_fall() {
        let told = Told::default();
        assert_eq!([5, 3, 7].map(|ticks| told.at_least(ticks)), [5, 5, 7]);
    }
}
