//! Which shard wants which channel, and the way there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::hub::{
    BusEvent, EventBatch, Generation, InterestUpdate, News, RevocationSet, ShardId, ShardMessage,
};
use crate::protocol::{ChannelName, EventId};
use crate::telemetry::Traces;

/// The shards' wishes, and their queues.
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
    holders: Vec<(ShardId, Generation)>,
    record: Record,
}

/// What was seen of a channel since somebody wants it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    /// Every event of it has arrived since this was set, or is going to be read from history.
    pub(super) active: bool,
    /// The newest kept event; all before it were handed on. `None`: none yet.
    pub(super) seen: Option<EventId>,
    /// What follows `seen` was missed and not read yet.
    pub(super) has_hole: bool,
    /// Live events came, which nobody can read again.
    pub(super) had_live: bool,
}

struct Shard {
    inbox: mpsc::Sender<ShardMessage>,
    batch: Vec<BusEvent>,
    batch_bytes: usize,
}

/// What a change of interest means for the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
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
    pub(super) fn apply(&mut self, update: InterestUpdate) -> Vec<(ChannelName, Wish)> {
        let InterestUpdate { shard, changes } = update;
        changes
            .into_iter()
            .map(|(name, generation)| {
                let wish = match generation {
                    Some(generation) => {
                        let wanted = self.wanted.entry(name.clone()).or_default();
                        wanted.holders.retain(|(holder, _)| *holder != shard);
                        wanted.holders.push((shard, generation));
                        Wish::Wanted(generation)
                    }
                    None => self.withdraw(&name, shard),
                };
                (name, wish)
            })
            .collect()
    }

    fn withdraw(&mut self, name: &ChannelName, shard: ShardId) -> Wish {
        let Some(wanted) = self.wanted.get_mut(name) else {
            return Wish::Unwanted;
        };
        wanted.holders.retain(|(holder, _)| *holder != shard);
        if wanted.holders.is_empty() {
            self.wanted.remove(name);
            if self.wanted.len() * 4 < self.wanted.capacity() {
                self.wanted.shrink_to(self.wanted.len() * 2);
            }
            return Wish::Unwanted;
        }
        Wish::Unchanged
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

    /// What was seen of a wanted channel.
    pub(super) fn record(&mut self, name: &ChannelName) -> Option<&mut Record> {
        self.wanted.get_mut(name).map(|wanted| &mut wanted.record)
    }

    /// What was seen of every wanted channel.
    pub(super) fn records(&mut self) -> impl Iterator<Item = (&ChannelName, &mut Record)> {
        self.wanted
            .iter_mut()
            .map(|(name, wanted)| (name, &mut wanted.record))
    }

    /// Tells every shard that wants them that these channels are active.
    pub(super) async fn tell_active(&self, names: &[ChannelName], position: Option<EventId>) {
        let mut by_shard: Vec<Vec<(ChannelName, Generation)>> = vec![Vec::new(); self.shards.len()];
        for name in names {
            let wanted = self.wanted.get(name);
            for (shard, generation) in wanted.into_iter().flat_map(|wanted| &wanted.holders) {
                if let Some(active) = by_shard.get_mut(*shard) {
                    active.push((name.clone(), *generation));
                }
            }
        }
        for (shard, active) in self.shards.iter().zip(by_shard) {
            if !active.is_empty() {
                let news = News::Active {
                    channels: active,
                    position,
                };
                shard.tell(news).await;
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
            shard.tell(News::Active { channels, position }).await;
        }
    }

    /// Tells every shard up to which id everything was seen.
    pub(super) async fn tell_position(&self, position: EventId) {
        for shard in &self.shards {
            shard.tell(News::Position(position)).await;
        }
    }

    /// Tells every shard that ids went back to this one.
    pub(super) async fn tell_rewound(&self, position: EventId) {
        for shard in &self.shards {
            shard.tell(News::Rewound(position)).await;
        }
    }

    /// Has every shard end the streams of these sessions.
    pub(super) async fn tell_revoked(&self, revoked: Arc<RevocationSet>) {
        for shard in &self.shards {
            shard.tell(News::Revoked(Arc::clone(&revoked))).await;
        }
    }

    /// Tells every shard that the bus is lost.
    pub(super) async fn tell_lost(&self) {
        for shard in &self.shards {
            shard.tell(News::Lost).await;
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
        for (number, _) in &wanted.holders {
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

    /// Sends what waits.
    pub(super) async fn flush(&mut self) {
        for shard in &mut self.shards {
            shard.flush(self.arrived).await;
        }
    }
}

impl Shard {
    async fn tell(&self, news: News) {
        // A shard that is gone takes no news: the process is stopping.
        let _ = self.inbox.send(ShardMessage::News(news)).await;
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
