//! Tickets in Redis: a key each, which expires by itself.

use std::time::Duration;

use redis::{Cmd, FromRedisValue};

use super::RedisPublisher;
use crate::bus::TicketsUnavailable;

/// Keeps tickets in Redis.
#[derive(Clone, Debug)]
pub struct RedisTickets {
    commands: RedisPublisher,
    prefix: String,
}

impl RedisTickets {
    pub(super) fn new(commands: RedisPublisher, prefix: &str) -> Self {
        Self {
            commands,
            // `$`: no client and no publisher can name it.
            prefix: format!("{prefix}$ticket."),
        }
    }

    pub(crate) async fn keep(
        &self,
        key: &str,
        value: &str,
        life: Duration,
    ) -> Result<(), TicketsUnavailable> {
        let mut command = self.command("SET", key);
        let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
        command.arg(value).arg("PX").arg(life_ms);
        self.run(command).await
    }

    pub(crate) async fn look(&self, key: &str) -> Result<Option<String>, TicketsUnavailable> {
        self.run(self.command("GET", key)).await
    }

    /// Redis deletes a key once, whoever asks.
    pub(crate) async fn spend(&self, key: &str) -> Result<bool, TicketsUnavailable> {
        let deleted: u64 = self.run(self.command("DEL", key)).await?;
        Ok(deleted == 1)
    }

    fn command(&self, name: &str, key: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(format!("{}{key}", self.prefix));
        command
    }

    async fn run<T>(&self, command: Cmd) -> Result<T, TicketsUnavailable>
    where
        T: FromRedisValue + Send + 'static,
    {
        let answer = self.commands.run(command).await;
        answer.map_err(|error| TicketsUnavailable(error.to_string()))
    }
}
