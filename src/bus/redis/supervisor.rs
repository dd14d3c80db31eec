//! The supervisor of the subscriber connection.
//!
//! The desired channels live outside the connection, in [`Routing`](crate::bus::routing::Routing). Whenever the connection is
//! lost the supervisor makes another, for ever, and a new [`Session`] subscribes to all of them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionInfo, ProtocolVersion, PushInfo, RedisResult};
use tokio::time::sleep;

use super::connect::{connection_config, connection_info, is_primary};
use super::functions::refusal;
use super::library::Library;
use super::place::Place;
use super::pool::CommandPool;
use super::push_queue::PushQueue;
use super::sentinel::{Confirmation, NoPrimary, Sentinels};
use super::session::{Session, SubscriberState};
use super::session_end::SessionEnd;
use crate::bus::BusHealth;
use crate::tasks::Tasks;
use crate::telemetry::DownCause;
use crate::telemetry::occurrences::RedisDown;

/// Between attempts to connect: doubled from the first to the last, each drawn from the upper
/// half, so that replicas do not come back together.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(2);

/// Knows which server to connect to.
#[derive(Clone)]
pub(super) enum Locator {
    /// Always this one.
    Server(Arc<ArcSwap<ConnectionInfo>>),
    /// The primary that these name.
    Sentinels(Sentinels),
}

impl Locator {
    /// The pool is told of a server that is known from the beginning.
    pub(super) fn new(
        place: Place,
        lag_bound: Duration,
        tasks: &mut Tasks,
        pool: &CommandPool,
    ) -> RedisResult<Self> {
        Ok(match place {
            Place::Server(info) => {
                pool.renew(&info.load())?;
                Self::Server(info)
            }
            Place::Sentinels(group) => Self::Sentinels(Sentinels::start(group, lag_bound, tasks)),
        })
    }

    /// The server, and what watches over it: without Sentinels the probes do.
    async fn find(self) -> Result<(ConnectionInfo, Option<Confirmation>), NoPrimary> {
        match self {
            Self::Server(info) => Ok((ConnectionInfo::clone(&info.load()), None)),
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
    /// What the server counted when the last connection began.
    cut_off: Option<CutOff>,
}

/// What a server says of itself (`INFO`).
#[derive(Debug, Default, PartialEq, Eq)]
struct ServerInfo {
    is_cluster_node: bool,
    cut_off: Option<CutOff>,
}

/// How many clients a server has cut off for their output buffer (Redis 7.4 and newer).
#[derive(Debug, PartialEq, Eq)]
struct CutOff {
    /// Names the process.
    run_id: String,
    count: u64,
}

const CUT_OFF: &str = "Redis closed the connection, and has since counted a client that exceeded its \
                       client-output-buffer-limit for pubsub";

impl ServerInfo {
    /// Nothing where the user may not ask.
    async fn read(connection: &mut MultiplexedConnection) -> RedisResult<Self> {
        match redis::cmd("INFO").query_async::<String>(connection).await {
            Ok(info) => Ok(Self::parse(&info)),
            Err(error) if refusal(&error).is_some() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let cut_off = || {
            Some(CutOff {
                run_id: field("run_id")?.to_owned(),
                count: field("client_output_buffer_limit_disconnections")?
                    .parse()
                    .ok()?,
            })
        };
        Self {
            is_cluster_node: field("cluster_enabled") == Some("1"),
            cut_off: cut_off(),
        }
    }
}

impl CutOff {
    /// Whether the same process has cut off a client since.
    fn grew_since(&self, earlier: &Self) -> bool {
        self.run_id == earlier.run_id && self.count > earlier.count
    }
}

impl Supervisor {
    pub(super) fn new(locator: Locator, pool: CommandPool, state: SubscriberState) -> Self {
        Self {
            locator,
            pool,
            backoff: *BACKOFF.start(),
            state,
            cut_off: None,
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
                return Ok(Err(SessionEnd::Replica));
            }
            let server = ServerInfo::read(&mut connection).await?;
            if server.is_cluster_node {
                return Ok(Err(SessionEnd::ClusterNode));
            }
            connection.subscribe(probe_channel).await?;
            Ok(Ok((connection, server.cut_off)))
        };
        let (connection, cut_off) = self.connecting(attempt).await??;
        self.note_cut_off(cut_off);

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
                    self.state.driver.note_interest(update?);
                }
                Some((channel, page)) = self.state.reads.recv() => {
                    self.state.driver.note_client_read(channel, page);
                }
            }
        }
    }

    /// Names the output buffer as the cause of the last loss, if the server says so. Redis closes
    /// such a connection without a word, so only the next connection can know.
    fn note_cut_off(&mut self, now: Option<CutOff>) {
        let grew = now
            .as_ref()
            .zip(self.cut_off.as_ref())
            .is_some_and(|(now, before)| now.grew_since(before));
        self.cut_off = now;
        if !grew || self.down_cause() != Some(DownCause::Closed) {
            return;
        }
        self.state.read_budget.note_limited();
        let (cause, reason) = (DownCause::OutputBuffer, CUT_OFF);
        tracing::warn!(
            target: "fanfare::bus",
            cause = cause.label(),
            reason,
            "the last connection to Redis was lost for another cause"
        );
        self.state.driver.metrics.note_up(Some(cause));
        self.state.health.send_replace(BusHealth::Down {
            cause,
            reason: reason.to_owned(),
        });
    }

    fn down_cause(&self) -> Option<DownCause> {
        match *self.state.health.borrow() {
            BusHealth::Up => None,
            BusHealth::Down { cause, .. } => Some(cause),
        }
    }

    async fn lose(&mut self, end: &SessionEnd) {
        let mut reason = end.to_string();
        let was_up = *self.state.health.borrow() == BusHealth::Up;
        if was_up {
            // It was proven: the next attempt is a first one.
            self.backoff = *BACKOFF.start();
        }
        let mut cause = end.cause();
        if cause == DownCause::Closed && self.down_cause() == Some(DownCause::OutputBuffer) {
            // Most likely the same once more.
            cause = DownCause::OutputBuffer;
            reason = CUT_OFF.to_owned();
        }
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
        .emit(&self.state.driver.metrics);
        self.state.driver.routing.tell_lost().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cut_off_a_client_since_is_told_from_others() {
        let info = |run_id: &str, count: u64| {
            let count = format!("client_output_buffer_limit_disconnections:{count}\r\n");
            let info = format!("# Server\r\nrun_id:{run_id}\r\n\r\n# Stats\r\n{count}");
            ServerInfo::parse(&info).cut_off.unwrap()
        };
        assert!(info("a", 2).grew_since(&info("a", 1)));
        assert!(!info("a", 1).grew_since(&info("a", 1)));
        // `CONFIG RESETSTAT`, and another process.
        assert!(!info("a", 0).grew_since(&info("a", 1)));
        assert!(!info("b", 2).grew_since(&info("a", 1)));
        let older = ServerInfo::parse("run_id:a\r\nredis_version:6.2.5\r\ncluster_enabled:0");
        assert_eq!(older, ServerInfo::default());
    }
}
