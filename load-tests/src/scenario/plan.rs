//! What a run does, as data.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::measure::gateway::Gateways;
use crate::measure::process::ServerProcesses;
use crate::publisher::Wire;
use crate::template;

/// The server under test.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Clients are spread over them in turn.
    pub(crate) servers: Vec<SocketAddr>,
    /// Where clients come back to with their cursor; empty: where they were.
    pub(crate) resume_servers: Vec<SocketAddr>,
    /// Path of a stream, see [`template::fill`].
    pub(crate) path: String,
    /// Further request headers, `name: value`.
    pub(crate) headers: Vec<String>,
    pub(crate) processes: ServerProcesses,
    /// The gateways whose own counters are read; none for other servers.
    pub(crate) gateways: Gateways,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: &'static str,
    pub(crate) target: Target,
    pub(crate) publish: Wire,
    pub(crate) clients: u32,
    pub(crate) channels: u32,
    pub(crate) channels_per_client: u32,
    /// Every n-th client never reads; 0: all read.
    pub(crate) slow_every: u32,
    pub(crate) event_bytes: u32,
    pub(crate) work: Work,
    pub(crate) limits: Limits,
    /// Client processes; `None`: as many as the descriptor limit demands.
    pub(crate) processes: Option<u32>,
}

/// What happens once the clients are there (or, for `Storm`, how they come).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Nothing is published.
    Hold {
        duration: Duration,
    },
    Steady {
        load: Load,
        memory_must_be_flat: bool,
    },
    /// The rate is multiplied until latency, loss or throughput breaks.
    Steps {
        first: Load,
        factor: f64,
        max_steps: u32,
    },
    Churn {
        load: Load,
        per_second: f64,
    },
    /// All connect at once.
    Storm {
        load: Load,
    },
    /// All leave while events go on, and come back with their cursor.
    Resume {
        load: Load,
        away: Duration,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Over all channels together.
    pub(crate) events_per_second: f64,
    pub(crate) duration: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connects under way at once, in all processes together.
    pub(crate) connecting: u32,
    pub(crate) connect_timeout: Duration,
    /// Waited after the last event was due, before what is missing counts as undelivered.
    pub(crate) drain_timeout: Duration,
    pub(crate) receive_buffer_bytes: Option<u32>,
    /// A run above it has failed; `saturate` stops above it.
    pub(crate) max_p99: Option<Duration>,
    /// A run in which resuming cost Redis more history reads has failed.
    pub(crate) max_history_reads: Option<u64>,
}

impl Plan {
    /// How many streams (a client's channel) are to see every event of their channel.
    pub(crate) fn streams(&self) -> u64 {
        u64::from(self.reading_clients()) * u64::from(self.channels_per_client)
    }

    pub(crate) fn slow_clients(&self) -> u32 {
        if self.slow_every == 0 {
            0
        } else {
            self.clients.div_ceil(self.slow_every)
        }
    }

    /// Whether memory is what the run is about.
    pub(crate) fn watches_memory(&self) -> bool {
        matches!(
            self.work,
            Work::Hold { .. }
                | Work::Steady {
                    memory_must_be_flat: true,
                    ..
                }
        )
    }

    fn reading_clients(&self) -> u32 {
        self.clients - self.slow_clients()
    }

    /// Deliveries one event causes, on average over the channels.
    pub(crate) fn deliveries_per_event(&self) -> f64 {
        crate::clock::as_f64(self.streams()) / f64::from(self.channels.max(1))
    }

    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.clients > 0 && self.channels > 0,
            "there must be a client and a channel"
        );
        ensure!(
            (1..=self.channels).contains(&self.channels_per_client),
            "{} channels a client of {} channels",
            self.channels_per_client,
            self.channels
        );
        ensure!(
            self.channels_per_client == 1 || template::takes_many(&self.target.path),
            "several channels a client need {{channels}} or {{channel_query}} in the path `{}`",
            self.target.path
        );
        ensure!(self.slow_every != 1, "somebody must read");
        let rate = match self.work {
            Work::Hold { .. } => return Ok(()),
            Work::Steps {
                first: load,
                factor,
                ..
            } => {
                ensure!(factor > 1.0, "the rate must grow from step to step");
                load.events_per_second
            }
            Work::Steady { load, .. }
            | Work::Churn { load, .. }
            | Work::Storm { load }
            | Work::Resume { load, .. } => load.events_per_second,
        };
        ensure!(
            rate.is_finite() && rate > 0.0,
            "the rate must be above zero"
        );
        Ok(())
    }
}
