//! A whole gateway: bind, run, stop. The only place that knows every part.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join_all};
use tokio::runtime::{Builder, LocalOptions, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, interval_at, sleep, timeout, timeout_at};

use crate::admin::{self, AdminState, Console, Sampler};
use crate::auth::{Jwks, KeyRing};
use crate::bus::Bus;
use crate::config::{Access, BusConfig, Config, JwksUrl};
use crate::http::{
    Admission, Authority, Edge, EdgeParts, Listener, RouterState, accept, bind, bind_alone,
    only_own_pages, only_this_machine, router,
};
use crate::hub::{
    HistoryRequest, Hub, INBOX_BATCHES, Inbox, InterestUpdate, News, Revocations, ShardMessage,
    ShardStats,
};
use crate::supervision::{self, Hanging, Patience, Pulse};
use crate::tasks::{TaskEnded, Tasks};
use crate::telemetry::{LAST_SPANS, Metrics, TraceError, TracePipeline, start_log};

/// After the drain period: for the last bytes to reach clients that read slowly.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// How often a drain says how many streams are left.
const DRAIN_PROGRESS: Duration = Duration::from_secs(2);

/// Why a gateway cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({setting}): {error}")]
    Bind {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        error: io::Error,
    },
    /// The Redis URL cannot be used.
    #[error("FANFARE_REDIS_URL cannot be used: {0}")]
    Redis(#[from] redis::RedisError),
    /// No HTTP client can be had.
    #[error("the JWK set cannot be fetched: {0}")]
    Jwks(#[from] reqwest::Error),
    /// A runtime or a signal handler cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Traces are asked for and cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// A metric is defined wrongly.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A shard ended by itself.
    #[error("shard {number} has failed: {error}")]
    ShardFailed {
        /// Which one.
        number: usize,
        /// Why.
        error: io::Error,
    },
    /// A task of the control runtime ended by itself.
    #[error("a part of the gateway has failed: {0}")]
    TaskEnded(#[from] TaskEnded),
}

/// A gateway whose addresses are bound and that does not serve yet.
pub struct App {
    config: Config,
    control: Runtime,
    data_listeners: Vec<std::net::TcpListener>,
    /// Those for the PROXY protocol, one a shard, if there are any.
    proxied_listeners: Vec<std::net::TcpListener>,
    admin_listener: std::net::TcpListener,
}

impl App {
    /// Binds both listeners. It logs nothing: the log starts when the gateway runs.
    ///
    /// # Errors
    /// When an address cannot be bound or the control runtime cannot be had.
    pub fn bind(config: Config) -> Result<Self, AppError> {
        // The control runtime owns Redis, the admin listener and signals.
        let control = Builder::new_current_thread().enable_all().build()?;
        let bind_shards = |setting, address| {
            bind(address, config.shards, config.socket_send_buffer_bytes).map_err(|error| {
                AppError::Bind {
                    setting,
                    address,
                    error,
                }
            })
        };
        let data_listeners = bind_shards("FANFARE_LISTEN", config.listen)?;
        let proxied_listeners = config
            .clients
            .proxy_protocol_listen
            .map(|address| bind_shards("FANFARE_PROXY_PROTOCOL_LISTEN", address))
            .transpose()?
            .unwrap_or_default();
        let admin_listener = bind_alone(config.admin_listen).map_err(|error| AppError::Bind {
            setting: "FANFARE_ADMIN_LISTEN",
            address: config.admin_listen,
            error,
        })?;
        Ok(Self {
            config,
            control,
            data_listeners,
            proxied_listeners,
            admin_listener,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    ///
    /// # Errors
    /// When a part cannot start, or a shard fails.
    pub fn run(self) -> Result<(), AppError> {
        let Self {
            config,
            control,
            data_listeners,
            proxied_listeners,
            admin_listener,
        } = self;
        let mut tasks = Tasks::on(control.handle());
        let data_address = data_listeners
            .first()
            .map_or(Ok(config.listen), std::net::TcpListener::local_addr)?;
        let admin_address = admin_listener.local_addr()?;
        let proxied_address = proxied_listeners
            .first()
            .map(std::net::TcpListener::local_addr)
            .transpose()?;

        let stats: Vec<_> = data_listeners
            .iter()
            .map(|_| Arc::new(ShardStats::default()))
            .collect();
        let metrics = Metrics::new(stats.clone(), config.max_connections)?;
        let all_stats = stats.clone();
        let replica = replica_name(data_address);
        let mut pipeline = config
            .traces
            .as_ref()
            .map(|traces| TracePipeline::start(traces, &replica, &metrics.traces_dropped))
            .transpose()?;
        let storms = start_log(&config.log, config.log_format, pipeline.as_ref());
        tasks.spawn("the log's summary", Arc::clone(&storms).run());
        let traces = pipeline.as_ref().map(TracePipeline::traces);
        let (inboxes, shard_inboxes): (Vec<_>, Vec<_>) = data_listeners
            .iter()
            .map(|_| mpsc::channel::<ShardMessage>(INBOX_BATCHES))
            .unzip();
        let revocations = Arc::new(Revocations::default());
        let bus = Bus::start(
            &config,
            &mut tasks,
            inboxes.clone(),
            Arc::clone(&revocations),
            metrics.bus.clone(),
            traces,
        )?;
        let admission = Admission::new(config.max_connections, config.clients.clone());
        if let Some(tally) = bus.tally {
            tasks.spawn("the limits' exchange", Arc::clone(&admission).share(tally));
        }
        let ring = key_ring(&config.access, &metrics, &mut tasks)?;
        let authority = Authority::new(
            config.access.clone(),
            ring.clone(),
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
            demo: data_address.ip().is_loopback(),
            traces,
        });

        let edge = EdgeParts {
            router,
            admission,
            is_open: matches!(config.access, Access::Open),
            traces,
            health: bus.health.clone(),
        };

        let patience = Patience::here();
        let mut pulses = Vec::new();
        let mut proxied_listeners = proxied_listeners.into_iter();
        let (failure, mut failed) = mpsc::channel(1);
        for (number, ((listener, inbox), stats)) in data_listeners
            .into_iter()
            .zip(shard_inboxes)
            .zip(stats)
            .enumerate()
        {
            let pulse = Pulse::default();
            pulses.push(pulse.clone());
            let shard = Shard {
                number,
                listeners: (listener, proxied_listeners.next()),
                inbox,
                interest: bus.interest.clone(),
                history: bus.history.clone(),
                edge: edge.clone(),
                settings: config.hub_settings(),
                revocations: Arc::clone(&revocations),
                stats,
                pulse: (pulse, patience),
            };
            let failure = failure.clone();
            std::thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(move || {
                    let ended = catch_unwind(AssertUnwindSafe(|| shard.run()));
                    let error = match ended {
                        Ok(Err(error)) => error,
                        Err(_) => io::Error::other("it panicked"),
                    };
                    // While the process stops nobody listens any more.
                    let _ = failure.blocking_send(AppError::ShardFailed { number, error });
                })?;
        }

        let hanging = Hanging::default();
        let admin = Arc::new(AdminState {
            metrics,
            hanging: hanging.clone(),
            bus: bus.health,
            keys: ring,
        });
        let console = Console::new();
        let sampler = Sampler::new(
            replica,
            Arc::clone(&admin),
            all_stats,
            inboxes.clone(),
            config.max_connections,
        );
        let console_task = Arc::clone(&console).run(sampler, bus.peers, bus.heard);
        let console_task = control.spawn(console_task);
        // Streams do not need it: its end is no reason to end them.
        control.spawn(async move {
            if console_task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("the console has failed: it shows nothing until a restart");
            }
        });
        let served = control.block_on(async {
            // Before anybody is told that this process listens.
            let mut signals = Signals::new()?;
            let listener = tokio::net::TcpListener::from_std(admin_listener)?;
            let mut service = admin::router(Arc::clone(&admin), console)
                .layer(axum::middleware::from_fn(only_own_pages));
            if admin_address.ip().is_loopback() {
                service = service.layer(axum::middleware::from_fn(only_this_machine));
            }
            tasks.spawn("the admin listener", async move {
                if let Err(error) = axum::serve(listener, service).await {
                    tracing::error!(%error, "the admin listener has failed");
                }
            });
            announce(&config, data_address, proxied_address, admin_address);
            supervision::ready();
            let watching = supervision::watch(pulses, patience, hanging);
            tasks.spawn("the watch over threads", watching);

            tokio::select! {
                name = signals.next() => tracing::info!(signal = name, "stopping"),
                Some(failure) = failed.recv() => return Err(failure),
                ended = tasks.ended() => return Err(ended.into()),
            }
            // Shards accept to the end, and this runtime answers what they ask for: so the last spans
            // are sent while it does.
            let leave = async {
                drain(&config, &inboxes, &admin).await;
                if let Some(pipeline) = pipeline.take() {
                    let _ = timeout(LAST_SPANS, spawn_blocking(|| pipeline.shutdown())).await;
                }
            };
            tokio::select! {
                () = leave => {}
                name = signals.next() => tracing::warn!(signal = name, "stopping at once"),
                Some(failure) = failed.recv() => return Err(failure),
                ended = tasks.ended() => return Err(ended.into()),
            }
            tracing::info!("stopped");
            Ok(())
        });
        // A name that is still being looked up must not hold up the end.
        control.shutdown_background();
        // Dropped, it would wait for the collector.
        std::mem::forget(pipeline);
        storms.finish();
        served
    }
}

/// What operators call this replica: the machine and the port that clients connect to.
fn replica_name(data: SocketAddr) -> String {
    // Not from /proc/sys, which a service manager may hide.
    let system = rustix::system::uname();
    format!("{}:{}", system.nodename().to_string_lossy(), data.port())
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
    Ok(Some(KeyRing::start(rules, fixed, files, jwks, tasks)))
}

fn announce(config: &Config, data: SocketAddr, proxied: Option<SocketAddr>, admin: SocketAddr) {
    let bus = match &config.bus {
        BusConfig::Embedded => "memory:".to_owned(),
        BusConfig::Redis(url) => url.address(),
    };
    tracing::info!(
        version = env!("VERSION_AND_REVISION"),
        %data,
        proxied = proxied.map(tracing::field::display),
        %admin,
        bus,
        shards = config.shards,
        max_connections = config.max_connections,
        "listening"
    );
    if let Some(warning) = config.warning() {
        tracing::warn!("{warning}");
    }
    match &config.access {
        Access::Open => tracing::warn!(
            "open: whoever reaches the data listener, on loopback, may read and publish everything"
        ),
        Access::Rules(rules) if rules.tokens.is_none() => tracing::info!(
            "no key is configured: public channels may be read, and nobody may publish over HTTP"
        ),
        Access::Rules(_) => {}
    }
    tracing::info!("the admin listener has no authentication: keep it inside your network");
    if data.ip().is_loopback() {
        tracing::info!("demo page: http://{data}/");
    }
}

/// Stops in named phases: not ready, so that the balancer looks elsewhere; then no new streams,
/// and the open ones are closed, spread over the drain period; then, when requests under way are
/// answered, the end.
async fn drain(config: &Config, inboxes: &[mpsc::Sender<ShardMessage>], admin: &AdminState) {
    admin.metrics.draining.set(1);
    let last_spans = config
        .traces
        .as_ref()
        .map_or(Duration::ZERO, |_| LAST_SPANS);
    supervision::stopping(config.drain_delay + config.drain_period + DRAIN_GRACE + last_spans);
    tracing::info!(delay = ?config.drain_delay, "not ready any more: waiting for the balancer");
    sleep(config.drain_delay).await;
    tracing::info!(
        streams = admin.metrics.connections(),
        period = ?config.drain_period,
        "closing streams"
    );
    let deadline = Instant::now() + config.drain_period + DRAIN_GRACE;
    let drain = || ShardMessage::News(News::Drain(config.drain_period));
    let told = join_all(inboxes.iter().map(|inbox| inbox.send(drain())));
    // A shard whose queue is full until the deadline is cut off with its streams.
    let _ = timeout_at(deadline, told).await;
    // What has just been answered still has to be written: quiet is what is so twice.
    let mut is_quiet = false;
    let mut look = interval(Duration::from_millis(50));
    let mut progress = interval_at(Instant::now() + DRAIN_PROGRESS, DRAIN_PROGRESS);
    while Instant::now() < deadline {
        tokio::select! {
            _ = look.tick() => {
                let was_quiet = is_quiet;
                is_quiet = admin.metrics.connections() == 0 && admin.metrics.requests() == 0;
                if was_quiet && is_quiet {
                    break;
                }
            }
            _ = progress.tick() => {
                let left = deadline.duration_since(Instant::now());
                tracing::info!(streams = admin.metrics.connections(), deadline = ?left, "draining");
            }
        }
    }
    let (streams, requests) = (admin.metrics.connections(), admin.metrics.requests());
    if streams > 0 || requests > 0 {
        tracing::warn!(streams, requests, "cut off at the deadline");
    }
}

/// The signals that stop a process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What a shard's thread is given.
struct Shard {
    number: usize,
    /// The ordinary one, and the one for the PROXY protocol.
    listeners: (std::net::TcpListener, Option<std::net::TcpListener>),
    inbox: Inbox,
    interest: mpsc::Sender<InterestUpdate>,
    history: mpsc::Sender<HistoryRequest>,
    edge: EdgeParts,
    settings: crate::hub::HubSettings,
    revocations: Arc<Revocations>,
    stats: Arc<ShardStats>,
    pulse: (Pulse, Patience),
}

impl Shard {
    /// Runs the shard on this thread; it ends only when it fails.
    fn run(self) -> Result<std::convert::Infallible, io::Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        runtime.block_on(async {
            let hub = Hub::new(self.settings, self.stats, self.history, self.revocations);
            let edge = Edge::new(hub.clone(), self.number, self.edge);
            let (listener, proxied) = self.listeners;
            let accepting = |socket, proxy_protocol| {
                let listener = Listener {
                    socket,
                    proxy_protocol,
                };
                accept(edge.clone(), listener)
            };
            let proxied = OptionFuture::from(proxied.map(|socket| accepting(socket, true)));
            let hub_task = tokio::task::spawn_local(hub.clone().run(self.inbox));
            let interest = hub.clone().tell_interest(self.number, self.interest);
            let interest_task = tokio::task::spawn_local(interest);
            let sweep_task = tokio::task::spawn_local(hub.sweep());
            let (pulse, patience) = self.pulse;
            tokio::task::spawn_local(pulse.beat(patience));
            tokio::select! {
                accepted = accepting(listener, false) => accepted?,
                Some(accepted) = proxied => accepted?,
                ended = hub_task => ended?,
                ended = interest_task => ended?,
                ended = sweep_task => ended?,
            }
            Err(io::Error::other("one of its tasks has ended"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_called_after_its_machine_and_port() {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let name = replica_name("127.0.0.1:8080".parse().unwrap());
        assert_eq!(name, format!("{}:8080", machine.trim()));
    }
}
