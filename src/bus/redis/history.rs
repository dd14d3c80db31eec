//! Reading histories, and answering the shards that ask for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, RedisError, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::connect::COMMAND_DEADLINE;
use super::functions::{Refusal, call_read_only, refusal};
use super::keeping::Support;
use super::pool::{CommandPool, POOL_SIZE};
use crate::bus::kept_event;
use crate::continuity::{ChannelEnd, HistoryPage, Issued, KeptEvent, Link, Linked, Retention};
use crate::hub::{HistoryError, HistoryRead, HistoryRequest};
use crate::protocol::{ChannelName, EndReason, EventId, Frame, decode_frame};
use crate::telemetry::BusMetrics;
use crate::telemetry::occurrences::{EntryUnreadable, HistoryReadSent};

/// One read: so much that a long history takes few of them, so little that none holds Redis up
/// for more than some milliseconds.
const MAX_PAGE_EVENTS: usize = 1024;
pub(super) const MAX_PAGE_BYTES: usize = 1 << 20;

/// How much one read may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageLimit {
    pub(super) bytes: usize,
    /// So many events are answered even if they exceed the bytes. Without any, a page that is not
    /// complete may be empty.
    pub(super) min_events: u8,
}

/// What stands in a frame beside the data, at the most.
const FRAME_OVERHEAD_BYTES: usize = 32 << 10;

/// Requests taken from the queue before their reads begin.
const MOST_WAITING: usize = 256;

/// How histories are read.
#[derive(Clone)]
pub(super) struct HistoryReader {
    prefix: String,
    max_event_bytes: usize,
    metrics: BusMetrics,
    /// What was found that cannot be read, by hash: it is there at the next read too.
    unreadable: Arc<Mutex<HashSet<u64>>>,
}

/// So many of them are known. Beyond that they are told again.
const MOST_UNREADABLE: usize = 1024;

/// What the answer says of whether Redis may drop histories, where the channel's key holds
/// something else than a history.
const NO_HISTORY: i64 = 2;

impl HistoryReader {
    pub(super) fn new(prefix: &str, max_event_bytes: usize, metrics: &BusMetrics) -> Self {
        Self {
            prefix: prefix.to_owned(),
            max_event_bytes,
            metrics: metrics.clone(),
            unreadable: Arc::default(),
        }
    }

    /// Reads a part of a channel's history.
    pub(super) async fn read(
        &self,
        connection: &mut impl ConnectionLike,
        channel: &ChannelName,
        read: HistoryRead,
        limit: PageLimit,
    ) -> RedisResult<HistoryPage<KeptEvent>> {
        let mut command = call_read_only("fanfare_history", &format!("{}{channel}", self.prefix));
        match read {
            HistoryRead::From { id, preceding } => {
                command.arg("from").arg(id.to_string()).arg(preceding);
            }
            HistoryRead::Newest(count) => {
                command.arg("newest").arg(count);
            }
        }
        command
            .arg(MAX_PAGE_EVENTS)
            .arg(limit.bytes)
            .arg(limit.min_events);
        HistoryReadSent.emit(&self.metrics);
        let answer = command.query_async(connection).await?;
        self.page(channel, answer)
    }

    /// The limit of reads for clients: a replay that begins with the last event its client knows
    /// needs the event after it, too.
    fn client_limit(&self) -> PageLimit {
        let two_events = 2 * (self.max_event_bytes + FRAME_OVERHEAD_BYTES);
        PageLimit {
            bytes: MAX_PAGE_BYTES.max(two_events),
            min_events: 2,
        }
    }

    /// The most bytes that a read with this limit may answer.
    pub(super) fn max_answer_bytes(&self, limit: PageLimit) -> usize {
        let event_bytes = self.max_event_bytes + FRAME_OVERHEAD_BYTES;
        limit.bytes.max(usize::from(limit.min_events) * event_bytes)
    }

