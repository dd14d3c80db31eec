//! Ids of kept events: `1771234567890-3`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The id of a kept event, or of a probe: `<unix ms>-<n>`, strictly increasing over all channels
/// of one Redis primary.
///
/// It is no clock: after a failover ids run ahead of it. So an age is a difference of ids, never
/// a difference to the time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    ms: u64,
    n: u64,
}

/// Why a text is not an [`EventId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id must be <milliseconds>-<number>, both decimal and below 2^64")]
pub struct InvalidEventId;

impl EventId {
    /// `0-0`: before every event.
    pub const ZERO: Self = Self { ms: 0, n: 0 };

    /// After every event.
    pub const MAX: Self = Self {
        ms: u64::MAX,
        n: u64::MAX,
    };

    /// An id of these parts.
    pub const fn new(ms: u64, n: u64) -> Self {
        Self { ms, n }
    }

    /// The milliseconds in front.
    pub const fn ms(self) -> u64 {
        self.ms
    }

    /// What tells it from others of its millisecond.
    pub const fn n(self) -> u64 {
        self.n
    }

    /// The largest id below this one; [`ZERO`](Self::ZERO) has none and is its own.
    #[must_use]
    pub const fn pred(self) -> Self {
        if self.n > 0 {
            Self::new(self.ms, self.n - 1)
        } else if self.ms > 0 {
            Self::new(self.ms - 1, u64::MAX)
        } else {
            self
        }
    }

    /// The smallest id above this one.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.n < u64::MAX {
            Self::new(self.ms, self.n + 1)
        } else {
            Self::new(self.ms.saturating_add(1), 0)
        }
    }

    /// How much older `earlier` is, in whole milliseconds; zero when it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.ms.saturating_sub(earlier.ms))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    /// Reads exactly what [`Display`](fmt::Display) writes: no sign, no leading zero.
    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let (ms, n) = text.split_once('-').ok_or(InvalidEventId)?;
        Ok(Self::new(decimal(ms)?, decimal(n)?))
    }
}

/// A number as it is written in ids and frames: no sign, no leading zero.
pub(super) fn decimal(text: &str) -> Result<u64, InvalidEventId> {
    let canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if !canonical {
        return Err(InvalidEventId);
    }
    text.parse().map_err(|_| InvalidEventId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_canonical_spelling_is_read() {
        assert_eq!("0-0".parse(), Ok(EventId::ZERO));
        assert_eq!(
            "18446744073709551615-18446744073709551615".parse(),
            Ok(EventId::MAX)
        );
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-1",
            "01-1",
            "1-01",
            "1-1-1",
            " 1-1",
            "1-x",
            "18446744073709551616-0",
            "１-1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(InvalidEventId), "{text:?}");
        }
    }

    #[test]
    fn the_neighbours_of_an_id() {
        assert_eq!(EventId::new(5, 0).pred(), EventId::new(4, u64::MAX));
        assert_eq!(EventId::new(5, 3).pred(), EventId::new(5, 2));
        assert_eq!(EventId::new(4, u64::MAX).next(), EventId::new(5, 0));
        assert_eq!(EventId::ZERO.pred(), EventId::ZERO);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms: u64, n: u64) {
            let id = EventId::new(ms, n);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert!(id == EventId::ZERO || id.pred() < id && id.pred().next() == id);
        }
    }
}
