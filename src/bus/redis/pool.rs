//! Connections for commands. They belong to the control runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, PoolConfig, Runtime, Timeouts};
use redis::{ConnectionInfo, ErrorKind, ProtocolVersion, RedisError, RedisResult};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_config, connection_info};

/// A command takes a fraction of a millisecond, so this many connections serve thousands of
/// publishers a second.
pub(super) const POOL_SIZE: usize = 8;

/// The longest wait for a connection.
pub(super) const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// Connections for commands, to be used on the control runtime only.
#[derive(Clone, Default)]
pub(super) struct CommandPool {
    /// Those to the current server; `None` while it is not known.
    current: Arc<Mutex<Option<Pool>>>,
}

impl CommandPool {
    /// Connects to this server from now on, and uses no connection again that is there by now:
    /// the name may lead to another server. Those in use serve the command they were taken for.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub(super) fn renew(&self, info: &ConnectionInfo) -> RedisResult<()> {
        let manager = Manager::new_with_config(
            connection_info(info, ProtocolVersion::RESP2),
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
        self.replace(Some(pool));
        Ok(())
    }

    /// Sends no more commands to the server.
    pub(super) fn leave(&self) {
        self.replace(None);
    }

    fn replace(&self, pool: Option<Pool>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = pool;
    }

    pub(super) async fn get(&self) -> Result<Connection, String> {
        let pool = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let pool = pool.ok_or("no primary is known")?;
        pool.get().await.map_err(|error| error.to_string())
    }
}
