//! What operators see: log lines, metrics and traces.

mod auth;
mod log;
mod metrics;
pub(crate) mod occurrences;
mod trace;

pub(crate) use metrics::{ProcessUsage, process_usage};

pub use auth::{AuthMetrics, JwksOutcome};
pub use log::{LogFormat, Storms, start_log};
pub use metrics::{BusMetrics, DropReason, EventKind, Metrics, PublishOutcome};
pub use trace::{Admission, LAST_SPANS, PublishSpan, TraceError, TracePipeline, Traces};
