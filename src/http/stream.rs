//! What keeps a stream once it is open: a task with a socket, or a body for hyper.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::admission::{OpenStream, Place};
use super::held_answer::HeldBody;
use super::stream_socket::StreamSocket;
use crate::hub::{CloseReason, MailboxState};
use crate::protocol::LAST_CHUNK;

/// Writes a mailbox to a socket until either ends.
pub(super) struct StreamTask {
    socket: StreamSocket,
    stream: OpenStream,
    _place: Place,
    /// How much of the last chunk is written; counted once the mailbox has ended.
    last_chunk_written: usize,
}

impl StreamTask {
    pub(super) fn new(socket: StreamSocket, place: Place, stream: OpenStream) -> Self {
        Self {
            socket,
            stream,
            _place: place,
            last_chunk_written: 0,
        }
    }

    /// Writes while there is something. Ready when nothing more is to be written, ever.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = match self.stream.subscription.poll(context) {
                MailboxState::Empty => {
                    ready!(self.socket.poll_flush(context))?;
                    self.stream.subscription.note_unsent(0);
                    return Poll::Pending;
                }
                MailboxState::Ready => {
                    let socket = &mut self.socket;
                    let subscription = &mut self.stream.subscription;
                    let written = subscription.write_with(|slices| socket.try_write(slices));
                    subscription.note_unsent(socket.unsent_bytes());
                    written
                }
                // Without its last chunk a reader knows that it does not have everything.
                MailboxState::Ended if self.stream.subscription.is_cut() => {
                    return self.socket.poll_flush(context);
                }
                MailboxState::Ended => {
                    let Some(rest) = LAST_CHUNK
                        .get(self.last_chunk_written..)
                        .filter(|rest| !rest.is_empty())
                    else {
                        return self.socket.poll_flush(context);
                    };
                    let written = self.socket.try_write(&[IoSlice::new(rest)]);
                    written.map(|written| {
                        self.last_chunk_written += written;
                        if self.last_chunk_written == LAST_CHUNK.len() {
                            self.socket.finish();
                        }
                    })
                }
                MailboxState::Abort => {
                    reset(self.socket.tcp());
                    return Poll::Ready(Ok(()));
                }
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(self.socket.tcp().poll_write_ready(context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Has the socket closed with RST, so that the kernel lets go of what the client did not read.
pub(super) fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

impl Future for StreamTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let ended = match this.socket.poll_gone(context) {
            Poll::Pending => ready!(this.poll_write(context)),
            Poll::Ready(gone) => gone,
        };
        // What the kernel says of a client that has taken nothing for its user timeout.
        if ended.is_err_and(|error| error.kind() == ErrorKind::TimedOut) {
            this.stream.subscription.fail(CloseReason::Unresponsive);
        }
        Poll::Ready(())
    }
}

/// The body of an answer: an ordinary one, or a stream that hyper frames.
pub(super) enum EdgeBody {
    Plain(Body),
    Stream(OpenStream),
    Held(HeldBody),
    /// It breaks off where it ends.
    Cut(HeldBody),
}

impl http_body::Body for EdgeBody {
    type Data = Bytes;
    type Error = StreamBroken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamBroken>>> {
        match self.get_mut() {
            Self::Plain(body) => Pin::new(body).poll_frame(context).map_err(|_| StreamBroken),
            Self::Held(body) => body.poll_frame(context).map_err(|_| StreamBroken),
            Self::Cut(body) => match ready!(body.poll_frame(context)) {
                Some(frame) => Poll::Ready(Some(frame.map_err(|_| StreamBroken))),
                None => Poll::Ready(Some(Err(StreamBroken))),
            },
            Self::Stream(stream) => match stream.subscription.poll(context) {
                MailboxState::Empty => Poll::Pending,
                MailboxState::Ready => Poll::Ready(
                    stream
                        .subscription
                        .take()
                        .map(|bytes| Ok(Frame::data(bytes))),
                ),
                MailboxState::Ended if !stream.subscription.is_cut() => Poll::Ready(None),
                // hyper resets an HTTP/2 stream, and cuts an HTTP/1 connection.
                MailboxState::Ended | MailboxState::Abort => Poll::Ready(Some(Err(StreamBroken))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Stream(_) | Self::Held(_) | Self::Cut(_) => false,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Stream(_) | Self::Held(_) | Self::Cut(_) => http_body::SizeHint::default(),
        }
    }
}

/// A body ended before its time: the client was cut off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the stream was aborted")]
pub(super) struct StreamBroken;
