//! The supervisor of the subscriber connection.
//!
//! The desired channels live outside the connection, in [`Routing`](crate::bus::routing::Routing). Whenever the connection is
//! lost the supervisor makes another, for ever, and a new [`Session`] subscribes to all of them.

use std::pin::pin;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ProtocolVersion, PushInfo, RedisResult};
use tokio::time::sleep;

use super::connect::{connection_config, connection_info};
use super::ingest::PushQueue;
use super::library::Library;
use super::pool::CommandPool;
use super::session::{Session, SessionEnd, SubscriberState};
use crate::bus::BusHealth;
use crate::config::RedisUrl;
use crate::telemetry::occurrences::RedisDown;

/// Between attempts to connect: doubled from the first to the last, each drawn from the upper
/// half, so that replicas do not come back together.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

pub(super) struct Supervisor {
    client: Client,
    pool: CommandPool,
    backoff: Duration,
    state: SubscriberState,
}

impl Supervisor {
    pub(super) fn new(
        url: &RedisUrl,
        pool: CommandPool,
        state: SubscriberState,
    ) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(connection_info(url, ProtocolVersion::RESP3)?)?,
            pool,
            backoff: *BACKOFF.start(),
            state,
        })
    }

    /// Keeps a subscriber connection until the shards are gone.
    pub(super) async fn run(mut self) {
        loop {
            let end = match self.connect().await {
                Ok((connection, queue)) => {
                    Session::new(&mut self.state, connection, queue).run().await
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

    async fn connect(&mut self) -> Result<(MultiplexedConnection, PushQueue), SessionEnd> {
        let queue = PushQueue::new(&self.state.probe_channel, &self.state.control.channel);
        let sender = {
            let queue = queue.clone();
            move |push: PushInfo| {
                queue.push(push);
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let config = connection_config().set_push_sender(sender);
        let client = self.client.clone();
        let probe_channel = self.state.probe_channel.clone();
        let attempt = async move {
            let mut connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            connection.subscribe(probe_channel).await?;
            Ok(connection)
        };
        let connection = self.connecting(attempt).await?;
        let joining = self.state.control.join(connection.clone());
        let joined = self.connecting(joining).await?;
        let revocations = self.state.control.note(joined);
        self.state.revoke(revocations).await;
        let asking = self.state.keeping.ask(connection.clone());
        let library: Library = self.connecting(asking).await?;
        self.state.note_library(library)?;
        // The name may lead to another server than before.
        self.pool.renew();
        Ok((connection, queue))
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
        let is_new = self.state.health.send_if_modified(|health| {
            let down = BusHealth::Down(reason.clone());
            let changed = *health != down;
            *health = down;
            changed
        });
        RedisDown {
            reason: &reason,
            was_up,
            is_new,
        }
        .emit(&self.state.delivery.metrics);
        self.state.delivery.routing.tell_lost().await;
    }
}
