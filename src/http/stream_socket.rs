//! What a stream is written to once hyper has stepped aside: a socket, with or without TLS.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::net::TcpStream;

use super::client_io::ClientIo;

/// What rustls may hold of a connection, plain or encrypted: a record and a half. More waits in the mailbox.
const MAX_TLS_BUFFER_BYTES: usize = 24 * 1024;

/// A stream's socket.
pub(super) enum StreamSocket {
    Plain(TcpStream),
    Tls(Box<TlsSocket>),
}

/// A socket and the state of its TLS connection.
pub(super) struct TlsSocket {
    socket: TcpStream,
    tls: ServerConnection,
    /// Bytes that are encrypted and not yet taken by the socket. Counted whole until the last is.
    unsent_bytes: usize,
}

impl From<ClientIo> for StreamSocket {
    fn from(io: ClientIo) -> Self {
        match io {
            ClientIo::Plain(socket) => Self::Plain(socket),
            ClientIo::Tls(tls) => {
                let (io, mut tls) = tls.into_inner();
                tls.set_buffer_limit(Some(MAX_TLS_BUFFER_BYTES));
                let mut socket = TlsSocket {
                    socket: io.into_socket(),
                    tls,
                    unsent_bytes: 0,
                };
                // Sent behind the request, like all that follows.
                socket.forget_plaintext();
                Self::Tls(Box::new(socket))
            }
        }
    }
}

impl StreamSocket {
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    /// Bytes that were written here and are not with the kernel yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.unsent_bytes,
        }
    }

    /// Reads and forgets what the client sends: nothing is expected. Ready when it is gone.
    pub(super) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp().poll_read_ready(context))?;
            let is_gone = match self {
                Self::Plain(socket) => socket.try_read(&mut [0; 512]).map(|count| count == 0),
                Self::Tls(tls) => tls.read(),
            };
            match is_gone {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes as much as can be written now, and returns how much that is. Over TLS that is one record, once
    /// the record before it is with the kernel.
    pub(super) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Self::Plain(socket), [slice]) => socket.try_write(slice),
            (Self::Plain(socket), slices) => socket.try_write_vectored(slices),
            (Self::Tls(tls), slices) => tls.write(slices),
        }
    }

    /// Waits until the kernel has everything.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Tls(tls) = self else {
            return Poll::Ready(Ok(()));
        };
        loop {
            match tls.flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(tls.socket.poll_write_ready(context))?;
                }
                flushed => return Poll::Ready(flushed),
            }
        }
    }

    /// Says that nothing more follows, which TLS tells apart from a cut connection (RFC 8446, section 6.1).
    pub(super) fn finish(&mut self) {
        if let Self::Tls(tls) = self {
            tls.tls.send_close_notify();
        }
    }
}

impl TlsSocket {
    /// Takes a record, and says whether the client is gone.
    fn read(&mut self) -> io::Result<bool> {
        if self.tls.read_tls(&mut Tcp(&self.socket))? == 0 {
            return Ok(true);
        }
        // Also answers what must be answered: the update of a key.
        let state = self
            .tls
            .process_new_packets()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        self.forget_plaintext();
        Ok(state.peer_has_closed())
    }

    fn forget_plaintext(&mut self) {
        let mut sink = [0; 512];
        while matches!(self.tls.reader().read(&mut sink), Ok(1..)) {}
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        let written = self.tls.writer().write_vectored(slices)?;
        self.unsent_bytes = written;
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Tcp(&self.socket))?;
        }
        self.unsent_bytes = 0;
        Ok(())
    }
}

/// A socket that does not wait, as rustls reads and writes it.
struct Tcp<'a>(&'a TcpStream);

impl Read for Tcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Tcp<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_write(buffer)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
