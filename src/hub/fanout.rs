//! One round of fan-out: a batch of events is encoded once and handed to every member.

use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::channels::{Channel, Channels};
use super::encoded::{EncodedEvent, Wire};
use super::mailbox::{KeptSpan, Loss, Origin, Parcel, SlowClientPolicy};
use super::shard::Hub;
use super::subscriber::{ChannelKey, Subscriber};
use super::timing::{Round, Timing};
use super::{BusEvent, EventBatch, GapNotice, Item};
use crate::protocol::{
    Audience, ChannelName, EventId, Framing, GapReason, Link, Linked, gap_block,
};

/// Events of one channel in this round, encoded one behind the other. One that is not for
/// everybody is a lot of its own, so its bytes are in no buffer that others get.
struct Lot {
    key: ChannelKey,
    channel: ChannelName,
    /// The sessions it is for; `None`: everybody.
    audience: Option<Arc<Audience>>,
    buffer: Vec<u8>,
    /// How much of it are kept events, which stay in the channel's tail.
    kept_bytes: usize,
    events: u32,
    timing: Timing,
    /// The least id in it; [`EventId::MAX`] where everything is live.
    first_id: EventId,
    kept: Option<KeptSpan>,
    gaps: Vec<GapReason>,
}

/// One event, or gap, within its channel's lot.
struct Piece {
    lot: usize,
    /// Where it lies in the lot. `None`: it is not for clients.
    range: Option<PieceRange>,
    what: What,
}

struct PieceRange {
    /// The whole chunk, for connections written to directly.
    chunk: Range<usize>,
    /// The bare SSE block inside it, for those framed otherwise.
    payload: Range<usize>,
}

enum What {
    Live,
    Kept {
        link: Link,
        published_ms: u64,
        /// The bytes without an id, for connections that have had later ids of other channels.
        late: Option<Wire>,
    },
    Gap {
        reason: GapReason,
        id: Option<EventId>,
        after: Option<EventId>,
        complete_after: Option<EventId>,
        /// As above.
        late: Option<Wire>,
    },
}

impl What {
    /// The id that decides who has had it already.
    fn id(&self) -> Option<EventId> {
        match self {
            Self::Live => None,
            Self::Kept { link, .. } => Some(link.id),
            Self::Gap { id, .. } => *id,
        }
    }

    /// Whether a client that has had everything up to `position` has had this. A gap comes behind
    /// the event whose id it carries.
    fn was_had(&self, position: EventId) -> bool {
        match self {
            Self::Live => false,
            Self::Kept { link, .. } => link.id <= position,
            Self::Gap { id, .. } => id.is_some_and(|id| id < position),
        }
    }

    /// When it came, where it is an event.
    fn timing(&self, round: Option<&Rc<Round>>) -> Option<Timing> {
        let (kept, published_ms) = match self {
            Self::Live => (0, u64::MAX),
            Self::Kept { published_ms, .. } => (1, *published_ms),
            Self::Gap { .. } => return None,
        };
        Some(Timing {
            kept,
            published_ms,
            round: round.cloned(),
        })
    }

    /// The bytes without an id, where it is late.
    fn late(&self) -> Option<&Wire> {
        match self {
            Self::Live => None,
            Self::Kept { late, .. } | Self::Gap { late, .. } => late.as_ref(),
        }
    }

    /// What a client misses that does not get it, where it must be told. `with_id`: it carries
    /// its id.
    fn span(&self, channel: &ChannelName, with_id: bool) -> Option<KeptSpan> {
        let (after, last) = match self {
            Self::Live => return None,
            Self::Kept { link, .. } => (Some(link.prev), Some(link.id)),
            Self::Gap { id, after, .. } => (*after, *id),
        };
        let last = last.filter(|_| with_id);
        Some(KeptSpan {
            channel: channel.clone(),
            after,
            last,
        })
    }
}

/// Pushes of one round: some milliseconds of work, after which connections get to write and the
/// shard to accept, however many events there are for however many clients.
const MOST_PUSHES: usize = 64 * 1024;

