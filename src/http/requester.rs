//! Who asks: what the log and traces say of a connection and of a request.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

use crate::protocol::TraceParent;

/// The header that carries a request's id, from a proxy and back.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a proxy, in bytes: theirs have 32 to 36.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A connection's id: the shard, and its number there since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    pub(super) shard: usize,
    pub(super) number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard, self.number)
    }
}

/// A connection and who is at its other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) connection: ConnectionId,
    pub(super) address: IpAddr,
}

/// A request's place in logs and traces.
#[derive(Clone, Debug)]
pub(super) struct Requester {
    pub(super) connection: ConnectionId,
    /// The client's address.
    pub(super) client: IpAddr,
    /// Whom the client's token names, once it is verified.
    pub(super) subject: Option<Arc<str>>,
    /// When its head was read.
    pub(super) began: SystemTime,
    /// The trace that the client says it belongs to.
    pub(super) trace_parent: Option<TraceParent>,
    id: HeaderValue,
}

impl Requester {
    pub(super) fn new(peer: Peer, headers: &HeaderMap) -> Self {
        Self {
            connection: peer.connection,
            client: peer.address,
            subject: None,
            began: SystemTime::now(),
            trace_parent: trace_parent(headers),
            id: request_id(headers),
        }
    }

    /// What every log line has that is written while the request is answered.
    pub(super) fn span(&self) -> Span {
        // The level of what is always written: the context is there whatever the filter.
        tracing::error_span!(
            "request",
            connection = %self.connection,
            request = self.id.to_str().unwrap_or_default(),
            client = %self.client,
            subject = tracing::field::Empty,
        )
    }

    /// Takes note of whom the client's token names, in the span too.
    pub(super) fn is(&mut self, subject: Arc<str>) {
        Span::current().record("subject", &*subject);
        self.subject = Some(subject);
    }

    /// Tells the client the request's id, so that what it reports can be found.
    pub(super) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.id.clone());
    }
}

/// A proxy's id, or one of our own.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&value.len())
            && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(REQUEST_ID).filter(is_plain).cloned();
    given.unwrap_or_else(|| {
        // Hexadecimal digits are a valid header.
        HeaderValue::try_from(format!("{:016x}", fastrand::u64(..)))
            .unwrap_or(HeaderValue::from_static("-"))
    })
}

/// The trace a request belongs to. One that cannot be read is none (W3C Trace Context, section
/// 4.3).
pub(super) fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get("traceparent")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_s_id_is_taken_unless_it_could_break_a_log_line() {
        let id = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(text));
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(id("7f3a-12"), "7f3a-12");
        for bad in ["", "a b", "a\tb"] {
            assert_eq!(id(bad).len(), 16, "{bad:?}");
        }
        assert_eq!(id("x".repeat(129).leak()).len(), 16);
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
