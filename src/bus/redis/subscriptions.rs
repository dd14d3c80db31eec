//! Keeping exactly the wanted channels subscribed on one connection.

use std::collections::{HashMap, HashSet, VecDeque};

use futures_util::future::{BoxFuture, FutureExt, join};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use super::backfill::{read_state, state_key};
use crate::bus::routing::Routing;
use crate::protocol::{ChannelName, EventId};
use crate::telemetry::BusMetrics;
use crate::telemetry::occurrences::ChannelRefused;

/// Channels named in one command: some ten kilobytes, so that no command holds Redis up.
const CHANNELS_PER_COMMAND: usize = 512;

/// The state of a channel on the current connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionState {
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
    answer: BoxFuture<'static, Answer>,
}

/// After subscribing: the newest id that had been issued then.
pub(super) type Answer = RedisResult<Option<EventId>>;

/// Channels that Redis has subscribed now.
pub(super) struct Subscribed {
    pub(super) channels: Vec<ChannelName>,
    /// The newest id that had been issued when they were; everything later arrives.
    pub(super) position: Option<EventId>,
}

/// The channels of one connection.
pub(super) struct Subscriptions {
    connection: MultiplexedConnection,
    prefix: String,
    /// Channels Redis has, is about to have, or refuses.
    states: HashMap<ChannelName, SubscriptionState>,
    to_subscribe: ChannelQueue,
    to_unsubscribe: ChannelQueue,
    /// Parts of a command that was refused, to be tried by themselves.
    to_narrow: Vec<Vec<ChannelName>>,
    command: Option<Command>,
    /// Channels wanted when the connection was made that are neither subscribed nor refused yet.
    missing_at_start: usize,
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

impl Subscriptions {
    /// Nothing is subscribed yet, everything wanted is to be.
    pub(super) fn new(connection: MultiplexedConnection, prefix: &str, routing: &Routing) -> Self {
        let mut to_subscribe = ChannelQueue::default();
        for name in routing.wanted() {
            to_subscribe.push(name.clone());
        }
        Self {
            missing_at_start: to_subscribe.order.len(),
            to_subscribe,
            to_unsubscribe: ChannelQueue::default(),
            to_narrow: Vec::new(),
            connection,
            prefix: prefix.to_owned(),
            states: HashMap::new(),
            command: None,
        }
    }

    /// Whether what was wanted at first is subscribed, refused, or not wanted any more.
    pub(super) fn is_complete(&self) -> bool {
        self.missing_at_start == 0
    }

    pub(super) fn state(&self, name: &ChannelName) -> Option<SubscriptionState> {
        self.states.get(name).copied()
    }

    /// Every channel that is subscribed.
    pub(super) fn subscribed(&self) -> Vec<ChannelName> {
        self.in_state(SubscriptionState::Subscribed)
    }

    /// Every channel that Redis refuses.
    pub(super) fn refused(&self) -> Vec<ChannelName> {
        self.in_state(SubscriptionState::Refused)
    }

    fn in_state(&self, wanted: SubscriptionState) -> Vec<ChannelName> {
        self.states
            .iter()
            .filter(|(_, state)| **state == wanted)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Somebody wants a channel that Redis does not have.
    pub(super) fn want(&mut self, name: ChannelName) {
        self.to_subscribe.push(name);
    }

    /// Nobody wants a channel any more.
    pub(super) fn give_up(&mut self, name: ChannelName) {
        match self.state(&name) {
            Some(SubscriptionState::Subscribed) => self.to_unsubscribe.push(name),
            Some(SubscriptionState::Refused) => {
                self.states.remove(&name);
            }
            // A command under way: what is wanted then is looked at when it is answered.
            Some(SubscriptionState::Subscribing | SubscriptionState::Unsubscribing) | None => {}
        }
    }

    /// The answer of the command under way.
    pub(super) fn answer(&mut self) -> Option<&mut BoxFuture<'static, Answer>> {
        self.command.as_mut().map(|command| &mut command.answer)
    }