/// Lets every task run that has been woken so far. Unlike `yield_now` it does not have the runtime
/// look for I/O as well, which would cost a system call a round.
async fn after_those_woken() {
    let mut woken = false;
    poll_fn(|context| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Hub {
    /// Delivers `batch` in rounds. After each every connection gets its turn to write.
    pub(super) async fn deliver(&self, batches: &mut Vec<EventBatch>) {
        {
            let arriving = |batch: &EventBatch| batch.arrived;
            let events = |batch| std::iter::repeat(arriving(batch)).zip(batch.events.iter());
            let mut events = batches.iter().flat_map(events).peekable();
            while let Some((arrived, _)) = events.peek() {
                let round = Round::new(&self.clock, *arrived, &self.stats);
                self.round(&mut events.by_ref().map(|(_, event)| event), &round);
                drop(round);
                after_those_woken().await;
            }
        }
        batches.clear();
    }

    /// Delivers as many of `events` as one round holds, at least one. Connections on one channel
    /// get that channel's events as one buffer; the others get theirs one by one, in order.
    fn round<'a>(&self, events: &mut impl Iterator<Item = &'a BusEvent>, round: &Rc<Round>) {
        let mut channels = self.channels.borrow_mut();
        let mut lots: Vec<Lot> = Vec::new();
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut cost_bytes, mut pushes) = (0, 0);
        while cost_bytes < self.settings.max_batch_bytes() && pushes < MOST_PUSHES {
            let Some(event) = events.next() else {
                break;
            };
            cost_bytes += event.cost_bytes();
            let Some(key) = channels.key_of(&event.channel) else {
                continue;
            };
            let Some(channel) = channels.by_key(key) else {
                continue;
            };
            let has_members = channel.has_members();
            let is_live = matches!(event.item, Item::Live(_));
            if is_live && !has_members {
                continue;
            }
            let audience = event.item.audience();
            let mut begin_lot = || {
                pushes += channel.batch_members.len();
                lots.push(Lot::new(
                    key,
                    event.channel.clone(),
                    audience.cloned(),
                    round,
                ));
                lots.len() - 1
            };
            let number = if audience.is_none() {
                *channel.lot.get_or_insert_with(begin_lot)
            } else {
                // What follows it begins another one, and so stays behind it.
                channel.lot = None;
                begin_lot()
            };
            pushes += channel.event_members.len() + channel.replaying_members.len();
            let clients = channel.members_of(is_live);
            if let Some(watch) = &event.watch {
                watch.handed_to(clients);
            }
            let Some(lot) = lots.get_mut(number) else {
                continue;
            };
            let (range, what) = lot.add(&event.item);
            if has_members && range.is_some() && !matches!(what, What::Gap { .. }) {
                round.count_event();
            }
            if channels.are_counted() && !matches!(what, What::Gap { .. }) {
                channels.count(key, clients);
            }
            pieces.push(Piece {
                lot: number,
                range,
                what,
            });
        }

        let encoded: Vec<_> = lots
            .into_iter()
            .map(|lot| EncodedLot {
                is_mostly_kept: lot.kept_bytes >= lot.buffer.len() / 2,
                bytes: Bytes::from(lot.buffer),
                origin: Rc::new(Origin {
                    timing: Some(lot.timing),
                    loss: lot.kept.filter(|_| self.tells_of_loss()).map(Loss::Kept),
                }),
                key: lot.key,
                channel: lot.channel,
                audience: lot.audience,
                has_reader: Cell::new(false),
                events: lot.events,
                first_id: lot.first_id,
                gaps: lot.gaps,
            })
            .collect();
        for piece in &pieces {
            if let Some(lot) = encoded.get(piece.lot) {
                self.note_kept(&mut channels, lot, piece);
            }
        }
        for (number, lot) in encoded.iter().enumerate() {
            if let Some(channel) = channels.by_key(lot.key) {
                channel.lot = None;
                self.push_lot(number, lot, &channel.batch_members, &pieces);
            }
        }
        for piece in &pieces {
            let Some((lot, channel)) = encoded
                .get(piece.lot)
                .and_then(|lot| Some((lot, channels.get(lot.key)?)))
            else {
                continue;
            };
            let origins = PieceOrigins::default();
            for member in &channel.event_members {
                self.push_piece(member, lot, piece, &origins, true);
            }
            // Kept events come to these from their replay.
            if piece.what.id().is_none() {
                for member in &channel.replaying_members {
                    self.push_piece(member, lot, piece, &origins, true);
                }
            } else if !channel.replaying_members.is_empty() {
                lot.has_reader.set(true);
            }
        }
        for lot in &encoded {
            let has_members = || channels.get(lot.key).is_some_and(Channel::has_members);
            if lot.audience.is_some() && !lot.has_reader.get() && has_members() {
                self.stats.events_without_audience.add(1);
            }
        }
    }

    fn tells_of_loss(&self) -> bool {
        self.settings.slow_client == SlowClientPolicy::Latest
    }

    /// Has a channel remember its kept event.
    fn note_kept(&self, channels: &mut Channels, lot: &EncodedLot, piece: &Piece) {
        match &piece.what {
            What::Live => {}
            What::Gap { complete_after, .. } => {
                if let Some(position) = complete_after {
                    channels.note_gap(lot.key, *position);
                }
            }
            What::Kept { link, .. } => {
                self.positions.borrow_mut().note(link.id);
                let wire = piece.range.as_ref().map(|range| {
                    let wire = Wire::slice(&lot.bytes, &range.chunk, &range.payload);
                    if lot.is_mostly_kept {
                        wire
                    } else {
                        wire.detached()
                    }
                });
                // Of others each client's own is kept: its cursor names nothing it may not have.
                if lot.audience.is_none()
                    && let Some(channel) = channels.by_key(lot.key)
                {
                    channel.newest = channel.newest.max(link.id);
                }
                let event = EncodedEvent {
                    channel: lot.channel.clone(),
                    link: *link,
                    wire,
                    audience: lot.audience.clone(),
                };
                channels.append_to_tail(lot.key, event);
            }
        }
    }

    /// Hands a lot to the connections that take it whole.
    fn push_lot(
        &self,
        number: usize,
        lot: &EncodedLot,
        members: &[Rc<Subscriber>],
        pieces: &[Piece],
    ) {
        let tick = self.tick();
        for member in members {
            if !lot.is_for(member) {
                continue;
            }
            if lot.first_id <= member.skip_through.get() {
                // It has had some of it.
                for piece in pieces.iter().filter(|piece| piece.lot == number) {
                    self.push_piece(member, lot, piece, &PieceOrigins::default(), false);
                }
                continue;
            }
            for reason in &lot.gaps {
                self.stats.count_gaps(*reason, 1);
            }
            if !lot.bytes.is_empty() {
                member.last_push.set(tick);
                let parcel = Parcel {
                    bytes: lot.bytes.clone(),
                    events: lot.events,
                    origin: Some(Rc::clone(&lot.origin)),
                };
                lot.note_sent(member, Some(lot.first_id));
                self.push(member, parcel);
            }
        }
    }

    /// Hands one event to a connection that has not had it. `is_one_of_many`: it may have had
    /// later events of other channels.
    fn push_piece(
        &self,
        member: &Subscriber,
        lot: &EncodedLot,
        piece: &Piece,
        origins: &PieceOrigins,
        is_one_of_many: bool,
    ) {
        if !lot.is_for(member) || piece.what.was_had(member.skip_through.get()) {
            return;
        }
        let Some(range) = &piece.range else {
            return;
        };
        let late = piece.what.late().filter(|_| is_one_of_many);
        let wire = late.cloned();
        let wire = wire.unwrap_or_else(|| Wire::slice(&lot.bytes, &range.chunk, &range.payload));
        let events = match piece.what {
            What::Gap { reason, .. } => {
                self.stats.count_gaps(reason, 1);
                0
            }
            _ => 1,
        };
        member.last_push.set(self.tick());
        lot.note_sent(member, piece.what.id());
        let parcel = Parcel {
            bytes: wire.framed(member.framing),
            events,
            origin: match late {
                None => origins.of(member.framing, |in_round| {
                    self.origin(lot, piece, in_round, true)
                }),
                Some(_) => self.origin(lot, piece, false, false),
            },
        };
        self.push(member, parcel);
    }

    /// Where an event comes from, for those that get it by itself.
    fn origin(
        &self,
        lot: &EncodedLot,
        piece: &Piece,
        in_round: bool,
        with_id: bool,
    ) -> Option<Rc<Origin>> {
        let round = lot
            .origin
            .timing
            .as_ref()
            .and_then(|timing| timing.round.as_ref());
        let timing = piece.what.timing(round.filter(|_| in_round));
        let span = self
            .tells_of_loss()
            .then(|| piece.what.span(&lot.channel, with_id));
        let loss = span.flatten().map(Loss::Kept);
        (timing.is_some() || loss.is_some()).then(|| Rc::new(Origin { timing, loss }))
    }
}

