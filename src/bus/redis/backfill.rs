//! Reading what a subscription has missed.
//!
//! Reads go over the subscriber connection itself: they must come from the very server that the
//! subscription is with. Redis closes a subscriber whose answers and messages together exceed
//! `client-output-buffer-limit pubsub` (32 MiB, or 8 MiB for a minute), so a [`ReadBudget`] bounds
//! what all reads under way may answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::functions::{Refusal, refusal};
use super::history::{HistoryReader, MAX_PAGE_BYTES, PageLimit};
use crate::bus::chain::{RecoverFrom, recover};
use crate::hub::{GapNotice, HistoryRead};
use crate::protocol::{ChannelName, Cursor, EventId, GapReason, HistoryPage, KeptEvent, Retention};

/// Reads under way at once: enough to keep Redis busy, few enough that probes and subscriptions
/// get through. The [`ReadBudget`] bounds their bytes.
const MAX_READS: usize = 64;

/// The first page of a channel: most channels have missed little or nothing.
const FIRST_PAGE_BYTES: usize = 64 << 10;
const FIRST_PAGE: PageLimit = PageLimit {
    bytes: FIRST_PAGE_BYTES,
    min_events: 0,
};

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

    fn page_bytes(self) -> usize {
        (self.bytes / 4).clamp(FIRST_PAGE_BYTES, MAX_PAGE_BYTES)
    }
}

/// What may be recovered after one loss, all channels together: it waits in memory until
/// everything is read and in order. What is beyond it is told as lost.
const MOST_BYTES: usize = 64 << 20;

/// For all channels together: a stream that is opened meanwhile waits. Ten thousand channels take
/// about a second.
const BACKFILL_DEADLINE: Duration = Duration::from_secs(10);

/// A read that Redis refuses is tried so often, with a pause.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Where a channel's subscription was interrupted.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) channel: ChannelName,
    pub(super) cursor: Cursor,
}

/// What was read of a channel.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) channel: ChannelName,
    /// In order.
    pub(super) items: Vec<Recovered>,
    /// The newest event of the channel that is certain, when all is handed on.
    pub(super) seen: Option<EventId>,
    pub(super) retention: Option<Retention>,
}

/// A piece of what was missed.
#[derive(Debug)]
pub(super) enum Recovered {
    Event(KeptEvent),
    Gap(GapNotice, EventId),
}

impl Recovered {
    /// Its place among those of its channel.
    pub(super) fn id(&self) -> EventId {
        match self {
            Self::Event(event) => event.id,
            Self::Gap(_, id) => *id,
        }
    }

    /// The same, a gap told with this id.
    pub(super) fn told_at(self, told: EventId) -> Self {
        match self {
            Self::Gap(notice, id) => {
                let told = Some(told);
                Self::Gap(GapNotice { id: told, ..notice }, id)
            }
            event @ Self::Event(_) => event,
        }
    }
}

impl Recovery {
    pub(super) fn has_gap(&self) -> bool {
        let is_gap = |item: &Recovered| matches!(item, Recovered::Gap(..));
        self.items.iter().any(is_gap)
    }
}

/// What is known when a connection is about to be served.
#[derive(Debug, Default)]
pub(super) struct Started {
    /// Everything up to this id was read; what is newer arrives. `None`: there are no ids.
    pub(super) bound: Option<EventId>,
    pub(super) recoveries: Vec<Recovery>,
}

/// Reads over one connection.
#[derive(Clone)]
pub(super) struct Backfill {
    connection: MultiplexedConnection,
    reader: HistoryReader,
    lag_bound: Duration,
    budget: ReadBudget,
    /// A permit for each byte that the reads under way may answer.
    bytes: Arc<Semaphore>,
}

impl Backfill {
    pub(super) fn new(
        connection: MultiplexedConnection,
        reader: HistoryReader,
        lag_bound: Duration,
        budget: ReadBudget,
    ) -> Self {
        Self {
            connection,
            reader,
            lag_bound,
            budget,
            bytes: Arc::new(Semaphore::new(budget.bytes)),
        }
    }

    /// Reads what was missed before everything was subscribed again.
    ///
    /// # Errors
    /// When the connection is lost: then nothing is told, and the next one begins again.
    pub(super) async fn start(mut self, missed: Vec<Missed>) -> RedisResult<Started> {
        let key = state_key(self.reader.prefix());
        let Some(bound) = read_state(&mut self.connection, &key).await? else {
            return Ok(Started {
                bound: None,
                recoveries: Vec::new(),
            });
        };
        let bytes_left = AtomicUsize::new(MOST_BYTES);
        let deadline = Instant::now() + BACKFILL_DEADLINE;
        let recoveries = stream::iter(missed)
            .map(|missed| self.channel(missed, bound, &bytes_left, deadline))
            .buffer_unordered(MAX_READS)
            .try_collect()
            .await?;
        Ok(Started {
            bound: Some(bound),
            recoveries,
        })
    }

