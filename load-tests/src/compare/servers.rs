//! The servers that are compared: whether they are there, how they start, how they are published to.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::clock::{NANOS_PER_SECOND, nanos, now_ns, sleep_until};
use crate::compare::pinning::on_cores;
use crate::compare::rows::Row;
use crate::measure::gateway::Gateways;
use crate::measure::process::ServerProcesses;
use crate::publisher::Wire;
use crate::scenario::plan::Target;

/// Before the names of channels in Redis.
pub(crate) const PREFIX: &str = "sse:";
const NCHAN_MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
const START_TIMEOUT: Duration = Duration::from_secs(15);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_AGAIN_NS: u64 = NANOS_PER_SECOND / 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// This repository's release binary
    Fanfare,
    /// Nchan in memory mode, published over its HTTP
    NchanMemory,
    /// Nchan with Redis, published over its HTTP
    NchanRedis,
    /// axum `Sse` and a tokio broadcast channel, as people write it first
    Axum,
    /// Node with better-sse and ioredis
    Node,
    /// The least C program that can do the work
    Floor,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Fanfare,
        Self::NchanMemory,
        Self::NchanRedis,
        Self::Axum,
        Self::Node,
        Self::Floor,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fanfare => "Fanfare",
            Self::NchanMemory => "Nchan, memory",
            Self::NchanRedis => "Nchan, Redis",
            Self::Axum => "axum Sse",
            Self::Node => "better-sse",
            Self::Floor => "floor",
        }
    }
}

/// Why a server cannot take part, and what would change that.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Missing {
    pub(crate) reason: String,
    pub(crate) remedy: &'static str,
}

/// Where things are, and where they run.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) fanfare: PathBuf,
    /// Where this program and the axum peer are.
    pub(crate) programs: PathBuf,
    pub(crate) peers: PathBuf,
    /// Private to this comparison, removed with it.
    pub(crate) folder: PathBuf,
    pub(crate) server_cores: Vec<usize>,
    pub(crate) load_cores: Vec<usize>,
}

impl Bench {
    /// What keeps `kind` from taking part; builds the floor on the way.
    pub(crate) fn missing(&self, kind: Kind) -> Option<Missing> {
        let absent = |what: &Path| !what.exists();
        let missing = |reason: String, remedy| Some(Missing { reason, remedy });
        match kind {
            Kind::Fanfare if absent(&self.fanfare) => missing(
                format!("no {}", self.fanfare.display()),
                "cargo build --release --bin fanfare",
            ),
            Kind::NchanMemory | Kind::NchanRedis
                if absent(Path::new(NCHAN_MODULE)) || !runs("nginx", "-v") =>
            {
                missing(
                    "no nginx with the Nchan module".into(),
                    "apt-get install nginx libnginx-mod-nchan",
                )
            }
            Kind::Axum if absent(&self.beside("peer-axum")) => missing(
                "no peer-axum beside this program".into(),
                "cargo build --release -p load-tests",
            ),
            Kind::Node if !runs("node", "--version") => {
                missing("no node".into(), "apt-get install nodejs npm")
            }
            Kind::Node if absent(&self.peers.join("node/node_modules")) => missing(
                "its packages are not installed".into(),
                "npm ci --prefix load-tests/peers/node",
            ),
            Kind::Floor => match self.build_floor() {
                Ok(()) => None,
                Err(error) => missing(format!("{error:#}"), "apt-get install gcc libc6-dev"),
            },
            _ => None,
        }
    }

