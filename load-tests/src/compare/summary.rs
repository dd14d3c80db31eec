//! What a comparison came to: the table with medians, ratios and targets, the spread, the failures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::clock::as_f64;
use crate::compare::noise;
use crate::compare::rows::{Row, median};
use crate::compare::servers::{Kind, Missing};
use crate::report::html::{self, Figure, latency_line, memory_line, throughput_line};
use crate::report::plots::{self, Line};
use crate::report::result::{PhaseResult, RunResult};
use crate::report::table::{kilobytes, markdown, millis};

/// One run of one server.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) row: Row,
    pub(crate) kind: Kind,
    pub(crate) shards: usize,
    /// Share of the machine that something else used just before.
    pub(crate) busy_before: f64,
    pub(crate) result: Option<RunResult>,
    /// Why there is no result.
    pub(crate) failure: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) rows: Vec<Row>,
    pub(crate) servers: Vec<Kind>,
    pub(crate) missing: BTreeMap<Kind, Missing>,
    pub(crate) outcomes: Vec<Outcome>,
    /// So many times fewer clients than the rows say.
    pub(crate) shrink: u32,
}

impl Outcome {
    fn value(&self) -> Option<f64> {
        self.row.value(self.result.as_ref()?)
    }

    fn phase(&self) -> Option<&PhaseResult> {
        self.result.as_ref()?.phases.first()
    }

    fn problems(&self) -> Vec<String> {
        let problems = self.result.iter().flat_map(|result| &result.problems);
        self.failure.iter().chain(problems).cloned().collect()
    }

    pub(crate) fn in_a_line(&self) -> String {
        let value = self
            .value()
            .map_or_else(|| "–".to_owned(), |value| self.row.show(value));
        let problems = self.problems();
        if problems.is_empty() {
            value
        } else {
            format!("{value} ({})", problems.join("; "))
        }
    }
}

impl Summary {
    pub(crate) fn fanfare_delivered_well(&self) -> bool {
        self.outcomes
            .iter()
            .all(|outcome| outcome.kind != Kind::Fanfare || outcome.problems().is_empty())
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        if self.shrink > 1 {
            writeln!(
                text,
                "A REHEARSAL with {} times fewer clients than the rows say.\n",
                self.shrink
            )?;
        }
        let table_rows: Vec<Row> = self
            .rows
            .iter()
            .copied()
            .filter(|row| !row.of_fanfare_alone())
            .collect();
        if !table_rows.is_empty() {
            writeln!(text, "{}\n", self.table(&table_rows))?;
            writeln!(
                text,
                "Medians. ×: the peer's figure by Fanfare's; for Fanfare, by the floor's."
            )?;
            writeln!(
                text,
                "†: not everything that was owed came (listed below).\n"
            )?;
        }
        for row in self.rows.iter().filter(|row| row.of_fanfare_alone()) {
            writeln!(text, "{}\n\n{}\n", row.title(), self.alone(*row))?;
        }
        writeln!(text, "Spread over the runs:\n\n{}\n", self.spread())?;
        let noisy = self
            .outcomes
            .iter()
            .filter(|outcome| !noise::is_quiet(outcome.busy_before))
            .count();
        if noisy > 0 {
            writeln!(
                text,
                "NOISE: {noisy} of {} runs began while the machine was busy.",
                self.outcomes.len()
            )?;
        }
        for outcome in &self.outcomes {
            for problem in outcome.problems() {
                writeln!(
                    text,
                    "† {}, {:?}: {problem}",
                    outcome.kind.name(),
                    outcome.row
                )?;
            }
        }
        for (kind, missing) in &self.missing {
            writeln!(
                text,
                "MISSING: {}: {}. Install: {}",
                kind.name(),
                missing.reason,
                missing.remedy
            )?;
        }
        Ok(())
    }

    fn table(&self, rows: &[Row]) -> String {
        let mut header = vec!["work"];
        header.extend(self.servers.iter().map(|kind| kind.name()));
        header.extend(["target", "met"]);
        let mut table = markdown(&header);
        for row in rows {
            let mut cells = vec![row.title().to_owned()];
            cells.extend(self.servers.iter().map(|kind| self.cell(*row, *kind)));
            cells.push(row.target().to_owned());
            cells.push(self.verdict(*row).to_owned());
            table.add_row(cells);
        }
        table.to_string()
    }

    fn cell(&self, row: Row, kind: Kind) -> String {
        let Some(value) = self.median(row, kind) else {
            return "failed †".into();
        };
        let reference = if kind == Kind::Fanfare {
            Kind::Floor
        } else {
            Kind::Fanfare
        };
        let mut cell = row.show(value);
        if row == Row::Saturate {
            cell.push_str(
                &self
                    .p99(row, kind)
                    .map_or(String::new(), |p99| format!(", {}", millis(p99))),
            );
        }
        if let Some(reference) = self
            .median(row, reference)
            .filter(|reference| *reference > 0.0)
        {
            let _ = write!(cell, " ×{:.2}", value / reference);
        }
        if self
            .of(row, kind)
            .any(|outcome| !outcome.problems().is_empty())
        {
            cell.push_str(" †");
        }
        cell
    }

