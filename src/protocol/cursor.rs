//! What a client sends back to go on where it was cut off.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::id::EventId;

/// A place in the kept events of any set of channels: one primary orders them all.
///
/// Written `<event>` or `<event>.<position>`. Every character may stand in a header that needs no
/// CORS preflight. A type of its own, because a cluster will need a vector of ids here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor {
    event: EventId,
    position: EventId,
}

/// Why a text is no [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cursor must be <id> or <id>.<later id>, at most {} bytes",
    Cursor::MAX_BYTES
)]
pub struct InvalidCursor;

impl Cursor {
    /// The longest cursor, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// A client that has had `event` and misses nothing up to `position`, or up to the event where
    /// that is later.
    pub fn new(event: EventId, position: EventId) -> Self {
        Self {
            event,
            position: position.max(event),
        }
    }

    /// The same, where no position confirms the event yet: the position tells no more than may be
    /// lost together with it.
    #[must_use]
    pub fn unconfirmed(event: EventId, position: EventId, lag_bound: Duration) -> Self {
        if event == EventId::ZERO {
            return Self::fresh(position);
        }
        let lag_ms = u64::try_from(lag_bound.as_millis()).unwrap_or(u64::MAX);
        let most = EventId::new(event.ms().saturating_add(lag_ms), 0);
        Self::new(event, position.min(most))
    }

    /// A client that has had no event and misses nothing up to `position`.
    pub fn fresh(position: EventId) -> Self {
        Self::new(EventId::ZERO, position)
    }

    /// The newest kept event the client has had; [`EventId::ZERO`]: none.
    pub fn event(self) -> EventId {
        self.event
    }

    /// The id up to which nothing is missing.
    pub fn position(self) -> EventId {
        self.position
    }

    /// Whether a replica has named the position when the event was past what a failover can lose.
    pub fn is_confirmed(self, lag_bound: Duration) -> bool {
        self.position.since(self.event) > lag_bound
    }

    /// From which id on, inclusive, history must be read to judge this cursor.
    pub fn read_from(self, lag_bound: Duration) -> EventId {
        if self.is_confirmed(lag_bound) {
            self.position
        } else {
            self.event
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.event)?;
        if self.position > self.event {
            write!(f, ".{}", self.position)?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidCursor);
        }
        let id = |text: &str| text.parse::<EventId>().map_err(|_| InvalidCursor);
        match text.split_once('.') {
            None => Ok(Self::new(id(text)?, EventId::ZERO)),
            Some((event, position)) => {
                let (event, position) = (id(event)?, id(position)?);
                if position <= event {
                    return Err(InvalidCursor);
                }
                Ok(Self::new(event, position))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_spellings_are_read() {
        let cursor: Cursor = "5-1".parse().unwrap();
        assert_eq!(cursor, Cursor::new(EventId::new(5, 1), EventId::ZERO));
        let cursor: Cursor = "0-0.7-2".parse().unwrap();
        assert_eq!(cursor, Cursor::fresh(EventId::new(7, 2)));
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("1-1{}", " ".repeat(Cursor::MAX_BYTES));
        for text in [
            "",
            "x",
            "5-1.",
            ".5-1",
            "5-1.5-1",
            "5-1.4-0",
            "5-1.6-0.7-0",
            "5-1 ",
            "🦀",
            &long,
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text:?}");
        }
    }

    #[test]
    fn a_position_confirms_once_it_is_later_by_more_than_the_lag_bound() {
        let lag = Duration::from_millis(10);
        let at = |ms| Cursor::new(EventId::new(100, 5), EventId::new(ms, 0));
        assert!(!at(110).is_confirmed(lag) && at(111).is_confirmed(lag));
        assert_eq!(at(110).read_from(lag), EventId::new(100, 5));
        assert_eq!(at(111).read_from(lag), EventId::new(111, 0));
    }

    #[test]
    fn a_position_can_be_told_without_confirming() {
        let lag = Duration::from_millis(10);
        let at = |ms| Cursor::unconfirmed(EventId::new(100, 5), EventId::new(ms, 0), lag);
        assert_eq!(at(104).position(), EventId::new(104, 0));
        assert_eq!(at(200).position(), EventId::new(110, 0));
        assert!(!at(200).is_confirmed(lag));
        let fresh = Cursor::unconfirmed(EventId::ZERO, EventId::new(200, 0), lag);
        assert_eq!(fresh, Cursor::fresh(EventId::new(200, 0)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(event: (u64, u64), position: (u64, u64)) {
            let cursor = Cursor::new(EventId::new(event.0, event.1), EventId::new(position.0, position.1));
            let text = cursor.to_string();
            prop_assert!(text.len() <= Cursor::MAX_BYTES);
            // What triggers a CORS preflight (Fetch, "CORS-unsafe request-header byte").
            let unsafe_bytes = ['"', '(', ')', ':', '<', '>', '?', '@', '[', '\\', ']', '{', '}'];
            let is_safe = !text.contains(unsafe_bytes);
            prop_assert!(is_safe);
            prop_assert_eq!(text.parse(), Ok(cursor));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,140}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
