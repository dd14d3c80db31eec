//! Who is kept out although their tokens are still good.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The longest subject or token id that can be revoked, in bytes.
pub const MAX_REVOKED_BYTES: usize = 1024;

/// For how long somebody is kept out where nobody says until when: longer than tokens should last.
pub const REVOCATION_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// For how long a token is good behind its `exp`, since clocks differ; so much longer is kept out
/// who is revoked until then.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(5);

/// The longest somebody can be kept out: some ten years.
pub const MAX_REVOCATION_TIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Whom a revocation concerns. Written `sub:<subject>` and `jti:<token id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revoked {
    /// Every token of this subject (RFC 7519, `sub`).
    Subject(Arc<str>),
    /// This one token (RFC 7519, `jti`).
    Token(Arc<str>),
}

/// Somebody is kept out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Who.
    pub revoked: Revoked,
    /// Until when, in Unix milliseconds, and [`TOKEN_LEEWAY`]: the tokens concerned have expired
    /// then.
    pub until_ms: u64,
}

/// Why a text is no [`Revoked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be sub:<subject> or jti:<token id>, of 1 to {MAX_REVOKED_BYTES} bytes")]
pub struct InvalidRevoked;

impl Revoked {
    /// `sub` or `jti`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Subject(_) => "sub",
            Self::Token(_) => "jti",
        }
    }

    /// The subject, or the token id.
    pub fn value(&self) -> &Arc<str> {
        match self {
            Self::Subject(value) | Self::Token(value) => value,
        }
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.value())
    }
}

impl FromStr for Revoked {
    type Err = InvalidRevoked;

    fn from_str(text: &str) -> Result<Self, InvalidRevoked> {
        let (kind, value) = text.split_once(':').ok_or(InvalidRevoked)?;
        if !(1..=MAX_REVOKED_BYTES).contains(&value.len()) {
            return Err(InvalidRevoked);
        }
        match kind {
            "sub" => Ok(Self::Subject(value.into())),
            "jti" => Ok(Self::Token(value.into())),
            _ => Err(InvalidRevoked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["sub:alice", "jti:a:b c", "sub:é\n", "sub::"] {
            assert_eq!(text.parse::<Revoked>().unwrap().to_string(), text);
        }
        let longest = format!("sub:{}", "x".repeat(MAX_REVOKED_BYTES));
        assert!(longest.parse::<Revoked>().is_ok());
        let too_long = format!("{longest}x");
        for text in ["", "alice", "sub:", "Sub:alice", "iss:x", &too_long] {
            assert_eq!(text.parse::<Revoked>(), Err(InvalidRevoked), "{text}");
        }
    }
}
