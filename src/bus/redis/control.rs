//! The channel of the gateways themselves, `<prefix>$control`: who is to be kept out. What else is
//! said on it is for [`peers`](crate::bus::peers).
//!
//! The function library stores a revocation and publishes it in one step. So a replica that has
//! subscribed to the channel and then reads what is stored misses nobody, at the start and after
//! every loss of the connection.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use super::functions::refusal;
use super::peers;
use crate::hub::{MOST_REVOCATIONS, Revocations};
use crate::protocol::Revocation;

/// What is known of the channel, across connections.
pub(super) struct Control {
    pub(super) channel: String,
    key: String,
    pub(super) revocations: Arc<Revocations>,
    /// Why revocations cannot be read, as it was told last.
    refused: Option<String>,
}

/// What was found on joining: the revocations, or why they may not be read.
pub(super) type Joined = Result<Vec<Revocation>, RedisError>;

impl Control {
    pub(super) fn new(prefix: &str, revocations: Arc<Revocations>) -> Self {
        Self {
            channel: peers::channel(prefix),
            key: revocations_key(prefix),
            revocations,
            refused: None,
        }
    }

    /// Subscribes to the channel, and reads what is in force then.
    pub(super) fn join(
        &self,
        mut connection: MultiplexedConnection,
    ) -> impl Future<Output = RedisResult<Joined>> + Send + use<> {
        let (channel, key) = (self.channel.clone(), self.key.clone());
        async move {
            let joined = async {
                connection.subscribe(channel).await?;
                let mut command = redis::cmd("ZRANGE");
                command.arg(key).arg("0").arg(MOST_REVOCATIONS - 1);
                command.arg("WITHSCORES");
                let found: Vec<(Vec<u8>, f64)> = command.query_async(&mut connection).await?;
                Ok(found.into_iter().filter_map(revocation).collect())
            };
            match joined.await {
                Err(error) if refusal(&error).is_none() => Err(error),
                joined => Ok(joined),
            }
        }
    }

    /// Takes note of what was found. Each change is logged once.
    pub(super) fn note(&mut self, joined: Joined) -> Vec<Revocation> {
        match joined {
            Ok(revocations) => {
                if self.refused.take().is_some() {
                    tracing::info!("revocations can be read");
                }
                revocations
            }
            Err(error) => {
                let reason = error.to_string();
                if self.refused.as_ref() != Some(&reason) {
                    tracing::warn!(
                        reason,
                        "revocations cannot be read: who is revoked elsewhere is not kept out here"
                    );
                    self.refused = Some(reason);
                }
                Vec::new()
            }
        }
    }

    /// Keeps these out from now on.
    pub(super) fn add(&self, revocations: &[Revocation]) {
        let refused = self.revocations.add(revocations);
        if refused > 0 {
            tracing::error!(
                refused,
                most = MOST_REVOCATIONS,
                "too many revocations: their streams end, but they are not kept out"
            );
        }
    }
}

/// Where the function library keeps revocations.
pub(super) fn revocations_key(prefix: &str) -> String {
    format!("{prefix}$revocations")
}

/// What somebody else has written there is none.
fn revocation((member, until_ms): (Vec<u8>, f64)) -> Option<Revocation> {
    let revoked = std::str::from_utf8(&member).ok()?.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time; what is none ends up at one of the ends of time"
    )]
    let until_ms = until_ms as u64;
    Some(Revocation { revoked, until_ms })
}
