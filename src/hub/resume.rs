//! Opening a stream where its client left off, and replaying what it missed.
//!
//! What is decided is in [`crate::continuity::Replay`]; here is who waits for what. A stream is opened with
//! the first part of its replay. Unless that was all, a task of its own goes on: it sends a part,
//! waits until the client has taken it, and sends the next, until the stream joins the live
//! events.

use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

use super::HistoryError;
use super::fanout::encoded::EncodedEvent;
use super::fanout::mailbox::SlowClientPolicy;
use super::fanout::outgoing::{KeptSpan, Loss, Origin, Parcel};
use super::reads::Page;
use super::request::{Start, StreamRequest};
use super::session::Session;
use super::state::Hub;
use super::stats::{CloseReason, ResumeOutcome, ResumeSource};
use super::subscriber::{ChannelKey, Subscriber};
use crate::continuity::{Gap, Part, Replay, Step, View};
use crate::protocol::{Cursor, EndReason, EventId, GapReason};

/// Between attempts to read a history that cannot be read now.
pub(super) const READ_AGAIN: Duration = Duration::from_millis(250);

/// Between looks at whether this replica has seen what a client has from another: the first, then
/// twice as long each time, up to [`READ_AGAIN`].
const CATCH_UP: Duration = Duration::from_millis(20);

/// The beginning of a stream.
pub(super) struct Opening {
    /// What the first block tells: where the client is before the part.
    pub(super) cursor: Option<Cursor>,
    pub(super) part: Part<EncodedEvent>,
    /// What is to follow the part, unless it ends live.
    pub(super) replay: Replay,
    /// All channels have ended, and the client has had all of them: the gravest of their reasons.
    pub(super) is_over: Option<EndReason>,
}

impl Hub {
    /// Waits until the channels are active and it is known what the client missed. Nothing passes
    /// between that moment and the return.
    pub(super) async fn begin(
        self: &Rc<Self>,
        keys: &[ChannelKey],
        request: &StreamRequest,
        session: Option<&Session>,
    ) -> Result<Opening, HistoryError> {
        self.all_active(keys).await;
        let lag_bound = self.settings.lag_bound;
        let counted = request.counted;
        match request.start {
            Start::Live => Ok(self.begin_now(keys)),
            Start::Unknown => self.begin_unknown(keys, counted, session).await,
            Start::Beginning => {
                let mut replay = Replay::from_start(keys.len(), lag_bound).counting(counted);
                let cursor = replay.cursor();
                let part = self
                    .next_part(&mut replay, keys, Vec::new(), session)
                    .await?;
                Ok(Opening {
                    cursor: part.gaps.is_empty().then_some(cursor),
                    part,
                    replay,
                    is_over: None,
                })
            }
            Start::After(cursor) => {
                let mut replay = Replay::resume(cursor, keys.len(), lag_bound).counting(counted);
                let part = self
                    .next_part(&mut replay, keys, Vec::new(), session)
                    .await?;
                let outcome = if part.gaps.is_empty() {
                    ResumeOutcome::Complete
                } else {
                    ResumeOutcome::Gap
                };
                let source = if part.from_history {
                    ResumeSource::History
                } else {
                    ResumeSource::Tail
                };
                self.stats.count_resume(outcome, source);
                let reasons = part.ends.iter().map(|end| end.end.reason);
                Ok(Opening {
                    cursor: part.gaps.is_empty().then_some(cursor),
                    is_over: reasons.max().filter(|_| part.is_over),
                    part,
                    replay,
                })
            }
            Start::Newest(count) => {
                let losses = self.losses.get();
                let pages = match self.newest_pages(keys, count).await {
                    // Without kept events there is nothing to begin with.
                    Err(HistoryError::Unsupported) => {
                        self.all_active(keys).await;
                        return Ok(self.begin_now(keys));
                    }
                    pages => pages?,
                };
                if losses != self.losses.get() {
                    // Redis may be another one by now: what was read says nothing of it.
                    return Err(HistoryError::Unavailable("the bus was lost".into()));
                }
                {
                    let mut channels = self.channels.borrow_mut();
                    for (key, page) in keys.iter().zip(pages.iter().flatten()) {
                        channels.extend_tail(*key, page);
                    }
                }
                let read = pages.iter().flatten().map(|page| &**page);
                let may_have = |event: &EncodedEvent| event.is_for(session);
                let mut replay = Replay::newest(read, may_have, lag_bound).counting(counted);
                let cursor = replay.cursor();
                let part = self.next_part(&mut replay, keys, pages, session).await?;
                Ok(Opening {
                    cursor: (cursor.position() > EventId::ZERO).then_some(cursor),
                    part,
                    replay,
                    is_over: None,
                })
            }
        }
    }

