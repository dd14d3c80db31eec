//! The command line: every option with its default, its unit and what it is for.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::capacity::CapacityArgs;
use crate::compare::CompareArgs;
use crate::compare::redis_costs::RedisCostsArgs;
use crate::measure::gateway::Gateways;
use crate::measure::process::ServerProcesses;
use crate::publisher::Wire;
use crate::scenario::plan::{Limits, Load, Plan, Target, Work};

/// Measures Fanfare, or any other Server-Sent Events server.
///
/// Every delivery is checked. Exit status: 0 all is well, 1 something was lost, duplicated,
/// reordered or out of bounds, 2 the run could not be carried out.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Clients that only wait: memory and CPU a connection, heartbeats
    Idle(Options),
    /// One channel (or a few), many clients, a fixed rate
    Fanout(Options),
    /// A rate stepped up until latency, loss or throughput breaks
    Saturate {
        #[command(flatten)]
        options: Options,
        /// Every step's rate is the last one's times this
        #[arg(long, default_value_t = 1.5)]
        factor: f64,
        #[arg(long, default_value_t = 12)]
        max_steps: u32,
    },
    /// A channel for each client
    Channels(Options),
    /// Several channels on each connection
    Multi {
        #[command(flatten)]
        options: Options,
        /// Channels on each connection
        #[arg(long, default_value_t = 4)]
        per_client: u32,
    },
    /// All clients connect at once; then a few events to all
    Storm(Options),
    /// Clients come and go while events flow
    Churn {
        #[command(flatten)]
        options: Options,
        /// Clients that leave and come back, a second
        #[arg(long, default_value_t = 100.0)]
        churn: f64,
    },
    /// Some clients never read; the others must not notice
    Slow {
        #[command(flatten)]
        options: Options,
        /// Every n-th client never reads
        #[arg(long, default_value_t = 10)]
        slow_every: u32,
    },
    /// Minutes at a steady rate; memory must stay flat
    Soak(Options),
    /// All clients leave while kept events go on, and resume with their cursor (publishes with FCALL
    /// unless told otherwise)
    Resume {
        #[command(flatten)]
        options: Options,
        /// How long the clients stay away
        #[arg(long, value_parser = humantime::parse_duration, default_value = "2s")]
        away: Duration,
        /// Server that the clients come back to, `http://host:port` [default: where they were]
        #[arg(long = "resume-url", value_delimiter = ',')]
        resume_urls: Vec<String>,
        /// The run fails if resuming costs Redis more reads of histories (needs --admin-url)
        #[arg(long, requires = "admin_urls")]
        max_history_reads: Option<u64>,
    },
    /// Fanfare and its peers, the same work on pinned cores, one table
    Compare(CompareArgs),
    /// What a number of connections takes: replicas, cores, memory, Redis. Computed from measured
    /// figures
    Capacity(CapacityArgs),
    /// What an event costs Redis for each subscriber, as `capacity` counts it
    RedisCosts(RedisCostsArgs),
    /// Holds connections for the commands above
    #[command(hide = true)]
    ClientProcess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PublishBy {
    /// `PUBLISH <prefix><channel> <data>`
    Redis,
    /// `FCALL fanfare_publish 1 <prefix><channel> <data>`: kept events
    Fcall,
    /// `POST <publish-path>`
    Http,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Server, `http://host:port`; clients are spread over several in turn
    #[arg(
        long = "url",
        default_value = "http://127.0.0.1:8080",
        value_delimiter = ','
    )]
    urls: Vec<String>,
    /// Path of a stream with `{channel}`, `{channels}` (joined by commas) or `{channel_query}`
    /// (`channel=a&channel=b`) [default: /events/{channel}; for `multi` /events?{channel_query}]
    #[arg(long)]
    path: Option<String>,
    /// A further request header, `name: value`; may be repeated
    #[arg(long = "header")]
    headers: Vec<String>,
    /// How events are published [default: redis; for `resume` fcall]
    #[arg(long, value_enum)]
    publish: Option<PublishBy>,
    /// Redis to publish to
    #[arg(long, default_value = "127.0.0.1:6379")]
    redis: String,
    /// What stands before a channel's name in Redis
    #[arg(long, default_value = "sse:")]
    prefix: String,
    /// Server to POST to [default: the first --url]
    #[arg(long)]
    publish_url: Option<String>,
    #[arg(long, default_value = "/events/{channel}?keep=false")]
    publish_path: String,
    /// Clients [default: 1000]
    #[arg(long)]
    clients: Option<u32>,
    /// Channels, taken in turn by clients and events [default: 1; for `channels` as many as clients;
    /// for `multi` 100]
    #[arg(long)]
    channels: Option<u32>,
    /// Events a second over all channels together [default: 10; for `channels` one for each channel]
    #[arg(long)]
    rate: Option<f64>,
    /// How long events are published, in each step where there are several [default: 10s; for `storm`
    /// 2s, for `soak` 10m]
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Size of an event's data; not below the 41 bytes that the check needs
    #[arg(long, default_value_t = 100)]
    bytes: u32,
    /// A server process to measure, its descendants included; may be repeated
    #[arg(long = "server-pid", value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// Admin listener of a gateway, `http://host:port`, to read its counters of resumes, history
    /// reads and gaps; all gateways, where there are several
    #[arg(long = "admin-url", value_delimiter = ',')]
    admin_urls: Vec<String>,
    /// Client processes [default: as many as the descriptor limit demands]
    #[arg(long)]
    processes: Option<u32>,
    /// Connects under way at once [default: 256; for `storm` all]
    #[arg(long)]
    connecting: Option<u32>,
    #[arg(long, value_parser = humantime::parse_duration, default_value = "120s")]
    connect_timeout: Duration,
    /// How long what is missing is waited for after the last event was due
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    drain_timeout: Duration,
    /// `SO_RCVBUF` of the clients, bytes [default: the kernel's]
    #[arg(long)]
    receive_buffer: Option<u32>,
    /// The run fails above it [for `saturate`, where the steps end: 250ms]
    #[arg(long, value_parser = humantime::parse_duration)]
    max_p99: Option<Duration>,
    /// Print the result as JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write an HTML page with plots into this folder
    #[arg(long)]
    pub(crate) report: Option<PathBuf>,
}

