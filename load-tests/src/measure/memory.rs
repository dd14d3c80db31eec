//! Memory over a run: samples, and what is read out of them.

use serde::Serialize;

use crate::clock::{as_f64, now_ns, seconds};
use crate::measure::process::ServerProcesses;

/// Growth that a flat memory may show: allocators and page tables are never quite still.
const FLAT_WITHIN: f64 = 0.05;
const FLAT_WITHIN_BYTES: f64 = (1 << 20) as f64;

/// One look at the servers' memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) at_seconds: f64,
    pub(crate) connections: u32,
    pub(crate) resident_bytes: u64,
    pub(crate) proportional_bytes: u64,
}

/// Takes samples; none without processes to look at.
#[derive(Debug)]
pub(crate) struct Sampler {
    processes: ServerProcesses,
    start_ns: u64,
    last_ns: u64,
    pub(crate) samples: Vec<Sample>,
}

impl Sampler {
    pub(crate) fn new(processes: ServerProcesses) -> Self {
        let mut sampler = Self {
            processes,
            start_ns: now_ns(),
            last_ns: 0,
            samples: Vec::new(),
        };
        sampler.sample(0);
        sampler
    }

    /// A sample now, whatever the last one's time.
    pub(crate) fn sample(&mut self, connections: u32) -> Option<Sample> {
        let memory = self.processes.memory()?;
        self.last_ns = now_ns();
        let sample = Sample {
            at_seconds: seconds(self.last_ns - self.start_ns),
            connections,
            resident_bytes: memory.resident_bytes,
            proportional_bytes: memory.proportional_bytes,
        };
        self.samples.push(sample);
        Some(sample)
    }

    /// A sample if the last one is at least `every_ns` old.
    pub(crate) fn sample_every(&mut self, every_ns: u64, connections: u32) {
        if now_ns() >= self.last_ns + every_ns {
            self.sample(connections);
        }
    }

    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        self.samples
            .iter()
            .map(|sample| sample.proportional_bytes)
            .max()
    }
}

/// Says by how much memory grew between the second and the last quarter of `samples`, if it did.
pub(crate) fn growth(samples: &[Sample]) -> Option<String> {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        return None;
    }
    let median = |part: &[Sample]| {
        let mut bytes: Vec<u64> = part
            .iter()
            .map(|sample| sample.proportional_bytes)
            .collect();
        bytes.sort_unstable();
        as_f64(bytes.get(bytes.len() / 2).copied().unwrap_or(0))
    };
    let early = median(samples.get(quarter..2 * quarter)?);
    let late = median(samples.get(samples.len() - quarter..)?);
    let grown = late - early;
    (grown > FLAT_WITHIN_BYTES && grown > early * FLAT_WITHIN).then(|| {
        format!(
            "memory grew from {:.1} to {:.1} MiB",
            early / FLAT_WITHIN_BYTES,
            late / FLAT_WITHIN_BYTES
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(mebibytes: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        let sample = |mebibytes: u64| Sample {
            at_seconds: 0.0,
            connections: 1,
            resident_bytes: 0,
            proportional_bytes: mebibytes << 20,
        };
        mebibytes.into_iter().map(sample).collect()
    }

    #[test]
    fn a_leak_is_told_from_a_warm_up() {
        assert_eq!(
            growth(&samples([10, 50, 100, 100, 100, 101, 100, 102])),
            None
        );
        assert_eq!(
            growth(&samples((0..100).map(|step| 100 + step))).unwrap(),
            "memory grew from 137.0 to 187.0 MiB"
        );
        assert_eq!(growth(&samples([1, 2, 3])), None);
    }
}
