//! Hosts of our own on this machine: network namespaces, each with two links. Root only.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::sentinel::NAME;
use crate::support::{BINARY, Gateway, Process, eventually};

/// The links of a host: each leads to all others, and to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Left alone.
    Good,
    /// To be broken.
    Bad,
}

impl Link {
    const ALL: [Self; 2] = [Self::Good, Self::Bad];

    fn letter(self) -> char {
        match self {
            Self::Good => 'g',
            Self::Bad => 'b',
        }
    }
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn must(command: &str) {
    run(command).unwrap_or_else(|fault| {
        panic!(
            "network namespaces, which need root, iproute2 and nftables, cannot be made: {fault}"
        )
    });
}

/// Two bridges, and the hosts on them; all gone when dropped.
pub(crate) struct Network {
    /// Of this process, and this network in it.
    id: String,
    subnet: u32,
    hosts: u32,
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 1..=self.hosts {
            let _ = run(&format!("ip netns delete {}", self.host_name(number)));
        }
        for link in Link::ALL {
            let _ = run(&format!("ip link delete {}", self.bridge(link)));
        }
    }
}

impl Network {
    pub(crate) fn new() -> Self {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            id: format!("{:x}-{number}", std::process::id()),
            // Of 10.0.0.0/8, two networks each.
            subnet: (std::process::id() + number) % 100 * 2,
            hosts: 0,
        };
        for link in Link::ALL {
            let (bridge, own) = (network.bridge(link), network.address(link, 254));
            must(&format!("ip link add {bridge} type bridge"));
            must(&format!("ip address add {own}/24 dev {bridge}"));
            must(&format!("ip link set {bridge} up"));
        }
        network
    }

    fn bridge(&self, link: Link) -> String {
        format!("f{}{}", link.letter(), self.id)
    }

    fn host_name(&self, number: u32) -> String {
        format!("fanfare-{}-{number}", self.id)
    }

    fn address(&self, link: Link, number: u32) -> String {
        format!(
            "10.213.{}.{number}",
            self.subnet + u32::from(link == Link::Bad)
        )
    }

    /// Adds a host.
    pub(crate) fn host(&mut self) -> Host {
        self.hosts += 1;
        let number = self.hosts;
        let name = self.host_name(number);
        must(&format!("ip netns add {name}"));
        must(&format!("ip -n {name} link set lo up"));
        let mut outer = Vec::new();
        for link in Link::ALL {
            let inner = format!("{}0", link.letter());
            let outside = format!("{}{number}{}", link.letter(), self.id);
            must(&format!(
                "ip link add {outside} type veth peer name {inner} netns {name}"
            ));
            must(&format!(
                "ip link set {outside} master {}",
                self.bridge(link)
            ));
            must(&format!("ip link set {outside} up"));
            let address = self.address(link, number);
            must(&format!(
                "ip -n {name} address add {address}/24 dev {inner}"
            ));
            must(&format!("ip -n {name} link set {inner} up"));
            outer.push(outside);
        }
        Host {
            good: self.address(Link::Good, number),
            bad: self.address(Link::Bad, number),
            bad_outside: outer.pop().unwrap(),
            name,
            folder: tempfile::tempdir().unwrap(),
        }
    }
}

/// A host of the network.
pub(crate) struct Host {
    name: String,
    pub(crate) good: String,
    pub(crate) bad: String,
    /// The bad link's end at the bridge.
    bad_outside: String,
    folder: tempfile::TempDir,
}

impl Host {
    fn on_host(&self, command: &str) {
        must(&format!("ip netns exec {} {command}", self.name));
    }

