//! Reaching Redis, with a deadline on everything.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{AsyncConnectionConfig, ConnectionInfo, ProtocolVersion, RedisResult, Value};

/// To be connected and greeted. Two seconds: a healthy Redis takes milliseconds, and a stopped
/// one must not hold up the next attempt.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// For the answer to one command.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(3);

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up
/// (`TCP_USER_TIMEOUT`): the same patience as for an answer.
const USER_TIMEOUT: Duration = COMMAND_DEADLINE;

/// How to connect to the server of `info`, speaking `protocol`.
pub(super) fn connection_info(info: &ConnectionInfo, protocol: ProtocolVersion) -> ConnectionInfo {
    let settings = info.redis_settings().clone().set_protocol(protocol);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive)
        .set_user_timeout(USER_TIMEOUT);
    info.clone()
        .set_redis_settings(settings)
        .set_tcp_settings(tcp)
}

/// The deadlines of a connection.
pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(Some(COMMAND_DEADLINE))
}

/// Whether a server takes itself for a primary (`ROLE`).
pub(super) async fn is_primary(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
    let role = role.into_iter().next().unwrap_or(Value::Nil);
    Ok(redis::from_redis_value::<String>(role)? == "master")
}
