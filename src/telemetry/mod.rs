//! What operators see: log lines, metrics and traces.

mod log;
mod metrics;
mod trace;

pub use log::{LogFormat, Storms, start_log};
pub use metrics::{BusMetrics, DropReason, Metrics};
pub use trace::{Admission, PublishSpan, TraceError, TracePipeline, Traces};
