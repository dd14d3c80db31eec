//! Runs the [`Feed`] of a Redis primary: what arrives becomes inputs, its actions are performed.
//!
//! Everything that is decided about ids, holes and gaps is decided in [`crate::continuity`]. Here
//! payloads are decoded, events are routed to the shards, and reads are handed to the session.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::push_queue::{Incoming, Mark, Message, ProbeId};
use crate::bus::kept_event;
use crate::bus::routing::{InterestChange, Routing};
use crate::continuity::{
    Action, Feed, FeedSettings, HistoryPage, Input, KeptEvent, Link, PageSize, Retention,
};
use crate::hub::{BusEvent, Generation, InterestUpdate, ShardId};
use crate::protocol::{
    ChannelName, Cursor, EventId, Frame, KeptFrame, decode, decode_frame, is_frame,
};
use crate::telemetry::occurrences::{EventBackfilled, EventReceived, IdsLost, MessageDropped};
use crate::telemetry::{BusMetrics, DropReason, EventKind};

/// What may be collected of missed events before it is delivered: as much as Redis itself keeps
/// for a subscriber that does not read.
const MAX_RECOVERY_BYTES: usize = 32 << 20;

/// A page that the feed waits for.
#[derive(Debug)]
pub(super) struct ReadRequest {
    pub(super) channel: ChannelName,
    /// What is known of the channel so far.
    pub(super) cursor: Cursor,
    pub(super) from: EventId,
    pub(super) size: PageSize,
}

/// Ids of a primary only grow.
#[derive(Debug, thiserror::Error)]
#[error("ids went back from {from} to {to}: Redis has lost what it knew")]
pub(super) struct IdsWentBack {
    from: EventId,
    to: EventId,
}

/// Lives as long as the process, across connections.
pub(super) struct Driver {
    pub(super) routing: Routing,
    pub(super) metrics: BusMetrics,
    prefix: String,
    max_event_bytes: usize,
    feed: Feed<ChannelName, KeptEvent>,
    /// When the feed's clock began.
    began: Instant,
    /// Used again for each input.
    actions: Vec<Action<ChannelName, KeptEvent>>,
    /// What the session has to read.
    reads: Vec<ReadRequest>,
    /// What the session puts behind everything that has arrived: a connection was started.
    started: Option<Mark>,
}

