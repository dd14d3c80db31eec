//! The Redis bus: one subscriber connection under a supervisor, and a pool for commands.

mod connect;
mod ingest;
pub mod library;
mod publish;
mod session;
mod subscribe;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::routing::Routing;
use super::{BusHealth, Publisher};
use crate::config::{Config, RedisUrl};
use crate::hub::InterestUpdate;
use crate::telemetry::BusMetrics;

pub(super) use publish::RedisPublisher;
pub use publish::publish_once;

/// Starts the bus. Redis need not be there yet.
pub(super) fn start(
    config: &Config,
    url: &RedisUrl,
    control: &Handle,
    routing: Routing,
    updates: mpsc::Receiver<InterestUpdate>,
    metrics: BusMetrics,
) -> Result<(Publisher, watch::Receiver<BusHealth>), redis::RedisError> {
    let (health_sender, health) = watch::channel(BusHealth::Down("not connected yet".into()));
    let supervisor =
        subscribe::Supervisor::new(config, url, routing, updates, health_sender, metrics)?;
    control.spawn(supervisor.run());
    let publisher = RedisPublisher::new(url, &config.prefix, control)?;
    Ok((Publisher::Redis(publisher), health))
}
