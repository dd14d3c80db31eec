//! `fanfare-load`: measures Fanfare, or any other Server-Sent Events server.
//!
//! ```text
//! cli ──► scenario/plan ──► scenario/run ──commands──► worker (client processes: connect, read, check, tally)
//!                              │   ▲                                   │
//!              publisher ◄─────┘   └──────────────reports──────────────┘
//!              (on schedule)       measure (/proc) ──► report (table, JSON, HTML)
//! capacity: computes what a number of connections takes; redis-costs measures some of what it counts with
//! compare: starts Redis and each server in turn on pinned cores and runs plans against them
//! ```
//!
//! Two rules hold throughout. The load is an open loop: when an event is due never depends on how the
//! server keeps up, and its latency counts from then. Every delivery is checked, and a run in which one
//! is lost, duplicated or out of order has failed, however fast it was.
//!
//! Deliberately absent: TLS and HTTP/2 towards the server, and clients that render anything.

mod capacity;
mod cli;
mod clock;
mod compare;
mod measure;
mod payload;
mod publisher;
mod report;
mod scenario;
mod schedule;
mod template;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use report::progress::Progress;

/// Ended as wished.
const WELL: u8 = 0;
/// Carried out, and something was wrong.
const FAILED: u8 = 1;
/// Could not be carried out.
const IMPOSSIBLE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(&cli.command) {
        Ok(true) => ExitCode::from(WELL),
        Ok(false) => ExitCode::from(FAILED),
        // A client process whose coordinator has gone has nobody to tell.
        Err(_) if matches!(cli.command, Command::ClientProcess) => ExitCode::from(IMPOSSIBLE),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "fanfare-load: {error:#}");
            ExitCode::from(IMPOSSIBLE)
        }
    }
}

/// Whether all was well.
fn carry_out(command: &Command) -> Result<bool> {
    match command {
        Command::ClientProcess => worker::run().map(|()| true),
        Command::Capacity(arguments) => capacity::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::RedisCosts(arguments) => compare::redis_costs::run(arguments),
        scenario => {
            let Some((options, plan)) = scenario.plan()? else {
                return Ok(true);
            };
            let result = scenario::run(&plan, &Progress::new(plan.scenario))?;
            let text = if options.json {
                serde_json::to_string_pretty(&result)?
            } else {
                report::table::of_run(&result)
            };
            writeln!(std::io::stdout(), "{text}")?;
            if let Some(folder) = &options.report {
                report::html::write_run(folder, &result)?;
            }
            Ok(result.passed())
        }
    }
}
