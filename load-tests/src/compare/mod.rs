//! `compare`: Fanfare and its peers, the same work in one go on pinned cores.
//!
//! Each run gets a Redis and a server of its own, on ephemeral ports. The order is interleaved (all
//! servers for a row, then the next row, the whole of it N times, every time beginning with another
//! server), so that a machine that gets slower or faster does so for all. Medians and spreads are shown.

mod kept_publish;
mod noise;
mod pinning;
pub(crate) mod redis_costs;
mod rows;
mod servers;
mod summary;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::measure::capacity;
use crate::report::progress::Progress;
use crate::scenario;
use rows::{Measured, Row, Size, replicas_for};
use servers::{Bench, Kind, Missing};
use summary::{Outcome, Summary};

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Servers to compare [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// Servers to leave out: the only way to pass without one that is not installed
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Kind>,
    /// Rows to fill [default: those of the table, idle to resume-elsewhere]
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Runs of each row and server; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// How long each run measures
    #[arg(long, value_parser = humantime::parse_duration, default_value = "8s")]
    duration: Duration,
    /// How long the row `soak` lasts
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10m")]
    soak: Duration,
    /// A rehearsal: so many times fewer clients; the figures mean nothing
    #[arg(long, default_value_t = 1)]
    shrink: u32,
    /// Core of the servers; of Redis in the row `kept-publish`
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the clients and Redis
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Fanfare's binary [default: beside this program]
    #[arg(long)]
    fanfare: Option<PathBuf>,
    /// Where the peers' sources and configurations are
    #[arg(long, default_value = "load-tests/peers")]
    peers_folder: PathBuf,
    /// Print the results as JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Write an HTML page with plots, and the results as JSON, into this folder
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Removes the comparison's files with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let name = format!("fanfare-{name}-{}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether all servers took part and Fanfare delivered everything.
pub(crate) fn run(arguments: &CompareArgs) -> Result<bool> {
    ensure!(
        arguments.runs > 0 && arguments.shrink > 0,
        "--runs and --shrink begin at 1"
    );
    let folder = Folder::new("compare")?;
    let programs = std::env::current_exe()?
        .parent()
        .context("this program's folder")?
        .to_owned();
    let bench = Bench {
        fanfare: arguments
            .fanfare
            .clone()
            .unwrap_or_else(|| programs.join("fanfare")),
        programs,
        peers: fs::canonicalize(&arguments.peers_folder)
            .with_context(|| format!("{}", arguments.peers_folder.display()))?,
        folder: folder.0.clone(),
        server_cores: vec![arguments.server_core],
        load_cores: vec![arguments.load_core],
    };
    pinning::pin_to(&bench.load_cores)?;
    capacity::raise_descriptor_limit()?;

    let asked = if arguments.peers.is_empty() {
        &Kind::ALL[..]
    } else {
        &arguments.peers
    };
    let asked: Vec<Kind> = asked
        .iter()
        .copied()
        .filter(|kind| !arguments.without.contains(kind))
        .collect();
    let missing: BTreeMap<Kind, Missing> = asked
        .iter()
        .filter_map(|kind| Some((*kind, bench.missing(*kind)?)))
        .collect();
    let present: Vec<Kind> = asked
        .into_iter()
        .filter(|kind| !missing.contains_key(kind))
        .collect();
    let rows: Vec<Row> = if arguments.rows.is_empty() {
        let with_fanfare = present.contains(&Kind::Fanfare);
        let can_be_filled = |row: &Row| with_fanfare || !row.of_fanfare_alone();
        Row::TABLE.into_iter().filter(can_be_filled).collect()
    } else {
        arguments.rows.clone()
    };

    let mut comparison = Comparison {
        arguments,
        bench,
        outcomes: Vec::new(),
    };
    for round in 0..arguments.runs {
        for row in &rows {
            comparison.round(*row, round, &present)?;
        }
    }
    let summary = Summary {
        rows,
        servers: present,
        missing,
        outcomes: comparison.outcomes,
        shrink: arguments.shrink,
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&summary)?
    } else {
        summary.text()
    };
    writeln!(std::io::stdout(), "{text}")?;
    if let Some(folder) = &arguments.report {
        summary.write_report(folder)?;
    }
    Ok(summary.missing.is_empty() && summary.fanfare_delivered_well())
}

