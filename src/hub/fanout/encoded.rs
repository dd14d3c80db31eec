//! A kept event as the bytes its subscribers share.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::continuity::{Entry, KeptEvent, Link, Linked};
use crate::hub::session::Session;
use crate::protocol::{Audience, ChannelName, EndReason, Framing};

/// An event's bytes, encoded once for all connections of a shard.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    /// The whole chunk.
    chunk: Bytes,
    /// Where in it the bare SSE block lies.
    payload: Range<usize>,
}

impl Wire {
    /// Takes a chunk, and its payload, out of the buffer both lie in.
    pub(crate) fn slice(buffer: &Bytes, chunk: &Range<usize>, payload: &Range<usize>) -> Self {
        Self {
            chunk: buffer.slice(chunk.clone()),
            payload: payload.start - chunk.start..payload.end - chunk.start,
        }
    }

    /// What `append` writes as a chunk; it returns where the payload lies.
    pub(crate) fn encoded(append: impl FnOnce(&mut Vec<u8>) -> Range<usize>) -> Self {
        let mut chunk = Vec::new();
        let payload = append(&mut chunk);
        Self {
            chunk: Bytes::from(chunk),
            payload,
        }
    }

    /// The same bytes in memory of their own, which keeps nothing else alive.
    pub(crate) fn detached(&self) -> Self {
        Self {
            chunk: Bytes::copy_from_slice(&self.chunk),
            payload: self.payload.clone(),
        }
    }

    /// The bytes as a connection takes them.
    pub(crate) fn framed(&self, framing: Framing) -> Bytes {
        match framing {
            Framing::Chunked => self.chunk.clone(),
            Framing::Plain => self.chunk.slice(self.payload.clone()),
        }
    }
}

/// A kept event ready to be sent, or one that may not be and only stands in the chain.
#[derive(Clone, Debug)]
pub(crate) struct EncodedEvent {
    pub(crate) channel: ChannelName,
    pub(crate) link: Link,
    pub(crate) wire: Option<Wire>,
    /// The sessions it is for; `None`: everybody.
    pub(crate) audience: Option<Arc<Audience>>,
    /// How the channel ends with it, if it does.
    pub(crate) end: Option<EndReason>,
}

impl EncodedEvent {
    /// Encodes an event by itself.
    pub(crate) fn new(channel: ChannelName, event: &KeptEvent) -> Self {
        let wire = event
            .event
            .as_ref()
            .map(|content| Wire::encoded(|chunk| content.append_chunk(Some(event.id), chunk)));
        Self {
            channel,
            link: event.link(),
            wire,
            audience: event.audience().cloned(),
            end: event.end,
        }
    }
}

impl EncodedEvent {
    /// Whether a client with this session may have it.
    pub(crate) fn is_for(&self, session: Option<&Session>) -> bool {
        match &self.audience {
            None => true,
            Some(audience) => session.is_some_and(|session| audience.admits(&session.claims)),
        }
    }
}

impl Linked for EncodedEvent {
    fn link(&self) -> Link {
        self.link
    }

    fn end(&self) -> Option<EndReason> {
        self.end
    }
}

impl Entry for EncodedEvent {
    fn cost_bytes(&self) -> usize {
        let audience = self.audience.as_ref();
        size_of::<Self>()
            + self.wire.as_ref().map_or(0, |wire| wire.chunk.len())
            + audience.map_or(0, |audience| audience.cost_bytes())
    }
}
