//! One subscriber connection: keeping exactly the wanted channels subscribed, proving that events
//! arrive, and handing them to the shards.
//!
//! A connection that looks healthy proves nothing: every few seconds a probe is published on a
//! channel of this replica's own, and one that does not come back in time ends the session.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::ingest::{Message, ProbeArrival, PushQueue, QueueEnd};
use crate::bus::BusHealth;
use crate::bus::routing::{Routing, Wish};
use crate::hub::{BusEvent, InterestUpdate};
use crate::protocol::{ChannelName, EnvelopeFault, decode};
use crate::telemetry::{BusMetrics, DropReason};

/// How often the way through Redis is tried, and how long the probe may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Channels named in one command: some ten kilobytes, so that no command holds Redis up.
const CHANNELS_PER_COMMAND: usize = 512;

/// Broken messages are logged this often at the most.
const DROP_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
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

/// What outlives a connection: the wishes, the ways to shards and operators.
pub(super) struct SubscriberState {
    pub(super) prefix: String,
    pub(super) probe_channel: String,
    pub(super) max_event_bytes: usize,
    pub(super) routing: Routing,
    pub(super) updates: mpsc::Receiver<InterestUpdate>,
    pub(super) health: watch::Sender<BusHealth>,
    pub(super) metrics: BusMetrics,
    pub(super) drop_log: DropLog,
}

/// Until when broken messages are counted without being logged, and how many were.
#[derive(Default)]
pub(super) struct DropLog {
    quiet_until: Option<Instant>,
    dropped_quietly: u64,
}

impl SubscriberState {
    /// Counts a broken message, and logs at most one a second: a broken publisher must not fill
    /// the log.
    fn note_dropped(&mut self, channel: &ChannelName, fault: &EnvelopeFault) {
        self.metrics.dropped(DropReason::from(fault)).inc();
        let now = Instant::now();
        if self.drop_log.quiet_until.is_some_and(|until| now < until) {
            self.drop_log.dropped_quietly += 1;
            return;
        }
        self.drop_log.quiet_until = Some(now + DROP_LOG_INTERVAL);
        let before = std::mem::take(&mut self.drop_log.dropped_quietly);
        tracing::warn!(%channel, %fault, before, "a message from Redis was dropped");
    }
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

/// One connection's life.
pub(super) struct Session<'a> {
    state: &'a mut SubscriberState,
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
    pub(super) fn new(
        state: &'a mut SubscriberState,
        connection: MultiplexedConnection,
        queue: PushQueue,
    ) -> Self {
        let mut to_subscribe = ChannelQueue::default();
        for name in state.routing.wanted() {
            to_subscribe.push(name.clone());
        }
        Self {
            unsettled_at_start: to_subscribe.order.len(),
            to_subscribe,
            to_unsubscribe: ChannelQueue::default(),
            to_narrow: Vec::new(),
            state,
            connection,
            queue,
            standing: HashMap::new(),
            command: None,
            probe_number: fastrand::u64(..),
            probe_sent: None,
            proven: false,
        }
    }

    /// Serves until the connection has to be given up.
    pub(super) async fn run(mut self) -> SessionEnd {
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
                update = self.state.updates.recv() => {
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
        for (name, wish) in self.state.routing.apply(update) {
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
            self.state
                .routing
                .tell_one_active(active, None, shard)
                .await;
        }
    }

    /// The next command that brings Redis nearer to what is wanted. Subscribing comes first:
    /// somebody waits for it.
    fn next_command(&mut self) -> Option<Command> {
        let mut channels = Vec::new();
        while let (true, Some(part)) = (channels.is_empty(), self.to_narrow.pop()) {
            let all = part.len();
            channels.extend(part.into_iter().filter(|name| {
                self.state.routing.wants(name) && !self.standing.contains_key(name)
            }));
            let given_up = all - channels.len();
            self.unsettled_at_start = self.unsettled_at_start.saturating_sub(given_up);
        }
        while channels.len() < CHANNELS_PER_COMMAND
            && self.to_narrow.is_empty()
            && let Some(name) = self.to_subscribe.pop()
        {
            if self.state.routing.wants(&name) && !self.standing.contains_key(&name) {
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
            if subscribed && !self.state.routing.wants(&name) {
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
            .map(|name| format!("{}{name}", self.state.prefix))
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
            match (verb, self.state.routing.wants(name)) {
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
            self.state.routing.tell_active(&channels, None).await;
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
            if self.state.routing.wants(&name) {
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
            .arg(&self.state.probe_channel)
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
        self.state.metrics.probe_seconds.observe(took.as_secs_f64());
        self.proven = true;
    }

    /// Up is: proven, and everything that was wanted when the connection was made is subscribed.
    fn tell_health(&mut self) {
        let state = &mut *self.state;
        if !self.proven || self.unsettled_at_start > 0 || *state.health.borrow() == BusHealth::Up {
            return;
        }
        state.metrics.up.set(1);
        state.health.send_replace(BusHealth::Up);
        tracing::info!("Redis is up: events arrive");
    }

    /// Hands everything that has arrived to the shards that want it.
    async fn ingest(&mut self, messages: VecDeque<Message>) {
        let state = &mut *self.state;
        for Message { channel, payload } in messages {
            let Some(channel) = std::str::from_utf8(&channel)
                .ok()
                .and_then(|channel| channel.strip_prefix(&state.prefix))
                .and_then(|name| state.routing.channel(name))
                .cloned()
            else {
                continue;
            };
            state.metrics.live_received.inc();
            match decode(Bytes::from(payload), state.max_event_bytes) {
                Ok(event) if event.audience().is_some() => {
                    state.metrics.dropped(DropReason::NoAudience).inc();
                }
                Ok(event) => {
                    state.routing.route(BusEvent::live(channel, event)).await;
                }
                Err(fault) => state.note_dropped(&channel, &fault),
            }
        }
        state.routing.flush().await;
    }
}
