//! The results of a run, as they are written to JSON.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::{as_f64, seconds};
use crate::measure::gateway::Counters;
use crate::measure::memory::Sample;
use crate::worker::messages::Faults;

/// Everything a run found out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunResult {
    pub(crate) scenario: &'static str,
    pub(crate) clients: u32,
    pub(crate) channels: u32,
    pub(crate) channels_per_client: u32,
    pub(crate) event_bytes: u32,
    pub(crate) client_processes: u32,
    pub(crate) connecting: ConnectResult,
    pub(crate) phases: Vec<PhaseResult>,
    pub(crate) memory: Option<MemoryResult>,
    pub(crate) samples: Vec<Sample>,
    /// Why the run has failed; empty: it has not.
    pub(crate) problems: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ConnectResult {
    /// First `connect` to last head.
    pub(crate) seconds: f64,
    pub(crate) head: Latency,
    pub(crate) errors: u64,
    pub(crate) turned_away: u64,
    /// Server CPU a connection, from the first `connect` to the last head.
    pub(crate) cpu_micros_per_connection: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PhaseResult {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    pub(crate) offered_events_per_second: f64,
    pub(crate) offered_deliveries_per_second: f64,
    pub(crate) published: u64,
    /// How late events were written, in the publisher itself.
    pub(crate) publish_lag: Latency,
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    /// Deliveries while events were offered, by the time they were offered.
    pub(crate) delivered_per_second: f64,
    pub(crate) received_bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) cpu: Option<CpuResult>,
    pub(crate) faults: Faults,
    pub(crate) heartbeats: u64,
    pub(crate) gaps: u64,
    pub(crate) churned: u64,
    pub(crate) slow_closed: u64,
    /// Resuming: from the first reconnect until all were live: back, with all that was due until
    /// the last one was.
    pub(crate) caught_up_seconds: Option<f64>,
    /// What the gateways themselves counted meanwhile.
    pub(crate) gateway: Option<Counters>,
    /// Deliveries a second, ten values a second.
    pub(crate) throughput: Vec<f64>,
}

/// In milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// Percentile and milliseconds, for the plot.
    pub(crate) curve: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CpuResult {
    /// From the first event due until all were delivered.
    pub(crate) seconds: f64,
    /// CPU seconds a second meanwhile.
    pub(crate) load: f64,
    pub(crate) micros_per_delivery: Option<f64>,
    pub(crate) micros_per_event: Option<f64>,
}

/// Bytes of all server processes together, shared pages counted once.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct MemoryResult {
    pub(crate) before: u64,
    pub(crate) connected: u64,
    pub(crate) bytes_per_connection: f64,
    pub(crate) peak: u64,
    pub(crate) after_leaving: u64,
}

const MILLIS: f64 = 1e6;

/// Where the curve is drawn: ever nearer to 100 %.
const CURVE_HALVINGS: i32 = 17;
const CURVE_STEPS_A_HALVING: i32 = 4;

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile: f64| as_f64(histogram.value_at_quantile(quantile)) / MILLIS;
        let curve = (0..CURVE_HALVINGS * CURVE_STEPS_A_HALVING)
            .map(|step| 1.0 - 0.5_f64.powf(f64::from(step) / f64::from(CURVE_STEPS_A_HALVING)))
            .map(|quantile| (quantile * 100.0, at(quantile)))
            .collect();
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: as_f64(histogram.max()) / MILLIS,
            curve,
        }
    }
}

impl CpuResult {
    pub(crate) fn new(cpu_ns: u64, load: f64, delivered: u64, events: u64) -> Self {
        let each = |count: u64| (count > 0).then(|| as_f64(cpu_ns) / 1e3 / as_f64(count));
        Self {
            seconds: seconds(cpu_ns),
            load,
            micros_per_delivery: each(delivered),
            micros_per_event: each(events),
        }
    }
}

impl RunResult {
    pub(crate) fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}
