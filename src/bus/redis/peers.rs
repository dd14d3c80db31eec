//! Messages to other replicas, published over the pool.

use redis::RedisResult;
use tokio::time::timeout;

use super::pool::{CommandPool, POOL_PATIENCE};
use crate::bus::peer_queue::CHANNEL;

/// Publishes messages to other replicas. To be used on the control runtime.
#[derive(Clone)]
pub struct RedisPeers {
    pool: CommandPool,
    channel: String,
}

impl std::fmt::Debug for RedisPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisPeers")
    }
}

impl RedisPeers {
    pub(super) fn new(pool: CommandPool, prefix: &str) -> Self {
        Self {
            pool,
            channel: channel(prefix),
        }
    }

    pub(crate) async fn send(&self, message: Vec<u8>) {
        let sent = timeout(POOL_PATIENCE, self.publish(message)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error, "a message to other replicas was not sent"),
            Err(_) => tracing::debug!("a message to other replicas was not sent in time"),
        }
    }

    async fn publish(&self, message: Vec<u8>) -> Result<(), String> {
        let mut connection = self.pool.get().await?;
        let published: RedisResult<()> = redis::cmd("PUBLISH")
            .arg(&self.channel)
            .arg(message)
            .exec_async(&mut *connection)
            .await;
        published.map_err(|error| error.to_string())
    }
}

/// The Redis channel.
pub(super) fn channel(prefix: &str) -> String {
    format!("{prefix}{CHANNEL}")
}
