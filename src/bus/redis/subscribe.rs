//! The subscriber connection and its supervisor.
//!
//! The desired channels live outside the connection, in [`Routing`]. Whenever the connection is
//! lost the supervisor makes another, for ever, and subscribes to all of them again. A connection
//! that looks healthy proves nothing: every few seconds a probe is published on a channel of this
//! replica's own, and one that does not come back in time ends the connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, RedisError, RedisResult};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_info};
use super::ingest::{Message, ProbeArrival, PushQueue, QueueEnd};
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
    /// Redis does not allow it to this user. Asked for again once nobody wants it any more.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Subscribe,
    Unsubscribe,
}

/// A command under way. At most one is, so its effect on each channel is certain.
struct Command {
    verb: Verb,
    channels: Vec<ChannelName>,
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
        let queue = PushQueue::new(&self.probe_channel);
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
    /// Channels Redis has, is about to have, or refuses, on this connection.
    standing: HashMap<ChannelName, Standing>,
    to_subscribe: ChannelQueue,
    to_unsubscribe: ChannelQueue,
    /// Parts of a command that was refused, to be tried by themselves.
    to_narrow: Vec<Vec<ChannelName>>,
    command: Option<Command>,
    /// Channels wanted when the connection was made that are not settled yet.
    unsettled_at_start: usize,
    probe_number: u64,
    /// When the probe under way was sent.
    probe_sent: Option<Instant>,
    /// A probe has come back.
    proven: bool,
}

/// Channels in the order they came, each once.
#[derive(Default)]
struct ChannelQueue {
    order: VecDeque<ChannelName>,
    members: HashSet<ChannelName>,
}

impl ChannelQueue {
    fn push(&mut self, name: ChannelName) {
        if self.members.insert(name.clone()) {
            self.order.push_back(name);
        }
    }

    fn pop(&mut self) -> Option<ChannelName> {
        let name = self.order.pop_front()?;
        self.members.remove(&name);
        if self.order.is_empty() {
            // What a crowd of channels took is given back.
            *self = Self::default();
        }
        Some(name)
    }
}

impl<'a> Session<'a> {
    fn new(
        supervisor: &'a mut Supervisor,
        connection: MultiplexedConnection,
        queue: PushQueue,
    ) -> Self {
        let mut to_subscribe = ChannelQueue::default();
        for name in supervisor.routing.wanted() {
            to_subscribe.push(name.clone());
        }
        Self {
            unsettled_at_start: to_subscribe.order.len(),
            to_subscribe,
            to_unsubscribe: ChannelQueue::default(),
            to_narrow: Vec::new(),
            supervisor,
            connection,
            queue,
            standing: HashMap::new(),
            command: None,
            probe_number: fastrand::u64(..),
            probe_sent: None,
            proven: false,
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
            self.tell_health();
            let command =
                OptionFuture::from(self.command.as_mut().map(|command| &mut command.answer));
            let probe_deadline = self
                .probe_sent
                .map(|sent| sleep_until(sent + PROBE_DEADLINE));
            tokio::select! {
                arrived = self.queue.take() => {
                    let arrived = arrived?;
                    if let Some(probe) = arrived.probe {
                        self.probe_returned(probe);
                    }
                    self.ingest(arrived.messages).await;
                }
                update = self.supervisor.updates.recv() => {
                    self.take_interest(update.ok_or(SessionEnd::Stopping)?).await;
                }
                Some(answer) = command => self.settle(answer).await?,
                _ = probes.tick(), if self.probe_sent.is_none() => {
                    probe_answer = OptionFuture::from(Some(self.send_probe()));
                }
                Some(answer) = &mut probe_answer => {
                    answer.map_err(SessionEnd::Probe)?;
                    probe_answer = OptionFuture::default();
                }
                Some(()) = OptionFuture::from(probe_deadline) => match self.queue.probe() {
                    Some(probe) => self.probe_returned(probe),
                    None => return Err(SessionEnd::ProbeLate),
                },
            }
        }
    }

