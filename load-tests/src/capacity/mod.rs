//! `fanfare-load capacity`: what a number of connections needs. Computed, not measured: `docs/scaling.md`.

mod model;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::report::plots::{Line, logarithmic};
use crate::report::table::markdown;
use model::{Demand, GIB, MEASURED, Plan, plan};

/// A replica as `k8s/` ships it.
const SHARDS: u32 = 1;
const CONNECTIONS_A_REPLICA: u32 = 12_000;

#[derive(Debug, Args)]
pub(crate) struct CapacityArgs {
    /// Open streams; several for a table
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [100_000, 1_000_000, 10_000_000, 100_000_000]
    )]
    connections: Vec<u64>,
    /// Events published a second, over all channels together
    #[arg(long, default_value_t = 1_000.0)]
    events: f64,
    /// Events that one connection receives a second, on average
    #[arg(long, default_value_t = 0.1)]
    received: f64,
    /// Size of an event's data
    #[arg(long, default_value_t = 100)]
    bytes: u32,
    /// Threads of a replica that own connections (`FANFARE_SHARDS`), a core each
    #[arg(long, default_value_t = SHARDS)]
    shards: u32,
    /// Streams of one replica in the ordinary hour: what the autoscaler aims at, well below
    /// `FANFARE_MAX_CONNECTIONS`
    #[arg(long, default_value_t = CONNECTIONS_A_REPLICA)]
    connections_a_replica: u32,
    /// Gbit/s of a machine's link
    #[arg(long, default_value_t = 10.0)]
    link: f64,
    /// Clients have limits over all replicas (`FANFARE_MAX_CONNECTIONS_PER_IP`, `_PER_SUBJECT`)
    #[arg(long)]
    client_limits: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write the plots of docs/scaling.md into this folder
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// Prints what it takes.
///
/// # Errors
/// When an argument is no positive number, or a file cannot be written.
pub(crate) fn run(arguments: &CapacityArgs) -> Result<bool> {
    let plans = arguments.plans()?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&plans)?
    } else {
        table(&plans)
    };
    writeln!(std::io::stdout(), "{text}")?;
    if let Some(folder) = &arguments.plots {
        draw(folder, &arguments.demand()?)?;
    }
    Ok(true)
}

impl CapacityArgs {
    fn plans(&self) -> Result<Vec<Plan>> {
        let demand = self.demand()?;
        let of = |&connections: &u64| Demand {
            connections: float(connections),
            ..demand
        };
        Ok(self
            .connections
            .iter()
            .map(|connections| plan(&MEASURED, &of(connections)))
            .collect())
    }

    fn demand(&self) -> Result<Demand> {
        for (name, value) in [
            ("--received", self.received),
            ("--events", self.events),
            ("--link", self.link),
        ] {
            ensure!(
                value.is_finite() && value >= 0.0,
                "{name} is a number, not below 0"
            );
        }
        ensure!(
            self.link > 0.0 && self.shards > 0,
            "a replica has a link and shards"
        );
        ensure!(self.connections_a_replica > 0, "a replica has streams");
        Ok(Demand {
            connections: 0.0,
            events_per_second: self.events,
            received_per_second: self.received,
            event_bytes: f64::from(self.bytes),
            shards: f64::from(self.shards),
            connections_a_replica: f64::from(self.connections_a_replica),
            link_bits_per_second: self.link * 1e9,
            client_limits: self.client_limits,
        })
    }
}

fn table(plans: &[Plan]) -> String {
    let mut table = markdown(&[
        "connections",
        "replicas",
        "decided by",
        "cores busy / there",
        "memory, GiB",
        "nginx, GiB",
        "to clients, Gbit/s",
        "from Redis, Gbit/s",
        "Redis, cores: alone / together",
        "primaries",
        "all connect again",
    ]);
    for plan in plans {
        table.add_row([
            grouped(plan.connections),
            grouped(plan.replicas),
            plan.decided_by.name().to_owned(),
            format!("{:.1} / {:.0}", plan.busy_cores, plan.cores),
            format!("{:.1}", plan.memory_bytes / GIB),
            format!("{:.1}", plan.nginx_memory_bytes / GIB),
            format!("{:.2}", plan.client_bits_per_second / 1e9),
            format!("{:.3}", plan.redis_bits_per_second / 1e9),
            format!(
                "{:.2} / {:.2}",
                plan.redis_alone_cores, plan.redis_together_cores
            ),
            grouped(plan.redis_primaries),
            format!("{:.1} s", plan.reconnect_seconds),
        ]);
    }
    table.to_string()
}

