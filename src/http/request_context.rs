//! The context of a request: its connection and client, for the log, traces and the answer.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::response::Response;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use tracing::Span;
use tracing::field::Empty;

use super::client_address::ClientAddress;
use crate::hub::Session;
use crate::protocol::TraceParent;
use crate::telemetry::{Admission, AdmissionSpan, Traces};

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

/// A request: what the log and traces say of it. A request for a stream is reported to both once it is
/// known what becomes of it, at the latest when this is dropped because the client is gone.
#[derive(Debug)]
pub(super) struct RequestContext {
    pub(super) connection: ConnectionId,
    /// The client's address.
    pub(super) client: IpAddr,
    /// The subject of the client's token, once that is verified.
    pub(super) subject: Option<Arc<str>>,
    /// The trace that the client says it belongs to.
    trace_parent: Option<TraceParent>,
    /// The client has shown a token, or every client may do everything: it decides what is traced.
    is_trusted: bool,
    id: HeaderValue,
    /// The id is a proxy's, which may look for it in the answer.
    id_was_given: bool,
    version: Version,
    /// How many channels it names; 0 until that is understood.
    channels: usize,
    /// It is for a stream, and has not been reported.
    is_unreported: bool,
    admission: Option<AdmissionSpan>,
}

/// The outcome of a request for a stream that breaks a rule.
pub(super) const REFUSED: &str = "refused";

/// The outcome of one whose client does not wait for an answer.
const GONE: &str = "gone";

impl RequestContext {
    /// The context of a request on `connection`. `trusts_all`: every client may do everything here.
    pub(super) fn new<B>(
        connection: ConnectionId,
        ClientAddress(client): ClientAddress,
        request: &Request<B>,
        trusts_all: bool,
        traces: Option<Traces>,
    ) -> Self {
        let headers = request.headers();
        let is_for_stream =
            request.method() == Method::GET && request.uri().path().starts_with("/events");
        let traces = traces.filter(|_| is_for_stream);
        Self {
            connection,
            client,
            subject: None,
            trace_parent: trace_parent(headers),
            is_trusted: trusts_all,
            id: given_id(headers).unwrap_or_else(new_id),
            id_was_given: given_id(headers).is_some(),
            version: request.version(),
            channels: 0,
            is_unreported: is_for_stream,
            admission: traces.map(|traces| traces.admission(&connection, client)),
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
            subject = Empty,
            trace_id = Empty,
        )
    }

    /// Joins the trace that the client names if nothing more has to be known of the client. To be
    /// called inside of [`span`](Self::span).
    pub(super) fn begin(&mut self) {
        if self.is_trusted {
            self.join_trace();
        }
    }

    /// Takes note of what the request asks for: so many channels, for this verified session.
    pub(super) fn asks_for(&mut self, channels: usize, session: Option<&Session>) {
        self.channels = channels;
        if let Some(session) = session {
            self.is_trusted = true;
            self.subject.clone_from(&session.subject);
            self.join_trace();
        }
    }

    fn join_trace(&mut self) {
        if let Some(span) = &mut self.admission {
            span.join(self.trace_parent, self.is_trusted);
        }
    }

    /// Reports what has become of a request for a stream; only the first call counts.
    pub(super) fn end(&mut self, outcome: &'static str, status: StatusCode) {
        self.report(outcome, Some(status));
    }

    fn report(&mut self, outcome: &'static str, status: Option<StatusCode>) {
        if !std::mem::take(&mut self.is_unreported) {
            return;
        }
        self.join_trace();
        let channels = self.channels;
        match outcome {
            "limit" => tracing::warn!("refused a stream: FANFARE_MAX_CONNECTIONS streams are open"),
            _ => tracing::debug!(
                channels,
                outcome,
                status = status.map(|status| status.as_u16()),
                "stream request"
            ),
        }
        if let Some(span) = self.admission.take() {
            span.end(&Admission {
                subject: self.subject.as_deref(),
                channels,
                outcome,
                status,
            });
        }
    }

    /// Reports the outcome, and prepares the answer for the client.
    pub(super) fn answer(&mut self, outcome: &'static str, mut answer: Response) -> Response {
        self.end(outcome, answer.status());
        self.mark(&mut answer);
        answer
    }

    /// The same, with an answer that ends its connection.
    pub(super) fn last_answer(&mut self, outcome: &'static str, answer: Response) -> Response {
        let mut answer = self.answer(outcome, answer);
        self.close(&mut answer);
        answer
    }

    /// Tells the client the request's id: where it was given one, and where it is refused, so that
    /// what it reports can be found.
    pub(super) fn mark(&self, response: &mut Response) {
        let status = response.status();
        if self.id_was_given || status.is_client_error() || status.is_server_error() {
            response.headers_mut().insert(REQUEST_ID, self.id.clone());
        }
    }

    /// Ends the connection with this answer. Over HTTP/2 a stream is all that ends.
    pub(super) fn close(&self, response: &mut Response) {
        if self.version <= Version::HTTP_11 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        self.report(GONE, None);
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
