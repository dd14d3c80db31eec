//! Which shard wants which channel, and the way there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::continuity::{Action, KeptEvent};
use crate::hub::{
    BusEvent, BusUpdate, EventBatch, Generation, InterestUpdate, RevocationSet, ShardId,
    ShardMessage,
};
use crate::protocol::{ChannelName, EventId};
use crate::telemetry::Traces;

/// What the shards want, and their queues.
pub(super) struct Routing {
    shards: Vec<Shard>,
    wanted: HashMap<ChannelName, Wanted>,
    max_batch_bytes: usize,
    traces: Option<Traces>,
    /// When what is being routed arrived.
    arrived: Instant,
}

/// A channel that some shard wants.
#[derive(Default)]
struct Wanted {
    shards: Vec<(ShardId, Generation)>,
}

struct Shard {
    inbox: mpsc::Sender<ShardMessage>,
    batch: Vec<BusEvent>,
    batch_bytes: usize,
}

/// What a change of interest means for the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InterestChange {
    /// The channel is wanted; the shard waits to hear that this interest is active.
    Wanted(Generation),
    /// Nobody wants it any more.
    Unwanted,
    /// Others want it still.
    Unchanged,
}

impl Routing {
    pub(super) fn new(shards: Vec<mpsc::Sender<ShardMessage>>, max_batch_bytes: usize) -> Self {
        let shards = shards
            .into_iter()
            .map(|inbox| Shard {
                inbox,
                batch: Vec::new(),
                batch_bytes: 0,
            })
            .collect();
        Self {
            shards,
            wanted: HashMap::new(),
            max_batch_bytes,
            traces: None,
            arrived: Instant::now(),
        }
    }

    /// Has events traced whose publishers ask for it.
    pub(super) fn traced_by(mut self, traces: Option<Traces>) -> Self {
        self.traces = traces;
        self
    }

    /// Takes note of a shard's interest and says what each change means.
    pub(super) fn apply(&mut self, update: InterestUpdate) -> Vec<(ChannelName, InterestChange)> {
        let InterestUpdate { shard, changes } = update;
        changes
            .into_iter()
            .map(|(name, generation)| {
                let change = match generation {
                    Some(generation) => {
                        let wanted = self.wanted.entry(name.clone()).or_default();
                        wanted.shards.retain(|(other, _)| *other != shard);
                        wanted.shards.push((shard, generation));
                        InterestChange::Wanted(generation)
                    }
                    None => self.withdraw(&name, shard),
                };
                (name, change)
            })
            .collect()
    }

    fn withdraw(&mut self, name: &ChannelName, shard: ShardId) -> InterestChange {
        let Some(wanted) = self.wanted.get_mut(name) else {
            return InterestChange::Unwanted;
        };
        wanted.shards.retain(|(other, _)| *other != shard);
        if wanted.shards.is_empty() {
            self.wanted.remove(name);
            if self.wanted.len() * 4 < self.wanted.capacity() {
                self.wanted.shrink_to(self.wanted.len() * 2);
            }
            return InterestChange::Unwanted;
        }
        InterestChange::Unchanged
    }

