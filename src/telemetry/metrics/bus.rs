//! What the control runtime counts: the bus, and publishing over HTTP.

use prometheus::{
    Histogram, IntCounter, IntGauge, IntGaugeVec, Registry, register_histogram_with_registry,
    register_int_counter_with_registry, register_int_gauge_vec_with_registry,
    register_int_gauge_with_registry,
};

use super::counter_by::CounterBy;
use crate::labels::Labels;
use crate::telemetry::reasons::{DownCause, DropReason, EventKind, PublishOutcome};

/// What the bus counts; [occurrences](crate::telemetry::occurrences) write it.
#[derive(Clone, Debug)]
pub struct BusMetrics {
    received: CounterBy<EventKind>,
    dropped: CounterBy<DropReason>,
    published: CounterBy<(EventKind, PublishOutcome)>,
    pub(in crate::telemetry) history_reads: IntCounter,
    pub(in crate::telemetry) backfilled: IntCounter,
    up: IntGauge,
    down: IntGaugeVec,
    pub(in crate::telemetry) keeps: IntGauge,
    /// 1 while Redis may evict histories, or does not say.
    pub(crate) may_evict: IntGauge,
    pub(in crate::telemetry) losses: IntCounter,
    pub(in crate::telemetry) reconnects: IntCounter,
    pub(in crate::telemetry) refused_channels: IntCounter,
    pub(in crate::telemetry) probe_seconds: Histogram,
}

impl BusMetrics {
    /// Registers everything but the dropped events, a family that the shards have a part in.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            received: CounterBy::register(
                "fanfare_events_received_total",
                "Events that this replica received from the bus for channels with interest, those dropped afterwards included.",
                registry,
            )?,
            dropped: CounterBy::unregistered("fanfare_events_dropped_total", "Events dropped.")?,
            published: CounterBy::register(
                "fanfare_events_published_total",
                "Events published over HTTP, at this replica.",
                registry,
            )?,
            history_reads: register_int_counter_with_registry!(
                "fanfare_history_reads_total",
                "Reads of history sent to Redis.",
                registry,
            )?,
            backfilled: register_int_counter_with_registry!(
                "fanfare_backfilled_events_total",
                "Kept events that the subscription missed and that were read from history.",
                registry,
            )?,
            up: register_int_gauge_with_registry!(
                "fanfare_redis_up",
                "1 while a probe has proven the subscriber connection; 0 on the embedded bus.",
                registry,
            )?,
            down: register_int_gauge_vec_with_registry!(
                "fanfare_redis_down",
                "1 for what keeps events from arriving; 0 on the embedded bus.",
                &DownCause::names(),
                registry,
            )?,
            keeps: register_int_gauge_with_registry!(
                "fanfare_redis_keeps_events",
                "1 while Redis takes kept events, as far as is known; 0 on the embedded bus.",
                registry,
            )?,
            may_evict: register_int_gauge_with_registry!(
                "fanfare_redis_may_evict",
                "1 while Redis may evict histories to save memory, or does not say; 0 on the embedded bus.",
                registry,
            )?,
            losses: register_int_counter_with_registry!(
                "fanfare_redis_losses_total",
                "Times that events stopped arriving: a proven subscriber connection was lost.",
                registry,
            )?,
            reconnects: register_int_counter_with_registry!(
                "fanfare_redis_reconnects_total",
                "Subscriber connections that were lost or could not be made.",
                registry,
            )?,
            refused_channels: register_int_counter_with_registry!(
                "fanfare_redis_refused_channels_total",
                "Subscriptions to a channel that Redis refused.",
                registry,
            )?,
            probe_seconds: register_histogram_with_registry!(
                "fanfare_redis_probe_seconds",
                "From publishing a probe to receiving it.",
                // Up to the deadline, after which the connection is replaced.
                vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
                ],
                registry,
            )?,
        };
        for cause in DownCause::all() {
            metrics.down.with_label_values(&[cause.label()]);
        }
        Ok(metrics)
    }

    /// Events received.
    pub fn received(&self, kind: EventKind) -> IntCounter {
        self.received.get(kind)
    }

    /// Events dropped by the bus.
    pub fn dropped(&self, reason: DropReason) -> IntCounter {
        self.dropped.get(reason)
    }

    /// Events published over HTTP.
    pub fn published(&self, kind: EventKind, outcome: PublishOutcome) -> IntCounter {
        self.published.get((kind, outcome))
    }

    /// Notes why events do not arrive; `None`: they do.
    pub(crate) fn note_up(&self, down: Option<DownCause>) {
        self.up.set(i64::from(down.is_none()));
        for cause in DownCause::all() {
            let gauge = self.down.with_label_values(&[cause.label()]);
            gauge.set(i64::from(down == Some(cause)));
        }
    }

    /// Probes that came back, and the seconds that all of them took together.
    pub fn probes(&self) -> (u64, f64) {
        let probes = &self.probe_seconds;
        (probes.get_sample_count(), probes.get_sample_sum())
    }
}
