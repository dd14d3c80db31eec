//! A whole gateway: bind, run, stop. The only place that knows every part.

mod drain;
mod parts;
mod shard;
mod signals;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::drain::drain;
use self::parts::Parts;
use self::shard::Shards;
use self::signals::Signals;
use crate::admin::{self, AdminState, Console, Sampler};
use crate::config::{Access, BusConfig, Config};
use crate::http::{bind, bind_alone, only_own_pages, only_this_machine};
use crate::hub::ShardMessage;
use crate::supervision::{self, Hanging};
use crate::tasks::{TaskEnded, Tasks};
use crate::telemetry::{LAST_SPANS, TraceError, TracePipeline};
use crate::tls::TlsError;

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
    /// The TLS listener cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Traces are asked for and cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// A metric is defined wrongly.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A shard ended by itself.
    #[error("shard {number} failed: {error}")]
    ShardFailed {
        /// Which one.
        number: usize,
        /// Why.
        error: io::Error,
    },
    /// A task of the control runtime ended by itself.
    #[error("the gateway failed: {0}")]
    TaskEnded(#[from] TaskEnded),
}

/// A gateway whose addresses are bound and that does not serve yet.
pub struct App {
    config: Config,
    control: Runtime,
    listeners: Listeners,
}

/// Bound sockets.
struct Listeners {
    /// One per shard.
    data: Vec<TcpListener>,
    /// For the PROXY protocol: one per shard, or none.
    proxied: Vec<TcpListener>,
    /// For TLS: one per shard, or none.
    tls: Vec<TcpListener>,
    admin: TcpListener,
}

/// Where a gateway listens.
struct Addresses {
    data: SocketAddr,
    proxied: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    admin: SocketAddr,
}

impl Listeners {
    fn addresses(&self, config: &Config) -> io::Result<Addresses> {
        let first = |listeners: &[TcpListener]| {
            let first = listeners.first();
            first.map(TcpListener::local_addr).transpose()
        };
        Ok(Addresses {
            data: first(&self.data)?.unwrap_or(config.listen),
            proxied: first(&self.proxied)?,
            tls: first(&self.tls)?,
            admin: self.admin.local_addr()?,
        })
    }
}

impl Addresses {
    /// Whether only this machine can connect to the data listeners.
    fn are_loopback(&self) -> bool {
        let all = [Some(self.data), self.proxied, self.tls];
        all.iter()
            .flatten()
            .all(|address| address.ip().is_loopback())
    }

    /// What operators call this replica: the machine and the port that clients connect to.
    fn replica_name(&self) -> String {
        // Not from /proc/sys, which a service manager may hide.
        let system = rustix::system::uname();
        let machine = system.nodename().to_string_lossy();
        format!("{machine}:{}", self.data.port())
    }
}

impl App {
    /// Binds all listeners. It logs nothing: the log starts when the gateway runs.
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
        let data = bind_shards("FANFARE_LISTEN", config.listen)?;
        let proxied = config
            .clients
            .proxy_protocol_listen
            .map(|address| bind_shards("FANFARE_PROXY_PROTOCOL_LISTEN", address))
            .transpose()?
            .unwrap_or_default();
        let tls = config
            .tls
            .as_ref()
            .map(|tls| bind_shards("FANFARE_TLS_LISTEN", tls.listen))
            .transpose()?
            .unwrap_or_default();
        let admin = bind_alone(config.admin_listen).map_err(|error| AppError::Bind {
            setting: "FANFARE_ADMIN_LISTEN",
            address: config.admin_listen,
            error,
        })?;
        Ok(Self {
            config,
            control,
            listeners: Listeners {
                data,
                proxied,
                tls,
                admin,
            },
        })
    }

    /// Serves until SIGTERM, SIGINT or SIGQUIT, then drains.
    ///
    /// # Errors
    /// When a part cannot start, or a shard fails.
    pub fn run(self) -> Result<(), AppError> {
        let Self {
            config,
            control,
            listeners,
        } = self;
        let mut tasks = Tasks::on(control.handle());
        let addresses = listeners.addresses(&config)?;
        let Listeners {
            data,
            proxied,
            tls,
            admin,
        } = listeners;
        let (mut parts, log, inboxes) = Parts::start(&config, &addresses, data.len(), &mut tasks)?;
        let listeners = parts.listeners(data, proxied, tls);
        let shards = Shards::start(&config, listeners, inboxes, &parts)?;
        let pipeline = parts.pipeline.take();
        let mut serving = Serving {
            config,
            addresses,
            tasks,
            shards,
            inboxes: parts.inboxes.clone(),
            pipeline,
        };
        let served = control.block_on(serving.run(admin, parts));
        // A name that is still being looked up must not hold up the end.
        control.shutdown_background();
        // Dropped, it would wait for the collector.
        std::mem::forget(serving.pipeline);
        log.finish();
        served
    }
}

