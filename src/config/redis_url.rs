//! The Redis URL, which may hold a password.

use std::fmt;

use redis::{ConnectionInfo, IntoConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};

/// A checked Redis URL. It may hold a password, so it prints without one.
#[derive(Clone)]
pub struct RedisUrl(SecretString);

impl RedisUrl {
    /// Checks a URL: `redis://`, `rediss://` or `redis+unix://`, database 0.
    ///
    /// # Errors
    /// With the rule that is broken; the URL itself is never part of the message.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.starts_with("redis-sentinel://") || url.starts_with("redis-cluster://") {
            return Err("Sentinel and cluster URLs are not supported by this version".into());
        }
        let info = url.into_connection_info().map_err(|_| {
            "is redis://[user:password@]host[:port], rediss://… or redis+unix:///path".to_owned()
        })?;
        if info.redis_settings().db() != 0 {
            return Err(
                "names a database: pub/sub knows none, so only database 0 is allowed".into(),
            );
        }
        Ok(Self(url.into()))
    }

    /// What the redis crate connects to, password included.
    ///
    /// # Errors
    /// None for a URL that was checked; the redis crate's signature has one.
    pub fn connection_info(&self) -> Result<ConnectionInfo, RedisError> {
        self.0.expose_secret().into_connection_info()
    }

    /// The address without user and password, for people.
    pub fn address(&self) -> String {
        self.connection_info()
            .map(|info| info.addr().to_string())
            .unwrap_or_default()
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_documented_kinds_are_taken() {
        for url in [
            "redis://127.0.0.1",
            "redis://user:secret@redis.internal:6380/0",
            "rediss://redis.internal",
            "redis+unix:///run/redis.sock",
        ] {
            assert!(RedisUrl::parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn others_are_refused_without_repeating_a_password() {
        for url in [
            "",
            "127.0.0.1:6379",
            "http://127.0.0.1",
            "redis://user:secret@127.0.0.1/1",
            "redis://user:secret@127.0.0.1:x",
            "redis-sentinel://secret@a:1,b:2/main",
        ] {
            let fault = RedisUrl::parse(url).unwrap_err();
            assert!(!fault.contains("secret"), "{fault}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let url = RedisUrl::parse("redis://user:secret@127.0.0.1:6379").unwrap();
        assert_eq!(format!("{url:?}"), "RedisUrl(127.0.0.1:6379)");
    }
}
