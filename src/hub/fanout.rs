//! One round of fan-out: a batch of events is encoded once and handed to every member.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::BusEvent;
use super::mailbox::Parcel;
use super::shard::Hub;
use super::subscriber::ChannelKey;
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

impl Hub {
    /// Delivers `batch` and empties it. Connections on one channel get that channel's events as
    /// one buffer; the others get theirs one by one, in the order of the batch.
    pub(super) fn deliver(&self, batch: &mut Vec<Arc<[BusEvent]>>) {
        if batch.is_empty() {
            return;
        }
        let mut channels = self.channels.borrow_mut();
        let mut lots: Vec<Lot> = Vec::new();
        let mut pieces: Vec<Piece> = Vec::new();
        for BusEvent { channel, event } in batch.iter().flat_map(|events| events.iter()) {
            let Some(key) = channels.key_of(channel) else {
                continue;
            };
            let Some(channel) = channels.by_key(key).filter(|channel| channel.has_members()) else {
                continue;
            };
            let number = *channel.lot.get_or_insert_with(|| {
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
            let payload = event.append_chunk(&mut lot.bytes);
            lot.events += 1;
            if !channel.event_members.is_empty() {
                pieces.push(Piece {
                    lot: number,
                    chunk: start..lot.bytes.len(),
                    payload,
                });
            }
        }
        batch.clear();

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
