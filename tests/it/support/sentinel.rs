//! Redis Sentinels, and a primary with replicas for them to watch.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::AsyncConnectionConfig;

use crate::support::{Process, Redis, eventually, eventually_within, free_port, within};

/// How long a Sentinel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the Sentinels call the primary.
pub const NAME: &str = "main";

/// Sentinels that watch one primary; they end when dropped.
pub struct Sentinels {
    processes: Vec<Process>,
    ports: Vec<u16>,
    directory: tempfile::TempDir,
}

impl Sentinels {
    /// Starts `count` of them, and waits until a majority could fail over from `primary` to one
    /// of its replicas.
    pub async fn watching(primary: &Redis, count: usize) -> Self {
        Self::watching_with(primary.port(), count, "").await
    }

    /// The same of a primary on this port, with further lines in their configuration.
    pub async fn watching_with(port: u16, count: usize, lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut sentinels = Self {
            processes: Vec::new(),
            ports: Vec::new(),
            directory,
        };
        let quorum = count / 2 + 1;
        for _ in 0..count {
            let own = free_port();
            let home = sentinels.directory.path().join(own.to_string());
            std::fs::create_dir(&home).unwrap();
            let file = home.join("sentinel.conf");
            let text = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor {NAME} 127.0.0.1 {port} {quorum}\n\
                 sentinel down-after-milliseconds {NAME} 2000\n\
                 sentinel failover-timeout {NAME} 6000\n{lines}\n",
                home.display()
            );
            std::fs::write(&file, text).unwrap();
            let child = Command::new("redis-server")
                .arg(&file)
                .arg("--sentinel")
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed (make test installs it)");
            sentinels.processes.push(Process(child));
            sentinels.ports.push(own);
        }
        eventually("the Sentinels agree", async || {
            for number in 0..count {
                let enough =
                    sentinels.try_command::<String>(number, &["SENTINEL", "CKQUORUM", NAME]);
                if enough.await.is_err() {
                    return false;
                }
            }
            true
        })
        .await;
        sentinels
    }

    /// Waits until all know a replica that could take over.
    pub async fn know_a_replica(&self) {
        // Redis is asked for its replicas every ten seconds.
        eventually("the Sentinels know a replica", async || {
            for number in 0..self.ports.len() {
                let command = ["SENTINEL", "REPLICAS", NAME];
                let found: Vec<HashMap<String, String>> = self.command(number, &command).await;
                let is_linked = |one: &HashMap<_, String>| one["master-link-status"] == "ok";
                if !found.iter().any(is_linked) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// As a Redis URL.
    pub fn url(&self) -> String {
        Self::url_of(&self.ports)
    }

    /// The URL of Sentinels on these ports.
    pub fn url_of(ports: &[u16]) -> String {
        let all: Vec<_> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        format!("redis-sentinel://{}/{NAME}", all.join(","))
    }

    /// Their ports.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Sends a signal to one of them.
    pub fn signal(&self, number: usize, name: &str) {
        self.processes[number].signal(name);
    }

    /// Runs a command on one of them.
    pub async fn command<T: redis::FromRedisValue>(&self, number: usize, parts: &[&str]) -> T {
        self.try_command(number, parts).await.unwrap()
    }

    async fn try_command<T: redis::FromRedisValue>(
        &self,
        number: usize,
        parts: &[&str],
    ) -> redis::RedisResult<T> {
        let url = format!("redis://127.0.0.1:{}", self.ports[number]);
        let client = redis::Client::open(url)?;
        // As long as a machine takes that is busy with ten thousand clients.
        let patience = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connecting = client.get_multiplexed_async_connection_with_config(&patience);
        let mut connection = within("connecting to a Sentinel", connecting).await?;
        let mut command = redis::cmd(parts[0]);
        command.arg(&parts[1..]);
        command.query_async(&mut connection).await
    }

    /// The primary's port, as one of them has it.
    pub async fn primary(&self, number: usize) -> u16 {
        let command = ["SENTINEL", "get-master-addr-by-name", NAME];
        let (_, port): (String, u16) = self.command(number, &command).await;
        port
    }

    /// Waits until all name the server on this port.
    pub async fn name(&self, port: u16) {
        eventually_within(
            Duration::from_secs(40),
            "the Sentinels name the new primary",
            async || {
                for number in 0..self.ports.len() {
                    if self.primary(number).await != port {
                        return false;
                    }
                }
                true
            },
        )
        .await;
    }
}
