//! How many streams may be open, and what an open one holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::hub::Subscription;

/// The bound on open streams, shared by all shards. Counted when streams open and close, never
/// when events pass.
#[derive(Debug)]
pub struct ConnectionLimit {
    most: usize,
    open: AtomicUsize,
}

impl ConnectionLimit {
    /// Allows `most` streams.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: AtomicUsize::new(0),
        })
    }

    /// A place for one stream more, if there is one.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Permit> {
        // Counted first, so that two shards cannot both take the last place.
        let permit = Permit(Arc::clone(self));
        (self.open.fetch_add(1, Ordering::Relaxed) < self.most).then_some(permit)
    }
}

/// A stream's place within the limit, until dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<ConnectionLimit>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open stream: its place within the limit and in the hub, given back together.
pub(super) struct OpenStream {
    pub(super) subscription: Subscription,
    _permit: Permit,
}

impl OpenStream {
    pub(super) fn new(subscription: Subscription, permit: Permit) -> Self {
        Self {
            subscription,
            _permit: permit,
        }
    }
}
