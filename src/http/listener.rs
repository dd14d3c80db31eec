//! One listening socket a shard, on one port.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

use super::connection::{self, Accepted, Preamble};
use super::edge::Edge;
use crate::telemetry::occurrences::AcceptFailed;

/// Connections that wait to be accepted, a shard. The kernel lowers it to `net.core.somaxconn`; a
/// storm of reconnecting clients beyond it waits for TCP's retries.
const BACKLOG: i32 = 65_535;

/// Likewise, for a socket that a few operators and Prometheus connect to.
const BACKLOG_ALONE: i32 = 128;

/// How long accepting rests when there are no descriptors: streams that end free some.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// When nothing is sent for so long, the kernel asks whether the client is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long a client may leave sent bytes unacknowledged, or take none at all, before the kernel
/// drops it (`TCP_USER_TIMEOUT`, tcp(7)): heartbeats make sure that something is sent.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Binds one socket a shard. The kernel spreads connections over them.
///
/// # Errors
/// When the address is taken, or cannot be bound.
pub fn bind(
    address: SocketAddr,
    shards: NonZeroUsize,
    send_buffer_bytes: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    // First without SO_REUSEPORT: with it another process of the same user could silently take
    // a share of the connections.
    let address = {
        let guard = tcp_socket(address)?;
        guard.bind(&address.into())?;
        guard
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::AddrNotAvailable)?
    };
    (0..shards.get())
        .map(|_| {
            let socket = tcp_socket(address)?;
            socket.set_reuse_port(true)?;
            socket.set_send_buffer_size(send_buffer_bytes)?;
            notice_who_is_gone(&socket)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        })
        .collect()
}

/// Binds one socket, for the admin listener: the feeds of its consoles are streams too.
///
/// # Errors
/// When the address is taken, or cannot be bound.
pub fn bind_alone(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = tcp_socket(address)?;
    notice_who_is_gone(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_ALONE)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sets what accepted connections inherit.
fn notice_who_is_gone(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of an earlier process in TIME_WAIT do not keep the address taken.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A bound socket of one shard.
pub struct Listener {
    /// The socket.
    pub socket: std::net::TcpListener,
    /// How its connections begin.
    pub preamble: Preamble,
}

/// Accepts connections for ever, while there is place.
///
/// # Errors
/// When the socket cannot be used on this runtime.
pub async fn accept(edge: Rc<Edge>, listener: Listener) -> io::Result<()> {
    let Listener { socket, preamble } = listener;
    let listener = TcpListener::from_std(socket)?;
    while let Some(place) = edge.admission().place().await {
        match listener.accept().await {
            Ok((socket, address)) => {
                let accepted = Accepted {
                    socket,
                    place,
                    peer: edge.peer(address.ip()),
                };
                let serving = connection::serve(Rc::clone(&edge), accepted, preamble.clone());
                tokio::task::spawn_local(serving);
            }
            // The client gave up while it waited.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                AcceptFailed(&error).emit(edge.hub().stats());
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_inherit_the_options() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let data = bind(any, NonZeroUsize::MIN, 64 * 1024).unwrap().remove(0);
        let alone = bind_alone(any).unwrap();
        for (listener, has_own_buffer) in [(data, true), (alone, false)] {
            let address = listener.local_addr().unwrap();
            let _client = std::net::TcpStream::connect(address).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let accepted = socket2::SockRef::from(&accepted);
            assert!(accepted.tcp_nodelay().unwrap());
            assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE);
            if has_own_buffer {
                // The kernel doubles it for its own bookkeeping (socket(7)).
                assert_eq!(accepted.send_buffer_size().unwrap(), 2 * 64 * 1024);
            }
        }
    }

    #[test]
    fn shards_share_a_port_that_nobody_else_can_share() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let shards = NonZeroUsize::new(3).unwrap();
        let listeners = bind(any, shards, 64 * 1024).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(
            listeners
                .iter()
                .all(|one| one.local_addr().unwrap() == address)
        );
        let error = bind(address, shards, 64 * 1024).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
