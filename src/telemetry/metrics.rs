//! Metrics, rendered in the Prometheus text format.
//!
//! Shards count for themselves ([`ShardStats`]) and are added up when somebody looks; what the
//! control runtime counts lives in ordinary Prometheus types. Labels are bounded: never a channel,
//! never a user. Every series exists from the start, so that rates see the first occurrence.

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::hub::{CloseReason, ResumeOutcome, ResumeSource, ShardStats};
use crate::protocol::{EnvelopeFault, EventFault, GapReason};

/// Why a message of the bus reached nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Larger than the limit.
    TooLarge,
    /// Not UTF-8.
    NotUtf8,
    /// A broken envelope, or a field that is out of its bounds.
    Envelope,
    /// An event name that is not allowed.
    EventName,
    /// Restricted to claims that no session can hold yet.
    NoAudience,
    /// A frame of the function library that cannot be read.
    Frame,
    /// An id so far ahead of those known that it cannot be one of this Redis.
    IdAhead,
}

impl DropReason {
    const ALL: [Self; 7] = [
        Self::TooLarge,
        Self::NotUtf8,
        Self::Envelope,
        Self::EventName,
        Self::NoAudience,
        Self::Frame,
        Self::IdAhead,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::Envelope => "envelope",
            Self::EventName => "event_name",
            Self::NoAudience => "no_audience",
            Self::Frame => "frame",
            Self::IdAhead => "id_ahead",
        }
    }
}

impl From<&EnvelopeFault> for DropReason {
    fn from(fault: &EnvelopeFault) -> Self {
        match fault {
            EnvelopeFault::Broken(_) => Self::Envelope,
            EnvelopeFault::Event(fault) => match fault {
                EventFault::TooLarge { .. } => Self::TooLarge,
                EventFault::NotUtf8 => Self::NotUtf8,
                EventFault::RetryTooLong => Self::Envelope,
                EventFault::NameBreaksLine | EventFault::NameReserved | EventFault::NameTooLong => {
                    Self::EventName
                }
            },
        }
    }
}

/// What the bus counts.
#[derive(Clone, Debug)]
pub struct BusMetrics {
    /// Live events received for wanted channels, those dropped afterwards included.
    pub live_received: IntCounter,
    /// Kept events, likewise; those read from history are not counted.
    pub kept_received: IntCounter,
    /// Reads of history that were sent to Redis.
    pub history_reads: IntCounter,
    /// Kept events that the subscription missed and a read of the history brought.
    pub backfilled: IntCounter,
    dropped: IntCounterVec,
    /// 1 while a probe has come back on the current connection.
    pub up: IntGauge,
    /// Subscriber connections lost, or not made.
    pub reconnects: IntCounter,
    /// From publishing a probe to receiving it.
    pub probe_seconds: Histogram,
}

impl BusMetrics {
    /// The counter of a reason.
    pub fn dropped(&self, reason: DropReason) -> IntCounter {
        self.dropped.with_label_values(&[reason.label()])
    }
}

/// All metrics of a replica.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    shards: Vec<Arc<ShardStats>>,
    /// What the bus counts.
    pub bus: BusMetrics,
    /// 1 from the signal that stops the replica.
    pub draining: IntGauge,
}

fn dropped_events() -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(
        Opts::new(
            "fanfare_events_dropped_total",
            "Events that did not reach a client they were meant for.",
        ),
        &["reason"],
    )
}

type Read = fn(&ShardStats) -> u64;

/// Counts of the shards that go up and down.
const GAUGES: [(&str, &str, Read); 3] = [
    ("fanfare_connections", "Open streams.", |shard| {
        shard.connections.get()
    }),
    (
        "fanfare_channels",
        "Channels with interest, counted once a shard.",
        |shard| shard.channels.get(),
    ),
    (
        "fanfare_subscriptions",
        "Channels of open streams, counted once a stream.",
        |shard| shard.subscriptions.get(),
    ),
];

/// Counts of the shards that only grow.
const COUNTERS: [(&str, &str, Read); 4] = [
    (
        "fanfare_connections_opened_total",
        "Streams opened.",
        |shard| shard.connections_opened.get(),
    ),
    (
        "fanfare_events_delivered_total",
        "Events written to streams, counted once a stream.",
        |shard| shard.events_delivered.get(),
    ),
    (
        "fanfare_sent_bytes_total",
        "Bytes written to streams, response heads included on HTTP/1.1.",
        |shard| shard.sent_bytes.get(),
    ),
    (
        "fanfare_heartbeats_total",
        "Heartbeats queued for silent streams.",
        |shard| shard.heartbeats.get(),
    ),
];

/// Streams that were not opened, by reason.
const REJECTED: [(&str, Read); 4] = [
    ("limit", |shard| shard.rejected_limit.get()),
    ("draining", |shard| shard.rejected_draining.get()),
    ("bus_unavailable", |shard| {
        shard.rejected_bus_unavailable.get()
    }),
    ("request_head", |shard| shard.rejected_head.get()),
];

