//! Commands to Redis, over a pool that belongs to the control runtime.

use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_info};
use crate::bus::PublishError;
use crate::config::RedisUrl;
use crate::protocol::{ChannelName, Event, encode};

/// Connections for commands. A command takes a fraction of a millisecond, so this many serve
/// thousands of publishers a second.
const POOL_SIZE: usize = 8;

/// From the wish to publish to the answer, waiting for a connection included.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(Some(COMMAND_DEADLINE))
}

/// Publishes through Redis.
#[derive(Clone)]
pub struct RedisPublisher {
    pool: Pool,
    prefix: String,
    control: Handle,
}

impl std::fmt::Debug for RedisPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisPublisher")
    }
}

impl RedisPublisher {
    pub(super) fn new(url: &RedisUrl, prefix: &str, control: &Handle) -> Result<Self, RedisError> {
        let manager = Manager::new_with_config(
            connection_info(url, ProtocolVersion::RESP2)?,
            connection_config(),
        )?;
        let pool = Pool::builder(manager)
            .config(PoolConfig {
                max_size: POOL_SIZE,
                timeouts: Timeouts {
                    wait: Some(PUBLISH_DEADLINE),
                    create: Some(CONNECT_DEADLINE),
                    recycle: Some(COMMAND_DEADLINE),
                },
                ..PoolConfig::default()
            })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| {
                RedisError::from((
                    redis::ErrorKind::InvalidClientConfig,
                    "pool",
                    error.to_string(),
                ))
            })?;
        Ok(Self {
            pool,
            prefix: prefix.to_owned(),
            control: control.clone(),
        })
    }

    /// Publishes, from any runtime: a pooled connection is used only where it was made.
    pub(crate) async fn publish(
        &self,
        channel: &ChannelName,
        event: &Event,
    ) -> Result<(), PublishError> {
        let channel = format!("{}{channel}", self.prefix);
        let payload = encode(event);
        let pool = self.pool.clone();
        let published = self.control.spawn(timeout(PUBLISH_DEADLINE, async move {
            let mut connection = pool.get().await.map_err(|error| error.to_string())?;
            redis::cmd("PUBLISH")
                .arg(channel)
                .arg(payload)
                .exec_async(&mut connection)
                .await
                .map_err(|error| error.to_string())
        }));
        match published.await {
            Ok(Ok(result)) => result.map_err(PublishError),
            Ok(Err(_)) => Err(PublishError("no answer in time".into())),
            Err(_) => Err(PublishError("the gateway is stopping".into())),
        }
    }
}

/// Publishes one event over a connection of its own, for the command line.
///
/// # Errors
/// When Redis cannot be reached or refuses.
pub async fn publish_once(
    url: &RedisUrl,
    prefix: &str,
    channel: &ChannelName,
    event: &Event,
) -> Result<(), RedisError> {
    let client = redis::Client::open(connection_info(url, ProtocolVersion::RESP2)?)?;
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&connection_config())
        .await?;
    redis::cmd("PUBLISH")
        .arg(format!("{prefix}{channel}"))
        .arg(encode(event))
        .exec_async(&mut connection)
        .await
}
