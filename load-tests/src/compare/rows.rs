//! The rows of the table: the work, the figure read from it, and what Fanfare is to reach.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::clock::as_f64;
use crate::compare::kept_publish::KeptPublish;
use crate::compare::servers::Kind;
use crate::publisher::Wire;
use crate::report::result::{PhaseResult, RunResult};
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
    /// Redis alone, on one core: kept events a second, and as a share of `PUBLISH`
    KeptPublish,
    /// Fanfare alone: 10,000 clients leave and resume at once: seconds until all are live, and
    /// history reads
    Resume,
    /// The same, on a replica that has seen nothing of the channel
    ResumeElsewhere,
    /// Fanfare alone: two shards on two cores against one (asked for by name)
    Scale,
    /// Fanfare alone: 100,000 connections over several replicas (asked for by name)
    Crowd,
    /// Fanfare alone: ten minutes at half load, memory flat (asked for by name)
    Soak,
}

/// What one run came to.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Measured {
    Run(Box<RunResult>),
    KeptPublish(KeptPublish),
}

impl Measured {
    pub(crate) fn run(&self) -> Option<&RunResult> {
        match self {
            Self::Run(result) => Some(result),
            Self::KeptPublish(_) => None,
        }
    }

    pub(crate) fn phase(&self) -> Option<&PhaseResult> {
        self.run()?.phases.first()
    }

    pub(crate) fn kept_publish(&self) -> Option<&KeptPublish> {
        match self {
            Self::Run(_) => None,
            Self::KeptPublish(result) => Some(result),
        }
    }
}

/// What is read from a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Beside the row's name; empty for the one figure of a row.
    pub(crate) name: &'static str,
    pub(crate) of: fn(&Measured) -> Option<f64>,
    pub(crate) show: fn(f64) -> String,
}

const DELIVERED: Figure = Figure {
    name: "delivered/s",
    of: |measured| Some(measured.phase()?.delivered_per_second),
    show: |value| format!("{}/s", short(value)),
};

/// What a run can be cut down to, for a rehearsal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Clients are divided by it.
    pub(crate) shrink: u32,
    pub(crate) duration: Duration,
    pub(crate) soak: Duration,
}

/// As long as a deployment's restart of a gateway, or a tunnel.
const AWAY: Duration = Duration::from_secs(2);

/// However many clients resume: reads belong to the channel. Unlike the seconds it depends on no
/// machine, so that a rehearsal too fails above it.
const MAX_HISTORY_READS: u64 = 3;

impl Row {
    /// Those of the table.
    pub(crate) const TABLE: [Self; 9] = [
        Self::Idle,
        Self::Fanout,
        Self::Saturate,
        Self::Latency,
        Self::Channels,
        Self::Storm,
        Self::KeptPublish,
        Self::Resume,
        Self::ResumeElsewhere,
    ];

    pub(crate) fn in_table(self) -> bool {
        Self::TABLE.contains(&self)
    }

    /// Nothing that the peers have.
    pub(crate) fn of_fanfare_alone(self) -> bool {
        !self.in_table() || self.publishes_kept()
    }

