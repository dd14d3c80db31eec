//! What a replica does per second, from two of its reports.

use super::latency::Latency;
use super::report::Report;

/// What a replica does per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) live: f64,
    pub(super) kept: f64,
    pub(super) delivered: f64,
    pub(super) sent: f64,
    pub(super) opened: f64,
    pub(super) closed: f64,
    pub(super) cpu: f64,
    pub(super) p99: Option<f64>,
}

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    /// What `after` has counted since `before`.
    pub(super) fn between(before: &Report, after: &Report) -> Self {
        let seconds = after.uptime_ms.saturating_sub(before.uptime_ms).max(1) as f64 / 1e3;
        let rate = |of: fn(&Report) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        let mut latency = Latency::default();
        latency.add_between(&before.latency, &after.latency);
        Self {
            live: rate(|report| report.live),
            kept: rate(|report| report.kept),
            delivered: rate(|report| report.delivered),
            sent: rate(|report| report.sent_bytes),
            opened: rate(|report| report.opened),
            closed: rate(|report| report.closed),
            cpu: rate(|report| report.cpu_ms) / 1e3,
            p99: latency.quantile(0.99),
        }
    }
}
