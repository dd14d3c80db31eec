//! Where events come from: Redis pub/sub, or a bus inside this process.
//!
//! A bus takes [`InterestUpdate`]s from the shards and keeps exactly the channels subscribed that
//! somebody wants. It hands each shard the events of its channels, in order and without holes, or
//! with a notice of a gap, and tells it when a channel is active and when everything is lost. It
//! answers [`HistoryRequest`]s. What is published over HTTP goes out through a [`Publisher`]. The
//! hub and the HTTP edge know nothing else of it.

mod embedded;
mod peer_queue;
mod peers;
mod redis;
mod routing;
mod tally;
mod tickets;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::config::{BusConfig, Config};
use crate::continuity::KeptEvent;
use crate::hub::{HistoryRequest, InterestUpdate, Revocations, ShardMessage};
use crate::protocol::{
    ChannelName, EndReason, EnvelopeFault, Event, EventId, KeptFrame, Revocation,
};
use crate::tasks::Tasks;
use crate::telemetry::{BusMetrics, DownCause, Traces};
use crate::warnings::Warnings;

#[cfg(test)]
pub use peer_queue::MAX_PEER_BYTES;
pub use peers::PeerSender;
pub(crate) use redis::POOL_PATIENCE;
pub use redis::{library, publish_once};
pub use tally::{Tally, TallyAnswer, TallyReport};
pub use tickets::{TicketStore, TicketsUnavailable};

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
    /// They do not.
    Down {
        /// What is the matter, for machines.
        cause: DownCause,
        /// The same for people, in detail.
        reason: String,
    },
}

/// An event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The bus does not take it now. It may have been published all the same.
    #[error("the bus is not available: {0}")]
    Unavailable(String),
    /// Redis takes no events now, and says so with this code. It may pass.
    #[error("{reason}")]
    NotNow {
        /// `OOM`, `NOREPLICAS`, `MISCONF`, …
        code: String,
        /// All that Redis said.
        reason: String,
    },
    /// The channel's key in Redis holds what is no history.
    #[error("{0}")]
    NotAHistory(String),
    /// The channel has ended.
    #[error("the channel has ended: {0}")]
    Ended(String),
    /// Events cannot be kept here: Redis does not have the function, or may not run it.
    #[error("events cannot be kept here: {0}")]
    Unsupported(String),
    /// Events can never be kept here: this Redis has no functions.
    #[error("events cannot be kept here: {0}")]
    Impossible(String),
    /// It breaks a rule.
    #[error("{0}")]
    Rejected(String),
}

/// How an event is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepOptions {
    /// The channel's history is cut to this many events; `None`: to the configured length.
    pub history: Option<u32>,
    /// An idempotency key: the second event of a key is not published, and has the first's id.
    pub key: Option<String>,
    /// It is the channel's last event. Without data there is no event, only the end.
    pub end: Option<EndReason>,
}

/// An event of a history as clients may get it, and the rule it breaks if nobody may.
pub(crate) fn kept_event(frame: KeptFrame) -> (KeptEvent, Option<EnvelopeFault>) {
    let (event, fault) = match frame.event {
        Ok(event) => (event.map(Arc::new), None),
        Err(fault) => (None, Some(fault)),
    };
    let kept = KeptEvent {
        id: frame.id,
        prev: frame.prev,
        published_ms: frame.published_ms,
        event,
        end: frame.end,
    };
    (kept, fault)
}

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
    /// When the bus did not take it within its deadline.
    pub async fn publish(&self, channel: &ChannelName, event: Event) -> Result<(), PublishError> {
        match self {
            Self::Embedded(bus) => bus.publish(channel, event).await,
            Self::Redis(bus) => bus.publish(channel, &event).await,
        }
    }

    /// Publishes an event that is kept in the channel's history, and returns its id.
    ///
    /// # Errors
    /// When the bus refuses it, or did not take it within its deadline.
    pub async fn publish_kept(
        &self,
        channel: &ChannelName,
        event: Event,
        options: KeepOptions,
    ) -> Result<EventId, PublishError> {
        match self {
            Self::Embedded(bus) => bus.publish_kept(channel, event, options).await,
            Self::Redis(bus) => bus.publish_kept(channel, &event, &options).await,
        }
    }

    /// Has all replicas end somebody's streams and keep them out.
    ///
    /// # Errors
    /// When the bus refuses it, or did not take it within its deadline.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), PublishError> {
        match self {
            Self::Embedded(bus) => bus.revoke(revocation).await,
            Self::Redis(bus) => bus.revoke(&revocation).await,
        }
    }
}

/// What the shards ask of a bus.
struct Inputs {
    updates: mpsc::Receiver<InterestUpdate>,
    asked: mpsc::Receiver<HistoryRequest>,
    /// Who is kept out: the bus adds what it hears.
    revocations: Arc<Revocations>,
}

/// A running bus.
pub struct Bus {
    /// Takes the shards' interest.
    pub interest: mpsc::Sender<InterestUpdate>,
    /// Takes the shards' requests for history.
    pub history: mpsc::Sender<HistoryRequest>,
    /// Publishes for the HTTP edge.
    pub publisher: Publisher,
    /// Keeps tickets for the HTTP edge.
    pub tickets: TicketStore,
    /// Whether events arrive.
    pub health: watch::Receiver<BusHealth>,
    /// What the replicas count together; `None` where there is one only.
    pub tally: Option<Tally>,
    /// Says something to all replicas.
    pub peers: PeerSender,
    /// What any of them says, this one included; nothing on a bus inside the process.
    pub heard: mpsc::Receiver<Bytes>,
    /// What is wrong although events arrive.
    pub warnings: Warnings,
}

/// What a bus serves the rest of the process with.
struct Services {
    publisher: Publisher,
    tickets: TicketStore,
    health: watch::Receiver<BusHealth>,
    tally: Option<Tally>,
    peers: PeerSender,
    heard: mpsc::Receiver<Bytes>,
}

impl Bus {
    /// Starts the configured bus on the control runtime.
    ///
    /// # Errors
    /// When the Redis URL cannot be used.
    pub fn start(
        config: &Config,
        tasks: &mut Tasks,
        shards: Vec<mpsc::Sender<ShardMessage>>,
        revocations: Arc<Revocations>,
        metrics: BusMetrics,
        traces: Option<Traces>,
    ) -> Result<Self, ::redis::RedisError> {
        let (interest, updates) = mpsc::channel(INTEREST_QUEUE);
        let (history, asked) = mpsc::channel(HISTORY_QUEUE);
        let inputs = Inputs {
            updates,
            asked,
            revocations,
        };
        let routing = routing::Routing::new(shards, config.hub_settings().max_batch_bytes())
            .traced_by(traces);
        let warnings = Warnings::default();
        let services = match &config.bus {
            BusConfig::Embedded => embedded::start(config, tasks, routing, inputs, metrics),
            BusConfig::Redis(url, source) => {
                let source = (url, source);
                redis::start(config, source, tasks, routing, inputs, metrics, &warnings)?
            }
        };
        Ok(Self {
            interest,
            history,
            publisher: services.publisher,
            tickets: services.tickets,
            health: services.health,
            tally: services.tally,
            peers: services.peers,
            heard: services.heard,
            warnings,
        })
    }
}
