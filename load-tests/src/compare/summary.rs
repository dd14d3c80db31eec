//! What a comparison came to: the table with medians, ratios and targets, the spread, the failures.

mod sections;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::compare::noise;
use crate::compare::rows::{Figure as RowFigure, Measured, Row, median};
use crate::compare::servers::{Kind, Missing};
use crate::report::html::{self, Figure, latency_line, memory_line, throughput_line};
use crate::report::plots::{self, Line};
use crate::report::result::{PhaseResult, RunResult};
use crate::report::table::markdown;

/// One run of one server.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) row: Row,
    pub(crate) kind: Kind,
    pub(crate) shards: usize,
    /// Share of the machine that something else used just before.
    pub(crate) busy_before: f64,
    pub(crate) result: Option<Measured>,
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
    fn run(&self) -> Option<&RunResult> {
        self.result.as_ref()?.run()
    }

    fn phase(&self) -> Option<&PhaseResult> {
        self.result.as_ref()?.phase()
    }

    fn problems(&self) -> Vec<String> {
        let problems = self.run().into_iter().flat_map(|result| &result.problems);
        self.failure.iter().chain(problems).cloned().collect()
    }

    pub(crate) fn in_a_line(&self) -> String {
        let values: Vec<String> = self
            .row
            .figures()
            .iter()
            .filter_map(|figure| Some((figure.show)((figure.of)(self.result.as_ref()?)?)))
            .collect();
        let value = if values.is_empty() {
            "–".to_owned()
        } else {
            values.join(", ")
        };
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
            .filter(|row| row.in_table())
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
            let table = match row {
                Row::KeptPublish => self.publishing(),
                Row::Resume | Row::ResumeElsewhere => self.resuming(*row),
                _ => self.alone(*row),
            };
            writeln!(text, "{}\n\n{table}\n", row.title())?;
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
        if row.of_fanfare_alone() && kind != Kind::Fanfare {
            return "–".into();
        }
        let Some(value) = self.first_median(row, kind) else {
            return "failed †".into();
        };
        let reference = if kind == Kind::Fanfare {
            Kind::Floor
        } else {
            Kind::Fanfare
        };
        let shown: Vec<String> = row
            .figures()
            .iter()
            .filter_map(|figure| Some((figure.show)(self.median(row, kind, figure)?)))
            .collect();
        let mut cell = shown.join(", ");
        if let Some(reference) = self
            .first_median(row, reference)
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
        let fanfare: Vec<f64> = row
            .figures()
            .iter()
            .filter_map(|figure| self.median(row, Kind::Fanfare, figure))
            .collect();
        match row.met(&fanfare, self.first_median(row, Kind::Floor), well) {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None if !well => "NOT MET",
            None => "–",
        }
    }

    fn of(&self, row: Row, kind: Kind) -> impl Iterator<Item = &Outcome> {
        self.outcomes
            .iter()
            .filter(move |outcome| outcome.row == row && outcome.kind == kind)
    }

    fn values(&self, row: Row, kind: Kind, figure: &RowFigure) -> Vec<f64> {
        self.of(row, kind)
            .filter_map(|outcome| (figure.of)(outcome.result.as_ref()?))
            .collect()
    }

    fn median(&self, row: Row, kind: Kind, figure: &RowFigure) -> Option<f64> {
        median(&self.values(row, kind, figure))
    }

    /// The one that servers are compared by.
    fn first_median(&self, row: Row, kind: Kind) -> Option<f64> {
        self.median(row, kind, row.figures().first()?)
    }

    /// The page, its plots, and everything as JSON.
    pub(crate) fn write_report(&self, folder: &Path) -> Result<()> {
        let mut figures = Vec::new();
        for row in &self.rows {
            let runs: Vec<(&str, &RunResult)> = self
                .servers
                .iter()
                .filter_map(|kind| {
                    Some((kind.name(), self.of(*row, *kind).find_map(Outcome::run)?))
                })
                .collect();
            if runs.is_empty() {
                continue;
            }
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
                Row::Saturate | Row::Scale | Row::Soak | Row::Resume | Row::ResumeElsewhere => {
                    let lines = phases(throughput_line);
                    (
                        "throughput",
                        "throughput over time",
                        plots::plain(&lines, "seconds", "deliveries a second")?,
                    )
                }
                Row::KeptPublish => continue,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::kept_publish::KeptPublish;
    use crate::compare::kept_publish::{Pace, Pair};

    fn kept_publish(function: f64, pipelined: f64) -> Outcome {
        let pair = |publish, function| {
            let pace = |per_second| Pace {
                per_second,
                ..Pace::default()
            };
            Pair {
                publish: pace(publish),
                function: pace(function),
            }
        };
        Outcome {
            row: Row::KeptPublish,
            kind: Kind::Fanfare,
            shards: 1,
            busy_before: 0.0,
            result: Some(Measured::KeptPublish(KeptPublish {
                connections: 50,
                pipeline: 16,
                event_bytes: 100,
                one_at_a_time: pair(90e3, function),
                pipelined: pair(900e3, pipelined),
            })),
            failure: None,
        }
    }

    #[test]
    fn a_row_of_fanfare_alone_has_medians_and_a_verdict_and_leaves_the_peers_out() {
        let mut summary = Summary {
            rows: vec![Row::KeptPublish],
            servers: vec![Kind::Fanfare, Kind::Axum],
            missing: BTreeMap::new(),
            outcomes: vec![
                kept_publish(45e3, 80e3),
                kept_publish(54e3, 90e3),
                kept_publish(63e3, 70e3),
            ],
            shrink: 1,
        };
        let text = summary.text();
        let cell = "54 k/s, 0.60 × PUBLISH, 80 k/s pipelined";
        let row = text
            .lines()
            .find(|line| line.contains(cell))
            .unwrap_or_default();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.get(2..4), Some(&[cell, "–"][..]), "{text}");
        assert_eq!(cells.get(5), Some(&"met"));
        assert!(text.contains("| KeptPublish, by PUBLISH"), "{text}");

        summary.outcomes.push(Outcome {
            result: None,
            failure: Some("ERR Function not found".into()),
            ..kept_publish(0.0, 0.0)
        });
        assert!(!summary.fanfare_delivered_well());
        assert!(summary.text().contains("NOT MET"));
        summary.outcomes.drain(..3);
        let text = summary.text();
        assert!(
            text.contains("failed †") && text.contains("NOT MET"),
            "{text}"
        );
    }
}
