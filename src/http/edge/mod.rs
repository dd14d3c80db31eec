//! The service a shard's connections share: the router, and what becomes of its answers.

mod rejection;

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, StatusCode, Version};
use tokio::sync::{Semaphore, watch};
use tower_service::Service;
use tracing::Instrument;

use self::rejection::{NotAdmitted, Rejection, is_denied};
use super::admission::{Admission, OpenStream};
use super::answer::{BUSY_HEADER, ask_another, busy, common_headers, incomplete, over};
use super::client_address::ClientAddress;
use super::cut_off;
use super::decision::{BusyForm, Decision};
use super::error::Problem;
use super::handshake::WaitingHellos;
use super::held_answer::{HeldBody, Receiver, hold_back};
use super::held_ticket::{HeldTicket, NotSpent, wrong_ticket};
use super::ignored::IGNORED_HEADER;
use super::request_context::{ConnectionId, Peer, REFUSED, RequestContext};
use super::stream::EdgeBody;
use super::takeover::{Handoff, StreamHead};
use super::{host, origin};
use crate::bus::BusHealth;
use crate::hub::{CloseReason, Hub, NotOpened, RefuseReason, RejectReason, StreamRequest};
use crate::protocol::{EndReason, Framing};
use crate::telemetry::Traces;

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
    waiting_hellos: WaitingHellos,
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
pub(super) struct Arrival {
    /// Its connection, and who is at the other end.
    pub(super) peer: Peer,
    /// A line of its head ends in LF without CR, which hyper takes and a proxy may not.
    pub(super) has_bare_line_feed: bool,
    /// For HTTP/1: the way to take its connection over.
    pub(super) handoff: Option<Rc<Handoff>>,
    /// For HTTP/2: how many busy answers its connection may hold more.
    pub(super) held_answers: Option<Arc<Semaphore>>,
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
            waiting_hellos: WaitingHellos::new(admission.max_waiting_hellos()),
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

    /// The TLS connections that have not said anything yet.
    pub(super) fn waiting_hellos(&self) -> &WaitingHellos {
        &self.waiting_hellos
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Answers a request. A stream that can be written to the socket itself is left in the handoff of
    /// `arrival`, and this never returns: the connection is about to be taken over.
    pub(super) async fn answer<B>(
        self: Rc<Self>,
        mut request: Request<B>,
        arrival: Arrival,
    ) -> Response<EdgeBody>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let Peer {
            connection,
            address,
        } = arrival.peer;
        let client = ClientAddress::of(address, request.headers(), self.admission.rules());
        request.extensions_mut().insert(client);
        let context = RequestContext::new(connection, client, &request, self.is_open, self.traces);
        let span = context.span();
        let answering = async {
            match self.answer_within(context, request, arrival).await {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        };
        answering.instrument(span).await
    }

    /// Answers a request within its span. `None`: a stream is left in the handoff.
    async fn answer_within<B>(
        &self,
        mut context: RequestContext,
        request: Request<B>,
        arrival: Arrival,
    ) -> Option<Response<EdgeBody>>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        context.begin();
        // What is refused here reaches no handler.
        if let Err(problem) = self.check(&request, arrival.has_bare_line_feed) {
            let answer = context.last_answer(REFUSED, problem.into_response());
            return Some(answer.map(EdgeBody::Plain));
        }
        let asked = Asked::of(&request);
        let handoff = arrival.handoff.filter(|_| asked.can_be_taken_over);
        let mut router = self.router.clone();
        // Answered before the process ends: an event that is being published is not to be lost.
        let _in_progress = self.hub.stats().requests.hold();
        let Ok(mut response) = router.call(request.map(Body::new)).await;
        let common = common_headers(response.headers());
        if common.contains_key(IGNORED_HEADER) {
            self.hub.stats().requests_with_ignored_parameters.add(1);
        }
        let answered = match Decision::take(&mut response) {
            Some(Decision::Open { stream, ticket }) => {
                let granted = Granted { stream, ticket };
                let opened = self.open(&mut context, &asked, granted, handoff, response);
                opened.await
            }
            Some(Decision::Undecided { why, form }) if asked.is_for_stream => {
                Err(self.reject(&Rejection::undecided(why), &asked, form))
            }
            decision => Ok(Some(self.pass_on(&mut context, &asked, decision, response))),
        };
        let Instead {
            outcome,
            mut answer,
            held,
        } = match answered {
            Ok(answer) => return answer,
            Err(instead) => instead,
        };
        answer.headers_mut().extend(common);
        let receiver = Receiver {
            client: ClientAddress(context.client),
            of_connection: arrival.held_answers.as_ref(),
        };
        if held == Held::Whole {
            hold_back(&self.hub, &self.admission, &receiver).await;
        }
        let answer = context.last_answer(outcome, answer);
        Some(answer.map(|body| {
            match held {
                Held::End => self
                    .hold(body, &receiver)
                    .map_or_else(EdgeBody::Plain, EdgeBody::Held),
                Held::Cut => {
                    let held = self.hold(body, &receiver);
                    EdgeBody::Cut(held.unwrap_or_else(HeldBody::not_held))
                }
                Held::Not | Held::Whole => EdgeBody::Plain(body),
            }
        }))
    }

