//! What operators see: log lines and metrics.

mod auth;
mod log;
mod metrics;
pub(crate) mod occurrences;

pub use auth::{AuthMetrics, JwksOutcome};
pub use log::{LogFormat, start_log};
pub use metrics::{BusMetrics, DropReason, EventKind, Metrics, PublishOutcome};
