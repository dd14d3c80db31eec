//! Opening a stream.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::request::{NotOpened, Start, StreamRequest};
use super::resume::{Opening, READ_AGAIN};
use super::session::Session;
use super::state::Hub;
use super::subscriber::{Asked, ChannelKey, Subscriber};
use super::subscription::{Interest, Subscription};
use crate::protocol::{ChannelName, ControlForm, Framing};

impl Hub {
    /// Opens a stream: waits until each channel is active at the bus and it is known what the
    /// client missed, for `patience` at most, and returns with the first bytes in the mailbox:
    /// `head`, then the first block. Whatever is published after a client has seen one of these
    /// bytes reaches it.
    ///
    /// # Errors
    /// When a channel is not active in time, or its history cannot be read, or the shard is
    /// draining or the session revoked by then.
    pub async fn subscribe(
        self: &Rc<Self>,
        request: &StreamRequest,
        framing: Framing,
        head: impl FnOnce() -> Vec<u8>,
        patience: Duration,
    ) -> Result<Subscription, NotOpened> {
        let interest = self.acquire(&request.channels);
        let keys = interest.keys();
        let session = request.session.as_ref();
        let opening = self.open(keys, request, session.map(Arc::as_ref));
        let opening = timeout(patience, opening)
            .await
            .map_err(|_| NotOpened::NotActive)?;
        if self.draining.get() {
            return Err(NotOpened::Draining);
        }
        if session.is_some_and(|session| self.is_revoked(session)) {
            return Err(NotOpened::Revoked);
        }
        let gap = opening.part.gaps.first().map(|gap| gap.reason);
        let sees_gaps = request.control == ControlForm::Event;
        if let Some(reason) = gap.filter(|_| request.is_whole && !sees_gaps) {
            return Err(NotOpened::Incomplete(reason));
        }
        if let Some(reason) = opening.is_over.filter(|_| request.sees_status) {
            return Err(NotOpened::Over(reason));
        }
        // From the moment that the opening tells of to the end nothing awaits, so no event can
        // pass in between.
        let Opening {
            cursor,
            part,
            replay,
            is_over: _,
        } = opening;
        let subscriber = Rc::new(Subscriber::new(framing, request.control, session.cloned()));
        subscriber.asks_for_ends.set(request.start != Start::Live);
        subscriber.asked.set(Asked {
            counted: request.counted,
            tells_live: request.tells_live,
            is_whole: request.is_whole,
        });
        let age = self.settings.draw_age();
        subscriber.ends_at.set(age.map(|age| Instant::now() + age));
        let retry = self.settings.retry.draw();
        let mut block = request.control.first_block(retry, cursor);
        block += &self.gap_blocks(&subscriber, keys, &part);
        let mut first = head();
        framing.append(block.as_bytes(), &mut first);
        subscriber.mailbox.borrow_mut().open(Bytes::from(first));
        self.heartbeats
            .borrow_mut()
            .insert(&subscriber, request.heartbeat);
        self.send_events(&subscriber, &part);
        if part.live {
            self.go_live(&subscriber, keys, part.cursor);
            self.tell_ends(&subscriber, keys, &part);
            return Ok(Subscription::new(interest, subscriber, None));
        }
        self.channels
            .borrow_mut()
            .attach_replaying(&subscriber, keys);
        let replay = Rc::clone(self).replay(
            Rc::downgrade(&subscriber),
            replay,
            keys.into(),
            session.cloned(),
        );
        let replay = tokio::task::spawn_local(replay).abort_handle();
        Ok(Subscription::new(interest, subscriber, Some(replay)))
    }

    /// Tries until it is known how the stream begins.
    async fn open(
        self: &Rc<Self>,
        keys: &[ChannelKey],
        request: &StreamRequest,
        session: Option<&Session>,
    ) -> Opening {
        loop {
            match self.begin(keys, request, session).await {
                Ok(opening) => return opening,
                Err(error) => {
                    tracing::debug!(%error, "a stream waits for its history");
                    sleep(READ_AGAIN).await;
                }
            }
        }
    }

    fn acquire(self: &Rc<Self>, names: &[ChannelName]) -> Interest {
        let mut channels = self.channels.borrow_mut();
        let keys = names.iter().map(|name| channels.acquire(name)).collect();
        self.after_interest_change(&channels);
        Interest::new(Rc::clone(self), keys)
    }

    pub(super) async fn all_active(&self, keys: &[ChannelKey]) {
        loop {
            let activated = self.activated.notified();
            if self.channels.borrow().all_active(keys) {
                return;
            }
            activated.await;
        }
    }
}
