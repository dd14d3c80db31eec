//! A TCP proxy, mostly between a gateway and Redis, that can be pointed elsewhere, cut and stalled.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::Redis;

#[derive(Clone, Debug)]
struct Rules {
    /// Where new connections go; `None`: they are closed.
    target: Option<SocketAddr>,
    /// Nothing passes, and nothing is closed.
    stalled: bool,
    /// Raised to close what is open.
    epoch: u64,
    /// So many of the next connections that begin as a gateway's do are closed at once.
    to_refuse: usize,
    /// What is under way takes so long, in each direction.
    delay: Option<Range<Duration>>,
}

/// A running proxy; it and its connections end when dropped.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Starts a proxy to `redis`.
    pub async fn to(redis: &Redis) -> Self {
        Self::to_address(address_of(redis)).await
    }

    /// Starts a proxy to whatever listens at `target`.
    pub async fn to_address(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (rules, watched) = watch::channel(Rules {
            target: Some(target),
            stalled: false,
            epoch: 0,
            to_refuse: 0,
            delay: None,
        });
        let task = tokio::spawn(accept(listener, rules.clone(), watched));
        Self {
            address,
            rules,
            task,
        }
    }

    /// As a Redis URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The URL of a path behind it.
    pub fn http_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// New connections go to `redis`; what is open stays.
    pub fn point(&self, redis: &Redis) {
        self.point_at(address_of(redis));
    }

    /// New connections go to `target`; what is open stays.
    pub fn point_at(&self, target: SocketAddr) {
        self.rules.send_modify(|rules| rules.target = Some(target));
    }

    /// Closes what is open.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.epoch += 1);
    }

    /// Closes what is open and whatever comes, until it is pointed somewhere.
    pub fn refuse(&self) {
        self.rules.send_modify(|rules| {
            rules.epoch += 1;
            rules.target = None;
        });
    }

    /// Closes so many of the next connections that gateways make, and no others: theirs begin with
    /// `HELLO`, and those of Sentinels, replicas and tests do not.
    pub fn refuse_gateways(&self, count: usize) {
        self.rules.send_modify(|rules| rules.to_refuse = count);
    }

    /// How many are still to be refused.
    pub fn to_refuse(&self) -> usize {
        self.rules.borrow().to_refuse
    }

    /// Has what passes take a time of this range; `None`: no longer.
    pub fn delay(&self, delay: Option<Range<Duration>>) {
        self.rules.send_modify(|rules| rules.delay = delay);
    }

    /// Has nothing pass, or everything again.
    pub fn stall(&self, stalled: bool) {
        self.rules.send_modify(|rules| rules.stalled = stalled);
    }
}

fn address_of(redis: &Redis) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], redis.port()))
}

async fn accept(listener: TcpListener, own: watch::Sender<Rules>, rules: watch::Receiver<Rules>) {
    loop {
        if let Ok((socket, _)) = listener.accept().await {
            let (own, rules) = (own.clone(), rules.clone());
            tokio::spawn(async move {
                if rules.borrow().to_refuse > 0 && begins_with_hello(&socket).await {
                    let refused = own.send_if_modified(|rules| {
                        let refuses = rules.to_refuse > 0;
                        rules.to_refuse = rules.to_refuse.saturating_sub(1);
                        refuses
                    });
                    if refused {
                        return;
                    }
                }
                connection(socket, rules).await;
            });
        }
    }
}

/// Whether the first command is `HELLO`, as RESP3 has it.
async fn begins_with_hello(socket: &TcpStream) -> bool {
    const LENGTH: usize = "*2\r\n$5\r\nHELLO".len();
    let mut first = [0; LENGTH];
    while let Ok(read @ 1..) = socket.peek(&mut first).await {
        if read == LENGTH {
            return first.ends_with(b"HELLO");
        }
        sleep(Duration::from_millis(1)).await;
    }
    false
}

async fn connection(client: TcpStream, mut rules: watch::Receiver<Rules>) {
    let (target, epoch) = {
        let rules = rules.borrow_and_update();
        (rules.target, rules.epoch)
    };
    let Some(target) = target else { return };
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = copy(client_reads, server_writes, rules.clone()) => {}
        () = copy(server_reads, client_writes, rules.clone()) => {}
        // Also when the proxy is gone.
        _ = rules.wait_for(|rules| rules.epoch != epoch) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut rules: watch::Receiver<Rules>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let delay = rules.borrow().delay.clone();
        if let Some(delay) = delay {
            sleep(delay.start + (delay.end - delay.start).mul_f64(fastrand::f64())).await;
        }
        if rules.wait_for(|rules| !rules.stalled).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}