    /// Notes what the shards want; what Redis already has is active at once.
    async fn take_interest(&mut self, update: InterestUpdate) {
        let shard = update.shard;
        let mut active = Vec::new();
        for (name, wish) in self.supervisor.routing.apply(update) {
            match (wish, self.standing.get(&name)) {
                (Wish::Wanted(generation), Some(Standing::Subscribed)) => {
                    active.push((name, generation));
                }
                (Wish::Wanted(_), None) => self.to_subscribe.push(name),
                (Wish::Unwanted, Some(Standing::Subscribed)) => self.to_unsubscribe.push(name),
                (Wish::Unwanted, Some(Standing::Refused)) => {
                    self.standing.remove(&name);
                }
                // A command under way: what is wanted then is looked at when it is settled.
                _ => {}
            }
        }
        if !active.is_empty() {
            self.supervisor.routing.tell_one_active(active, shard).await;
        }
    }

    /// The next command that brings Redis nearer to what is wanted. Subscribing comes first:
    /// somebody waits for it.
    fn next_command(&mut self) -> Option<Command> {
        let mut channels = Vec::new();
        while let (true, Some(part)) = (channels.is_empty(), self.to_narrow.pop()) {
            let all = part.len();
            channels.extend(part.into_iter().filter(|name| {
                self.supervisor.routing.wants(name) && !self.standing.contains_key(name)
            }));
            let given_up = all - channels.len();
            self.unsettled_at_start = self.unsettled_at_start.saturating_sub(given_up);
        }
        while channels.len() < CHANNELS_PER_COMMAND
            && self.to_narrow.is_empty()
            && let Some(name) = self.to_subscribe.pop()
        {
            if self.supervisor.routing.wants(&name) && !self.standing.contains_key(&name) {
                channels.push(name);
            } else {
                self.unsettled_at_start = self.unsettled_at_start.saturating_sub(1);
            }
        }
        if !channels.is_empty() {
            return Some(self.command(Verb::Subscribe, channels));
        }
        while channels.len() < CHANNELS_PER_COMMAND
            && let Some(name) = self.to_unsubscribe.pop()
        {
            let subscribed = self.standing.get(&name) == Some(&Standing::Subscribed);
            if subscribed && !self.supervisor.routing.wants(&name) {
                channels.push(name);
            }
        }
        (!channels.is_empty()).then(|| self.command(Verb::Unsubscribe, channels))
    }

    fn command(&mut self, verb: Verb, channels: Vec<ChannelName>) -> Command {
        let standing = match verb {
            Verb::Subscribe => Standing::Subscribing,
            Verb::Unsubscribe => Standing::Unsubscribing,
        };
        let names: Vec<_> = channels
            .iter()
            .map(|name| format!("{}{name}", self.supervisor.prefix))
            .collect();
        for name in &channels {
            self.standing.insert(name.clone(), standing);
        }
        let mut connection = self.connection.clone();
        let answer = async move {
            match verb {
                Verb::Subscribe => connection.subscribe(names).await,
                Verb::Unsubscribe => connection.unsubscribe(names).await,
            }
        };
        Command {
            verb,
            channels,
            answer: answer.boxed(),
        }
    }

