//! The wall clock steps. Ids come from the clock of Redis, and only grow.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::time::Instant;

use crate::faults::matrix::Fault;
use crate::faults::{MINUTE, PAUSE, RECOVERY, clients_of_two_channels, open, refs};
use crate::support::client::Addresses;
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::{BINARY, Gateway, Redis, test_within};

/// A clock that programs can be started under, and that can be set.
struct Clock(tempfile::TempDir);

impl Clock {
    fn new() -> Self {
        let clock = Self(tempfile::tempdir().unwrap());
        std::fs::write(clock.path("offset"), 0_i64.to_ne_bytes()).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/clock.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(clock.path("clock.so"))
            .arg(source)
            .status()
            .expect("cc is installed (make test installs it)");
        assert!(compiled.success());
        clock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Sets it to so many seconds after the real time, for all programs at once.
    fn set(&self, seconds: i64) {
        // In place: it is mapped.
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.path("offset"))
            .unwrap();
        file.write_all(&seconds.to_ne_bytes()).unwrap();
    }

    /// A program that runs `program` under this clock.
    fn program(&self, name: &str, program: &Path) -> PathBuf {
        let file = self.path(name);
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD={} CLOCK_OFFSET_FILE={}\nexec {} \"$@\"\n",
            self.path("clock.so").display(),
            self.path("offset").display(),
            program.display()
        );
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        file
    }
}

#[tokio::test]
async fn an_hour_forth_and_back_costs_no_event() {
    let mut fault = Fault::new("the wall clock stepped an hour forth and back", RECOVERY);
    test_within(MINUTE, async {
        let clock = Clock::new();
        let program = clock.program("redis", Path::new("redis-server"));
        let redis = Redis::start_program(&program, &[]).await;
        let url = redis.url();
        let variables = [
            ("FANFARE_REDIS_URL", url.as_str()),
            ("FANFARE_HEARTBEAT", "500ms"),
            ("FANFARE_HISTORY_LENGTH", "20000"),
            ("FANFARE_HISTORY_TTL", "12h"),
        ];
        let binary = clock.program("gateway", Path::new(BINARY));
        let gateway = Gateway::start_binary(&binary, &variables).await;
        gateway.ready().await;
        let addresses = Addresses::of(&[&gateway]);
        let clients = clients_of_two_channels(&addresses).await;
        let away = open(&addresses, &["a", "b"]).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        let time = async || -> u64 {
            let (seconds, _): (u64, u64) = redis.command(&["TIME"]).await;
            seconds
        };
        for offset in [3600, -3600, 0] {
            journal.grows(50).await;
            away.leave().await;
            let before = time().await;
            clock.set(offset);
            let over = Instant::now();
            assert!(time().await.abs_diff(before) > 3000, "the clock steps");
            journal.grows(50).await;
            away.come_back();
            clients[3].cut();
            gateway.ready().await;
            fault.recovered(over);
        }
        let mut publisher = load.stop().await;
        let mut all = refs(&clients);
        all.push(&away);
        settle(&journal, &mut publisher, &all, &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
    })
    .await;
}