impl Metrics {
    /// Metrics over these shards.
    ///
    /// # Errors
    /// When a name is not valid or stands twice: a mistake in this file.
    pub fn new(shards: Vec<Arc<ShardStats>>) -> prometheus::Result<Self> {
        let received = IntCounterVec::new(
            Opts::new(
                "fanfare_events_received_total",
                "Events received from the bus for channels with interest.",
            ),
            &["kind"],
        )?;
        let bus = BusMetrics {
            live_received: received.with_label_values(&["live"]),
            kept_received: received.with_label_values(&["kept"]),
            history_reads: IntCounter::new(
                "fanfare_history_reads_total",
                "Reads of history sent to Redis.",
            )?,
            backfilled: IntCounter::new(
                "fanfare_backfilled_events_total",
                "Kept events that the subscription missed and that were read from history.",
            )?,
            dropped: dropped_events()?,
            up: IntGauge::new(
                "fanfare_redis_up",
                "1 while a probe has proven the subscriber connection; 0 on the embedded bus.",
            )?,
            reconnects: IntCounter::new(
                "fanfare_redis_reconnects_total",
                "Subscriber connections that were lost or could not be made.",
            )?,
            probe_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "fanfare_redis_probe_seconds",
                    "Time from publishing a probe to receiving it.",
                )
                .buckets(vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0,
                ]),
            )?,
        };
        let build = IntGaugeVec::new(
            Opts::new("fanfare_build_info", "Always 1; the version is a label."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let draining = IntGauge::new(
            "fanfare_draining",
            "1 from the signal that stops the replica to its end; fanfare_connections are left.",
        )?;

        let registry = Registry::new();
        registry.register(Box::new(received))?;
        registry.register(Box::new(bus.history_reads.clone()))?;
        registry.register(Box::new(bus.backfilled.clone()))?;
        registry.register(Box::new(bus.up.clone()))?;
        registry.register(Box::new(bus.reconnects.clone()))?;
        registry.register(Box::new(bus.probe_seconds.clone()))?;
        registry.register(Box::new(build))?;
        registry.register(Box::new(draining.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let metrics = Self {
            registry,
            shards,
            bus,
            draining,
        };
        metrics.render()?;
        Ok(metrics)
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// When a family cannot be written: a mistake in this file.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(self.shard_families()?);
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }

    /// Open streams.
    pub fn connections(&self) -> u64 {
        self.sum(|shard| shard.connections.get())
    }

    fn sum(&self, read: impl Fn(&ShardStats) -> u64) -> u64 {
        self.shards.iter().map(|shard| read(shard)).sum()
    }

    /// The shards' counts, added up.
    fn shard_families(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let mut families = Vec::new();
        for (name, help, read) in GAUGES {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(i64::try_from(self.sum(read)).unwrap_or(i64::MAX));
            families.extend(gauge.collect());
        }
        for (name, help, read) in COUNTERS {
            let counter = IntCounter::new(name, help)?;
            counter.inc_by(self.sum(read));
            families.extend(counter.collect());
        }
        let closed = IntCounterVec::new(
            Opts::new("fanfare_connections_closed_total", "Streams closed."),
            &["reason"],
        )?;
        for reason in CloseReason::ALL {
            closed
                .with_label_values(&[reason.label()])
                .inc_by(self.sum(|shard| shard.closed(reason)));
        }
        families.extend(closed.collect());
        let rejected = IntCounterVec::new(
            Opts::new(
                "fanfare_connections_rejected_total",
                "Streams answered with retry-and-close, and connections closed for their request's head.",
            ),
            &["reason"],
        )?;
        for (reason, read) in REJECTED {
            rejected.with_label_values(&[reason]).inc_by(self.sum(read));
        }
        families.extend(rejected.collect());
        let gaps = IntCounterVec::new(
            Opts::new(
                "fanfare_gaps_total",
                "Gaps told to clients, counted once a client and channel.",
            ),
            &["reason"],
        )?;
        for reason in GapReason::ALL {
            gaps.with_label_values(&[reason.label()])
                .inc_by(self.sum(|shard| shard.gaps(reason)));
        }
        families.extend(gaps.collect());
        let resumes = IntCounterVec::new(
            Opts::new(
                "fanfare_resumes_total",
                "Streams opened with a cursor that could be read, by what came of it and where from.",
            ),
            &["outcome", "source"],
        )?;
        for outcome in ResumeOutcome::ALL {
            for source in ResumeSource::ALL {
                resumes
                    .with_label_values(&[outcome.label(), source.label()])
                    .inc_by(self.sum(|shard| shard.resumes(outcome, source)));
            }
        }
        families.extend(resumes.collect());
        // One family of two sources: what arrived broken, and what a slow client missed.
        let dropped = dropped_events()?;
        for reason in DropReason::ALL {
            dropped
                .with_label_values(&[reason.label()])
                .inc_by(self.bus.dropped(reason).get());
        }
        dropped
            .with_label_values(&["slow_client"])
            .inc_by(self.sum(|shard| shard.events_dropped_slow_client.get()));
        families.extend(dropped.collect());
        Ok(families)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_at_zero_and_shards_are_added_up() {
        let shards = vec![
            Arc::new(ShardStats::default()),
            Arc::new(ShardStats::default()),
        ];
        let metrics = Metrics::new(shards.clone()).unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for series in [
            "fanfare_connections 0",
            "fanfare_connections_closed_total{reason=\"slow_client\"} 0",
            "fanfare_connections_rejected_total{reason=\"limit\"} 0",
            "fanfare_events_dropped_total{reason=\"not_utf8\"} 0",
            "fanfare_events_dropped_total{reason=\"slow_client\"} 0",
            "fanfare_events_dropped_total{reason=\"frame\"} 0",
            "fanfare_events_dropped_total{reason=\"id_ahead\"} 0",
            "fanfare_events_received_total{kind=\"live\"} 0",
            "fanfare_events_received_total{kind=\"kept\"} 0",
            "fanfare_history_reads_total 0",
            "fanfare_backfilled_events_total 0",
            "fanfare_redis_up 0",
            "fanfare_draining 0",
        ] {
            assert!(
                text.contains(&format!("\n{series}\n")),
                "{series} in {text}"
            );
        }
        shards[0].connections.add(2);
        shards[1].connections.add(3);
        metrics.bus.dropped(DropReason::TooLarge).inc();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("\nfanfare_connections 5\n"), "{text}");
        assert!(text.contains("{reason=\"too_large\"} 1\n"), "{text}");
    }
}
