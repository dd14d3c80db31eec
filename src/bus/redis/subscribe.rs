//! The supervisor of the subscriber connection.
//!
//! The desired channels live outside the connection, in [`Routing`](crate::bus::routing::Routing). Whenever the connection is
//! lost the supervisor makes another, for ever, and a new [`Session`] subscribes to all of them.

use std::pin::pin;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionInfo, ProtocolVersion, PushInfo, RedisResult};
use tokio::time::sleep;

use super::connect::{connection_config, connection_info, is_primary};
use super::ingest::PushQueue;
use super::library::Library;
use super::pool::CommandPool;
use super::sentinel::{Confirmation, NoPrimary, Sentinels};
use super::session::{Session, SessionEnd, SubscriberState};
use crate::bus::BusHealth;
use crate::config::{RedisPlace, RedisUrl};
use crate::tasks::Tasks;
use crate::telemetry::occurrences::RedisDown;

/// Between attempts to connect: doubled from the first to the last, each drawn from the upper
/// half, so that replicas do not come back together.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

/// Knows which server to connect to.
#[derive(Clone)]
pub(super) enum Locator {
    /// Always this one.
    Server(ConnectionInfo),
    /// The primary that these name.
    Sentinels(Sentinels),
}

impl Locator {
    /// The pool is told of a server that is known from the beginning.
    pub(super) fn new(
        url: &RedisUrl,
        lag_bound: Duration,
        tasks: &mut Tasks,
        pool: &CommandPool,
    ) -> RedisResult<Self> {
        Ok(match url.place() {
            RedisPlace::Server(info) => {
                pool.renew(info)?;
                Self::Server(info.clone())
            }
            RedisPlace::Sentinels(group) => {
                Self::Sentinels(Sentinels::start(group, lag_bound, tasks))
            }
        })
    }

    /// The server, and what watches over it: without Sentinels the probes do.
    async fn find(self) -> Result<(ConnectionInfo, Option<Confirmation>), NoPrimary> {
        match self {
            Self::Server(info) => Ok((info, None)),
            Self::Sentinels(sentinels) => {
                let (info, confirmation) = sentinels.find().await?;
                Ok((info, Some(confirmation)))
            }
        }
    }
}

/// A connection that a session begins with.
struct Connected {
    connection: MultiplexedConnection,
    queue: PushQueue,
    confirmation: Option<Confirmation>,
}

pub(super) struct Supervisor {
    locator: Locator,
    pool: CommandPool,
    backoff: Duration,
    state: SubscriberState,
}

impl Supervisor {
    pub(super) fn new(locator: Locator, pool: CommandPool, state: SubscriberState) -> Self {
        Self {
            locator,
            pool,
            backoff: *BACKOFF.start(),
            state,
        }
    }

    /// Keeps a subscriber connection until the shards are gone.
    pub(super) async fn run(mut self) {
        loop {
            let end = match self.connect().await {
                Ok(Connected {
                    connection,
                    queue,
                    confirmation,
                }) => {
                    Session::new(&mut self.state, connection, queue, confirmation)
                        .run()
                        .await
                }
                Err(end) => end,
            };
            if matches!(end, SessionEnd::Stopping) {
                return;
            }
            self.lose(&end).await;
            let delay = self.backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.backoff = (self.backoff * 2).min(*BACKOFF.end());
            if self.absorbing_interest(sleep(delay)).await.is_none() {
                return;
            }
        }
    }

    async fn connect(&mut self) -> Result<Connected, SessionEnd> {
        let finding = self.locator.clone().find();
        let found = self.absorbing_interest(finding).await;
        let (info, confirmation) = found.ok_or(SessionEnd::Stopping)??;
        let is_named = confirmation.is_some();
        let queue = PushQueue::new(
            &self.state.probe_channel,
            &self.state.control.channel,
            &self.state.hears,
        );
        let sender = {
            let queue = queue.clone();
            move |push: PushInfo| {
                queue.push(push);
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let config = connection_config().set_push_sender(sender);
        let address = connection_info(&info, ProtocolVersion::RESP3);
        let probe_channel = self.state.probe_channel.clone();
        let attempt = async move {
            let mut connection = Client::open(address)?
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            // Sentinels may name a server that has become a replica a moment ago.
            if is_named && !is_primary(&mut connection).await? {
                return Ok(None);
            }
            connection.subscribe(probe_channel).await?;
            Ok(Some(connection))
        };
        let connection = self.connecting(attempt).await?;
        let connection = connection.ok_or(SessionEnd::Replica)?;

        let joining = self.state.control.join(connection.clone());
        let joined = self.connecting(joining).await?;
        let revocations = self.state.control.note(joined);
        self.state.revoke(revocations).await;
        let asking = self.state.keeping.ask(connection.clone());
        let library: Library = self.connecting(asking).await?;
        self.state.note_library(library)?;
        // The name may lead to another server than before.
        self.pool.renew(&info).map_err(SessionEnd::Connect)?;
        Ok(Connected {
            connection,
            queue,
            confirmation,
        })
    }

    async fn connecting<T>(
        &mut self,
        step: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, SessionEnd> {
        match self.absorbing_interest(step).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(error)) => Err(SessionEnd::Connect(error)),
            None => Err(SessionEnd::Stopping),
        }
    }

    /// Waits for `future` without keeping the shards waiting. `None` when they are gone.
    async fn absorbing_interest<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return Some(output),
                update = self.state.updates.recv() => {
                    self.state.delivery.routing.apply(update?);
                }
                Some((channel, page)) = self.state.reads.recv() => {
                    self.state.delivery.note_read(&channel, &page);
                }
            }
        }
    }

    async fn lose(&mut self, end: &SessionEnd) {
        let reason = end.to_string();
        let was_up = *self.state.health.borrow() == BusHealth::Up;
        if was_up {
            // It was proven: the next attempt is a first one.
            self.backoff = *BACKOFF.start();
        }
        let cause = end.cause();
        let is_new = self.state.health.send_if_modified(|health| {
            let down = BusHealth::Down {
                cause,
                reason: reason.clone(),
            };
            let changed = *health != down;
            *health = down;
            changed
        });
        if matches!(self.locator, Locator::Sentinels(_)) {
            // Until the primary is found again: it may be another.
            self.pool.leave();
        }
        RedisDown {
            cause,
            reason: &reason,
            was_up,
            is_new,
        }
        .emit(&self.state.delivery.metrics);
        self.state.delivery.routing.tell_lost().await;
    }
}