impl Command {
    /// What to do; `None` for the commands that are no scenario.
    pub(crate) fn plan(&self) -> Result<Option<(&Options, Plan)>> {
        let (options, mut plan) = match self {
            Self::Idle(options) => (options, options.plan("idle")?),
            Self::Fanout(options) => (options, options.plan("fanout")?),
            Self::Channels(options) => (options, options.plan("channels")?),
            Self::Storm(options) => (options, options.plan("storm")?),
            Self::Soak(options) => (options, options.plan("soak")?),
            Self::Saturate { options, .. } => (options, options.plan("saturate")?),
            Self::Multi { options, .. } => (options, options.plan("multi")?),
            Self::Churn { options, .. } => (options, options.plan("churn")?),
            Self::Slow { options, .. } => (options, options.plan("slow")?),
            Self::Resume { options, .. } => (options, options.plan("resume")?),
            Self::Compare(_) | Self::Capacity(_) | Self::RedisCosts(_) | Self::ClientProcess => {
                return Ok(None);
            }
        };
        let channels = if matches!(self, Self::Channels(_)) {
            plan.clients
        } else {
            plan.channels
        };
        plan.channels = options.channels.unwrap_or(channels);
        let load = options.load(if matches!(self, Self::Channels(_)) {
            f64::from(plan.channels)
        } else {
            10.0
        });
        plan.work = Work::Steady {
            load,
            memory_must_be_flat: false,
        };
        match self {
            Self::Idle(_) => {
                plan.work = Work::Hold {
                    duration: load.duration,
                }
            }
            Self::Saturate {
                factor, max_steps, ..
            } => {
                plan.work = Work::Steps {
                    first: load,
                    factor: *factor,
                    max_steps: *max_steps,
                };
                plan.limits
                    .max_p99
                    .get_or_insert(Duration::from_millis(250));
            }
            Self::Multi { per_client, .. } => {
                plan.channels_per_client = *per_client;
                plan.channels = options.channels.unwrap_or(100);
                plan.target.path = options
                    .path
                    .clone()
                    .unwrap_or_else(|| "/events?{channel_query}".into());
            }
            Self::Storm(_) => {
                let duration = options.duration.unwrap_or(Duration::from_secs(2));
                plan.work = Work::Storm {
                    load: Load { duration, ..load },
                };
                plan.limits.connecting = options.connecting.unwrap_or(plan.clients);
            }
            Self::Churn { churn, .. } => {
                plan.work = Work::Churn {
                    load,
                    per_second: *churn,
                }
            }
            Self::Slow { slow_every, .. } => plan.slow_every = *slow_every,
            Self::Soak(_) => {
                let duration = options.duration.unwrap_or(Duration::from_secs(600));
                plan.work = Work::Steady {
                    load: Load { duration, ..load },
                    memory_must_be_flat: true,
                };
            }
            Self::Resume {
                away,
                resume_urls,
                max_history_reads,
                ..
            } => {
                ensure!(
                    *away < load.duration,
                    "the clients must come back while events go on"
                );
                plan.work = Work::Resume { load, away: *away };
                plan.target.resume_servers = addresses_of(resume_urls)?;
                plan.limits.max_history_reads = *max_history_reads;
                plan.publish = options.wire(options.publish.unwrap_or(PublishBy::Fcall))?;
            }
            _ => {}
        }
        Ok(Some((options, plan)))
    }
}