    /// Whether anybody wants the channel.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wanted.contains_key(name)
    }

    /// Every wanted channel.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &ChannelName> {
        self.wanted.keys()
    }

    /// The wanted channel of this name, to be shared by its events.
    pub(super) fn channel(&self, name: &str) -> Option<&ChannelName> {
        self.wanted.get_key_value(name).map(|(channel, _)| channel)
    }

    /// Tells every shard that wants them that these channels are active.
    async fn tell_active(&self, names: &[ChannelName], position: Option<EventId>) {
        let mut by_shard: Vec<Vec<(ChannelName, Generation)>> = vec![Vec::new(); self.shards.len()];
        for name in names {
            let wanted = self.wanted.get(name);
            for (shard, generation) in wanted.into_iter().flat_map(|wanted| &wanted.shards) {
                if let Some(active) = by_shard.get_mut(*shard) {
                    active.push((name.clone(), *generation));
                }
            }
        }
        for (shard, active) in self.shards.iter().zip(by_shard) {
            if !active.is_empty() {
                let update = BusUpdate::Active {
                    channels: active,
                    position,
                };
                shard.tell(update).await;
            }
        }
    }

    /// Tells one shard that channels it asked for are active.
    pub(super) async fn tell_one_active(
        &self,
        channels: Vec<(ChannelName, Generation)>,
        position: Option<EventId>,
        to: ShardId,
    ) {
        if let Some(shard) = self.shards.get(to) {
            shard.tell(BusUpdate::Active { channels, position }).await;
        }
    }

    /// Tells every shard up to which id everything was seen.
    pub(super) async fn tell_position(&self, position: EventId) {
        for shard in &self.shards {
            shard.tell(BusUpdate::Position(position)).await;
        }
    }

    /// Tells every shard that ids went back to this one.
    async fn tell_rewound(&self, position: EventId) {
        for shard in &self.shards {
            shard.tell(BusUpdate::Rewound(position)).await;
        }
    }

    /// Has every shard end the streams of these sessions.
    pub(super) async fn tell_revoked(&self, revoked: Arc<RevocationSet>) {
        for shard in &self.shards {
            shard.tell(BusUpdate::Revoked(Arc::clone(&revoked))).await;
        }
    }

    /// Tells every shard that the bus is lost.
    pub(super) async fn tell_lost(&self) {
        for shard in &self.shards {
            shard.tell(BusUpdate::Lost).await;
        }
    }

    /// What is routed from here on arrived then. What was routed before is flushed.
    pub(super) fn note_arrival(&mut self, arrived: Instant) {
        self.arrived = arrived;
    }

    /// Puts an event on its way to the shards that want its channel. It leaves with the batch: at
    /// [`Routing::flush`], or when the batch is full. Waits while a shard's queue is full.
    pub(super) async fn route(&mut self, mut event: BusEvent) {
        let Some(wanted) = self.wanted.get(&event.channel) else {
            return;
        };
        if let Some(traces) = self.traces {
            event.watched_by(traces.fan_out(&event));
        }
        let bytes = event.cost_bytes();
        for (number, _) in &wanted.shards {
            let Some(shard) = self.shards.get_mut(*number) else {
                continue;
            };
            if shard.batch_bytes + bytes > self.max_batch_bytes {
                shard.flush(self.arrived).await;
            }
            shard.batch_bytes += bytes;
            shard.batch.push(event.clone());
        }
    }

    /// Performs what concerns the shards, and returns everything else.
    pub(super) async fn perform(
        &mut self,
        action: Action<ChannelName, KeptEvent>,
    ) -> Option<Action<ChannelName, KeptEvent>> {
        match action {
            Action::Event {
                channel,
                event,
                late,
                ..
            } => self.route(BusEvent::kept(channel, event, late)).await,
            Action::AsLive { channel, event } => {
                if let Some(event) = event.event {
                    let event = Arc::unwrap_or_clone(event);
                    self.route(BusEvent::live(channel, event)).await;
                }
            }
            Action::Gap {
                channel,
                notice,
                late,
            } => self.route(BusEvent::gap(channel, notice, late)).await,
            Action::Active { channels, position } => {
                self.flush().await;
                self.tell_active(&channels, position).await;
            }
            Action::Position(position) => {
                self.flush().await;
                self.tell_position(position).await;
            }
            Action::Rewound { to, .. } => {
                self.flush().await;
                self.tell_rewound(to).await;
            }
            other => return Some(other),
        }
        None
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) {
        for shard in &mut self.shards {
            shard.flush(self.arrived).await;
        }
    }
}

impl Shard {
    async fn tell(&self, update: BusUpdate) {
        // A shard that is gone takes no news: the process is stopping.
        let _ = self.inbox.send(ShardMessage::BusUpdate(update)).await;
    }

    async fn flush(&mut self, arrived: Instant) {
        if !self.batch.is_empty() {
            let events: Arc<[BusEvent]> = self.batch.drain(..).collect();
            self.batch_bytes = 0;
            let batch = EventBatch { events, arrived };
            let _ = self.inbox.send(ShardMessage::Events(batch)).await;
        }
    }
}
