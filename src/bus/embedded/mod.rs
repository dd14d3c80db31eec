//! A bus inside the process: one replica, no Redis, the same behaviour.

mod store;
mod tickets;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::store::{Limits, NotKept, Store};
use super::routing::{InterestChange, Routing};
use super::{
    BusHealth, Inputs, KeepOptions, PeerSender, PublishError, Publisher, Services, TicketStore,
    peer_queue,
};
use crate::config::Config;
use crate::continuity::{Action, Feed, FeedSettings, Input, KeptEvent, Retention};
use crate::hub::{
    BusEvent, HistoryRead, HistoryRequest, InterestUpdate, MOST_REVOCATIONS, Revocations,
};
use crate::protocol::{ChannelName, Event, EventId, Revocation};
use crate::tasks::Tasks;
use crate::telemetry::occurrences::EventReceived;
use crate::telemetry::{BusMetrics, EventKind};

pub(super) use tickets::EmbeddedTickets;

/// Published events that may wait: publishers beyond it wait for their answer.
const PUBLISH_QUEUE: usize = 64;

/// How long a publisher waits for a place in the queue, and then for an answer. nginx/nginx.conf waits
/// longer.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// How often the position moves although nothing is published, and what has expired is forgotten:
/// as often as a replica behind Redis sends a probe.
const TICK: Duration = Duration::from_secs(5);

/// What histories and idempotency keys may take. Publishers are refused beyond it: who needs more
/// has Redis.
const MOST_BYTES: usize = 256 << 20;

/// What is on its way into the bus.
#[derive(Debug)]
enum Command {
    Publish(Published),
    Revoke(Revocation, oneshot::Sender<Result<(), TooMany>>),
}

/// There is no room for another revocation.
#[derive(Debug, thiserror::Error)]
#[error("there are {MOST_REVOCATIONS} revocations, which is the most")]
struct TooMany;

impl From<TooMany> for PublishError {
    fn from(error: TooMany) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<NotKept> for PublishError {
    fn from(error: NotKept) -> Self {
        match error {
            NotKept::Full(full) => Self::Unavailable(full.to_string()),
            NotKept::Ended(reason) => Self::Ended(reason.label().to_owned()),
        }
    }
}

/// An event on its way into the bus.
#[derive(Debug)]
struct Published {
    channel: ChannelName,
    event: Event,
    keep: Option<Keep>,
}

/// How it is kept, and who hears its id.
#[derive(Debug)]
struct Keep {
    options: KeepOptions,
    reply: oneshot::Sender<Result<EventId, NotKept>>,
}

/// Publishes into this process.
#[derive(Clone, Debug)]
pub struct EmbeddedPublisher(mpsc::Sender<Command>);

impl EmbeddedPublisher {
    pub(super) async fn publish(
        &self,
        channel: &ChannelName,
        event: Event,
    ) -> Result<(), PublishError> {
        self.send(Command::Publish(Published {
            channel: channel.clone(),
            event,
            keep: None,
        }))
        .await
    }

    pub(super) async fn publish_kept(
        &self,
        channel: &ChannelName,
        event: Event,
        options: KeepOptions,
    ) -> Result<EventId, PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Publish(Published {
            channel: channel.clone(),
            event,
            keep: Some(Keep { options, reply }),
        }))
        .await?;
        answered(answer).await
    }

    pub(super) async fn revoke(&self, revocation: Revocation) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Revoke(revocation, reply)).await?;
        answered(answer).await
    }

    async fn send(&self, command: Command) -> Result<(), PublishError> {
        match timeout(PUBLISH_DEADLINE, self.0.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PublishError::Unavailable("the gateway is stopping".into())),
            Err(_) => Err(PublishError::Unavailable("its queue is full".into())),
        }
    }
}

async fn answered<T, E: Into<PublishError>>(
    answer: oneshot::Receiver<Result<T, E>>,
) -> Result<T, PublishError> {
    match timeout(PUBLISH_DEADLINE, answer).await {
        Ok(Ok(result)) => result.map_err(Into::into),
        Ok(Err(_)) => Err(PublishError::Unavailable("the gateway is stopping".into())),
        Err(_) => Err(PublishError::Unavailable("no answer in time".into())),
    }
}

/// Starts the bus.
pub(super) fn start(
    config: &Config,
    tasks: &mut Tasks,
    routing: Routing,
    inputs: Inputs,
    metrics: BusMetrics,
) -> Services {
    let (publisher, published) = mpsc::channel(PUBLISH_QUEUE);
    let (_, health) = watch::channel(BusHealth::Up);
    let clock = Clock::start();
    let limits = Limits {
        events: config.history_length,
        ttl: config.history_ttl,
        bytes: MOST_BYTES,
    };
    let settings = FeedSettings {
        lag_bound: config.max_replication_lag,
        max_recovery_bytes: MOST_BYTES,
    };
    let bus = EmbeddedBus {
        store: Store::new(limits, clock.now_ms()),
        feed: Feed::new(settings, Retention::constant(config.history_ttl)),
        actions: Vec::new(),
        clock,
        routing,
        metrics,
    };
    tasks.spawn("the bus", bus.run(inputs, published));
    Services {
        publisher: Publisher::Embedded(EmbeddedPublisher(publisher)),
        tickets: TicketStore::Embedded(EmbeddedTickets::default()),
        health,
        tally: None,
        peers: PeerSender::Alone,
        heard: peer_queue::queue().1,
    }
}

/// The time of day when the process began, and what has passed since: it never steps.
#[derive(Clone, Copy, Debug)]
struct Clock {
    began: Instant,
    began_ms: u64,
}

