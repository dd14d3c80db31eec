//! Sections of the text beside the tables.

use crate::clock::as_f64;
use crate::compare::kept_publish::{Pace, Pair};
use crate::compare::rows::{Row, median};
use crate::compare::servers::Kind;
use crate::measure::gateway::Counters;
use crate::report::table::{kilobytes, markdown, millis, short};

use super::Summary;
use std::fmt::Write as _;

impl Summary {
    pub(super) fn spread(&self) -> String {
        let mut table = markdown(&["work", "server", "runs", "least", "median", "most"]);
        let spreads = self
            .rows
            .iter()
            .filter(|row| row.in_table())
            .flat_map(|row| row.figures().iter().map(move |figure| (*row, figure)))
            .flat_map(|(row, figure)| self.servers.iter().map(move |kind| (row, figure, *kind)));
        for (row, figure, kind) in spreads {
            let values = self.values(row, kind, figure);
            let Some(middle) = median(&values) else {
                continue;
            };
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut name = format!("{row:?}");
            if !figure.name.is_empty() {
                let _ = write!(name, ", {}", figure.name);
            }
            table.add_row([
                name,
                kind.name().to_owned(),
                values.len().to_string(),
                (figure.show)(least),
                (figure.show)(middle),
                (figure.show)(most),
            ]);
        }
        table.to_string()
    }

    /// Every run's paces: how near Redis was to its core tells whether Redis was measured.
    pub(super) fn publishing(&self) -> String {
        let mut table = markdown(&[
            "run",
            "requests",
            "PUBLISH/s",
            "FCALL/s",
            "ratio",
            "Redis CPU a request: PUBLISH / FCALL",
            "cores: PUBLISH / FCALL",
        ]);
        let results = self
            .of(Row::KeptPublish, Kind::Fanfare)
            .filter_map(|outcome| outcome.result.as_ref()?.kept_publish());
        for (run, result) in results.enumerate() {
            let mut add = |requests: String, pair: &Pair| {
                let both = |show: fn(&Pace) -> String| {
                    [show(&pair.publish), show(&pair.function)].join(" / ")
                };
                table.add_row([
                    (run + 1).to_string(),
                    requests,
                    short(pair.publish.per_second),
                    short(pair.function.per_second),
                    format!("{:.2}", pair.ratio()),
                    both(|pace| format!("{:.2} µs", pace.redis_micros)),
                    both(|pace| format!("{:.2}", pace.redis_load)),
                ]);
            };
            let connections = result.connections;
            add(
                format!("{connections} connections, one at a time"),
                &result.one_at_a_time,
            );
            add(
                format!("{connections} connections, {} at a time", result.pipeline),
                &result.pipelined,
            );
        }
        table.to_string()
    }

    /// Every run: what coming back took, and what the gateway says where it came from.
    pub(super) fn resuming(&self, row: Row) -> String {
        let mut table = markdown(&[
            "clients",
            "events",
            "delivered",
            "gaps",
            "all back",
            "all live",
            "CPU, cores",
            "the gateway counted",
        ]);
        for outcome in self.of(row, Kind::Fanfare) {
            let (Some(result), Some(phase)) = (outcome.run(), outcome.phase()) else {
                continue;
            };
            let seconds = |seconds: f64| format!("{seconds:.2} s");
            let counted = phase.gateway.iter().flat_map(Counters::moved);
            let counted: Vec<String> = counted
                .map(|(series, count)| format!("{series} {count}"))
                .collect();
            table.add_row([
                result.clients.to_string(),
                phase.published.to_string(),
                format!("{} of {}", phase.delivered, phase.expected),
                phase.gaps.to_string(),
                seconds(result.connecting.seconds),
                phase.caught_up_seconds.map_or("never".into(), seconds),
                phase
                    .cpu
                    .map_or("–".into(), |cpu| format!("{:.2}", cpu.load)),
                counted.join(", "),
            ]);
        }
        table.to_string()
    }

    /// The rows that concern Fanfare alone: every run a line.
    pub(super) fn alone(&self, row: Row) -> String {
        let mut table = markdown(&[
            "shards",
            "clients",
            "delivered/s",
            "p50",
            "p99",
            "CPU a delivery",
            "CPU, cores",
            "memory a connection",
            "memory connected / peak / after, MiB",
        ]);
        for outcome in self.of(row, Kind::Fanfare) {
            let (Some(result), Some(phase)) = (outcome.run(), outcome.phase()) else {
                continue;
            };
            let cpu = |show: fn(crate::report::result::CpuResult) -> Option<String>| {
                phase.cpu.and_then(show).unwrap_or_else(|| "–".into())
            };
            let mebibytes = |bytes: u64| format!("{:.1}", as_f64(bytes) / as_f64(1 << 20));
            table.add_row([
                outcome.shards.to_string(),
                result.clients.to_string(),
                format!("{}/s", short(phase.delivered_per_second)),
                millis(phase.latency.p50),
                millis(phase.latency.p99),
                cpu(|cpu| Some(format!("{:.2} µs", cpu.micros_per_delivery?))),
                cpu(|cpu| Some(format!("{:.2}", cpu.load))),
                result.memory.map_or("–".into(), |memory| {
                    kilobytes(memory.bytes_per_connection)
                }),
                result.memory.map_or("–".into(), |memory| {
                    [memory.connected, memory.peak, memory.after_leaving]
                        .map(mebibytes)
                        .join(" / ")
                }),
            ]);
        }
        table.to_string()
    }
}