/// A gateway whose shards run.
struct Serving {
    config: Config,
    addresses: Addresses,
    tasks: Tasks,
    shards: Shards,
    /// One per shard.
    inboxes: Vec<mpsc::Sender<ShardMessage>>,
    pipeline: Option<TracePipeline>,
}

impl Serving {
    /// Serves operators until a signal, then drains.
    async fn run(&mut self, admin: TcpListener, parts: Parts) -> Result<(), AppError> {
        // Before a service manager learns that this process is ready, and may stop it.
        let mut signals = Signals::new()?;
        let hanging = Hanging::default();
        let state = self.serve_operators(admin, parts, hanging.clone())?;
        announce(&self.config, &self.addresses);
        supervision::ready();
        let pulses = std::mem::take(&mut self.shards.pulses);
        let watching = supervision::watch(pulses, self.shards.patience, hanging);
        self.tasks.spawn("the watchdog", watching);

        tokio::select! {
            name = signals.stop() => tracing::info!(signal = name, "stopping"),
            Some(failure) = self.shards.failed.recv() => return Err(failure),
            ended = self.tasks.ended() => return Err(ended.into()),
        }
        // Shards accept to the end, and this runtime answers what they ask for: so the last spans
        // are sent while it does.
        let leave = async {
            drain(&self.config, &self.inboxes, &state).await;
            if let Some(pipeline) = self.pipeline.take() {
                let _ = timeout(LAST_SPANS, spawn_blocking(|| pipeline.shutdown())).await;
            }
        };
        tokio::select! {
            () = leave => {}
            name = signals.stop() => tracing::warn!(signal = name, "stopping immediately"),
            Some(failure) = self.shards.failed.recv() => return Err(failure),
            ended = self.tasks.ended() => return Err(ended.into()),
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Starts the console and the admin listener.
    fn serve_operators(
        &mut self,
        listener: TcpListener,
        parts: Parts,
        hanging: Hanging,
    ) -> io::Result<Arc<AdminState>> {
        let state = Arc::new(AdminState {
            metrics: parts.metrics,
            hanging,
            bus: parts.health,
            warnings: parts.warnings,
            keys: parts.keys,
        });
        let console = Console::new();
        let sampler = Sampler::new(
            parts.replica,
            Arc::clone(&state),
            parts.stats,
            parts.inboxes,
            self.config.max_connections,
        );
        let showing = Arc::clone(&console).run(sampler, parts.peers, parts.heard);
        let showing = tokio::spawn(showing);
        // Streams do not need it: its end is no reason to end them.
        tokio::spawn(async move {
            if showing.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("the console failed and is empty until a restart");
            }
        });
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut service = admin::router(Arc::clone(&state), console)
            .layer(axum::middleware::from_fn(only_own_pages));
        if self.addresses.admin.ip().is_loopback() {
            service = service.layer(axum::middleware::from_fn(only_this_machine));
        }
        self.tasks.spawn("the admin listener", async move {
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!(%error, "the admin listener failed");
            }
        });
        Ok(state)
    }
}

/// Logs where the gateway listens, and what an operator has to know of its configuration.
fn announce(config: &Config, addresses: &Addresses) {
    let Addresses {
        data,
        proxied,
        tls,
        admin,
    } = *addresses;
    let bus = match &config.bus {
        BusConfig::Embedded => "memory:".to_owned(),
        BusConfig::Redis(url, _) => url.address(),
    };
    tracing::info!(
        version = env!("VERSION_AND_REVISION"),
        %data,
        proxied = proxied.map(tracing::field::display),
        tls = tls.map(tracing::field::display),
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
            "no access rules: all clients of the data listener, on loopback, may read and publish everything"
        ),
        Access::Rules(rules) if rules.tokens.is_none() => tracing::info!(
            "no key is configured: clients may read public channels and cannot publish over HTTP"
        ),
        Access::Rules(_) => {}
    }
    tracing::info!("the admin listener has no authentication: keep it inside your network");
    if addresses.are_loopback() {
        tracing::info!("demo page: http://{data}/");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_called_after_its_machine_and_port() {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let address: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let addresses = Addresses {
            data: address,
            proxied: None,
            tls: None,
            admin: address,
        };
        assert_eq!(addresses.replica_name(), format!("{}:8080", machine.trim()));
    }
}
