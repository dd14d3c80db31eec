//! What the hub keeps of a connection.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::fanout::mailbox::Mailbox;
use super::session::Session;
use crate::protocol::{Audience, ControlForm, Cursor, EventId, Framing};

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
    pub(super) control: ControlForm,
    /// `None`: it came without a token.
    pub(super) reader: Option<Box<Reader>>,
    pub(super) member: Cell<Member>,
    /// The tick of the heartbeat wheel in which something was queued last.
    pub(super) last_push: Cell<u64>,
    /// Its heartbeat interval, in ticks of the wheel.
    pub(super) interval: Cell<u64>,
    /// Kept events up to this id it has had, or never asked for.
    pub(super) skip_through: Cell<EventId>,
    /// It has been told of the ends of its channels up to this id…
    pub(super) ends_through: Cell<EventId>,
    /// …unless it only asked for what comes.
    pub(super) asks_for_ends: Cell<bool>,
    pub(super) asked: Cell<Asked>,
    /// The cursor it was told last, beside those that events carry.
    pub(super) told: Cell<Cursor>,
    /// When it has been open for long enough.
    pub(super) ends_at: Cell<Option<Instant>>,
    pub(super) mailbox: RefCell<Mailbox>,
    pub(super) memberships: RefCell<Vec<Membership>>,
}

/// What a stream was asked for beside its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// It ends when so many of its channels, the first, have ended.
    pub(super) counted: usize,
    /// It is told when its replay is over.
    pub(super) tells_live: bool,
    /// Unless it is complete it is cut off.
    pub(super) is_whole: bool,
}

/// What is kept of a connection that came with a token, beside what all have.
pub(super) struct Reader {
    pub(super) session: Arc<Session>,
    /// The newest kept event it was sent of those that are not for everybody.
    newest: Cell<EventId>,
}

/// A subscriber's place among the members of a channel.
pub(super) struct Membership {
    pub(super) key: ChannelKey,
    pub(super) position: usize,
}

impl Subscriber {
    pub(super) fn new(
        framing: Framing,
        control: ControlForm,
        session: Option<Arc<Session>>,
    ) -> Self {
        let reader = |session| {
            Box::new(Reader {
                session,
                newest: Cell::default(),
            })
        };
        Self {
            framing,
            control,
            reader: session.map(reader),
            member: Cell::new(Member::Replaying),
            last_push: Cell::new(0),
            interval: Cell::new(0),
            skip_through: Cell::default(),
            ends_through: Cell::default(),
            asks_for_ends: Cell::new(true),
            asked: Cell::new(Asked {
                counted: usize::MAX,
                tells_live: false,
                is_whole: false,
            }),
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
        if let Some(reader) = &self.reader {
            reader.newest.set(EventId::ZERO);
        }
    }

    /// Whether it has been told, or is to be told, of an end with this id.
    pub(super) fn minds_end(&self, id: EventId) -> bool {
        self.asks_for_ends.get() || id > self.ends_through.get()
    }

    /// Whether a gap ends it: its reader does not see gaps, and wants all or an error.
    pub(super) fn ends_with_gap(&self) -> bool {
        self.asked.get().is_whole && self.control == ControlForm::Comment
    }

    /// Whether it is on a channel.
    pub(super) fn is_on(&self, key: ChannelKey) -> bool {
        let memberships = self.memberships.borrow();
        memberships.iter().any(|membership| membership.key == key)
    }

    /// When its token expires, if it does.
    pub(super) fn expires_at(&self) -> Option<SystemTime> {
        self.reader.as_ref()?.session.expires_at
    }

    /// Whether it belongs to the sessions that an event is for.
    pub(super) fn belongs_to(&self, audience: &Audience) -> bool {
        let claims = self.reader.as_ref().map(|reader| &reader.session.claims);
        claims.is_some_and(|claims| audience.admits(claims))
    }

    /// Notes that it was sent a kept event that is not for everybody.
    pub(super) fn note_restricted(&self, id: EventId) {
        if let Some(reader) = &self.reader {
            reader.newest.set(reader.newest.get().max(id));
        }
    }

    /// The newest kept event it was sent of those that are not for everybody.
    pub(super) fn newest_restricted(&self) -> EventId {
        let newest = self.reader.as_ref().map(|reader| reader.newest.get());
        newest.unwrap_or_default()
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
