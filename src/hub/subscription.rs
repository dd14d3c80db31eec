//! One connection's place in the hub.

use std::io::IoSlice;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::fanout::mailbox::MailboxState;
use super::fanout::outgoing::Parcel;
use super::state::Hub;
use super::stats::CloseReason;
use super::subscriber::{ChannelKey, Subscriber};

/// A hold on channels, given back when dropped.
pub(super) struct Interest {
    hub: Rc<Hub>,
    keys: Box<[ChannelKey]>,
}

impl Interest {
    pub(super) fn new(hub: Rc<Hub>, keys: Box<[ChannelKey]>) -> Self {
        Self { hub, keys }
    }

    pub(super) fn keys(&self) -> &[ChannelKey] {
        &self.keys
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.hub.release(&self.keys);
    }
}

/// An open stream's end of the hub: the mailbox it writes from. Dropping it takes the connection
/// off its channels.
pub struct Subscription {
    interest: Interest,
    subscriber: Rc<Subscriber>,
    /// What goes on with its replay, if there was more than one part of it.
    replay: Option<AbortHandle>,
    /// It is a stream, and counted as one.
    is_open: bool,
}

impl Subscription {
    pub(super) fn new(
        interest: Interest,
        subscriber: Rc<Subscriber>,
        replay: Option<AbortHandle>,
    ) -> Self {
        Self {
            interest,
            subscriber,
            replay,
            is_open: false,
        }
    }

    /// Counts it as an open stream, to be called once when its client is to get it. One that is
    /// dropped before was none.
    pub fn count_open(&mut self) {
        let stats = &self.interest.hub.stats;
        stats.connections.add(1);
        stats.connections_opened.add(1);
        stats.subscriptions.add(self.interest.keys.len() as u64);
        self.is_open = true;
    }

    /// Whether it was counted as an open stream.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// What there is to do. When nothing, the task of `context` is woken later.
    pub fn poll(&mut self, context: &Context<'_>) -> MailboxState {
        self.subscriber.mailbox.borrow_mut().poll(context)
    }

    /// Shows up to `slices` of what waits, oldest first, to a writer, and takes note of how much
    /// it wrote.
    ///
    /// # Errors
    /// What the writer returns.
    pub fn write_with<E>(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let mut mailbox = self.subscriber.mailbox.borrow_mut();
        let written = {
            // Sixteen: a writer rarely falls further behind, and a longer list costs every write.
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = mailbox.gather(&mut slices);
            write(slices.get(..filled).unwrap_or_default())
        };
        let hub = &self.interest.hub;
        let now = if mailbox.is_blocked() {
            // Its client was waited for.
            hub.clock.read()
        } else {
            hub.clock.now()
        };
        let written = written.inspect_err(|_| mailbox.block(now))?;
        hub.stats.sent_bytes.add(written as u64);
        mailbox.written(written, |parcel| hub.count_sent(parcel, now));
        Ok(())
    }

    /// Notes how many of the bytes written the kernel has not taken: they count against the client's buffer.
    pub fn note_unsent(&mut self, bytes: usize) {
        self.subscriber.mailbox.borrow_mut().note_unsent(bytes);
    }

    /// Takes the oldest bytes that wait, for a writer that frames them itself.
    pub fn take(&mut self) -> Option<Bytes> {
        let parcel = self.subscriber.mailbox.borrow_mut().take()?;
        let hub = &self.interest.hub;
        hub.stats.sent_bytes.add(parcel.bytes.len() as u64);
        hub.count_sent(&parcel, hub.clock.read());
        Some(parcel.bytes)
    }

    /// Notes that the connection has failed under the stream, and why.
    pub fn fail(&mut self, reason: CloseReason) {
        let lost = self.subscriber.mailbox.borrow_mut().abort(reason);
        self.interest.hub.stats.events_dropped_slow_client.add(lost);
    }

    /// Why it ends, when it is dropped now.
    pub fn close_reason(&self) -> CloseReason {
        let reason = self.subscriber.mailbox.borrow().end_reason();
        reason.unwrap_or(CloseReason::Client)
    }

    /// Whether what was sent is not all, so that its client must not take the end for an orderly one.
    pub fn is_cut(&self) -> bool {
        self.subscriber.asked.get().is_whole && self.close_reason() != CloseReason::Ended
    }

    /// Tells whether the stream is to be cut off, also while nobody polls the subscription.
    pub fn watch(&self) -> AbortWatch {
        AbortWatch(Rc::clone(&self.subscriber))
    }
}

/// Where hyper writes, a mailbox is not polled while the client takes nothing: what polls hyper
/// must look here.
pub struct AbortWatch(Rc<Subscriber>);

impl AbortWatch {
    /// Whether the stream is to be cut off. When not, the task of `context` is woken once it is.
    pub fn poll_aborted(&self, context: &Context<'_>) -> bool {
        self.0.mailbox.borrow_mut().poll_aborted(context)
    }

    /// Why the stream was ended, if it was.
    pub fn end_reason(&self) -> Option<CloseReason> {
        self.0.mailbox.borrow().end_reason()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(replay) = &self.replay {
            replay.abort();
        }
        let hub = &self.interest.hub;
        hub.detach(&self.subscriber);
        if self.is_open {
            hub.stats.connections.sub(1);
            hub.stats.subscriptions.sub(self.interest.keys.len() as u64);
            hub.stats.count_closed(self.close_reason());
        }
    }
}

impl Hub {
    /// Lets go of channels.
    fn release(&self, keys: &[ChannelKey]) {
        let now = Instant::now();
        let mut channels = self.channels.borrow_mut();
        for &key in keys {
            channels.release(key, now);
        }
        self.after_interest_change(&channels);
    }

    /// Counts a parcel that was written.
    pub(super) fn count_sent(&self, parcel: &Parcel, now: Duration) {
        self.stats.events_delivered.add(parcel.events.into());
        if let Some(timing) = parcel.timing() {
            timing.written(&self.clock, now, &self.stats);
        }
    }

    fn detach(&self, subscriber: &Subscriber) {
        self.channels.borrow_mut().detach(subscriber);
    }
}
