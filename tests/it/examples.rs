//! Every example does what it promises: the real program, a real Redis, real gateways.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdout, Command, Stdio};

use crate::support::browser::Browser;
use crate::support::proxy::Proxy;
use crate::support::{Gateway, Process, Redis, eventually, within};
use serde_json::{Value, json};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");

/// Debian's own: the python3 first on the path may be another, without its packages.
const PYTHON: &str = "/usr/bin/python3";

/// An example, with what runs it and the command that installs what it needs.
struct Example {
    command: Command,
    install: &'static str,
}

impl Example {
    /// A program for Python and redis-py.
    fn python(path: &str) -> Self {
        let install = "apt-get install python3 python3-redis";
        let has_redis = Command::new(PYTHON).args(["-c", "import redis"]).status();
        assert!(
            has_redis.is_ok_and(|status| status.success()),
            "{PYTHON} with redis-py is missing: {install}"
        );
        Self::run_by(PYTHON, path, install)
    }

    /// A program for Node.js and ioredis.
    fn node(path: &str) -> Self {
        assert!(
            std::path::Path::new(&format!("{EXAMPLES}/node/node_modules/ioredis")).exists(),
            "ioredis is missing: npm ci --prefix examples/node"
        );
        Self::run_by("node", path, "apt-get install nodejs npm")
    }

    /// A shell script.
    fn shell(path: &str) -> Self {
        let install = "apt-get install redis-tools curl";
        for tool in ["redis-cli", "curl"] {
            let has_tool = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .status();
            assert!(has_tool.is_ok(), "{tool} is missing: {install}");
        }
        Self::run_by("/bin/sh", path, install)
    }

    fn run_by(interpreter: &str, path: &str, install: &'static str) -> Self {
        let mut command = Command::new(interpreter);
        command.arg(format!("{EXAMPLES}/{path}"));
        Self { command, install }
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it; its standard output is read by the test.
    fn start(mut self) -> (Process, BufReader<ChildStdout>) {
        let child = self.command.stdout(Stdio::piped()).spawn();
        let mut process = Process(child.unwrap_or_else(|error| {
            panic!(
                "{:?} does not start ({error}): {}",
                self.command, self.install
            )
        }));
        let stdout = BufReader::new(process.0.stdout.take().unwrap());
        (process, stdout)
    }

    /// Runs it to its end, which must be a success, and returns what it has printed.
    async fn finish(self) -> String {
        let (mut process, mut stdout) = self.start();
        assert!(process.ended().await, "the example ends with success");
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).unwrap();
        printed
    }
}

/// Reads lines until one begins with `start`, and returns the rest of that line.
async fn line(
    mut stdout: BufReader<ChildStdout>,
    start: &'static str,
) -> (BufReader<ChildStdout>, String) {
    let reading = tokio::task::spawn_blocking(move || {
        for line in stdout.by_ref().lines() {
            if let Some(rest) = line.unwrap().strip_prefix(start) {
                return (rest.to_owned(), stdout);
            }
        }
        panic!("the output ended before {start:?}");
    });
    let (rest, stdout) = within("a line of output", reading).await.unwrap();
    (stdout, rest)
}

#[tokio::test]
async fn python_clock_publishes_the_time_every_second() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/clock").await.opened().await;
    Example::python("python/clock.py")
        .args(&["clock", "--count", "3"])
        .env("REDIS_URL", &redis.url())
        .finish()
        .await;
    let mut seconds = Vec::new();
    for _ in 0..3 {
        let event = events.event().await;
        assert_eq!(event.event, None);
        let time = event.data.unwrap();
        let parts: Vec<u32> = time.split(':').map(|part| part.parse().unwrap()).collect();
        let [hour, minute, second] = parts[..] else {
            panic!("{time} is a time");
        };
        seconds.push((hour * 60 + minute) * 60 + second);
    }
    // Around midnight too.
    let steps: Vec<_> = seconds
        .windows(2)
        .map(|pair| (pair[1] + 86_400 - pair[0]) % 86_400)
        .collect();
    assert!(
        steps.iter().all(|step| (1..5).contains(step)),
        "{seconds:?}"
    );
}

#[tokio::test]
async fn node_ping_publishes_a_named_event_with_json() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/status").await.opened().await;
    Example::node("node/ping.mjs")
        .args(&["status", "--count", "2"])
        .env("REDIS_URL", &redis.url())
        .finish()
        .await;
    for sequence in 1..=2 {
        let event = events.event().await;
        assert_eq!(event.event.as_deref(), Some("ping"));
        let data: Value = serde_json::from_str(&event.data.unwrap()).unwrap();
        assert_eq!(data["sequence"], json!(sequence));
        assert!(data["time"].as_str().unwrap().ends_with('Z'), "{data}");
    }
}