    fn beside(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    fn floor(&self) -> PathBuf {
        self.folder.join("floor")
    }

    fn build_floor(&self) -> Result<()> {
        let built = Command::new("cc")
            .arg("-O2")
            .arg("-o")
            .arg(self.floor())
            .arg(self.peers.join("floor.c"))
            .output();
        let built = built.context("running cc")?;
        ensure!(
            built.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        Ok(())
    }

    /// A Redis of its own, on `cores`.
    pub(crate) fn start_redis(&self, cores: &[usize]) -> Result<Running> {
        start_redis(&self.folder, cores)
    }

    /// Loads Fanfare's function library into `redis`.
    pub(crate) fn load_functions(&self, redis: &Running) -> Result<()> {
        let loaded = Command::new(&self.fanfare)
            .args(["functions", "load"])
            .env("FANFARE_REDIS_URL", format!("redis://{}", redis.address))
            .stdin(Stdio::null())
            .output()
            .context("running fanfare functions load")?;
        ensure!(
            loaded.status.success(),
            "fanfare functions load: {}",
            String::from_utf8_lossy(&loaded.stderr).trim()
        );
        Ok(())
    }

    /// Starts a server against `redis`; `shards` is for Fanfare.
    pub(crate) fn start(&self, kind: Kind, redis: &Running, shards: usize) -> Result<Running> {
        let address = free_address()?;
        let (port, redis_port) = (address.port().to_string(), redis.address.port().to_string());
        let mut admin = None;
        let command = match kind {
            Kind::Fanfare => {
                let mut command = Command::new(&self.fanfare);
                command
                    .env("FANFARE_SHARDS", shards.to_string())
                    .env("FANFARE_LISTEN", address.to_string())
                    .env(
                        "FANFARE_ADMIN_LISTEN",
                        admin.insert(free_address()?).to_string(),
                    )
                    .env("FANFARE_REDIS_URL", format!("redis://{}", redis.address))
                    // Once it is told to end nobody is there to be drained.
                    .env("FANFARE_DRAIN_DELAY", "0s")
                    .env("FANFARE_LOG", "error");
                command
            }
            Kind::NchanMemory => self.nginx("nchan-memory.conf", &port, &redis_port)?,
            Kind::NchanRedis => self.nginx("nchan-redis.conf", &port, &redis_port)?,
            Kind::Axum => {
                let mut command = Command::new(self.beside("peer-axum"));
                command
                    .arg(address.to_string())
                    .arg(format!("redis://{}", redis.address));
                command
            }
            Kind::Node => {
                let mut command = Command::new("node");
                command
                    .arg(self.peers.join("node/server.mjs"))
                    .args([&port, &redis_port]);
                command
            }
            Kind::Floor => {
                let mut command = Command::new(self.floor());
                command.args([&port, &redis_port]);
                command
            }
        };
        let mut running = Running::start(command, address, &self.server_cores)
            .with_context(|| format!("starting {}", kind.name()))?;
        running.admin = admin;
        Ok(running)
    }

    fn nginx(&self, configuration: &str, port: &str, redis_port: &str) -> Result<Command> {
        let text = fs::read_to_string(self.peers.join(configuration))
            .with_context(|| configuration.to_owned())?;
        let text = text
            .replace("{port}", port)
            .replace("{redis_port}", redis_port)
            .replace("{folder}", &self.folder.display().to_string())
            .replace("{module}", NCHAN_MODULE);
        let filled = self.folder.join(configuration);
        fs::write(&filled, text)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&self.folder).arg("-c").arg(&filled);
        Ok(command)
    }
}

/// A Redis of its own, on `cores`, with its files in `folder`.
pub(super) fn start_redis(folder: &Path, cores: &[usize]) -> Result<Running> {
    let address = free_address()?;
    let mut command = Command::new("redis-server");
    command
        .args([
            "--bind",
            "127.0.0.1",
            "--port",
            &address.port().to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        // A subscriber that is behind is the measurement, not a reason to cut it off.
        .args(["--client-output-buffer-limit", "pubsub 0 0 0"])
        .current_dir(folder);
    Running::start(command, address, cores).context("redis-server (apt-get install redis-server)")
}

/// How `kind` is published to for `row`.
pub(crate) fn wire(row: Row, kind: Kind, server: &Running, redis: &Running) -> Wire {
    match kind {
        _ if row.publishes_kept() => Wire::Function {
            redis: redis.address,
            prefix: PREFIX.into(),
        },
        Kind::NchanMemory | Kind::NchanRedis => Wire::Post {
            server: server.address,
            path: "/pub/{channel}".into(),
        },
        _ => Wire::Publish {
            redis: redis.address,
            prefix: PREFIX.into(),
        },
    }
}

/// What clients connect to, and what those of `resume_servers` come back to: empty, where they were.
pub(crate) fn target(servers: &[Running], resume_servers: &[Running]) -> Result<Target> {
    let addresses = |servers: &[Running]| servers.iter().map(|server| server.address).collect();
    let all = || servers.iter().chain(resume_servers);
    Ok(Target {
        servers: addresses(servers),
        resume_servers: addresses(resume_servers),
        path: "/events/{channel}".into(),
        headers: Vec::new(),
        processes: ServerProcesses::new(all().map(|server| server.process.id()).collect())?,
        gateways: Gateways::new(all().filter_map(|server| server.admin).collect()),
    })
}

/// A server process; ended when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    process: Child,
    address: SocketAddr,
    /// Fanfare's admin listener.
    admin: Option<SocketAddr>,
}

impl Running {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn processes(&self) -> Result<ServerProcesses> {
        ServerProcesses::new(vec![self.process.id()])
    }

    fn start(mut command: Command, address: SocketAddr, cores: &[usize]) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = on_cores(cores, || Ok(command.spawn()?))?;
        let mut running = Self {
            process,
            address,
            admin: None,
        };
        let deadline_ns = now_ns() + nanos(START_TIMEOUT);
        while TcpStream::connect(address).is_err() {
            if let Some(status) = running.process.try_wait()? {
                bail!("ended at once: {status}");
            }
            ensure!(
                now_ns() < deadline_ns,
                "does not listen after {START_TIMEOUT:?}"
            );
            sleep_until(now_ns() + LOOK_AGAIN_NS);
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: a killed nginx would leave its worker behind.
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        let deadline_ns = now_ns() + nanos(STOP_TIMEOUT);
        while asked && matches!(self.process.try_wait(), Ok(None)) && now_ns() < deadline_ns {
            sleep_until(now_ns() + LOOK_AGAIN_NS);
        }
        // Its own child, by its own handle; errors mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn runs(program: &str, argument: &str) -> bool {
    let status = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// A port that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?)
}
