//! Connections for commands. They belong to the control runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::{
    Connection, Hook, HookError, Manager, Metrics, Pool, PoolConfig, Runtime, Timeouts,
};
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
pub(super) struct CommandPool {
    pool: Pool,
    /// Connections that are older are not used again.
    renewed_at: Arc<Mutex<Instant>>,
}

impl CommandPool {
    pub(super) fn new(url: &RedisUrl) -> Result<Self, RedisError> {
        let manager = Manager::new_with_config(
            connection_info(url, ProtocolVersion::RESP2)?,
            connection_config(),
        )?;
        let renewed_at = Arc::new(Mutex::new(Instant::now()));
        let oldest = Arc::clone(&renewed_at);
        let is_current = move |_: &mut _, metrics: &Metrics| {
            if metrics.created < *oldest.lock().unwrap_or_else(PoisonError::into_inner) {
                return Err(HookError::message("from before a reconnection"));
            }
            Ok(())
        };
        let pool = Pool::builder(manager)
            .pre_recycle(Hook::sync_fn(is_current))
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
        Ok(Self { pool, renewed_at })
    }

    pub(super) async fn get(&self) -> Result<Connection, String> {
        self.pool.get().await.map_err(|error| error.to_string())
    }

    /// Uses no connection again that is there by now: the name may lead to another server. Those
    /// in use serve the command they were taken for.
    pub(super) fn renew(&self) {
        *self
            .renewed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.pool.retain(|_, _| false);
    }
}
