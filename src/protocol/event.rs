//! One event, and the bytes it becomes on a stream.
//!
//! The encoding follows the WHATWG HTML standard, section 9.2 ("Server-sent events"): every line
//! of the data is a `data:` line of its own, and a client joins them with LF again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::audience::Audience;
use super::id::EventId;
use super::trace_parent::TraceParent;

/// The longest event name, in bytes: names are words, and each is sent with every event.
pub const MAX_EVENT_NAME_BYTES: usize = 1024;

/// The longest reconnection time a publisher may set: a day.
pub const MAX_RETRY: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest reconnection time that an event carries to clients. With less, clients without a pause
/// of their own reconnect as fast as they can while a gateway is away.
pub const MIN_RETRY: Duration = Duration::from_millis(100);

/// The last chunk of a chunked body (RFC 9112, section 7.1).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the bytes of a stream are delimited on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// HTTP/1.1 chunks, as written straight to a socket.
    Chunked,
    /// None: something else (HTTP/2 frames, a closed connection) delimits them.
    Plain,
}

impl Framing {
    /// `payload`, framed.
    pub fn frame(self, payload: &[u8]) -> Bytes {
        // A chunk's head and end are at most twenty bytes.
        let mut out = Vec::with_capacity(payload.len() + 20);
        self.append(payload, &mut out);
        Bytes::from(out)
    }

    /// Appends `payload`, framed, and returns where in `out` it lies.
    pub fn append(self, payload: &[u8], out: &mut Vec<u8>) -> std::ops::Range<usize> {
        if self == Self::Chunked {
            append_chunk_head(payload.len(), out);
        }
        let start = out.len();
        out.extend_from_slice(payload);
        let end = out.len();
        if self == Self::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        start..end
    }
}

/// Appends `<hex length>\r\n` (RFC 9112, section 7.1).
fn append_chunk_head(length: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let significant = usize::BITS
        .saturating_sub(length.leading_zeros())
        .div_ceil(4);
    for digit in (0..significant.max(1)).rev() {
        let nibble = (length >> (digit * 4)) & 0xf;
        out.extend(DIGITS.get(nibble));
    }
    out.extend_from_slice(b"\r\n");
}

/// A valid SSE event name of a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventName(Box<str>);

/// Why a field of an event is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// The name would break out of its line.
    #[error("an event name must not contain CR, LF or NUL")]
    NameBreaksLine,
    /// The name is one of the gateway's own.
    #[error("event names that begin with $ are reserved")]
    NameReserved,
    /// The name is longer than [`MAX_EVENT_NAME_BYTES`].
    #[error("an event name must have at most {MAX_EVENT_NAME_BYTES} bytes")]
    NameTooLong,
    /// The data is not text.
    #[error("event data must be UTF-8")]
    NotUtf8,
    /// The data is larger than the configured limit.
    #[error("event data must have at most {limit} bytes (FANFARE_MAX_EVENT_BYTES)")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The reconnection time is above [`MAX_RETRY`].
    #[error("retry must be a whole number of milliseconds, at most a day")]
    RetryTooLong,
}

impl EventName {
    /// Checks a name.
    ///
    /// # Errors
    /// When it holds CR, LF or NUL, begins with `$`, or is too long.
    pub fn parse(name: &str) -> Result<Self, EventFault> {
        if name.len() > MAX_EVENT_NAME_BYTES {
            return Err(EventFault::NameTooLong);
        }
        if name.starts_with('$') {
            return Err(EventFault::NameReserved);
        }
        if name.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(EventFault::NameBreaksLine);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One event as published, checked and ready to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    name: Option<EventName>,
    retry: Option<Duration>,
    /// Shared by the shards, and by what they keep of the event.
    audience: Option<Arc<Audience>>,
    trace_parent: Option<TraceParent>,
    /// UTF-8, by construction.
    data: Bytes,
}

impl Event {
    /// An event that is data and nothing else.
    ///
    /// # Errors
    /// When `data` is not UTF-8 or is larger than `max_event_bytes`.
    pub fn new(data: Bytes, max_event_bytes: usize) -> Result<Self, EventFault> {
        if data.len() > max_event_bytes {
            return Err(EventFault::TooLarge {
                limit: max_event_bytes,
            });
        }
        if std::str::from_utf8(&data).is_err() {
            return Err(EventFault::NotUtf8);
        }
        Ok(Self {
            name: None,
            retry: None,
            audience: None,
            trace_parent: None,
            data,
        })
    }

    /// Gives the event a name. An empty one is no name: clients call both `message`.
    ///
    /// # Errors
    /// See [`EventName::parse`].
    pub fn with_name(mut self, name: &str) -> Result<Self, EventFault> {
        self.name = match name {
            "" => None,
            name => Some(EventName::parse(name)?),
        };
        Ok(self)
    }

