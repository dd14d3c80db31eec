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
use tokio::sync::watch;
use tower_service::Service;
use tracing::Instrument;

use super::admission::{Admission, Full, OpenStream};
use super::answer::{BUSY_HEADER, busy, cors_headers, retry_and_close};
use super::authority::{Asker, Undecided};
use super::client_address::ClientAddress;
use super::cut_off;
use super::error::Problem;
use super::head_scan::HeadFault;
use super::requester::{ConnectionId, Peer, Requester};
use super::stream::EdgeBody;
use super::takeover::{Handoff, StreamHead};
use super::tickets::{HeldTicket, NotSpent, wrong_ticket};
use super::{host, origin};
use crate::bus::BusHealth;
use crate::hub::{Hub, NotOpened, RefuseReason, RejectReason, StreamRequest};
use crate::protocol::{ControlForm, Framing};
use crate::telemetry::{self, Traces};

/// How long a stream waits for its channels while the bus is away. nginx/nginx.conf waits longer for an
/// answer.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

/// The same where the bus is known to be away and a proxy can ask another replica: as long as a
/// connection takes that was merely lost.
const PATIENCE_BEFORE_THE_NEXT: Duration = Duration::from_secs(1);

/// What the connections of a shard share.
pub struct Edge {
    hub: Rc<Hub>,
    router: Router,
    admission: Arc<Admission>,
    is_open: bool,
    traces: Option<Traces>,
    health: watch::Receiver<BusHealth>,
    shard: usize,
    /// Connections accepted so far.
    accepted: Cell<u64>,
}

/// What the edges of all shards have in common.
#[derive(Clone, Debug)]
pub struct EdgeParts {
    /// Answers what is no stream.
    pub router: Router,
    /// How much clients may have.
    pub admission: Arc<Admission>,
    /// Whoever asks may do everything, because nobody else can ask.
    pub is_open: bool,
    /// Traces what becomes of streams, if anything does.
    pub traces: Option<Traces>,
    /// Whether events arrive.
    pub health: watch::Receiver<BusHealth>,
}

/// How a request came.
pub(super) struct Asked {
    /// Its connection, and who is at the other end.
    pub(super) peer: Peer,
    /// What is wrong with the request's head, though hyper takes it.
    pub(super) head_fault: Option<HeadFault>,
    /// For HTTP/1: the way to take its connection over.
    pub(super) handoff: Option<Rc<Handoff>>,
}