    /// `last, epoch, now_ms, ttl_ms, old_ttl_ms, ttl_since, evictable, oldest id, its prev, start,
    /// complete, frame…`
    fn page(
        &self,
        channel: &ChannelName,
        answer: Vec<Value>,
    ) -> RedisResult<HistoryPage<KeptEvent>> {
        let mut values = Values(answer.into_iter());
        let (last, epoch) = (values.id()?, values.id()?);
        let now_ms = values.next()?;
        let ttl = values.milliseconds()?;
        let old_ttl = values.milliseconds()?;
        let ttl_since = values.id()?.unwrap_or_default();
        let evictable: i64 = values.next()?;
        if evictable == NO_HISTORY {
            // Nothing is known of such a channel's history: like one that may be dropped at any
            // time, its absence proves nothing, and its live events go on.
            tracing::warn!(
                %channel,
                "the channel's key in Redis holds something that is no history (WRONGTYPE): its \
                 clients get a $gap when they come back"
            );
        }
        let (oldest, oldest_prev) = (values.id()?, values.id()?);
        let from = values.id()?.unwrap_or_default();
        let complete = values.flag()?;
        let last_event = values.0.as_slice().last().and_then(end_of);
        let events: Vec<_> = values
            .0
            .filter_map(|frame| self.event(channel, frame))
            .collect();
        let ended = last_event.or_else(|| events.last().and_then(Linked::channel_end));
        Ok(HistoryPage {
            now_ms,
            issued: last.zip(epoch).map(|(last, epoch)| Issued { epoch, last }),
            retention: Retention {
                ttl,
                old_ttl,
                ttl_since,
            },
            evictable: evictable != 0,
            oldest: oldest.map(|id| Link {
                id,
                prev: oldest_prev.unwrap_or_default(),
            }),
            from,
            events,
            complete,
            ended: ended.filter(|_| complete),
        })
    }

    fn event(&self, channel: &ChannelName, frame: Value) -> Option<KeptEvent> {
        let Value::BulkString(bytes) = frame else {
            return None;
        };
        let entry = Bytes::from(bytes);
        let fault = match decode_frame(entry.clone(), self.max_event_bytes) {
            Ok(Frame::Event(frame)) => return Some(kept_event(frame).0),
            Ok(Frame::Probe { .. } | Frame::Revocation(_)) => "it is no event".to_owned(),
            Err(fault) => fault.to_string(),
        };
        if self.is_new(channel, &entry) {
            let fault = &fault;
            EntryUnreadable { channel, fault }.emit(&self.metrics);
        }
        None
    }

    /// Whether this is told for the first time.
    fn is_new(&self, channel: &ChannelName, entry: &Bytes) -> bool {
        let mut hasher = DefaultHasher::new();
        (channel, entry).hash(&mut hasher);
        let mut known = self.unreadable.lock();
        if known.len() == MOST_UNREADABLE {
            known.clear();
        }
        known.insert(hasher.finish())
    }
}

/// The end of a channel, where the answer is complete without its last event: `[id, reason]`.
fn end_of(value: &Value) -> Option<ChannelEnd> {
    let Value::Array(end) = value else {
        return None;
    };
    let text = |at| redis::from_redis_value_ref::<String>(end.get(at)?).ok();
    Some(ChannelEnd {
        id: text(0)?.parse().ok()?,
        reason: EndReason::read(&text(1)?),
    })
}

/// The values of an answer, one after the other.
struct Values(std::vec::IntoIter<Value>);

impl Values {
    fn next<T: FromRedisValue>(&mut self) -> RedisResult<T> {
        let value = self.0.next().unwrap_or(Value::Nil);
        Ok(redis::from_redis_value(value)?)
    }

    /// An id, or an empty text where there is none.
    fn id(&mut self) -> RedisResult<Option<EventId>> {
        let text: String = self.next()?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            let kind = redis::ErrorKind::UnexpectedReturnType;
            RedisError::from((kind, "an answer of fanfare_history holds no id", text))
        })
    }

    fn milliseconds(&mut self) -> RedisResult<Duration> {
        Ok(Duration::from_millis(self.next()?))
    }

    fn flag(&mut self) -> RedisResult<bool> {
        let value: i64 = self.next()?;
        Ok(value != 0)
    }
}

type Key = (ChannelName, HistoryRead);
type Answer = Result<Arc<HistoryPage<KeptEvent>>, HistoryError>;
type Reply = oneshot::Sender<Answer>;

/// Answers the shards' requests with reads over the pool.
pub(super) struct HistoryService {
    pub(super) pool: CommandPool,
    pub(super) reader: HistoryReader,
    pub(super) support: Arc<Support>,
    /// What was read is told before it is answered.
    pub(super) notes: mpsc::Sender<ReadNote>,
}

/// What a read for a client tells of a channel: the places of its events.
pub(super) type ReadNote = (ChannelName, HistoryPage<Link>);

/// The requests that wait for an answer.
#[derive(Default)]
struct Requests {
    /// In the order they came, each key once.
    order: VecDeque<Key>,
    waiting: HashMap<Key, Vec<Reply>>,
    /// Whose read is under way. Who asks meanwhile waits for the next one: a read that has begun
    /// may be older than what the client has seen.
    running: HashMap<Key, Vec<Reply>>,
}

impl Requests {
    fn add(&mut self, request: HistoryRequest) {
        let key = (request.channel, request.read);
        let replies = self.waiting.entry(key.clone()).or_default();
        if replies.is_empty() {
            self.order.push_back(key);
        }
        replies.push(request.reply);
    }

