//! Where events come from: Redis pub/sub, or a bus inside this process.
//!
//! A bus takes [`InterestUpdate`]s from the shards and keeps exactly the channels subscribed that
//! somebody wants. It hands each shard the events of its channels, in order, and tells it when a
//! channel is active and when everything is lost. What is published over HTTP goes out through a
//! [`Publisher`]. The hub and the HTTP edge know nothing else of it.

pub(crate) mod chain;
mod embedded;
mod redis;
mod routing;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::config::{BusConfig, Config};
use crate::hub::{HistoryRequest, InterestUpdate, ShardMessage};
use crate::protocol::{ChannelName, Event};
use crate::telemetry::BusMetrics;

pub use redis::{library, publish_once};

/// Interest updates that may wait for the bus. Each shard has at most one under way and merges
/// what changes meanwhile, so this many shards never wait for one another.
const INTEREST_QUEUE: usize = 256;

/// Requests for history that may wait for the bus. A shard has at most one under way for each
/// channel; beyond this number they wait at the shard.
const HISTORY_QUEUE: usize = 256;

/// Whether events arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusHealth {
    /// They do.
    Up,
    /// They do not, for this reason.
    Down(String),
}

/// An event could not be handed to the bus.
#[derive(Debug, thiserror::Error)]
#[error("the bus is not available: {0}")]
pub struct PublishError(String);

/// Publishes events of this replica's HTTP clients, for all replicas.
#[derive(Clone, Debug)]
pub enum Publisher {
    /// Into this process.
    Embedded(embedded::EmbeddedPublisher),
    /// Through Redis.
    Redis(redis::RedisPublisher),
}

impl Publisher {
    /// Publishes a live event.
    ///
    /// # Errors
    /// When the bus did not take it within its deadline. It may have been published all the same.
    pub async fn publish(&self, channel: &ChannelName, event: Event) -> Result<(), PublishError> {
        match self {
            Self::Embedded(bus) => bus.publish(channel, event).await,
            Self::Redis(bus) => bus.publish(channel, &event).await,
        }
    }
}

/// A running bus.
pub struct Bus {
    /// Takes the shards' interest.
    pub interest: mpsc::Sender<InterestUpdate>,
    /// Takes the shards' requests for history.
    pub history: mpsc::Sender<HistoryRequest>,
    /// Publishes for the HTTP edge.
    pub publisher: Publisher,
    /// Whether events arrive.
    pub health: watch::Receiver<BusHealth>,
}

impl Bus {
    /// Starts the configured bus on the control runtime.
    ///
    /// # Errors
    /// When the Redis URL cannot be used.
    pub fn start(
        config: &Config,
        control: &Handle,
        shards: Vec<mpsc::Sender<ShardMessage>>,
        metrics: BusMetrics,
    ) -> Result<Self, ::redis::RedisError> {
        let (interest, updates) = mpsc::channel(INTEREST_QUEUE);
        let (history, _requests) = mpsc::channel(HISTORY_QUEUE);
        let routing = routing::Routing::new(shards, config.hub_settings().max_batch_bytes());
        let (publisher, health) = match &config.bus {
            BusConfig::Embedded => embedded::start(control, routing, updates, metrics),
            BusConfig::Redis(url) => redis::start(config, url, control, routing, updates, metrics)?,
        };
        Ok(Self {
            interest,
            history,
            publisher,
            health,
        })
    }
}
