//! A client that reads event streams as Firefox and WebKit do, and writes down all it sees.
//!
//! It shares no code with the gateway: what it makes of the bytes is what these browsers make of
//! them. That is WHATWG HTML, 9.2.6, but an `id` counts only in a block with data. Only its
//! reconnection time is its own, so that tests need not wait for it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::support::{DEADLINE, Gateway};

/// Instead of what `retry:` says.
const RECONNECT_AFTER: Duration = Duration::from_millis(10);

/// An id of a kept event.
pub type Id = (u64, u64);

/// Reads an id.
pub fn parse_id(text: &str) -> Option<Id> {
    let (ms, n) = text.split_once('-')?;
    Some((ms.parse().ok()?, n.parse().ok()?))
}

/// Reads a cursor: the event, and the position that is vouched for.
pub fn parse_cursor(text: &str) -> Option<(Id, Option<Id>)> {
    match text.split_once('.') {
        None => Some((parse_id(text)?, None)),
        Some((event, position)) => Some((parse_id(event)?, Some(parse_id(position)?))),
    }
}

/// What stands between two blank lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: Option<String>,
    pub retry: Option<String>,
    pub comments: usize,
}

/// Bytes to blocks.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    block: Block,
}

impl Parser {
    /// Takes bytes and hands out the blocks that they complete.
    pub fn push(&mut self, mut bytes: &[u8], mut complete: impl FnMut(Block)) {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                return;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let line = String::from_utf8(std::mem::take(&mut self.line)).unwrap();
            if line.is_empty() {
                complete(std::mem::take(&mut self.block));
            } else {
                self.field(&line);
            }
        }
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => self.block.comments += 1,
            "event" => self.block.event = Some(value.to_owned()),
            "data" => match &mut self.block.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.block.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => self.block.id = Some(value.to_owned()),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.block.retry = Some(value.to_owned());
            }
            _ => {}
        }
    }
}

/// Undoes the chunked transfer coding (RFC 9112, 7.1).
#[derive(Default)]
pub struct Chunks {
    size: Vec<u8>,
    /// Of the current chunk, its line end included.
    left: usize,
    ended: bool,
}

impl Chunks {
    /// Appends what `bytes` carry to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() && !self.ended {
            if self.left > 2 {
                let count = bytes.len().min(self.left - 2);
                out.extend_from_slice(&bytes[..count]);
                self.left -= count;
                bytes = &bytes[count..];
            } else if self.left > 0 {
                self.left -= 1;
                bytes = &bytes[1..];
            } else {
                self.size.push(bytes[0]);
                bytes = &bytes[1..];
                if self.size.ends_with(b"\r\n") {
                    let digits = std::str::from_utf8(&self.size).unwrap().trim_end();
                    let size = usize::from_str_radix(digits, 16).unwrap();
                    self.size.clear();
                    self.left = size + 2;
                    self.ended = size == 0;
                }
            }
        }
    }
}

/// A `$gap`.
#[derive(Clone, Debug)]
pub struct Gap {
    pub channel: String,
    pub reason: String,
    pub after: Option<Id>,
    pub oldest: Option<Id>,
}

/// Something a client has seen.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A stream began; what was sent as `Last-Event-ID`.
    Opened(String),
    /// A `$cursor` with an id.
    Cursor(String),
    /// One without, or a `$busy`.
    Nothing,
    /// An event; its id if it had one of its own.
    Event {
        id: Option<Id>,
        data: String,
    },
    Gap {
        id: Option<Id>,
        gap: Gap,
    },
    /// The stream ended, or was cut off.
    Closed,
}

/// Everything a client has seen, and what follows from it.
#[derive(Default)]
pub struct Log {
    pub seen: Vec<Seen>,
    /// When the first id came: from there on the client can resume. The answer of a gateway that
    /// has no Redis carries none.
    pub opened: Option<Instant>,
    pub streams: usize,
    /// What the next reconnection sends.
    pub last_event_id: String,
    /// When its streams ended.
    pub closed: Vec<Instant>,
    keys: HashSet<String>,
    any_version: bool,
    pub gaps: Vec<Gap>,
    /// How many of them an oracle has found allowed.
    pub judged_gaps: usize,
    /// Number of blocks on the current stream.
    blocks: usize,
}

