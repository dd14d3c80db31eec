//! The channels a shard's clients want: who is on each, and whether its events arrive.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use slab::Slab;
use tokio::time::{Duration, Instant};

use super::census::{Census, Load};
use super::fanout::encoded::EncodedEvent;
use super::interest::Generation;
use super::reads::Reads;
use super::subscriber::{ChannelKey, Member, Membership, Subscriber};
use crate::continuity::{HistoryPage, Tail, TailLimits};
use crate::protocol::{ChannelName, EventId, Framing};

/// How long a channel that nobody wants any more stays subscribed: a reloaded page finds it
/// still active. Short, so that what Redis sends is what clients want.
const LINGER: Duration = Duration::from_millis(500);

/// The most channels that linger at once; beyond it they are given up immediately, so that
/// clients that come and go cannot pile them up.
const MOST_LINGERING: usize = 16 * 1024;

/// What the tail of one channel may hold: the whole of a history of usual length, and as much
/// as one read of a longer one returns.
const TAIL: TailLimits = TailLimits {
    events: 1024,
    bytes: 1 << 20,
};

/// One channel that somebody wants, or wanted a moment ago.
pub(super) struct Channel {
    pub(super) name: ChannelName,
    pub(super) generation: Generation,
    /// Every event published to the channel arrives here.
    active: bool,
    /// Subscriptions on the channel, those still waiting for it included.
    holders: usize,
    /// When it is given up, if nobody has come back by then.
    lingers_until: Option<Instant>,
    /// Connections on this channel alone: each batch reaches them as one buffer.
    pub(super) batch_members: Vec<Rc<Subscriber>>,
    /// Connections that take events one by one: on several channels, or not framed in chunks.
    pub(super) event_members: Vec<Rc<Subscriber>>,
    /// Connections that still get their kept events from a replay.
    pub(super) replaying_members: Vec<Rc<Subscriber>>,
    /// The newest kept events.
    pub(super) tail: Tail<EncodedEvent>,
    /// The newest kept event that came since the last gap.
    pub(super) newest: EventId,
    /// The id of the last gap that was told.
    gap: EventId,
    /// Reads of its history that are waited for.
    pub(super) reads: Option<Box<Reads>>,
    /// The channel's place in the fan-out pass under way.
    pub(super) batch: Option<usize>,
    /// What it has carried since the last census, while there are any.
    pub(super) load: Load,
}

impl Channel {
    pub(super) fn has_members(&self) -> bool {
        !(self.batch_members.is_empty()
            && self.event_members.is_empty()
            && self.replaying_members.is_empty())
    }

    /// How many connections an event goes to, a live or a kept one.
    pub(super) fn members_of(&self, is_live: bool) -> usize {
        let replaying = if is_live {
            self.replaying_members.len()
        } else {
            0
        };
        self.batch_members.len() + self.event_members.len() + replaying
    }

    fn members(&mut self, member: Member) -> &mut Vec<Rc<Subscriber>> {
        match member {
            Member::ByBatch => &mut self.batch_members,
            Member::ByEvent => &mut self.event_members,
            Member::Replaying => &mut self.replaying_members,
        }
    }
}

/// A channel without holders, in the order in which they are given up.
struct Lingering {
    until: Instant,
    key: ChannelKey,
    generation: Generation,
}

/// All channels of a shard.
#[derive(Default)]
pub(super) struct Channels {
    keys: HashMap<ChannelName, ChannelKey>,
    pub(super) channels: Slab<Channel>,
    last_generation: u64,
    lingering: VecDeque<Lingering>,
    /// Channels whose interest the bus has not been told of, and whether it knows an earlier one.
    /// At most one entry for each channel here or known to the bus.
    untold: HashMap<ChannelName, bool>,
    /// What all tails take.
    tail_bytes: usize,
    most_tail_bytes: usize,
    pub(super) census: Census,
}

impl Channels {
    /// No channels yet; their tails may take so much together.
    pub(super) fn new(most_tail_bytes: usize) -> Self {
        Self {
            most_tail_bytes,
            ..Self::default()
        }
    }

