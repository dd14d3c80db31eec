//! The service a shard's connections share: the router, and what becomes of its answers.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tower_service::Service;
use tracing::Instrument;

use super::admission::{ConnectionLimit, OpenStream};
use super::answer::{BUSY_HEADER, busy};
use super::cut_off;
use super::error::Problem;
use super::requester::{ConnectionId, Peer, Requester};
use super::stream::EdgeBody;
use super::takeover::{Handoff, StreamHead};
use crate::hub::{Hub, NotOpened, RejectReason, StreamRequest};
use crate::protocol::Framing;
use crate::telemetry::{Admission, Traces};

/// How long a stream waits for its channels while the bus is away.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

/// What a client is told that asks for a status, when its stream is not opened.
fn told(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Draining => "this replica is being stopped",
        RejectReason::Limit => "this replica has all the streams it can hold",
        RejectReason::BusUnavailable => {
            "the channels could not be subscribed: the bus is not available"
        }
        RejectReason::RequestHead => "the request's head could not be read",
    }
}

/// What the connections of a shard share.
pub struct Edge {
    hub: Rc<Hub>,
    router: Router,
    limit: Arc<ConnectionLimit>,
    shard: usize,
    /// Connections accepted so far.
    accepted: Cell<u64>,
    traces: Option<Traces>,
}

impl Edge {
    /// The edge of the shard with this number.
    pub fn new(
        hub: Rc<Hub>,
        router: Router,
        limit: Arc<ConnectionLimit>,
        shard: usize,
        traces: Option<Traces>,
    ) -> Rc<Self> {
        Rc::new(Self {
            hub,
            router,
            limit,
            shard,
            accepted: Cell::new(0),
            traces,
        })
    }

    /// Numbers an accepted connection.
    pub(super) fn peer(&self, address: IpAddr) -> Peer {
        let number = self.accepted.get().wrapping_add(1);
        self.accepted.set(number);
        Peer {
            connection: ConnectionId {
                shard: self.shard,
                number,
            },
            // What a dual-stack socket says of an IPv4 client.
            address: address.to_canonical(),
        }
    }

    pub(super) fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Answers a request. When the answer is a stream that can be written to the socket itself it
    /// is left in `handoff`, and this never returns: the connection is about to be taken over.
    pub(super) async fn answer<B>(
        self: Rc<Self>,
        request: Request<B>,
        peer: Peer,
        handoff: Option<Rc<Handoff>>,
    ) -> Response<EdgeBody>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let requester = Requester::new(peer, request.headers());
        let span = requester.span();
        self.answer_to(requester, request, handoff)
            .instrument(span)
            .await
    }

    async fn answer_to<B>(
        &self,
        mut requester: Requester,
        request: Request<B>,
        handoff: Option<Rc<Handoff>>,
    ) -> Response<EdgeBody>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let asks_for_stream =
            request.method() == Method::GET && request.uri().path().starts_with("/events");
        let version = request.version();
        let head_only = request.method() == Method::HEAD;
        let wants_503 = request
            .headers()
            .get(BUSY_HEADER)
            .is_some_and(|value| value == "503");
        let handoff =
            handoff.filter(|_| version == Version::HTTP_11 && request.method() == Method::GET);
        let has_body = !request.body().is_end_stream();
        let mut router = self.router.clone();
        let Ok(mut response) = router.call(request.map(Body::new)).await;
        requester.mark(&mut response);
        let Some(stream) = response.extensions_mut().remove::<StreamRequest>() else {
            if asks_for_stream {
                self.note_admission(&requester, 0, "refused", response.status());
            }
            return response.map(EdgeBody::Plain);
        };
        if let Some(subject) = stream.session.as_ref().and_then(|one| one.subject.clone()) {
            requester.is(subject);
        }
        if has_body {
            // Unread bytes would hide from hyper that the client is gone.
            let problem = Problem::new(
                StatusCode::BAD_REQUEST,
                "a stream is asked for without a body",
            );
            return problem.into_response().map(EdgeBody::Plain);
        }
        // axum measured the placeholder that stood for the body.
        response.headers_mut().remove(CONTENT_LENGTH);
        // A stream ends its connection: nothing else could follow on it.
        let close = |response: &mut Response| {
            if version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
        };
        close(&mut response);
        if head_only {
            return response.map(EdgeBody::Plain);
        }
        // A client with unread answers before it keeps hyper: only hyper knows what is unwritten.
        let handoff = handoff.filter(|handoff| handoff.everything_is_written());
        let head = StreamHead::new(response);
        let opened = self
            .open(&stream, &head, handoff.is_some(), &requester)
            .await;
        let channels = stream.channels.len();
        if opened.is_ok() {
            self.note_admission(&requester, channels, "opened", StatusCode::OK);
        }
        match (opened, handoff) {
            (Err(reason), _) => {
                let mut response = busy(wants_503, told(reason));
                self.note_admission(&requester, channels, reason.label(), response.status());
                requester.mark(&mut response);
                close(&mut response);
                response.map(EdgeBody::Plain)
            }
            (Ok(stream), Some(handoff)) => {
                handoff.leave(stream);
                std::future::pending().await
            }
            (Ok(stream), None) => {
                cut_off::leave_watch(stream.subscription.watch());
                head.into_response(EdgeBody::Stream(stream))
            }
        }
    }

    async fn open(
        &self,
        stream: &StreamRequest,
        head: &StreamHead,
        takeover: bool,
        requester: &Requester,
    ) -> Result<OpenStream, RejectReason> {
        let stats = self.hub.stats();
        if self.hub.is_draining() {
            stats.count_rejected(RejectReason::Draining);
            return Err(RejectReason::Draining);
        }
        let Some(permit) = self.limit.admit() else {
            stats.count_rejected(RejectReason::Limit);
            return Err(RejectReason::Limit);
        };
        let framing = if takeover {
            Framing::Chunked
        } else {
            Framing::Plain
        };
        let first = || {
            if takeover {
                head.to_bytes()
            } else {
                Vec::new()
            }
        };
        let subscription = self
            .hub
            .subscribe(stream, framing, first, SUBSCRIBE_PATIENCE)
            .await;
        match subscription {
            Ok(subscription) => Ok(OpenStream::new(subscription, permit, requester)),
            Err(NotOpened::Draining) => {
                stats.count_rejected(RejectReason::Draining);
                Err(RejectReason::Draining)
            }
            Err(NotOpened::NotActive) => {
                stats.count_rejected(RejectReason::BusUnavailable);
                Err(RejectReason::BusUnavailable)
            }
        }
    }

    /// Tells the log and traces what became of a request for a stream.
    fn note_admission(
        &self,
        requester: &Requester,
        channels: usize,
        outcome: &'static str,
        status: StatusCode,
    ) {
        match outcome {
            "limit" => tracing::warn!("a stream was refused: FANFARE_MAX_CONNECTIONS are open"),
            _ => tracing::debug!(
                channels,
                outcome,
                status = status.as_u16(),
                "a stream was asked for"
            ),
        }
        if let Some(traces) = &self.traces {
            traces.admission(&Admission {
                began: requester.began,
                parent: requester.trace_parent,
                connection: &requester.connection.to_string(),
                client: requester.client,
                subject: requester.subject.as_deref(),
                channels,
                outcome,
                status,
            });
        }
    }
}
