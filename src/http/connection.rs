//! One accepted connection: HTTP/1.1 or HTTP/2, as the client chose in its TLS handshake or by its first
//! bytes.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, interval_at, timeout, timeout_at};

use super::admission::{OpenStream, Place};
use super::client_io::ClientIo;
use super::cut_off;
use super::edge::{Arrival, Edge};
use super::handshake::{Secured, secure};
use super::proxy_protocol::{ProxyHeader, read_header};
use super::request_context::Peer;
use super::stream::{StreamTask, reset};
use super::takeover::{Handoff, TrackedIo};
use crate::hub::{CloseReason, RejectReason};
use crate::tls::{Protocol, TlsServer};

/// How a client of HTTP/2 with prior knowledge begins (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// From the accepted connection, or the end of the last answer, to the end of a request's head.
/// nginx/nginx.conf keeps idle connections for less.
pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// A request's head: a browser's, with cookies and a token, has a few kilobytes. nginx/nginx.conf
/// takes less.
pub(crate) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Streams of one HTTP/2 connection: a browser opens one connection to a host for all its tabs.
const MAX_HTTP2_STREAMS: u32 = 256;

/// Busy answers that one of them holds: a quarter of its streams.
const MAX_HTTP2_HELD_ANSWERS: usize = 64;

/// An HTTP/2 client that does not answer a PING of this interval is gone.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long it may take to answer one.
const HTTP2_PING_PATIENCE: Duration = Duration::from_secs(20);

/// Streams that a client has opened and reset again before they were looked at. Past it the
/// connection ends: opening and resetting without end costs a client nothing (CVE-2023-44487).
const MAX_HTTP2_RESETS: usize = 20;

/// Streams that were reset because the client broke the protocol on them. Past it the connection
/// ends (CVE-2024-27316 and its kin).
const MAX_HTTP2_FAULTS: usize = 64;

/// What a client may send on one stream, and on all of a connection, before it is read: a published
/// event, and several.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// What a client's compressed headers may refer to (RFC 7541, section 4.2): the protocol's default.
const HTTP2_HEADER_TABLE_BYTES: u32 = 4096;

/// How long an HTTP/2 client has to take note of a GOAWAY (RFC 9113, section 6.8).
const HTTP2_GOODBYE: Duration = Duration::from_secs(2);

/// What one HTTP/2 stream may have unsent inside hyper, beside its mailbox.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// A connection that has just been accepted.
pub(super) struct Accepted {
    pub(super) socket: TcpStream,
    pub(super) place: Place,
    /// Who is at its other end: a client, or a proxy.
    pub(super) peer: Peer,
}

/// A connection that is ready for HTTP.
struct Ready {
    io: ClientIo,
    place: Place,
    peer: Peer,
}

/// What stands before HTTP on the connections of a listener.
#[derive(Clone, Debug)]
pub enum Preamble {
    /// Nothing.
    None,
    /// A header of the PROXY protocol.
    Proxy,
    /// A TLS handshake, perhaps behind a header of the PROXY protocol.
    Tls(Arc<TlsServer>),
}

impl Preamble {
    fn has_proxy_header(&self) -> bool {
        match self {
            Self::None => false,
            Self::Proxy => true,
            Self::Tls(tls) => tls.proxy_protocol,
        }
    }
}

