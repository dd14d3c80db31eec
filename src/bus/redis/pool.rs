//! Connections for commands. They belong to the control runtime.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool::managed;
use deadpool_redis::{Metrics, PoolConfig, Runtime, Timeouts};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, RedisError, RedisResult};

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_config, connection_info};
use crate::config::RedisPlace;

/// A command takes a fraction of a millisecond, so this many connections serve thousands of
/// publishers a second.
pub(super) const POOL_SIZE: usize = 8;

/// The longest wait for a connection, and for the answer to a command of a client. nginx/nginx.conf waits
/// longer for an answer.
pub(crate) const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// Makes connections, and checks each one before it is used again. The crate's own check takes the
/// right to UNWATCH, which the documented rights do not include; this one takes PING only.
pub(super) struct Connections(ArcSwap<deadpool_redis::Manager>);

impl Connections {
    fn to(info: &ConnectionInfo) -> RedisResult<deadpool_redis::Manager> {
        let info = connection_info(info, ProtocolVersion::RESP2);
        deadpool_redis::Manager::new_with_config(info, connection_config())
    }
}

impl managed::Manager for Connections {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<MultiplexedConnection> {
        managed::Manager::create(&*self.0.load_full()).await
    }

    async fn recycle(
        &self,
        connection: &mut MultiplexedConnection,
        _: &Metrics,
    ) -> managed::RecycleResult<RedisError> {
        Ok(redis::cmd("PING").exec_async(connection).await?)
    }
}

type Pool = managed::Pool<Connections>;

/// A connection that goes back to the pool when it is dropped.
pub(super) type Pooled = managed::Object<Connections>;

/// Connections for commands, to be used on the control runtime only.
#[derive(Clone, Default)]
pub(super) struct CommandPool {
    /// The current server, and connections to it; `None` while it is not known.
    current: Arc<Mutex<Option<(ConnectionInfo, Pool)>>>,
}

impl CommandPool {
    /// Connects to this server from now on, and uses no connection again that is there by now:
    /// the name may lead to another server. Those in use serve the command they were taken for.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub(super) fn renew(&self, info: &ConnectionInfo) -> RedisResult<()> {
        let manager = ArcSwap::from_pointee(Connections::to(info)?);
        let pool = Pool::builder(Connections(manager))
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
        self.replace(Some((info.clone(), pool)));
        Ok(())
    }

    /// Makes connections with the users, passwords and certificates of `place` from now on. Those that
    /// are there stay.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(super) fn log_in_with(&self, place: &RedisPlace) -> RedisResult<()> {
        let current = self.current.lock();
        let Some((address, pool)) = &*current else {
            return Ok(());
        };
        let info = match (place, address.addr()) {
            (RedisPlace::Server(info), _) => info.clone(),
            (
                RedisPlace::Sentinels(group),
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. },
            ) => group.primary_at(host, *port),
            _ => return Ok(()),
        };
        pool.manager().0.store(Arc::new(Connections::to(&info)?));
        Ok(())
    }

    /// Sends no more commands to the server.
    pub(super) fn leave(&self) {
        self.replace(None);
    }

    fn replace(&self, pool: Option<(ConnectionInfo, Pool)>) {
        *self.current.lock() = pool;
    }

    pub(super) async fn get(&self) -> Result<Pooled, String> {
        let pool = self.current.lock().as_ref().map(|(_, pool)| pool.clone());
        let pool = pool.ok_or("no primary is known")?;
        pool.get().await.map_err(|error| error.to_string())
    }
}
