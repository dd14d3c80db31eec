//! Reading what a subscription has missed.
//!
//! Reads go over the subscriber connection itself: they must come from the very server that the
//! subscription is with. Redis closes a subscriber whose answers and messages together exceed
//! `client-output-buffer-limit pubsub` (32 MiB, or 8 MiB for a minute), so a [`ReadBudget`] bounds
//! what all reads under way may answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::driver::ReadRequest;
use super::functions::{Refusal, refusal};
use super::history::{HistoryReader, MAX_PAGE_BYTES, PageLimit};
use crate::continuity::{HistoryPage, KeptEvent, PageSize};
use crate::hub::HistoryRead;
use crate::protocol::{ChannelName, EventId};

/// Reads under way at once: enough to keep Redis busy, few enough that probes and subscriptions
/// get through. The [`ReadBudget`] bounds their bytes.
const MAX_READS: usize = 64;

/// The first page of a channel: most channels have missed little or nothing.
const FIRST_PAGE_BYTES: usize = 64 << 10;

/// Half of Redis' soft limit for subscribers.
const MAX_BUDGET_BYTES: usize = 4 << 20;

/// How many bytes the reads under way may answer together. A read of a single event that is larger
/// than that is sent when no other read is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBudget {
    bytes: usize,
    /// Redis said that it closes connections for their output buffer: its limit is lower.
    is_limited: bool,
}

impl Default for ReadBudget {
    fn default() -> Self {
        Self {
            bytes: MAX_BUDGET_BYTES,
            is_limited: false,
        }
    }
}

impl ReadBudget {
    /// Redis closed the connection while reads were under way: its limit may be lower. With every
    /// further loss less is asked for, down to one event at a time.
    pub(super) fn note_closed(&mut self) {
        self.bytes = (self.bytes / 2).max(FIRST_PAGE_BYTES);
    }

    /// Redis counts connections that it closed for their output buffer.
    pub(super) fn note_limited(&mut self) {
        self.is_limited = true;
    }

    /// Everything was read. What was lost before may have been a failure of the network.
    pub(super) fn note_done(&mut self) {
        if !self.is_limited {
            self.bytes = (self.bytes * 2).min(MAX_BUDGET_BYTES);
        }
    }

    fn limit(self, size: PageSize) -> PageLimit {
        let more_bytes = (self.bytes / 4).clamp(FIRST_PAGE_BYTES, MAX_PAGE_BYTES);
        let (bytes, min_events) = match size {
            PageSize::First => (FIRST_PAGE_BYTES, 0),
            PageSize::Next => (more_bytes, 0),
            PageSize::OneEvent => (more_bytes, 1),
        };
        PageLimit { bytes, min_events }
    }
}

/// For everything that a connection has missed: a stream that is opened meanwhile waits. A hundred
/// thousand channels take some ten seconds. What is not read by then is given up.
const DEADLINE: Duration = Duration::from_secs(60);

/// A read that Redis refuses is tried so often, with a pause.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// A page that was read; `None`: Redis does not give it.
pub(super) type ReadPage = (ChannelName, Option<HistoryPage<KeptEvent>>);

/// Reads over one connection.
pub(super) struct Backfill {
    source: Source,
    waiting: VecDeque<ReadRequest>,
    running: FuturesUnordered<BoxFuture<'static, RedisResult<ReadPage>>>,
    /// When what is waited for is given up; set by the first read.
    deadline: Option<Instant>,
}

impl Backfill {
    pub(super) fn new(
        connection: MultiplexedConnection,
        reader: HistoryReader,
        budget: ReadBudget,
    ) -> Self {
        Self {
            source: Source {
                connection,
                reader,
                budget,
                bytes: Arc::new(Semaphore::new(budget.bytes)),
            },
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            deadline: None,
        }
    }

    /// Sends this read when its turn comes.
    pub(super) fn push(&mut self, request: ReadRequest) {
        self.waiting.push_back(request);
    }

    /// Nothing is missing any more.
    pub(super) fn finish(&mut self) {
        self.deadline = None;
    }

