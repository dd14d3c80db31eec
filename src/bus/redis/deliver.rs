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
use crate::bus::chain::{Arrival, arrival, backfill_from, seen_in};
use crate::bus::kept_event;
use crate::bus::routing::{Record, Routing};
use crate::hub::positions::Positions;
use crate::hub::{BusEvent, GapNotice, Generation, ShardId};
use crate::protocol::{
    ChannelName, Cursor, EventId, Frame, GapReason, HistoryPage, KeptEvent, KeptFrame, Link,
    Linked, Retention, decode, decode_frame, is_frame,
};
use crate::telemetry::occurrences::{EventBackfilled, EventReceived, IdsLost, MessageDropped};
use crate::telemetry::{BusMetrics, DropReason, EventKind};

/// An id further ahead of the newest known one than this, and the time that has passed since that
/// was new, is believed only once Redis says that it has issued it: a forged one would move every
/// cursor to where no event follows for long, and hide the events before it. Probes, which are ours
/// alone, tell every few seconds where ids are; that ids jump costs one read.
const MOST_AHEAD: Duration = Duration::from_secs(5);

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
    /// The new one's id is far ahead of all others.
    Ahead,
}

/// What history says to an interruption.
#[derive(Debug)]
pub(super) enum Filled {
    Hole(Recovery),
    Rewound(Option<HistoryPage<KeptEvent>>),
    Ahead(Option<HistoryPage<KeptEvent>>),
}

