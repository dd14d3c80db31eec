//! Who asks: what the log and traces say of a connection and of a request.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tracing::Span;

use super::client_address::ClientAddress;
use crate::hub::Session;
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

/// A connection and who is at its other end: a client, or a proxy.
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
    /// The trace that the client says it belongs to.
    pub(super) trace_parent: Option<TraceParent>,
    /// The client may do what it says: it has shown a token, or everybody may do everything.
    pub(super) is_trusted: bool,
    id: HeaderValue,
    /// The id is a proxy's, which may look for it in the answer.
    id_was_given: bool,
}

impl Requester {
    pub(super) fn new(
        connection: ConnectionId,
        ClientAddress(client): ClientAddress,
        headers: &HeaderMap,
    ) -> Self {
        Self {
            connection,
            client,
            subject: None,
            trace_parent: trace_parent(headers),
            is_trusted: false,
            id: given_id(headers).unwrap_or_else(new_id),
            id_was_given: given_id(headers).is_some(),
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
            trace_id = tracing::field::Empty,
        )
    }

    /// Takes note of whom the client's token, which is verified, names.
    pub(super) fn is(&mut self, session: &Session) {
        self.is_trusted = true;
        self.subject.clone_from(&session.subject);
    }

    /// Tells the client the request's id: where it was given one, and where it is refused, so that
    /// what it reports can be found.
    pub(super) fn mark<B>(&self, response: &mut Response<B>) {
        let status = response.status();
        if self.id_was_given || status.is_client_error() || status.is_server_error() {
            response.headers_mut().insert(REQUEST_ID, self.id.clone());
        }
    }
}

/// Has the log lines of the request that is being answered say whom its token names.
pub(super) fn note_subject(subject: &str) {
    Span::current().record("subject", subject);
}

/// A proxy's id, unless it could break a log line.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_plain = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&value.len())
            && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(is_plain).cloned()
}

fn new_id() -> HeaderValue {
    // Hexadecimal digits are a valid header.
    HeaderValue::try_from(format!("{:016x}", fastrand::u64(..)))
        .unwrap_or(HeaderValue::from_static("-"))
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
            given_id(&headers)
        };
        assert_eq!(id("7f3a-12").unwrap(), "7f3a-12");
        for bad in ["", "a b", "a\tb", "x".repeat(129).leak()] {
            assert_eq!(id(bad), None, "{bad:?}");
        }
        assert_eq!(new_id().len(), 16);
        assert_ne!(new_id(), new_id());
    }
}
