//! The parts of a gateway that all shards share, built from its configuration.

use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Addresses, AppError};
use crate::auth::{Jwks, KeyRing};
use crate::bus::{Bus, BusHealth, PeerSender};
use crate::config::{Access, Config, JwksUrl};
use crate::http::{Admission, Authority, EdgeParts, Listener, Preamble, RouterState, router};
use crate::hub::{
    HistoryRequest, INBOX_BATCHES, Inbox, InterestUpdate, Revocations, ShardMessage, ShardStats,
};
use crate::tasks::Tasks;
use crate::telemetry::{Log, Metrics, TracePipeline};
use crate::tls::TlsServer;
use crate::warnings::Warnings;

/// The parts, started.
pub(super) struct Parts {
    /// The replica's name, for the console and traces.
    pub(super) replica: String,
    /// One per shard.
    pub(super) stats: Vec<Arc<ShardStats>>,
    pub(super) metrics: Metrics,
    pub(super) pipeline: Option<TracePipeline>,
    /// One per shard.
    pub(super) inboxes: Vec<mpsc::Sender<ShardMessage>>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) interest: mpsc::Sender<InterestUpdate>,
    pub(super) history: mpsc::Sender<HistoryRequest>,
    pub(super) health: watch::Receiver<BusHealth>,
    pub(super) peers: PeerSender,
    /// What any replica says to all.
    pub(super) heard: mpsc::Receiver<Bytes>,
    pub(super) warnings: Warnings,
    pub(super) keys: Option<Arc<KeyRing>>,
    pub(super) tls: Option<Arc<TlsServer>>,
    pub(super) edge: EdgeParts,
}

impl Parts {
    /// Starts the log, the bus and whatever else shards are built on, and returns the log, which the
    /// end of the process finishes, and the inboxes of `shards` shards.
    ///
    /// # Errors
    /// When a part cannot be had.
    pub(super) fn start(
        config: &Config,
        addresses: &Addresses,
        shards: usize,
        tasks: &mut Tasks,
    ) -> Result<(Self, Log, Vec<Inbox>), AppError> {
        let stats: Vec<Arc<ShardStats>> = (0..shards).map(|_| Arc::default()).collect();
        let metrics = Metrics::new(stats.clone(), config.max_connections)?;
        let replica = addresses.replica_name();
        // The log's lines name traces, so the pipeline comes before the log.
        let pipeline = config
            .traces
            .as_ref()
            .map(|traces| TracePipeline::start(traces, &replica, &metrics.traces_dropped))
            .transpose()?;
        let log = Log::start(&config.log, config.log_format, pipeline.as_ref());
        tasks.spawn("the log", log.keep(metrics.log_lines_dropped.clone()));
        let traces = pipeline.as_ref().map(TracePipeline::traces);
        let (inboxes, shard_inboxes): (Vec<_>, Vec<_>) = (0..shards)
            .map(|_| mpsc::channel::<ShardMessage>(INBOX_BATCHES))
            .unzip();
        let revocations = Arc::new(Revocations::default());
        let bus = Bus::start(
            config,
            tasks,
            inboxes.clone(),
            Arc::clone(&revocations),
            metrics.bus.clone(),
            traces,
        )?;
        let admission = Admission::new(config.max_connections, config.clients.clone());
        if let Some(tally) = bus.tally {
            tasks.spawn("the limits' exchange", Arc::clone(&admission).share(tally));
        }
        let tls = config
            .tls
            .as_ref()
            .map(|tls| TlsServer::start(tls, metrics.tls.clone(), &bus.warnings, tasks))
            .transpose()?;
        let keys = key_ring(&config.access, &metrics, tasks)?;
        let authority = Authority::new(
            config.access.clone(),
            keys.clone(),
            bus.tickets,
            Arc::clone(&revocations),
            metrics.auth.clone(),
        );
        let router = router(RouterState {
            authority,
            admission: Arc::clone(&admission),
            publisher: bus.publisher,
            metrics: metrics.bus.clone(),
            max_channels_per_connection: config.max_channels_per_connection,
            max_event_bytes: config.max_event_bytes,
            history_length: config.history_length,
            demo: addresses.are_loopback(),
            traces,
        });
        let edge = EdgeParts {
            router,
            admission,
            is_open: matches!(config.access, Access::Open),
            traces,
            health: bus.health.clone(),
        };
        let parts = Self {
            replica,
            stats,
            metrics,
            pipeline,
            inboxes,
            revocations,
            interest: bus.interest,
            history: bus.history,
            health: bus.health,
            peers: bus.peers,
            heard: bus.heard,
            warnings: bus.warnings,
            keys,
            tls,
            edge,
        };
        Ok((parts, log, shard_inboxes))
    }
}

impl Parts {
    /// The listeners of each shard, of what is bound once a shard, or not at all.
    pub(super) fn listeners(
        &self,
        data: Vec<TcpListener>,
        proxied: Vec<TcpListener>,
        tls: Vec<TcpListener>,
    ) -> Vec<Vec<Listener>> {
        let secured = self.tls.clone().map(Preamble::Tls);
        let kinds = [
            (data, Some(Preamble::None)),
            (proxied, Some(Preamble::Proxy)),
            (tls, secured),
        ];
        let mut shards = Vec::new();
        for (sockets, preamble) in kinds {
            for (number, socket) in sockets.into_iter().enumerate() {
                let Some(preamble) = preamble.clone() else {
                    continue;
                };
                if shards.len() <= number {
                    shards.push(Vec::new());
                }
                if let Some(listeners) = shards.get_mut(number) {
                    listeners.push(Listener { socket, preamble });
                }
            }
        }
        shards
    }
}

/// The keys that tokens are verified with, where there are to be tokens.
fn key_ring(
    access: &Access,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<Option<Arc<KeyRing>>, AppError> {
    let Access::Rules(rules) = access else {
        return Ok(None);
    };
    let Some(tokens) = &rules.tokens else {
        return Ok(None);
    };
    let fetch = |url: &JwksUrl| {
        let metrics = metrics.auth.clone();
        Jwks::start(url.url().clone(), tokens.jwks_max_age, metrics, tasks)
    };
    let jwks = tokens.jwks_url.as_ref().map(fetch).transpose()?;
    let rules = tokens.rules.clone();
    let (fixed, files) = (tokens.fixed.clone(), tokens.files.clone());
    Ok(Some(KeyRing::start(rules, fixed, files, jwks, tasks)?))
}
