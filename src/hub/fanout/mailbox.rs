//! The bounded queue between the hub and one connection's writer.

use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::outgoing::{KeptSpan, Loss, Parcel, skip, slow_gap};
use crate::hub::stats::CloseReason;
use crate::protocol::{ControlForm, Framing};

/// What happens to a client that reads slower than events arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowClientPolicy {
    /// It is cut off, and resumes when it comes back.
    Close,
    /// It loses the oldest events that wait, and stays.
    Latest,
}

impl fmt::Display for SlowClientPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Close => "close",
            Self::Latest => "latest",
        })
    }
}

/// What a writer finds when it looks into a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailboxState {
    /// There are bytes to write.
    Ready,
    /// Nothing now; the writer's waker is kept.
    Empty,
    /// Everything is written and no more will come.
    Ended,
    /// To be cut off at once, whatever still waits.
    Abort,
}

/// The rules of a push.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PushRules {
    /// Once so many bytes wait, no more are taken.
    pub(crate) limit: usize,
    pub(crate) policy: SlowClientPolicy,
    pub(crate) framing: Framing,
    pub(crate) control: ControlForm,
}

/// A queue of encoded bytes, bounded: once [`limit`](Mailbox::push) bytes wait it takes no more.
/// So it never holds more than the limit and one parcel, and an empty one takes any one event.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    parcels: VecDeque<Parcel>,
    /// The cost of all parcels.
    waiting_bytes: usize,
    /// What the writer has taken and the kernel has not: records of TLS.
    unsent_bytes: usize,
    /// The first parcel is partly on the wire, or is the head of the response: it stays.
    front_stays: bool,
    /// The socket took no more at some time since the mailbox was empty: its client is behind.
    blocked: bool,
    end: Option<End>,
    waker: Option<Waker>,
    /// The replay that goes on once there is room.
    feeder: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// After what waits.
    Orderly(CloseReason),
    /// At once.
    Abort(CloseReason),
}

/// What a mailbox did with a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits.
    Queued,
    /// So many events will never be written: older ones, or all of a client that was too slow.
    /// Of so many channels it is told that kept events were among them.
    Dropped { events: u64, gaps: u64 },
    /// The stream has ended already.
    Ended,
}

impl Mailbox {
    /// Queues the beginning of a stream, which is never dropped.
    pub(crate) fn open(&mut self, head: Bytes) {
        self.queue(Parcel::control(head));
        self.front_stays = true;
    }

    /// Queues a parcel and wakes the writer.
    pub(crate) fn push(&mut self, parcel: Parcel, rules: PushRules) -> Pushed {
        if self.end.is_some() {
            return Pushed::Ended;
        }
        if self.held_bytes() < rules.limit {
            self.queue(parcel);
            return Pushed::Queued;
        }
        match rules.policy {
            SlowClientPolicy::Close => {
                let waiting = self.abort(CloseReason::SlowClient);
                Pushed::Dropped {
                    events: waiting + u64::from(parcel.events),
                    gaps: 0,
                }
            }
            SlowClientPolicy::Latest => {
                let dropped = self.drop_oldest(rules);
                self.queue(parcel);
                dropped
            }
        }
    }

    /// Queues a parcel past the bound: for the few bytes of the gateway's own that must arrive.
    pub(crate) fn queue(&mut self, mut parcel: Parcel) {
        if self.blocked {
            parcel.leave_pass();
        }
        self.waiting_bytes += parcel.cost_bytes();
        self.parcels.push_back(parcel);
        self.wake();
    }

    /// Makes room by dropping whole parcels, oldest first, except one that must stay. Where kept
    /// events were among them, a parcel in their place says so.
    fn drop_oldest(&mut self, rules: PushRules) -> Pushed {
        let mut events = 0;
        let mut skipped: Vec<KeptSpan> = Vec::new();
        let mut told_before = 0;
        let kept = usize::from(self.front_stays);
        let mut at = kept;
        while self.held_bytes() >= rules.limit {
            if self.parcels.get(at).is_some_and(Parcel::stays) {
                at += 1;
                continue;
            }
            let Some(parcel) = self.parcels.remove(at) else {
                break;
            };
            self.waiting_bytes -= parcel.cost_bytes();
            events += u64::from(parcel.events);
            match parcel.loss() {
                None | Some(Loss::Never) => {}
                Some(Loss::Kept(span)) => skip(&mut skipped, span),
                Some(Loss::Told(spans)) => {
                    told_before += spans.len();
                    spans.iter().for_each(|span| skip(&mut skipped, span));
                }
            }
        }
        let gaps = skipped.len().saturating_sub(told_before) as u64;
        if !skipped.is_empty() {
            let parcel = slow_gap(skipped, rules.framing, rules.control);
            self.waiting_bytes += parcel.cost_bytes();
            self.parcels.insert(kept.min(self.parcels.len()), parcel);
        }
        Pushed::Dropped { events, gaps }
    }

