//! What waits in a mailbox: encoded bytes, with what there is to do when they are written, or dropped.

use std::cell::OnceCell;
use std::rc::Rc;

use bytes::Bytes;

use super::encoded::EncodedEvent;
use super::timing::{FanoutPass, Timing};
use crate::protocol::{ChannelName, ControlForm, EventId, Framing, GapReason};

/// Encoded bytes that wait together, and how many events they hold.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) bytes: Bytes,
    pub(crate) events: u32,
    /// Shared with the parcels of other clients.
    pub(crate) origin: Option<Rc<Origin>>,
}

/// Where a parcel comes from: what there is to do when it is written, and when it is dropped.
#[derive(Debug)]
pub(crate) struct Origin {
    /// `None`: of a replay, or no event.
    timing: Option<Timing>,
    /// What the client must be told if it does not get the parcel.
    loss: Option<Loss>,
    /// The same outside of its fan-out pass, made for the first client that is not ready.
    outside: OnceCell<Rc<Self>>,
}

impl Origin {
    pub(crate) fn new(timing: Option<Timing>, loss: Option<Loss>) -> Self {
        Self {
            timing,
            loss,
            outside: OnceCell::new(),
        }
    }

    /// The fan-out pass that it takes part in.
    pub(crate) fn pass(&self) -> Option<Rc<FanoutPass>> {
        self.timing.as_ref()?.pass.clone()
    }

    /// The same for clients that are not ready to take it, so that the pass does not wait for
    /// them.
    pub(crate) fn outside(self: &Rc<Self>) -> Rc<Self> {
        let Some(timing) = self.timing.as_ref().filter(|timing| timing.pass.is_some()) else {
            return Rc::clone(self);
        };
        let make = || Rc::new(Self::new(Some(timing.outside()), self.loss.clone()));
        Rc::clone(self.outside.get_or_init(make))
    }
}

/// What it means that a parcel is dropped.
#[derive(Clone, Debug)]
pub(crate) enum Loss {
    /// Kept events are skipped.
    Kept(KeptSpan),
    /// The parcel tells of channels whose events were skipped before.
    Told(Box<[KeptSpan]>),
    /// It must not be dropped: a channel's end, which nothing later shows.
    Never,
}

/// A stretch of a channel's kept events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptSpan {
    pub(crate) channel: ChannelName,
    /// The event before it.
    pub(crate) after: Option<EventId>,
    /// Its last event.
    pub(crate) last: Option<EventId>,
}

impl KeptSpan {
    /// The span of one event.
    pub(crate) fn of(event: &EncodedEvent) -> Self {
        Self {
            channel: event.channel.clone(),
            after: Some(event.link.prev),
            last: Some(event.link.id),
        }
    }
}

impl Parcel {
    /// The gateway's own words, which are no event.
    pub(crate) fn control(bytes: Bytes) -> Self {
        Self {
            bytes,
            events: 0,
            origin: None,
        }
    }

    /// What it takes: its place in the queue counts, or a flood of small events would be free.
    pub(crate) fn cost_bytes(&self) -> usize {
        let origin = self.origin.as_ref().map_or(0, |_| size_of::<Origin>());
        self.bytes.len() + size_of::<Self>() + origin
    }

    /// When its events came.
    pub(crate) fn timing(&self) -> Option<&Timing> {
        self.origin.as_ref()?.timing.as_ref()
    }

    /// What its client must be told if it does not get it.
    pub(crate) fn loss(&self) -> Option<&Loss> {
        self.origin.as_ref()?.loss.as_ref()
    }

    /// Whether it is never dropped to make room.
    pub(crate) fn stays(&self) -> bool {
        matches!(self.loss(), Some(Loss::Never))
    }

    /// Lets go of its fan-out pass: its client is not ready to take it.
    pub(crate) fn leave_pass(&mut self) {
        if let Some(origin) = &mut self.origin {
            *origin = origin.outside();
        }
    }
}

/// Adds a span to those that were skipped, one for each channel.
pub(crate) fn skip(skipped: &mut Vec<KeptSpan>, span: &KeptSpan) {
    match skipped
        .iter_mut()
        .find(|known| known.channel == span.channel)
    {
        Some(known) => known.last = known.last.max(span.last),
        None => skipped.push(span.clone()),
    }
}

/// Tells a client what it skipped, with the id of the last event that it did.
pub(crate) fn slow_gap(skipped: Vec<KeptSpan>, framing: Framing, control: ControlForm) -> Parcel {
    let id = skipped.iter().filter_map(|span| span.last).max();
    let blocks: String = skipped
        .iter()
        .map(|span| control.gap_block(&span.channel, GapReason::Slow, span.after, None, id))
        .collect();
    Parcel {
        bytes: framing.frame(blocks.as_bytes()),
        events: 0,
        origin: Some(Rc::new(Origin::new(None, Some(Loss::Told(skipped.into()))))),
    }
}