/// Serves a connection to its end, or until a stream has taken it over.
pub(super) async fn serve(edge: Rc<Edge>, accepted: Accepted, preamble: Preamble) {
    let mut deadline = Instant::now() + HEAD_DEADLINE;
    let Accepted {
        mut socket,
        place,
        mut peer,
    } = accepted;
    let stats = edge.hub().stats();
    let mut already_read = Vec::new();
    if preamble.has_proxy_header() {
        let header = read_proxy_header(&edge, &mut socket, peer, deadline).await;
        let Some(ProxyHeader { client, rest }) = header else {
            return;
        };
        peer.address = client.map_or(peer.address, |client| client.to_canonical());
        already_read = rest;
    }
    let Some(place) = edge.admission().seat(place, peer.address) else {
        stats.count_rejected(RejectReason::Address);
        return;
    };
    let (mut io, chosen, already_read) = match &preamble {
        Preamble::Tls(tls) => {
            let secured = secure(tls, edge.waiting_hellos(), socket, already_read).await;
            let Some(Secured { io, protocol }) = secured else {
                return;
            };
            deadline = Instant::now() + HEAD_DEADLINE;
            (io, protocol, Vec::new())
        }
        Preamble::None | Preamble::Proxy => (ClientIo::Plain(socket), None, already_read),
    };
    let recognised = async {
        match chosen {
            Some(protocol) => Ok((protocol, already_read)),
            None => read_preface(&mut io, already_read).await,
        }
    };
    match timeout_at(deadline, recognised).await {
        Ok(Ok((Protocol::Http2, already_read))) => {
            // The place is the connection's, whatever its streams are.
            let _place = place;
            serve_http2(Rc::clone(&edge), io, peer, already_read).await;
        }
        Ok(Ok((Protocol::Http1, already_read))) => {
            let left = deadline.duration_since(Instant::now());
            let ready = Ready { io, place, peer };
            serve_http1(Rc::clone(&edge), ready, already_read, left).await;
        }
        Ok(Err(_)) => {}
        Err(_) => stats.count_rejected(RejectReason::RequestHead),
    }
}

/// Reads the header of the PROXY protocol. `None`: there is none that is believed, which is counted.
async fn read_proxy_header(
    edge: &Edge,
    socket: &mut TcpStream,
    peer: Peer,
    deadline: Instant,
) -> Option<ProxyHeader> {
    let stats = edge.hub().stats();
    let trusted = &edge.admission().rules().trusted_proxies;
    if !trusted.contains(peer.address) {
        stats.count_rejected(RejectReason::ProxyHeader);
        return None;
    }
    match timeout_at(deadline, read_header(socket)).await {
        Ok(Ok(header)) => return Some(header),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            stats.count_rejected(RejectReason::ProxyHeader);
        }
        Ok(Err(_)) => {}
        Err(_) => stats.count_rejected(RejectReason::RequestHead),
    }
    None
}

