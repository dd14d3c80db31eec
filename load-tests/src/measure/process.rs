//! CPU time and memory of given processes and everything they started, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::clock::{as_f64, now_ns};

/// `utime` and `stime` come in hundredths of a second on every Linux that this runs on (`USER_HZ`).
const NANOS_PER_CLOCK_TICK: u64 = 10_000_000;

/// The processes of a server: those named, and their descendants when asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerProcesses {
    roots: Vec<u32>,
}

/// CPU time so far, process by process.
#[derive(Clone, Debug)]
pub(crate) struct CpuTimes {
    at_ns: u64,
    processes: BTreeMap<u32, ProcessTime>,
}

#[derive(Clone, Debug, Default)]
struct ProcessTime {
    /// Run time of each thread that is there, to the nanosecond (`schedstat`).
    threads: BTreeMap<u32, u64>,
    /// All threads, ended ones too, to the clock tick.
    total_ns: u64,
}

/// Memory of all processes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Pages in memory; those shared by several processes count in each.
    pub(crate) resident_bytes: u64,
    /// The same with shared pages counted once.
    pub(crate) proportional_bytes: u64,
}

impl ServerProcesses {
    pub(crate) fn new(roots: Vec<u32>) -> Result<Self> {
        for pid in &roots {
            ensure!(
                fs::exists(format!("/proc/{pid}/stat"))?,
                "there is no process {pid}"
            );
        }
        Ok(Self { roots })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The processes named and everything they started.
    pub(crate) fn all(&self) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        let mut queue = self.roots.clone();
        while let Some(pid) = queue.pop() {
            if !all.insert(pid) {
                continue;
            }
            for thread in numbers_in(&format!("/proc/{pid}/task")) {
                let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"))
                    .unwrap_or_default();
                queue.extend(
                    children
                        .split_whitespace()
                        .filter_map(|child| child.parse::<u32>().ok()),
                );
            }
        }
        all
    }

    pub(crate) fn cpu(&self) -> CpuTimes {
        let processes = self
            .all()
            .into_iter()
            .map(|pid| (pid, process_time(pid)))
            .collect();
        CpuTimes {
            at_ns: now_ns(),
            processes,
        }
    }

    /// `None` without processes to look at, or when none can be read.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let mut sum = None;
        for pid in self.all() {
            let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let sum = sum.get_or_insert(Memory::default());
            sum.resident_bytes += kilobytes(&rollup, "Rss:") * 1024;
            sum.proportional_bytes += kilobytes(&rollup, "Pss:") * 1024;
        }
        sum
    }

    /// Descriptors that all of them together may hold.
    pub(crate) fn descriptor_limit(&self) -> Result<u64> {
        let mut sum: u64 = 0;
        for pid in self.all() {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits"))
                .with_context(|| format!("process {pid}"))?;
            let soft = limits
                .lines()
                .find_map(|line| line.strip_prefix("Max open files"))
                .and_then(|line| line.split_whitespace().next()?.parse().ok());
            sum = sum.saturating_add(soft.unwrap_or(u64::MAX));
        }
        Ok(sum)
    }
}

impl CpuTimes {
    /// CPU nanoseconds spent since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> u64 {
        self.processes
            .iter()
            .map(|(pid, now)| now.since(earlier.processes.get(pid)))
            .sum()
    }

    /// CPU seconds a second since `earlier`.
    pub(crate) fn load_since(&self, earlier: &Self) -> f64 {
        as_f64(self.since(earlier)) / as_f64((self.at_ns - earlier.at_ns).max(1))
    }
}

impl ProcessTime {
    fn since(&self, earlier: Option<&Self>) -> u64 {
        let Some(earlier) = earlier else {
            return self.total_ns;
        };
        let threads_ended = earlier
            .threads
            .keys()
            .any(|thread| !self.threads.contains_key(thread));
        if threads_ended || self.threads.is_empty() {
            return self.total_ns.saturating_sub(earlier.total_ns);
        }
        let before = |thread| earlier.threads.get(thread).copied().unwrap_or(0);
        self.threads
            .iter()
            .map(|(thread, time)| time.saturating_sub(before(thread)))
            .sum()
    }
}

fn process_time(pid: u32) -> ProcessTime {
    let first_number = |path: String| -> Option<u64> {
        fs::read_to_string(path)
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let threads = numbers_in(&format!("/proc/{pid}/task"))
        .into_iter()
        .filter_map(|thread| {
            Some((
                thread,
                first_number(format!("/proc/{pid}/task/{thread}/schedstat"))?,
            ))
        })
        .collect();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, in brackets, may hold anything: count from the last bracket (proc(5)).
    let ticks: u64 = stat
        .rsplit_once(')')
        .map_or("", |(_, after)| after)
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    ProcessTime {
        threads,
        total_ns: ticks * NANOS_PER_CLOCK_TICK,
    }
}

fn numbers_in(folder: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn kilobytes(rollup: &str, name: &str) -> u64 {
    rollup
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_shows_as_cpu_time_and_memory() {
        let processes = ServerProcesses::new(vec![std::process::id()]).unwrap();
        let before = processes.cpu();
        let start_ns = now_ns();
        while now_ns() < start_ns + 50_000_000 {}
        let spent_ns = processes.cpu().since(&before);
        assert!(spent_ns > 5_000_000, "{spent_ns} ns for 50 ms of work");
        let memory = processes.memory().unwrap();
        assert!(
            memory.resident_bytes >= memory.proportional_bytes && memory.proportional_bytes > 0
        );
        assert!(processes.descriptor_limit().unwrap() > 0);
    }

    #[test]
    fn a_process_that_is_not_there_is_refused() {
        assert!(ServerProcesses::new(vec![u32::MAX]).is_err());
    }
}
