//! From a subscription to the shards: what arrives is judged, put in order with what was read
//! from history, and routed.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backfill::{Missed, Recovered, Recovery, Started};
use super::ingest::{Incoming, Mark, Message, ProbeId};
use crate::bus::chain::{Arrival, arrival, backfill_from};
use crate::bus::routing::{Record, Routing};
use crate::bus::{Withheld, kept_event};
use crate::hub::{BusEvent, GapNotice, Generation, ShardId};
use crate::protocol::{
    ChannelName, Cursor, EventId, Frame, GapReason, HistoryPage, KeptEvent, KeptFrame, Linked,
    Retention, decode, decode_frame, is_frame,
};
use crate::telemetry::{BusMetrics, DropReason};

/// Ids further ahead of the newest known one than so many lag bounds are not believed: they would
/// move every cursor to where no event follows for long. A failover moves ids by one bound, and
/// probes, which are ours alone, tell every few seconds where ids are.
const MOST_AHEAD_LAG_BOUNDS: u32 = 10;

/// Broken messages are logged this often at the most.
const DROP_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// An event that history must be read for first.
#[derive(Debug)]
pub(super) struct Interrupted {
    pub(super) channel: ChannelName,
    pub(super) event: KeptEvent,
    pub(super) why: Interruption,
}

/// Why history must be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Interruption {
    /// Something between this event and the new one was missed.
    Hole(EventId),
    /// The new one does not continue this event.
    Rewound(EventId),
}

/// What history says to an interruption.
#[derive(Debug)]
pub(super) enum Filled {
    Hole(Recovery),
    Rewound(Option<HistoryPage<KeptEvent>>),
}

/// What the delivery knows, across connections.
pub(super) struct Delivery {
    pub(super) prefix: String,
    pub(super) max_event_bytes: usize,
    pub(super) lag_bound: Duration,
    pub(super) routing: Routing,
    pub(super) metrics: BusMetrics,
    pub(super) retention: Retention,
    drop_log: DropLog,
    /// Everything up to this id was routed, or told as missing. `None`: there are no ids here,
    /// and kept events are live ones.
    position: Option<EventId>,
    /// A probe of this connection had an id, so the position may be told to clients.
    vouched: bool,
    /// Channels were told active without a position.
    told_without: bool,
    /// The newest id that a probe of this connection had.
    probed: EventId,
    epoch: Option<EventId>,
    /// What is not newer was read when this connection began.
    settled: EventId,
}

/// Until when broken messages are counted without being logged, and how many were.
#[derive(Default)]
struct DropLog {
    quiet_until: Option<Instant>,
    dropped_quietly: u64,
}

/// Ids of a primary only grow.
#[derive(Debug, thiserror::Error)]
#[error("ids went back from {from} to {to}: Redis has lost what it knew")]
pub(super) struct IdsWentBack {
    from: EventId,
    to: EventId,
}

impl Delivery {
    pub(super) fn new(
        prefix: String,
        max_event_bytes: usize,
        lag_bound: Duration,
        retention: Retention,
        routing: Routing,
        metrics: BusMetrics,
    ) -> Self {
        Self {
            prefix,
            max_event_bytes,
            lag_bound,
            routing,
            metrics,
            retention,
            drop_log: DropLog::default(),
            position: None,
            vouched: false,
            told_without: false,
            probed: EventId::ZERO,
            epoch: None,
            settled: EventId::ZERO,
        }
    }

    // What a new connection begins with.

    /// What must be read because the subscriptions to these channels were interrupted.
    pub(super) fn missed(&mut self, subscribed: &[ChannelName]) -> Vec<Missed> {
        let Some(position) = self.position else {
            return Vec::new();
        };
        let routing = &mut self.routing;
        let missed = |name: &ChannelName| {
            let record = *routing.record(name)?;
            let cursor = match (record.has_hole, record.seen) {
                (false, seen) => backfill_from(seen, position),
                (true, Some(seen)) => Cursor::new(seen, EventId::ZERO),
                (true, None) => return None,
            };
            record.active.then(|| Missed {
                channel: name.clone(),
                cursor,
            })
        };
        subscribed.iter().filter_map(missed).collect()
    }