    /// How many there are, lingering ones included.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Takes a hold of a channel, registering interest if it is the first.
    pub(super) fn acquire(&mut self, name: &ChannelName) -> ChannelKey {
        if let Some((&key, channel)) = self
            .keys
            .get(name)
            .and_then(|key| Some((key, self.channels.get_mut(*key)?)))
        {
            channel.holders += 1;
            channel.lingers_until = None;
            return key;
        }
        self.last_generation += 1;
        let key = self.channels.insert(Channel {
            name: name.clone(),
            generation: Generation(self.last_generation),
            active: false,
            holders: 1,
            lingers_until: None,
            batch_members: Vec::new(),
            event_members: Vec::new(),
            replaying_members: Vec::new(),
            tail: Tail::default(),
            newest: EventId::ZERO,
            gap: EventId::ZERO,
            reads: None,
            batch: None,
            load: Load::default(),
        });
        self.keys.insert(name.clone(), key);
        self.untold.entry(name.clone()).or_insert(false);
        key
    }

    /// Lets go of a hold; the last one leaves the channel lingering.
    pub(super) fn release(&mut self, key: ChannelKey, now: Instant) {
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        channel.holders = channel.holders.saturating_sub(1);
        if channel.holders > 0 {
            return;
        }
        if self.lingering.len() < MOST_LINGERING {
            let until = now + LINGER;
            channel.lingers_until = Some(until);
            self.lingering.push_back(Lingering {
                until,
                key,
                generation: channel.generation,
            });
        } else {
            self.remove(key);
        }
    }

