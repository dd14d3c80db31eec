//! The log: text for people, JSON for machines, on standard error.

mod queue;
mod storms;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use prometheus::IntCounter;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt as format};

use super::trace::{SPANS, TracePipeline, spans_layer};

use queue::LogQueue;
use storms::Storms;

/// The target of lines about the log itself, which are never summed up.
const TARGET: &str = "fanfare::log";

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

/// The running log.
#[derive(Debug)]
pub struct Log {
    storms: Arc<Storms>,
    queue: LogQueue,
}

impl Log {
    /// Starts logging with the directives of `filter`, and hands spans to `pipeline`. A second call has
    /// no effect: tests start several gateways in one process.
    pub fn start(filter: &str, format: LogFormat, pipeline: Option<&TracePipeline>) -> Self {
        let storms = Arc::new(Storms::default());
        let (writer, queue) = LogQueue::start();
        let lines = format::layer()
            .with_writer(writer)
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
        Self { storms, queue }
    }

    /// Sums up repeated lines, and counts in `dropped` those that were dropped; never ends.
    pub fn keep(&self, dropped: IntCounter) -> impl Future<Output = ()> + Send + use<> {
        let (storms, lines) = (Arc::clone(&self.storms), self.queue.dropped());
        async move {
            tokio::join!(storms.run(), lines.run(dropped));
        }
    }

    /// Writes what is still to be summed up, and waits a moment until everything is written.
    pub fn finish(self) {
        self.storms.finish();
        self.queue.finish();
    }
}

/// Logs panics as lines like any other. The hook that Rust comes with waits for standard error.
pub fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tracing::dispatcher::has_been_set() {
            return before(panic);
        }
        let backtrace = Backtrace::capture();
        let is_captured = backtrace.status() == BacktraceStatus::Captured;
        tracing::error!(
            thread = std::thread::current().name(),
            location = panic.location().map(tracing::field::display),
            backtrace = is_captured.then(|| tracing::field::display(backtrace)),
            "panicked: {}",
            panic.payload_as_str().unwrap_or("no message")
        );
    }));
}
