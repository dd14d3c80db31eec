//! Who hears what: the part of a shard that fans events out.
//!
//! Events and subscription news come in through the shard's [`Inbox`], in the order the bus
//! produced them. Encoded bytes go out into one [`Mailbox`](mailbox) a connection, from which the
//! connection's own task writes to its socket. What the shard's clients want goes back to the bus
//! as [`InterestUpdate`]s.
//!
//! A hub belongs to one thread: there is no lock and no shared atomic on the way of an event.

mod channels;
mod fanout;
mod heartbeat;
mod interest;
mod mailbox;
pub(crate) mod replay;
mod shard;
mod stats;
mod subscriber;
mod subscription;
pub(crate) mod tail;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::protocol::{ChannelName, Event};

pub use interest::{Generation, InterestUpdate, ShardId};
pub use mailbox::{CloseReason, MailboxState, SlowClientPolicy};
pub use shard::Hub;
pub use stats::{Counter, Gauge, ShardStats};
pub use subscription::{AbortWatch, NotOpened, Subscription};

/// Batches that may wait for a shard. The bus waits beyond that, and Redis behind it: each batch
/// costs at most [`HubSettings::max_batch_bytes`], or is one event. The shard takes all of them at
/// once, so that a shard that is behind catches up with larger batches; so twice as many may be
/// in memory.
pub const INBOX_BATCHES: usize = 64;

/// What a shard is told, in order.
#[derive(Clone, Debug)]
pub enum ShardMessage {
    /// Events of channels the shard has interest in, in the order of publication.
    Events(Arc<[BusEvent]>),
    /// What has become of the bus, or is to become of the shard.
    News(News),
}

/// News for a shard.
#[derive(Clone, Debug)]
pub enum News {
    /// From here on every event of these channels arrives, if the generation still holds.
    Active(Vec<(ChannelName, Generation)>),
    /// The bus is lost: events of any channel may be missing from here on.
    Lost,
    /// Close every stream, spread evenly over this time.
    Drain(std::time::Duration),
}

/// What an event takes beside its encoded bytes: its own fields, and its place in queues.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// An event and the channel it was published to.
#[derive(Clone, Debug)]
pub struct BusEvent {
    /// The channel, without the Redis prefix.
    pub channel: ChannelName,
    /// The event, checked.
    pub event: Arc<Event>,
    cost_bytes: usize,
}

impl BusEvent {
    /// An event on its way to the shards.
    pub fn new(channel: ChannelName, event: Event) -> Self {
        Self {
            channel,
            cost_bytes: event.payload_len() + EVENT_OVERHEAD_BYTES,
            event: Arc::new(event),
        }
    }

    /// What it takes, in memory and encoded: the measure of every bound on its way. Even an event
    /// without data takes something, and a line end becomes a line.
    pub fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }
}

/// The receiving end of a shard's queue.
pub type Inbox = mpsc::Receiver<ShardMessage>;

/// What the hub needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct HubSettings {
    /// A silent connection is sent a comment after this time.
    pub heartbeat: std::time::Duration,
    /// Reconnection times are drawn from this range.
    pub retry: crate::protocol::RetryRange,
    /// A mailbox that holds this much takes no more.
    pub client_buffer_bytes: usize,
    /// What happens to a client whose mailbox is full.
    pub slow_client: SlowClientPolicy,
}

impl HubSettings {
    /// What the events of one batch may cost: a quarter of a mailbox, so that a healthy client
    /// drains its mailbox several times before a burst can fill it.
    pub fn max_batch_bytes(&self) -> usize {
        self.client_buffer_bytes / 4
    }
}
