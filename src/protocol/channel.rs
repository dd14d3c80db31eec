//! Channel names: `orders`, `orders.eu`, `user.42`.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A valid channel name: 1–200 bytes of `A–Z a–z 0–9 . _ - ~ :`.
///
/// Cloning shares the text. Names that begin with `$` are the gateway's own and cannot be
/// written in this alphabet, so no client and no publisher can reach them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Why a text is not a [`ChannelName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// The name has no bytes.
    #[error("a channel name must not be empty")]
    Empty,
    /// The name is longer than [`ChannelName::MAX_BYTES`].
    #[error("a channel name must have at most {} bytes", ChannelName::MAX_BYTES)]
    TooLong,
    /// The name holds a byte outside the alphabet.
    #[error("a channel name may contain only A-Z a-z 0-9 . _ - ~ :")]
    Alphabet,
}

impl ChannelName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 200;

    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a byte outside the alphabet.
    pub fn parse(name: &str) -> Result<Self, InvalidChannelName> {
        if name.is_empty() {
            return Err(InvalidChannelName::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(InvalidChannelName::TooLong);
        }
        if !name.bytes().all(is_channel_byte) {
            return Err(InvalidChannelName::Alphabet);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `byte` may stand in a channel name.
pub(super) fn is_channel_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~' | b':')
}

impl Deref for ChannelName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ChannelName {
    type Err = InvalidChannelName;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_whole_alphabet_up_to_the_limit() {
        assert!(ChannelName::parse("AZaz09._-~:").is_ok());
        assert!(ChannelName::parse(&"x".repeat(200)).is_ok());
        assert_eq!(
            ChannelName::parse(&"x".repeat(201)),
            Err(InvalidChannelName::TooLong)
        );
        assert_eq!(ChannelName::parse(""), Err(InvalidChannelName::Empty));
    }

    #[test]
    fn refuses_whatever_could_mean_something_to_redis_or_http() {
        for name in [
            "$config", "a b", "a/b", "a*", "a?", "[a]", "a\r\nb", "a\0", "é", "a%41", "{a}", "a,b",
        ] {
            assert_eq!(
                ChannelName::parse(name),
                Err(InvalidChannelName::Alphabet),
                "{name:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_either_kept_as_it_is_or_refused(name in ".{0,220}") {
            if let Ok(parsed) = ChannelName::parse(&name) {
                prop_assert_eq!(parsed.as_str(), name.as_str());
                prop_assert!(name.is_ascii() && !name.starts_with('$'));
            }
        }

        #[test]
        fn every_name_of_the_alphabet_is_taken(name in "[A-Za-z0-9._~:-]{1,200}") {
            prop_assert!(ChannelName::parse(&name).is_ok());
        }
    }
}
