//! Who hears what: the part of a shard that fans events out.
//!
//! Events and subscription news come in through the shard's [`Inbox`], in the order the bus
//! produced them. Encoded bytes go out into one mailbox a connection, from which the
//! connection's own task writes to its socket. What the shard's clients want goes back to the bus
//! as [`InterestUpdate`]s.
//!
//! A hub belongs to one thread: there is no lock and no shared atomic on the way of an event.

mod census;
mod channels;
mod close;
mod ends;
mod fanout;
mod heartbeat;
mod history;
mod interest;
mod open;
mod reads;
mod request;
mod resume;
mod revocation;
mod run;
mod session;
mod state;
mod stats;
mod subscriber;
mod subscription;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::continuity::{GapNotice, HistoryPage, KeptEvent};
use crate::protocol::{Audience, ChannelName, Event, EventId, TraceParent};

pub use census::{CensusReply, ChannelLoad};
pub use fanout::mailbox::{MailboxState, SlowClientPolicy};
pub use interest::{Generation, InterestUpdate, ShardId};
pub use request::{NotOpened, Start, StreamRequest};
pub use revocation::{MOST_REVOCATIONS, RevocationSet, Revocations};
pub use session::Session;
pub use state::Hub;
pub use stats::{
    CloseReason, LATENCY_BOUNDS_US, Latencies, LatencyTotal, RefuseReason, RejectReason,
    ResumeOutcome, ResumeSource, ShardStats,
};
pub use subscription::{AbortWatch, Subscription};

/// Batches that may wait for a shard. The bus waits beyond that, and Redis behind it: each batch
/// costs at most [`HubSettings::max_batch_bytes`], or is one event. The shard takes all of them at
/// once, so that a shard that is behind catches up with larger batches; so twice as many may be
/// in memory.
pub const INBOX_BATCHES: usize = 64;

/// What a shard is told, in order.
#[derive(Clone, Debug)]
pub enum ShardMessage {
    /// Events of channels the shard has interest in.
    Events(EventBatch),
    /// What has become of the bus, or is to become of the shard.
    BusUpdate(BusUpdate),
}

/// Events in the order of publication, and when the first of them arrived at this replica.
#[derive(Clone, Debug)]
pub struct EventBatch {
    /// The events.
    pub events: Arc<[BusEvent]>,
    /// When they were read from Redis, or published here.
    pub arrived: Instant,
}

/// A change of the bus, or an order to the shard.
#[derive(Clone, Debug)]
pub enum BusUpdate {
    /// Every event of these channels after `position` arrives, if the generation still holds.
    Active {
        /// The channels, and which interest in them is meant.
        channels: Vec<(ChannelName, Generation)>,
        /// The newest id up to which this replica has seen everything, where ids are known.
        position: Option<EventId>,
    },
    /// Everything up to this id has been seen, and what concerned this shard was sent to it.
    Position(EventId),
    /// Redis has lost the newest ids: those that follow are after this one, and may be lower than
    /// what was told. Gaps of every channel follow.
    Rewound(EventId),
    /// The bus is lost: events of any channel may be missing from here on.
    Lost,
    /// End the streams of these sessions. [`Revocations`] keeps them out already.
    Revoked(Arc<RevocationSet>),
    /// Tell which channels were the busiest since the last census.
    Census(CensusReply),
    /// Close every stream, spread evenly over this time.
    Drain(std::time::Duration),
}

/// What an event takes beside its encoded bytes: its own fields, and its place in queues.
const EVENT_OVERHEAD_BYTES: usize = 160;

fn cost_bytes(event: &Event) -> usize {
    let audience = event.audience().map_or(0, |audience| audience.cost_bytes());
    event.payload_len() + audience + EVENT_OVERHEAD_BYTES
}

/// Something for the clients of a channel.
#[derive(Clone, Debug)]
pub struct BusEvent {
    /// The channel, without the Redis prefix.
    pub channel: ChannelName,
    /// What happened there.
    pub item: Item,
    cost_bytes: usize,
    /// Whoever follows it through the shards.
    watch: Option<Arc<dyn FanOutWatch>>,
}

/// Follows one event through its fan-out; dropped some time after every shard is done with it.
pub trait FanOutWatch: fmt::Debug + Send + Sync {
    /// A shard has just handed the event to so many clients, all that are to have it.
    fn handed_to(&self, clients: usize);
}

