//! How a channel ends.

use std::fmt;

/// Why nothing follows on a channel. The later of two is the graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndReason {
    /// Everything was published.
    Done,
    /// It was stopped before it was done.
    Stopped,
    /// It failed.
    Error,
    /// Its publisher was silent for longer than its lease.
    Lost,
}

impl EndReason {
    /// What publishers may say.
    pub const OF_PUBLISHERS: [Self; 3] = [Self::Done, Self::Error, Self::Stopped];

    /// What clients, publishers and metrics call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Lost => "lost",
        }
    }

    /// The reason that the function library has written. One that this version does not know counts as
    /// a failure.
    pub fn read(name: &str) -> Self {
        let lost = (name == Self::Lost.label()).then_some(Self::Lost);
        Self::parse(name).or(lost).unwrap_or(Self::Error)
    }

    /// The reason that a publisher names.
    pub fn parse(name: &str) -> Option<Self> {
        Self::OF_PUBLISHERS
            .into_iter()
            .find(|reason| reason.label() == name)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
