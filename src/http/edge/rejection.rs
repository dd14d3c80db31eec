//! Why a stream is not opened, and the answer to its client.

use http::StatusCode;

use crate::http::admission::Full;
use crate::hub::{NotOpened, RejectReason};
use crate::protocol::{EndReason, GapReason};

/// What is short when a stream is not opened.
enum Busy {
    /// What is short is this replica's: another may take the stream.
    Here(&'static str),
    /// The client has had what it may have, of every replica.
    Client,
}

/// Why a stream is not opened, for metrics, the log and traces, and for the client.
pub(super) struct Rejection {
    pub(super) reason: RejectReason,
    busy: Busy,
}

impl Rejection {
    /// A rejection because something, which `why` names, could not be decided.
    pub(super) fn undecided(why: &'static str) -> Self {
        Self {
            reason: RejectReason::Undecided,
            busy: Busy::Here(why),
        }
    }

    /// Why a proxy may ask another replica, if it may. Where the client has had all it may have, the
    /// proxy would ask all replicas in vain, and count the client there too.
    pub(super) fn is_of_this_replica(&self) -> Option<&'static str> {
        match self.busy {
            Busy::Here(why) => Some(why),
            Busy::Client => None,
        }
    }
}

impl From<Full> for Rejection {
    fn from(full: Full) -> Self {
        let (reason, busy) = match full {
            Full::Replica => (
                RejectReason::Limit,
                Busy::Here("this replica has all the streams it can hold"),
            ),
            Full::Address => (RejectReason::Address, Busy::Client),
            Full::Subject => (RejectReason::Subject, Busy::Client),
            Full::Rate => (RejectReason::Rate, Busy::Client),
        };
        Self { reason, busy }
    }
}

impl From<NotOpened> for Rejection {
    fn from(not_opened: NotOpened) -> Self {
        let (reason, busy) = match not_opened {
            NotOpened::Draining => (
                RejectReason::Draining,
                Busy::Here("this replica is being stopped"),
            ),
            // Told by itself, as no rejection.
            NotOpened::Over(_) | NotOpened::Incomplete(_) | NotOpened::Revoked => {
                (RejectReason::Denied, Busy::Client)
            }
            NotOpened::NotActive => (
                RejectReason::BusUnavailable,
                Busy::Here("the channels could not be subscribed: the bus is not available"),
            ),
        };
        Self { reason, busy }
    }
}

/// Why a stream is not admitted.
pub(super) enum NotAdmitted {
    Rejected(Rejection),
    /// All channels have ended, and the client knows.
    Over(EndReason),
    /// A part may be missing, which the client could not see.
    Incomplete(GapReason),
}

impl From<Rejection> for NotAdmitted {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<NotOpened> for NotAdmitted {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::Over(reason) => Self::Over(reason),
            NotOpened::Incomplete(reason) => Self::Incomplete(reason),
            other => Self::Rejected(other.into()),
        }
    }
}

/// Whether an answer says that the client may not have what it asks for.
pub(super) fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}