/// What the delivery knows, across connections.
pub(super) struct Delivery {
    pub(super) prefix: String,
    pub(super) max_event_bytes: usize,
    pub(super) lag_bound: Duration,
    pub(super) routing: Routing,
    pub(super) metrics: BusMetrics,
    pub(super) retention: Retention,
    /// Everything up to this id was routed, or told as missing. `None`: there are no ids here,
    /// and kept events are live ones.
    position: Option<EventId>,
    /// Which earlier ones were true whatever becomes of the primary.
    positions: Positions,
    /// When it last moved.
    moved_at: Instant,
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
            position: None,
            positions: Positions::new(lag_bound),
            moved_at: Instant::now(),
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
        let (settled, lag_bound) = (self.positions.settled(), self.lag_bound);
        let routing = &mut self.routing;
        let missed = |name: &ChannelName| {
            let record = *routing.record(name)?;
            let cursor = match (record.has_hole, record.seen) {
                (false, seen) => backfill_from(seen, position, settled, lag_bound),
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
        if let (Some(from), Some(to)) = (self.position, started.bound)
            && to < from
        {
            IdsLost { from, to }.emit();
            self.routing.flush().await;
            self.routing.tell_rewound(to).await;
            // Nothing of the new sequence is late.
            self.position = Some(EventId::ZERO);
            self.positions = Positions::new(self.lag_bound);
        }
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
        let is_gap = |(_, item): &(_, Recovered)| matches!(item, Recovered::Gap(..));
        let (gaps, events): (Vec<_>, Vec<_>) = recovered.into_iter().partition(is_gap);
        // All gaps come before any event: a client that is cut off after an event has a cursor
        // that proves complete what it was not told of.
        let first = events.first().map(|(_, item)| item.id().pred());
        let told = first.or(started.bound).unwrap_or_default();
        for (channel, item) in gaps {
            self.recovered(channel, item.told_at(told)).await;
        }
        for (channel, item) in events {
            self.recovered(channel, item).await;
        }

        let keeps = self.position.is_some() && started.bound.is_some();
        let mut lost: Vec<(ChannelName, GapNotice)> = Vec::new();
        for (name, record) in self.routing.records() {
            let cannot_tell = record.has_hole || !keeps && record.seen.is_some();
            if record.active && (record.had_live || cannot_tell) {
                let notice = GapNotice {
                    reason: GapReason::Lost,
                    after: record.seen,
                    oldest: None,
                    id: None,
                    complete_after: started.bound.filter(|_| cannot_tell),
                };
                lost.push((name.clone(), notice));
            }
            record.had_live = false;
            if cannot_tell {
                record.seen = None;
                record.has_hole = false;
            }
        }
        for (channel, notice) in lost {
            self.routing
                .route(BusEvent::gap(channel, notice, false))
                .await;
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
        if started.bound.is_none() {
            self.positions = Positions::new(self.lag_bound);
        }
        self.position = None;
        if let Some(bound) = started.bound {
            self.reach(bound);
        }
        self.settled = started.bound.unwrap_or_default();
        self.vouched = false;
        self.told_without = false;
        self.probed = EventId::ZERO;
    }

    async fn recovered(&mut self, channel: ChannelName, item: Recovered) {
        match item {
            Recovered::Event(event) => {
                EventBackfilled.emit(&self.metrics);
                self.route_kept(channel, event).await;
            }
            Recovered::Gap(notice, _) => {
                let is_before = |position| notice.id.is_some_and(|id| id < position);
                let late = self.position.is_some_and(is_before);
                let gap = BusEvent::gap(channel, notice, late);
                self.routing.route(gap).await;
            }
        }
    }

    /// A client has read what is in `page`: a failover that takes it back concerns that client,
    /// also where it was published before the channel was subscribed.
    pub(super) fn note_read(&mut self, channel: &ChannelName, page: &HistoryPage<Link>) {
        if let Some(position) = self.position
            && let Some(record) = self.routing.record(channel)
            && record.active
        {
            record.seen = record.seen.max(seen_in(page, position));
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
            Ok(Frame::Probe { .. } | Frame::Revocation(_)) => return None,
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
        EventReceived(EventKind::Live).emit(&self.metrics);
        if let Some(record) = self.routing.record(&channel) {
            record.had_live = true;
        }
        match decode(payload, self.max_event_bytes) {
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
            EventReceived(EventKind::Kept).emit(&self.metrics);
        }
        let (event, fault) = kept_event(frame);
        let Some(channel) = channel else {
            // Nobody wants it any more; who comes back before it is unsubscribed is told so.
            if !self.is_far_ahead(event.id) {
                self.advance(event.id);
            }
            return None;
        };
        if let Some(fault) = fault {
            self.note_dropped(&channel, DropReason::from(&fault), &fault);
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
        if self.is_far_ahead(event.id) {
            return Some(Interrupted {
                channel,
                event,
                why: Interruption::Ahead,
            });
        }
        self.in_order(channel, event).await
    }

    fn is_far_ahead(&self, id: EventId) -> bool {
        let most = MOST_AHEAD.saturating_add(self.moved_at.elapsed());
        self.position.is_some_and(|newest| id.since(newest) > most)
    }

    /// Routes a kept event of a wanted channel, unless something before it is missing.
    async fn in_order(&mut self, channel: ChannelName, event: KeptEvent) -> Option<Interrupted> {
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

    /// Routes what was missing before an event, and the event; unless more must be read first.
    pub(super) async fn fill(
        &mut self,
        interrupted: Interrupted,
        filled: Filled,
    ) -> Option<Interrupted> {
        let Interrupted { channel, event, .. } = interrupted;
        match filled {
            Filled::Ahead(page) => {
                let issued = page.and_then(|page| page.issued);
                if issued.is_some_and(|issued| event.id <= issued.last) {
                    return self.in_order(channel, event).await;
                }
                let fault = format_args!("its id, {}, was never issued", event.id);
                self.note_dropped(&channel, DropReason::IdAhead, &fault);
                return None;
            }
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
                        complete_after: Some(event.id.pred()),
                    };
                    let gap = BusEvent::gap(channel.clone(), notice, false);
                    self.routing.route(gap).await;
                }
            }
        }
        if let Some(record) = self.routing.record(&channel) {
            record.has_hole = false;
            record.seen = Some(event.id);
        }
        self.route_kept(channel, event).await;
        None
    }

    async fn route_kept(&mut self, channel: ChannelName, event: KeptEvent) {
        let id = event.id;
        let late = self.position.is_some_and(|position| id <= position);
        let event = BusEvent::kept(channel, event, late);
        self.routing.route(event).await;
        self.advance(id);
    }

    fn advance(&mut self, id: EventId) {
        if self.position.is_some_and(|position| position < id) {
            self.reach(id);
        }
    }

    fn reach(&mut self, id: EventId) {
        self.position = Some(id);
        self.positions.note(id);
        self.moved_at = Instant::now();
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
        self.reach(position);
        self.routing.flush().await;
        if std::mem::take(&mut self.told_without) {
            // One that Redis refuses was active on an earlier connection, and is not now.
            let active = |(name, record): (&ChannelName, &mut Record)| {
                (record.active && !record.has_hole).then(|| name.clone())
            };
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

    fn note_dropped(&self, channel: &ChannelName, reason: DropReason, fault: &dyn Display) {
        MessageDropped {
            channel,
            reason,
            fault,
        }
        .emit(&self.metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use std::rc::Rc;

    use tokio::sync::mpsc;

    use crate::hub::{
        Hub, HubSettings, InterestUpdate, Item, News, ShardMessage, SlowClientPolicy, Start,
        StreamRequest,
    };
    use crate::protocol::{ControlForm, Framing, RetryRange};
    use crate::telemetry::Metrics;

    const LAG: Duration = Duration::from_secs(60);

    /// A delivery to one shard that wants the channels `a` and `b`.
    struct World {
        delivery: Delivery,
        shard: mpsc::Receiver<ShardMessage>,
    }

    fn id(ms: u64) -> EventId {
        EventId::new(ms, 0)
    }

    fn name(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    fn kept_message(channel: &str, ms: u64, prev: u64) -> Message {
        let header = format!("1e{ms}-0 {prev}-0 {ms} - 0 0 0\n{ms}");
        message(channel, [&b"\xff"[..], header.as_bytes()].concat())
    }

    fn message(channel: &str, payload: Vec<u8>) -> Message {
        Message {
            channel: format!("sse:{channel}").into_bytes(),
            payload,
        }
    }

    fn probe(ms: u64) -> ProbeId {
        ProbeId {
            id: id(ms),
            epoch: id(1),
            library_version: 1,
        }
    }

    fn kept(ms: u64, prev: u64) -> KeptEvent {
        KeptEvent {
            id: id(ms),
            prev: id(prev),
            published_ms: ms,
            event: None,
        }
    }

    fn started(bound: u64, recoveries: Vec<Recovery>) -> Started {
        Started {
            bound: Some(id(bound)),
            recoveries,
        }
    }

    /// What a hub says when somebody asks for both channels.
    async fn interest() -> InterestUpdate {
        let settings = HubSettings {
            heartbeat: LAG,
            retry: RetryRange::new(LAG, LAG).unwrap(),
            client_buffer_bytes: 1 << 20,
            slow_client: SlowClientPolicy::Close,
            lag_bound: LAG,
            tail_bytes: 1 << 20,
            max_connection_age: None,
        };
        let hub = Hub::new(settings, Arc::default(), mpsc::channel(1).0, Arc::default());
        let request = StreamRequest {
            channels: vec![name("a"), name("b")],
            start: Start::Live,
            control: ControlForm::Event,
            heartbeat: None,
            session: None,
        };
        let (sender, mut told) = mpsc::channel(1);
        tokio::select! {
            update = told.recv() => update.unwrap(),
            _ = hub.subscribe(&request, Framing::Plain, Vec::new, LAG) => panic!("not active"),
            () = Rc::clone(&hub).tell_interest(0, sender) => panic!("the bus is there"),
        }
    }

    impl World {
        async fn new(bound: Option<u64>) -> Self {
            let (inbox, shard) = mpsc::channel(64);
            let mut routing = Routing::new(vec![inbox], 1 << 20);
            routing.apply(interest().await);
            let metrics = Metrics::new(vec![Arc::default()], 1).unwrap().bus;
            let retention = Retention::constant(Duration::from_secs(3600));
            let prefix = "sse:".to_owned();
            let mut delivery = Delivery::new(prefix, 1024, LAG, retention, routing, metrics);
            let bound = bound.map(id);
            let recoveries = Vec::new();
            let channels = vec![name("a"), name("b")];
            delivery
                .start(Started { bound, recoveries }, &channels)
                .await;
            let position = bound;
            delivery.mark(Mark { channels, position }).await;
            Self { delivery, shard }
        }

        async fn again(&mut self, started: Started) {
            self.delivery.start(started, &[name("a"), name("b")]).await;
        }

        /// What the shard was told since, one word each.
        async fn told(&mut self) -> String {
            self.delivery.routing.flush().await;
            let mut told = String::new();
            while let Ok(message) = self.shard.try_recv() {
                match message {
                    ShardMessage::Events(batch) => {
                        for event in batch.events.iter() {
                            let channel = &event.channel;
                            let _ = match &event.item {
                                Item::Live(_) => write!(told, " {channel}:live"),
                                Item::Kept { event, late } => {
                                    let late = if *late { "late" } else { "" };
                                    write!(told, " {channel}:{}{late}", event.id.ms())
                                }
                                Item::Gap { notice, late } => {
                                    let late = if *late { "late" } else { "" };
                                    let id = notice.id.map_or(0, |id| id.ms());
                                    write!(told, " {channel}:{}@{id}{late}", notice.reason)
                                }
                            };
                        }
                    }
                    ShardMessage::News(News::Active { position, .. }) => {
                        let _ = write!(told, " active@{}", position.unwrap_or_default().ms());
                    }
                    ShardMessage::News(News::Rewound(position)) => {
                        let _ = write!(told, " rewound@{}", position.ms());
                    }
                    ShardMessage::News(News::Position(position)) => {
                        let _ = write!(told, " position@{}", position.ms());
                    }
                    ShardMessage::News(_) => {}
                }
            }
            told.trim_start().to_owned()
        }
    }

    #[tokio::test]
    async fn an_event_that_continues_is_routed_and_moves_the_position() {
        let mut world = World::new(Some(100)).await;
        // Nobody may be told a position before a probe.
        assert_eq!(world.told().await, "active@0");
        for message in [
            // Read when the connection began.
            kept_message("a", 100, 0),
            kept_message("a", 110, 90),
            kept_message("a", 110, 90),
            message("a", b"x".to_vec()),
        ] {
            assert!(world.delivery.message(message).await.is_none());
        }
        assert_eq!(world.told().await, "a:110 a:live");
        // Whom no position was told is told now.
        world.delivery.probe(probe(105)).await.unwrap();
        assert_eq!(world.told().await, "active@110 position@110");
        world.delivery.probe(probe(120)).await.unwrap();
        assert_eq!(world.told().await, "position@120");
        assert!(world.delivery.probe(probe(119)).await.is_err());
    }

    #[tokio::test]
    async fn a_hole_and_a_rewound_history_wait_for_a_read() {
        let mut world = World::new(Some(100)).await;
        world.delivery.message(kept_message("a", 110, 0)).await;
        let hole = world.delivery.message(kept_message("a", 130, 120)).await;
        let hole = hole.unwrap();
        assert!(matches!(hole.why, Interruption::Hole(seen) if seen == id(110)));
        world.delivery.message(kept_message("b", 125, 0)).await;
        let recovery = Recovery {
            channel: name("a"),
            items: vec![Recovered::Event(kept(120, 110))],
            seen: Some(id(120)),
            retention: None,
        };
        world.delivery.fill(hole, Filled::Hole(recovery)).await;
        let told = world.told().await;
        assert_eq!(told, "active@0 a:110 b:125 a:120late a:130");
        assert_eq!(world.delivery.metrics.backfilled(), 1);

        let rewound = world.delivery.message(kept_message("a", 140, 0)).await;
        let rewound = rewound.unwrap();
        assert!(matches!(rewound.why, Interruption::Rewound(seen) if seen == id(130)));
        world.delivery.fill(rewound, Filled::Rewound(None)).await;
        assert_eq!(world.told().await, "a:rewound@139 a:140");
        // What is older than all can live has expired.
        let late = 140 + 3600 * 1000;
        world.delivery.probe(probe(late - 1)).await.unwrap();
        let expired = world.delivery.message(kept_message("a", late, 0)).await;
        assert!(expired.is_none());
    }

    #[tokio::test]
    async fn what_was_missed_is_told_in_order_and_once() {
        let mut world = World::new(Some(100)).await;
        world.delivery.message(kept_message("a", 110, 0)).await;
        let live = message("b", b"x".to_vec());
        world.delivery.abandon([Incoming::Message(live)].into());
        world.told().await;
        let missed = world.delivery.missed(&[name("a"), name("b")]);
        let cursors: Vec<_> = missed.iter().map(|m| m.cursor.to_string()).collect();
        assert_eq!(cursors, ["110-0", "0-0.110-0"]);
        let gap = GapNotice {
            reason: GapReason::Lost,
            after: None,
            oldest: None,
            id: Some(id(119)),
            complete_after: Some(id(119)),
        };
        let a = Recovery {
            channel: name("a"),
            items: vec![
                Recovered::Gap(gap, id(119)),
                Recovered::Event(kept(120, 115)),
                Recovered::Event(kept(140, 120)),
            ],
            seen: Some(id(140)),
            retention: None,
        };
        let b = Recovery {
            channel: name("b"),
            items: vec![Recovered::Event(kept(130, 0))],
            seen: Some(id(130)),
            retention: None,
        };
        world.again(started(150, vec![b, a])).await;
        assert_eq!(world.told().await, "a:lost@119 a:120 b:130 a:140 b:lost@0");
        // Both came with the subscription too.
        world.delivery.message(kept_message("a", 140, 120)).await;
        world.delivery.message(kept_message("a", 160, 140)).await;
        assert_eq!(world.told().await, "a:160");
        world.again(started(170, Vec::new())).await;
        assert_eq!(world.told().await, "");
    }

    /// What is told of the new sequence must not be held against ids of the old one.
    #[tokio::test]
    async fn ids_that_went_back_are_told_before_what_was_recovered() {
        let mut world = World::new(Some(100)).await;
        world.delivery.message(kept_message("a", 900, 0)).await;
        world.told().await;
        let gap = GapNotice {
            reason: GapReason::Rewound,
            after: Some(id(900)),
            oldest: None,
            id: Some(id(120)),
            complete_after: Some(id(120)),
        };
        let a = Recovery {
            channel: name("a"),
            items: vec![Recovered::Gap(gap, id(120)), Recovered::Event(kept(121, 0))],
            seen: Some(id(121)),
            retention: None,
        };
        world.again(started(130, vec![a])).await;
        assert_eq!(world.told().await, "rewound@130 a:rewound@120 a:121");
        world.delivery.message(kept_message("a", 140, 121)).await;
        assert_eq!(world.told().await, "a:140");
    }

    /// A gap that is found after later events of other channels.
    #[tokio::test]
    async fn a_gap_can_be_late() {
        let mut world = World::new(Some(100)).await;
        world.delivery.message(kept_message("a", 110, 0)).await;
        let hole = world.delivery.message(kept_message("a", 130, 120)).await;
        world.delivery.message(kept_message("b", 125, 0)).await;
        let gap = GapNotice {
            reason: GapReason::Lost,
            after: Some(id(110)),
            oldest: None,
            id: Some(id(120)),
            complete_after: Some(id(120)),
        };
        let recovery = Recovery {
            channel: name("a"),
            items: vec![Recovered::Gap(gap, id(120))],
            seen: None,
            retention: None,
        };
        let filled = Filled::Hole(recovery);
        world.delivery.fill(hole.unwrap(), filled).await;
        let told = world.told().await;
        assert_eq!(told, "active@0 a:110 b:125 a:lost@120late a:130");
    }

    /// Redis refused the channel on the connection before: of nothing since then is anything known.
    #[tokio::test]
    async fn what_was_refused_is_not_kept_by_tails_and_not_active_before_it_is_subscribed() {
        let mut world = World::new(Some(100)).await;
        world.told().await;
        world.delivery.start(started(110, Vec::new()), &[]).await;
        world.delivery.miss(|name| name.as_str() == "a");
        let channels = vec![name("b")];
        world
            .delivery
            .mark(Mark {
                channels,
                position: None,
            })
            .await;
        world.delivery.probe(probe(120)).await.unwrap();
        let mut active = Vec::new();
        while let Ok(message) = world.shard.try_recv() {
            if let ShardMessage::News(News::Active { channels, .. }) = message {
                active.extend(channels.into_iter().map(|(name, _)| name));
            }
        }
        assert_eq!(active, [name("b"), name("b")]);
        assert_eq!(world.delivery.missed(&[name("a")]).len(), 0);
        world.again(started(200, Vec::new())).await;
        world.delivery.routing.flush().await;
        let ShardMessage::Events(batch) = world.shard.try_recv().unwrap() else {
            panic!("a gap");
        };
        let Item::Gap { notice, .. } = &batch.events[0].item else {
            panic!("a gap");
        };
        assert_eq!(notice.reason, GapReason::Lost);
        assert_eq!((notice.id, notice.complete_after), (None, Some(id(200))));
    }

    #[tokio::test]
    async fn without_ids_everything_is_live_and_lost_with_the_connection() {
        let mut world = World::new(None).await;
        world.delivery.message(kept_message("a", 110, 0)).await;
        assert_eq!(world.told().await, "active@0 a:live");
        assert!(world.delivery.missed(&[name("a")]).is_empty());
        world.again(started(120, Vec::new())).await;
        assert_eq!(world.told().await, "a:lost@0");
        world.delivery.message(kept_message("a", 130, 110)).await;
        assert_eq!(world.told().await, "a:130");
        world.again(Started::default()).await;
        assert_eq!(world.told().await, "a:lost@0");
    }

    #[tokio::test]
    async fn ids_far_ahead_are_looked_up_unless_time_has_passed() {
        let mut world = World::new(Some(100)).await;
        world.told().await;
        let ahead = 100 + 60_000;
        for (issued, told) in [(ahead - 1, ""), (ahead, &*format!("a:{ahead}"))] {
            let interrupted = world.delivery.message(kept_message("a", ahead, 0)).await;
            let interrupted = interrupted.unwrap();
            assert!(matches!(interrupted.why, Interruption::Ahead));
            let issued = crate::protocol::Issued {
                epoch: id(1),
                last: id(issued),
            };
            let page = HistoryPage {
                issued: Some(issued),
                now_ms: ahead,
                retention: Retention::constant(Duration::from_secs(3600)),
                evictable: false,
                oldest: None,
                from: id(ahead),
                events: Vec::new(),
                complete: true,
            };
            let filled = Filled::Ahead(Some(page));
            assert!(world.delivery.fill(interrupted, filled).await.is_none());
            assert_eq!(world.told().await, told);
        }
        let dropped = world.delivery.metrics.dropped(DropReason::IdAhead);
        assert_eq!(dropped.get(), 1);
        let later = 2 * ahead;
        world.delivery.moved_at -= Duration::from_secs(60);
        let interrupted = world
            .delivery
            .message(kept_message("a", later, ahead))
            .await;
        assert!(interrupted.is_none());
    }
}
