//! How kept events, probes and revocations travel from Redis: the frames that the function library
//! writes.
//!
//! ```text
//! FF 1 e <id> <prev> <published ms> <retry ms or -> <event len> <to len> <traceparent len> [<state>] LF
//!        event, to, traceparent, data: each right behind the other, data to the end
//! FF 1 p <id> <epoch> <library version> LF <number>
//! FF 1 r <until, Unix ms> LF sub:<subject> or jti:<token id>
//! ```
//!
//! No UTF-8 text begins with `FF`, so no live event looks like a frame. Fields that a later
//! version adds at the end of the header are ignored.
//!
//! The state of a channel that is meant to end stands in its newest frame: members `<name>:<value>`,
//! separated by commas and closed by a semicolon. Members that are not known are ignored.

use std::time::Duration;

use bytes::{Buf, Bytes};

use super::end::EndReason;
use super::envelope::EnvelopeFault;
use super::event::{Event, EventFault};
use super::id::{EventId, decimal};
use super::revocation::Revocation;
use super::trace_parent::TraceParent;

/// What every frame begins with.
const MARK: u8 = 0xff;

/// The only version so far.
const VERSION: u8 = b'1';

/// A header is a few numbers and ids, some 150 bytes with all of them at their largest.
const MAX_HEADER_BYTES: usize = 1024;

/// A message of the function library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A kept event.
    Event(KeptFrame),
    /// A gateway's probe, come back.
    Probe {
        /// The probe's own id, of the same sequence as those of events.
        id: EventId,
        /// The first id of the sequence.
        epoch: EventId,
        /// The version of the library that answered.
        library_version: u64,
        /// What the gateway sent with it.
        number: u64,
    },
    /// Somebody is to be kept out.
    Revocation(Revocation),
}

/// A kept event and its place in the channel's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFrame {
    /// Its id.
    pub id: EventId,
    /// The id before it in its channel; [`EventId::ZERO`] for the first.
    pub prev: EventId,
    /// When it was published, by the clock of Redis; an id is no clock.
    pub published_ms: u64,
    /// The event; `None`: an end without one. One that breaks a rule keeps its place all the same, so
    /// that nothing seems lost.
    pub event: Result<Option<Event>, EnvelopeFault>,
    /// How the channel ends with it, if it does.
    pub end: Option<EndReason>,
}

/// Why bytes are no frame of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// It has another version.
    #[error("the frame has an unknown version")]
    Version,
    /// It is none of those above.
    #[error("the frame has an unknown kind")]
    Kind,
    /// The header is not as it should be.
    #[error("the frame has an invalid header")]
    Header,
}

/// Whether `payload` is a frame, of whichever version.
pub fn is_frame(payload: &[u8]) -> bool {
    payload.first() == Some(&MARK)
}

/// Reads a frame. The data of an event shares the bytes of `payload`.
///
/// # Errors
/// When it is no frame, or not one of this version. What is wrong with an event's fields alone is
/// told in [`KeptFrame::event`].
pub fn decode_frame(mut payload: Bytes, max_event_bytes: usize) -> Result<Frame, FrameFault> {
    let [MARK, version, kind, text @ ..] = &payload[..] else {
        return Err(FrameFault::Header);
    };
    if *version != VERSION {
        return Err(FrameFault::Version);
    }
    let kind = *kind;
    if !matches!(kind, b'e' | b'p' | b'r') {
        return Err(FrameFault::Kind);
    }
    let within = text.get(..MAX_HEADER_BYTES).unwrap_or(text);
    let length = memchr::memchr(b'\n', within).ok_or(FrameFault::Header)?;
    // Behind the mark, the version and the kind.
    let header = payload.split_to(3 + length).split_off(3);
    payload.advance(1);
    let header = std::str::from_utf8(&header).map_err(|_| FrameFault::Header)?;
    let fields = Fields(header.split(' '));
    match kind {
        b'e' => decode_event(fields, payload, max_event_bytes).map(Frame::Event),
        b'p' => decode_probe(fields, &payload),
        _ => decode_revocation(fields, &payload).map(Frame::Revocation),
    }
}

