//! What a fan-out pass encodes: the events of one channel, one behind the other, and where each
//! of them lies.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::encoded::Wire;
use super::outgoing::{KeptSpan, Loss, Origin};
use super::timing::{FanoutPass, Timing};
use crate::continuity::{ChannelEnd, GapNotice, Link, Linked};
use crate::hub::Item;
use crate::hub::subscriber::{ChannelKey, Subscriber};
use crate::protocol::{Audience, ChannelName, ControlForm, EventId, Framing, GapReason};

/// Events of one channel in this pass, encoded one behind the other. One that is not for
/// everybody is a batch of its own, so its bytes are in no buffer that others get.
pub(crate) struct Batch {
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
    end: Option<BatchEnd>,
}

/// The end of a batch's channel, which is its last event.
#[derive(Clone, Copy)]
pub(crate) struct BatchEnd {
    pub(crate) end: ChannelEnd,
    /// It is an event for clients.
    is_event: bool,
    /// Connections that have had later ids of other channels get it without its id.
    pub(crate) is_late: bool,
}

/// One event, or gap, within its channel's batch.
pub(crate) struct BatchItem {
    pub(crate) batch: usize,
    /// Where it lies in the batch. `None`: it is not for clients.
    pub(crate) range: Option<ItemRange>,
    pub(crate) kind: ItemKind,
}

pub(crate) struct ItemRange {
    /// The whole chunk, for connections written to directly.
    pub(crate) chunk: Range<usize>,
    /// The bare SSE block inside it, for those framed otherwise.
    pub(crate) payload: Range<usize>,
}

pub(crate) enum ItemKind {
    Live {
        /// The channel has ended before, with this id.
        after_end: Option<EventId>,
    },
    Kept {
        link: Link,
        published_ms: u64,
        end: Option<ChannelEnd>,
        /// The bytes without an id, for connections that have had later ids of other channels.
        late: Option<Wire>,
    },
    Gap {
        reason: GapReason,
        id: Option<EventId>,
        after: Option<EventId>,
        complete_after: Option<EventId>,
        wires: GapWires,
    },
}

/// A gap's bytes beside those in its batch, which are an event with its id.
pub(crate) struct GapWires {
    comment: Wire,
    /// Without an id, as above.
    late: Option<Wire>,
    late_comment: Option<Wire>,
}

impl ItemKind {
    /// The id that decides who has had it already.
    pub(crate) fn id(&self) -> Option<EventId> {
        match self {
            Self::Live { .. } => None,
            Self::Kept { link, .. } => Some(link.id),
            Self::Gap { id, .. } => *id,
        }
    }

    /// Whether a client that has had everything up to `position` has had this. A gap comes behind
    /// the event whose id it carries.
    pub(crate) fn was_had(&self, position: EventId) -> bool {
        match self {
            Self::Live { .. } => false,
            Self::Kept { link, .. } => link.id <= position,
            Self::Gap { id, .. } => id.is_some_and(|id| id < position),
        }
    }

    /// When it came, where it is an event.
    pub(crate) fn timing(&self, pass: Option<Rc<FanoutPass>>) -> Option<Timing> {
        let (kept, published_ms) = match self {
            Self::Live { .. } => (0, u64::MAX),
            Self::Kept { published_ms, .. } => (1, *published_ms),
            Self::Gap { .. } => return None,
        };
        Some(Timing {
            kept,
            published_ms,
            pass,
        })
    }

