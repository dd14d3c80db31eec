//! What operators see: log lines and metrics.

mod log;
mod log_limit;
mod metrics;

pub use log::{LogFormat, start_log};
pub(crate) use log_limit::LogLimit;
pub use metrics::{BusMetrics, DropReason, Metrics};
