//! Telling clients that a channel has ended, and ending the streams on which nothing can come.
//!
//! A client is told of an end when it has had all events before it. When all of its channels have
//! ended its stream ends, with the end's id, so that the client comes back with a cursor that says so.

use std::rc::Rc;

use super::channels::Channels;
use super::fanout::batch::EncodedBatch;
use super::fanout::encoded::EncodedEvent;
use super::fanout::outgoing::{Loss, Origin, Parcel};
use super::state::Hub;
use super::stats::CloseReason;
use super::subscriber::{ChannelKey, Subscriber};
use crate::continuity::{Part, last_end};
use crate::protocol::{ChannelName, EndReason, EventId};

impl Hub {
    /// Tells a client that goes live with this part so, if it asked for that, and of the channels that have ended.
    pub(super) fn tell_ends(
        &self,
        subscriber: &Subscriber,
        keys: &[ChannelKey],
        part: &Part<EncodedEvent>,
    ) {
        subscriber.ends_through.set(part.ends_through);
        if subscriber.asked.get().tells_live {
            let block = subscriber.control.live_block();
            let bytes = subscriber.framing.frame(block.as_bytes());
            self.push(subscriber, Parcel::control(bytes));
        }
        let channels = self.channels.borrow();
        let carried = part.events.last().filter(|event| event.wire.is_some());
        let carried = carried.map(|event| event.link.id);
        for (number, end) in part.ends.iter().enumerate() {
            let channel = keys.get(end.channel).and_then(|key| channels.get(*key));
            let closes = part.last_end.filter(|_| number + 1 == part.ends.len());
            if let Some(channel) = channel {
                self.tell_end(subscriber, &channel.name, end.end.reason, closes, carried);
            }
        }
    }

    /// Tells the clients on several channels, or framed otherwise, of the ends in a pass, behind its
    /// events.
    pub(super) fn push_ends(&self, channels: &Channels, encoded: &[EncodedBatch]) {
        for (number, batch) in encoded.iter().enumerate() {
            let (Some(end), Some(channel)) = (batch.end, channels.get(batch.key)) else {
                continue;
            };
            let later = encoded.get(number + 1..).unwrap_or_default();
            for member in &channel.event_members {
                if end.end.id > member.ends_through.get() {
                    let is_last = !later
                        .iter()
                        .any(|batch| batch.end.is_some() && member.is_on(batch.key));
                    let closes = last_end_of(channels, member).filter(|_| is_last);
                    let carried = batch.carries(member).filter(|_| !end.is_late);
                    self.tell_end(member, &batch.channel, end.end.reason, closes, carried);
                }
            }
        }
    }

    /// Tells a client on this channel alone that it has ended.
    pub(super) fn push_end(&self, member: &Subscriber, batch: &EncodedBatch) {
        if let Some(end) = batch.end
            && end.end.id > member.ends_through.get()
        {
            let closes = Some(end.end.id).filter(|_| member.asked.get().counted > 0);
            self.tell_end(
                member,
                &batch.channel,
                end.end.reason,
                closes,
                batch.carries(member),
            );
        }
    }

    /// `closes`: all channels of the stream have ended, the last with this id. `carried`: the id that
    /// the client was sent last.
    fn tell_end(
        &self,
        subscriber: &Subscriber,
        channel: &ChannelName,
        reason: EndReason,
        closes: Option<EventId>,
        carried: Option<EventId>,
    ) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let id = closes.filter(|_| closes != carried);
        let block = subscriber.control.end_block(channel, reason, id);
        mailbox.queue(Parcel {
            bytes: subscriber.framing.frame(block.as_bytes()),
            events: 0,
            origin: Some(Rc::new(Origin::new(None, Some(Loss::Never)))),
        });
        subscriber.last_push.set(self.tick());
        if closes.is_some() {
            mailbox.end(CloseReason::Ended);
        }
    }
}

/// The last end of a client's channels, where all of them have ended.
fn last_end_of(channels: &Channels, member: &Subscriber) -> Option<EventId> {
    let memberships = member.memberships.borrow();
    let ends = memberships
        .iter()
        .map(|membership| channels.get(membership.key)?.tail.ended());
    last_end(ends, |end| member.minds_end(end))
}
