//! The rows of the table: the work, the figure read from it, and what Fanfare is to reach.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::clock::as_f64;
use crate::compare::servers::Kind;
use crate::publisher::Wire;
use crate::report::result::RunResult;
use crate::report::table::{kilobytes, millis, short};
use crate::scenario::plan::{Limits, Load, Plan, Target, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// 10,000 clients that wait: memory a connection
    Idle,
    /// 10,000 clients × 10 events/s: server CPU a delivery
    Fanout,
    /// 5,000 clients × 1,000 events/s offered (the peers × 200): deliveries a second
    Saturate,
    /// 1,000 clients × 20 events/s: p50 publish to received
    Latency,
    /// 10,000 clients, a channel each, 20,000 events/s: server CPU an event
    Channels,
    /// 10,000 connects at once: seconds until the last head
    Storm,
    /// Fanfare alone: two shards on two cores against one (asked for by name)
    Scale,
    /// Fanfare alone: 100,000 connections over several replicas (asked for by name)
    Crowd,
    /// Fanfare alone: ten minutes at half load, memory flat (asked for by name)
    Soak,
}

/// What a run can be cut down to, for a rehearsal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Clients are divided by it.
    pub(crate) shrink: u32,
    pub(crate) duration: Duration,
    pub(crate) soak: Duration,
}

impl Row {
    /// Those of the table.
    pub(crate) const TABLE: [Self; 6] = [
        Self::Idle,
        Self::Fanout,
        Self::Saturate,
        Self::Latency,
        Self::Channels,
        Self::Storm,
    ];

