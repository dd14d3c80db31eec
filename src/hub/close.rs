//! Heartbeats, and ending streams: when the replica drains, a token expires or is revoked, or a stream is
//! old enough.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, interval};

use super::channels::Channels;
use super::fanout::outgoing::Parcel;
use super::revocation::{RevocationSet, now_ms};
use super::state::Hub;
use super::stats::CloseReason;
use super::subscriber::{Member, Reader, Subscriber};
use crate::continuity::heartbeat_cursor;
use crate::protocol::{Cursor, EventId};

/// How often a drain closes the streams whose turn it is.
const DRAIN_STEP: Duration = Duration::from_millis(20);

impl Hub {
    /// Sends heartbeats to silent streams, and to all that are live their cursor where it has
    /// moved. Ends those whose token has expired, or that are old enough.
    pub(super) fn beat(&self) {
        let mut sent = 0;
        let now = Instant::now();
        let durable = self.positions.borrow().durable();
        let channels = self.channels.borrow();
        let (tick, time) = (self.tick() + 1, SystemTime::now());
        self.heartbeats
            .borrow_mut()
            .advance(|subscriber, is_silent| {
                if is_silent && is_overdue(subscriber) {
                    self.abort(subscriber);
                } else if subscriber.expires_at().is_some_and(|at| at <= time) {
                    self.dismiss(subscriber, CloseReason::Expired, tick);
                } else if subscriber.ends_at.get().is_some_and(|at| at <= now) {
                    self.end(subscriber, CloseReason::Age);
                }
                let mailbox = subscriber.mailbox.borrow();
                // Bytes that wait are no silence of ours.
                if mailbox.end_reason().is_some() || !mailbox.is_empty() {
                    return;
                }
                drop(mailbox);
                let bytes = match moved_cursor(&channels, subscriber, durable) {
                    Some(cursor) => {
                        subscriber.told.set(cursor);
                        let block = subscriber.control.cursor_block(cursor);
                        subscriber.framing.frame(block.as_bytes())
                    }
                    None if is_silent => {
                        Bytes::from_static(subscriber.control.heartbeat(subscriber.framing))
                    }
                    None => return,
                };
                self.push(subscriber, Parcel::control(bytes));
                sent += 1;
            });
        self.stats.heartbeats.add(sent);
    }

    /// Closes every stream, spread evenly over `period`, each with a reconnection time of its own.
    pub(super) async fn drain(self: Rc<Self>, period: Duration) {
        let mut streams: Vec<_> = self
            .heartbeats
            .borrow()
            .subscribers()
            .map(|subscriber| Rc::downgrade(&subscriber))
            .collect();
        fastrand::shuffle(&mut streams);
        let total = streams.len();
        let start = Instant::now();
        let mut steps = interval(DRAIN_STEP);
        while !streams.is_empty() {
            let now = steps.tick().await;
            let share = if period.is_zero() {
                1.0
            } else {
                (now - start).div_duration_f64(period).min(1.0)
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share between 0 and 1 of a length"
            )]
            let left = total - (total as f64 * share) as usize;
            for stream in streams.drain(left.min(streams.len())..) {
                if let Some(subscriber) = stream.upgrade() {
                    self.end(&subscriber, CloseReason::Drain);
                }
            }
        }
    }

    /// Ends the streams of revoked sessions.
    pub(super) fn cut_off(&self, revoked: &RevocationSet) {
        let (tick, now_ms) = (self.tick(), now_ms());
        for subscriber in self.heartbeats.borrow().subscribers() {
            let is_revoked = |reader: &Reader| revoked.holds(&reader.session, now_ms);
            if subscriber.reader.as_deref().is_some_and(is_revoked) {
                // It gets nothing more, not even what is on its way.
                subscriber.mailbox.borrow_mut().discard();
                self.dismiss(&subscriber, CloseReason::Revoked, tick);
            }
        }
    }

    /// Tells a client why its stream ends, and ends it.
    fn dismiss(&self, subscriber: &Subscriber, reason: CloseReason, tick: u64) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let block = subscriber.control.close_block(reason.label());
        let bytes = subscriber.framing.frame(block.as_bytes());
        mailbox.queue(Parcel::control(bytes));
        mailbox.end(reason);
        subscriber.last_push.set(tick);
    }

    fn abort(&self, subscriber: &Subscriber) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if let Some(reason) = mailbox.end_reason() {
            let lost = mailbox.abort(reason);
            self.stats.events_dropped_slow_client.add(lost);
        }
    }

    fn end(&self, subscriber: &Subscriber, reason: CloseReason) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let mut bytes = Vec::new();
        let block = subscriber.control.retry_block(self.settings.retry.draw());
        subscriber.framing.append(block.as_bytes(), &mut bytes);
        mailbox.queue(Parcel::control(Bytes::from(bytes)));
        mailbox.end(reason);
    }
}

/// Whether a stream that was to end still has not: who may not read may not stay by not reading.
fn is_overdue(subscriber: &Subscriber) -> bool {
    let reason = subscriber.mailbox.borrow().end_reason();
    matches!(reason, Some(CloseReason::Expired | CloseReason::Revoked))
}

/// The cursor of a live stream, where it is later than what its client knows.
fn moved_cursor(
    channels: &Channels,
    subscriber: &Subscriber,
    durable: Option<EventId>,
) -> Option<Cursor> {
    if subscriber.member.get() == Member::Replaying {
        return None;
    }
    let (newest, gap) = channels.newest_of(subscriber);
    heartbeat_cursor(
        subscriber.told.get(),
        subscriber.skip_through.get(),
        newest.max(subscriber.newest_restricted()),
        gap,
        durable?,
    )
}
