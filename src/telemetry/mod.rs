//! What operators see: log lines, metrics and traces.

mod log;
mod metrics;
pub(crate) mod occurrences;
pub mod reasons;
mod trace;

pub(crate) use metrics::{ProcessUsage, process_usage};

pub use log::{Log, LogFormat, log_panics};
pub use metrics::{AuthMetrics, BusMetrics, Metrics, TlsMetrics};
pub use reasons::{DownCause, DropReason, EventKind, HandshakeOutcome, TokenFaultKind};
pub use trace::{
    Admission, AdmissionSpan, LAST_SPANS, TraceConfig, TraceError, TracePipeline, Traces,
};