/// The part of an event's data that names it; what follows only makes it longer.
pub fn key_of(data: &str) -> &str {
    data.split(' ').next().unwrap()
}

impl Log {
    fn take(&mut self, block: Block) {
        let is_whole = block.data.is_some() || self.any_version;
        assert!(is_whole, "a block without data: {block:?}");
        if let Some(id) = &block.id {
            self.last_event_id.clone_from(id);
            self.opened.get_or_insert_with(Instant::now);
        }
        self.blocks += 1;
        if self.blocks == 1 {
            assert!(block.retry.is_some(), "the first block: {block:?}");
        }
        let id = block.id.as_deref();
        let seen = match (block.event.as_deref(), block.data) {
            (Some("$cursor" | "$busy"), _) => match block.id {
                Some(id) => Seen::Cursor(id),
                None => Seen::Nothing,
            },
            (Some("$gap"), Some(data)) => {
                let json: serde_json::Value = serde_json::from_str(&data).unwrap();
                let text = |name: &str| json[name].as_str().map(str::to_owned);
                let gap = Gap {
                    channel: text("channel").unwrap(),
                    reason: text("reason").unwrap(),
                    after: text("after").map(|id| parse_id(&id).unwrap()),
                    oldest: text("oldest").map(|id| parse_id(&id).unwrap()),
                };
                self.gaps.push(gap.clone());
                let id = id.map(|id| parse_id(id).unwrap());
                Seen::Gap { id, gap }
            }
            (_, Some(data)) => {
                self.keys.insert(key_of(&data).to_owned());
                // An event's own id is always bare.
                let id = id.map(|id| parse_id(id).unwrap_or_else(|| panic!("the id {id:?}")));
                Seen::Event { id, data }
            }
            (_, None) => match block.id {
                Some(id) => Seen::Cursor(id),
                None => Seen::Nothing,
            },
        };
        self.seen.push(seen);
    }

    /// Whether the event of this key was received.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The keys of the events, in the order they came.
    pub fn keys(&self) -> Vec<String> {
        self.seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Event { data, .. } => Some(key_of(data).to_owned()),
                _ => None,
            })
            .collect()
    }

    /// Number of events received.
    pub fn events(&self) -> usize {
        self.seen
            .iter()
            .filter(|seen| matches!(seen, Seen::Event { .. }))
            .count()
    }

    /// Whether a stream is open and has had its first block.
    pub fn is_open(&self) -> bool {
        self.blocks > 0 && self.opened.is_some()
    }

    /// Channel and reason of each gap.
    pub fn reasons(&self) -> Vec<(&str, &str)> {
        self.gaps
            .iter()
            .map(|gap| (gap.channel.as_str(), gap.reason.as_str()))
            .collect()
    }
}

/// The gateways that a client knows, shared by the clients, so that one that is started again
/// can be found.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<Vec<SocketAddr>>>);

impl Addresses {
    /// Those of these gateways.
    pub fn of(gateways: &[&Gateway]) -> Self {
        let all = gateways.iter().map(|gateway| gateway.data).collect();
        Self(Arc::new(Mutex::new(all)))
    }

    /// Whatever listens there.
    pub fn at(address: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(vec![address])))
    }

    /// Another one stands in the place of the `number`-th.
    pub fn replace(&self, number: usize, gateway: &Gateway) {
        self.0.lock().unwrap()[number] = gateway.data;
    }

    /// The first of them.
    pub fn first(&self) -> SocketAddr {
        self.nth(0)
    }

    fn nth(&self, attempt: usize) -> SocketAddr {
        let all = self.0.lock().unwrap();
        all[attempt % all.len()]
    }
}

/// What a client owes its completeness to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// What is published after its first stream began.
    SinceOpened,
    /// What is published after this id.
    After(Id),
}