    fn hold(&self, body: Body, receiver: &Receiver<'_>) -> Result<HeldBody, Body> {
        HeldBody::hold(body, &self.hub, &self.admission, receiver)
    }

    /// Hands on an answer of the router that opens no stream.
    fn pass_on(
        &self,
        context: &mut RequestContext,
        asked: &Asked,
        decision: Option<Decision>,
        response: Response,
    ) -> Response<EdgeBody> {
        if asked.is_for_stream && is_denied(response.status()) {
            self.hub.stats().count_rejected(RejectReason::Denied);
        } else if response.status() == StatusCode::TOO_MANY_REQUESTS {
            self.hub.stats().count_refused(if asked.is_for_ticket {
                RefuseReason::TicketRate
            } else {
                RefuseReason::PublishRate
            });
        }
        if let Some(Decision::Refused { session, channels }) = decision {
            context.asks_for(channels, session.as_deref());
        }
        let mut answer = context.answer(REFUSED, response);
        // A proxy must not keep a connection for a request that would meet the end.
        if self.hub.is_draining() {
            context.close(&mut answer);
        }
        answer.map(EdgeBody::Plain)
    }

    /// Opens a stream, whose head is `response`. `None`: it is left in `handoff`.
    async fn open(
        &self,
        context: &mut RequestContext,
        asked: &Asked,
        granted: Granted,
        handoff: Option<Rc<Handoff>>,
        mut response: Response,
    ) -> Result<Option<Response<EdgeBody>>, Instead> {
        let Granted { stream, ticket } = granted;
        context.asks_for(stream.channels.len(), stream.session.as_deref());
        context.mark(&mut response);
        if asked.has_body {
            // Unread bytes would hide from hyper that the client is gone.
            let rule = "a request for a stream must not have a body";
            let problem = Problem::new(StatusCode::BAD_REQUEST, rule);
            return Err(Instead::refusal(REFUSED, problem));
        }
        // axum measured the placeholder that stood for the body.
        response.headers_mut().remove(CONTENT_LENGTH);
        // Nothing else can follow a stream on its connection. But some readers take a body that breaks off
        // for a whole one where the head says that the connection closes.
        if !stream.is_whole {
            context.close(&mut response);
        }
        if asked.head_only {
            return Ok(Some(response.map(EdgeBody::Plain)));
        }
        // A client with unread answers before it keeps hyper: only hyper knows what is unwritten.
        let handoff = handoff.filter(|handoff| handoff.everything_is_written());
        let form = BusyForm::of(&stream);
        let head = StreamHead::new(response);
        let written = handoff.as_ref().map(|_| &head);
        let mut stream = self
            .admit(&stream, written, context, self.patience(asked))
            .await
            .map_err(|not_admitted| match not_admitted {
                NotAdmitted::Rejected(rejection) => self.reject(&rejection, asked, form),
                NotAdmitted::Over(reason) => self.tell_over(reason),
                NotAdmitted::Incomplete(reason) => Instead::refusal(REFUSED, incomplete(reason)),
            })?;
        if let Some(ticket) = &ticket {
            // Only now, so that a client that is told to come back can.
            self.spend(ticket, asked, form).await?;
        }
        stream.subscription.count_open();
        context.end("opened", StatusCode::OK);
        if let Some(handoff) = handoff {
            handoff.leave(stream);
            return Ok(None);
        }
        cut_off::leave_watch(stream.subscription.watch());
        Ok(Some(head.into_response(EdgeBody::Stream(stream))))
    }

    /// How long a stream may wait for its channels.
    fn patience(&self, asked: &Asked) -> Duration {
        if asked.wants_503 && *self.health.borrow() != BusHealth::Up {
            PATIENCE_BEFORE_THE_NEXT
        } else {
            SUBSCRIBE_PATIENCE
        }
    }