    /// Waits for the next page; `None`: no read is under way.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn next(&mut self) -> Option<RedisResult<ReadPage>> {
        while self.running.len() < MAX_READS
            && let Some(request) = self.waiting.pop_front()
        {
            let deadline = *self
                .deadline
                .get_or_insert_with(|| Instant::now() + DEADLINE);
            let source = self.source.clone();
            self.running.push(source.read(request, deadline).boxed());
        }
        self.running.next().await
    }
}

/// Where a read goes.
#[derive(Clone)]
struct Source {
    connection: MultiplexedConnection,
    reader: HistoryReader,
    budget: ReadBudget,
    /// A permit for each byte that the reads under way may answer.
    bytes: Arc<Semaphore>,
}

impl Source {
    async fn read(mut self, request: ReadRequest, deadline: Instant) -> RedisResult<ReadPage> {
        let ReadRequest {
            channel,
            cursor,
            from,
            size,
        } = request;
        let limit = self.budget.limit(size);
        let read = HistoryRead::From {
            id: from,
            preceding: 0,
        };
        for attempt in 1..=ATTEMPTS {
            let reading = async {
                // Held until the answer is there. Fails only when the semaphore is closed: never.
                let _permit = self.bytes.acquire_many(self.permits(limit)).await;
                let connection = &mut self.connection;
                self.reader.read(connection, &channel, read, limit).await
            };
            match timeout_at(deadline, reading).await {
                Ok(Ok(page)) => return Ok((channel, Some(page))),
                Ok(Err(error)) if is_lost(&error) => return Err(error),
                Ok(Err(error)) => {
                    tracing::debug!(%channel, %cursor, %error, attempt, "a history was not read");
                }
                Err(_) => break,
            }
            if attempt < ATTEMPTS {
                sleep(PAUSE).await;
            }
        }
        Ok((channel, None))
    }

    /// All permits for a page that is larger than the budget.
    fn permits(&self, limit: PageLimit) -> u32 {
        let bytes = self.reader.max_answer_bytes(limit).min(self.budget.bytes);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// Where the library keeps which ids were issued.
pub(super) fn state_key(prefix: &str) -> String {
    format!("{prefix}$state")
}

/// The newest id issued; `None` where there is none or it may not be read.
///
/// # Errors
/// When Redis does not tell for now. That says nothing of ids: what was missed is not given up for it.
pub(super) async fn read_state(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> RedisResult<Option<EventId>> {
    newest_id(redis::cmd("GET").arg(key).query_async(connection).await)
}

fn newest_id(state: RedisResult<Option<Vec<u8>>>) -> RedisResult<Option<EventId>> {
    match state {
        Ok(state) => Ok(state.and_then(|state| {
            let newest = state.split(|byte| *byte == b' ').next()?;
            std::str::from_utf8(newest).ok()?.parse().ok()
        })),
        Err(error)
            if matches!(
                refusal(&error),
                Some(Refusal::Forbidden | Refusal::NotAHistory)
            ) =>
        {
            tracing::debug!(%error, "the newest id cannot be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_lost(error: &RedisError) -> bool {
    error.is_unrecoverable_error() && !error.is_timeout()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise everybody would be told of a gap that may not be.
    #[test]
    fn a_newest_id_that_is_not_told_is_not_none() {
        let refused = |text: &str| {
            let value = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
            newest_id(Err(value.extract_error().unwrap_err()))
        };
        for text in [
            "NOPERM No permissions to access a key",
            "WRONGTYPE Operation against",
        ] {
            assert_eq!(refused(text), Ok(None), "{text}");
        }
        for text in [
            "LOADING Redis is loading",
            "BUSY Redis is busy",
            "MASTERDOWN Link",
        ] {
            assert!(refused(text).is_err(), "{text}");
        }
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert!(newest_id(Err(late.into())).is_err());
        let told = |text: &str| newest_id(Ok(Some(text.into())));
        assert_eq!(told("5-1 x"), Ok(Some(EventId::new(5, 1))));
        assert_eq!(told("nonsense"), Ok(None));
        assert_eq!(newest_id(Ok(None)), Ok(None));
    }
}
