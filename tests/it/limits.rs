//! What one client may take: streams at a time, here and on all replicas, and how often; and who
//! a client is behind a proxy.

use std::process::Command;
use std::time::Duration;

use crate::support::{Events, Gateway, Raw, Redis, eventually, within};
use tokio::io::AsyncWriteExt;

/// A stream as a proxy asks for it, for the client at `address`.
struct Proxied {
    raw: Raw,
}

impl Proxied {
    async fn ask(gateway: &Gateway, address: &str) -> Self {
        let request = format!(
            "GET /events/a HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: {address}\r\n\r\n"
        );
        Self {
            raw: Raw::send(gateway.data, &request).await,
        }
    }

    /// The answer's beginning tells an open stream from a busy answer.
    async fn opens(&mut self) -> bool {
        self.raw.until("retry: ").await;
        let rest = self.raw.until("\n\n").await;
        rest.contains("$cursor")
    }
}

async fn opened(gateway: &Gateway, address: &str) -> Proxied {
    let mut stream = Proxied::ask(gateway, address).await;
    assert!(stream.opens().await, "a stream for {address}");
    stream
}

async fn refused(gateway: &Gateway, address: &str) {
    let mut stream = Proxied::ask(gateway, address).await;
    assert!(!stream.opens().await, "no stream for {address}");
}

async fn rejected(gateway: &Gateway, reason: &str) -> f64 {
    let series = format!("fanfare_connections_rejected_total{{reason=\"{reason}\"}}");
    gateway.metric(&series).await
}

#[tokio::test]
async fn an_address_has_so_many_streams_and_is_told_to_come_back_beyond() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS_PER_IP", "2")]).await;
    let one = gateway.events("/events/a").await.opened().await;
    let _two = gateway.events("/events/a").await.opened().await;
    let mut raw = Raw::get(gateway.data, "/events/a").await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        body.contains("\r\nretry: ") && body.contains("$busy"),
        "{body}"
    );
    // A proxy is not to try the other replicas: they would refuse it too.
    let request = "GET /events/a HTTP/1.1\r\nhost: localhost\r\nfanfare-busy: 503\r\n\r\n";
    let answer = Raw::send(gateway.data, request).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nretry: "), "{answer}");
    assert_eq!(rejected(&gateway, "address").await, 2.0);
    // Publishing is not concerned, and a place that becomes free is given again.
    gateway.keep("/events/a", "x").await;
    drop(one);
    eventually("a place is free", async || {
        gateway.metric("fanfare_connections").await == 1.0
    })
    .await;
    gateway.events("/events/a").await.opened().await;
}

/// Connections that ask for nothing count too.
#[tokio::test]
async fn an_address_has_so_many_connections() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS_PER_IP", "2")]).await;
    eventually("the address has all it may have", async || {
        // Anew each time: those that ask for nothing are closed after ten seconds.
        let mut idle = Vec::new();
        for _ in 0..18 {
            idle.push(Raw::connect(gateway.data).await);
        }
        let mut one_more = Raw::connect(gateway.data).await;
        let request = "GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let sent = one_more.socket.write_all(request.as_bytes()).await;
        sent.is_err() || one_more.rest().await.is_empty()
    })
    .await;
    assert!(rejected(&gateway, "address").await >= 1.0);
    eventually("others are served again", async || {
        let mut raw = Raw::get(gateway.data, "/nothing").await;
        let mut received = Vec::new();
        use tokio::io::AsyncReadExt;
        within("an answer or the end", raw.socket.read_buf(&mut received))
            .await
            .unwrap_or(0)
            > 0
    })
    .await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_limit() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "1"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8"),
    ])
    .await;
    let _one = opened(&gateway, "192.0.2.1").await;
    let _two = opened(&gateway, "192.0.2.2, 10.1.1.1").await;
    let _six = opened(&gateway, "2001:db8::1").await;
    refused(&gateway, "192.0.2.1").await;
    // What a client puts before its own address changes nothing.
    refused(&gateway, "192.0.2.99, 192.0.2.1").await;
    refused(&gateway, "192.0.2.99, 192.0.2.2, 10.2.2.2").await;
    // Nor does another address of the same network.
    refused(&gateway, "2001:db8::ffff:1").await;
    let _other = opened(&gateway, "2001:db8:0:1::1").await;
    // The header of the other kind is not looked at.
    let request = "GET /events/a HTTP/1.1\r\nhost: localhost\r\nforwarded: for=192.0.2.50\r\n\
        x-forwarded-for: 192.0.2.1\r\n\r\n";
    let mut raw = Raw::send(gateway.data, request).await;
    assert!(raw.rest().await.contains("$busy"));
}