    fn verdict(&self, row: Row) -> &'static str {
        let well = self
            .of(row, Kind::Fanfare)
            .all(|outcome| outcome.problems().is_empty());
        let met = self.median(row, Kind::Fanfare).and_then(|fanfare| {
            let p99_ms = self.p99(row, Kind::Fanfare).unwrap_or(0.0);
            row.met(fanfare, p99_ms, self.median(row, Kind::Floor), well)
        });
        match met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "–",
        }
    }

    fn spread(&self) -> String {
        let mut table = markdown(&["work", "server", "runs", "least", "median", "most"]);
        for row in self.rows.iter().filter(|row| !row.of_fanfare_alone()) {
            for kind in &self.servers {
                let values = self.values(*row, *kind);
                let Some(middle) = median(&values) else {
                    continue;
                };
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                table.add_row([
                    format!("{row:?}"),
                    kind.name().to_owned(),
                    values.len().to_string(),
                    row.show(least),
                    row.show(middle),
                    row.show(most),
                ]);
            }
        }
        table.to_string()
    }

    /// The rows that concern Fanfare alone: every run a line.
    fn alone(&self, row: Row) -> String {
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
            let (Some(result), Some(phase)) = (&outcome.result, outcome.phase()) else {
                continue;
            };
            let cpu = |show: fn(crate::report::result::CpuResult) -> Option<String>| {
                phase.cpu.and_then(show).unwrap_or_else(|| "–".into())
            };
            let mebibytes = |bytes: u64| format!("{:.1}", as_f64(bytes) / as_f64(1 << 20));
            table.add_row([
                outcome.shards.to_string(),
                result.clients.to_string(),
                row.show(phase.delivered_per_second),
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

    fn of(&self, row: Row, kind: Kind) -> impl Iterator<Item = &Outcome> {
        self.outcomes
            .iter()
            .filter(move |outcome| outcome.row == row && outcome.kind == kind)
    }

    fn values(&self, row: Row, kind: Kind) -> Vec<f64> {
        self.of(row, kind).filter_map(Outcome::value).collect()
    }

    fn median(&self, row: Row, kind: Kind) -> Option<f64> {
        median(&self.values(row, kind))
    }

    fn p99(&self, row: Row, kind: Kind) -> Option<f64> {
        let p99s: Vec<f64> = self
            .of(row, kind)
            .filter_map(|outcome| Some(outcome.phase()?.latency.p99))
            .collect();
        median(&p99s)
    }

    /// The page, its plots, and everything as JSON.
    pub(crate) fn write_report(&self, folder: &Path) -> Result<()> {
        let mut figures = Vec::new();
        for row in &self.rows {
            let runs: Vec<(&str, &RunResult)> = self
                .servers
                .iter()
                .filter_map(|kind| {
                    Some((
                        kind.name(),
                        self.of(*row, *kind)
                            .find_map(|outcome| outcome.result.as_ref())?,
                    ))
                })
                .collect();
            let phases = |line: fn(&str, &PhaseResult) -> Line| -> Vec<Line> {
                runs.iter()
                    .filter_map(|(name, run)| Some(line(name, run.phases.first()?)))
                    .collect()
            };
            let (kind, caption, svg) = match row {
                Row::Idle | Row::Crowd => {
                    let lines: Vec<Line> = runs
                        .iter()
                        .map(|(name, run)| memory_line(name, run))
                        .collect();
                    (
                        "memory",
                        "memory over connections",
                        plots::plain(&lines, "connections", "MiB")?,
                    )
                }
                Row::Saturate | Row::Scale | Row::Soak => {
                    let lines = phases(throughput_line);
                    (
                        "throughput",
                        "throughput over time",
                        plots::plain(&lines, "seconds", "deliveries a second")?,
                    )
                }
                Row::Fanout | Row::Latency | Row::Channels | Row::Storm => (
                    "latency",
                    "latency distribution",
                    plots::latency(&phases(latency_line))?,
                ),
            };
            figures.push(Figure {
                file: format!("{row:?}-{kind}").to_lowercase(),
                caption: format!("{}: {caption}, first run", row.title()),
                svg,
            });
        }
        html::write(folder, "Fanfare and its peers", &self.text(), &figures)?;
        std::fs::write(
            folder.join("compare.json"),
            serde_json::to_vec_pretty(self)?,
        )?;
        Ok(())
    }
}