/// What a client asks for, and how.
#[derive(Clone)]
pub struct Plan {
    pub addresses: Addresses,
    pub channels: Vec<String>,
    /// Further query, such as `&history=3`.
    pub query: String,
    pub last_event_id: String,
    pub owed: Owed,
    pub http2: bool,
    /// The receive buffer of its socket: small ones make slow clients.
    pub receive_buffer: Option<u32>,
    /// Begins with the second address, so that clients are spread.
    pub first_address: usize,
    /// The gateways may be of version 0.1.0, whose cursors and heartbeats have no data.
    pub any_version: bool,
}

impl Plan {
    /// These channels of any of these gateways.
    pub fn new(addresses: &Addresses, channels: &[&str]) -> Self {
        Self {
            addresses: addresses.clone(),
            channels: channels
                .iter()
                .map(|channel| (*channel).to_owned())
                .collect(),
            query: String::new(),
            last_event_id: String::new(),
            owed: Owed::SinceOpened,
            http2: false,
            receive_buffer: None,
            first_address: 0,
            any_version: false,
        }
    }

    /// Of one gateway.
    pub fn of(gateway: &Gateway, channels: &[&str]) -> Self {
        Self::new(&Addresses::of(&[gateway]), channels)
    }

    /// Begins with this cursor, and is owed what comes after its position.
    #[must_use]
    pub fn after(mut self, cursor: &str) -> Self {
        cursor.clone_into(&mut self.last_event_id);
        if let Some((event, position)) = parse_cursor(cursor) {
            self.owed = Owed::After(position.unwrap_or(event));
        }
        self
    }

    /// With further query.
    #[must_use]
    pub fn query(mut self, query: &str) -> Self {
        query.clone_into(&mut self.query);
        self
    }

    /// Starts the client, and waits until it has had its first block.
    pub async fn open(self) -> Client {
        let client = self.start();
        client.until("a first block", Log::is_open).await;
        client
    }

    /// Starts the client.
    pub fn start(self) -> Client {
        let state = Arc::new(State::default());
        state.note(|log| {
            log.last_event_id.clone_from(&self.last_event_id);
            log.any_version = self.any_version;
        });
        let (mode, modes) = watch::channel(Mode::default());
        let plan = self.clone();
        let task = tokio::spawn(run(self, Arc::clone(&state), modes));
        Client {
            plan,
            state,
            mode,
            task,
        }
    }

    fn path(&self) -> String {
        let channels: Vec<_> = self
            .channels
            .iter()
            .map(|channel| format!("channel={channel}"))
            .collect();
        format!("/events?{}{}", channels.join("&"), self.query)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mode {
    /// Raised to cut off the current connection.
    epoch: u64,
    away: bool,
    paused: bool,
}

#[derive(Default)]
struct State {
    log: Mutex<Log>,
    changed: Notify,
}

impl State {
    fn note(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.lock().unwrap());
        self.changed.notify_waiters();
    }
}

/// A running client; it ends when dropped.
pub struct Client {
    pub plan: Plan,
    state: Arc<State>,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// What it has seen so far.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.state.log.lock().unwrap()
    }

    /// Waits until its log satisfies `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&Log) -> bool) {
        let wait = async {
            loop {
                let changed = self.state.changed.notified();
                if condition(&self.log()) {
                    return;
                }
                changed.await;
            }
        };
        // A client that has failed says why.
        assert!(
            timeout(DEADLINE, wait).await.is_ok(),
            "not within {DEADLINE:?}: {what} (a client of {:?}, {})",
            self.plan.channels,
            self.summary(),
        );
    }

    /// What is known of it, for a failing test.
    pub fn summary(&self) -> String {
        let log = self.log();
        let last: Vec<_> = log.seen.iter().rev().take(6).collect();
        format!(
            "{} streams, {} events, gaps {:?}, task ended: {}, newest first: {last:?}",
            log.streams,
            log.events(),
            log.gaps,
            self.task.is_finished()
        )
    }

    /// Waits for the event of this key.
    pub async fn has(&self, key: &str) {
        self.until(key, |log| log.has(key)).await;
    }

    /// Cuts its connection off; it comes back at once.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.epoch += 1);
    }

    /// Cuts its connection off; it stays away. Returns what it will come back with.
    pub async fn leave(&self) -> String {
        self.mode.send_modify(|mode| mode.away = true);
        self.until("the client is away", |log| !log.is_open()).await;
        self.log().last_event_id.clone()
    }

    /// Comes back.
    pub fn come_back(&self) {
        self.mode.send_modify(|mode| mode.away = false);
    }

    /// Stops or goes on reading.
    pub fn pause(&self, paused: bool) {
        self.mode.send_modify(|mode| mode.paused = paused);
    }
}

