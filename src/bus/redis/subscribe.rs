//! The subscriber connection and its supervisor.
//!
//! The desired channels live outside the connection, in [`Routing`]. Whenever the connection is
//! lost the supervisor makes another, for ever, and subscribes to all of them again. A connection
//! that looks healthy proves nothing: every few seconds a probe is published on a channel of this
//! replica's own, and one that does not come back in time ends the connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, RedisError, RedisResult};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_info};
use super::ingest::{Message, PushQueue, QueueEnd};
use crate::bus::BusHealth;
use crate::bus::routing::{Routing, Wish};
use crate::config::{Config, RedisUrl};
use crate::hub::{BusEvent, InterestUpdate};
use crate::protocol::{ChannelName, EnvelopeFault, decode};
use crate::telemetry::{BusMetrics, DropReason};

/// Between attempts to connect: doubled from the first to the last, each drawn from the upper
/// half, so that replicas do not come back together.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

/// How often the way through Redis is tried, and how long the probe may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Channels named in one command: some ten kilobytes, so that no command holds Redis up.
const CHANNELS_PER_COMMAND: usize = 512;

/// Broken messages are logged this often at the most.
const DROP_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot connect to Redis: {0}")]
    Connect(RedisError),
    #[error(transparent)]
    Queue(#[from] QueueEnd),
    #[error("Redis did not take a subscription: {0}")]
    Subscribe(RedisError),
    #[error("Redis did not take a probe: {0}")]
    Probe(RedisError),
    #[error("a probe did not come back within {PROBE_DEADLINE:?}")]
    ProbeLate,
    #[error("the gateway is stopping")]
    Stopping,
}

/// How a channel stands with Redis on the current connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Subscribing,
    Subscribed,
    Unsubscribing,
}

/// A command under way. At most one is, so its effect on each channel is certain.
struct Command {
    channels: Vec<ChannelName>,
    becomes: Option<Standing>,
    answer: BoxFuture<'static, RedisResult<()>>,
}

pub(super) struct Supervisor {
    client: Client,
    prefix: String,
    probe_channel: String,
    max_event_bytes: usize,
    routing: Routing,
    updates: mpsc::Receiver<InterestUpdate>,
    health: watch::Sender<BusHealth>,
    metrics: BusMetrics,
    backoff: Duration,
    /// Until when broken messages are counted without being logged, and how many were.
    quiet_until: Option<Instant>,
    dropped_quietly: u64,
}

impl Supervisor {
    pub(super) fn new(
        config: &Config,
        url: &RedisUrl,
        routing: Routing,
        updates: mpsc::Receiver<InterestUpdate>,
        health: watch::Sender<BusHealth>,
        metrics: BusMetrics,
    ) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(connection_info(url, ProtocolVersion::RESP3)?)?,
            prefix: config.prefix.clone(),
            // `$`: no client can name it. Random: no two replicas share it.
            probe_channel: format!("{}$probe.{:016x}", config.prefix, fastrand::u64(..)),
            max_event_bytes: config.max_event_bytes,
            routing,
            updates,
            health,
            metrics,
            backoff: *BACKOFF.start(),
            quiet_until: None,
            dropped_quietly: 0,
        })
    }

    /// Keeps a subscriber connection until the shards are gone.
    pub(super) async fn run(mut self) {
        loop {
            let end = match self.connect().await {
                Ok((connection, queue)) => Session::new(&mut self, connection, queue).run().await,
                Err(end) => end,
            };
            if matches!(end, SessionEnd::Stopping) {
                return;
            }
            self.lose(&end).await;
            let delay = self.backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.backoff = (self.backoff * 2).min(*BACKOFF.end());
            if self.absorbing_interest(sleep(delay)).await.is_none() {
                return;
            }
            self.metrics.reconnects.inc();
        }
    }

    async fn connect(&mut self) -> Result<(MultiplexedConnection, PushQueue), SessionEnd> {
        let queue = PushQueue::default();
        let sender = {
            let queue = queue.clone();
            move |push: PushInfo| {
                queue.push(push);
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(COMMAND_DEADLINE))
            .set_push_sender(sender);
        let client = self.client.clone();
        let probe_channel = self.probe_channel.clone();
        let attempt = async move {
            let mut connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            connection.subscribe(probe_channel).await?;
            Ok(connection)
        };
        match self.absorbing_interest(attempt).await {
            Some(Ok(connection)) => Ok((connection, queue)),
            Some(Err(error)) => Err(SessionEnd::Connect(error)),
            None => Err(SessionEnd::Stopping),
        }
    }

    /// Waits for `future` without keeping the shards waiting. `None` when they are gone.
    async fn absorbing_interest<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return Some(output),
                update = self.updates.recv() => {
                    self.routing.apply(update?);
                }
            }
        }
    }

    /// Counts a broken message, and logs at most one a second: a broken publisher must not fill
    /// the log.
    fn note_dropped(&mut self, channel: &ChannelName, fault: &EnvelopeFault) {
        self.metrics.dropped(DropReason::from(fault)).inc();
        let now = Instant::now();
        if self.quiet_until.is_some_and(|until| now < until) {
            self.dropped_quietly += 1;
            return;
        }
        self.quiet_until = Some(now + DROP_LOG_INTERVAL);
        let before = std::mem::take(&mut self.dropped_quietly);
        tracing::warn!(%channel, %fault, before, "a message from Redis was dropped");
    }

    async fn lose(&mut self, end: &SessionEnd) {
        let reason = end.to_string();
        let was_up = *self.health.borrow() == BusHealth::Up;
        let changed = self.health.send_if_modified(|health| {
            let down = BusHealth::Down(reason.clone());
            let changed = *health != down;
            *health = down;
            changed
        });
        self.metrics.up.set(0);
        if was_up {
            tracing::warn!(reason, "Redis lost: streams stay open, nothing arrives");
        } else if changed {
            tracing::warn!(reason, "Redis is not available");
        }
        self.routing.tell_lost().await;
    }
}