impl Driver {
    pub(super) fn new(
        prefix: String,
        max_event_bytes: usize,
        lag_bound: Duration,
        retention: Retention,
        routing: Routing,
        metrics: BusMetrics,
    ) -> Self {
        let settings = FeedSettings {
            lag_bound,
            max_recovery_bytes: MAX_RECOVERY_BYTES,
        };
        Self {
            routing,
            metrics,
            prefix,
            max_event_bytes,
            feed: Feed::new(settings, retention),
            began: Instant::now(),
            actions: Vec::new(),
            reads: Vec::new(),
            started: None,
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether history must be read before what arrives can be handled.
    pub(super) fn is_reading(&self) -> bool {
        self.feed.is_reading()
    }

    /// The reads that are to be sent.
    pub(super) fn take_reads(&mut self) -> std::vec::Drain<'_, ReadRequest> {
        self.reads.drain(..)
    }

    /// The channels of a connection that has just been started.
    pub(super) fn take_started(&mut self) -> Option<Mark> {
        self.started.take()
    }

    /// Notes what the shards want, and returns what that means for the subscriptions.
    pub(super) fn note_interest(
        &mut self,
        update: InterestUpdate,
    ) -> Vec<(ChannelName, InterestChange)> {
        let changes = self.routing.apply(update);
        for (channel, change) in &changes {
            let input = match change {
                InterestChange::Wanted(_) => Input::Wanted(channel.clone()),
                InterestChange::Unwanted => Input::Unwanted(channel.clone()),
                InterestChange::Unchanged => continue,
            };
            // No action follows from interest.
            self.feed.on(input, &mut self.actions);
        }
        changes
    }

    pub(super) fn is_active(&self, channel: &ChannelName) -> bool {
        self.feed.is_active(channel)
    }

    /// Tells a shard that channels it wants are active for others already.
    pub(super) async fn tell_one_active(
        &mut self,
        channels: Vec<(ChannelName, Generation)>,
        shard: ShardId,
    ) {
        let position = self.feed.active_position();
        let routing = &self.routing;
        routing.tell_one_active(channels, position, shard).await;
    }

    /// The note that makes these channels active behind everything that has arrived.
    pub(super) fn mark_again(&mut self, channels: Vec<ChannelName>) -> Mark {
        Mark {
            channels,
            position: self.feed.active_position(),
        }
    }

    pub(super) fn note_retention(&mut self, retention: Retention) {
        self.feed.on(Input::Retention(retention), &mut self.actions);
    }

    /// A client has read this page.
    pub(super) fn note_client_read(&mut self, channel: ChannelName, page: HistoryPage<Link>) {
        self.feed
            .on(Input::ClientRead { channel, page }, &mut self.actions);
    }

    /// The connection is lost. Kept events that were not handled are read again; live ones are not.
    pub(super) fn lose(&mut self, unhandled: VecDeque<Incoming>) {
        for item in unhandled {
            if let Incoming::Message(message) = item
                && !is_frame(&message.payload)
                && let Some(channel) = self.channel(&message)
            {
                self.feed.on(Input::Live(channel), &mut self.actions);
            }
        }
        self.feed.on(Input::Lost, &mut self.actions);
        self.reads.clear();
    }

    /// Handles something that arrived. Not while [`Self::is_reading`].
    ///
    /// # Errors
    /// When ids went back.
    pub(super) async fn message(&mut self, message: Message) -> Result<(), IdsWentBack> {
        let channel = self.channel(&message);
        let payload = Bytes::from(message.payload);
        if !is_frame(&payload) {
            if let Some(channel) = channel {
                self.live(channel, payload).await;
            }
            return Ok(());
        }
        match decode_frame(payload, self.max_event_bytes) {
            Ok(Frame::Event(frame)) => self.kept(channel, frame).await,
            Ok(Frame::Probe { .. } | Frame::Revocation(_)) => Ok(()),
            Err(fault) => {
                if let Some(channel) = &channel {
                    self.note_dropped(channel, DropReason::Frame, &fault);
                }
                Ok(())
            }
        }
    }

    async fn live(&mut self, channel: ChannelName, payload: Bytes) {
        EventReceived(EventKind::Live).emit(&self.metrics);
        self.feed
            .on(Input::Live(channel.clone()), &mut self.actions);
        match decode(payload, self.max_event_bytes) {
            Ok(event) => self.routing.route(BusEvent::live(channel, event)).await,
            Err(fault) => self.note_dropped(&channel, DropReason::from(&fault), &fault),
        }
    }

    async fn kept(
        &mut self,
        channel: Option<ChannelName>,
        frame: KeptFrame,
    ) -> Result<(), IdsWentBack> {
        let (event, fault) = kept_event(frame);
        if let Some(channel) = &channel {
            EventReceived(EventKind::Kept).emit(&self.metrics);
            if let Some(fault) = fault {
                self.note_dropped(channel, DropReason::from(&fault), &fault);
            }
        }
        self.input(Input::Kept { channel, event }).await
    }

    /// # Errors
    /// When ids went back, which no living primary does.
    pub(super) async fn probe(&mut self, probe: ProbeId) -> Result<(), IdsWentBack> {
        let ProbeId { id, epoch, .. } = probe;
        self.input(Input::Probe { id, epoch }).await
    }

    /// Everything that arrived before these channels were known to be subscribed is handled.
    ///
    /// # Errors
    /// When ids went back.
    pub(super) async fn mark(&mut self, mark: Mark) -> Result<(), IdsWentBack> {
        let (channels, newest) = (mark.channels, mark.position);
        self.input(Input::Subscribed { channels, newest }).await
    }

    /// Hands an input to the feed and performs what follows.
    ///
    /// # Errors
    /// When ids went back.
    pub(super) async fn input(
        &mut self,
        input: Input<ChannelName, KeptEvent>,
    ) -> Result<(), IdsWentBack> {
        let mut actions = std::mem::take(&mut self.actions);
        self.feed.set_time(self.began.elapsed());
        self.feed.on(input, &mut actions);
        let mut result = Ok(());
        for action in actions.drain(..) {
            if let Err(went_back) = self.perform(action).await {
                result = Err(went_back);
            }
        }
        self.actions = actions;
        result
    }

    async fn perform(&mut self, action: Action<ChannelName, KeptEvent>) -> Result<(), IdsWentBack> {
        match &action {
            Action::Event {
                recovered: true, ..
            } => EventBackfilled.emit(&self.metrics),
            Action::Rewound { from, to } => {
                let (from, to) = (*from, *to);
                IdsLost { from, to }.emit();
            }
            _ => {}
        }
        let Some(action) = self.routing.perform(action).await else {
            return Ok(());
        };
        match action {
            Action::Read {
                channel,
                cursor,
                from,
                size,
            } => self.reads.push(ReadRequest {
                channel,
                cursor,
                from,
                size,
            }),
            Action::Started { channels, newest } => {
                self.started = Some(Mark {
                    channels,
                    position: newest,
                });
            }
            Action::NeverIssued { channel, id } => {
                let fault = format_args!("its id, {id}, was never issued");
                self.note_dropped(&channel, DropReason::IdAhead, &fault);
            }
            Action::NewEpoch(epoch) => {
                tracing::warn!(%epoch, "Redis has begun a new sequence of ids");
            }
            Action::WentBack { from, to } => return Err(IdsWentBack { from, to }),
            // Performed above.
            _ => {}
        }
        Ok(())
    }

    /// The wanted channel of a message.
    fn channel(&self, message: &Message) -> Option<ChannelName> {
        let name = std::str::from_utf8(&message.channel).ok()?;
        let name = name.strip_prefix(&self.prefix)?;
        self.routing.channel(name).cloned()
    }

    fn note_dropped(&self, channel: &ChannelName, reason: DropReason, fault: &dyn Display) {
        MessageDropped {
            channel,
            reason,
            fault,
        }
        .emit(&self.metrics);
    }
}