    /// Notes what the command under way has done.
    async fn settle(&mut self, answer: RedisResult<()>) -> Result<(), SessionEnd> {
        let Some(Command { verb, channels, .. }) = self.command.take() else {
            return Ok(());
        };
        match answer {
            Ok(()) => {}
            Err(error) if verb == Verb::Subscribe && error.code() == Some("NOPERM") => {
                self.narrow(channels, &error);
                return Ok(());
            }
            Err(error) => return Err(SessionEnd::Subscribe(error)),
        }
        for name in &channels {
            match verb {
                Verb::Subscribe => self.standing.insert(name.clone(), Standing::Subscribed),
                Verb::Unsubscribe => self.standing.remove(name),
            };
            // Wishes may have changed while it was under way.
            match (verb, self.supervisor.routing.wants(name)) {
                (Verb::Subscribe, false) => self.to_unsubscribe.push(name.clone()),
                (Verb::Unsubscribe, true) => self.to_subscribe.push(name.clone()),
                _ => {}
            }
        }
        if self.standing.len() * 4 < self.standing.capacity() {
            self.standing.shrink_to(self.standing.len() * 2);
        }
        if verb == Verb::Subscribe {
            self.unsettled_at_start = self.unsettled_at_start.saturating_sub(channels.len());
            self.supervisor.routing.tell_active(&channels).await;
        }
        Ok(())
    }

    /// Redis refuses a command as a whole when its user may not read one of the channels. Halves
    /// are tried until that channel stands alone, so that it costs nobody else anything.
    fn narrow(&mut self, mut channels: Vec<ChannelName>, error: &RedisError) {
        for name in &channels {
            self.standing.remove(name);
        }
        if channels.len() > 1 {
            let half = channels.split_off(channels.len() / 2);
            self.to_narrow.extend([half, channels]);
            return;
        }
        for name in channels {
            tracing::warn!(channel = %name, %error, "Redis refuses a channel");
            self.unsettled_at_start = self.unsettled_at_start.saturating_sub(1);
            if self.supervisor.routing.wants(&name) {
                self.standing.insert(name, Standing::Refused);
            }
        }
    }

    fn send_probe(&mut self) -> BoxFuture<'static, RedisResult<()>> {
        self.probe_number = self.probe_number.wrapping_add(1);
        self.probe_sent = Some(Instant::now());
        let mut connection = self.connection.clone();
        let mut command = redis::cmd("PUBLISH");
        command
            .arg(&self.supervisor.probe_channel)
            .arg(self.probe_number.to_string());
        async move { command.exec_async(&mut connection).await }.boxed()
    }

    /// A probe came back: what is subscribed arrives.
    fn probe_returned(&mut self, probe: ProbeArrival) {
        if probe.number != self.probe_number {
            return;
        }
        let Some(sent) = self.probe_sent.take() else {
            return;
        };
        let took = probe.at.saturating_duration_since(sent);
        self.supervisor
            .metrics
            .probe_seconds
            .observe(took.as_secs_f64());
        self.proven = true;
    }

    /// Up is: proven, and everything that was wanted when the connection was made is subscribed.
    fn tell_health(&mut self) {
        let supervisor = &mut *self.supervisor;
        if !self.proven
            || self.unsettled_at_start > 0
            || *supervisor.health.borrow() == BusHealth::Up
        {
            return;
        }
        supervisor.metrics.up.set(1);
        supervisor.backoff = *BACKOFF.start();
        supervisor.health.send_replace(BusHealth::Up);
        tracing::info!("Redis is up: events arrive");
    }

    /// Hands everything that has arrived to the shards that want it.
    async fn ingest(&mut self, messages: VecDeque<Message>) {
        let supervisor = &mut *self.supervisor;
        for Message { channel, payload } in messages {
            let Some(channel) = std::str::from_utf8(&channel)
                .ok()
                .and_then(|channel| channel.strip_prefix(&supervisor.prefix))
                .and_then(|name| supervisor.routing.channel(name))
                .cloned()
            else {
                continue;
            };
            supervisor.metrics.live_received.inc();
            match decode(Bytes::from(payload), supervisor.max_event_bytes) {
                Ok(event) if event.audience().is_some() => {
                    supervisor.metrics.dropped(DropReason::NoAudience).inc();
                }
                Ok(event) => {
                    supervisor
                        .routing
                        .route(BusEvent::new(channel, event))
                        .await;
                }
                Err(fault) => supervisor.note_dropped(&channel, &fault),
            }
        }
        supervisor.routing.flush().await;
    }
}