    /// Whether connections that have had later ids of other channels get it without its id.
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::Live { .. } => false,
            Self::Kept { late, .. } => late.is_some(),
            Self::Gap { wires, .. } => wires.late.is_some(),
        }
    }

    /// The bytes for a connection, where they are not those in the batch. `late`: without the id.
    pub(crate) fn wire(&self, control: ControlForm, late: bool) -> Option<&Wire> {
        match self {
            Self::Live { .. } => None,
            Self::Kept { late: wire, .. } => wire.as_ref().filter(|_| late),
            Self::Gap { wires, .. } => match (control, late) {
                (ControlForm::Event, false) => None,
                (ControlForm::Event, true) => wires.late.as_ref(),
                (ControlForm::Comment, false) => Some(&wires.comment),
                (ControlForm::Comment, true) => wires.late_comment.as_ref(),
            },
        }
    }

    /// What a client misses that does not get it, where it must be told. `with_id`: it carries
    /// its id.
    pub(crate) fn span(&self, channel: &ChannelName, with_id: bool) -> Option<KeptSpan> {
        let (after, last) = match self {
            Self::Live { .. } => return None,
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

impl Batch {
    pub(crate) fn new(
        key: ChannelKey,
        channel: ChannelName,
        audience: Option<Arc<Audience>>,
        pass: &Rc<FanoutPass>,
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
                pass: Some(Rc::clone(pass)),
            },
            first_id: EventId::MAX,
            kept: None,
            gaps: Vec::new(),
            end: None,
        }
    }

    /// With its bytes shared. `tells_of_loss`: what a client misses that does not get it is told.
    pub(crate) fn encoded(self, tells_of_loss: bool) -> EncodedBatch {
        EncodedBatch {
            is_mostly_kept: self.kept_bytes >= self.buffer.len() / 2,
            bytes: Bytes::from(self.buffer),
            origin: Rc::new(Origin::new(
                Some(self.timing),
                self.kept.filter(|_| tells_of_loss).map(Loss::Kept),
            )),
            key: self.key,
            channel: self.channel,
            audience: self.audience,
            readers: Cell::new(0),
            is_replayed: Cell::new(false),
            events: self.events,
            first_id: self.first_id,
            gaps: self.gaps,
            end: self.end,
        }
    }

    /// Encodes an item behind the others. `after_end`: its channel has ended before.
    pub(crate) fn add(
        &mut self,
        item: &Item,
        after_end: Option<EventId>,
    ) -> (Option<ItemRange>, ItemKind) {
        let start = self.buffer.len();
        let (payload, kind) = match item {
            Item::Live(event) => {
                self.events += 1;
                let payload = event.append_chunk(None, &mut self.buffer);
                (Some(payload), ItemKind::Live { after_end })
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
                let end = event.channel_end();
                self.end = end.map(|end| BatchEnd {
                    end,
                    is_event: payload.is_some(),
                    is_late: late.is_some(),
                });
                let kind = ItemKind::Kept {
                    link,
                    published_ms,
                    end,
                    late,
                };
                (payload, kind)
            }
            Item::Gap { notice, late } => {
                let GapNotice {
                    reason,
                    after,
                    oldest,
                    id,
                    complete_after,
                } = *notice;
                let append = |control: ControlForm, id, buffer: &mut Vec<u8>| {
                    let block = control.gap_block(&self.channel, reason, after, oldest, id);
                    Framing::Chunked.append(block.as_bytes(), buffer)
                };
                let wire = |control, id| Wire::encoded(|buffer| append(control, id, buffer));
                let wires = GapWires {
                    comment: wire(ControlForm::Comment, id),
                    late: late.then(|| wire(ControlForm::Event, None)),
                    late_comment: late.then(|| wire(ControlForm::Comment, None)),
                };
                let payload = append(ControlForm::Event, id, &mut self.buffer);
                self.gaps.push(reason);
                let kind = ItemKind::Gap {
                    reason,
                    id,
                    after,
                    complete_after,
                    wires,
                };
                (Some(payload), kind)
            }
        };
        if let Some(id) = kind.id() {
            self.first_id = self.first_id.min(id);
        }
        if let Some(span) = kind.span(&self.channel, true) {
            match &mut self.kept {
                Some(kept) => kept.last = kept.last.max(span.last),
                None => self.kept = Some(span),
            }
        }
        let chunk = start..self.buffer.len();
        if matches!(kind, ItemKind::Kept { .. }) {
            self.kept_bytes += chunk.len();
        }
        let range = payload.map(|payload| ItemRange { chunk, payload });
        (range, kind)
    }
}

/// A [`Batch`] whose bytes are shared.
pub(crate) struct EncodedBatch {
    pub(crate) key: ChannelKey,
    pub(crate) channel: ChannelName,
    pub(crate) audience: Option<Arc<Audience>>,
    /// Where it is not for everybody: connections that may have it.
    pub(crate) readers: Cell<usize>,
    /// It may come to somebody from a replay.
    pub(crate) is_replayed: Cell<bool>,
    pub(crate) bytes: Bytes,
    /// A part of the bytes keeps all of them alive: too much for a few kept events among others.
    pub(crate) is_mostly_kept: bool,
    pub(crate) events: u32,
    pub(crate) first_id: EventId,
    pub(crate) gaps: Vec<GapReason>,
    pub(crate) end: Option<BatchEnd>,
    pub(crate) origin: Rc<Origin>,
}

impl EncodedBatch {
    /// Whether a connection may have it. To be asked once for each: those that may are counted.
    pub(crate) fn is_for(&self, member: &Subscriber) -> bool {
        let Some(audience) = &self.audience else {
            return true;
        };
        let belongs = member.belongs_to(audience);
        if belongs {
            self.readers.set(self.readers.get() + 1);
        }
        belongs
    }

    /// The id that a connection was sent with the end of the channel, if it was.
    pub(crate) fn carries(&self, member: &Subscriber) -> Option<EventId> {
        let end = self.end.filter(|end| end.is_event)?;
        let audience = self.audience.as_ref();
        let is_for = audience.is_none_or(|audience| member.belongs_to(audience));
        is_for.then_some(end.end.id)
    }

    /// Whether somebody gets it, where it is not for everybody.
    pub(crate) fn has_readers(&self) -> bool {
        self.readers.get() > 0 || self.is_replayed.get()
    }

    /// Takes note that a connection is sent it, where that cannot be known from its channels.
    pub(crate) fn note_sent(&self, member: &Subscriber, id: Option<EventId>) {
        if self.audience.is_some()
            && let Some(id) = id.filter(|id| *id < EventId::MAX)
        {
            member.note_restricted(id);
        }
    }
}
