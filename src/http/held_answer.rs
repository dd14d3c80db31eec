//! Busy answers that are held for a moment before they end.
//!
//! A busy answer is complete at once, but many client libraries reconnect without a pause when an answer
//! ends, whatever its `retry` says. So its end comes one to two seconds later, as long as that takes
//! nothing from others. An answer without a body, which ends with its head, is held back as a whole.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::admission::Admission;
use super::client_address::ClientAddress;
use super::limits::Hold;
use crate::hub::Hub;

/// The answers that a shard holds at once, each a task of hyper's and a connection: some 30 MB. Those
/// beyond end at once.
const MAX_HELD: u64 = 1_000;

/// The bounds of the time that an answer is held, in milliseconds.
const HELD_MS: std::ops::RangeInclusive<u64> = 1_000..=2_000;

/// The body of an answer whose end is still to come.
pub(super) struct HeldBody {
    body: Body,
    /// Ready when the answer ends; `None` once it has.
    end: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// Where an answer goes.
pub(super) struct Receiver<'a> {
    pub(super) client: ClientAddress,
    /// The answers that its HTTP/2 connection may hold more.
    pub(super) of_connection: Option<&'a Arc<Semaphore>>,
}

impl HeldBody {
    /// Holds an answer with this body until its time is over, the replica drains, or connections become
    /// scarce.
    ///
    /// # Errors
    /// With the body, when it cannot be held.
    pub(super) fn hold(
        body: Body,
        hub: &Rc<Hub>,
        admission: &Arc<Admission>,
        to: &Receiver<'_>,
    ) -> Result<Self, Body> {
        let Some(place) = HeldPlace::take(hub, admission, to) else {
            return Err(body);
        };
        Ok(Self {
            body,
            end: Some(Box::pin(place.hold(Arc::clone(admission)))),
        })
    }

    /// An answer that ends at once.
    pub(super) fn not_held(body: Body) -> Self {
        Self { body, end: None }
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        use http_body::Body as _;
        if let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) {
            return Poll::Ready(Some(frame));
        }
        if let Some(end) = &mut self.end {
            ready!(end.as_mut().poll(context));
            self.end = None;
        }
        Poll::Ready(None)
    }
}

/// Holds back an answer that has no body, for as long as the end of one with a body would be held.
pub(super) async fn hold_back(hub: &Rc<Hub>, admission: &Arc<Admission>, to: &Receiver<'_>) {
    if let Some(place) = HeldPlace::take(hub, admission, to) {
        place.hold(Arc::clone(admission)).await;
    }
}

/// One of the answers that are held.
struct HeldPlace {
    hub: Rc<Hub>,
    _of_address: Option<Hold>,
    _of_connection: Option<OwnedSemaphorePermit>,
}

impl HeldPlace {
    fn take(hub: &Rc<Hub>, admission: &Admission, to: &Receiver<'_>) -> Option<Self> {
        let held = &hub.stats().busy_answers;
        if hub.is_draining() || held.get() >= MAX_HELD {
            return None;
        }
        let of_address = admission.hold_answer(to.client)?;
        let of_connection = match to.of_connection {
            Some(places) => Some(Arc::clone(places).try_acquire_owned().ok()?),
            None => None,
        };
        held.add(1);
        Some(Self {
            hub: Rc::clone(hub),
            _of_address: of_address,
            _of_connection: of_connection,
        })
    }

    /// Keeps the place until the answer's time is over.
    async fn hold(self, admission: Arc<Admission>) {
        tokio::select! {
            () = sleep(Duration::from_millis(fastrand::u64(HELD_MS))) => {}
            () = self.hub.drains() => {}
            () = admission.is_crowded() => {}
        }
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.hub.stats().busy_answers.sub(1);
    }
}