struct Comparison<'a> {
    arguments: &'a CompareArgs,
    bench: Bench,
    outcomes: Vec<Outcome>,
}

impl Comparison<'_> {
    /// One row once, with every server it concerns.
    fn round(&mut self, row: Row, round: u32, present: &[Kind]) -> Result<()> {
        // A soak is one run: it is long enough to be its own median.
        if row == Row::Soak && round > 0 {
            return Ok(());
        }
        if row.of_fanfare_alone() {
            ensure!(
                present.contains(&Kind::Fanfare),
                "`{}` measures Fanfare alone, and it is missing",
                row.title()
            );
            let shards: &[usize] = if row == Row::Scale { &[1, 2] } else { &[1] };
            return shards
                .iter()
                .try_for_each(|shards| self.once(row, Kind::Fanfare, round, *shards));
        }
        let mut order = present.to_vec();
        let first = usize::try_from(round)? % order.len().max(1);
        order.rotate_left(first);
        order
            .into_iter()
            .try_for_each(|kind| self.once(row, kind, round, 1))
    }

    /// One run. One that could not be carried out counts against the server, not the comparison.
    fn once(&mut self, row: Row, kind: Kind, round: u32, shards: usize) -> Result<()> {
        let title = format!(
            "run {} of {}, {row:?}, {}",
            round + 1,
            self.arguments.runs,
            kind.name()
        );
        let busy_before = noise::busy_share()?;
        let (result, failure) = match self.carry_out(row, kind, shards, &title) {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let outcome = Outcome {
            row,
            kind,
            shards,
            busy_before,
            result,
            failure,
        };
        writeln!(std::io::stderr(), "{title}: {}", outcome.in_a_line())?;
        self.outcomes.push(outcome);
        Ok(())
    }

    fn carry_out(&mut self, row: Row, kind: Kind, shards: usize, title: &str) -> Result<Measured> {
        let size = Size {
            shrink: self.arguments.shrink,
            duration: self.arguments.duration,
            soak: self.arguments.soak,
        };
        if shards > 1 {
            // Two shards need two cores; the load runs on both as well, and takes its share.
            self.bench.server_cores = vec![self.arguments.server_core, self.arguments.load_core];
        } else {
            self.bench.server_cores = vec![self.arguments.server_core];
        }
        let progress = Progress::new(title);
        if row == Row::KeptPublish {
            let redis = self.bench.start_redis(&self.bench.server_cores)?;
            self.bench.load_functions(&redis)?;
            return kept_publish::measure(redis.address(), redis.processes()?, size, &progress)
                .map(Measured::KeptPublish);
        }
        let redis = self.bench.start_redis(&self.bench.load_cores)?;
        let clients = 100_000 / size.shrink;
        let replicas = if row == Row::Crowd {
            replicas_for(clients, capacity::raise_descriptor_limit()?)
        } else {
            1
        };
        let start = |count: usize| -> Result<Vec<_>> {
            (0..count)
                .map(|_| self.bench.start(kind, &redis, shards))
                .collect()
        };
        let servers = start(replicas)?;
        let resume_servers = start(usize::from(row == Row::ResumeElsewhere))?;
        let first = servers.first().context("a server")?;
        let plan = row.plan(
            kind,
            size,
            servers::target(&servers, &resume_servers)?,
            servers::wire(row, kind, first, &redis),
        );
        let run = || scenario::run(&plan, &progress);
        let result = if shards > 1 {
            pinning::on_cores(&self.bench.server_cores, run)
        } else {
            run()
        };
        result.map(Box::new).map(Measured::Run)
    }
}