    /// Ready with `true` once less than `most` bytes wait, with `false` once the stream has ended;
    /// until then the task of `context` is woken.
    pub(crate) fn poll_room(&mut self, context: &Context<'_>, most: usize) -> Poll<bool> {
        if self.end.is_some() {
            return Poll::Ready(false);
        }
        if self.held_bytes() < most {
            return Poll::Ready(true);
        }
        self.feeder = Some(context.waker().clone());
        Poll::Pending
    }

    fn wake_feeder(&mut self) {
        if let Some(feeder) = self.feeder.take() {
            feeder.wake();
        }
    }

    /// Lets go of what waits, but for what is partly on the wire.
    pub(crate) fn discard(&mut self) {
        let stays = usize::from(self.front_stays).min(self.parcels.len());
        self.parcels.truncate(stays);
        self.waiting_bytes = self.parcels.iter().map(Parcel::cost_bytes).sum();
        self.release_when_empty();
    }

    /// Ends the stream after what waits.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        if self.end.is_none() {
            self.end = Some(End::Orderly(reason));
            self.wake();
            self.wake_feeder();
        }
    }

    /// Cuts the stream off, lets go of what waits and returns how many events that were.
    pub(crate) fn abort(&mut self, reason: CloseReason) -> u64 {
        self.end = Some(End::Abort(reason));
        let parcels = std::mem::take(&mut self.parcels);
        self.waiting_bytes = 0;
        self.wake();
        self.wake_feeder();
        parcels.iter().map(|parcel| u64::from(parcel.events)).sum()
    }

    /// Why the stream is to end, if it is.
    pub(crate) fn end_reason(&self) -> Option<CloseReason> {
        match self.end? {
            End::Orderly(reason) | End::Abort(reason) => Some(reason),
        }
    }

    /// Whether the socket has taken no more since the mailbox was empty.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Notes how much of what was written the kernel has not taken.
    pub(crate) fn note_unsent(&mut self, bytes: usize) {
        let was = std::mem::replace(&mut self.unsent_bytes, bytes);
        if bytes < was {
            self.wake_feeder();
        }
    }

    /// All that the client has not got, as far as is known.
    fn held_bytes(&self) -> usize {
        self.waiting_bytes + self.unsent_bytes
    }

    /// Whether bytes wait to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    /// What the writer should do; its waker is kept for when that changes.
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> MailboxState {
        match self.end {
            Some(End::Abort(_)) => return MailboxState::Abort,
            _ if !self.parcels.is_empty() => {}
            Some(End::Orderly(_)) => return MailboxState::Ended,
            None => {}
        }
        self.keep_waker(context);
        if self.parcels.is_empty() {
            MailboxState::Empty
        } else {
            MailboxState::Ready
        }
    }

    /// Whether the stream is to be cut off; the waker is kept for when that changes.
    pub(crate) fn poll_aborted(&mut self, context: &Context<'_>) -> bool {
        self.keep_waker(context);
        matches!(self.end, Some(End::Abort(_)))
    }

    fn keep_waker(&mut self, context: &Context<'_>) {
        match &mut self.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waker => *waker = Some(context.waker().clone()),
        }
    }

    /// Points `slices` at what waits, oldest first, and returns how many were filled.
    pub(crate) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, parcel) in slices.iter_mut().zip(&self.parcels) {
            *slice = IoSlice::new(&parcel.bytes);
            filled += 1;
        }
        filled
    }

    /// Notes that the socket takes no more at `now`. For the passes of what waits this was the
    /// last that could be done here.
    pub(crate) fn block(&mut self, now: Duration) {
        if std::mem::replace(&mut self.blocked, true) {
            // What has come since takes no part in a pass.
            return;
        }
        for parcel in &mut self.parcels {
            if let Some(pass) = parcel.timing().and_then(|timing| timing.pass.as_ref()) {
                pass.note_write(now);
            }
            parcel.leave_pass();
        }
    }

    /// Removes what was written and hands `sent` every parcel that was completed with it.
    pub(crate) fn written(&mut self, mut bytes: usize, mut sent: impl FnMut(&Parcel)) {
        while let Some(front) = self.parcels.front_mut() {
            if bytes < front.bytes.len() {
                front.bytes.advance(bytes);
                self.waiting_bytes -= bytes;
                self.front_stays |= bytes > 0;
                self.wake_feeder();
                break;
            }
            bytes -= front.bytes.len();
            if let Some(parcel) = self.take() {
                sent(&parcel);
            }
        }
    }

    /// Takes the oldest parcel whole, for a writer that frames it itself.
    pub(crate) fn take(&mut self) -> Option<Parcel> {
        let parcel = self.parcels.pop_front()?;
        self.waiting_bytes -= parcel.cost_bytes();
        self.front_stays = false;
        self.release_when_empty();
        self.wake_feeder();
        Some(parcel)
    }

    /// An idle connection keeps no queue: ten thousand of them are mostly idle. Its client has kept
    /// up.
    fn release_when_empty(&mut self) {
        if self.parcels.is_empty() {
            self.blocked = false;
            self.parcels = VecDeque::new();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests;