/// 1234567 → 1,234,567
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Over connections from ten thousand to a hundred million, three steps a decade.
fn draw(folder: &Path, demand: &Demand) -> Result<()> {
    let connections = (12..=24).map(|step| 10_f64.powf(f64::from(step) / 3.0));
    let plans = |demand: Demand| {
        connections.clone().map(move |connections| {
            plan(
                &MEASURED,
                &Demand {
                    connections,
                    ..demand
                },
            )
        })
    };
    let line = |name: &str, demand: Demand, value: fn(&Plan) -> f64| Line {
        name: name.to_owned(),
        points: plans(demand)
            .map(|plan| (plan.connections, value(&plan)))
            .collect(),
    };
    let takes = [
        line("replicas", *demand, |plan| plan.replicas),
        line("cores busy", *demand, |plan| plan.busy_cores),
        line("GiB, replicas", *demand, |plan| plan.memory_bytes / GIB),
        line("GiB, nginx", *demand, |plan| plan.nginx_memory_bytes / GIB),
    ];
    let redis = [1_000.0, 10_000.0].map(|events_per_second| {
        let demand = Demand {
            events_per_second,
            ..*demand
        };
        let name = |how| format!("{} events/s, {how}", grouped(events_per_second));
        [
            line(&name("each alone"), demand, |plan| plan.redis_alone_cores),
            line(&name("together"), demand, |plan| plan.redis_together_cores),
        ]
    });
    let redis = redis.into_iter().flatten().collect::<Vec<_>>();
    for (name, lines, y) in [
        ("scaling-replicas.svg", &takes[..], "how many"),
        ("scaling-redis.svg", &redis[..], "cores of Redis"),
    ] {
        let file = folder.join(name);
        fs::write(&file, logarithmic(lines, "connections", y)?)
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "connections are far below 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of docs/scaling.md are what its commands print.
    #[test]
    fn the_documented_tables_are_the_models() {
        let documented = include_str!("../../../docs/scaling.md");
        for options in [
            "",
            "--shards 4 --connections-a-replica 48000",
            "--shards 4 --connections-a-replica 48000 --events 10000 --received 1",
        ] {
            let command = format!("fanfare-load capacity {options}");
            let command = command.trim_end();
            assert!(documented.contains(&format!("`{command}`")), "{command}");
            let printed = table(&arguments(command).plans().unwrap());
            assert!(documented.contains(&printed), "{command}\n{printed}");
        }
    }

    fn arguments(command: &str) -> CapacityArgs {
        #[derive(clap::Parser)]
        struct Tool {
            #[command(subcommand)]
            command: Only,
        }
        #[derive(clap::Subcommand)]
        enum Only {
            Capacity(CapacityArgs),
        }
        let tool = <Tool as clap::Parser>::parse_from(command.split_whitespace());
        let Only::Capacity(arguments) = tool.command;
        arguments
    }

    /// A plan without options is one for what `k8s/` ships.
    #[test]
    fn the_replica_is_the_one_that_is_shipped() {
        let settings = include_str!("../../../k8s/base/fanfare.env");
        let autoscaler =
            include_str!("../../../k8s/components/autoscaling-hpa/horizontalpodautoscaler.yaml");
        assert!(settings.contains(&format!("FANFARE_SHARDS={SHARDS}\n")));
        let target = CONNECTIONS_A_REPLICA / 1_000;
        assert!(autoscaler.contains(&format!("averageValue: {target}k\n")));
    }

    #[test]
    fn large_numbers_can_be_read() {
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1_000.0), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}
