//! Running the tool, and the servers it is run against: real processes and sockets, ephemeral ports.

pub(crate) mod server;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No run of these tests takes a quarter of it, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `fanfare-load` with these words, to its end.
pub(crate) fn tool(words: &str) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_fanfare-load"))
        .args(words.split_whitespace())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, ended) = sync_channel(1);
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    ended
        .recv_timeout(DEADLINE)
        .expect("the tool ends by itself")
        .unwrap()
}

/// A scenario's result as JSON, and whether the tool called it well.
pub(crate) fn scenario(words: &str) -> (Value, bool) {
    let output = tool(&format!(
        "{words} --json --connect-timeout 20s --drain-timeout 2s"
    ));
    let result = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (result, output.status.success())
}

/// A child process that ends with the test.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn axum_peer(redis: Option<&Process>) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peer-axum"));
    command
        .arg("127.0.0.1:0")
        .args(redis.map(|redis| format!("redis://{}", redis.address)));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut address)
        .unwrap();
    Process {
        child,
        address: address.trim().to_owned(),
    }
}

pub(crate) fn redis() -> Process {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let child = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let redis = Process {
        child,
        address: format!("127.0.0.1:{port}"),
    };
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(&redis.address).is_err() {
        assert!(Instant::now() < deadline, "redis-server does not listen");
        std::thread::yield_now();
    }
    redis
}
