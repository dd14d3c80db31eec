//! What the hub keeps of a connection.

use std::cell::{Cell, RefCell};

use super::mailbox::Mailbox;
use crate::protocol::Framing;

/// A channel's place in the hub.
pub(super) type ChannelKey = usize;

/// A connection. About two hundred bytes: there may be ten thousands.
pub(super) struct Subscriber {
    pub(super) framing: Framing,
    /// Whether it stands among the `batch_members` of its one channel.
    pub(super) by_batch: Cell<bool>,
    /// The tick of the heartbeat wheel in which something was queued last.
    pub(super) last_push: Cell<u64>,
    pub(super) mailbox: RefCell<Mailbox>,
    pub(super) memberships: RefCell<Vec<Membership>>,
}

/// A subscriber's place among the members of a channel.
pub(super) struct Membership {
    pub(super) key: ChannelKey,
    pub(super) position: usize,
}

impl Subscriber {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            by_batch: Cell::new(false),
            last_push: Cell::new(0),
            mailbox: RefCell::default(),
            memberships: RefCell::default(),
        }
    }

    /// Notes that it now stands at another position of a channel.
    pub(super) fn move_to(&self, key: ChannelKey, position: usize) {
        let mut memberships = self.memberships.borrow_mut();
        if let Some(membership) = memberships
            .iter_mut()
            .find(|membership| membership.key == key)
        {
            membership.position = position;
        }
    }
}