fn decode_event(
    mut fields: Fields<'_>,
    mut body: Bytes,
    max_event_bytes: usize,
) -> Result<KeptFrame, FrameFault> {
    let id = fields.id()?;
    let prev = fields.id()?;
    if prev >= id {
        return Err(FrameFault::Header);
    }
    let published_ms = fields.number()?;
    let retry = match fields.text()? {
        "-" => None,
        text => Some(decimal(text).map_err(|_| FrameFault::Header)?),
    };
    let name = fields.length()?;
    let to = fields.length()?;
    let traceparent = fields.length()?;
    let end = fields.text().ok().and_then(read_end);
    let mut take = |length: usize| {
        if length > body.len() {
            return Err(FrameFault::Header);
        }
        Ok(body.split_to(length))
    };
    let (name, to, traceparent) = (take(name)?, take(to)?, take(traceparent)?);
    Ok(KeptFrame {
        id,
        prev,
        published_ms,
        event: if end.is_some() && body.is_empty() {
            Ok(None)
        } else {
            read_event(&name, retry, &to, body, max_event_bytes)
                .map(|event| Some(event.with_trace_parent(read_trace_parent(&traceparent))))
        },
        end,
    })
}

/// The end in a channel's state.
fn read_end(state: &str) -> Option<EndReason> {
    let mut members = state.strip_suffix(';')?.split(',');
    let reason = members.find_map(|member| member.strip_prefix("end:"))?;
    Some(EndReason::read(reason))
}

fn read_event(
    name: &[u8],
    retry_ms: Option<u64>,
    to: &[u8],
    data: Bytes,
    max_event_bytes: usize,
) -> Result<Event, EnvelopeFault> {
    let mut event = Event::new(data, max_event_bytes)?;
    if !name.is_empty() {
        let name = std::str::from_utf8(name).map_err(|_| EventFault::NotUtf8)?;
        event = event.with_name(name)?;
    }
    if let Some(milliseconds) = retry_ms {
        event = event.with_retry(Duration::from_millis(milliseconds))?;
    }
    if !to.is_empty() {
        let to = std::str::from_utf8(to).map_err(|_| EventFault::NotUtf8)?;
        event = event.with_to(to)?;
    }
    Ok(event)
}

/// One that cannot be read is none (W3C Trace Context, section 4.3).
fn read_trace_parent(text: &[u8]) -> Option<TraceParent> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn decode_probe(mut fields: Fields<'_>, body: &[u8]) -> Result<Frame, FrameFault> {
    let id = fields.id()?;
    let epoch = fields.id()?;
    if epoch > id {
        return Err(FrameFault::Header);
    }
    let library_version = fields.number()?;
    let number = std::str::from_utf8(body)
        .ok()
        .and_then(|number| decimal(number).ok())
        .ok_or(FrameFault::Header)?;
    Ok(Frame::Probe {
        id,
        epoch,
        library_version,
        number,
    })
}

fn decode_revocation(mut fields: Fields<'_>, body: &[u8]) -> Result<Revocation, FrameFault> {
    let until_ms = fields.number()?;
    let revoked = std::str::from_utf8(body).ok();
    let revoked = revoked.and_then(|revoked| revoked.parse().ok());
    Ok(Revocation {
        until_ms,
        revoked: revoked.ok_or(FrameFault::Header)?,
    })
}

/// The fields of a header, one after the other.
struct Fields<'a>(std::str::Split<'a, char>);

impl<'a> Fields<'a> {
    fn text(&mut self) -> Result<&'a str, FrameFault> {
        self.0.next().ok_or(FrameFault::Header)
    }

    fn id(&mut self) -> Result<EventId, FrameFault> {
        self.text()?.parse().map_err(|_| FrameFault::Header)
    }

    fn number(&mut self) -> Result<u64, FrameFault> {
        decimal(self.text()?).map_err(|_| FrameFault::Header)
    }

    fn length(&mut self) -> Result<usize, FrameFault> {
        usize::try_from(self.number()?).map_err(|_| FrameFault::Header)
    }
}

#[cfg(test)]
mod tests;