/// Reads until it is clear which protocol the client speaks, and returns what was read with it.
async fn read_preface(
    io: &mut ClientIo,
    mut read: Vec<u8>,
) -> std::io::Result<(Protocol, Vec<u8>)> {
    loop {
        if read.starts_with(HTTP2_PREFACE) {
            return Ok((Protocol::Http2, read));
        }
        if !HTTP2_PREFACE.starts_with(&read) {
            return Ok((Protocol::Http1, read));
        }
        read.reserve(1024);
        if io.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn serve_http1(edge: Rc<Edge>, ready: Ready, already_read: Vec<u8>, head_deadline: Duration) {
    let Ready { io, place, peer } = ready;
    let handoff = Rc::new(Handoff::http1());
    let service = {
        let (edge, handoff) = (Rc::clone(&edge), Rc::clone(&handoff));
        service_fn(move |request| {
            let arrival = Arrival {
                peer,
                has_bare_line_feed: handoff.note_request(),
                handoff: Some(Rc::clone(&handoff)),
                held_answers: None,
            };
            let answer = Rc::clone(&edge).answer(request, arrival);
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let io = TrackedIo::new(io, already_read, Rc::clone(&handoff));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(io, service);
    let becomes = {
        let hyper = poll_fn(|context| {
            let served = Pin::new(&mut connection).poll(context);
            if let Some(stream) = handoff.take() {
                return Poll::Ready(Becomes::Stream(stream));
            }
            served.map(|served| {
                let refused = served.is_err_and(|error| {
                    // A connection kept for a further request that does not come is no fault.
                    error.is_parse() || (error.is_timeout() && !handoff.has_been_asked())
                });
                if refused {
                    edge.hub().stats().count_rejected(RejectReason::RequestHead);
                }
                Becomes::Closed
            })
        });
        let (becomes, _) = cut_off::watching(hyper).await;
        becomes.unwrap_or(Becomes::CutOff)
    };
    // What the client has sent behind its request is dropped with hyper's buffer: the answer of a
    // stream says `connection: close`, so nothing after it is answered (RFC 9112, section 9.6).
    match becomes {
        Becomes::Closed => {}
        Becomes::Stream(stream) => {
            let socket = connection.into_parts().io.into_io().into();
            tokio::task::spawn_local(StreamTask::new(socket, place, stream));
        }
        Becomes::CutOff => reset(connection.into_parts().io.into_io().socket()),
    }
}

/// What becomes of a connection that hyper has served.
enum Becomes {
    /// Nothing: it has ended.
    Closed,
    /// A stream, written without hyper.
    Stream(OpenStream),
    /// A stream that hyper writes has to be cut off.
    CutOff,
}

async fn serve_http2(edge: Rc<Edge>, io: ClientIo, peer: Peer, already_read: Vec<u8>) {
    let held_answers = Arc::new(Semaphore::new(MAX_HTTP2_HELD_ANSWERS));
    let service = {
        let edge = Rc::clone(&edge);
        service_fn(move |request| {
            let arrival = Arrival {
                peer,
                has_bare_line_feed: false,
                handoff: None,
                held_answers: Some(Arc::clone(&held_answers)),
            };
            let answer = Rc::clone(&edge).answer(request, arrival);
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let io = TrackedIo::new(io, already_read, Rc::default());
    let executor = LocalExecutor::default();
    let open = Rc::clone(&executor.open);
    let sent_away = Rc::clone(&executor.sent_away);
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_PATIENCE)
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_FAULTS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .header_table_size(HTTP2_HEADER_TABLE_BYTES)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    // Nothing to do between two looks is as long as a request may take to come.
    let mut looks = interval_at(Instant::now() + HEAD_DEADLINE, HEAD_DEADLINE);
    let mut served = 0;
    // Whoever is to come back elsewhere would not, over this connection. One that is made during the
    // drain is told with its answer when to come back, instead of being sent away before it asks.
    let was_draining = edge.hub().is_draining();
    let mut leaves = pin!(async {
        tokio::select! {
            () = edge.hub().drains(), if !was_draining => {}
            () = sent_away.notified() => {}
        }
    });
    let mut is_leaving = false;
    loop {
        tokio::select! {
            _ = &mut connection => return,
            () = &mut leaves, if !is_leaving => {
                is_leaving = true;
                // What is open goes on (RFC 9113, section 6.8).
                connection.as_mut().graceful_shutdown();
                continue;
            }
            _ = looks.tick() => {}
        }
        let OpenAnswers { open, begun } = open.get();
        if open == 0 && begun == served {
            break;
        }
        served = begun;
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(HTTP2_GOODBYE, connection).await;
}

/// The answers of an HTTP/2 connection: those under way, and all so far.
#[derive(Clone, Copy, Default)]
struct OpenAnswers {
    open: usize,
    begun: u64,
}

/// Runs hyper's tasks, one an answer, on the shard's own thread, and counts them.
#[derive(Clone, Default)]
struct LocalExecutor {
    open: Rc<Cell<OpenAnswers>>,
    /// A stream has ended so that its client comes back to another replica.
    sent_away: Rc<Notify>,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let (count, sent_away) = (Rc::clone(&self.open), Rc::clone(&self.sent_away));
        let OpenAnswers { open, begun } = count.get();
        count.set(OpenAnswers {
            open: open + 1,
            begun: begun + 1,
        });
        tokio::task::spawn_local(async move {
            // A stream that is dropped unfinished is reset (RFC 9113, section 5.4.2).
            let (_, ended) = cut_off::watching(future).await;
            if matches!(ended, Some(CloseReason::Age | CloseReason::Drain)) {
                sent_away.notify_one();
            }
            let OpenAnswers { open, begun } = count.get();
            count.set(OpenAnswers {
                open: open - 1,
                begun,
            });
        });
    }
}