async fn run(plan: Plan, state: Arc<State>, mut modes: watch::Receiver<Mode>) {
    for attempt in plan.first_address.. {
        if modes.wait_for(|mode| !mode.away).await.is_err() {
            return;
        }
        let epoch = modes.borrow().epoch;
        let mut cuts = modes.clone();
        tokio::select! {
            _ = cuts.wait_for(|mode| mode.away || mode.epoch != epoch) => {}
            () = stream(&plan, attempt, &state, modes.clone()) => {}
        }
        state.note(|log| {
            if std::mem::take(&mut log.blocks) > 0 {
                log.seen.push(Seen::Closed);
                log.closed.push(Instant::now());
            }
        });
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

enum Source {
    Http1(TcpStream, Chunks),
    Http2(Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>),
}

/// One stream, to its end.
async fn stream(plan: &Plan, attempt: usize, state: &State, mut modes: watch::Receiver<Mode>) {
    let address = plan.addresses.nth(attempt);
    let cursor = state.log.lock().unwrap().last_event_id.clone();
    let mut body = Vec::new();
    let source = if plan.http2 {
        open_http2(plan, address, &cursor).await
    } else {
        open_http1(plan, address, &cursor, &mut body).await
    };
    let Some(mut source) = source else { return };
    let mut parser = Parser::default();
    let mut buffer = vec![0; 64 << 10];
    let mut is_first = true;
    loop {
        let had = std::mem::take(&mut body);
        if !had.is_empty() {
            state.note(|log| {
                if std::mem::take(&mut is_first) {
                    log.streams += 1;
                    log.seen.push(Seen::Opened(cursor.clone()));
                }
                parser.push(&had, |block| log.take(block));
            });
        }
        if modes.wait_for(|mode| !mode.paused).await.is_err() {
            return;
        }
        match &mut source {
            // A proxy keeps the connection for another request.
            Source::Http1(_, chunks) if chunks.ended => return,
            Source::Http1(socket, chunks) => match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => chunks.push(&buffer[..count], &mut body),
            },
            Source::Http2(stream) => match stream.next().await {
                Some(Ok(bytes)) => body.extend_from_slice(&bytes),
                _ => return,
            },
        }
    }
}

async fn open_http1(
    plan: &Plan,
    address: SocketAddr,
    cursor: &str,
    body: &mut Vec<u8>,
) -> Option<Source> {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = plan.receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let mut socket = socket.connect(address).await.ok()?;
    let header = match cursor {
        "" => String::new(),
        cursor => format!("last-event-id: {cursor}\r\n"),
    };
    let path = plan.path();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = memchr::memmem::find(&head, b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    };
    let text = std::str::from_utf8(&head[..end])
        .unwrap()
        .to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 200 "), "{text}");
    if text.contains("\r\ncontent-length:") {
        // Retry and close: nothing but a reconnection time.
        return None;
    }
    let mut chunks = Chunks::default();
    chunks.push(&head[end..], body);
    Some(Source::Http1(socket, chunks))
}

async fn open_http2(plan: &Plan, address: SocketAddr, cursor: &str) -> Option<Source> {
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let mut request = client.get(format!("http://{address}{}", plan.path()));
    if !cursor.is_empty() {
        request = request.header("last-event-id", cursor);
    }
    let response = request.send().await.ok()?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    Some(Source::Http2(Box::pin(response.bytes_stream())))
}