/// The origin of a piece, made when somebody needs it.
#[derive(Default)]
struct PieceOrigins {
    chunked: OnceCell<Option<Rc<Origin>>>,
    plain: OnceCell<Option<Rc<Origin>>>,
}

impl PieceOrigins {
    /// hyper does not say when its client is not ready to take something, so what it writes takes
    /// no part in the round.
    fn of(
        &self,
        framing: Framing,
        make: impl FnOnce(bool) -> Option<Rc<Origin>>,
    ) -> Option<Rc<Origin>> {
        let (made, in_round) = match framing {
            Framing::Chunked => (&self.chunked, true),
            Framing::Plain => (&self.plain, false),
        };
        made.get_or_init(|| make(in_round)).clone()
    }
}

/// A [`Lot`] whose bytes are shared.
struct EncodedLot {
    key: ChannelKey,
    channel: ChannelName,
    audience: Option<Arc<Audience>>,
    /// Somebody may have it.
    has_reader: Cell<bool>,
    bytes: Bytes,
    /// A part of the bytes keeps all of them alive: too much for a few kept events among others.
    is_mostly_kept: bool,
    events: u32,
    first_id: EventId,
    gaps: Vec<GapReason>,
    origin: Rc<Origin>,
}

impl EncodedLot {
    /// Whether a connection may have it.
    fn is_for(&self, member: &Subscriber) -> bool {
        let Some(audience) = &self.audience else {
            return true;
        };
        let belongs = member.belongs_to(audience);
        if belongs {
            self.has_reader.set(true);
        }
        belongs
    }

