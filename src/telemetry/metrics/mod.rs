//! Metrics, rendered in the Prometheus text format.
//!
//! Shards count for themselves ([`ShardStats`]) and are [added up](shards) when somebody looks;
//! what the control runtime counts lives in [ordinary Prometheus types](bus). Labels are bounded:
//! never a channel, never a user. Every series exists from the start, so that rates see the first
//! occurrence. A scrape costs the same however many streams are open, but for the count of
//! descriptors, which is the kernel's.

mod auth;
mod bus;
mod counter_by;
mod family;
mod process;
mod shards;
mod tls;

use std::sync::Arc;

use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, IntCounter, IntGauge, Registry, TextEncoder, register_int_counter_with_registry,
    register_int_gauge_with_registry,
};

use self::family::{float, gauge, gauges, label};
use self::shards::Shards;
use crate::hub::{LatencyTotal, ShardStats};

pub(crate) use process::{ProcessUsage, process_usage};

pub use auth::AuthMetrics;
pub use bus::BusMetrics;
pub use tls::TlsMetrics;

/// All metrics of a replica.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    shards: Shards,
    threads: process::ThreadCpu,
    connections_limit: usize,
    /// What the bus counts.
    pub bus: BusMetrics,
    /// What is counted about tokens and keys.
    pub auth: AuthMetrics,
    /// What is counted about TLS.
    pub tls: TlsMetrics,
    /// 1 from the signal that stops the replica.
    pub draining: IntGauge,
    /// Spans that reached no collector.
    pub traces_dropped: IntCounter,
    /// Log lines that found their queue full.
    pub log_lines_dropped: IntCounter,
}

impl Metrics {
    /// Metrics over these shards, which may have so many streams together.
    ///
    /// # Errors
    /// When a name is not valid or is given twice: a mistake in this module.
    pub fn new(shards: Vec<Arc<ShardStats>>, connections_limit: usize) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let draining = register_int_gauge_with_registry!(
            "fanfare_draining",
            "1 from the signal that stops the replica to its end; fanfare_connections are left.",
            registry,
        )?;
        let traces_dropped = register_int_counter_with_registry!(
            "fanfare_traces_dropped_total",
            "Spans that reached no collector: too many waited for it, or it did not take them.",
            registry,
        )?;
        let log_lines_dropped = register_int_counter_with_registry!(
            "fanfare_log_lines_dropped_total",
            "Log lines dropped because standard error was not read fast enough.",
            registry,
        )?;
        let metrics = Self {
            traces_dropped,
            log_lines_dropped,
            bus: BusMetrics::register(&registry)?,
            threads: process::ThreadCpu::new(shards.len()),
            shards: Shards::new(shards),
            connections_limit,
            auth: AuthMetrics::register(&registry)?,
            tls: TlsMetrics::register(&registry)?,
            draining,
            registry,
        };
        metrics.render(false)?;
        Ok(metrics)
    }

    /// The Prometheus text format; `is_ready`: as `/readyz` has it. Reads files of the kernel: not
    /// to be called where events pass.
    ///
    /// # Errors
    /// When a family cannot be written: a mistake in this module.
    pub fn render(&self, is_ready: bool) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(
            self.shards
                .families(|reason| self.bus.dropped(reason).get()),
        );
        families.extend(self.replica(is_ready));
        families.extend(process::families(&self.threads));
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }

    fn replica(&self, is_ready: bool) -> [MetricFamily; 3] {
        let version = label("version", env!("VERSION_AND_REVISION"));
        [
            gauges(
                "fanfare_build_info",
                "Always 1; the version is a label.",
                [(vec![version], 1.0)],
            ),
            gauge(
                "fanfare_ready",
                "1 while /readyz answers 200.",
                f64::from(u8::from(is_ready)),
            ),
            gauge(
                "fanfare_connections_limit",
                "Most streams that may be open (FANFARE_MAX_CONNECTIONS).",
                float(self.connections_limit as u64),
            ),
        ]
    }

    /// Open streams.
    pub fn connections(&self) -> u64 {
        self.shards.sum(|shard| shard.connections.get())
    }

    /// Requests that are being answered.
    pub fn requests(&self) -> u64 {
        self.shards.sum(|shard| shard.requests.get())
    }

    /// How long kept events took from their publication to their writes.
    pub fn delivery(&self) -> LatencyTotal {
        self.shards.latencies(|shard| &shard.delivery)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::DropReason;

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render(true).unwrap()).unwrap()
    }

    #[test]
    fn every_series_exists_at_zero_and_shards_are_added_up() {
        let shards: Vec<_> = (0..2).map(|_| Arc::new(ShardStats::default())).collect();
        let metrics = Metrics::new(shards.clone(), 1000).unwrap();
        let at_start = text(&metrics);
        for line in at_start.lines().filter(|line| line.starts_with("fanfare_")) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let given = ["build_info", "ready", "connections_limit", "thread_cpu"];
            let is_given = given.iter().any(|name| series.contains(name));
            assert!(is_given || value == "0", "{line}");
        }
        for series in [
            "fanfare_ready 1",
            "fanfare_connections_limit 1000",
            "fanfare_shard_connections{shard=\"1\"} 0",
            "fanfare_connections_closed_total{reason=\"slow_client\"} 0",
            "fanfare_connections_rejected_total{reason=\"limit\"} 0",
            "fanfare_events_dropped_total{reason=\"slow_client\"} 0",
            "fanfare_events_received_total{kind=\"kept\"} 0",
            "fanfare_events_published_total{kind=\"live\",outcome=\"refused\"} 0",
            "fanfare_resumes_total{outcome=\"gap\",source=\"tail\"} 0",
            "fanfare_delivery_seconds_bucket{le=\"0.25\"} 0",
            "fanfare_redis_up 0",
        ] {
            assert!(
                at_start.contains(&format!("\n{series}\n")),
                "{series} in {at_start}"
            );
        }
        shards[0].connections.add(2);
        shards[1].connections.add(3);
        shards[0].delivery.add(Duration::from_millis(2), 10);
        shards[1].delivery.add(Duration::from_secs(60), 5);
        metrics.bus.dropped(DropReason::TooLarge).inc();
        let later = text(&metrics);
        for series in [
            "fanfare_connections 5",
            "fanfare_events_dropped_total{reason=\"too_large\"} 1",
            "fanfare_delivery_seconds_bucket{le=\"0.0015\"} 0",
            "fanfare_delivery_seconds_bucket{le=\"0.0025\"} 10",
            "fanfare_delivery_seconds_bucket{le=\"+Inf\"} 15",
            "fanfare_delivery_seconds_sum 300.02",
            "fanfare_delivery_seconds_count 15",
        ] {
            assert!(
                later.contains(&format!("\n{series}\n")),
                "{series} in {later}"
            );
        }
    }

    #[test]
    fn the_cpu_s_time_has_fractions() {
        let metrics = Metrics::new(vec![Arc::default()], 1).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(5);
        // A tick of the kernel's is a hundredth of a second, and is soon used.
        loop {
            let text = text(&metrics);
            let seconds = text
                .lines()
                .find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
            if seconds.unwrap().parse::<f64>().unwrap().fract() > 0.0 {
                return;
            }
            assert!(std::time::Instant::now() < end, "{text}");
        }
    }
}
