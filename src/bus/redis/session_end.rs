//! Why a connection ended, for people and for machines.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::driver::IdsWentBack;
use super::push_queue::QueueEnd;
use super::sentinel::{Distrust, NoPrimary};
use super::session::PROBE_DEADLINE;
use crate::telemetry::DownCause;

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error(transparent)]
    NoPrimary(#[from] NoPrimary),
    #[error("cannot connect to Redis: {0}")]
    Connect(RedisError),
    #[error(transparent)]
    Queue(#[from] QueueEnd),
    #[error("Redis did not take a subscription: {0}")]
    Subscribe(RedisError),
    #[error("Redis did not take a probe: {0}")]
    Probe(RedisError),
    #[error("a probe did not come back within {PROBE_DEADLINE:?}")]
    ProbeLate,
    #[error("a history could not be read: {0}")]
    History(RedisError),
    /// Redis gives no reason when it closes a connection for its output buffer.
    #[error(
        "Redis closed the connection while histories were read; if this repeats, Redis' log says \
         whether its client-output-buffer-limit for pubsub is too low"
    )]
    ClosedWhileReading,
    #[error("Redis is a replica: its primary is elsewhere")]
    Replica,
    #[error(
        "Redis is a node of a cluster, on which redis:// would lose events: use a single primary or \
         Sentinels (redis-cluster:// is not supported by this version)"
    )]
    ClusterNode,
    #[error(transparent)]
    Distrust(#[from] Distrust),
    #[error(transparent)]
    IdsWentBack(#[from] IdsWentBack),
    /// Everybody is to be told anew, without ids.
    #[error("the function library is not there any more")]
    NotKept,
    #[error("the gateway is stopping")]
    Stopping,
}

impl SessionEnd {
    /// What is the matter, for machines.
    pub(super) fn cause(&self) -> DownCause {
        match self {
            Self::NoPrimary(_) => DownCause::Sentinel,
            Self::Connect(error) => match cause(error) {
                DownCause::Silent | DownCause::Closed => DownCause::Unreachable,
                cause => cause,
            },
            Self::Queue(QueueEnd::Disconnected) | Self::ClosedWhileReading => DownCause::Closed,
            Self::Queue(QueueEnd::Overflowed) => DownCause::Behind,
            Self::Subscribe(error) | Self::Probe(error) | Self::History(error) => cause(error),
            Self::ProbeLate => DownCause::Silent,
            Self::Replica | Self::ClusterNode | Self::Distrust(_) => DownCause::NotPrimary,
            Self::IdsWentBack(_) => DownCause::IdsWentBack,
            Self::NotKept => DownCause::Library,
            Self::Stopping => DownCause::Closed,
        }
    }
}

fn cause(error: &RedisError) -> DownCause {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::BusyLoading) => DownCause::Loading,
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::MasterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::TryAgain,
        ) => DownCause::NotPrimary,
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
            DownCause::Refused
        }
        _ if error.is_timeout() => DownCause::Silent,
        _ => DownCause::Closed,
    }
}