    /// The beginning of a stream that has no past.
    fn begin_now(&self, keys: &[ChannelKey]) -> Opening {
        let seen = self.positions.borrow().newest();
        let position = seen.unwrap_or_default();
        Opening {
            cursor: seen.map(Cursor::fresh),
            part: Part::live(Cursor::fresh(position)),
            replay: Replay::fresh(position, keys.len(), self.settings.lag_bound),
            is_over: None,
        }
    }

    /// The beginning of a stream whose past means nothing here.
    async fn begin_unknown(
        self: &Rc<Self>,
        keys: &[ChannelKey],
        counted: usize,
        session: Option<&Session>,
    ) -> Result<Opening, HistoryError> {
        let seen = self.positions.borrow().newest().unwrap_or_default();
        let cursor = Cursor::fresh(seen);
        let mut replay =
            Replay::resume(cursor, keys.len(), self.settings.lag_bound).counting(counted);
        let mut part = if seen == EventId::ZERO {
            Part::live(cursor)
        } else {
            self.next_part(&mut replay, keys, Vec::new(), session)
                .await?
        };
        part.gaps = unknown_gaps(keys, None);
        Ok(Opening {
            cursor: None,
            part,
            replay,
            is_over: None,
        })
    }

    async fn newest_pages(
        self: &Rc<Self>,
        keys: &[ChannelKey],
        count: u32,
    ) -> Result<Vec<Option<Page>>, HistoryError> {
        let names: Vec<_> = {
            let channels = self.channels.borrow();
            let name = |key: &ChannelKey| channels.get(*key).map(|channel| channel.name.clone());
            keys.iter().filter_map(name).collect()
        };
        let read = super::HistoryRead::Newest(count);
        let reads = names.into_iter().map(|name| self.read(name, read));
        let pages = futures_util::future::try_join_all(reads).await?;
        Ok(pages.into_iter().map(|page| Some(Rc::new(page))).collect())
    }

    /// The next part of a replay. Nothing passes between what it tells and the return.
    async fn next_part(
        self: &Rc<Self>,
        replay: &mut Replay,
        keys: &[ChannelKey],
        mut pages: Vec<Option<Page>>,
        session: Option<&Session>,
    ) -> Result<Part<EncodedEvent>, HistoryError> {
        pages.resize(keys.len(), None);
        let mut losses = self.losses.get();
        loop {
            self.all_active(keys).await;
            if losses != self.losses.get() {
                // Redis may be another one by now: what was read before says nothing of it.
                losses = self.losses.get();
                pages.fill(None);
            }
            let reads = match self.step(replay, keys, &pages, session) {
                Step::Send(mut part) => {
                    // What was read may have come by way of the tail.
                    part.from_history |= pages.iter().any(Option::is_some);
                    return Ok(part);
                }
                Step::Read(reads) => reads,
            };
            let answers: Vec<_> = reads
                .into_iter()
                .filter_map(|(channel, from)| {
                    Some((channel, self.read_history(*keys.get(channel)?, from)))
                })
                .collect();
            for (channel, answer) in answers {
                let gone = HistoryError::Unavailable("the channel is gone".into());
                let page = match answer.await.map_err(|_| gone)? {
                    Ok(page) => page,
                    Err(HistoryError::Unsupported) => {
                        // Without kept events no cursor was ever told.
                        let after = Some(replay.cursor().position());
                        self.all_active(keys).await;
                        let seen = self.positions.borrow().newest().unwrap_or_default();
                        let mut part = Part::live(Cursor::fresh(seen));
                        part.gaps = unknown_gaps(keys, after);
                        return Ok(part);
                    }
                    Err(error) => return Err(error),
                };
                if let Some(place) = pages.get_mut(channel) {
                    *place = Some(page);
                }
            }
        }
    }

    fn step(
        &self,
        replay: &mut Replay,
        keys: &[ChannelKey],
        pages: &[Option<Page>],
        session: Option<&Session>,
    ) -> Step<EncodedEvent> {
        let channels = self.channels.borrow();
        let views: Vec<_> = keys
            .iter()
            .zip(pages)
            .filter_map(|(key, page)| {
                Some(View {
                    tail: &channels.get(*key)?.tail,
                    page: page.as_deref(),
                    fresh: true,
                })
            })
            .collect();
        let seen = self.positions.borrow().newest();
        let most_bytes = self.settings.max_batch_bytes();
        replay.step(&views, seen, most_bytes, |event| event.is_for(session))
    }

    /// The gaps of a part as bytes, and the cursor where no event follows to carry it.
    pub(super) fn gap_blocks(
        &self,
        subscriber: &Subscriber,
        keys: &[ChannelKey],
        part: &Part<EncodedEvent>,
    ) -> String {
        let mut blocks = String::new();
        if part.gaps.is_empty() {
            return blocks;
        }
        let channels = self.channels.borrow();
        let id = Some(part.gap_id()).filter(|id| *id > EventId::ZERO);
        for (number, gap) in part.gaps.iter().enumerate() {
            let channel = keys.get(gap.channel).and_then(|key| channels.get(*key));
            if let Some(channel) = channel {
                self.stats.count_gaps(gap.reason, 1);
                let is_last = number + 1 == part.gaps.len();
                let id = id.filter(|_| is_last || !part.gap_id_proves);
                let (name, control) = (&channel.name, subscriber.control);
                blocks += &control.gap_block(name, gap.reason, gap.after, gap.oldest, id);
            }
        }
        if part.events.is_empty() && id.is_some() {
            blocks += &subscriber.control.cursor_block(part.cursor);
        }
        blocks
    }