/// Why a stream is not opened now.
enum Busy {
    /// What is short is this replica's: another may take the stream.
    Here(&'static str),
    /// The client has had what it may have, of every replica.
    Client,
}

/// Why a stream is not opened, for metrics, the log and traces, and for the client.
struct Rejection {
    reason: RejectReason,
    busy: Busy,
}

impl From<Full> for Rejection {
    fn from(full: Full) -> Self {
        let (reason, busy) = match full {
            Full::Replica => (
                RejectReason::Limit,
                Busy::Here("this replica has all the streams it can hold"),
            ),
            Full::Address => (RejectReason::Address, Busy::Client),
            Full::Subject => (RejectReason::Subject, Busy::Client),
            Full::Rate => (RejectReason::Rate, Busy::Client),
        };
        Self { reason, busy }
    }
}

impl From<NotOpened> for Rejection {
    fn from(not_opened: NotOpened) -> Self {
        let (reason, busy) = match not_opened {
            NotOpened::Draining => (
                RejectReason::Draining,
                Busy::Here("this replica is being stopped"),
            ),
            NotOpened::Revoked => (RejectReason::Denied, Busy::Client),
            NotOpened::NotActive => (
                RejectReason::BusUnavailable,
                Busy::Here("the channels could not be subscribed: the bus is not available"),
            ),
        };
        Self { reason, busy }
    }
}

/// Whether an answer says who asks may not.
fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Edge {
    /// The edge of the shard with this number.
    pub fn new(hub: Rc<Hub>, shard: usize, parts: EdgeParts) -> Rc<Self> {
        let EdgeParts {
            router,
            admission,
            is_open,
            traces,
            health,
        } = parts;
        Rc::new(Self {
            hub,
            router,
            admission,
            is_open,
            traces,
            health,
            shard,
            accepted: Cell::new(0),
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
        let rules = self.admission.rules();
        let client = ClientAddress::of(asked.peer.address, request.headers(), rules);
        request.extensions_mut().insert(client);
        let mut requester = Requester::new(asked.peer.connection, client, request.headers());
        requester.is_trusted = self.is_open;
        let span = requester.span();
        let asks_for_stream =
            request.method() == Method::GET && request.uri().path().starts_with("/events");
        let asking = Asking {
            edge: &self,
            requester,
            channels: 0,
            is_unanswered: asks_for_stream,
        };
        self.answer_to(asking, request, asked)
            .instrument(span)
            .await
    }

    async fn answer_to<B>(
        &self,
        mut asking: Asking<'_>,
        request: Request<B>,
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
            asking.end(REFUSED, response.status());
            asking.requester.mark(&mut response);
            close(&mut response);
            return response.map(EdgeBody::Plain);
        }
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
        // Answered before the process ends: an event that is being published is not to be lost.
        let in_progress = self.hub.stats().requests.hold();
        let Ok(mut response) = router.call(request.map(Body::new)).await;
        // What is answered here, instead of what the router has answered.
        let cors = cors_headers(response.headers());
        let instead = |asking: &mut Asking<'_>, outcome, mut answer: Response| {
            asking.end(outcome, answer.status());
            answer.headers_mut().extend(cors.clone());
            asking.requester.mark(&mut answer);
            close(&mut answer);
            answer.map(EdgeBody::Plain)
        };
        let Some(stream) = response.extensions_mut().remove::<StreamRequest>() else {
            let undecided = response.extensions_mut().remove::<Undecided>();
            if let (true, Some(Undecided(told))) = (is_stream, undecided) {
                let reason = RejectReason::Undecided;
                self.hub.stats().count_rejected(reason);
                let control = response.extensions_mut().remove::<ControlForm>();
                let answer = busy(wants_503, control.unwrap_or_default(), told);
                return instead(&mut asking, reason.label(), answer);
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
            if let Some(asker) = response.extensions_mut().remove::<Asker>() {
                asking.channels = asker.channels;
                if let Some(session) = &asker.session {
                    asking.requester.is(session);
                }
            }
            asking.end(REFUSED, response.status());
            asking.requester.mark(&mut response);
            // A proxy must not keep a connection for a request that would meet the end.
            if self.hub.is_draining() {
                close(&mut response);
            }
            return response.map(EdgeBody::Plain);
        };
        let ticket = response.extensions_mut().remove::<HeldTicket>();
        asking.channels = stream.channels.len();
        if let Some(session) = &stream.session {
            asking.requester.is(session);
        }
        asking.requester.mark(&mut response);
        if has_body {
            // Unread bytes would hide from hyper that the client is gone.
            let problem = Problem::new(
                StatusCode::BAD_REQUEST,
                "a request for a stream must not have a body",
            );
            return instead(&mut asking, REFUSED, problem.into_response());
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
        let patience = if wants_503 && *self.health.borrow() != BusHealth::Up {
            PATIENCE_BEFORE_THE_NEXT
        } else {
            SUBSCRIBE_PATIENCE
        };
        let takeover = handoff.is_some();
        let opening = self.open(&stream, &head, takeover, &asking.requester, patience);
        let mut opened = opening.await;
        if let (Ok(_), Some(ticket)) = (&opened, &ticket) {
            // Only now, so that a client that is told to come back can.
            match ticket.spend().await {
                Ok(()) => {}
                Err(NotSpent::NotNow) => {
                    opened = Err(Rejection {
                        reason: RejectReason::Undecided,
                        busy: Busy::Here("the ticket could not be spent"),
                    });
                }
                Err(NotSpent::Gone) => {
                    let reason = RejectReason::Denied;
                    self.hub.stats().count_rejected(reason);
                    let answer = wrong_ticket().into_response();
                    return instead(&mut asking, reason.label(), answer);
                }
            }
        }
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(Rejection { reason, busy: kind }) => {
                self.hub.stats().count_rejected(reason);
                let answer = match kind {
                    Busy::Here(why) => busy(wants_503, stream.control, why),
                    // A proxy would ask all replicas in vain, and count the client there too.
                    Busy::Client => retry_and_close(stream.control),
                };
                return instead(&mut asking, reason.label(), answer);
            }
        };
        stream.subscription.count_open();
        asking.end("opened", StatusCode::OK);
        match handoff {
            Some(handoff) => {
                drop(in_progress);
                handoff.leave(stream);
                std::future::pending().await
            }
            None => {
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
        head: &StreamHead,
        takeover: bool,
        requester: &Requester,
        patience: Duration,
    ) -> Result<OpenStream, Rejection> {
        if self.hub.is_draining() {
            return Err(NotOpened::Draining.into());
        }
        let permit = self
            .admission
            .admit(ClientAddress(requester.client), stream.session.as_deref())
            .await?;
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
        let subscription = self.hub.subscribe(stream, framing, first, patience).await;
        Ok(OpenStream::new(subscription?, permit, requester))
    }
}

/// What is told of a request for a stream that is no proper one, or may not be asked.
const REFUSED: &str = "refused";

/// What is told of one whose client does not wait for an answer.
const GONE: &str = "gone";

/// A request. One for a stream is told to the log and traces once it is known what becomes of it,
/// at the latest when it is dropped because its client is gone.
struct Asking<'a> {
    edge: &'a Edge,
    requester: Requester,
    /// How many channels it asks for; 0 until that is understood.
    channels: usize,
    /// It is for a stream, and nothing has been told of it.
    is_unanswered: bool,
}

impl Asking<'_> {
    /// Tells what has become of it.
    fn end(&mut self, outcome: &'static str, status: StatusCode) {
        self.tell(outcome, Some(status));
    }

    fn tell(&mut self, outcome: &'static str, status: Option<StatusCode>) {
        if !std::mem::take(&mut self.is_unanswered) {
            return;
        }
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
        if let Some(traces) = &self.edge.traces {
            let requester = &self.requester;
            traces.admission(&telemetry::Admission {
                began: requester.began,
                parent: requester.trace_parent,
                is_trusted: requester.is_trusted,
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

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.tell(GONE, None);
    }
}
