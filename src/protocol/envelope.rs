//! How an event travels through Redis pub/sub: raw data, or an envelope with fields.
//!
//! `hello` is data. `{"sse":{"event":"price","data":{"sym":"X"}}}` is an envelope: a JSON object
//! whose only member is `sse`. Everything else, whatever it looks like, is data.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::audience::{Audience, AudienceFault};
use super::event::{Event, EventFault};

/// JSON may spell one byte of data as `\u00xx`, six bytes; what else an envelope holds is small.
const ENVELOPE_BYTES_PER_DATA_BYTE: usize = 6;
const ENVELOPE_OVERHEAD_BYTES: usize = 16 * 1024;

/// Why a payload from the bus is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeFault {
    /// The data or a field breaks a rule of events.
    #[error(transparent)]
    Event(#[from] EventFault),
    /// Whom it is for cannot be read.
    #[error("`to` {0}")]
    Audience(#[from] AudienceFault),
    /// The envelope's members are not as they should be.
    #[error("invalid envelope: {0}")]
    Broken(#[from] BrokenEnvelope),
}

/// What is wrong with an envelope's members. It is logged and told, so it holds nothing of the
/// payload but, at most, a name: shortened, and written so that it cannot end a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenEnvelope {
    /// `sse` holds something else than members.
    #[error("`sse` must be an object")]
    NoObject,
    /// A member, or `sse` itself, is given more than once.
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    /// There is no `data`.
    #[error("`data` is missing")]
    NoData,
    /// A member's value is of the wrong type.
    #[error("`{0}` is not {1}")]
    WrongType(&'static str, &'static str),
    /// There is no such member.
    #[error("unknown member \"{0}\"")]
    UnknownMember(String),
}

/// So much of an unknown member's name is told, in characters: ours are shorter.
const TOLD_NAME_CHARS: usize = 32;

impl BrokenEnvelope {
    fn unknown(name: &str) -> Self {
        let mut told: String = name
            .chars()
            .take(TOLD_NAME_CHARS)
            .flat_map(char::escape_default)
            .collect();
        if name.chars().nth(TOLD_NAME_CHARS).is_some() {
            told.push('…');
        }
        Self::UnknownMember(told)
    }
}

/// Reads what a publisher sent to a channel.
///
/// # Errors
/// When the data is not UTF-8 or over `max_event_bytes`, or the payload is a broken envelope.
pub fn decode(payload: Bytes, max_event_bytes: usize) -> Result<Event, EnvelopeFault> {
    if !looks_like_envelope(&payload) {
        return Ok(Event::new(payload, max_event_bytes)?);
    }
    let most_bytes = max_event_bytes
        .saturating_mul(ENVELOPE_BYTES_PER_DATA_BYTE)
        .saturating_add(ENVELOPE_OVERHEAD_BYTES);
    if payload.len() > most_bytes {
        return Err(EventFault::TooLarge {
            limit: max_event_bytes,
        }
        .into());
    }
    let text = std::str::from_utf8(&payload).map_err(|_| EventFault::NotUtf8)?;
    match serde_json::from_str(text) {
        Ok(Outer::Envelope(members)) => read_members(members, max_event_bytes),
        Ok(Outer::Repeated) => Err(BrokenEnvelope::Twice("sse").into()),
        // Other members beside `sse`, or no JSON at all: data.
        Ok(Outer::Data) | Err(_) => Ok(Event::new(payload, max_event_bytes)?),
    }
}

/// Writes what [`decode`] reads back as `event`: raw data where that is enough.
pub fn encode(event: &Event) -> Vec<u8> {
    let bare = event.name().is_none()
        && event.retry().is_none()
        && event.audience().is_none()
        && event.trace_parent().is_none();
    if bare && !looks_like_envelope(event.data()) {
        return event.data().to_vec();
    }
    // The data is UTF-8 by construction, so nothing is replaced here.
    let data = String::from_utf8_lossy(event.data());
    let envelope = Envelope {
        sse: MembersToWrite {
            event: event.name().map(super::EventName::as_str),
            retry: event.retry().map(|retry| retry.as_millis()),
            to: event
                .audience()
                .and_then(|audience| serde_json::from_str(audience.as_str()).ok()),
            traceparent: event.trace_parent().map(|parent| parent.to_string()),
            data: &data,
        },
    };
    // Strings, numbers and a valid raw value: serialising them cannot fail.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// A cheap look at the first bytes: `{"sse":`, white space aside. Most payloads end here.
fn looks_like_envelope(payload: &[u8]) -> bool {
    fn strip<'a>(payload: &'a [u8], token: &[u8]) -> Option<&'a [u8]> {
        payload.trim_ascii_start().strip_prefix(token)
    }
    strip(payload, b"{")
        .and_then(|rest| strip(rest, b"\"sse\""))
        .and_then(|rest| strip(rest, b":"))
        .is_some()
}