/// One connection's life.
struct Session<'a> {
    supervisor: &'a mut Supervisor,
    connection: MultiplexedConnection,
    queue: PushQueue,
    /// Channels Redis has, or is about to have, on this connection.
    standing: HashMap<ChannelName, Standing>,
    /// Channels whose standing may not be what is wanted, each once.
    unsettled: VecDeque<ChannelName>,
    in_unsettled: HashSet<ChannelName>,
    command: Option<Command>,
    probe: Probe,
}

/// The probe under way, or the one to come.
struct Probe {
    number: u64,
    sent: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        supervisor: &'a mut Supervisor,
        connection: MultiplexedConnection,
        queue: PushQueue,
    ) -> Self {
        let unsettled: VecDeque<_> = supervisor.routing.wanted().cloned().collect();
        Self {
            in_unsettled: unsettled.iter().cloned().collect(),
            unsettled,
            supervisor,
            connection,
            queue,
            standing: HashMap::new(),
            command: None,
            probe: Probe {
                number: fastrand::u64(..),
                sent: None,
            },
        }
    }

    async fn run(mut self) -> SessionEnd {
        match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, SessionEnd> {
        let mut probes = interval(PROBE_INTERVAL);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probe_answer = OptionFuture::default();
        loop {
            if self.command.is_none() {
                self.command = self.next_command();
            }
            let command =
                OptionFuture::from(self.command.as_mut().map(|command| &mut command.answer));
            let probe_deadline = self
                .probe
                .sent
                .map(|sent| sleep_until(sent + PROBE_DEADLINE));
            tokio::select! {
                messages = self.queue.take() => self.ingest(messages?).await,
                update = self.supervisor.updates.recv() => {
                    self.take_interest(update.ok_or(SessionEnd::Stopping)?).await;
                }
                Some(answer) = command => {
                    answer.map_err(SessionEnd::Subscribe)?;
                    self.settle().await;
                }
                _ = probes.tick(), if self.probe.sent.is_none() => {
                    probe_answer = OptionFuture::from(Some(self.send_probe()));
                }
                Some(answer) = &mut probe_answer => {
                    answer.map_err(SessionEnd::Probe)?;
                    probe_answer = OptionFuture::default();
                }
                Some(()) = OptionFuture::from(probe_deadline) => return Err(SessionEnd::ProbeLate),
            }
        }
    }

    /// Notes what the shards want; what Redis already has is active at once.
    async fn take_interest(&mut self, update: InterestUpdate) {
        let shard = update.shard;
        let mut active = Vec::new();
        for (name, wish) in self.supervisor.routing.apply(update) {
            match (wish, self.standing.get(&name)) {
                (Wish::Wanted(_, generation), Some(Standing::Subscribed)) => {
                    active.push((name, generation));
                }
                (Wish::Wanted(..) | Wish::Unwanted, _) => self.unsettle(name),
                (Wish::Unchanged, _) => {}
            }
        }
        if !active.is_empty() {
            self.supervisor.routing.tell_one_active(active, shard).await;
        }
    }

    fn unsettle(&mut self, name: ChannelName) {
        if self.in_unsettled.insert(name.clone()) {
            self.unsettled.push_back(name);
        }
    }

    /// The next command that brings Redis nearer to what is wanted.
    fn next_command(&mut self) -> Option<Command> {
        let mut channels = Vec::new();
        let mut becomes = None;
        while channels.len() < CHANNELS_PER_COMMAND {
            let Some(name) = self.unsettled.front() else {
                break;
            };
            let wanted = self.supervisor.routing.wants(name);
            let subscribed = self.standing.contains_key(name);
            let needs = match (wanted, subscribed) {
                (true, false) => Some(Standing::Subscribing),
                (false, true) => Some(Standing::Unsubscribing),
                _ => None,
            };
            // One kind a command.
            if needs.is_some() && !channels.is_empty() && needs != becomes {
                break;
            }
            let Some(name) = self.unsettled.pop_front() else {
                break;
            };
            self.in_unsettled.remove(&name);
            if let Some(standing) = needs {
                becomes = needs;
                self.standing.insert(name.clone(), standing);
                channels.push(name);
            }
        }
        let becomes = becomes?;
        let names: Vec<_> = channels
            .iter()
            .map(|name| format!("{}{name}", self.supervisor.prefix))
            .collect();
        let mut connection = self.connection.clone();
        let answer = async move {
            match becomes {
                Standing::Unsubscribing => connection.unsubscribe(names).await,
                Standing::Subscribing | Standing::Subscribed => connection.subscribe(names).await,
            }
        };
        Some(Command {
            channels,
            becomes: (becomes == Standing::Subscribing).then_some(Standing::Subscribed),
            answer: answer.boxed(),
        })
    }

    /// Notes what the command under way has done.
    async fn settle(&mut self) {
        let Some(command) = self.command.take() else {
            return;
        };
        for name in &command.channels {
            match command.becomes {
                Some(standing) => self.standing.insert(name.clone(), standing),
                None => self.standing.remove(name),
            };
            // Wishes may have changed while it was under way.
            if self.supervisor.routing.wants(name) != command.becomes.is_some() {
                self.unsettle(name.clone());
            }
        }
        if self.standing.len() * 4 < self.standing.capacity() {
            self.standing.shrink_to(self.standing.len() * 2);
            self.in_unsettled.shrink_to(self.in_unsettled.len() * 2);
            self.unsettled.shrink_to(self.unsettled.len() * 2);
        }
        if command.becomes.is_some() {
            self.supervisor.routing.tell_active(&command.channels).await;
        }
    }

    fn send_probe(&mut self) -> BoxFuture<'static, RedisResult<()>> {
        self.probe.number = self.probe.number.wrapping_add(1);
        self.probe.sent = Some(Instant::now());
        let mut connection = self.connection.clone();
        let mut command = redis::cmd("PUBLISH");
        command
            .arg(&self.supervisor.probe_channel)
            .arg(self.probe.number.to_string());
        async move { command.exec_async(&mut connection).await }.boxed()
    }

    /// A probe came back: everything subscribed arrives.
    fn probe_returned(&mut self, payload: &[u8]) {
        if payload != self.probe.number.to_string().as_bytes() {
            return;
        }
        let Some(sent) = self.probe.sent.take() else {
            return;
        };
        let supervisor = &mut *self.supervisor;
        supervisor
            .metrics
            .probe_seconds
            .observe(sent.elapsed().as_secs_f64());
        supervisor.metrics.up.set(1);
        supervisor.backoff = *BACKOFF.start();
        if supervisor.health.send_replace(BusHealth::Up) != BusHealth::Up {
            tracing::info!("Redis is up: events arrive");
        }
    }

    /// Hands everything that has arrived to the shards that want it.
    async fn ingest(&mut self, messages: VecDeque<Message>) {
        for Message { channel, payload } in messages {
            if channel == self.supervisor.probe_channel.as_bytes() {
                self.probe_returned(&payload);
                continue;
            }
            let Some(channel) = std::str::from_utf8(&channel)
                .ok()
                .and_then(|channel| channel.strip_prefix(&self.supervisor.prefix))
                .and_then(|name| self.supervisor.routing.channel(name))
                .cloned()
            else {
                continue;
            };
            self.supervisor.metrics.live_received.inc();
            match decode(Bytes::from(payload), self.supervisor.max_event_bytes) {
                Ok(event) if event.audience().is_some() => {
                    self.supervisor
                        .metrics
                        .dropped(DropReason::NoAudience)
                        .inc();
                }
                Ok(event) => {
                    let event = Arc::new(event);
                    self.supervisor
                        .routing
                        .route(BusEvent { channel, event })
                        .await;
                }
                Err(fault) => self.supervisor.note_dropped(&channel, &fault),
            }
        }
        self.supervisor.routing.flush().await;
    }
}
