//! The log: text for people, JSON for machines, on standard error.

mod storms;

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt as format};

use super::trace::{SPANS, TracePipeline, spans_layer};

pub use storms::Storms;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line each.
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Starts logging with the directives of `filter`, and hands spans to `pipeline`. The caller has to
/// [run](Storms::run) what is returned. A second call has no effect: tests start several gateways in
/// one process.
pub fn start_log(filter: &str, format: LogFormat, pipeline: Option<&TracePipeline>) -> Arc<Storms> {
    let storms = Arc::new(Storms::default());
    let lines = format::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        // The request a line belongs to is one object, not a list of those around it.
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    // Of the log alone: spans are sent whatever it leaves out.
    let is_of_the_log = filter_fn(|metadata| metadata.target() != SPANS);
    let filter = EnvFilter::new(filter)
        .and(is_of_the_log.with_max_level_hint(LevelFilter::TRACE))
        .and(storms::Calm(Arc::clone(&storms)));
    let log = tracing_subscriber::registry().with(lines.with_filter(filter));
    let _ = match pipeline {
        Some(pipeline) => log.with(spans_layer(pipeline.tracer())).try_init(),
        None => log.try_init(),
    };
    storms
}