#[tokio::test]
async fn nobody_else_is_believed_about_addresses() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "1"),
        ("FANFARE_TRUSTED_PROXIES", "10.0.0.0/8"),
    ])
    .await;
    let _one = opened(&gateway, "192.0.2.1").await;
    refused(&gateway, "192.0.2.2").await;
}

/// A client address in a binary header of version 2.
fn binary(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&source);
    header.extend_from_slice(&[127, 0, 0, 1, 0x12, 0x67, 0, 80]);
    header
}

#[tokio::test]
async fn the_proxy_protocol_tells_a_connections_address() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "1"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
        ("FANFARE_PROXY_PROTOCOL_LISTEN", "127.0.0.1:0"),
    ])
    .await;
    let proxied = gateway.proxied.unwrap();
    let request = b"GET /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let connect = async |header: &[u8]| {
        let mut raw = Raw::connect(proxied).await;
        // In two writes, as it may come.
        let (first, second) = header.split_at(header.len() / 2);
        raw.socket.write_all(first).await.unwrap();
        raw.socket
            .write_all(&[second, request].concat())
            .await
            .unwrap();
        raw
    };
    let mut one = connect(b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\n").await;
    one.until("\nid: ").await;
    let mut two = connect(&binary([192, 0, 2, 2])).await;
    two.until("\nid: ").await;
    // The same client, whatever its proxy speaks.
    let mut again = connect(&binary([192, 0, 2, 1])).await;
    assert!(again.rest().await.contains("$busy"));
    // A header of the request is believed only of a proxy.
    let mut raw = Raw::connect(proxied).await;
    let request = "PROXY TCP4 192.0.2.2 127.0.0.1 4711 80\r\nGET /events/a HTTP/1.1\r\n\
        host: localhost\r\nx-forwarded-for: 192.0.2.77\r\n\r\n";
    raw.socket.write_all(request.as_bytes()).await.unwrap();
    assert!(raw.rest().await.contains("$busy"));
    // Without a header there is no answer, and none with one on the ordinary listener.
    assert_eq!(Raw::get(proxied, "/events/a").await.rest().await, "");
    let header = "PROXY TCP4 192.0.2.9 127.0.0.1 4711 80\r\n";
    let answer = Raw::send(gateway.data, header).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(rejected(&gateway, "proxy_header").await, 1.0);
    // What a proxy asks for itself is served.
    let mut check = Raw::connect(proxied).await;
    let request = "PROXY UNKNOWN\r\nHEAD /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n";
    check.socket.write_all(request.as_bytes()).await.unwrap();
    assert!(check.rest().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn who_is_no_proxy_may_not_use_its_listener() {
    let gateway = Gateway::start(&[
        ("FANFARE_TRUSTED_PROXIES", "10.0.0.1"),
        ("FANFARE_PROXY_PROTOCOL_LISTEN", "127.0.0.1:0"),
    ])
    .await;
    let request = "PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\nGET /events/a HTTP/1.1\r\n\
        host: localhost\r\n\r\n";
    let mut raw = Raw::connect(gateway.proxied.unwrap()).await;
    // It may be closed already.
    let _ = raw.socket.write_all(request.as_bytes()).await;
    assert_eq!(raw.rest().await, "");
    assert_eq!(rejected(&gateway, "proxy_header").await, 1.0);
}

#[tokio::test]
async fn an_address_asks_for_so_many_streams_in_a_time() {
    let gateway = Gateway::start(&[
        ("FANFARE_CONNECT_RATE_PER_IP", "3/h"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    for _ in 0..3 {
        opened(&gateway, "192.0.2.1").await;
    }
    refused(&gateway, "192.0.2.1").await;
    opened(&gateway, "192.0.2.2").await;
    assert_eq!(rejected(&gateway, "rate").await, 1.0);
}

#[tokio::test]
async fn who_publishes_too_often_gets_429_and_is_told_when_to_try_again() {
    let gateway = Gateway::start(&[
        ("FANFARE_PUBLISH_RATE_PER_SUBJECT", "2/h"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let publish = async |address: &str| {
        let client = reqwest::Client::new();
        let request = client
            .post(gateway.url("/events/a"))
            .header("x-forwarded-for", address)
            .body("x");
        within("the answer", request.send()).await.unwrap()
    };
    for _ in 0..2 {
        assert_eq!(publish("192.0.2.1").await.status(), 200);
    }
    let answer = publish("192.0.2.1").await;
    assert_eq!(answer.status(), 429);
    let seconds: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=1800).contains(&seconds), "{seconds}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(publish("192.0.2.2").await.status(), 200);
    let refused = r#"fanfare_requests_refused_total{reason="publish_rate"}"#;
    assert_eq!(gateway.metric(refused).await, 1.0);
}

/// A limit of all replicas holds on each of them as soon as it has heard of the streams, for as long
/// as they are open, and no longer than the lease of a replica that is killed.
#[tokio::test]
async fn limits_hold_for_all_replicas_together() {
    let mut redis = Redis::start().await;
    let url = documented_user(&redis).await;
    let settings = [
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "2"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
        ("FANFARE_REDIS_URL", &url),
    ];
    let mut one = Gateway::start(&settings).await;
    let two = Gateway::start(&settings).await;
    let first = opened(&one, "192.0.2.1").await;
    let second = opened(&one, "192.0.2.1").await;
    // The other replica does not know yet, or does already: then it opens none.
    refused_in_the_end(&two, "192.0.2.1").await;
    refused(&two, "192.0.2.1").await;
    opened(&two, "192.0.2.2").await;
    drop((first, second));
    opened_in_the_end(&two, "192.0.2.1").await;

    // Nor is there a place where one of each replica makes too many.
    let _here = opened(&one, "192.0.2.5").await;
    let _there = opened(&two, "192.0.2.5").await;
    let last = Gateway::start(&settings).await;
    refused_in_the_end(&last, "192.0.2.5").await;
    drop(last);

    // A replica that is killed takes its streams along.
    let _third = opened(&one, "192.0.2.3").await;
    let _fourth = opened(&one, "192.0.2.3").await;
    refused_in_the_end(&two, "192.0.2.3").await;
    one.process.signal("KILL");
    one.process.ended().await;
    opened_in_the_end(&two, "192.0.2.3").await;
    eventually("its entry is gone", async || {
        redis
            .command::<Vec<String>>(&["KEYS", "sse:$counts*"])
            .await
            .len()
            == 2
    })
    .await;

    // Without Redis a replica's own limit holds.
    redis.kill().await;
    eventually("it is told", async || {
        two.log()
            .iter()
            .any(|line| line.contains("per-client limits apply per replica"))
    })
    .await;
    redis.restart().await;
    documented_user(&redis).await;
    two.ready().await;
    let _fifth = opened(&two, "192.0.2.4").await;
    let _sixth = opened(&two, "192.0.2.4").await;
    refused(&two, "192.0.2.4").await;
    eventually("it is shared again", async || {
        two.log()
            .iter()
            .any(|line| line.contains("across all replicas again"))
    })
    .await;
    let three = Gateway::start(&settings).await;
    refused_in_the_end(&three, "192.0.2.4").await;
}

/// Gives a gateway the rights that docs/protocol.md lists, and returns its URL.
async fn documented_user(redis: &Redis) -> String {
    let page = include_str!("../../docs/protocol.md");
    let rights = page
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER gateway "))
        .unwrap();
    let mut command = vec!["ACL", "SETUSER", "gateway"];
    command.extend(rights.split_whitespace());
    redis.command::<()>(&command).await;
    format!("redis://gateway:password@127.0.0.1:{}", redis.port())
}

#[tokio::test]
async fn a_subject_has_so_many_streams_and_publishes_so_often_wherever_it_is() {
    let gateway = Gateway::start(&[
        ("FANFARE_JWT_SECRET", crate::support::tokens::SECRET),
        ("FANFARE_MAX_CONNECTIONS_PER_SUBJECT", "1"),
        ("FANFARE_PUBLISH_RATE_PER_SUBJECT", "1/h"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let ask = async |method: &str, subject: &str, address: &str| {
        let token = crate::support::tokens::token(serde_json::json!({ "sub": subject,
            "fanfare": { "subscribe": ["a"], "publish": ["a"] } }));
        let request = format!(
            "{method} /events/a HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\n\
             authorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        );
        Raw::send(gateway.data, &request).await
    };
    let mut first = ask("GET", "alice", "192.0.2.1").await;
    first.until("\nid: ").await;
    let mut second = ask("GET", "alice", "192.0.2.2").await;
    assert!(second.rest().await.contains("$busy"));
    ask("GET", "bob", "192.0.2.1").await.until("\nid: ").await;
    assert_eq!(rejected(&gateway, "subject").await, 1.0);
    for (subject, address, status) in [
        ("alice", "192.0.2.1", "200"),
        ("alice", "192.0.2.2", "429"),
        ("bob", "192.0.2.1", "200"),
    ] {
        let answer = ask("POST", subject, address).await.until("\r\n\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{subject}: {answer}"
        );
    }
}

/// Holds a stream for an exchange, until it is refused. Each try frees its place again.
async fn refused_in_the_end(gateway: &Gateway, address: &str) {
    eventually("the client is refused", async || {
        // What is opened is closed at once: nothing of it needs to be there.
        !Proxied::ask(gateway, address).await.opens().await
    })
    .await;
}

async fn opened_in_the_end(gateway: &Gateway, address: &str) {
    eventually("the client is served", async || {
        Proxied::ask(gateway, address).await.opens().await
    })
    .await;
}

/// At the limit of descriptors the replica goes on: Redis, health and open streams work, and it
/// rests where it cannot accept.
#[tokio::test]
async fn descriptors_are_kept_for_redis_and_operators() {
    let redis = Redis::start().await;
    let gateway = Gateway::start_limited(&redis, 512, &[("FANFARE_SHARDS", "2")]).await;
    let mut events: Events = gateway.events("/events/a").await.opened().await;
    let mut crowd = Vec::new();
    for _ in 0..600 {
        crowd.push(Raw::get(gateway.data, "/events/crowd").await);
    }
    eventually("the replica is full", async || {
        gateway.metric("fanfare_connections").await == 256.0
    })
    .await;
    assert!(
        gateway.descriptors() <= 512 - 64,
        "{}",
        gateway.descriptors()
    );
    assert!(gateway.is_ready().await);
    redis.publish("a", "through").await;
    assert_eq!(events.data().await, "through");
    gateway.metric("fanfare_connections").await;
    // Nothing to do is nothing done: well below one core, over a while that is busy otherwise.
    let before = gateway.cpu_ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = gateway.cpu_ticks() - before;
    assert!(used < 70, "{used} ticks of 100 a second, and two shards");
    drop(crowd);
    eventually("others are served again", async || {
        gateway.descriptors() < 100
    })
    .await;
    gateway.events("/events/a").await.opened().await;
}

#[tokio::test]
async fn a_limit_that_descriptors_do_not_allow_stops_the_start() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 512; exec \"$0\" check"])
        .arg(env!("CARGO_BIN_EXE_fanfare"))
        .env("FANFARE_MAX_CONNECTIONS", "257")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("at most 256:"),
        "{told}"
    );
}