    pub(crate) fn of_fanfare_alone(self) -> bool {
        !Self::TABLE.contains(&self)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle memory a connection (process)",
            Self::Fanout => "10,000 clients × 10 events/s: server CPU a delivery",
            Self::Saturate => {
                "5,000 clients × 1,000 events/s offered (the peers: × 200): delivered/s, p99"
            }
            Self::Latency => "1,000 clients × 20 events/s: p50 publish → received",
            Self::Channels => "10,000 clients, a channel each, 20,000 events/s: CPU an event",
            Self::Storm => "10,000 connects at once",
            Self::Scale => "5,000 clients × 1,000 events/s offered, by shards",
            Self::Crowd => "100,000 clients × 1 event/s over several replicas",
            Self::Soak => "5,000 clients × 500 events/s",
        }
    }

    pub(crate) fn plan(self, kind: Kind, size: Size, target: Target, publish: Wire) -> Plan {
        let fanfare = kind == Kind::Fanfare;
        let (clients, events_per_second): (u32, f64) = match self {
            Self::Idle => (10_000, 1.0),
            Self::Fanout | Self::Storm => (10_000, 10.0),
            Self::Saturate if !fanfare => (5_000, 200.0),
            Self::Saturate | Self::Scale => (5_000, 1_000.0),
            Self::Latency => (1_000, 20.0),
            Self::Channels => (10_000, 20_000.0 / f64::from(size.shrink)),
            Self::Crowd => (100_000, 1.0),
            Self::Soak => (5_000, 500.0),
        };
        let clients = (clients / size.shrink).max(1);
        let load = Load {
            events_per_second,
            duration: size.duration,
        };
        let memory_must_be_flat = fanfare && matches!(self, Self::Saturate | Self::Soak);
        let work = match self {
            Self::Idle => Work::Hold {
                duration: size.duration,
            },
            Self::Storm => Work::Storm {
                load: Load {
                    duration: Duration::from_secs(2),
                    ..load
                },
            },
            Self::Soak => Work::Steady {
                load: Load {
                    duration: size.soak,
                    ..load
                },
                memory_must_be_flat,
            },
            _ => Work::Steady {
                load,
                memory_must_be_flat,
            },
        };
        Plan {
            scenario: match self {
                Self::Idle => "idle",
                Self::Channels => "channels",
                Self::Storm => "storm",
                Self::Soak => "soak",
                _ => "fanout",
            },
            target,
            publish,
            clients,
            channels: if self == Self::Channels { clients } else { 1 },
            channels_per_client: 1,
            slow_every: 0,
            event_bytes: 100,
            work,
            limits: Limits {
                connecting: if self == Self::Storm { clients } else { 256 },
                connect_timeout: Duration::from_secs(180),
                // Whoever is behind by a multiple of the offered load is not waited for.
                drain_timeout: if self == Self::Saturate {
                    size.duration / 2
                } else {
                    Duration::from_secs(10)
                },
                receive_buffer_bytes: None,
                max_p99: None,
            },
            processes: None,
        }
    }

    /// The row's figure.
    pub(crate) fn value(self, result: &RunResult) -> Option<f64> {
        let phase = result.phases.first();
        match self {
            Self::Idle => result.memory.map(|memory| memory.bytes_per_connection),
            Self::Fanout => phase?.cpu?.micros_per_delivery,
            Self::Saturate | Self::Scale | Self::Crowd | Self::Soak => {
                phase.map(|phase| phase.delivered_per_second)
            }
            Self::Latency => phase.map(|phase| phase.latency.p50),
            Self::Channels => phase?.cpu?.micros_per_event,
            Self::Storm => Some(result.connecting.seconds),
        }
    }

    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Idle => kilobytes(value),
            Self::Fanout | Self::Channels => format!("{value:.2} µs"),
            Self::Saturate | Self::Scale | Self::Crowd | Self::Soak => {
                format!("{}/s", short(value))
            }
            Self::Latency => millis(value),
            Self::Storm => format!("{value:.2} s"),
        }
    }

    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Idle => "≤ 1.3 KB",
            Self::Fanout | Self::Latency => "≤ 1.1 × floor",
            Self::Saturate => "≥ 4.5 M/s, p99 ≤ 250 ms, memory flat",
            Self::Channels => "≤ 12 µs",
            Self::Storm => "≤ 0.6 s",
            Self::Scale | Self::Crowd | Self::Soak => "–",
        }
    }

    /// Whether Fanfare's median reaches the target; `None` where there is nothing to compare with.
    pub(crate) fn met(
        self,
        fanfare: f64,
        p99_ms: f64,
        floor: Option<f64>,
        delivered_well: bool,
    ) -> Option<bool> {
        let reached = match self {
            Self::Idle => fanfare <= 1_300.0,
            Self::Fanout | Self::Latency => fanfare <= 1.1 * floor?,
            // A memory that grows is among a run's problems.
            Self::Saturate => fanfare >= 4.5e6 && p99_ms <= 250.0,
            Self::Channels => fanfare <= 12.0,
            Self::Storm => fanfare <= 0.6,
            Self::Scale | Self::Crowd | Self::Soak => return None,
        };
        Some(reached && delivered_well)
    }
}

/// The middle value; the mean of the two middle ones where their number is even.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(upper, *sorted.get(sorted.len() / 2 - 1)?))
}

/// How many replicas hold `clients`, each a little below its descriptor limit.
pub(crate) fn replicas_for(clients: u32, descriptor_limit: u64) -> usize {
    let each = as_f64(descriptor_limit) * 0.9;
    usize::try_from(crate::clock::whole((f64::from(clients) / each).ceil()))
        .unwrap_or(1)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn targets_that_lean_on_the_floor_need_one() {
        assert_eq!(Row::Fanout.met(5.0, 0.0, None, true), None);
        assert_eq!(Row::Fanout.met(5.0, 0.0, Some(5.0), true), Some(true));
        assert_eq!(Row::Fanout.met(5.6, 0.0, Some(5.0), true), Some(false));
        assert_eq!(
            Row::Storm.met(0.1, 0.0, None, false),
            Some(false),
            "fast but wrong is not met"
        );
        assert_eq!(Row::Saturate.met(4.6e6, 300.0, None, true), Some(false));
    }

    #[test]
    fn replicas_leave_room() {
        assert_eq!(replicas_for(100_000, 20_000), 6);
        assert_eq!(replicas_for(1, 20_000), 1);
    }
}
