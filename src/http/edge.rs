//! The service a shard's connections share: the router, and what becomes of its answers.

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

use super::admission::{Admission, Full, OpenStream};
use super::answer::{BUSY_HEADER, busy, cors_headers, retry_and_close};
use super::auth::{HeldTicket, NotSpent, Undecided, wrong_ticket};
use super::client_address::ClientAddress;
use super::cut_off;
use super::error::Problem;
use super::head_scan::HeadFault;
use super::stream::EdgeBody;
use super::takeover::{Handoff, StreamHead};
use super::{host, origin};
use crate::hub::{Hub, NotOpened, RefuseReason, RejectReason, StreamRequest};
use crate::protocol::Framing;

/// How long a stream waits for its channels while the bus is away.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a stream is not opened now.
enum Busy {
    /// What is short is this replica's: another may take the stream.
    Here(&'static str),
    /// The client has had what it may have, of every replica.
    Client,
}

const DRAINING: Busy = Busy::Here("this replica is being stopped");

/// What the connections of a shard share.
pub struct Edge {
    hub: Rc<Hub>,
    router: Router,
    admission: Arc<Admission>,
    /// Whoever asks may do everything, because nobody else can ask.
    is_open: bool,
}

/// How a request came.
pub(super) struct Asked {
    /// Who is at the other end of the connection.
    pub(super) peer: IpAddr,
    /// What is wrong with the request's head, though hyper takes it.
    pub(super) head_fault: Option<HeadFault>,
    /// For HTTP/1: the way to take its connection over.
    pub(super) handoff: Option<Rc<Handoff>>,
}

/// Whether an answer says who asks may not.
fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Edge {
    /// The edge of a shard.
    pub fn new(hub: Rc<Hub>, router: Router, admission: Arc<Admission>, is_open: bool) -> Rc<Self> {
        Rc::new(Self {
            hub,
            router,
            admission,
            is_open,
        })
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Answers a request. When the answer is a stream that can be written to the socket itself it
    /// is left in `handoff`, and this never returns: the connection is about to be taken over.
    pub(super) async fn answer<B>(
        self: Rc<Self>,
        mut request: Request<B>,
        asked: Asked,
    ) -> Response<EdgeBody>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let version = request.version();
        // What ends its connection: nothing else could follow on it.
        let close = |response: &mut Response| {
            if version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
        };
        if let Err(problem) = self.check(&request, asked.head_fault) {
            let mut response = problem.into_response();
            close(&mut response);
            return response.map(EdgeBody::Plain);
        }
        let rules = self.admission.rules();
        let client = ClientAddress::of(asked.peer, request.headers(), rules);
        request.extensions_mut().insert(client);
        let head_only = request.method() == Method::HEAD;
        let is_stream = head_only || request.method() == Method::GET;
        let wants_503 = request
            .headers()
            .get(BUSY_HEADER)
            .is_some_and(|value| value == "503");
        let handoff = asked
            .handoff
            .filter(|_| version == Version::HTTP_11 && request.method() == Method::GET);
        let draws_ticket = request.uri().path() == "/tickets";
        let has_body = !request.body().is_end_stream();
        let mut router = self.router.clone();
        let Ok(mut response) = router.call(request.map(Body::new)).await;
        let cors = cors_headers(response.headers());
        // What is answered here, instead of what the router has answered.
        let instead = |mut answer: Response| {
            answer.headers_mut().extend(cors.clone());
            close(&mut answer);
            answer.map(EdgeBody::Plain)
        };
        let Some(stream) = response.extensions_mut().remove::<StreamRequest>() else {
            let undecided = response.extensions_mut().remove::<Undecided>();
            if let (true, Some(Undecided(why))) = (is_stream, undecided) {
                self.hub.stats().count_rejected(RejectReason::Undecided);
                return instead(busy(wants_503, why));
            }
            if is_stream && is_denied(response.status()) {
                self.hub.stats().count_rejected(RejectReason::Denied);
            } else if response.status() == StatusCode::TOO_MANY_REQUESTS {
                self.hub.stats().count_refused(if draws_ticket {
                    RefuseReason::TicketRate
                } else {
                    RefuseReason::PublishRate
                });
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
            return instead(problem.into_response());
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
        let mut opened = self.open(&stream, client, &head, handoff.is_some()).await;
        if let (Ok(_), Some(ticket)) = (&opened, &ticket) {
            // Only now, so that a client that is told to come back can.
            match ticket.spend().await {
                Ok(()) => {}
                Err(NotSpent::NotNow) => {
                    self.hub.stats().count_rejected(RejectReason::Undecided);
                    opened = Err(Busy::Here("the ticket could not be spent"));
                }
                Err(NotSpent::Gone) => {
                    self.hub.stats().count_rejected(RejectReason::Denied);
                    return instead(wrong_ticket().into_response());
                }
            }
        }
        match (opened, handoff) {
            (Err(Busy::Here(why)), _) => instead(busy(wants_503, why)),
            // A proxy would ask all replicas in vain, and count the client there too.
            (Err(Busy::Client), _) => instead(retry_and_close()),
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

    /// Refuses what is no proper request, and what no page of a foreign site may ask.
    fn check<B>(&self, request: &Request<B>, fault: Option<HeadFault>) -> Result<(), Problem> {
        let stats = self.hub.stats();
        let malformed = |problem| {
            stats.count_refused(RefuseReason::Malformed);
            problem
        };
        if let Some(fault) = fault {
            return Err(malformed(Problem::new(
                StatusCode::BAD_REQUEST,
                fault.rule(),
            )));
        }
        let host = host::of(request).map_err(malformed)?;
        let allowed = &self.admission.rules().allow_origins;
        if let Some(host) = &host
            && self.is_open
            && !host::is_local(host)
            && !allowed.iter().any(|origin| origin.host() == host.host())
        {
            stats.count_refused(RefuseReason::Host);
            return Err(host::not_here(host));
        }
        // The demo page may be linked to from anywhere: it is the same for everybody.
        if request.uri().path() == "/" {
            return Ok(());
        }
        origin::check(request.headers(), host.as_ref(), allowed).inspect_err(|_| {
            stats.count_refused(RefuseReason::Origin);
        })
    }

    async fn open(
        &self,
        stream: &StreamRequest,
        client: ClientAddress,
        head: &StreamHead,
        takeover: bool,
    ) -> Result<OpenStream, Busy> {
        let stats = self.hub.stats();
        if self.hub.is_draining() {
            stats.count_rejected(RejectReason::Draining);
            return Err(DRAINING);
        }
        let admitted = self.admission.admit(client, stream.session.as_deref());
        let permit = admitted.map_err(|full| {
            let (reason, busy) = match full {
                Full::Replica => (
                    RejectReason::Limit,
                    Busy::Here("this replica has all the streams it can hold"),
                ),
                Full::Address => (RejectReason::Address, Busy::Client),
                Full::Subject => (RejectReason::Subject, Busy::Client),
                Full::Rate => (RejectReason::Rate, Busy::Client),
            };
            stats.count_rejected(reason);
            busy
        })?;
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
            Err(NotOpened::Revoked) => {
                stats.count_rejected(RejectReason::Denied);
                Err(Busy::Client)
            }
            Err(NotOpened::NotActive) => {
                stats.count_rejected(RejectReason::BusUnavailable);
                let why = "the channels could not be subscribed: the bus is not available";
                Err(Busy::Here(why))
            }
        }
    }
}
