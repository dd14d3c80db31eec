//! The threads of the shards.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::{AppError, Parts};
use crate::config::Config;
use crate::http::{Edge, EdgeParts, Listener, accept};
use crate::hub::{
    HistoryRequest, Hub, HubSettings, Inbox, InterestUpdate, Revocations, ShardStats,
};
use crate::supervision::{Patience, Pulse};

/// The running shards.
pub(super) struct Shards {
    pub(super) patience: Patience,
    /// One per shard.
    pub(super) pulses: Vec<Pulse>,
    /// Receives why a shard has ended, which none does by itself.
    pub(super) failed: mpsc::Receiver<AppError>,
}

impl Shards {
    /// Starts a thread per inbox, with the listeners of the same place.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub(super) fn start(
        config: &Config,
        listeners: Vec<Vec<Listener>>,
        inboxes: Vec<Inbox>,
        parts: &Parts,
    ) -> io::Result<Self> {
        let patience = Patience::here();
        let mut pulses = Vec::new();
        let (failure, failed) = mpsc::channel(1);
        let shards = listeners.into_iter().zip(inboxes).zip(&parts.stats);
        for (number, ((listeners, inbox), stats)) in shards.enumerate() {
            let pulse = Pulse::default();
            pulses.push(pulse.clone());
            let shard = Shard {
                number,
                listeners,
                inbox,
                interest: parts.interest.clone(),
                history: parts.history.clone(),
                edge: parts.edge.clone(),
                settings: config.hub_settings(),
                revocations: Arc::clone(&parts.revocations),
                stats: Arc::clone(stats),
                pulse: (pulse, patience),
            };
            shard.start(failure.clone())?;
        }
        Ok(Self {
            patience,
            pulses,
            failed,
        })
    }
}

/// What a shard's thread is given.
struct Shard {
    number: usize,
    listeners: Vec<Listener>,
    inbox: Inbox,
    interest: mpsc::Sender<InterestUpdate>,
    history: mpsc::Sender<HistoryRequest>,
    edge: EdgeParts,
    settings: HubSettings,
    revocations: Arc<Revocations>,
    stats: Arc<ShardStats>,
    pulse: (Pulse, Patience),
}

impl Shard {
    /// Starts the shard's thread. `failure`: receives why it has ended.
    fn start(self, failure: mpsc::Sender<AppError>) -> io::Result<()> {
        let number = self.number;
        let run = move || {
            let error = match catch_unwind(AssertUnwindSafe(|| self.run())) {
                Ok(Err(error)) => error,
                Err(_) => io::Error::other("it panicked"),
            };
            // The receiver may have been dropped: the process stops.
            let _ = failure.blocking_send(AppError::ShardFailed { number, error });
        };
        let thread = std::thread::Builder::new().name(format!("shard-{number}"));
        thread.spawn(run).map(drop)
    }

    /// Runs the shard on this thread; it ends only when it fails.
    fn run(self) -> Result<Infallible, io::Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        runtime.block_on(async {
            let hub = Hub::new(self.settings, self.stats, self.history, self.revocations);
            let edge = Edge::new(hub.clone(), self.number, self.edge);
            let accepting = self.listeners.into_iter();
            let accepting = accepting.map(|listener| accept(edge.clone(), listener));
            let mut accepting: FuturesUnordered<_> = accepting.collect();
            let hub_task = spawn_local(hub.clone().run(self.inbox));
            let interest = hub.clone().tell_interest(self.number, self.interest);
            let interest_task = spawn_local(interest);
            let sweep_task = spawn_local(hub.sweep());
            let (pulse, patience) = self.pulse;
            spawn_local(pulse.beat(patience));
            tokio::select! {
                Some(accepted) = accepting.next() => accepted?,
                ended = hub_task => ended?,
                ended = interest_task => ended?,
                ended = sweep_task => ended?,
            }
            Err(io::Error::other("one of its tasks has ended"))
        })
    }
}
