//! Processes are stopped for long, disks are full, memory is short.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::faults::matrix::Fault;
use crate::faults::scene::Scene;
use crate::faults::{MINUTE, PAUSE, RECOVERY, VARIABLES, clients_of_two_channels, open, refs};
use crate::support::client::{Addresses, Plan};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::{Gateway, Redis, eventually, test_within};

#[tokio::test]
async fn redis_stopped_for_a_minute_costs_no_event() {
    let mut fault = Fault::new("Redis stopped for 60 s", RECOVERY);
    test_within(3 * MINUTE, async {
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::start().await;
        journal.grows(100).await;
        redis.signal("STOP");
        sleep(Duration::from_secs(60)).await;
        assert!(!gateway.is_ready().await);
        redis.signal("CONT");
        let over = Instant::now();
        gateway.ready().await;
        journal.grows(50).await;
        fault.recovered(over);
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
    })
    .await;
}

/// Longer than the lag bound: it may vouch for nothing that it saw last.
#[tokio::test]
async fn a_replica_stopped_for_ninety_seconds_costs_no_event() {
    let mut fault = Fault::new("a replica stopped for 90 s", RECOVERY);
    test_within(4 * MINUTE, async {
        let redis = Redis::start().await;
        let gateways = [
            Gateway::behind(&redis, VARIABLES).await,
            Gateway::behind(&redis, VARIABLES).await,
        ];
        let addresses = Addresses::of(&[&gateways[0], &gateways[1]]);
        let clients = clients_of_two_channels(&addresses).await;
        let journal = Journal::default();
        let pause = Duration::from_millis(20);
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], pause);
        journal.grows(100).await;
        gateways[0].process.signal("STOP");
        sleep(Duration::from_secs(90)).await;
        gateways[0].process.signal("CONT");
        let over = Instant::now();
        gateways[0].ready().await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        fault.recovered(over);
    })
    .await;
}

/// A file system of its own, of so many megabytes; gone when dropped. Root only.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(
            mounted.success(),
            "a disk cannot be mounted, which needs root"
        );
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["-l"])
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_costs_no_event() {
    let mut fault = Fault::new("the disk of the AOF is full", RECOVERY);
    test_within(3 * MINUTE, async {
        let disk = Disk::new(8);
        let folder = disk.0.path().to_str().unwrap().to_owned();
        let redis = Redis::start_with(&[
            ("--appendonly", "yes"),
            ("--enable-protected-configs", "yes"),
            ("--auto-aof-rewrite-percentage", "0"),
        ])
        .await;
        // Its own folder is how the harness knows it: only the files are elsewhere.
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let _: String = redis.command(&["CONFIG", "SET", "appendonly", "no"]).await;
        let _: String = redis.command(&["CONFIG", "SET", "dir", &folder]).await;
        let _: String = redis.command(&["CONFIG", "SET", "appendonly", "yes"]).await;
        eventually("the AOF is there", async || {
            let info: String = redis.command(&["INFO", "persistence"]).await;
            info.contains("aof_enabled:1") && info.contains("aof_rewrite_in_progress:0")
        })
        .await;
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        journal.grows(100).await;
        let filler = Path::new(&folder).join("filler");
        // As much as there is room.
        let _ = std::fs::write(&filler, vec![0; 16 << 20]);
        eventually("it is told", async || {
            gateway.metric("fanfare_redis_keeps_events").await == 0.0
        })
        .await;
        assert!(gateway.is_ready().await, "live events go on");
        std::fs::remove_file(&filler).unwrap();
        let over = Instant::now();
        eventually("it is told", async || {
            gateway.metric("fanfare_redis_keeps_events").await == 1.0
        })
        .await;
        journal.grows(50).await;
        fault.recovered(over);
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
    })
    .await;
}

/// A memory cgroup, of version 1 or 2; gone when dropped. Root only.
struct Memory(PathBuf);

impl Memory {
    fn limited_to(bytes: usize) -> Self {
        let name = format!("fanfare-test-{}", std::process::id());
        let old = Path::new("/sys/fs/cgroup/memory");
        let (folder, file) = if old.is_dir() {
            (old.join(name), "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), "memory.max")
        };
        let limited = std::fs::create_dir(&folder)
            .and_then(|()| std::fs::write(folder.join(file), bytes.to_string()));
        let memory = Self(folder);
        if let Err(error) = limited {
            panic!("a memory cgroup cannot be made, which needs root: {error}");
        }
        memory
    }

    fn add(&self, process: u32) {
        std::fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Processes in it have ended: gateways are dropped first.
        // The kernel may need a moment to see it.
        for _ in 0..100_000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Many clients that do not read, large events, resumes of long histories: its bounds are lower
/// than what it is given.
#[tokio::test]
async fn a_replica_short_of_memory_lives_on() {
    let mut fault = Fault::new(
        "a replica in 192 MiB of memory, 100 clients that do not read",
        RECOVERY,
    );
    test_within(3 * MINUTE, async {
        let redis = Redis::start().await;
        let memory = Memory::limited_to(192 << 20);
        let mut variables = vec![("FANFARE_CLIENT_BUFFER_BYTES", "256KiB")];
        variables.extend(VARIABLES);
        let mut gateway = Gateway::behind(&redis, &variables).await;
        memory.add(gateway.process.0.id());
        let addresses = Addresses::of(&[&gateway]);
        let clients = clients_of_two_channels(&addresses).await;
        let mut stopped = Vec::new();
        for _ in 0..100 {
            let mut plan = Plan::new(&addresses, &["a", "b"]);
            plan.receive_buffer = Some(4096);
            let client = plan.open().await;
            client.pause(true);
            stopped.push(client);
        }
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        publisher.event_bytes = 20_000;
        for round in 0..40 {
            publisher.ids("a", 20).await;
            publisher.ids("b", 20).await;
            clients[3 + round % 3].cut();
        }
        assert!(
            gateway.process.0.try_wait().unwrap().is_none(),
            "it was killed"
        );
        let over = Instant::now();
        drop(stopped);
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        let late = open(&addresses, &["a"]).await;
        settle(&journal, &mut publisher, &[&late], &[]).await;
        fault.recovered(over);
        drop(gateway);
    })
    .await;
}