impl Clock {
    fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: Instant::now(),
            began_ms: millis(since_epoch.unwrap_or_default()),
        }
    }

    fn now_ms(&self) -> u64 {
        self.began_ms.saturating_add(millis(self.began.elapsed()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

struct EmbeddedBus {
    store: Store,
    feed: Feed<ChannelName, KeptEvent>,
    /// Used again for each input.
    actions: Vec<Action<ChannelName, KeptEvent>>,
    clock: Clock,
    routing: Routing,
    metrics: BusMetrics,
}

impl EmbeddedBus {
    async fn run(mut self, inputs: Inputs, mut commands: mpsc::Receiver<Command>) {
        let Inputs {
            mut updates,
            mut asked,
            revocations,
        } = inputs;
        self.connect().await;
        let mut waiting = Vec::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => self.take_interest(update).await,
                    None => return,
                },
                Some(request) = asked.recv() => self.answer(request),
                _ = commands.recv_many(&mut waiting, PUBLISH_QUEUE) => {
                    self.routing.note_arrival(std::time::Instant::now());
                    for command in waiting.drain(..) {
                        match command {
                            Command::Publish(published) => self.publish(published).await,
                            Command::Revoke(revocation, reply) => {
                                let done = self.revoke(&revocations, revocation).await;
                                // Who is gone needs no answer.
                                let _ = reply.send(done);
                            }
                        }
                    }
                    self.routing.flush().await;
                }
                _ = ticks.tick() => {
                    let id = self.store.probe(self.clock.now_ms());
                    let epoch = self.store.epoch();
                    self.input(Input::Probe { id, epoch }).await;
                    revocations.prune();
                }
            }
        }
    }

    /// Nothing was missed, and every id is known.
    async fn connect(&mut self) {
        let (id, epoch) = (self.store.last(), self.store.epoch());
        let connected = Input::Connected {
            subscribed: Vec::new(),
            refused: Vec::new(),
            newest: Some(id),
        };
        self.input(connected).await;
        self.input(Input::Probe { id, epoch }).await;
    }

    async fn take_interest(&mut self, update: InterestUpdate) {
        let shard = update.shard;
        let (mut active, mut begun) = (Vec::new(), Vec::new());
        for (name, change) in self.routing.apply(update) {
            match change {
                InterestChange::Wanted(generation) if self.feed.is_active(&name) => {
                    active.push((name, generation));
                }
                InterestChange::Wanted(_) => {
                    self.input(Input::Wanted(name.clone())).await;
                    begun.push(name);
                }
                InterestChange::Unwanted => self.input(Input::Unwanted(name)).await,
                InterestChange::Unchanged => {}
            }
        }
        if !active.is_empty() {
            let position = self.feed.active_position();
            self.routing.tell_one_active(active, position, shard).await;
        }
        if !begun.is_empty() {
            let newest = Some(self.store.last());
            let channels = begun;
            self.input(Input::Subscribed { channels, newest }).await;
        }
    }

    /// Hands an input to the feed and performs what follows. A read is answered from memory.
    async fn input(&mut self, input: Input<ChannelName, KeptEvent>) {
        let mut actions = std::mem::take(&mut self.actions);
        self.feed.set_time(self.clock.began.elapsed());
        let mut next = Some(input);
        while let Some(input) = next.take() {
            self.feed.on(input, &mut actions);
            for action in actions.drain(..) {
                if let Some(Action::Read { channel, from, .. }) = self.routing.perform(action).await
                {
                    let read = HistoryRead::From {
                        id: from,
                        preceding: 0,
                    };
                    let page = self.store.read(&channel, read, self.clock.now_ms());
                    let page = Some(page);
                    next = Some(Input::Page { channel, page });
                }
            }
        }
        self.actions = actions;
    }

    fn answer(&mut self, request: HistoryRequest) {
        let page = self
            .store
            .read(&request.channel, request.read, self.clock.now_ms());
        // A shard that is gone needs no answer.
        let _ = request.reply.send(Ok(Arc::new(page)));
    }

    async fn revoke(
        &mut self,
        revocations: &Revocations,
        revocation: Revocation,
    ) -> Result<(), TooMany> {
        if revocations.add(std::slice::from_ref(&revocation)) > 0 {
            return Err(TooMany);
        }
        let revoked = Arc::new(std::iter::once(revocation).collect());
        self.routing.tell_revoked(revoked).await;
        Ok(())
    }

    async fn publish(&mut self, published: Published) {
        let Published {
            channel,
            event,
            keep,
        } = published;
        let wanted = self.routing.wants(channel.as_str());
        let received = |kind| {
            if wanted {
                EventReceived(kind).emit(&self.metrics);
            }
        };
        match keep {
            None => {
                received(EventKind::Live);
                self.input(Input::Live(channel.clone())).await;
                self.routing.route(BusEvent::live(channel, event)).await;
            }
            Some(Keep { options, reply }) => {
                let now_ms = self.clock.now_ms();
                let stored = self.store.publish(&channel, Some(event), &options, now_ms);
                let answer = match stored {
                    // Published before, with the same key.
                    Ok((id, None)) => Ok(id),
                    Ok((id, Some(event))) => {
                        received(EventKind::Kept);
                        let channel = wanted.then_some(channel);
                        self.input(Input::Kept { channel, event }).await;
                        Ok(id)
                    }
                    Err(error) => Err(error),
                };
                // A publisher that is gone needs no answer.
                let _ = reply.send(answer);
            }
        }
    }
}