    /// The next read, unless enough are under way. Identical requests share it.
    fn start(&mut self) -> Option<Key> {
        if self.running.len() >= POOL_SIZE {
            return None;
        }
        let at = self
            .order
            .iter()
            .position(|key| !self.running.contains_key(key))?;
        let key = self.order.remove(at)?;
        let replies = self.waiting.remove(&key)?;
        self.running.insert(key.clone(), replies);
        Some(key)
    }

    fn finish(&mut self, key: &Key, answer: &Answer) {
        for reply in self.running.remove(key).into_iter().flatten() {
            // Who no longer waits has gone.
            let _ = reply.send(answer.clone());
        }
    }
}

impl HistoryService {
    /// Answers until the shards are gone.
    pub(super) async fn run(self, mut asked: mpsc::Receiver<HistoryRequest>) {
        let mut requests = Requests::default();
        let mut reads: FuturesUnordered<BoxFuture<'_, (Key, Answer)>> = FuturesUnordered::new();
        loop {
            while let Some(key) = requests.start() {
                let read = async {
                    let answer = self.read(&key.0, key.1).await;
                    (key, answer)
                };
                reads.push(read.boxed());
            }
            tokio::select! {
                request = asked.recv(), if requests.order.len() < MOST_WAITING => {
                    match request {
                        Some(request) => requests.add(request),
                        None => return,
                    }
                }
                Some((key, answer)) = reads.next() => requests.finish(&key, &answer),
            }
        }
    }

    async fn read(&self, channel: &ChannelName, read: HistoryRead) -> Answer {
        if !self.support.is_ready() {
            return Err(HistoryError::Unsupported);
        }
        let reading = timeout(COMMAND_DEADLINE, async {
            let pooled = self.pool.get().await;
            let mut connection = pooled.map_err(HistoryError::Unavailable)?;
            let limit = self.reader.client_limit();
            let page = self
                .reader
                .read(&mut *connection, channel, read, limit)
                .await;
            page.map_err(|error| match refusal(&error) {
                Some(Refusal::Forbidden) => HistoryError::Unsupported,
                Some(Refusal::Missing) => {
                    self.support.note_missing();
                    HistoryError::Unavailable(error.to_string())
                }
                _ => HistoryError::Unavailable(error.to_string()),
            })
        });
        let timed_out = |_| HistoryError::Unavailable("no answer in time".into());
        let page = reading.await.map_err(timed_out)??;
        // Fails only when the gateway is stopping.
        let _ = self
            .notes
            .send((channel.clone(), page.map(Linked::link)))
            .await;
        Ok(Arc::new(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{DropReason, Metrics};

    fn request(channel: &str) -> (HistoryRequest, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let request = HistoryRequest {
            channel: channel.parse().unwrap(),
            read: HistoryRead::Newest(1),
            reply,
        };
        (request, answer)
    }

    #[test]
    fn identical_requests_share_a_read_that_has_not_begun() {
        let mut requests = Requests::default();
        let (one, mut first) = request("a");
        let (two, mut second) = request("a");
        requests.add(one);
        requests.add(two);
        let key = requests.start().unwrap();
        assert!(requests.start().is_none());
        // It may be newer than what is being read.
        let (three, mut third) = request("a");
        requests.add(three);
        assert!(requests.start().is_none());
        requests.finish(&key, &Err(HistoryError::Unsupported));
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
        assert!(third.try_recv().is_err());
        assert_eq!(requests.start(), Some(key));
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_counted_once() {
        let metrics = Metrics::new(vec![Arc::default()], 1).unwrap().bus;
        let reader = HistoryReader::new("sse:", 1 << 20, &metrics);
        let channel = |name: &str| name.parse::<ChannelName>().unwrap();
        let read = |name: &str, entry: &[u8]| {
            let entry = Value::BulkString(entry.to_vec());
            assert!(reader.event(&channel(name), entry).is_none());
            metrics.dropped(DropReason::Frame).get()
        };
        assert_eq!(read("a", b"junk"), 1);
        // At the next read, of the same reader or of a copy.
        assert_eq!(read("a", b"junk"), 1);
        assert_eq!(reader.clone().unreadable.lock().len(), 1);
        assert_eq!(read("a", b"other"), 2);
        assert_eq!(read("b", b"junk"), 3);
        for number in 0..MOST_UNREADABLE * 2 {
            read("a", number.to_string().as_bytes());
        }
        assert!(reader.unreadable.lock().len() <= MOST_UNREADABLE);
    }

    #[test]
    fn only_so_many_reads_are_under_way() {
        let mut requests = Requests::default();
        for number in 0..POOL_SIZE * 2 {
            requests.add(request(&format!("c{number}")).0);
        }
        let started = std::iter::from_fn(|| requests.start()).count();
        assert_eq!(started, POOL_SIZE);
    }
}