    /// Routes what was read. From here on the position is the connection's.
    pub(super) async fn start(&mut self, started: Started, subscribed: &[ChannelName]) {
        let mut recovered: Vec<(ChannelName, Recovered)> = Vec::new();
        for recovery in started.recoveries {
            if let Some(record) = self.routing.record(&recovery.channel) {
                record.had_live &= !recovery.has_gap();
                record.has_hole = false;
                record.seen = recovery.seen;
                let name = recovery.channel;
                recovered.extend(recovery.items.into_iter().map(|item| (name.clone(), item)));
            }
        }
        recovered.sort_by_key(|(_, item)| item.id());
        for (channel, item) in recovered {
            self.recovered(channel, item).await;
        }

        let keeps = self.position.is_some() && started.bound.is_some();
        let mut lost = Vec::new();
        for (name, record) in self.routing.records() {
            let cannot_tell = record.has_hole || !keeps && record.seen.is_some();
            if record.active && (record.had_live || cannot_tell) {
                lost.push((name.clone(), record.seen));
            }
            record.had_live = false;
            if cannot_tell {
                record.seen = None;
                record.has_hole = false;
            }
        }
        for (channel, after) in lost {
            let notice = GapNotice {
                reason: GapReason::Lost,
                after,
                oldest: None,
                id: None,
            };
            self.routing.route(BusEvent::gap(channel, notice)).await;
        }

        for name in subscribed {
            if let Some(record) = self.routing.record(name)
                && !record.active
            {
                *record = Record {
                    active: true,
                    ..Record::default()
                };
            }
        }
        self.position = started.bound;
        self.settled = started.bound.unwrap_or_default();
        self.vouched = false;
        self.told_without = false;
        self.probed = EventId::ZERO;
    }

    async fn recovered(&mut self, channel: ChannelName, item: Recovered) {
        match item {
            Recovered::Event(event) => {
                self.metrics.backfilled.inc();
                self.route_kept(channel, event).await;
            }
            Recovered::Gap(notice, _) => {
                self.routing.route(BusEvent::gap(channel, notice)).await;
            }
        }
    }

    /// These channels are wanted and could not be subscribed.
    pub(super) fn miss(&mut self, refused: impl Fn(&ChannelName) -> bool) {
        for (name, record) in self.routing.records() {
            if record.active && refused(name) {
                record.has_hole = true;
                record.had_live = true;
            }
        }
    }

    /// What was not handled when the connection was lost. Kept events are read again.
    pub(super) fn abandon(&mut self, items: VecDeque<Incoming>) {
        for item in items {
            if let Incoming::Message(message) = item
                && !is_frame(&message.payload)
                && let Some(channel) = self.channel(&message)
                && let Some(record) = self.routing.record(&channel)
            {
                record.had_live = true;
            }
        }
    }

    // What arrives.

    /// Routes a message, unless history must be read first.
    pub(super) async fn message(&mut self, message: Message) -> Option<Interrupted> {
        let channel = self.channel(&message);
        let payload = Bytes::from(message.payload);
        if !is_frame(&payload) {
            self.live(channel?, payload).await;
            return None;
        }
        let frame = match decode_frame(payload, self.max_event_bytes) {
            Ok(Frame::Event(frame)) => frame,
            Ok(Frame::Probe { .. }) => return None,
            Err(fault) => {
                if let Some(channel) = &channel {
                    self.note_dropped(channel, DropReason::Frame, &fault);
                }
                return None;
            }
        };
        self.kept(channel, frame).await
    }

    async fn live(&mut self, channel: ChannelName, payload: Bytes) {
        self.metrics.live_received.inc();
        if let Some(record) = self.routing.record(&channel) {
            record.had_live = true;
        }
        match decode(payload, self.max_event_bytes) {
            Ok(event) if event.audience().is_some() => {
                self.metrics.dropped(DropReason::NoAudience).inc();
            }
            Ok(event) => self.routing.route(BusEvent::live(channel, event)).await,
            Err(fault) => self.note_dropped(&channel, DropReason::from(&fault), &fault),
        }
    }

    async fn kept(
        &mut self,
        channel: Option<ChannelName>,
        frame: KeptFrame,
    ) -> Option<Interrupted> {
        if channel.is_some() {
            self.metrics.kept_received.inc();
        }
        let newest = self.position.map(|position| position.max(self.probed));
        let ahead = newest.map(|newest| frame.id.since(newest));
        if ahead.is_some_and(|ahead| ahead > self.lag_bound * MOST_AHEAD_LAG_BOUNDS) {
            let fault = format_args!("its id is {ahead:?} ahead of all others");
            if let Some(channel) = &channel {
                self.note_dropped(channel, DropReason::IdAhead, &fault);
            }
            return None;
        }
        let (event, withheld) = kept_event(frame);
        let Some(channel) = channel else {
            // Nobody wants it any more; who comes back before it is unsubscribed is told so.
            self.advance(event.id);
            return None;
        };
        match withheld {
            None => {}
            Some(Withheld::NoAudience) => self.metrics.dropped(DropReason::NoAudience).inc(),
            Some(Withheld::Fault(fault)) => {
                self.note_dropped(&channel, DropReason::from(&fault), &fault);
            }
        }
        if self.position.is_none() {
            if let Some(record) = self.routing.record(&channel) {
                record.had_live = true;
            }
            if let Some(event) = event.event {
                let event = Arc::unwrap_or_clone(event);
                self.routing.route(BusEvent::live(channel, event)).await;
            }
            return None;
        }
        let record = self.routing.record(&channel)?;
        if !record.active || event.id <= self.settled {
            // Read already, or before anybody was promised anything.
            self.advance(event.id);
            return None;
        }
        let seen = record.seen.unwrap_or_default();
        let why = match arrival(record.seen, event.link(), self.retention) {
            Arrival::Known => return None,
            Arrival::Next => {
                record.seen = Some(event.id);
                self.route_kept(channel, event).await;
                return None;
            }
            Arrival::Hole => Interruption::Hole(seen),
            Arrival::Rewound => Interruption::Rewound(seen),
        };
        record.has_hole = true;
        Some(Interrupted {
            channel,
            event,
            why,
        })
    }

