//! The end: no new streams, the open ones closed, what is under way answered.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, interval_at, sleep, timeout_at};

use crate::admin::AdminState;
use crate::config::Config;
use crate::hub::{BusUpdate, ShardMessage};
use crate::supervision;
use crate::telemetry::LAST_SPANS;

/// After the drain period: for the last bytes to reach clients that read slowly.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// How often a drain says how many streams are left.
const DRAIN_PROGRESS: Duration = Duration::from_secs(2);

/// Stops in named phases: not ready, so that the balancer looks elsewhere; then no new streams,
/// and the open ones are closed, spread over the drain period; then, when requests under way are
/// answered, the end.
pub(super) async fn drain(
    config: &Config,
    inboxes: &[mpsc::Sender<ShardMessage>],
    admin: &AdminState,
) {
    admin.metrics.draining.set(1);
    let last_spans = config
        .traces
        .as_ref()
        .map_or(Duration::ZERO, |_| LAST_SPANS);
    supervision::stopping(config.drain_delay + config.drain_period + DRAIN_GRACE + last_spans);
    tracing::info!(delay = ?config.drain_delay, "not ready: waiting for the load balancer");
    sleep(config.drain_delay).await;
    tracing::info!(
        streams = admin.metrics.connections(),
        period = ?config.drain_period,
        "closing streams"
    );
    let deadline = Instant::now() + config.drain_period + DRAIN_GRACE;
    let drain = || ShardMessage::BusUpdate(BusUpdate::Drain(config.drain_period));
    let told = join_all(inboxes.iter().map(|inbox| inbox.send(drain())));
    // A shard whose queue is full until the deadline is cut off with its streams.
    let _ = timeout_at(deadline, told).await;
    // What has just been answered still has to be written: quiet is what is so twice.
    let mut is_quiet = false;
    let mut look = interval(Duration::from_millis(50));
    let mut progress = interval_at(Instant::now() + DRAIN_PROGRESS, DRAIN_PROGRESS);
    while Instant::now() < deadline {
        tokio::select! {
            _ = look.tick() => {
                let was_quiet = is_quiet;
                is_quiet = admin.metrics.connections() == 0 && admin.metrics.requests() == 0;
                if was_quiet && is_quiet {
                    break;
                }
            }
            _ = progress.tick() => {
                let left = deadline.duration_since(Instant::now());
                tracing::info!(streams = admin.metrics.connections(), deadline = ?left, "draining");
            }
        }
    }
    let (streams, requests) = (admin.metrics.connections(), admin.metrics.requests());
    if streams > 0 || requests > 0 {
        tracing::warn!(
            streams,
            requests,
            "closed the remaining streams and requests at the deadline"
        );
    }
}
