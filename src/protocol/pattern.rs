//! Channel patterns of configuration rules: an exact name, or a prefix followed by `*`.

use std::fmt;

use super::ChannelName;
use super::channel::is_channel_byte;

/// `orders`, `public.*` or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelPattern {
    /// This one channel.
    Exact(ChannelName),
    /// Every channel whose name begins with this text.
    Prefix(String),
}

/// Why a text is not a [`ChannelPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern must be a channel name, or a prefix of one followed by a single *")]
pub struct InvalidPattern;

impl ChannelPattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// When it is no channel name and no prefix of one followed by `*`.
    pub fn parse(pattern: &str) -> Result<Self, InvalidPattern> {
        match pattern.strip_suffix('*') {
            None => ChannelName::parse(pattern)
                .map(Self::Exact)
                .map_err(|_| InvalidPattern),
            Some(prefix)
                if prefix.len() <= ChannelName::MAX_BYTES
                    && prefix.bytes().all(is_channel_byte) =>
            {
                Ok(Self::Prefix(prefix.to_owned()))
            }
            Some(_) => Err(InvalidPattern),
        }
    }

    /// Whether `channel` is one of those the pattern names.
    pub fn matches(&self, channel: &ChannelName) -> bool {
        match self {
            Self::Exact(name) => name == channel,
            Self::Prefix(prefix) => channel.starts_with(prefix.as_str()),
        }
    }
}

impl fmt::Display for ChannelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_and_prefixes_match_what_they_say() {
        let channel = ChannelName::parse("public.news").unwrap();
        for (pattern, matches) in [
            ("public.news", true),
            ("public.*", true),
            ("*", true),
            ("public", false),
            ("private.*", false),
            ("public.news.*", false),
        ] {
            let parsed = ChannelPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(&channel), matches, "{pattern}");
        }
    }

    #[test]
    fn a_star_elsewhere_is_refused() {
        for pattern in ["", "a*b", "**", "*a", "a b*", "$*"] {
            assert_eq!(
                ChannelPattern::parse(pattern),
                Err(InvalidPattern),
                "{pattern}"
            );
        }
    }
}