    /// Routes what was missing before an event, and the event.
    pub(super) async fn fill(&mut self, interrupted: Interrupted, filled: Filled) {
        let Interrupted { channel, event, .. } = interrupted;
        match filled {
            Filled::Hole(recovery) => {
                if let Some(retention) = recovery.retention {
                    self.retention = retention;
                }
                for item in recovery.items {
                    self.recovered(channel.clone(), item).await;
                }
            }
            Filled::Rewound(page) => {
                if let Some(page) = &page {
                    self.retention = page.retention;
                }
                let seen = self.routing.record(&channel).and_then(|record| record.seen);
                if arrival(seen, event.link(), self.retention) != Arrival::Next {
                    let oldest = page.and_then(|page| page.oldest);
                    let notice = GapNotice {
                        reason: GapReason::Rewound,
                        after: seen,
                        oldest: oldest.map(|oldest| oldest.id),
                        id: Some(event.id.pred()),
                    };
                    let gap = BusEvent::gap(channel.clone(), notice);
                    self.routing.route(gap).await;
                }
            }
        }
        if let Some(record) = self.routing.record(&channel) {
            record.has_hole = false;
            record.seen = Some(event.id);
        }
        self.route_kept(channel, event).await;
    }

    async fn route_kept(&mut self, channel: ChannelName, event: KeptEvent) {
        let id = event.id;
        let late = self.position.is_some_and(|position| id <= position);
        let event = BusEvent::kept(channel, event, late);
        self.routing.route(event).await;
        self.advance(id);
    }

    fn advance(&mut self, id: EventId) {
        if let Some(position) = &mut self.position {
            *position = id.max(*position);
        }
    }

    /// A probe with an id: everything that was published before it is routed.
    ///
    /// # Errors
    /// When ids went back, which no living primary does.
    pub(super) async fn probe(&mut self, probe: ProbeId) -> Result<(), IdsWentBack> {
        let ProbeId { id, epoch, .. } = probe;
        if id < self.probed {
            return Err(IdsWentBack {
                from: self.probed,
                to: id,
            });
        }
        self.probed = id;
        if self.epoch.is_some_and(|known| known != epoch) {
            tracing::warn!(%epoch, "Redis has begun a new sequence of ids");
        }
        self.epoch = Some(epoch);
        self.vouched = true;
        let position = self.position.map_or(id, |position| position.max(id));
        self.position = Some(position);
        self.routing.flush().await;
        if std::mem::take(&mut self.told_without) {
            let active =
                |(name, record): (&ChannelName, &mut Record)| record.active.then(|| name.clone());
            let names: Vec<_> = self.routing.records().filter_map(active).collect();
            self.routing.tell_active(&names, Some(position)).await;
        }
        self.routing.tell_position(position).await;
        Ok(())
    }

    /// Everything that arrived before these channels were known to be subscribed is routed.
    pub(super) async fn mark(&mut self, mark: Mark) {
        if let Some(position) = mark.position {
            self.advance(position);
        }
        for name in &mark.channels {
            if let Some(record) = self.routing.record(name)
                && !record.active
            {
                *record = Record {
                    active: true,
                    ..Record::default()
                };
            }
        }
        self.routing.flush().await;
        let position = mark.position.and(self.told_position());
        self.told_without |= position.is_none();
        self.routing.tell_active(&mark.channels, position).await;
    }

    /// Tells a shard that channels it wants are active for others already.
    pub(super) async fn tell_one_active(
        &mut self,
        channels: Vec<(ChannelName, Generation)>,
        shard: ShardId,
    ) {
        let position = self.told_position();
        self.told_without |= position.is_none();
        self.routing
            .tell_one_active(channels, position, shard)
            .await;
    }

    /// Events cannot be kept any more: what arrives of them is live.
    pub(super) fn stop_keeping(&mut self) {
        self.position = None;
        for (_, record) in self.routing.records() {
            record.had_live |= record.seen.is_some();
            record.seen = None;
            record.has_hole = false;
        }
    }

    /// The position at the moment, for those who are told of it.
    pub(super) fn told_position(&self) -> Option<EventId> {
        self.position.filter(|_| self.vouched)
    }

    /// The wanted channel of a message.
    fn channel(&self, message: &Message) -> Option<ChannelName> {
        let name = std::str::from_utf8(&message.channel).ok()?;
        let name = name.strip_prefix(&self.prefix)?;
        self.routing.channel(name).cloned()
    }

    /// Counts a broken message, and logs at most one a second: a broken publisher must not fill
    /// the log.
    fn note_dropped(&mut self, channel: &ChannelName, reason: DropReason, fault: &dyn Display) {
        self.metrics.dropped(reason).inc();
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