#[tokio::test]
async fn python_notify_reaches_one_client() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut notified = gateway.events("/events/client-1").await.opened().await;
    let mut other = gateway.events("/events/client-2").await.opened().await;
    let notify = |client: &str, text: &str| {
        Example::python("python/notify.py")
            .args(&[client, text])
            .env("REDIS_URL", &redis.url())
            .finish()
    };
    assert_eq!(notify("client-1", "Grüße \"1\"").await, "");
    let event = notified.event().await;
    assert_eq!(event.event.as_deref(), Some("notification"));
    let data: Value = serde_json::from_str(&event.data.unwrap()).unwrap();
    assert_eq!(data, json!({ "text": "Grüße \"1\"" }));

    // The other client's first event is its own.
    assert_eq!(notify("client-2", "2").await, "");
    assert_eq!(other.data().await, r#"{"text":"2"}"#);
    assert_eq!(
        notify("client-3", "3").await,
        "client-3 is not connected: nobody received it\n"
    );
}

#[tokio::test]
async fn python_keep_publishes_once_and_node_follow_notices_gaps() {
    let redis = Redis::start().await;
    let retry = ("FANFARE_RETRY", "100ms,100ms");
    let mut gateway = Gateway::behind(&redis, &[retry]).await;
    let address = gateway.data.to_string();
    let keep = |arguments: &[&str]| {
        Example::python("python/keep.py")
            .args(&[&["orders"], arguments].concat())
            .env("REDIS_URL", &redis.url())
            .finish()
    };
    let (_follower, stdout) = Example::node("node/follow.mjs")
        .args(&["orders"])
        .env("FANFARE_URL", &gateway.url(""))
        .start();
    let (stdout, _) = line(stdout, "open").await;
    let first = keep(&["one", "--key", "k"]).await;
    assert_eq!(keep(&["once more", "--key", "k"]).await, first);
    let (stdout, next) = line(stdout, "").await;
    assert_eq!(next, "event one");

    // The gateway is gone for a while: what is kept meanwhile comes later, and nothing twice.
    gateway.process.signal("KILL");
    gateway.process.ended().await;
    keep(&["two"]).await;
    let variables = [retry, ("FANFARE_LISTEN", &*address)];
    let mut gateway = Gateway::behind(&redis, &variables).await;
    let (stdout, next) = line(stdout, "").await;
    assert_eq!(next, "open");
    let (stdout, next) = line(stdout, "").await;
    assert_eq!(next, "event two");

    // It misses more than the history holds.
    gateway.process.signal("KILL");
    gateway.process.ended().await;
    for data in ["three", "four", "five"] {
        redis.keep("orders", data, &["history", "1"]).await;
    }
    let _gateway = Gateway::behind(&redis, &variables).await;
    let (stdout, gap) = line(stdout, "gap ").await;
    assert_eq!(gap, "orders expired: fetching its state anew");
    let (_stdout, next) = line(stdout, "").await;
    assert_eq!(next, "event five");
}

#[tokio::test]
async fn shell_broadcast_reaches_all_clients_of_all_replicas() {
    let redis = Redis::start().await;
    let mut replicas = Vec::new();
    let mut clients = Vec::new();
    for replica in 1..=2 {
        let gateway = Gateway::behind(&redis, &[]).await;
        for client in 1..=2 {
            let path = format!("/events?channel=client-{replica}{client}&channel=broadcast");
            clients.push(gateway.events(&path).await.opened().await);
        }
        replicas.push(gateway);
    }
    let printed = Example::shell("shell/broadcast.sh")
        .args(&["broadcast", "Maintenance starts at noon."])
        .env("REDIS_URL", &redis.url())
        .finish()
        .await;
    assert_eq!(printed, "passed on to 2 gateway(s)\n");
    for client in &mut clients {
        assert_eq!(client.data().await, "Maintenance starts at noon.");
    }
}

#[tokio::test]
async fn shell_receive_prints_events_and_comes_back() {
    let mut gateway = Gateway::start(&[]).await;
    let address = gateway.data.to_string();
    let (_receiver, stdout) = Example::shell("shell/receive.sh")
        .args(&["orders", "prices"])
        .env("FANFARE_URL", &gateway.url(""))
        .start();
    let (stdout, _) = line(stdout, "retry: ").await;
    gateway
        .post("/events/prices?keep=false&event=price", "42")
        .await;
    let (stdout, _) = line(stdout, "event: price").await;
    let (stdout, data) = line(stdout, "data: ").await;
    assert_eq!(data, "42");

    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
    // Known by its reconnection time: the last block of the drained gateway holds one too.
    let variables = [
        ("FANFARE_LISTEN", &*address),
        ("FANFARE_RETRY", "777ms,777ms"),
    ];
    let gateway = Gateway::start(&variables).await;
    let (stdout, _) = line(stdout, "retry: 777").await;
    gateway.post("/events/orders?keep=false", "again").await;
    line(stdout, "data: again").await;
}

