//! Connections for commands. They belong to the control runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{
    Hook, HookError, Manager, Metrics, Object, Pool, PoolConfig, RecycleResult, Timeouts,
};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, RedisError};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_config, connection_info};
use crate::config::RedisUrl;

/// A command takes a fraction of a millisecond, so this many connections serve thousands of
/// publishers a second.
pub(super) const POOL_SIZE: usize = 8;

/// The longest wait for a connection.
pub(super) const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// Makes connections, and asks before one is used again whether it still is one. That takes the
/// right to PING and no other.
pub(super) struct Connections {
    client: Client,
    config: AsyncConnectionConfig,
}

impl Manager for Connections {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    async fn create(&self) -> Result<MultiplexedConnection, RedisError> {
        self.client
            .get_multiplexed_async_connection_with_config(&self.config)
            .await
    }

    async fn recycle(
        &self,
        connection: &mut MultiplexedConnection,
        _: &Metrics,
    ) -> RecycleResult<RedisError> {
        Ok(redis::cmd("PING").exec_async(connection).await?)
    }
}

/// A connection that goes back to the pool when it is dropped.
pub(super) type Pooled = Object<Connections>;

/// Connections for commands, to be used on the control runtime only.
#[derive(Clone)]
pub(super) struct CommandPool {
    pool: Pool<Connections>,
    /// Connections that are older are not used again.
    renewed_at: Arc<Mutex<Instant>>,
}

impl CommandPool {
    pub(super) fn new(url: &RedisUrl) -> Result<Self, RedisError> {
        let connections = Connections {
            client: Client::open(connection_info(url, ProtocolVersion::RESP2)?)?,
            config: connection_config(),
        };
        let renewed_at = Arc::new(Mutex::new(Instant::now()));
        let oldest = Arc::clone(&renewed_at);
        let is_current = move |_: &mut _, metrics: &Metrics| {
            if metrics.created < *oldest.lock().unwrap_or_else(PoisonError::into_inner) {
                return Err(HookError::message("from before a reconnection"));
            }
            Ok(())
        };
        let pool = Pool::builder(connections)
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

    pub(super) async fn get(&self) -> Result<Pooled, String> {
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
