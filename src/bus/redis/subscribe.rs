//! The supervisor of the subscriber connection.
//!
//! The desired channels live outside the connection, in [`Routing`]. Whenever the connection is
//! lost the supervisor makes another, for ever, and a new [`Session`] subscribes to all of them.

use std::pin::pin;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, RedisResult};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::connect::{COMMAND_DEADLINE, CONNECT_DEADLINE, connection_info};
use super::ingest::PushQueue;
use super::session::{DropLog, Session, SessionEnd, SubscriberState};
use crate::bus::BusHealth;
use crate::bus::routing::Routing;
use crate::config::{Config, RedisUrl};
use crate::hub::InterestUpdate;
use crate::telemetry::BusMetrics;

/// Between attempts to connect: doubled from the first to the last, each drawn from the upper
/// half, so that replicas do not come back together.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

pub(super) struct Supervisor {
    client: Client,
    backoff: Duration,
    state: SubscriberState,
}

impl Supervisor {
    pub(super) fn new(
        config: &Config,
        url: &RedisUrl,
        routing: Routing,
        updates: mpsc::Receiver<InterestUpdate>,
        health: watch::Sender<BusHealth>,
        metrics: BusMetrics,
    ) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(connection_info(url, ProtocolVersion::RESP3)?)?,
            backoff: *BACKOFF.start(),
            state: SubscriberState {
                prefix: config.prefix.clone(),
                // `$`: no client can name it. Random: no two replicas share it.
                probe_channel: format!("{}$probe.{:016x}", config.prefix, fastrand::u64(..)),
                max_event_bytes: config.max_event_bytes,
                routing,
                updates,
                health,
                metrics,
                drop_log: DropLog::default(),
            },
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
            self.state.metrics.reconnects.inc();
        }
    }

    async fn connect(&mut self) -> Result<(MultiplexedConnection, PushQueue), SessionEnd> {
        let queue = PushQueue::new(&self.state.probe_channel);
        let sender = {
            let queue = queue.clone();
            move |push: PushInfo| {
                queue.push(push);
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(COMMAND_DEADLINE))
            .set_push_sender(sender);
        let client = self.client.clone();
        let probe_channel = self.state.probe_channel.clone();
        let attempt = async move {
            let mut connection = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            connection.subscribe(probe_channel).await?;
            Ok(connection)
        };
        match self.absorbing_interest(attempt).await {
            Some(Ok(connection)) => Ok((connection, queue)),
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
                    self.state.routing.apply(update?);
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
        let changed = self.state.health.send_if_modified(|health| {
            let down = BusHealth::Down(reason.clone());
            let changed = *health != down;
            *health = down;
            changed
        });
        self.state.metrics.up.set(0);
        if was_up {
            tracing::warn!(reason, "Redis lost: streams stay open, nothing arrives");
        } else if changed {
            tracing::warn!(reason, "Redis is not available");
        }
        self.state.routing.tell_lost().await;
    }
}