fn read_members(members: &RawValue, max_event_bytes: usize) -> Result<Event, EnvelopeFault> {
    // What serde says of a fault quotes the payload: it is not kept.
    let members: Members = serde_json::from_str(members.get())
        .map_err(|_| EnvelopeFault::from(BrokenEnvelope::NoObject))?;
    if let Some(fault) = members.fault {
        return Err(fault.into());
    }
    let data = members.data.ok_or(BrokenEnvelope::NoData)?.get();
    let data = if data.starts_with('"') {
        typed("data", "Unicode text", data)?
    } else {
        compact(data)
    };
    let trace_parent: Option<String> = optional("traceparent", "a text", members.traceparent)?;
    let mut event = Event::new(Bytes::from(data), max_event_bytes)?
        // One that cannot be read is none (W3C Trace Context, section 4.3).
        .with_trace_parent(trace_parent.and_then(|text| text.parse().ok()));
    if let Some(to) = members.to {
        event = event.with_audience(Audience::parse(&compact(to.get()))?);
    }
    if let Some(name) = optional::<String>("event", "a text", members.event)? {
        event = event.with_name(&name)?;
    }
    if let Some(milliseconds) = optional("retry", "a whole number", members.retry)? {
        event = event.with_retry(Duration::from_millis(milliseconds))?;
    }
    Ok(event)
}

impl Event {
    /// Restricts the event to sessions whose claims hold every member of the JSON object `to`.
    ///
    /// # Errors
    /// When `to` is no [`Audience`].
    pub fn with_to(self, to: &str) -> Result<Self, AudienceFault> {
        let to: &RawValue = serde_json::from_str(to).map_err(|_| AudienceFault::NotAnObject)?;
        Ok(self.with_audience(Audience::parse(&compact(to.get()))?))
    }
}

/// Valid JSON without the white space between its tokens; numbers and strings keep every digit
/// and escape as written.
fn compact(json: &str) -> String {
    let mut inside_string = false;
    let mut escaped = false;
    json.chars()
        .filter(|&character| {
            if inside_string {
                inside_string = escaped || character != '"';
                escaped = !escaped && character == '\\';
                true
            } else {
                inside_string = character == '"';
                !matches!(character, ' ' | '\t' | '\r' | '\n')
            }
        })
        .collect()
}

/// The members of `sse`, as they stand there.
#[derive(Default)]
struct Members<'a> {
    event: Option<&'a RawValue>,
    retry: Option<&'a RawValue>,
    /// `null` is no audience, and not everybody.
    to: Option<&'a RawValue>,
    traceparent: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    /// The first member that may not be there.
    fault: Option<BrokenEnvelope>,
}

impl<'a> Members<'a> {
    fn place(&mut self, name: &str) -> Option<(&'static str, &mut Option<&'a RawValue>)> {
        Some(match name {
            "event" => ("event", &mut self.event),
            "retry" => ("retry", &mut self.retry),
            "to" => ("to", &mut self.to),
            "traceparent" => ("traceparent", &mut self.traceparent),
            "data" => ("data", &mut self.data),
            _ => return None,
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    let value: &RawValue = map.next_value()?;
                    let fault = match members.place(&name) {
                        None => BrokenEnvelope::unknown(&name),
                        Some((name, Some(_))) => BrokenEnvelope::Twice(name),
                        Some((_, place)) => {
                            *place = Some(value);
                            continue;
                        }
                    };
                    members.fault.get_or_insert(fault);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// Reads a member that is to be of this type.
fn typed<'a, T: Deserialize<'a>>(
    name: &'static str,
    wanted: &'static str,
    json: &'a str,
) -> Result<T, BrokenEnvelope> {
    serde_json::from_str(json).map_err(|_| BrokenEnvelope::WrongType(name, wanted))
}

/// Likewise, of one that need not be there.
fn optional<'a, T: Deserialize<'a>>(
    name: &'static str,
    wanted: &'static str,
    member: Option<&'a RawValue>,
) -> Result<Option<T>, BrokenEnvelope> {
    member.map_or(Ok(None), |member| typed(name, wanted, member.get()))
}

#[derive(Serialize)]
struct Envelope<'a> {
    sse: MembersToWrite<'a>,
}

#[derive(Serialize)]
struct MembersToWrite<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    data: &'a str,
}

/// What a JSON object that begins with a member `sse` is.
enum Outer<'a> {
    Envelope(&'a RawValue),
    /// `sse` stands more than once and nothing else does.
    Repeated,
    /// There are other members.
    Data,
}

impl<'de: 'a, 'a> Deserialize<'de> for Outer<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OuterVisitor;
        impl<'de> Visitor<'de> for OuterVisitor {
            type Value = Outer<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut outer = Outer::Data;
                let mut first = true;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "sse" {
                        map.next_value::<IgnoredAny>()?;
                        outer = Outer::Data;
                    } else if first {
                        outer = Outer::Envelope(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        if !matches!(outer, Outer::Data) {
                            outer = Outer::Repeated;
                        }
                    }
                    first = false;
                }
                Ok(outer)
            }
        }
        deserializer.deserialize_map(OuterVisitor)
    }
}

#[cfg(test)]
mod tests;
