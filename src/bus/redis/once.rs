//! A connection for a few commands, for the command line.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, ProtocolVersion, RedisError, RedisResult};
use tokio::runtime::Handle;

use super::connect::{connection_config, connection_info, is_primary};
use super::sentinel::Sentinels;
use crate::config::{RedisPlace, RedisUrl};
use crate::tasks::Tasks;

/// Connects to the primary that the URL, or its Sentinels, name.
///
/// # Errors
/// When it cannot be reached, or what the Sentinels name is a replica.
pub(super) async fn connect_once(url: &RedisUrl) -> RedisResult<MultiplexedConnection> {
    let refused = |reason: String| RedisError::from((ErrorKind::Client, "Sentinel", reason));
    let (info, is_named) = match url.place() {
        RedisPlace::Server(info) => (info.clone(), false),
        RedisPlace::Sentinels(group) => {
            let mut tasks = Tasks::on(&Handle::current());
            let group = Arc::new(ArcSwap::from_pointee(group.clone()));
            let sentinels = Sentinels::start(group, Duration::from_secs(60), &mut tasks);
            let found = sentinels.find().await;
            let (info, _) = found.map_err(|fault| refused(fault.to_string()))?;
            (info, true)
        }
    };
    let client = Client::open(connection_info(&info, ProtocolVersion::RESP2))?;
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&connection_config())
        .await?;
    if is_named && !is_primary(&mut connection).await? {
        return Err(refused(format!("names {}, a replica", info.addr())));
    }
    Ok(connection)
}