    /// Has clients wait this long before they reconnect, from now on. Less than [`MIN_RETRY`] is raised
    /// to it.
    ///
    /// # Errors
    /// When it is longer than [`MAX_RETRY`].
    pub fn with_retry(mut self, retry: Duration) -> Result<Self, EventFault> {
        if retry > MAX_RETRY {
            return Err(EventFault::RetryTooLong);
        }
        self.retry = Some(retry.max(MIN_RETRY));
        Ok(self)
    }

    /// Restricts the event to these sessions.
    pub(super) fn with_audience(mut self, audience: Option<Audience>) -> Self {
        self.audience = audience.map(Arc::new);
        self
    }

    /// Says to which trace the event belongs.
    pub fn with_trace_parent(mut self, trace_parent: Option<TraceParent>) -> Self {
        self.trace_parent = trace_parent;
        self
    }

    /// The event's name; `None` is what clients call `message`.
    pub fn name(&self) -> Option<&EventName> {
        self.name.as_ref()
    }

    /// The reconnection time the event carries.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// The sessions it is meant for; `None`: everybody.
    pub fn audience(&self) -> Option<&Arc<Audience>> {
        self.audience.as_ref()
    }

    /// The trace that the event belongs to. Clients do not get it.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        self.trace_parent
    }

    /// The data, UTF-8.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The length of the event as an SSE block without `id`, in bytes.
    pub fn payload_len(&self) -> usize {
        let lines: usize = lines(&self.data)
            .map(|line| DATA.len() + line.len() + 1)
            .sum();
        let name = self
            .name
            .as_ref()
            .map_or(0, |name| EVENT.len() + name.0.len() + 1);
        let retry = self.retry.map_or(0, |retry| {
            RETRY.len() + decimal_digits(retry.as_millis()) + 1
        });
        name + retry + lines + 1
    }

