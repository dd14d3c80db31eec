//! `make cluster`: what it says can be tried works, and nothing of it is left afterwards.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{BINARY, Process, eventually, eventually_within, free_port};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Starts a command, and collects what it writes, line by line.
fn start(command: &mut Command) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        }
    });
    (child, lines)
}

fn shell(command: &str) -> (Process, Arc<Mutex<Vec<String>>>) {
    let (child, lines) = start(Command::new("bash").args(["-c", &format!("exec {command}")]));
    (Process(child), lines)
}

#[tokio::test]
async fn a_cluster_starts_works_as_it_says_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ports: Vec<u16> = (0..10).map(|_| free_port()).collect();
    let port = |number: usize| ports[number].to_string();
    let three = |first: usize| [port(first), port(first + 1), port(first + 2)].join(" ");
    let (child, said) = start(
        // A shell cannot trap what is ignored when it starts, as SIGINT is where the tests run in the background.
        Command::new("env")
            .arg("--default-signal=INT")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/cluster"))
            .arg(BINARY)
            .env("TMPDIR", folder.path())
            .env("HTTPS_PORT", port(0))
            .env("INSIDE_PORT", port(1))
            .env("REDIS_PORT", port(2))
            .env("PROMETHEUS_PORT", port(3))
            .env("REPLICA_PORTS", three(4))
            .env("ADMIN_PORTS", three(7)),
    );
    let mut cluster = Process(child);
    let commands = || -> Vec<String> {
        let said = said.lock().unwrap();
        let commands = said.iter().filter_map(|line| line.strip_prefix("  $ "));
        commands.map(str::to_owned).collect()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while commands().len() < 4 {
        let exited = cluster.0.try_wait().unwrap();
        assert!(exited.is_none(), "it has ended: {:?}", said.lock().unwrap());
        assert!(
            Instant::now() < end,
            "it does not start: {:?}",
            said.lock().unwrap()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [stream, publish, stop, stop_redis] = commands().try_into().unwrap();
    let console = format!("http://127.0.0.1:{}/console", port(7));
    assert!(said.lock().unwrap().concat().contains(&console));
    let page = reqwest::get(&console).await.unwrap();
    assert!(page.status().is_success());

    let (_reader, received) = shell(&stream);
    let has = |text: &str| received.lock().unwrap().iter().any(|line| line == text);
    eventually("the stream is open", async || {
        !received.lock().unwrap().is_empty()
    })
    .await;
    let (mut publisher, answer) = shell(&publish);
    assert!(publisher.ended().await);
    eventually("the event arrives", async || has("data: hello")).await;
    eventually("the publisher has its id", async || {
        answer.lock().unwrap().concat().starts_with("{\"id\":\"")
    })
    .await;
    // A replica that is stopped is restarted.
    let (mut stopped, _) = shell(&stop);
    assert!(stopped.ended().await);
    let (_reader, received) = shell(&stream);
    eventually("a stream is open again", async || {
        !received.lock().unwrap().is_empty()
    })
    .await;
    eventually("the replica is restarted", async || {
        let said = said.lock().unwrap();
        said.iter().any(|line| line.ends_with("is restarted"))
    })
    .await;
    // Redis may go away: the stream stays open, and has the next event.
    let (mut stopped, _) = shell(&stop_redis);
    assert!(stopped.ended().await);
    eventually("Redis is restarted", async || {
        let said = said.lock().unwrap();
        let told = "redis has ended and is restarted";
        said.iter().any(|line| line == told)
    })
    .await;
    eventually("an event is published again", async || {
        let (mut publisher, answer) = shell(&publish);
        assert!(publisher.ended().await);
        answer.lock().unwrap().concat().starts_with("{\"id\":\"")
    })
    .await;
    eventually("the event arrives", async || {
        let received = received.lock().unwrap();
        received.iter().any(|line| line == "data: hello")
    })
    .await;
    // So are all of them when they end together.
    let cluster_pid = cluster.0.id().to_string();
    let found = Command::new("pgrep")
        .args(["-P", &cluster_pid, "-x", "fanfare"])
        .output()
        .unwrap();
    let replicas = String::from_utf8(found.stdout).unwrap();
    assert_eq!(replicas.lines().count(), 3, "{replicas}");
    let killed = Command::new("kill")
        .arg("-KILL")
        .args(replicas.lines())
        .status();
    assert!(killed.unwrap().success());
    eventually("all replicas are started again", async || {
        let said = said.lock().unwrap();
        let again = said
            .iter()
            .filter(|line| line.starts_with("replica-") && line.ends_with("is restarted"));
        again.count() == 4
    })
    .await;
    // Three replicas and nginx tell Prometheus of themselves.
    let up = format!("http://127.0.0.1:{}/api/v1/query?query=sum(up)", port(3));
    eventually_within(Duration::from_secs(40), "Prometheus sees all", async || {
        let answer = reqwest::get(&up).await.unwrap().text().await.unwrap();
        answer.contains(r#""4"]"#)
    })
    .await;
    // And the rules are evaluated.
    let rule = format!(
        "http://127.0.0.1:{}/api/v1/query?query=job:fanfare_connections:sum",
        port(3)
    );
    eventually_within(Duration::from_secs(40), "a rule has a value", async || {
        let answer = reqwest::get(&rule).await.unwrap().text().await.unwrap();
        answer.contains(r#""namespace":"default""#)
    })
    .await;

    // What Ctrl-C sends.
    cluster.signal("INT");
    assert!(cluster.ended_within(Duration::from_secs(40)).await);
    for port in ports {
        let open = TcpStream::connect(("127.0.0.1", port)).await;
        assert!(open.is_err(), "something listens on {port}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