/// What clients of a channel are told.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event that is in no history.
    Live(Arc<Event>),
    /// An event of the channel's history; the ids of a channel only grow.
    Kept {
        /// The event and its place.
        event: KeptEvent,
        /// It was recovered after later events of other channels had been sent.
        late: bool,
    },
    /// Something is missing here.
    Gap {
        /// What, and why.
        notice: GapNotice,
        /// It was found after later events of other channels had been sent.
        late: bool,
    },
}

impl Item {
    /// The sessions it is for; `None`: everybody.
    fn audience(&self) -> Option<&Arc<Audience>> {
        match self {
            Self::Live(event) => event.audience(),
            Self::Kept { event, .. } => event.audience(),
            Self::Gap { .. } => None,
        }
    }
}

impl BusEvent {
    /// A live event on its way to the shards.
    pub fn live(channel: ChannelName, event: Event) -> Self {
        Self {
            channel,
            cost_bytes: cost_bytes(&event),
            item: Item::Live(Arc::new(event)),
            watch: None,
        }
    }

    /// A kept event on its way to the shards.
    pub fn kept(channel: ChannelName, event: KeptEvent, late: bool) -> Self {
        let content = event.event.as_ref();
        Self {
            channel,
            cost_bytes: content.map_or(EVENT_OVERHEAD_BYTES, |event| cost_bytes(event)),
            item: Item::Kept { event, late },
            watch: None,
        }
    }

    /// A gap, in order with the events around it.
    pub fn gap(channel: ChannelName, notice: GapNotice, late: bool) -> Self {
        Self {
            channel,
            cost_bytes: EVENT_OVERHEAD_BYTES,
            item: Item::Gap { notice, late },
            watch: None,
        }
    }

    /// Has somebody follow it.
    pub fn watched_by(&mut self, watch: Option<Arc<dyn FanOutWatch>>) {
        self.watch = watch;
    }

    /// Its id, if it is a kept event.
    pub fn id(&self) -> Option<EventId> {
        match &self.item {
            Item::Kept { event, .. } => Some(event.id),
            Item::Live(_) | Item::Gap { .. } => None,
        }
    }

    /// The trace that it belongs to.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        match &self.item {
            Item::Live(event) => event.trace_parent(),
            Item::Kept { event, .. } => event.event.as_ref()?.trace_parent(),
            Item::Gap { .. } => None,
        }
    }

    /// What it takes, in memory and encoded: the measure of every bound on its way. Even an event
    /// without data takes something, and a line end becomes a line.
    pub fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }
}

/// A shard asks for a part of a channel's history.
#[derive(Debug)]
pub struct HistoryRequest {
    /// Whose history.
    pub channel: ChannelName,
    /// Which part.
    pub read: HistoryRead,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Arc<HistoryPage<KeptEvent>>, HistoryError>>,
}

/// A part of a channel's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HistoryRead {
    /// From this id on, and up to so many events before it.
    From {
        /// The id, inclusive.
        id: EventId,
        /// How many events before it.
        preceding: u32,
    },
    /// The newest so many.
    Newest(u32),
}

/// Why a history was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Not now; worth another try.
    #[error("the history cannot be read now: {0}")]
    Unavailable(String),
    /// There are no kept events here: Redis does not have the function, or may not have it.
    #[error("there are no kept events here")]
    Unsupported,
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
    /// How far a replica of Redis may be behind its primary: what is older survives a failover.
    pub lag_bound: std::time::Duration,
    /// What the recent kept events of this shard's channels may take.
    pub tail_bytes: usize,
    /// No stream gets older than this; at least two heartbeats.
    pub max_connection_age: Option<std::time::Duration>,
}

impl HubSettings {
    /// What the events of one batch may cost: a quarter of a mailbox, so that a healthy client
    /// drains its mailbox several times before a burst can fill it.
    pub fn max_batch_bytes(&self) -> usize {
        self.client_buffer_bytes / 4
    }

    /// How old a stream gets that is opened now, if there is a bound: at random the second half of
    /// it, so that clients that came together do not leave together. Streams are looked at once a
    /// heartbeat interval, so one of it is left off.
    fn draw_age(&self) -> Option<std::time::Duration> {
        let most = self.max_connection_age?;
        let spread = (most / 2).saturating_sub(self.heartbeat);
        Some(most / 2 + spread.mul_f64(fastrand::f64()))
    }
}
