//! One round of fan-out: a batch of events is encoded once and handed to every member.

use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::channels::Channels;
use super::encoded::{EncodedEvent, Wire};
use super::mailbox::{KeptSpan, Loss, Parcel, SlowClientPolicy};
use super::shard::Hub;
use super::subscriber::{ChannelKey, Subscriber};
use super::{BusEvent, Item};
use crate::protocol::{ChannelName, EventId, Framing, GapReason, Link, Linked, gap_block};

/// The events of one channel in this round, encoded one behind the other.
struct Lot {
    key: ChannelKey,
    channel: ChannelName,
    buffer: Vec<u8>,
    /// How much of it are kept events, which stay in the channel's tail.
    kept_bytes: usize,
    events: u32,
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
        /// The bytes without an id, for connections that have had later ids of other channels.
        late: Option<Wire>,
    },
    Gap {
        reason: GapReason,
        id: Option<EventId>,
        after: Option<EventId>,
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

    /// What a client misses that does not get it, where it must be told.
    fn span(&self, channel: &ChannelName) -> Option<KeptSpan> {
        let (after, last) = match self {
            Self::Live => return None,
            Self::Kept { link, .. } => (Some(link.prev), Some(link.id)),
            Self::Gap { id, after, .. } => (*after, *id),
        };
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
    pub(super) async fn deliver(&self, batch: &mut Vec<Arc<[BusEvent]>>) {
        if batch.is_empty() {
            return;
        }
        {
            let mut events = batch.iter().flat_map(|events| events.iter()).peekable();
            while events.peek().is_some() {
                self.round(&mut events);
                after_those_woken().await;
            }
        }
        batch.clear();
    }

    /// Delivers as many of `events` as one round holds, at least one. Connections on one channel
    /// get that channel's events as one buffer; the others get theirs one by one, in order.
    fn round<'a>(&self, events: &mut impl Iterator<Item = &'a BusEvent>) {
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
            let is_live = matches!(event.item, Item::Live(_));
            if is_live && !channel.has_members() {
                continue;
            }
            let number = *channel.lot.get_or_insert_with(|| {
                pushes += channel.batch_members.len();
                lots.push(Lot::new(key, event.channel.clone()));
                lots.len() - 1
            });
            pushes += channel.event_members.len() + channel.replaying_members.len();
            let Some(lot) = lots.get_mut(number) else {
                continue;
            };
            let (range, what) = lot.add(&event.item);
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
                loss: lot
                    .kept
                    .filter(|_| self.tells_of_loss())
                    .map(|span| Loss::Kept(Rc::new(span))),
                key: lot.key,
                channel: lot.channel,
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
            for member in &channel.event_members {
                self.push_piece(member, lot, piece, true);
            }
            // Kept events come to these from their replay.
            if piece.what.id().is_none() {
                for member in &channel.replaying_members {
                    self.push_piece(member, lot, piece, true);
                }
            }
        }
    }

    fn tells_of_loss(&self) -> bool {
        self.settings.slow_client == SlowClientPolicy::Latest
    }

    /// Has a channel remember its kept event.
    fn note_kept(&self, channels: &mut Channels, lot: &EncodedLot, piece: &Piece) {
        match &piece.what {
            What::Live | What::Gap { id: None, .. } => {}
            What::Gap { id: Some(id), .. } => channels.restart_tail(lot.key, *id),
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
                if let Some(channel) = channels.by_key(lot.key) {
                    channel.newest = channel.newest.max(link.id);
                }
                let event = EncodedEvent {
                    channel: lot.channel.clone(),
                    link: *link,
                    wire,
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
            if lot.first_id <= member.skip_through.get() {
                // It has had some of it.
                for piece in pieces.iter().filter(|piece| piece.lot == number) {
                    self.push_piece(member, lot, piece, false);
                }
                continue;
            }
            member.last_push.set(tick);
            for reason in &lot.gaps {
                self.stats.count_gaps(*reason, 1);
            }
            if !lot.bytes.is_empty() {
                let parcel = Parcel {
                    bytes: lot.bytes.clone(),
                    events: lot.events,
                    loss: lot.loss.clone(),
                };
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
        is_one_of_many: bool,
    ) {
        let has_had = |id| id <= member.skip_through.get();
        let Some(range) = piece
            .range
            .as_ref()
            .filter(|_| !piece.what.id().is_some_and(has_had))
        else {
            return;
        };
        let wire = match &piece.what {
            What::Kept {
                late: Some(wire), ..
            } if is_one_of_many => wire.clone(),
            _ => Wire::slice(&lot.bytes, &range.chunk, &range.payload),
        };
        let events = match piece.what {
            What::Gap { reason, .. } => {
                self.stats.count_gaps(reason, 1);
                0
            }
            _ => 1,
        };
        member.last_push.set(self.tick());
        let span = piece
            .what
            .span(&lot.channel)
            .filter(|_| self.tells_of_loss());
        let parcel = Parcel {
            bytes: wire.framed(member.framing),
            events,
            loss: span.map(|span| Loss::Kept(Rc::new(span))),
        };
        self.push(member, parcel);
    }
}

/// A [`Lot`] whose bytes are shared.
struct EncodedLot {
    key: ChannelKey,
    channel: ChannelName,
    bytes: Bytes,
    /// A part of the bytes keeps all of them alive: too much for a few kept events among others.
    is_mostly_kept: bool,
    events: u32,
    first_id: EventId,
    gaps: Vec<GapReason>,
    loss: Option<Loss>,
}

impl Lot {
    fn new(key: ChannelKey, channel: ChannelName) -> Self {
        Self {
            key,
            channel,
            buffer: Vec::new(),
            kept_bytes: 0,
            events: 0,
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
                let payload = event.event.as_ref().map(|content| {
                    self.events += 1;
                    content.append_chunk(Some(event.id), &mut self.buffer)
                });
                let late = event.event.as_ref().filter(|_| *late).map(|content| {
                    let mut buffer = Vec::new();
                    let payload = content.append_chunk(None, &mut buffer);
                    let chunk = 0..buffer.len();
                    Wire::slice(&Bytes::from(buffer), &chunk, &payload)
                });
                let link = event.link();
                (payload, What::Kept { link, late })
            }
            Item::Gap(notice) => {
                let block = gap_block(
                    &self.channel,
                    notice.reason,
                    notice.after,
                    notice.oldest,
                    notice.id,
                );
                self.gaps.push(notice.reason);
                let payload = Framing::Chunked.append(block.as_bytes(), &mut self.buffer);
                let what = What::Gap {
                    reason: notice.reason,
                    id: notice.id,
                    after: notice.after,
                };
                (Some(payload), what)
            }
        };
        if let Some(id) = what.id() {
            self.first_id = self.first_id.min(id);
        }
        if let Some(span) = what.span(&self.channel) {
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
