//! Probes: messages to oneself through Redis.
//!
//! A connection that looks healthy proves nothing: every few seconds a probe is published on a
//! channel of this replica's own, and one that does not come back in time ends the session. It
//! has an id where the function library is there, and then says up to which id everything has
//! arrived. Where Redis refuses the function it is a plain number: only silence replaces a
//! connection.

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use super::functions::{Refusal, call, refusal};

/// How a probe was published.
#[derive(Debug)]
pub(super) enum Sent {
    /// With an id, or without because nobody asked for one.
    AsAsked,
    /// Without, because Redis refused the function.
    Refused(Refusal, RedisError),
}

/// Publishes a probe. `with_id`: by the function.
///
/// # Errors
/// When Redis does not take it either way, or is a replica.
pub(super) async fn send(
    mut connection: MultiplexedConnection,
    channel: String,
    number: u64,
    with_id: bool,
) -> RedisResult<Sent> {
    let mut sent = Sent::AsAsked;
    if with_id {
        let mut command = call("fanfare_probe", &channel);
        command.arg(number.to_string());
        match command.exec_async(&mut connection).await {
            Ok(()) => return Ok(Sent::AsAsked),
            Err(error) => match refusal(&error) {
                None | Some(Refusal::Replica) => return Err(error),
                Some(refusal) => sent = Sent::Refused(refusal, error),
            },
        }
    }
    redis::cmd("PUBLISH")
        .arg(channel)
        .arg(number.to_string())
        .exec_async(&mut connection)
        .await?;
    Ok(sent)
}
