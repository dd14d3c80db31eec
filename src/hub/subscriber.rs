//! What the hub keeps of a connection.

use std::cell::{Cell, RefCell};

use tokio::time::Instant;

use super::mailbox::Mailbox;
use crate::protocol::{Cursor, CursorStyle, EventId, Framing};

/// A channel's place in the hub.
pub(super) type ChannelKey = usize;

/// How a connection takes the events of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// Each batch as one buffer: on one channel alone, framed in chunks.
    ByBatch,
    /// One by one: on several channels, or framed otherwise.
    ByEvent,
    /// Live events only: the kept ones still come from its replay.
    Replaying,
}

/// A connection. Less than three hundred bytes: there may be ten thousands.
pub(super) struct Subscriber {
    pub(super) framing: Framing,
    pub(super) cursor_style: CursorStyle,
    pub(super) member: Cell<Member>,
    /// The tick of the heartbeat wheel in which something was queued last.
    pub(super) last_push: Cell<u64>,
    /// Kept events up to this id it has had, or never asked for.
    pub(super) skip_through: Cell<EventId>,
    /// The cursor it was told last, beside those that events carry.
    pub(super) told: Cell<Cursor>,
    /// When it has been open for long enough.
    pub(super) ends_at: Cell<Option<Instant>>,
    pub(super) mailbox: RefCell<Mailbox>,
    pub(super) memberships: RefCell<Vec<Membership>>,
}

/// A subscriber's place among the members of a channel.
pub(super) struct Membership {
    pub(super) key: ChannelKey,
    pub(super) position: usize,
}

impl Subscriber {
    pub(super) fn new(framing: Framing, cursor_style: CursorStyle) -> Self {
        Self {
            framing,
            cursor_style,
            member: Cell::new(Member::Replaying),
            last_push: Cell::new(0),
            skip_through: Cell::default(),
            told: Cell::default(),
            ends_at: Cell::default(),
            mailbox: RefCell::default(),
            memberships: RefCell::default(),
        }
    }

    /// Notes that everything up to the cursor's position has been sent to it.
    pub(super) fn reach(&self, cursor: Cursor) {
        self.told.set(cursor);
        self.skip_through.set(cursor.position());
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
