//! What operators see: log lines and metrics.

mod auth;
mod log;
mod metrics;

pub use auth::{AuthMetrics, JwksOutcome};
pub use log::{LogFormat, start_log};
pub use metrics::{BusMetrics, DropReason, Metrics};