    /// Gives up the channels that have lingered long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.lingering.pop_front_if(|oldest| oldest.until <= now) {
            // Otherwise it was wanted again, or is another channel in the same place.
            let unwanted_since = self.channels.get(oldest.key).is_some_and(|channel| {
                channel.lingers_until == Some(oldest.until)
                    && channel.generation == oldest.generation
            });
            if unwanted_since {
                self.remove(oldest.key);
            }
        }
        self.shrink();
    }

    /// A crowd that has left should not keep its place.
    fn shrink(&mut self) {
        if self.keys.len() * 4 < self.keys.capacity() {
            self.keys.shrink_to(self.keys.len() * 2);
            self.channels.shrink_to_fit();
            self.lingering.shrink_to(self.lingering.len() * 2);
        }
    }

    fn remove(&mut self, key: ChannelKey) {
        let Some(channel) = self.channels.try_remove(key) else {
            return;
        };
        self.keys.remove(&channel.name);
        self.tail_bytes -= channel.tail.bytes();
        match self.untold.get(&channel.name) {
            // Come and gone unnoticed.
            Some(false) => {
                self.untold.remove(&channel.name);
            }
            Some(true) => {}
            None => {
                self.untold.insert(channel.name, true);
            }
        }
    }

    /// What the bus has not been told yet.
    pub(super) fn take_changes(&mut self) -> Vec<(ChannelName, Option<Generation>)> {
        std::mem::take(&mut self.untold)
            .into_keys()
            .map(|name| {
                let generation = self
                    .keys
                    .get(&name)
                    .and_then(|key| self.channels.get(*key))
                    .map(|channel| channel.generation);
                (name, generation)
            })
            .collect()
    }

    /// Whether the bus is yet to be told something.
    pub(super) fn has_changes(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Marks a channel active, if it still is the one the bus speaks of. Every kept event after
    /// `position` comes.
    pub(super) fn activate(
        &mut self,
        name: &str,
        generation: Generation,
        position: Option<EventId>,
    ) {
        let Some(key) = self.key_of(name) else {
            return;
        };
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        if channel.generation != generation {
            return;
        }
        channel.active = true;
        self.change_tail(key, |tail, _| match position {
            Some(position) => tail.start(position),
            // Kept events may come as live ones from here on.
            None => *tail = Tail::default(),
        });
    }

    /// Every kept event of the active channels after `position` comes.
    pub(super) fn start_tails(&mut self, position: EventId) {
        for (_, channel) in &mut self.channels {
            if channel.active {
                channel.tail.start(position);
            }
        }
    }

    /// Changes a channel's tail within its bounds.
    fn change_tail(
        &mut self,
        key: ChannelKey,
        change: impl FnOnce(&mut Tail<EncodedEvent>, TailLimits),
    ) {
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        let others = self.tail_bytes - channel.tail.bytes();
        let room = self.most_tail_bytes.saturating_sub(others);
        change(
            &mut channel.tail,
            TailLimits {
                bytes: room.min(TAIL.bytes),
                ..TAIL
            },
        );
        self.tail_bytes = others + channel.tail.bytes();
    }

    /// Appends a kept event that came.
    pub(super) fn append_to_tail(&mut self, key: ChannelKey, event: EncodedEvent) {
        self.change_tail(key, |tail, limits| tail.append(event, limits));
    }

    /// Takes note of a read of the channel's history.
    pub(super) fn extend_tail(&mut self, key: ChannelKey, page: &HistoryPage<EncodedEvent>) {
        self.change_tail(key, |tail, limits| tail.extend(page, limits));
    }

    /// Takes note of a gap: kept events before `position` may be missing from the tail.
    pub(super) fn note_gap(&mut self, key: ChannelKey, position: EventId) {
        self.change_tail(key, |tail, _| tail.restart(position));
        if let Some(channel) = self.channels.get_mut(key) {
            channel.newest = EventId::ZERO;
            channel.gap = channel.gap.max(position);
        }
    }

    /// Forgets every kept event: ids begin anew.
    pub(super) fn forget_events(&mut self) {
        for (_, channel) in &mut self.channels {
            channel.tail = Tail::default();
            channel.newest = EventId::ZERO;
            channel.gap = EventId::ZERO;
        }
        self.tail_bytes = 0;
    }

    /// Marks every channel as not active: the bus is lost.
    pub(super) fn deactivate_all(&mut self) {
        for (_, channel) in &mut self.channels {
            channel.active = false;
        }
    }

    /// Whether every event of all these channels arrives.
    pub(super) fn all_active(&self, keys: &[ChannelKey]) -> bool {
        keys.iter()
            .all(|&key| self.channels.get(key).is_some_and(|channel| channel.active))
    }

    pub(super) fn by_key(&mut self, key: ChannelKey) -> Option<&mut Channel> {
        self.channels.get_mut(key)
    }

    pub(super) fn key_of(&self, name: &str) -> Option<ChannelKey> {
        self.keys.get(name).copied()
    }

    pub(super) fn get(&self, key: ChannelKey) -> Option<&Channel> {
        self.channels.get(key)
    }

    /// Puts a subscriber on channels it holds: their events reach it from here on.
    pub(super) fn attach(&mut self, subscriber: &Rc<Subscriber>, keys: &[ChannelKey]) {
        let member = if keys.len() == 1 && subscriber.framing == Framing::Chunked {
            Member::ByBatch
        } else {
            Member::ByEvent
        };
        self.attach_as(member, subscriber, keys);
    }

    /// Puts a subscriber on channels it holds, as one that replays their history.
    pub(super) fn attach_replaying(&mut self, subscriber: &Rc<Subscriber>, keys: &[ChannelKey]) {
        self.attach_as(Member::Replaying, subscriber, keys);
    }

    fn attach_as(&mut self, member: Member, subscriber: &Rc<Subscriber>, keys: &[ChannelKey]) {
        let mut memberships = Vec::with_capacity(keys.len());
        for &key in keys {
            if let Some(channel) = self.channels.get_mut(key) {
                let members = channel.members(member);
                memberships.push(Membership {
                    key,
                    position: members.len(),
                });
                members.push(Rc::clone(subscriber));
            }
        }
        subscriber.member.set(member);
        subscriber.memberships.replace(memberships);
    }

    /// Takes a subscriber off its channels.
    pub(super) fn detach(&mut self, subscriber: &Subscriber) {
        let member = subscriber.member.get();
        for Membership { key, position } in subscriber.memberships.take() {
            let Some(channel) = self.channels.get_mut(key) else {
                continue;
            };
            let members = channel.members(member);
            if position >= members.len() {
                continue;
            }
            members.swap_remove(position);
            if let Some(moved) = members.get(position) {
                moved.move_to(key, position);
            }
            // A crowd that left should not keep its place.
            if members.len() * 4 < members.capacity() {
                members.shrink_to(members.len() * 2);
            }
        }
    }

    /// The newest kept event that came on a subscriber's channels, and the id of their last gap.
    pub(super) fn newest_of(&self, subscriber: &Subscriber) -> (EventId, EventId) {
        let memberships = subscriber.memberships.borrow();
        memberships
            .iter()
            .filter_map(|membership| self.channels.get(membership.key))
            .fold(Default::default(), |(newest, gap), channel| {
                (channel.newest.max(newest), channel.gap.max(gap))
            })
    }
}

#[cfg(test)]
mod tests;