    async fn spend(
        &self,
        ticket: &HeldTicket,
        asked: &Asked,
        form: BusyForm,
    ) -> Result<(), Instead> {
        ticket.spend().await.map_err(|fault| match fault {
            NotSpent::NotNow => self.reject(
                &Rejection::undecided("the ticket could not be spent"),
                asked,
                form,
            ),
            NotSpent::Gone => {
                let reason = RejectReason::Denied;
                self.hub.stats().count_rejected(reason);
                Instead::refusal(reason.label(), wrong_ticket())
            }
        })
    }

    /// Counts a stream that is not opened.
    fn reject(&self, rejection: &Rejection, asked: &Asked, form: BusyForm) -> Instead {
        self.hub.stats().count_rejected(rejection.reason);
        let for_proxy = rejection
            .is_of_this_replica()
            .filter(|_| asked.wants_503)
            .map(ask_another);
        Instead {
            outcome: rejection.reason.label(),
            held: match (for_proxy.is_some() || asked.head_only, form.is_cut) {
                (true, _) => Held::Not,
                (false, true) => Held::Cut,
                (false, false) => Held::End,
            },
            answer: for_proxy.unwrap_or_else(|| {
                let start = self.hub.start_cursor().filter(|_| form.wants_cursor);
                busy(form.control, start)
            }),
        }
    }

    /// The answer to a client that has had everything, and to which nothing can come.
    fn tell_over(&self, reason: EndReason) -> Instead {
        self.hub.stats().ended_answers.add(1);
        Instead {
            outcome: CloseReason::Ended.label(),
            answer: over(reason),
            held: Held::Whole,
        }
    }

    /// Refuses what is no proper request, and what no page of a foreign site may ask.
    fn check<B>(&self, request: &Request<B>, has_bare_line_feed: bool) -> Result<(), Problem> {
        let stats = self.hub.stats();
        let malformed = |problem| {
            stats.count_refused(RefuseReason::Malformed);
            problem
        };
        if has_bare_line_feed {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "lines end in CRLF");
            return Err(malformed(problem));
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

    /// Opens a stream on the hub. `head`: to be written before it, over a connection that is taken over.
    async fn admit(
        &self,
        stream: &StreamRequest,
        head: Option<&StreamHead>,
        context: &RequestContext,
        patience: Duration,
    ) -> Result<OpenStream, NotAdmitted> {
        if self.hub.is_draining() {
            return Err(NotOpened::Draining.into());
        }
        let permit = self
            .admission
            .admit(ClientAddress(context.client), stream.session.as_deref())
            .await
            .map_err(Rejection::from)?;
        let framing = match head {
            Some(_) => Framing::Chunked,
            None => Framing::Plain,
        };
        let first = || head.map(StreamHead::to_bytes).unwrap_or_default();
        let subscription = self.hub.subscribe(stream, framing, first, patience).await;
        Ok(OpenStream::new(subscription?, permit, context))
    }
}

/// What a request is, as far as the edge has to know after the router has taken it.
struct Asked {
    head_only: bool,
    /// GET or HEAD.
    is_for_stream: bool,
    is_for_ticket: bool,
    has_body: bool,
    /// A proxy asks, which may ask another replica.
    wants_503: bool,
    /// A stream may be written to the connection without hyper.
    can_be_taken_over: bool,
}

impl Asked {
    fn of<B: http_body::Body>(request: &Request<B>) -> Self {
        let head_only = request.method() == Method::HEAD;
        let is_get = request.method() == Method::GET;
        let busy = request.headers().get(BUSY_HEADER);
        Self {
            head_only,
            is_for_stream: head_only || is_get,
            is_for_ticket: request.uri().path() == "/tickets",
            has_body: !request.body().is_end_stream(),
            wants_503: busy.is_some_and(|value| value == "503"),
            can_be_taken_over: is_get && request.version() == Version::HTTP_11,
        }
    }
}

/// A stream that the router lets its client have.
struct Granted {
    stream: StreamRequest,
    ticket: Option<HeldTicket>,
}

/// An answer in place of the router's.
struct Instead {
    outcome: &'static str,
    answer: Response,
    held: Held,
}

impl Instead {
    fn refusal(outcome: &'static str, problem: Problem) -> Self {
        Self {
            outcome,
            answer: problem.into_response(),
            held: Held::Not,
        }
    }
}

/// What of an answer comes a moment later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Not,
    End,
    /// Its end, and then it breaks off.
    Cut,
    Whole,
}