    /// Reads a hole that ends at `last`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn fill(self, missed: Missed, last: EventId) -> RedisResult<Recovery> {
        let bytes_left = AtomicUsize::new(MOST_BYTES);
        let deadline = Instant::now() + BACKFILL_DEADLINE;
        self.channel(missed, last, &bytes_left, deadline).await
    }

    /// Reads how long events last, and which is the oldest that is still there.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn look(
        self,
        channel: ChannelName,
        id: EventId,
    ) -> RedisResult<Option<HistoryPage<KeptEvent>>> {
        let deadline = Instant::now() + BACKFILL_DEADLINE;
        // What is asked for is no event of it.
        self.page(&channel, id, FIRST_PAGE, deadline).await
    }

    async fn channel(
        &self,
        missed: Missed,
        last: EventId,
        bytes_left: &AtomicUsize,
        deadline: Instant,
    ) -> RedisResult<Recovery> {
        let Missed { channel, cursor } = missed;
        let seen = (cursor.event() > EventId::ZERO).then(|| cursor.event());
        let mut recovery = Recovery {
            channel,
            items: Vec::new(),
            seen,
            retention: None,
        };
        let begin = cursor;
        let mut at = RecoverFrom::start(cursor, self.lag_bound);
        let mut limit = FIRST_PAGE;
        loop {
            let cursor = at.cursor;
            let page = self.page(&recovery.channel, at.from, limit, deadline);
            let Some(page) = page.await? else {
                recovery.lose(cursor, last);
                return Ok(recovery);
            };
            // The next event alone is larger than this page could be.
            let is_too_small = !page.complete && page.events.is_empty() && limit.min_events == 0;
            limit = PageLimit {
                bytes: self.budget.page_bytes(),
                min_events: u8::from(is_too_small),
            };
            if is_too_small {
                continue;
            }
            recovery.retention = Some(page.retention);
            let found = recover(at, &page, last, self.lag_bound);
            let events = found.events;
            if let Some(reason) = found.gap {
                let id = events.first().map_or(last, |first| first.id.pred());
                let notice = GapNotice {
                    reason,
                    after: Some(begin.position()),
                    oldest: page.oldest.map(|oldest| oldest.id),
                    id: Some(id),
                    complete_after: Some(id),
                };
                recovery.items = vec![Recovered::Gap(notice, id)];
                recovery.seen = None;
            }
            let bytes: usize = events.iter().map(cost_bytes).sum();
            if !spend(bytes_left, bytes) {
                recovery.lose(cursor, last);
                return Ok(recovery);
            }
            if let Some(newest) = events.last() {
                recovery.seen = Some(newest.id);
            }
            recovery
                .items
                .extend(events.into_iter().map(Recovered::Event));
            match found.goes_on {
                Some(next) => at = next,
                None => return Ok(recovery),
            }
        }
    }

    /// A page, or `None` where Redis does not give it.
    async fn page(
        &self,
        channel: &ChannelName,
        from: EventId,
        limit: PageLimit,
        deadline: Instant,
    ) -> RedisResult<Option<HistoryPage<KeptEvent>>> {
        let mut connection = self.connection.clone();
        let read = HistoryRead::From {
            id: from,
            preceding: 0,
        };
        for attempt in 1..=ATTEMPTS {
            let reading = async {
                // Held until the answer is there. Fails only when the semaphore is closed: never.
                let _permit = self.bytes.acquire_many(self.permits(limit)).await;
                self.reader
                    .read(&mut connection, channel, read, limit)
                    .await
            };
            match timeout_at(deadline, reading).await {
                Ok(Ok(page)) => return Ok(Some(page)),
                Ok(Err(error)) if is_lost(&error) => return Err(error),
                Ok(Err(error)) => {
                    tracing::debug!(%channel, %error, attempt, "a history was not read");
                }
                Err(_) => return Ok(None),
            }
            if attempt < ATTEMPTS {
                sleep(PAUSE).await;
            }
        }
        Ok(None)
    }

    /// All permits for a page that is larger than the budget.
    fn permits(&self, limit: PageLimit) -> u32 {
        let bytes = self.reader.max_answer_bytes(limit).min(self.budget.bytes);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

impl Recovery {
    /// What follows `cursor`, up to `last`, is given up. One notice a channel is enough.
    fn lose(&mut self, cursor: Cursor, last: EventId) {
        self.seen = None;
        let told_at_end = matches!(self.items.last(), Some(Recovered::Gap(_, id)) if *id >= last);
        if !told_at_end {
            let notice = GapNotice {
                reason: GapReason::Lost,
                after: Some(cursor.position()),
                oldest: None,
                id: Some(last),
                complete_after: Some(last),
            };
            self.items.push(Recovered::Gap(notice, last));
        }
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

/// Takes `bytes` of what is left, unless that is less.
fn spend(left: &AtomicUsize, bytes: usize) -> bool {
    let take = |left: usize| left.checked_sub(bytes);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
}

fn cost_bytes(event: &KeptEvent) -> usize {
    let payload_bytes = event.event.as_ref().map_or(0, |event| event.payload_len());
    payload_bytes + size_of::<KeptEvent>()
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