    /// Of a hundred packets of the bad link, so many are lost, in each direction.
    pub(crate) fn lose(&self, percent: u32) {
        let odds = match percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent} "),
        };
        self.on_host("nft add table ip bad");
        for (chain, direction) in [("input", "iifname"), ("output", "oifname")] {
            self.on_host(&format!(
                "nft add chain ip bad {chain} {{ type filter hook {chain} priority 0 ; }}"
            ));
            self.on_host(&format!(
                "nft add rule ip bad {chain} {direction} b0 {odds}drop"
            ));
        }
    }

    /// The bad link carries so much, in each direction.
    pub(crate) fn narrow(&self, kbit: u32) {
        let bucket = format!("root tbf rate {kbit}kbit burst 1600 latency 20s");
        must(&format!(
            "tc qdisc replace dev {} {bucket}",
            self.bad_outside
        ));
        self.on_host(&format!("tc qdisc replace dev b0 {bucket}"));
    }

    /// Nothing larger passes the bad link.
    pub(crate) fn mtu(&self, bytes: u32) {
        must(&format!("ip link set {} mtu {bytes}", self.bad_outside));
        must(&format!("ip -n {} link set b0 mtu {bytes}", self.name));
    }

    /// The bad link is as it was.
    pub(crate) fn heal(&self) {
        self.mtu(1500);
        let _ = run(&format!(
            "ip netns exec {} nft delete table ip bad",
            self.name
        ));
        let _ = run(&format!("tc qdisc delete dev {} root", self.bad_outside));
        let _ = run(&format!(
            "ip netns exec {} tc qdisc delete dev b0 root",
            self.name
        ));
    }

    /// Cuts the bad link to other hosts, or joins it again. The test reaches it all the same.
    pub(crate) fn isolate(&self, isolated: bool) {
        let state = if isolated { "on" } else { "off" };
        must(&format!(
            "bridge link set dev {} isolated {state}",
            self.bad_outside
        ));
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        let child = Command::new("ip")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["netns", "exec", &self.name, program])
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    /// Starts a Redis on port 6379 of all its links, and waits until it answers.
    pub(crate) async fn redis(&self, options: &[&str]) -> Process {
        let folder = self.folder.path().to_str().unwrap();
        let mut arguments = vec!["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
        arguments.extend(["--dir", folder, "--repl-diskless-sync-delay", "0"]);
        arguments.extend(options);
        let process = self.spawn("redis-server", &arguments);
        eventually("Redis answers", async || {
            self.try_command::<String>(6379, &["PING"]).await.is_ok()
        })
        .await;
        process
    }

    /// Starts a Sentinel on this port of the bad link.
    pub(crate) fn sentinel(&self, port: u16, primary: &str) -> Process {
        let home = self.folder.path().join(port.to_string());
        std::fs::create_dir(&home).unwrap();
        let text = format!(
            "port {port}\nbind 0.0.0.0\nprotected-mode no\ndir {}\n\
             sentinel announce-ip {}\n\
             sentinel monitor {NAME} {primary} 6379 2\n\
             sentinel down-after-milliseconds {NAME} 2000\n\
             sentinel failover-timeout {NAME} 6000\n",
            home.display(),
            self.bad
        );
        let file = home.join("sentinel.conf");
        std::fs::write(&file, text).unwrap();
        self.spawn("redis-server", &[file.to_str().unwrap(), "--sentinel"])
    }

    /// Runs a command on a server of this host, over the good link.
    pub(crate) async fn try_command<T: redis::FromRedisValue>(
        &self,
        port: u16,
        parts: &[&str],
    ) -> redis::RedisResult<T> {
        let client = redis::Client::open(format!("redis://{}:{port}", self.good))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(parts[0]);
        command.arg(&parts[1..]);
        command.query_async(&mut connection).await
    }

    /// Starts a gateway on all links, and waits until it is ready. Clients come over `link`.
    pub(crate) async fn gateway(&self, link: Link, variables: &[(&str, &str)]) -> Gateway {
        let binary = self.program(Path::new(BINARY));
        let data = match link {
            Link::Good => format!("{}:8080", self.good),
            Link::Bad => format!("{}:8080", self.bad),
        };
        let admin = format!("{}:9080", self.good);
        let mut all = vec![
            ("FANFARE_LISTEN", data.as_str()),
            ("FANFARE_ADMIN_LISTEN", admin.as_str()),
            ("FANFARE_PUBLIC_CHANNELS", "*"),
        ];
        all.extend_from_slice(variables);
        let gateway = Gateway::start_binary(&binary, &all).await;
        assert_eq!(gateway.data, data.parse::<SocketAddr>().unwrap());
        gateway.ready().await;
        gateway
    }

    /// A program that runs `program` on this host.
    fn program(&self, program: &Path) -> PathBuf {
        let file = self.folder.path().join("program");
        let script = format!(
            "#!/bin/sh\nPATH=/usr/sbin:/sbin:$PATH exec ip netns exec {} {} \"$@\"\n",
            self.name,
            program.display()
        );
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        file
    }
}
