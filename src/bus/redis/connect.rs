//! Reaching Redis, with a deadline on everything.

use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2};
use redis::{AsyncConnectionConfig, ConnectionInfo, ProtocolVersion, RedisError};

use crate::config::RedisUrl;

/// To be connected and greeted. Two seconds: a healthy Redis takes milliseconds, and a stopped
/// one must not hold up the next attempt.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// For the answer to one command.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(3);

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up
/// (`TCP_USER_TIMEOUT`): the same patience as for an answer.
const USER_TIMEOUT: Duration = COMMAND_DEADLINE;

/// How to connect to `url`, speaking `protocol`.
pub(super) fn connection_info(
    url: &RedisUrl,
    protocol: ProtocolVersion,
) -> Result<ConnectionInfo, RedisError> {
    let info = url.connection_info()?;
    let settings = info.redis_settings().clone().set_protocol(protocol);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive)
        .set_user_timeout(USER_TIMEOUT);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// The deadlines of a connection.
pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(Some(COMMAND_DEADLINE))
}
