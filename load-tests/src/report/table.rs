//! The table at the end of a run.

use comfy_table::{CellAlignment, Table, presets};

use crate::clock::as_f64;
use crate::report::result::{PhaseResult, RunResult};

/// A table in the look of this tool: plain Markdown, so that it can be pasted as it is.
pub(crate) fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// What a run came to, a line a figure.
pub(crate) fn of_run(result: &RunResult) -> String {
    let mut table = markdown(&["figure", "value"]);
    for (name, value) in figures(result) {
        table.add_row([name, value]);
    }
    let verdict = if result.passed() {
        "passed: every delivery that was owed came once, in order".to_owned()
    } else {
        format!("FAILED: {}", result.problems.join("; "))
    };
    format!("{table}\n\n{verdict}")
}

fn figures(result: &RunResult) -> Vec<(String, String)> {
    let mut rows = vec![
        ("scenario".to_owned(), result.scenario.to_owned()),
        ("clients".into(), result.clients.to_string()),
        (
            "channels".into(),
            format!(
                "{}, {} a client",
                result.channels, result.channels_per_client
            ),
        ),
        (
            "all connected in".into(),
            format!("{:.2} s", result.connecting.seconds),
        ),
        (
            "connect → head p50 / p99 / max".into(),
            format!(
                "{} / {} / {}",
                millis(result.connecting.head.p50),
                millis(result.connecting.head.p99),
                millis(result.connecting.head.max)
            ),
        ),
    ];
    if result.connecting.errors + result.connecting.turned_away > 0 {
        let value = format!(
            "{} / {}",
            result.connecting.errors, result.connecting.turned_away
        );
        rows.push(("connect errors / turned away".into(), value));
    }
    if let Some(micros) = result.connecting.cpu_micros_per_connection {
        rows.push(("server CPU a connect".into(), format!("{micros:.1} µs")));
    }
    if let Some(memory) = result.memory {
        rows.push((
            "memory a connection".into(),
            kilobytes(memory.bytes_per_connection),
        ));
        let value = [
            memory.before,
            memory.connected,
            memory.peak,
            memory.after_leaving,
        ]
        .map(mebibytes)
        .join(" / ");
        rows.push(("memory before / connected / peak / after".into(), value));
    }
    for phase in &result.phases {
        if let (Some(cpu), true) = (phase.cpu, phase.published == 0 && phase.seconds > 0.0) {
            let micros = cpu.seconds * 1e6 / f64::from(result.clients) / phase.seconds;
            rows.push((
                format!("{}: server CPU a connection a second", phase.name),
                format!("{micros:.3} µs"),
            ));
        }
        rows.extend(
            phase_figures(phase)
                .into_iter()
                .map(|(name, value)| (format!("{}: {name}", phase.name), value)),
        );
    }
    rows
}

fn phase_figures(phase: &PhaseResult) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if phase.published > 0 {
        rows.extend([
            (
                "offered",
                format!(
                    "{}/s for {:.0} s",
                    short(phase.offered_deliveries_per_second),
                    phase.seconds
                ),
            ),
            (
                "delivered",
                format!(
                    "{}/s, {} of {}",
                    short(phase.delivered_per_second),
                    phase.delivered,
                    phase.expected
                ),
            ),
            (
                "latency p50 / p90 / p99 / p99.9 / max",
                [
                    phase.latency.p50,
                    phase.latency.p90,
                    phase.latency.p99,
                    phase.latency.p999,
                    phase.latency.max,
                ]
                .map(millis)
                .join(" / "),
            ),
            (
                "publisher late p50 / p99",
                [phase.publish_lag.p50, phase.publish_lag.p99]
                    .map(millis)
                    .join(" / "),
            ),
        ]);
    }
    if let Some(cpu) = phase.cpu {
        rows.push((
            "server CPU",
            format!("{:.2} s, {:.1} % of a core", cpu.seconds, cpu.load * 100.0),
        ));
        if let Some(micros) = cpu.micros_per_delivery {
            rows.push(("server CPU a delivery", format!("{micros:.2} µs")));
        }
        if let Some(micros) = cpu.micros_per_event {
            rows.push(("server CPU an event", format!("{micros:.2} µs")));
        }
    }
    if let Some(seconds) = phase.caught_up_seconds {
        rows.push(("all live after", format!("{seconds:.2} s")));
    }
    if let Some(counters) = &phase.gateway {
        let moved: Vec<String> = counters
            .moved()
            .map(|(series, count)| format!("{series} {count}"))
            .collect();
        let moved = if moved.is_empty() {
            "nothing".into()
        } else {
            moved.join(", ")
        };
        rows.push(("the gateway counted", moved));
    }
    let counts = [
        ("heartbeats", phase.heartbeats),
        ("gaps told", phase.gaps),
        ("clients churned", phase.churned),
        ("slow clients closed", phase.slow_closed),
    ];
    rows.extend(
        counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name, count.to_string())),
    );
    rows
}

pub(crate) fn millis(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2} ms"),
        value if value < 1000.0 => format!("{value:.0} ms"),
        value => format!("{:.1} s", value / 1e3),
    }
}

pub(crate) fn kilobytes(bytes: f64) -> String {
    format!("{:.2} KB", bytes / 1e3)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", as_f64(bytes) / as_f64(1 << 20))
}

/// 1234567 → 1.23 M
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 1e3 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}
