//! What must hold for any bytes that arrive from outside: one function a fuzz target.
//!
//! `tests/fuzz` runs them under libFuzzer; `tests/it/hostile` runs them over the seeds and over every
//! case that was found once. They panic where a promise is broken.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value};

use crate::auth::{VerifiedClaims, read_token_header};
use crate::http::{PublishFields, StreamQuery};
use crate::hub::Session;
use crate::protocol::{
    Audience, ChannelName, ChannelPattern, Claims, Cursor, Event, EventId, Frame, decode,
    decode_frame, encode,
};

/// The largest event here: small, so that its bound is met often.
const MAX_EVENT_BYTES: usize = 4096;

/// Channels of a stream here.
const MAX_CHANNELS: usize = 8;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target and its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("envelope", envelope),
    ("frame", frame),
    ("cursor", cursor),
    ("query", query),
    ("channel", channel),
    ("claims", claims),
];

/// What a publisher sends to a Redis channel.
pub fn envelope(bytes: &[u8]) {
    if let Ok(event) = decode(Bytes::copy_from_slice(bytes), MAX_EVENT_BYTES) {
        check_event(&event);
        let again = decode(Bytes::from(encode(&event)), MAX_EVENT_BYTES);
        assert_eq!(again.as_ref(), Ok(&event), "it is read as it was written");
    }
}

/// What the function library sends.
pub fn frame(bytes: &[u8]) {
    if let Ok(Frame::Event(frame)) = decode_frame(Bytes::copy_from_slice(bytes), MAX_EVENT_BYTES)
        && let Ok(Some(event)) = frame.event
    {
        check_event(&event);
    }
}

/// What a client sends as its last id.
pub fn cursor(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let Ok(cursor) = text.parse::<Cursor>() else {
        return;
    };
    let spelled = cursor.to_string();
    assert!(spelled.len() <= 128, "a cursor has at most 128 bytes");
    assert!(
        spelled
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.')),
        "a cursor triggers no preflight"
    );
    assert_eq!(spelled.parse(), Ok(cursor));
    assert!(cursor.position() >= cursor.event());
}

/// The path and the query of a stream, on a line each, and those of an event to publish.
pub fn query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (path, query) = match text.split_once('\n') {
        Some((path, query)) => (Some(path), query),
        None => (None, &*text),
    };
    if let Ok(asked) = StreamQuery::parse(path, Some(query), MAX_CHANNELS) {
        let channels = asked.channels();
        assert!(channels.len() <= MAX_CHANNELS);
        let is_once = |(at, name)| !channels.iter().skip(at + 1).any(|other| other == name);
        assert!(
            channels.iter().enumerate().all(is_once),
            "each channel once"
        );
    }
    if let Ok(fields) = PublishFields::parse(query, &HeaderMap::new())
        && let Ok(event) = fields.apply(Bytes::from_static(b"x"), MAX_EVENT_BYTES)
    {
        check_event(&event);
    }
}

/// A channel's name, and a pattern of names.
pub fn channel(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let pattern = ChannelPattern::parse(text);
    if let Ok(pattern) = &pattern {
        assert_eq!(&pattern.to_string(), text);
    }
    if let Ok(name) = ChannelName::parse(text) {
        assert_eq!(name.as_str(), text);
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"*?[]\\/%$&=".contains(&byte);
        assert!(
            text.bytes().all(is_plain),
            "it means nothing to Redis or HTTP"
        );
        assert!(pattern.is_ok_and(|pattern| pattern.matches(&name)));
    }
}

/// The header of a token, and the claims of one whose signature holds.
pub fn claims(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = read_token_header(text);
    }
    let Ok(claims) = serde_json::from_slice::<Map<String, Value>>(bytes) else {
        return;
    };
    if let Ok(verified) = VerifiedClaims::read(claims.clone()) {
        let Session { subject, .. } = Session::new(&verified.claims, Some(verified.expires_at));
        let named = verified.claims.get("sub").and_then(Value::as_str);
        assert_eq!(subject.as_deref(), named);
    }
    // Who has all the claims that are asked for gets the event. The same text is read twice: a
    // number that is written anew may be read as its neighbour.
    let asked = String::from_utf8_lossy(bytes);
    if let Ok(Some(audience)) = Audience::parse(&asked) {
        assert!(audience.admits(&Claims::new(&claims)), "{asked}");
        assert!(!audience.admits(&Claims::default()), "{asked}");
    }
}

/// An event is one block of its own fields, whatever its data holds.
fn check_event(event: &Event) {
    assert!(event.data().len() <= MAX_EVENT_BYTES);
    let mut wire = Vec::new();
    let payload = event.append_chunk(None, &mut wire);
    let block = wire.get(payload).unwrap_or_default();
    assert_eq!(block.len(), event.payload_len());
    let block = String::from_utf8_lossy(block);
    assert!(!block.contains('\r'), "CR would end a line");
    let lines: Vec<_> = block.split('\n').collect();
    let (fields, end) = lines.split_at(lines.len().saturating_sub(2));
    assert_eq!(end, ["", ""], "a block ends with its only empty line");
    let mut data = Vec::new();
    for line in fields {
        if let Some(text) = line.strip_prefix("data: ") {
            data.push(text);
        } else if let Some(name) = line.strip_prefix("event: ") {
            assert!(!name.starts_with('$') && !name.contains('\0'));
        } else {
            assert!(
                line.strip_prefix("retry: ")
                    .is_some_and(|ms| ms.parse::<u64>().is_ok())
            );
        }
    }
    let published = String::from_utf8_lossy(event.data());
    let expected = published.replace("\r\n", "\n").replace('\r', "\n");
    assert_eq!(
        data.join("\n"),
        expected,
        "the data arrives as it was published"
    );
}
