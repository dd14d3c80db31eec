//! From an accepted TCP connection to a TLS connection, within bounds.
//!
//! A connection counts as a handshake from its complete ClientHello on. Before that it is only a socket,
//! which costs an attacker nothing: there are few of them, for a short time, and the oldest makes room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_rustls::LazyConfigAcceptor;

use super::client_io::ClientIo;
use crate::telemetry::HandshakeOutcome;
use crate::tls::{Protocol, TlsServer};

/// From the accepted connection to its complete ClientHello, which a client sends at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// A ClientHello: two kilobytes with post-quantum key shares, more with many extensions.
const MAX_HELLO_BYTES: usize = 16 * 1024;

/// From the ClientHello to the end of the handshake: two round trips.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client without TLS has to take its answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// The first byte of a handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// The answer to a request without TLS.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
    connection: close\r\ncontent-length: 48\r\n\r\nThis port speaks TLS: the URL begins with https\n";

/// A socket, with what was read of it before the handshake.
pub(super) struct HelloIo {
    socket: TcpStream,
    already_read: Vec<u8>,
    /// How many bytes the ClientHello may still have; `None` once it is complete.
    hello_bytes: Rc<Cell<Option<usize>>>,
}

impl HelloIo {
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }
}

impl AsyncRead for HelloIo {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.already_read.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        } else {
            let length = this.already_read.len().min(buffer.remaining());
            let rest = this.already_read.split_off(length);
            buffer.put_slice(&this.already_read);
            this.already_read = rest;
        }
        if let Some(left) = this.hello_bytes.get() {
            let read = buffer.filled().len() - before;
            let left = left.checked_sub(read).ok_or(io::ErrorKind::InvalidData)?;
            this.hello_bytes.set(Some(left));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HelloIo {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// The connections of a shard that have not sent their ClientHello yet, oldest first.
#[derive(Debug)]
pub(super) struct WaitingHellos {
    max: usize,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

impl WaitingHellos {
    /// At most `max` of them.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: Cell::default(),
            waiting: RefCell::default(),
        }
    }

    /// One more waits until what is returned is dropped. The oldest is told to go where there are too many.
    fn wait(&self) -> WaitingHello<'_> {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let crowded_out = Rc::new(Notify::new());
        let mut waiting = self.waiting.borrow_mut();
        waiting.insert(number, Rc::clone(&crowded_out));
        if waiting.len() > self.max
            && let Some((_, oldest)) = waiting.pop_first()
        {
            oldest.notify_one();
        }
        WaitingHello {
            all: self,
            number,
            crowded_out,
        }
    }
}

struct WaitingHello<'a> {
    all: &'a WaitingHellos,
    number: u64,
    crowded_out: Rc<Notify>,
}

impl Drop for WaitingHello<'_> {
    fn drop(&mut self) {
        self.all.waiting.borrow_mut().remove(&self.number);
    }
}

/// A finished handshake.
pub(super) struct Secured {
    pub(super) io: ClientIo,
    /// What the client chose; `None`: it offered nothing.
    pub(super) protocol: Option<Protocol>,
}

/// Makes a TLS connection of a socket of which `already_read` was read. `None`: there is none, which is
/// counted.
pub(super) async fn secure(
    tls: &TlsServer,
    waiting: &WaitingHellos,
    socket: TcpStream,
    already_read: Vec<u8>,
) -> Option<Secured> {
    match try_secure(tls, waiting, socket, already_read).await {
        Ok((secured, outcome)) => {
            tls.metrics.handshake(outcome);
            Some(secured)
        }
        Err(outcome) => {
            tls.metrics.handshake(outcome);
            None
        }
    }
}

async fn try_secure(
    tls: &TlsServer,
    waiting: &WaitingHellos,
    socket: TcpStream,
    already_read: Vec<u8>,
) -> Result<(Secured, HandshakeOutcome), HandshakeOutcome> {
    let start = {
        let place = waiting.wait();
        let hello = timeout(HELLO_DEADLINE, read_hello(socket, already_read));
        tokio::select! {
            hello = hello => hello.unwrap_or(Err(HandshakeOutcome::NoHello))?,
            () = place.crowded_out.notified() => return Err(HandshakeOutcome::Crowded),
        }
    };
    let since = Instant::now();
    let finishing = timeout(
        HANDSHAKE_DEADLINE,
        start.into_stream(Arc::clone(&tls.config)),
    );
    let stream = match finishing.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return Err(HandshakeOutcome::Failed);
        }
        Err(_) => return Err(HandshakeOutcome::Late),
    };
    tls.metrics.handshake_took(since.elapsed());
    let (_, connection) = stream.get_ref();
    let protocol = match connection.alpn_protocol() {
        Some(b"h2") => Some(Protocol::Http2),
        Some(_) => Some(Protocol::Http1),
        None => None,
    };
    let outcome = match connection.handshake_kind() {
        Some(HandshakeKind::Resumed) => HandshakeOutcome::Resumed,
        _ => HandshakeOutcome::Full,
    };
    let io = ClientIo::Tls(Box::new(stream));
    Ok((Secured { io, protocol }, outcome))
}

/// Reads a ClientHello.
async fn read_hello(
    mut socket: TcpStream,
    already_read: Vec<u8>,
) -> Result<tokio_rustls::StartHandshake<HelloIo>, HandshakeOutcome> {
    let first = match already_read.first() {
        Some(first) => *first,
        None => {
            let mut first = [0];
            match socket.peek(&mut first).await {
                Ok(1..) => first[0],
                _ => return Err(HandshakeOutcome::ClosedBeforeHello),
            }
        }
    };
    if first != HANDSHAKE_RECORD {
        if !first.is_ascii_uppercase() {
            return Err(HandshakeOutcome::Failed);
        }
        let _ = socket.write_all(PLAIN_HTTP).await;
        let _ = timeout(GOODBYE, read_a_little(&mut socket)).await;
        return Err(HandshakeOutcome::PlainHttp);
    }
    let hello_bytes = Rc::new(Cell::new(Some(MAX_HELLO_BYTES)));
    let io = HelloIo {
        socket,
        already_read,
        hello_bytes: Rc::clone(&hello_bytes),
    };
    match LazyConfigAcceptor::new(Acceptor::default(), io).await {
        Ok(start) => {
            hello_bytes.set(None);
            Ok(start)
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(HandshakeOutcome::ClosedBeforeHello)
        }
        Err(error) => {
            tracing::debug!(%error, "TLS handshake failed");
            Err(HandshakeOutcome::Failed)
        }
    }
}

/// Reads what has come of a request: a socket that is closed with unread bytes is reset, and the client may
/// not see the answer.
async fn read_a_little(socket: &mut TcpStream) {
    use tokio::io::AsyncReadExt;
    let _ = socket.shutdown().await;
    let mut sink = [0; 1024];
    for _ in 0..MAX_HELLO_BYTES / sink.len() {
        if !matches!(socket.read(&mut sink).await, Ok(1..)) {
            return;
        }
    }
}
