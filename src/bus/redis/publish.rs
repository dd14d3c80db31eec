//! Publishing through Redis.

use std::sync::Arc;

use redis::{Cmd, RedisError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::control::revocations_key;
use super::functions::{Refusal, call, refusal};
use super::keeping::Support;
use super::once::connect_once;
use super::pool::{CommandPool, POOL_PATIENCE};
use crate::bus::{KeepOptions, PublishError};
use crate::config::RedisUrl;
use crate::protocol::{ChannelName, Event, EventId, Revocation, encode};

/// Publishes through Redis.
#[derive(Clone)]
pub struct RedisPublisher {
    pool: CommandPool,
    prefix: String,
    support: Arc<Support>,
    control: Handle,
}

impl std::fmt::Debug for RedisPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisPublisher")
    }
}

impl RedisPublisher {
    pub(super) fn new(
        pool: CommandPool,
        prefix: &str,
        support: Arc<Support>,
        control: &Handle,
    ) -> Self {
        Self {
            pool,
            prefix: prefix.to_owned(),
            support,
            control: control.clone(),
        }
    }

    pub(crate) async fn publish(
        &self,
        channel: &ChannelName,
        event: &Event,
    ) -> Result<(), PublishError> {
        let command = live_command(&self.prefix, channel, event);
        self.run::<i64>(command).await.map(drop)
    }

    pub(crate) async fn publish_kept(
        &self,
        channel: &ChannelName,
        event: &Event,
        options: &KeepOptions,
    ) -> Result<EventId, PublishError> {
        let command = kept_command(&self.prefix, channel, event, options);
        let id: String = self.run(command).await?;
        id.parse()
            .map_err(|_| PublishError::Unavailable("Redis answered without an id".into()))
    }

    pub(crate) async fn revoke(&self, revocation: &Revocation) -> Result<(), PublishError> {
        let mut command = call("fanfare_revoke", &revocations_key(&self.prefix));
        command
            .arg(revocation.revoked.kind())
            .arg(&**revocation.revoked.value())
            .arg("exp")
            .arg(revocation.until_ms.div_ceil(1000));
        self.run::<i64>(command).await.map(drop)
    }

    /// From any runtime: a pooled connection is used only where it was made.
    pub(super) async fn run<T>(&self, command: Cmd) -> Result<T, PublishError>
    where
        T: redis::FromRedisValue + Send + 'static,
    {
        let pool = self.pool.clone();
        let support = Arc::clone(&self.support);
        let running = self.control.spawn(timeout(POOL_PATIENCE, async move {
            let mut connection = pool.get().await.map_err(PublishError::Unavailable)?;
            let answer: Result<T, RedisError> = command.query_async(&mut *connection).await;
            answer.map_err(|error| {
                if refusal(&error) == Some(Refusal::Missing) {
                    support.note_missing();
                    if support.is_impossible() {
                        return PublishError::Impossible(error.to_string());
                    }
                }
                PublishError::from(error)
            })
        }));
        match running.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PublishError::Unavailable("no answer in time".into())),
            Err(_) => Err(PublishError::Unavailable("the gateway is stopping".into())),
        }
    }
}

impl From<RedisError> for PublishError {
    fn from(error: RedisError) -> Self {
        match refusal(&error) {
            Some(Refusal::Missing | Refusal::Forbidden) => Self::Unsupported(error.to_string()),
            Some(Refusal::Rejected(rule)) => Self::Rejected(rule),
            Some(Refusal::Ended(reason)) => Self::Ended(reason),
            Some(Refusal::NotAHistory) => Self::NotAHistory(error.to_string()),
            Some(Refusal::NotNow(code)) => Self::NotNow {
                code,
                reason: error.to_string(),
            },
            Some(Refusal::Replica | Refusal::ClusterNode) | None => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}

fn live_command(prefix: &str, channel: &ChannelName, event: &Event) -> Cmd {
    let mut command = redis::cmd("PUBLISH");
    command.arg(format!("{prefix}{channel}")).arg(encode(event));
    command
}

fn kept_command(prefix: &str, channel: &ChannelName, event: &Event, options: &KeepOptions) -> Cmd {
    let mut command = call("fanfare_publish", &format!("{prefix}{channel}"));
    command.arg(&event.data()[..]);
    if let Some(name) = event.name() {
        command.arg("event").arg(name.as_str());
    }
    if let Some(retry) = event.retry() {
        command.arg("retry").arg(retry.as_millis().to_string());
    }
    if let Some(audience) = event.audience() {
        command.arg("to").arg(audience.as_str());
    }
    if let Some(length) = options.history {
        command.arg("history").arg(length);
    }
    if let Some(key) = &options.key {
        command.arg("key").arg(key);
    }
    if let Some(reason) = options.end {
        command.arg("end").arg(reason.label());
    }
    if let Some(parent) = event.trace_parent() {
        command.arg("traceparent").arg(parent.to_string());
    }
    command
}

/// Publishes one event over a connection of its own, for the command line. `keep`: the event is
/// kept, and its id returned.
///
/// # Errors
/// When Redis cannot be reached or refuses.
pub async fn publish_once(
    url: &RedisUrl,
    prefix: &str,
    channel: &ChannelName,
    event: &Event,
    keep: Option<&KeepOptions>,
) -> Result<Option<EventId>, PublishError> {
    let mut connection = connect_once(url).await?;
    let Some(options) = keep else {
        let command = live_command(prefix, channel, event);
        command.exec_async(&mut connection).await?;
        return Ok(None);
    };
    let command = kept_command(prefix, channel, event, options);
    let id: String = command.query_async(&mut connection).await?;
    let id = id
        .parse()
        .map_err(|_| PublishError::Unavailable("Redis answered without an id".into()))?;
    Ok(Some(id))
}
