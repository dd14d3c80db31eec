//! Connections for commands. They belong to the control runtime.

use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, PoolConfig, Runtime, Timeouts};
use redis::{ErrorKind, ProtocolVersion, RedisError};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_config, connection_info};
use crate::config::RedisUrl;

/// A command takes a fraction of a millisecond, so this many connections serve thousands of
/// publishers a second.
pub(super) const POOL_SIZE: usize = 8;

/// The longest wait for a connection.
pub(super) const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// Connections for commands, to be used on the control runtime only.
#[derive(Clone)]
pub(super) struct CommandPool(Pool);

impl CommandPool {
    pub(super) fn new(url: &RedisUrl) -> Result<Self, RedisError> {
        let manager = Manager::new_with_config(
            connection_info(url, ProtocolVersion::RESP2)?,
            connection_config(),
        )?;
        let pool = Pool::builder(manager)
            .config(PoolConfig {
                max_size: POOL_SIZE,
                timeouts: Timeouts {
                    wait: Some(POOL_PATIENCE),
                    create: Some(CONNECT_DEADLINE),
                    recycle: Some(COMMAND_DEADLINE),
                },
                ..PoolConfig::default()
            })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| {
                RedisError::from((ErrorKind::InvalidClientConfig, "pool", error.to_string()))
            })?;
        Ok(Self(pool))
    }

    pub(super) async fn get(&self) -> Result<Connection, String> {
        self.0.get().await.map_err(|error| error.to_string())
    }

    /// Closes idle connections: the name may lead to another server by now.
    pub(super) fn renew(&self) {
        self.0.retain(|_, _| false);
    }
}