    /// What the gaps of a part speak of: it is told again if they are dropped.
    fn told_spans(&self, keys: &[ChannelKey], part: &Part<EncodedEvent>) -> Box<[KeptSpan]> {
        let channels = self.channels.borrow();
        let last = Some(part.gap_id()).filter(|id| *id > EventId::ZERO);
        let span = |gap: &Gap| {
            Some(KeptSpan {
                channel: channels.get(*keys.get(gap.channel)?)?.name.clone(),
                after: gap.after,
                last,
            })
        };
        part.gaps.iter().filter_map(span).collect()
    }

    /// Queues the events of a part.
    pub(super) fn send_events(&self, subscriber: &Subscriber, part: &Part<EncodedEvent>) {
        let tells_of_loss = self.settings.slow_client == SlowClientPolicy::Latest;
        for event in &part.events {
            if let Some(wire) = &event.wire {
                let parcel = Parcel {
                    bytes: wire.framed(subscriber.framing),
                    events: 1,
                    origin: tells_of_loss.then(|| lost_as(Loss::Kept(KeptSpan::of(event)))),
                };
                self.push(subscriber, parcel);
            }
        }
        subscriber.last_push.set(self.tick());
    }

    /// Goes on with a replay until its client is live, or gone.
    pub(super) async fn replay(
        self: Rc<Self>,
        subscriber: Weak<Subscriber>,
        mut replay: Replay,
        keys: Box<[ChannelKey]>,
        session: Option<Arc<Session>>,
    ) {
        let room = self.settings.max_batch_bytes();
        let mut catch_up = CATCH_UP;
        loop {
            let has_room = poll_fn(|context| match subscriber.upgrade() {
                Some(subscriber) => subscriber.mailbox.borrow_mut().poll_room(context, room),
                None => Poll::Ready(false),
            });
            if !has_room.await {
                return;
            }
            let next = self.next_part(&mut replay, &keys, Vec::new(), session.as_deref());
            let part = match next.await {
                Ok(part) => part,
                Err(error) => {
                    tracing::debug!(%error, "a replay waits");
                    sleep(READ_AGAIN).await;
                    continue;
                }
            };
            let Some(subscriber) = subscriber.upgrade() else {
                return;
            };
            if subscriber.mailbox.borrow().end_reason().is_some() {
                return;
            }
            let gaps = self.gap_blocks(&subscriber, &keys, &part);
            if !gaps.is_empty() {
                let parcel = Parcel {
                    bytes: subscriber.framing.frame(gaps.as_bytes()),
                    events: 0,
                    origin: Some(lost_as(Loss::Told(self.told_spans(&keys, &part)))),
                };
                subscriber.mailbox.borrow_mut().queue(parcel);
                if subscriber.ends_with_gap() {
                    let mut mailbox = subscriber.mailbox.borrow_mut();
                    mailbox.end(CloseReason::Incomplete);
                    return;
                }
            }
            self.send_events(&subscriber, &part);
            if part.live {
                self.go_live(&subscriber, &keys, part.cursor);
                self.tell_ends(&subscriber, &keys, &part);
                return;
            }
            if part.is_behind {
                // The client knows more than this replica has seen so far: it is on its way. Or
                // Redis issues no ids now, and there is no telling where the live events begin.
                sleep(catch_up).await;
                catch_up = (catch_up * 2).min(READ_AGAIN);
            } else {
                catch_up = CATCH_UP;
            }
        }
    }

    /// Has the live events after the cursor follow.
    pub(super) fn go_live(&self, subscriber: &Rc<Subscriber>, keys: &[ChannelKey], cursor: Cursor) {
        let mut channels = self.channels.borrow_mut();
        channels.detach(subscriber);
        subscriber.reach(cursor);
        channels.attach(subscriber, keys);
    }
}

/// A gap of every channel, of a cursor (or what was sent instead) that means nothing here.
fn unknown_gaps(keys: &[ChannelKey], after: Option<EventId>) -> Vec<Gap> {
    let gap = |channel| Gap {
        channel,
        reason: GapReason::UnknownId,
        after,
        oldest: None,
    };
    (0..keys.len()).map(gap).collect()
}

/// The origin of a parcel of a replay: how late it is says how long its client was away.
fn lost_as(loss: Loss) -> Rc<Origin> {
    Rc::new(Origin::new(None, Some(loss)))
}

#[cfg(test)]
mod tests;
