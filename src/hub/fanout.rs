//! One round of fan-out: a batch of events is encoded once and handed to every member.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::mailbox::Parcel;
use super::shard::Hub;
use super::subscriber::ChannelKey;
use super::{BusEvent, Item};
use crate::protocol::Framing;

/// The events of one channel in this round, encoded one behind the other.
struct Lot {
    key: ChannelKey,
    bytes: Vec<u8>,
    events: u32,
}

/// One event within its channel's lot.
struct Piece {
    lot: usize,
    /// The whole chunk, for connections written to directly.
    chunk: Range<usize>,
    /// The bare SSE block inside it, for those framed otherwise.
    payload: Range<usize>,
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
        while cost_bytes < self.settings().max_batch_bytes() && pushes < MOST_PUSHES {
            let Some(event) = events.next() else {
                break;
            };
            cost_bytes += event.cost_bytes();
            let Item::Live(live) = &event.item else {
                continue;
            };
            let Some(key) = channels.key_of(&event.channel) else {
                continue;
            };
            let Some(channel) = channels.by_key(key).filter(|channel| channel.has_members()) else {
                continue;
            };
            let number = *channel.lot.get_or_insert_with(|| {
                pushes += channel.batch_members.len();
                lots.push(Lot {
                    key,
                    bytes: Vec::new(),
                    events: 0,
                });
                lots.len() - 1
            });
            let Some(lot) = lots.get_mut(number) else {
                continue;
            };
            let start = lot.bytes.len();
            let payload = live.append_chunk(&mut lot.bytes);
            lot.events += 1;
            pushes += channel.event_members.len();
            if !channel.event_members.is_empty() {
                pieces.push(Piece {
                    lot: number,
                    chunk: start..lot.bytes.len(),
                    payload,
                });
            }
        }

        let tick = self.tick();
        let mut encoded = Vec::with_capacity(lots.len());
        for lot in lots {
            let bytes = Bytes::from(lot.bytes);
            if let Some(channel) = channels.by_key(lot.key) {
                channel.lot = None;
                for member in &channel.batch_members {
                    member.last_push.set(tick);
                    let parcel = Parcel {
                        bytes: bytes.clone(),
                        events: lot.events,
                    };
                    self.push(member, parcel);
                }
            }
            encoded.push((lot.key, bytes));
        }
        for piece in pieces {
            let Some((key, bytes)) = encoded.get(piece.lot) else {
                continue;
            };
            let Some(channel) = channels.by_key(*key) else {
                continue;
            };
            for member in &channel.event_members {
                member.last_push.set(tick);
                let range = match member.framing {
                    Framing::Chunked => piece.chunk.clone(),
                    Framing::Plain => piece.payload.clone(),
                };
                let parcel = Parcel {
                    bytes: bytes.slice(range),
                    events: 1,
                };
                self.push(member, parcel);
            }
        }
    }
}