impl Options {
    fn plan(&self, scenario: &'static str) -> Result<Plan> {
        Ok(Plan {
            scenario,
            target: Target {
                servers: addresses_of(&self.urls)?,
                resume_servers: Vec::new(),
                path: self
                    .path
                    .clone()
                    .unwrap_or_else(|| "/events/{channel}".into()),
                headers: self.headers.clone(),
                processes: ServerProcesses::new(self.server_pids.clone())?,
                gateways: Gateways::new(addresses_of(&self.admin_urls)?),
            },
            publish: self.wire(self.publish.unwrap_or(PublishBy::Redis))?,
            clients: self.clients.unwrap_or(1000),
            channels: self.channels.unwrap_or(1),
            channels_per_client: 1,
            slow_every: 0,
            event_bytes: self.bytes,
            work: Work::Hold {
                duration: Duration::ZERO,
            },
            limits: Limits {
                connecting: self.connecting.unwrap_or(256),
                connect_timeout: self.connect_timeout,
                drain_timeout: self.drain_timeout,
                receive_buffer_bytes: self.receive_buffer,
                max_p99: self.max_p99,
                max_history_reads: None,
            },
            processes: self.processes,
        })
    }

    fn load(&self, events_per_second: f64) -> Load {
        Load {
            events_per_second: self.rate.unwrap_or(events_per_second),
            duration: self.duration.unwrap_or(Duration::from_secs(10)),
        }
    }

    fn wire(&self, by: PublishBy) -> Result<Wire> {
        let prefix = self.prefix.clone();
        Ok(match by {
            PublishBy::Redis => Wire::Publish {
                redis: resolve(&self.redis)?,
                prefix,
            },
            PublishBy::Fcall => Wire::Function {
                redis: resolve(&self.redis)?,
                prefix,
            },
            PublishBy::Http => {
                let url = self
                    .publish_url
                    .as_ref()
                    .or(self.urls.first())
                    .context("a --publish-url")?;
                Wire::Post {
                    server: address_of(url)?,
                    path: self.publish_path.clone(),
                }
            }
        })
    }
}

fn addresses_of(urls: &[String]) -> Result<Vec<SocketAddr>> {
    urls.iter().map(|url| address_of(url)).collect()
}

/// `http://host:port` → its address. Encrypted servers are measured behind nothing: no TLS here.
fn address_of(url: &str) -> Result<SocketAddr> {
    let Some(authority) = url.strip_prefix("http://") else {
        bail!("`{url}` does not begin with http://")
    };
    let authority = authority.trim_end_matches('/');
    ensure!(
        !authority.contains('/'),
        "`{url}` has a path: it belongs into --path"
    );
    if authority.contains(':') {
        resolve(authority)
    } else {
        resolve(&format!("{authority}:80"))
    }
}

fn resolve(host_and_port: &str) -> Result<SocketAddr> {
    let host_and_port = host_and_port.trim_start_matches("redis://");
    let addresses = host_and_port
        .to_socket_addrs()
        .with_context(|| format!("`{host_and_port}` is no host:port"))?;
    addresses
        .min_by_key(SocketAddr::is_ipv6)
        .with_context(|| format!("`{host_and_port}` has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan> {
        let cli = Cli::try_parse_from(line.split_whitespace())?;
        let (_, plan) = cli.command.plan()?.context("a scenario")?;
        plan.check()?;
        Ok(plan)
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn scenarios_have_their_defaults() {
        assert_eq!(plan("x channels --clients 50").unwrap().channels, 50);
        let multi = plan("x multi --per-client 8").unwrap();
        assert_eq!((multi.channels, multi.channels_per_client), (100, 8));
        assert_eq!(plan("x storm --clients 77").unwrap().limits.connecting, 77);
        assert!(matches!(
            plan("x resume").unwrap().publish,
            Wire::Function { .. }
        ));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "x fanout --clients 0",
            "x fanout --rate 0",
            "x fanout --url ftp://127.0.0.1:1",
            "x fanout --url http://127.0.0.1:1/path",
            "x multi --per-client 4 --path /events/{channel}",
            "x multi --per-client 4 --channels 2",
            "x slow --slow-every 1",
            "x resume --away 10s --duration 5s",
            "x resume --max-history-reads 3",
            "x resume --resume-url http://127.0.0.1:1/path",
            "x saturate --factor 1",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
