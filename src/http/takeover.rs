//! Taking a stream's connection out of hyper.
//!
//! hyper parses the request and keeps some thirty kilobytes for a connection; a stream needs a
//! socket and a mailbox. So once the router's answer is known to be a stream, the head is written
//! here, hyper's connection is taken apart, and a small task keeps the socket.
//!
//! `into_parts` drops whatever hyper has not written yet. [`TrackedIo`] knows whether there is
//! such output; only when there is none the connection is taken over.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use http::header::{DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};

use super::admission::OpenStream;
use super::client_io::ClientIo;
use super::first_head::FirstHead;
use super::stream::EdgeBody;

/// Where the service leaves a stream for the connection to take over.
#[derive(Default)]
pub(super) struct Handoff {
    stream: RefCell<Option<OpenStream>>,
    /// hyper has written something and not flushed it since.
    unwritten: Cell<bool>,
    /// Requests that hyper has handed out.
    requests: Cell<u64>,
    /// The connection's first head; not over HTTP/2, which frames everything.
    first_head: Option<Cell<FirstHead>>,
}

impl Handoff {
    /// For HTTP/1: the first head is looked at before hyper reads it.
    pub(super) fn http1() -> Self {
        Self {
            first_head: Some(Cell::default()),
            ..Self::default()
        }
    }

    pub(super) fn leave(&self, stream: OpenStream) {
        self.stream.replace(Some(stream));
    }

    /// Notes that hyper hands out a request, and returns whether a line of its head ends in a bare LF,
    /// if it is the connection's first.
    pub(super) fn note_request(&self) -> bool {
        self.requests.set(self.requests.get() + 1);
        let first = self
            .first_head
            .as_ref()
            .filter(|_| self.requests.get() == 1);
        first.is_some_and(|head| head.get().has_bare_line_feed())
    }

    /// Whether what hyper reads next may be of the first head.
    fn awaits_first_head(&self) -> bool {
        let first = self.first_head.as_ref();
        first.is_some_and(|head| !head.get().is_over())
    }

    /// Looks at what hyper reads.
    fn feed(&self, bytes: &[u8]) {
        if let Some(head) = &self.first_head {
            let mut fed = head.get();
            fed.feed(bytes);
            head.set(fed);
        }
    }

    pub(super) fn has_been_asked(&self) -> bool {
        self.requests.get() > 0
    }

    pub(super) fn take(&self) -> Option<OpenStream> {
        self.stream.take()
    }

    /// Whether nothing of an earlier answer is left in hyper's buffer. hyper flushes its buffer
    /// after every write and before it hands out the next request, and calls `poll_flush` only
    /// when the buffer is empty.
    pub(super) fn everything_is_written(&self) -> bool {
        !self.unwritten.get()
    }
}

/// The head of a stream's response, from the router.
pub(super) struct StreamHead(HeaderMap);

impl StreamHead {
    pub(super) fn new(response: Response) -> Self {
        Self(response.into_parts().0.headers)
    }

    /// The head as HTTP/1.1 writes it, for a chunked body.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(320);
        bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        for (name, value) in &self.0 {
            append_header(name.as_str(), value.as_bytes(), &mut bytes);
        }
        append_header(TRANSFER_ENCODING.as_str(), b"chunked", &mut bytes);
        if let Some(date) = date_header() {
            append_header(DATE.as_str(), date.as_bytes(), &mut bytes);
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// The head for hyper to write.
    pub(super) fn into_response(self, body: EdgeBody) -> Response<EdgeBody> {
        let mut response = Response::new(body);
        *response.headers_mut() = self.0;
        response
    }
}

/// The date of now, as responses carry it (RFC 9110, section 6.6.1).
fn date_header() -> Option<HeaderValue> {
    HeaderValue::try_from(httpdate::fmt_http_date(std::time::SystemTime::now())).ok()
}

fn append_header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A connection as hyper sees it: the bytes read to recognise its protocol come first, and it is
/// noted whether hyper has output left.
pub(super) struct TrackedIo {
    io: TokioIo<ClientIo>,
    already_read: Vec<u8>,
    handoff: Rc<Handoff>,
}

/// What is read at once on the way to hyper: a head and more.
const READ_BYTES: usize = 8 * 1024;

impl TrackedIo {
    pub(super) fn new(io: ClientIo, already_read: Vec<u8>, handoff: Rc<Handoff>) -> Self {
        Self {
            io: TokioIo::new(io),
            already_read,
            handoff,
        }
    }

    pub(super) fn into_io(self) -> ClientIo {
        self.io.into_inner()
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<ClientIo>> {
        Pin::new(&mut self.get_mut().io)
    }
}

impl Read for TrackedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.already_read.is_empty() {
            if !this.handoff.awaits_first_head() {
                return Pin::new(&mut this.io).poll_read(context, buffer);
            }
            let mut read = [0; READ_BYTES];
            let most = read.len().min(buffer.remaining());
            let mut read = ReadBuf::new(read.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(this.io.inner_mut()).poll_read(context, &mut read))?;
            this.handoff.feed(read.filled());
            buffer.put_slice(read.filled());
            return Poll::Ready(Ok(()));
        }
        let length = this.already_read.len().min(buffer.remaining());
        let rest = this.already_read.split_off(length);
        buffer.put_slice(&this.already_read);
        this.handoff.feed(&this.already_read);
        this.already_read = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for TrackedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.handoff.unwritten.set(true);
        self.io().poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.handoff.unwritten.set(true);
        self.io().poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(context);
        if flushed.is_ready() {
            this.handoff.unwritten.set(false);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.io().poll_shutdown(context)
    }
}