#[tokio::test]
async fn shell_receive_ends_when_refused() {
    let gateway = Gateway::start(&[]).await;
    let (mut receiver, stdout) = Example::shell("shell/receive.sh")
        .args(&["not/a/channel"])
        .env("FANFARE_URL", &gateway.url(""))
        .start();
    assert!(!receiver.ended().await);
    let (_, problem) = line(stdout, "{").await;
    assert!(problem.contains(r#""field":"channel""#), "{problem}");
}

#[tokio::test]
async fn browser_page_receives_what_redis_publishes() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let (_server, stdout) = Example::run_by(PYTHON, "browser/serve.py", "apt-get install python3")
        .args(&["--port", "0"])
        .env("FANFARE_URL", &gateway.url(""))
        .start();
    let (_stdout, page) = line(stdout, "http://").await;
    let browser = Browser::start().await;
    browser
        .goto(&format!("http://{page}&channel=prices&event=price"))
        .await;
    browser.shows("#state", "open").await;
    redis.publish("orders", "<b>hello</b>").await;
    browser.shows("#events li", "message: <b>hello</b>").await;
    redis
        .publish(
            "prices",
            r#"{"sse":{"event":"price","data":{"symbol":"X"}}}"#,
        )
        .await;
    browser
        .shows("#events li:nth-child(2)", r#"price: {"symbol":"X"}"#)
        .await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
    eventually("the stream ends with the page", async || {
        gateway.post("/events/orders?keep=false", "gone").await;
        gateway.metric("fanfare_connections").await == 0.0
    })
    .await;
}

/// A page that has tickets only stays on its channels through lost connections, and misses nothing.
#[tokio::test]
async fn a_page_draws_a_ticket_for_every_stream() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(
        &redis,
        &[
            ("FANFARE_JWT_SECRET", crate::support::tokens::SECRET),
            ("FANFARE_RETRY", "100ms,200ms"),
        ],
    )
    .await;
    let proxy = Proxy::to_address(gateway.data).await;
    let browser = Browser::start().await;
    // A page of the gateway's own origin; what is on it does not matter.
    browser.goto(&proxy.http_url("/none")).await;
    let script = std::fs::read_to_string(format!("{EXAMPLES}/browser/tickets.js")).unwrap();
    let token = crate::support::tokens::granting(json!({ "subscribe": ["orders"] }));
    let start = format!(
        r#"
        const source = new Blob([{}], {{ type: "text/javascript" }});
        window.seen = []; window.ends = 0; window.draws = 0; window.token = {};
        import(URL.createObjectURL(source)).then(({{ TicketSource }}) => {{
          const events = new TicketSource("/events/orders", async () => {{
            window.draws += 1;
            const headers = {{ authorization: `Bearer ${{window.token}}` }};
            const answer = await fetch("/tickets", {{ method: "POST", headers }});
            if (answer.status === 401) return null;
            return (await answer.json()).ticket;
          }});
          for (const name of ["message", "paid"]) {{
            events.addEventListener(name, (event) => window.seen.push(event.type + " " + event.data));
          }}
          events.addEventListener("open", () => {{ window.open_ = (window.open_ ?? 0) + 1; }});
          events.addEventListener("end", () => {{ window.ends += 1; }});
        }});
        "#,
        json!(script),
        json!(token),
    );
    browser.run(&start).await;
    let opened = async |times: u64| {
        eventually(&format!("stream {times} is open"), async || {
            browser.run("return window.open_ ?? 0").await == json!(times)
        })
        .await;
    };
    let mut expected = Vec::new();
    for round in 0..3 {
        opened(round + 1).await;
        redis.keep("orders", &format!("here {round}"), &[]).await;
        expected.push(format!("message here {round}"));
        eventually("it arrives", async || {
            browser.run("return window.seen").await == json!(expected)
        })
        .await;
        proxy.refuse();
        redis
            .keep("orders", &format!("away {round}"), &["event", "paid"])
            .await;
        expected.push(format!("paid away {round}"));
        proxy.point_at(gateway.data);
        eventually("what was missed arrives", async || {
            browser.run("return window.seen").await == json!(expected)
        })
        .await;
    }
    opened(4).await;
    let draws = browser.run("return window.draws").await;
    assert!(draws.as_u64().unwrap() >= 4, "{draws}");
    // Without a token there are no more tickets, and the page is told.
    browser.run("window.token = 'x'").await;
    proxy.cut();
    eventually("the end is told", async || {
        browser.run("return window.ends").await == json!(1)
    })
    .await;
}
