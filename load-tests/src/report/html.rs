//! `--report DIR`: one HTML page with the plots inside, and the plots as files of their own.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::clock::as_f64;
use crate::report::plots::{self, Line};
use crate::report::result::{PhaseResult, RunResult};
use crate::report::table;
use crate::worker::tally::BUCKET_NS;

/// A plot, its file's stem, and what it shows.
pub(crate) struct Figure {
    pub(crate) file: String,
    pub(crate) caption: String,
    pub(crate) svg: String,
}

/// Writes the page and its plots.
pub(crate) fn write(folder: &Path, title: &str, text: &str, figures: &[Figure]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body{{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         pre{{overflow-x:auto;background:#f4f4f4;padding:1rem}}svg{{max-width:100%;height:auto}}</style>\n\
         <h1>{title}</h1>\n<pre>{}</pre>\n",
        escaped(text),
        title = escaped(title),
    );
    for figure in figures {
        write!(
            page,
            "<h2>{}</h2>\n{}\n",
            escaped(&figure.caption),
            figure.svg
        )?;
        fs::write(folder.join(format!("{}.svg", figure.file)), &figure.svg)?;
    }
    fs::write(folder.join("index.html"), page)?;
    Ok(())
}

/// The page of a single run.
pub(crate) fn write_run(folder: &Path, result: &RunResult) -> Result<()> {
    let measured: Vec<&PhaseResult> = result
        .phases
        .iter()
        .filter(|phase| phase.delivered > 0)
        .collect();
    let mut figures = Vec::new();
    if !measured.is_empty() {
        let lines: Vec<Line> = measured
            .iter()
            .map(|phase| latency_line(&phase.name, phase))
            .collect();
        figures.push(Figure {
            file: "latency".into(),
            caption: "Latency distribution".into(),
            svg: plots::latency(&lines)?,
        });
        let lines: Vec<Line> = measured
            .iter()
            .map(|phase| throughput_line(&phase.name, phase))
            .collect();
        figures.push(Figure {
            file: "throughput".into(),
            caption: "Throughput over time".into(),
            svg: plots::plain(&lines, "seconds", "deliveries a second")?,
        });
    }
    if !result.samples.is_empty() {
        figures.push(Figure {
            file: "memory-over-connections".into(),
            caption: "Memory over connections".into(),
            svg: plots::plain(&[memory_line("server", result)], "connections", "MiB")?,
        });
        let points = result
            .samples
            .iter()
            .map(|sample| (sample.at_seconds, mebibytes(sample.proportional_bytes)));
        let line = Line {
            name: "server".into(),
            points: points.collect(),
        };
        figures.push(Figure {
            file: "memory-over-time".into(),
            caption: "Memory over time".into(),
            svg: plots::plain(&[line], "seconds", "MiB")?,
        });
    }
    write(
        folder,
        &format!("fanfare-load {}", result.scenario),
        &table::of_run(result),
        &figures,
    )
}

pub(crate) fn latency_line(name: &str, phase: &PhaseResult) -> Line {
    Line {
        name: name.to_owned(),
        points: phase.latency.curve.clone(),
    }
}

pub(crate) fn throughput_line(name: &str, phase: &PhaseResult) -> Line {
    let bucket_seconds = as_f64(BUCKET_NS) / 1e9;
    let points = phase.throughput.iter().enumerate().map(|(at, rate)| {
        (
            as_f64(u64::try_from(at).unwrap_or(0)) * bucket_seconds,
            *rate,
        )
    });
    Line {
        name: name.to_owned(),
        points: points.collect(),
    }
}

pub(crate) fn memory_line(name: &str, result: &RunResult) -> Line {
    // Only on the way up: afterwards the number of connections says nothing new.
    let peak = result
        .samples
        .iter()
        .map(|sample| sample.connections)
        .max()
        .unwrap_or(0);
    let until = result
        .samples
        .iter()
        .position(|sample| sample.connections == peak)
        .unwrap_or(0);
    let points = result.samples.iter().take(until + 1).map(|sample| {
        (
            f64::from(sample.connections),
            mebibytes(sample.proportional_bytes),
        )
    });
    Line {
        name: name.to_owned(),
        points: points.collect(),
    }
}

fn mebibytes(bytes: u64) -> f64 {
    as_f64(bytes) / as_f64(1 << 20)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