    /// Takes note that a connection is sent it, where that cannot be known from its channels.
    fn note_sent(&self, member: &Subscriber, id: Option<EventId>) {
        if self.audience.is_some()
            && let Some(id) = id.filter(|id| *id < EventId::MAX)
        {
            member.note_restricted(id);
        }
    }
}

impl Lot {
    fn new(
        key: ChannelKey,
        channel: ChannelName,
        audience: Option<Arc<Audience>>,
        round: &Rc<Round>,
    ) -> Self {
        Self {
            key,
            channel,
            audience,
            buffer: Vec::new(),
            kept_bytes: 0,
            events: 0,
            timing: Timing {
                kept: 0,
                published_ms: u64::MAX,
                round: Some(Rc::clone(round)),
            },
            first_id: EventId::MAX,
            kept: None,
            gaps: Vec::new(),
        }
    }

    /// Encodes an item behind the others.
    fn add(&mut self, item: &Item) -> (Option<PieceRange>, What) {
        let start = self.buffer.len();
        let (payload, what) = match item {
            Item::Live(event) => {
                self.events += 1;
                (Some(event.append_chunk(None, &mut self.buffer)), What::Live)
            }
            Item::Kept { event, late } => {
                let published_ms = event.published_ms;
                let payload = event.event.as_ref().map(|content| {
                    self.events += 1;
                    self.timing.kept += 1;
                    self.timing.published_ms = self.timing.published_ms.min(published_ms);
                    content.append_chunk(Some(event.id), &mut self.buffer)
                });
                let late = event.event.as_ref().filter(|_| *late);
                let late =
                    late.map(|content| Wire::encoded(|buffer| content.append_chunk(None, buffer)));
                let link = event.link();
                let what = What::Kept {
                    link,
                    published_ms,
                    late,
                };
                (payload, what)
            }
            Item::Gap { notice, late } => {
                let GapNotice {
                    reason,
                    after,
                    oldest,
                    id,
                    complete_after,
                } = *notice;
                let append = |id, buffer: &mut Vec<u8>| {
                    let block = gap_block(&self.channel, reason, after, oldest, id);
                    Framing::Chunked.append(block.as_bytes(), buffer)
                };
                let late = late.then(|| Wire::encoded(|buffer| append(None, buffer)));
                let payload = append(id, &mut self.buffer);
                self.gaps.push(reason);
                let what = What::Gap {
                    reason,
                    id,
                    after,
                    complete_after,
                    late,
                };
                (Some(payload), what)
            }
        };
        if let Some(id) = what.id() {
            self.first_id = self.first_id.min(id);
        }
        if let Some(span) = what.span(&self.channel, true) {
            match &mut self.kept {
                Some(kept) => kept.last = kept.last.max(span.last),
                None => self.kept = Some(span),
            }
        }
        let chunk = start..self.buffer.len();
        if matches!(what, What::Kept { .. }) {
            self.kept_bytes += chunk.len();
        }
        let range = payload.map(|payload| PieceRange { chunk, payload });
        (range, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{CloseReason, HubSettings, LatencyTotal, News, Session};
    use crate::protocol::{Cursor, CursorStyle, Event, KeptEvent, RetryRange};
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio::sync::mpsc;

    fn id(ms: u64) -> EventId {
        EventId::new(ms, 0)
    }

    fn name(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    fn event(bytes: usize) -> Event {
        Event::new(Bytes::from(vec![b'x'; bytes]), usize::MAX).unwrap()
    }

    fn kept(channel: &str, ms: u64, event: Option<Event>) -> BusEvent {
        let event = KeptEvent {
            id: id(ms),
            prev: EventId::ZERO,
            published_ms: ms,
            event: event.map(Arc::new),
        };
        BusEvent::kept(name(channel), event, false)
    }

    fn hub() -> Rc<Hub> {
        let minute = Duration::from_secs(60);
        let settings = HubSettings {
            heartbeat: minute,
            retry: RetryRange::new(minute, minute).unwrap(),
            client_buffer_bytes: 1 << 20,
            slow_client: SlowClientPolicy::Close,
            lag_bound: minute,
            tail_bytes: 1 << 20,
            max_connection_age: None,
        };
        Hub::new(settings, Arc::default(), mpsc::channel(1).0, Arc::default())
    }

    /// A live client of these channels, which are active since `1-0`.
    fn client(hub: &Hub, names: &[&str]) -> Rc<Subscriber> {
        client_with(hub, names, None)
    }

    fn client_with(hub: &Hub, names: &[&str], session: Option<Arc<Session>>) -> Rc<Subscriber> {
        let subscriber = Rc::new(Subscriber::new(
            Framing::Chunked,
            CursorStyle::Silent,
            session,
        ));
        let mut channels = hub.channels.borrow_mut();
        let mut keys = Vec::new();
        for name in names.iter().copied().map(name) {
            let key = channels.acquire(&name);
            let generation = channels.get(key).unwrap().generation;
            channels.activate(&name, generation, Some(id(1)));
            keys.push(key);
        }
        channels.attach(&subscriber, &keys);
        hub.heartbeats.borrow_mut().insert(&subscriber);
        subscriber
    }

    fn deliver(hub: &Hub, events: &[BusEvent]) {
        let mut events = events.iter().peekable();
        while events.peek().is_some() {
            let round = Round::new(&hub.clock, Instant::now(), &hub.stats);
            hub.round(&mut events, &round);
        }
    }

    fn taken(subscriber: &Subscriber) -> Vec<Bytes> {
        let take = || subscriber.mailbox.borrow_mut().take();
        std::iter::from_fn(take)
            .map(|parcel| parcel.bytes)
            .collect()
    }

    fn text(subscriber: &Subscriber) -> String {
        String::from_utf8(taken(subscriber).concat()).unwrap()
    }

    /// The tail counts the bytes of its events, so it must not hold others'.
    #[test]
    fn a_tail_keeps_no_live_events_alive() {
        for (live_bytes, shares) in [(10_000, false), (1, true)] {
            let hub = hub();
            let client = client(&hub, &["a"]);
            let live = BusEvent::live(name("a"), event(live_bytes));
            deliver(&hub, &[live, kept("a", 5, Some(event(100)))]);
            let sent = taken(&client).remove(0).as_ptr_range();
            let mut channels = hub.channels.borrow_mut();
            let key = channels.key_of("a").unwrap();
            let tail = &channels.by_key(key).unwrap().tail;
            let wire = tail.after(EventId::ZERO).next().unwrap().wire.clone();
            let bytes = wire.unwrap().framed(Framing::Chunked);
            assert_eq!(sent.contains(&bytes.as_ptr()), shares);
        }
    }

    #[test]
    fn a_late_gap_does_not_take_a_client_back() {
        let hub = hub();
        let one = client(&hub, &["a"]);
        let both = client(&hub, &["a", "b"]);
        let notice = GapNotice {
            reason: GapReason::Lost,
            after: None,
            oldest: None,
            id: Some(id(120)),
            complete_after: Some(id(120)),
        };
        let gap = BusEvent::gap(name("a"), notice, true);
        deliver(&hub, &[kept("b", 125, Some(event(1))), gap]);
        assert!(text(&one).contains("id: 120-0\nevent: $gap\n"));
        let told = text(&both);
        assert!(told.contains("id: 125-0\n") && told.contains("event: $gap\n"));
        assert!(!told.contains("120-0"), "{told}");
    }

    #[test]
    fn an_event_for_some_is_in_no_bytes_of_others() {
        let hub = hub();
        let claims = serde_json::json!({"role": "admin"});
        let session = Session::new(claims.as_object().unwrap(), None);
        let session = Arc::new(session);
        let restricted = |bytes| event(bytes).with_to(r#"{"role":"admin"}"#).unwrap();
        for names in [&["a"][..], &["a", "b"]] {
            let admin = client_with(&hub, names, Some(Arc::clone(&session)));
            let other = client(&hub, names);
            let nobody = hub.stats.events_without_audience.get();
            let batch = [
                kept("a", 5, Some(event(1))),
                kept("a", 6, Some(restricted(2))),
                BusEvent::live(name("a"), restricted(3)),
                kept("a", 7, Some(event(4))),
                kept("a", 8, Some(restricted(5))),
            ];
            deliver(&hub, &batch);
            let ids = |text: &str| -> Vec<String> {
                let lines = text.lines().filter_map(|line| line.strip_prefix("id: "));
                lines.map(str::to_owned).collect()
            };
            let (all, some) = (taken(&admin), taken(&other));
            let text = |parcels: &[Bytes]| String::from_utf8(parcels.concat()).unwrap();
            assert_eq!(ids(&text(&all)), ["5-0", "6-0", "7-0", "8-0"]);
            assert!(text(&all).contains("data: xxx\n"));
            assert_eq!(ids(&text(&some)), ["5-0", "7-0"]);
            assert!(!text(&some).contains("data: xxx\n"));
            // What its cursor may name.
            let channels = hub.channels.borrow();
            assert_eq!(channels.newest_of(&other).0, id(7));
            assert_eq!(admin.newest_restricted(), id(8));
            assert_eq!(other.newest_restricted(), EventId::ZERO);
            drop(channels);
            assert_eq!(hub.stats.events_without_audience.get(), nobody);
            let to_zoe = event(1).with_to(r#"{"sub":"zoe"}"#).unwrap();
            deliver(&hub, &[BusEvent::live(name("a"), to_zoe)]);
            assert_eq!(hub.stats.events_without_audience.get(), nobody + 1);
            assert!(taken(&admin).is_empty() && taken(&other).is_empty());
            // Ids go on for the next ones.
            hub.handle(News::Rewound(id(1)));
            hub.channels.borrow_mut().detach(&admin);
            hub.channels.borrow_mut().detach(&other);
        }
    }

    #[test]
    fn an_event_that_nobody_may_have_is_no_sign_of_life() {
        let hub = hub();
        let client = client(&hub, &["a"]);
        client.last_push.set(0);
        deliver(&hub, &[kept("a", 5, None)]);
        assert_eq!((text(&client).as_str(), client.last_push.get()), ("", 0));
        deliver(&hub, &[kept("a", 6, Some(event(1)))]);
        assert_ne!(client.last_push.get(), 0);
    }

    /// Counted so far: deliveries, and events that were fanned out.
    fn timed(hub: &Hub) -> [u64; 2] {
        [&hub.stats.delivery, &hub.stats.fanout].map(|latencies| {
            let mut total = LatencyTotal::default();
            latencies.add_to(&mut total);
            total.buckets.iter().sum::<u64>() + total.over
        })
    }

    /// Has the socket take all that waits.
    fn write_all(hub: &Hub, subscriber: &Subscriber) {
        let now = hub.clock.read();
        let sent = |parcel: &Parcel| hub.count_sent(parcel, now);
        let mut mailbox = subscriber.mailbox.borrow_mut();
        mailbox.written(usize::MAX, sent);
    }

    #[test]
    fn deliveries_and_rounds_are_timed_by_what_is_written() {
        let hub = hub();
        let one = client(&hub, &["a"]);
        let both = client(&hub, &["a", "b"]);
        let events = [
            kept("a", 5, Some(event(1))),
            kept("b", 6, Some(event(1))),
            BusEvent::live(name("a"), event(1)),
            // For nobody.
            kept("c", 7, Some(event(1))),
            kept("a", 8, None),
        ];
        deliver(&hub, &events);
        write_all(&hub, &one);
        // A round is over with its last write.
        assert_eq!(timed(&hub), [1, 0]);
        write_all(&hub, &both);
        assert_eq!(timed(&hub), [3, 3]);
    }

    #[test]
    fn a_client_that_is_not_ready_holds_up_no_round() {
        let hub = hub();
        let ready = client(&hub, &["a"]);
        let slow = client(&hub, &["a"]);
        deliver(&hub, &[kept("a", 5, Some(event(1)))]);
        slow.mailbox.borrow_mut().block(hub.clock.read());
        write_all(&hub, &ready);
        assert_eq!(timed(&hub), [1, 1]);
        deliver(&hub, &[kept("a", 6, Some(event(1)))]);
        write_all(&hub, &ready);
        assert_eq!(timed(&hub), [2, 2]);
        // It counts as a delivery all the same, a late one.
        write_all(&hub, &slow);
        assert_eq!(timed(&hub), [4, 2]);
        // And then it is ready again.
        deliver(&hub, &[kept("a", 7, Some(event(1)))]);
        write_all(&hub, &ready);
        assert_eq!(timed(&hub), [5, 2]);
        write_all(&hub, &slow);
        assert_eq!(timed(&hub), [6, 3]);
        // An event that is larger than the sockets' buffers is fanned out all the same.
        deliver(&hub, &[kept("a", 8, Some(event(1)))]);
        for client in [&ready, &slow] {
            client.mailbox.borrow_mut().block(hub.clock.read());
        }
        assert_eq!(timed(&hub), [6, 4]);
    }

    #[test]
    fn what_nobody_takes_is_not_timed() {
        let hub = hub();
        let client = client(&hub, &["a"]);
        deliver(&hub, &[kept("a", 5, Some(event(1)))]);
        client.mailbox.borrow_mut().abort(CloseReason::Client);
        assert_eq!(timed(&hub), [0, 0]);
    }

    /// Otherwise they would be taken for events it has had.
    #[test]
    fn a_client_gets_the_lower_ids_of_a_new_sequence() {
        let hub = hub();
        let client = client(&hub, &["a"]);
        client.reach(Cursor::fresh(id(900)));
        deliver(&hub, &[kept("a", 100, Some(event(1)))]);
        assert_eq!(text(&client), "");
        hub.handle(News::Rewound(id(90)));
        let notice = GapNotice {
            reason: GapReason::Rewound,
            after: Some(id(900)),
            oldest: None,
            id: Some(id(90)),
            complete_after: Some(id(90)),
        };
        let gap = BusEvent::gap(name("a"), notice, false);
        deliver(&hub, &[gap, kept("a", 100, Some(event(1)))]);
        let told = text(&client);
        assert!(told.contains("id: 90-0\nevent: $gap\n") && told.contains("id: 100-0\n"));
        assert_eq!(hub.positions.borrow().newest(), Some(id(100)));
    }
}
