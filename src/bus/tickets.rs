//! Where tickets are kept until they are spent: in Redis, where every replica finds them, or in
//! this process. What a ticket is and what it stands for is the business of `http::tickets`.

use std::time::Duration;

use super::embedded::EmbeddedTickets;
use super::redis::RedisTickets;

/// Tickets cannot be kept or looked up now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tickets cannot be had now: {0}")]
pub struct TicketsUnavailable(pub String);

/// Keeps tickets for a short while.
#[derive(Clone, Debug)]
pub enum TicketStore {
    /// In this process.
    Embedded(EmbeddedTickets),
    /// In Redis.
    Redis(RedisTickets),
}

impl TicketStore {
    /// Keeps `value` under `key` for `life`.
    ///
    /// # Errors
    /// When the bus is not available, or there is no room.
    pub async fn keep(
        &self,
        key: &str,
        value: String,
        life: Duration,
    ) -> Result<(), TicketsUnavailable> {
        match self {
            Self::Embedded(tickets) => tickets.keep(key, value, life),
            Self::Redis(tickets) => tickets.keep(key, &value, life).await,
        }
    }

    /// What is kept under `key`, if it is neither spent nor expired.
    ///
    /// # Errors
    /// When the bus is not available.
    pub async fn look(&self, key: &str) -> Result<Option<String>, TicketsUnavailable> {
        match self {
            Self::Embedded(tickets) => Ok(tickets.look(key)),
            Self::Redis(tickets) => tickets.look(key).await,
        }
    }

    /// Spends what is kept under `key`: of all who try, on all replicas, one is told `true`.
    ///
    /// # Errors
    /// When the bus is not available. It may have been spent all the same.
    pub async fn spend(&self, key: &str) -> Result<bool, TicketsUnavailable> {
        match self {
            Self::Embedded(tickets) => Ok(tickets.spend(key)),
            Self::Redis(tickets) => tickets.spend(key).await,
        }
    }
}