    /// Sends the next command that brings Redis nearer to what is wanted, unless one is under
    /// way. Subscribing comes first: somebody waits for it. `with_position`: there are ids.
    pub(super) fn advance(&mut self, routing: &Routing, with_position: bool) {
        if self.command.is_some() {
            return;
        }
        let mut channels = Vec::new();
        while let (true, Some(part)) = (channels.is_empty(), self.to_narrow.pop()) {
            let all = part.len();
            channels.extend(
                part.into_iter()
                    .filter(|name| routing.wants(name) && !self.states.contains_key(name)),
            );
            self.done_at_start(all - channels.len());
        }
        while channels.len() < CHANNELS_PER_COMMAND
            && self.to_narrow.is_empty()
            && let Some(name) = self.to_subscribe.pop()
        {
            if routing.wants(&name) && !self.states.contains_key(&name) {
                channels.push(name);
            } else {
                self.done_at_start(1);
            }
        }
        if !channels.is_empty() {
            self.send(Verb::Subscribe, channels, with_position);
            return;
        }
        while channels.len() < CHANNELS_PER_COMMAND
            && let Some(name) = self.to_unsubscribe.pop()
        {
            if self.state(&name) == Some(SubscriptionState::Subscribed) && !routing.wants(&name) {
                channels.push(name);
            }
        }
        if !channels.is_empty() {
            self.send(Verb::Unsubscribe, channels, false);
        }
    }

    fn done_at_start(&mut self, count: usize) {
        self.missing_at_start = self.missing_at_start.saturating_sub(count);
    }

    fn send(&mut self, verb: Verb, channels: Vec<ChannelName>, with_position: bool) {
        let state = match verb {
            Verb::Subscribe => SubscriptionState::Subscribing,
            Verb::Unsubscribe => SubscriptionState::Unsubscribing,
        };
        let names: Vec<_> = channels
            .iter()
            .map(|name| format!("{}{name}", self.prefix))
            .collect();
        for name in &channels {
            self.states.insert(name.clone(), state);
        }
        let mut connection = self.connection.clone();
        let mut second = self.connection.clone();
        let key = state_key(&self.prefix);
        let answer = async move {
            match verb {
                Verb::Subscribe if with_position => {
                    // Polled in this order, so sent in this order: what the second answers is
                    // not older than the subscription.
                    let subscribed = connection.subscribe(names);
                    let state = read_state(&mut second, &key);
                    let (subscribed, state) = join(subscribed, state).await;
                    subscribed?;
                    state
                }
                Verb::Subscribe => connection.subscribe(names).await.map(|()| None),
                Verb::Unsubscribe => connection.unsubscribe(names).await.map(|()| None),
            }
        };
        self.command = Some(Command {
            verb,
            channels,
            answer: answer.boxed(),
        });
    }

    /// Notes what the command under way has done. Returns what is subscribed now.
    ///
    /// # Errors
    /// When the connection has to be given up.
    pub(super) fn take_answer(
        &mut self,
        answer: Answer,
        routing: &Routing,
        metrics: &BusMetrics,
    ) -> RedisResult<Option<Subscribed>> {
        let Some(Command { verb, channels, .. }) = self.command.take() else {
            return Ok(None);
        };
        let position = match answer {
            Ok(position) => position,
            Err(error) if verb == Verb::Subscribe && error.code() == Some("NOPERM") => {
                self.narrow(channels, &error, routing, metrics);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        for name in &channels {
            match verb {
                Verb::Subscribe => self
                    .states
                    .insert(name.clone(), SubscriptionState::Subscribed),
                Verb::Unsubscribe => self.states.remove(name),
            };
            // Interest may have changed while it was under way.
            match (verb, routing.wants(name)) {
                (Verb::Subscribe, false) => self.to_unsubscribe.push(name.clone()),
                (Verb::Unsubscribe, true) => self.to_subscribe.push(name.clone()),
                _ => {}
            }
        }
        if self.states.len() * 4 < self.states.capacity() {
            self.states.shrink_to(self.states.len() * 2);
        }
        if verb == Verb::Unsubscribe {
            return Ok(None);
        }
        self.done_at_start(channels.len());
        Ok(Some(Subscribed { channels, position }))
    }

    /// Redis refuses a command as a whole when its user may not read one of the channels. Halves
    /// are tried until that channel stands alone, so that it costs nobody else anything.
    fn narrow(
        &mut self,
        mut channels: Vec<ChannelName>,
        error: &RedisError,
        routing: &Routing,
        metrics: &BusMetrics,
    ) {
        for name in &channels {
            self.states.remove(name);
        }
        if channels.len() > 1 {
            let half = channels.split_off(channels.len() / 2);
            self.to_narrow.extend([half, channels]);
            return;
        }
        for name in channels {
            ChannelRefused {
                channel: &name,
                error,
            }
            .emit(metrics);
            self.done_at_start(1);
            if routing.wants(&name) {
                self.states.insert(name, SubscriptionState::Refused);
            }
        }
    }
}