    fn append_payload(&self, out: &mut Vec<u8>) {
        if let Some(name) = &self.name {
            out.extend_from_slice(EVENT);
            out.extend_from_slice(name.0.as_bytes());
            out.push(b'\n');
        }
        if let Some(retry) = self.retry {
            out.extend_from_slice(RETRY);
            out.extend_from_slice(retry.as_millis().to_string().as_bytes());
            out.push(b'\n');
        }
        for line in lines(&self.data) {
            out.extend_from_slice(DATA);
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }

    /// Appends the event as one HTTP/1.1 chunk, with this `id`, and returns where in `out` its
    /// payload, the bare SSE block, lies: both framings share these bytes.
    pub fn append_chunk(&self, id: Option<EventId>, out: &mut Vec<u8>) -> std::ops::Range<usize> {
        let id_line = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        let length = id_line.len() + self.payload_len();
        // Two line ends and at most sixteen digits.
        out.reserve(length + 20);
        append_chunk_head(length, out);
        let start = out.len();
        out.extend_from_slice(id_line.as_bytes());
        self.append_payload(out);
        let end = out.len();
        debug_assert_eq!(end - start, length);
        out.extend_from_slice(b"\r\n");
        start..end
    }
}

const EVENT: &[u8] = b"event: ";
const RETRY: &[u8] = b"retry: ";
const DATA: &[u8] = b"data: ";

fn decimal_digits(number: u128) -> usize {
    number
        .checked_ilog10()
        .map_or(1, |digits| digits as usize + 1)
}

/// The lines of a text split at CRLF, LF and CR, as an SSE client splits a stream. Text without
/// a line end is one line; a trailing line end is followed by an empty line.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some(end) = memchr::memchr2(b'\r', b'\n', text) else {
            return Some(text);
        };
        let (line, tail) = text.split_at(end);
        rest = tail.strip_prefix(b"\r\n").or_else(|| tail.get(1..));
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use proptest::prelude::*;
    use sse_stream::{Sse, SseByteStream};

    const LIMIT: usize = 1 << 20;

    fn event(data: &str) -> Event {
        Event::new(Bytes::copy_from_slice(data.as_bytes()), LIMIT).unwrap()
    }

    fn chunk_and_payload(event: &Event) -> (Vec<u8>, Vec<u8>) {
        let mut out = b"before".to_vec();
        let payload = event.append_chunk(None, &mut out);
        (out[6..].to_vec(), out[payload].to_vec())
    }

    /// Decodes with a decoder that is not ours, the bytes arriving cut at `cuts`.
    fn decode(bytes: &[u8], cuts: &[usize]) -> Vec<Sse> {
        let mut pieces = Vec::new();
        let mut from = 0;
        for &cut in cuts {
            pieces.push(Ok::<_, std::convert::Infallible>(Bytes::copy_from_slice(
                &bytes[from..cut],
            )));
            from = cut;
        }
        pieces.push(Ok(Bytes::copy_from_slice(&bytes[from..])));
        let stream = SseByteStream::new(futures_util::stream::iter(pieces));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(stream.map(Result::unwrap).collect())
    }

    fn normalised(data: &str) -> String {
        data.replace("\r\n", "\n").replace('\r', "\n")
    }

    #[test]
    fn encodes_byte_for_byte() {
        let priced = event("a\nb")
            .with_name("price")
            .unwrap()
            .with_retry(Duration::from_millis(1500))
            .unwrap();
        let (chunk, payload) = chunk_and_payload(&priced);
        assert_eq!(
            String::from_utf8(payload).unwrap(),
            "event: price\nretry: 1500\ndata: a\ndata: b\n\n"
        );
        assert_eq!(
            String::from_utf8(chunk).unwrap(),
            "2a\r\nevent: price\nretry: 1500\ndata: a\ndata: b\n\n\r\n"
        );
        assert_eq!(chunk_and_payload(&event("")).1, b"data: \n\n");
    }

    #[test]
    fn chunk_heads_are_plain_hexadecimal() {
        for length in [0, 1, 9, 15, 16, 255, 256, 4096, 65535, 1 << 20, usize::MAX] {
            let mut out = Vec::new();
            append_chunk_head(length, &mut out);
            assert_eq!(out, format!("{length:x}\r\n").into_bytes());
        }
    }

    #[test]
    fn line_ends_of_all_three_kinds_split_the_data() {
        for (data, expected) in [
            ("", vec![""]),
            ("\n", vec!["", ""]),
            ("\r\n", vec!["", ""]),
            ("\n\r", vec!["", "", ""]),
            ("a\rb\nc\r\nd", vec!["a", "b", "c", "d"]),
            ("a\r\r\nb", vec!["a", "", "b"]),
            ("a\n", vec!["a", ""]),
        ] {
            let found: Vec<_> = lines(data.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(found, expected, "{data:?}");
        }
    }

    #[test]
    fn names_that_could_forge_a_field_or_a_control_event_are_refused() {
        for (name, fault) in [
            ("a\nb", EventFault::NameBreaksLine),
            ("a\rdata: x", EventFault::NameBreaksLine),
            ("a\0", EventFault::NameBreaksLine),
            ("$gap", EventFault::NameReserved),
            (&"x".repeat(1025), EventFault::NameTooLong),
        ] {
            assert_eq!(EventName::parse(name), Err(fault));
        }
        assert_eq!(event("").with_name("").unwrap().name(), None);
    }

    #[test]
    fn data_over_the_limit_or_not_utf8_is_refused() {
        assert!(Event::new(Bytes::from(vec![b'x'; 8]), 8).is_ok());
        assert_eq!(
            Event::new(Bytes::from(vec![b'x'; 9]), 8),
            Err(EventFault::TooLarge { limit: 8 })
        );
        assert_eq!(
            Event::new(Bytes::from_static(b"\xff"), 8),
            Err(EventFault::NotUtf8)
        );
    }

    #[test]
    fn a_decoder_cut_at_every_byte_reads_the_same() {
        let original = "erste Zeile \u{1f980}\r\n\r\rdata: x\n:\n";
        let (_, payload) = chunk_and_payload(&event(original).with_name("n").unwrap());
        for cut in 0..=payload.len() {
            let decoded = decode(&payload, &[cut]);
            assert_eq!(decoded.len(), 1);
            assert_eq!(decoded[0].data.as_deref(), Some(&*normalised(original)));
            assert_eq!(decoded[0].event.as_deref(), Some("n"));
        }
    }

    #[test]
    fn a_mebibyte_passes() {
        let original = "0123456789abcde\n".repeat(LIMIT / 16);
        let (_, payload) = chunk_and_payload(&event(&original));
        let decoded = decode(&payload, &[]);
        assert_eq!(decoded[0].data.as_deref(), Some(&*original));
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_published(
            data in "(\\PC|[\r\n:\u{feff} \u{0}]){0,80}",
            name in "([a-z: é]{0,12})",
            retry in proptest::option::of(0u64..86_400_000),
        ) {
            let mut published = event(&data).with_name(&name).unwrap();
            if let Some(retry) = retry {
                published = published.with_retry(Duration::from_millis(retry)).unwrap();
            }
            let (chunk, payload) = chunk_and_payload(&published);
            prop_assert_eq!(payload.len(), published.payload_len());
            let mut framed = Vec::new();
            Framing::Chunked.append(&payload, &mut framed);
            prop_assert_eq!(chunk, framed);
            let decoded = decode(&payload, &[]);
            prop_assert_eq!(decoded.len(), 1);
            prop_assert_eq!(decoded[0].data.as_deref(), Some(&*normalised(&data)));
            prop_assert_eq!(decoded[0].event.as_deref().unwrap_or(""), name);
            prop_assert_eq!(decoded[0].retry, retry.map(|ms| ms.max(100)));
        }
    }
}
