//! Why clients are told that something may be missing.

use std::fmt;

/// Why a stretch of a channel cannot be proven complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GapReason {
    /// The cursor was never issued here.
    UnknownId,
    /// What followed the cursor is no longer retained.
    Expired,
    /// Redis has lost events that it had: a failover, a flush.
    Rewound,
    /// The subscription lost something that could not be read again.
    Lost,
    /// The client was slower than its events arrived.
    Slow,
}

impl GapReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 5] = [
        Self::UnknownId,
        Self::Expired,
        Self::Rewound,
        Self::Lost,
        Self::Slow,
    ];

    /// What clients and metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownId => "unknown_id",
            Self::Expired => "expired",
            Self::Rewound => "rewound",
            Self::Lost => "lost",
            Self::Slow => "slow",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