    pub(crate) fn publishes_kept(self) -> bool {
        matches!(
            self,
            Self::KeptPublish | Self::Resume | Self::ResumeElsewhere
        )
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
            Self::KeptPublish => "kept publish, Redis on one core: a request at a time, pipelined",
            Self::Resume => "10,000 clients resume on one channel: all live, history reads",
            Self::ResumeElsewhere => "the same, on a replica that has seen nothing of it",
            Self::Scale => "5,000 clients × 1,000 events/s offered, by shards",
            Self::Crowd => "100,000 clients × 1 event/s over several replicas",
            Self::Soak => "5,000 clients × 500 events/s",
        }
    }

    /// The scenario that fills the row; `kept-publish` is none.
    pub(crate) fn plan(self, kind: Kind, size: Size, target: Target, publish: Wire) -> Plan {
        let fanfare = kind == Kind::Fanfare;
        let (clients, events_per_second): (u32, f64) = match self {
            Self::Idle => (10_000, 1.0),
            Self::Fanout
            | Self::Storm
            | Self::KeptPublish
            | Self::Resume
            | Self::ResumeElsewhere => (10_000, 10.0),
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
            Self::Resume | Self::ResumeElsewhere => Work::Resume {
                load,
                away: AWAY.min(size.duration / 4),
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
                Self::Resume | Self::ResumeElsewhere => "resume",
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
                connecting: match self {
                    Self::Storm | Self::Resume | Self::ResumeElsewhere => clients,
                    _ => 256,
                },
                connect_timeout: Duration::from_secs(180),
                // Whoever is behind by a multiple of the offered load is not waited for.
                drain_timeout: if self == Self::Saturate {
                    size.duration / 2
                } else {
                    Duration::from_secs(10)
                },
                receive_buffer_bytes: None,
                max_p99: None,
                max_history_reads: (self != Self::KeptPublish && self.publishes_kept())
                    .then_some(MAX_HISTORY_READS),
            },
            processes: None,
        }
    }

    /// What the row is about, the figure that is compared between servers first.
    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Self::Idle => &[Figure {
                name: "",
                of: |measured| Some(measured.run()?.memory?.bytes_per_connection),
                show: kilobytes,
            }],
            Self::Fanout => &[Figure {
                name: "",
                of: |measured| measured.phase()?.cpu?.micros_per_delivery,
                show: micros,
            }],
            Self::Saturate => &[
                DELIVERED,
                Figure {
                    name: "p99",
                    of: |measured| Some(measured.phase()?.latency.p99),
                    show: millis,
                },
            ],
            Self::Latency => &[Figure {
                name: "",
                of: |measured| Some(measured.phase()?.latency.p50),
                show: millis,
            }],
            Self::Channels => &[Figure {
                name: "",
                of: |measured| measured.phase()?.cpu?.micros_per_event,
                show: micros,
            }],
            Self::Storm => &[Figure {
                name: "",
                of: |measured| Some(measured.run()?.connecting.seconds),
                show: seconds,
            }],
            Self::KeptPublish => &[
                Figure {
                    name: "FCALL",
                    of: |measured| Some(measured.kept_publish()?.one_at_a_time.function.per_second),
                    show: |value| format!("{}/s", short(value)),
                },
                Figure {
                    name: "by PUBLISH",
                    of: |measured| Some(measured.kept_publish()?.one_at_a_time.ratio()),
                    show: |value| format!("{value:.2} × PUBLISH"),
                },
                Figure {
                    name: "FCALL pipelined",
                    of: |measured| Some(measured.kept_publish()?.pipelined.function.per_second),
                    show: |value| format!("{}/s pipelined", short(value)),
                },
            ],
            Self::Resume | Self::ResumeElsewhere => &[
                Figure {
                    name: "all live",
                    of: |measured| measured.phase()?.caught_up_seconds,
                    show: seconds,
                },
                Figure {
                    name: "history reads",
                    of: |measured| {
                        Some(as_f64(measured.phase()?.gateway.as_ref()?.history_reads()?))
                    },
                    show: |value| format!("history reads: {value}"),
                },
            ],
            Self::Scale | Self::Crowd | Self::Soak => &[DELIVERED],
        }
    }

    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Idle => "≤ 1.3 KB",
            Self::Fanout | Self::Latency => "≤ 1.1 × floor",
            Self::Saturate => "≥ 4.5 M/s, p99 ≤ 250 ms, memory flat",
            Self::Channels => "≤ 12 µs",
            Self::Storm => "≤ 0.6 s",
            Self::KeptPublish => "≥ 0.5 × PUBLISH, ≥ 75 k/s pipelined",
            Self::Resume | Self::ResumeElsewhere => "≤ 2 s, ≤ 3 history reads",
            Self::Scale | Self::Crowd | Self::Soak => "–",
        }
    }

    /// Whether Fanfare's medians, one for each figure, reach the target; `None` where there is nothing
    /// to compare with.
    pub(crate) fn met(
        self,
        fanfare: &[f64],
        floor: Option<f64>,
        delivered_well: bool,
    ) -> Option<bool> {
        let reached = match (self, fanfare) {
            (Self::Idle, [bytes]) => *bytes <= 1_300.0,
            (Self::Fanout | Self::Latency, [figure]) => *figure <= 1.1 * floor?,
            // A memory that grows is among a run's problems.
            (Self::Saturate, [per_second, p99_ms]) => *per_second >= 4.5e6 && *p99_ms <= 250.0,
            (Self::Channels, [micros]) => *micros <= 12.0,
            (Self::Storm, [seconds]) => *seconds <= 0.6,
            (Self::KeptPublish, [_, ratio, pipelined]) => *ratio >= 0.5 && *pipelined >= 75e3,
            // Gaps, and a gateway that does not count its reads, are among a run's problems.
            (Self::Resume | Self::ResumeElsewhere, [seconds, reads]) => {
                *seconds <= 2.0 && *reads <= as_f64(MAX_HISTORY_READS)
            }
            _ => return None,
        };
        Some(reached && delivered_well)
    }
}

fn micros(value: f64) -> String {
    format!("{value:.2} µs")
}

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
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
        assert_eq!(Row::Fanout.met(&[5.0], None, true), None);
        assert_eq!(Row::Fanout.met(&[5.0], Some(5.0), true), Some(true));
        assert_eq!(Row::Fanout.met(&[5.6], Some(5.0), true), Some(false));
    }

    #[test]
    fn every_part_of_a_target_counts() {
        assert_eq!(
            Row::Storm.met(&[0.1], None, false),
            Some(false),
            "fast but wrong is not met"
        );
        assert_eq!(Row::Saturate.met(&[4.6e6, 300.0], None, true), Some(false));
        let kept = |medians: &[f64]| Row::KeptPublish.met(medians, None, true);
        assert_eq!(kept(&[50e3, 0.5, 75e3]), Some(true));
        assert_eq!(kept(&[50e3, 0.49, 75e3]), Some(false));
        assert_eq!(kept(&[50e3, 0.5, 74e3]), Some(false));
        let resume = |medians: &[f64]| Row::Resume.met(medians, None, true);
        assert_eq!(resume(&[2.0, 3.0]), Some(true));
        assert_eq!(resume(&[2.1, 0.0]), Some(false));
        assert_eq!(resume(&[0.1, 4.0]), Some(false));
        assert_eq!(resume(&[0.1]), None, "reads that were not counted");
    }

    #[test]
    fn what_only_fanfare_can_do_is_asked_of_nobody_else() {
        for row in Row::TABLE {
            assert_eq!(row.of_fanfare_alone(), row.publishes_kept());
        }
        assert!(Row::Soak.of_fanfare_alone() && !Row::Soak.in_table());
    }

    #[test]
    fn replicas_leave_room() {
        assert_eq!(replicas_for(100_000, 20_000), 6);
        assert_eq!(replicas_for(1, 20_000), 1);
    }
}
