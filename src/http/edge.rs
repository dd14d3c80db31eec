//! The service a shard's connections share: the router, and what becomes of its answers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tower_service::Service;

use super::admission::{ConnectionLimit, OpenStream};
use super::answer::{BUSY_HEADER, busy};
use super::auth::{HeldTicket, NotSpent, Undecided, wrong_ticket};
use super::cut_off;
use super::error::Problem;
use super::stream::EdgeBody;
use super::takeover::{Handoff, StreamHead};
use crate::hub::{Hub, NotOpened, RejectReason, StreamRequest};
use crate::protocol::Framing;

/// How long a stream waits for its channels while the bus is away.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

const DRAINING: &str = "this replica is being stopped";

/// What the connections of a shard share.
pub struct Edge {
    hub: Rc<Hub>,
    router: Router,
    limit: Arc<ConnectionLimit>,
}

/// Whether an answer says who asks may not.
fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Edge {
    /// The edge of a shard.
    pub fn new(hub: Rc<Hub>, router: Router, limit: Arc<ConnectionLimit>) -> Rc<Self> {
        Rc::new(Self { hub, router, limit })
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
        handoff: Option<Rc<Handoff>>,
    ) -> Response<EdgeBody>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let version = request.version();
        let head_only = request.method() == Method::HEAD;
        let is_stream = head_only || request.method() == Method::GET;
        let wants_503 = request
            .headers()
            .get(BUSY_HEADER)
            .is_some_and(|value| value == "503");
        let handoff =
            handoff.filter(|_| version == Version::HTTP_11 && request.method() == Method::GET);
        let has_body = !request.body().is_end_stream();
        let mut router = self.router.clone();
        let Ok(mut response) = router.call(request.map(Body::new)).await;
        let close = |response: &mut Response| {
            if version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
        };
        let Some(stream) = response.extensions_mut().remove::<StreamRequest>() else {
            let undecided = response.extensions_mut().remove::<Undecided>();
            if let (true, Some(Undecided(why))) = (is_stream, undecided) {
                self.hub.stats().count_rejected(RejectReason::Undecided);
                response = busy(wants_503, why);
                close(&mut response);
            } else if is_stream && is_denied(response.status()) {
                self.hub.stats().count_rejected(RejectReason::Denied);
            }
            // A proxy must not keep a connection for a request that would meet the end.
            if self.hub.is_draining() {
                close(&mut response);
            }
            return response.map(EdgeBody::Plain);
        };
        let ticket = response.extensions_mut().remove::<HeldTicket>();
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
        close(&mut response);
        if head_only {
            return response.map(EdgeBody::Plain);
        }
        // A client with unread answers before it keeps hyper: only hyper knows what is unwritten.
        let handoff = handoff.filter(|handoff| handoff.everything_is_written());
        let head = StreamHead::new(response);
        let mut opened = self.open(&stream, &head, handoff.is_some()).await;
        if let (Ok(_), Some(ticket)) = (&opened, &ticket) {
            // Only now, so that a client that is told to come back can.
            match ticket.spend().await {
                Ok(()) => {}
                Err(NotSpent::NotNow) => opened = Err("the ticket could not be spent"),
                Err(NotSpent::Gone) => {
                    self.hub.stats().count_rejected(RejectReason::Denied);
                    return wrong_ticket().into_response().map(EdgeBody::Plain);
                }
            }
        }
        match (opened, handoff) {
            (Err(why), _) => {
                let mut response = busy(wants_503, why);
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
    ) -> Result<OpenStream, &'static str> {
        let stats = self.hub.stats();
        if self.hub.is_draining() {
            stats.count_rejected(RejectReason::Draining);
            return Err(DRAINING);
        }
        let Some(permit) = self.limit.admit() else {
            stats.count_rejected(RejectReason::Limit);
            return Err("this replica has all the streams it can hold");
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
            Ok(subscription) => Ok(OpenStream::new(subscription, permit)),
            Err(NotOpened::Draining) => {
                stats.count_rejected(RejectReason::Draining);
                Err(DRAINING)
            }
            Err(NotOpened::NotActive) => {
                stats.count_rejected(RejectReason::BusUnavailable);
                Err("the channels could not be subscribed: the bus is not available")
            }
        }
    }
}
