//! What is logged: who asks, no payloads, no secrets, and no storms.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use futures_util::future::join_all;

use crate::support::{Events, Gateway, Raw, Redis, eventually, within};
use serde_json::Value;

/// The log lines with this message.
fn lines(gateway: &Gateway, message: &str) -> Vec<Value> {
    let lines = gateway.log();
    let lines = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["message"] == message).collect()
}

/// Waits for a line with this message.
async fn line(gateway: &Gateway, message: &str) -> Value {
    eventually(message, async || !lines(gateway, message).is_empty()).await;
    lines(gateway, message).remove(0)
}

#[tokio::test]
async fn lines_about_a_request_say_whose_it_is() {
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_LOG", "info,fanfare::http=debug")]).await;
    let mut stream = Raw::get(gateway.data, "/events/a").await;
    let head = stream.until("\r\n\r\n").await;
    assert!(!head.contains("x-request-id"), "{head}");
    let asked = line(&gateway, "stream request").await;
    assert_eq!(asked["outcome"], "opened");
    let span = &asked["span"];
    assert_eq!(span["request"].as_str().unwrap().len(), 16);
    assert_eq!(span["client"], "127.0.0.1");
    drop(stream);
    let ended = line(&gateway, "stream closed").await;
    assert_eq!(ended["connection"], span["connection"]);
    assert_eq!(
        (&ended["client"], &ended["reason"]),
        (&span["client"], &Value::from("client"))
    );

    // Who is refused is told the id, and a proxy's is kept.
    let request = "GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = Raw::send(gateway.data, request).await.rest().await;
    let (_, id) = answer.split_once("x-request-id: ").expect("a request id");
    assert_eq!(id.split("\r\n").next().unwrap().len(), 16, "{answer}");
    redis.kill().await;
    eventually("the gateway has noticed", async || {
        !gateway.is_ready().await
    })
    .await;
    let request = "POST /events/a HTTP/1.1\r\nhost: localhost\r\nx-request-id: from-nginx-1\r\n\
        content-length: 7\r\nconnection: close\r\n\r\npayload";
    let answer = Raw::send(gateway.data, request).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("x-request-id: from-nginx-1\r\n"),
        "{answer}"
    );
    let refused = line(&gateway, "an event was not published").await;
    assert_eq!(refused["span"]["request"], "from-nginx-1");
    assert_ne!(refused["span"]["connection"], span["connection"]);
}

#[tokio::test]
async fn neither_payloads_nor_secrets_are_logged() {
    let redis = Redis::start().await;
    let set = ["CONFIG", "SET", "requirepass", "hunter2-secret"];
    redis.command::<()>(&set).await;
    let url = redis.url().replace("redis://", "redis://:hunter2-secret@");
    let variables = [("FANFARE_REDIS_URL", &*url), ("FANFARE_LOG", "trace")];
    let gateway = Gateway::start(&variables).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    gateway.keep("/events/a", "the-payload-kept").await;
    gateway
        .post("/events/a?keep=false", "the-payload-live")
        .await;
    for _ in 0..2 {
        stream.data().await;
    }
    // Broken ones, whose faults are logged.
    let broken = [
        r#"{"sse":{"data":"the-payload-broken","unknown":1}}"#,
        r#"{"sse":"the-payload-itself"}"#,
        r#"{"sse":{"data":"x","retry":"the-payload-retry"}}"#,
        r#"{"sse":{"data":"x","a\n{\"forged\":1}\u001b[31m":1}}"#,
    ];
    let client = redis::Client::open(url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for broken in broken {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg("sse:a").arg(broken);
        publish.exec_async(&mut connection).await.unwrap();
    }
    let dropped = "a message from Redis was dropped";
    eventually("faults are logged", async || {
        lines(&gateway, dropped).len() == broken.len()
    })
    .await;
    let faults = lines(&gateway, dropped);
    assert_eq!(
        faults[3]["fault"],
        r#"invalid envelope: unknown member "a\n{\"forged\":1}\u{1b}[31m""#
    );
    let request = "GET /events/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer the-token\r\n\
        cookie: fanfare=the-cookie\r\n\r\n";
    Raw::send(gateway.data, request)
        .await
        .until("\r\n\r\n")
        .await;
    drop(stream);
    let log = gateway.log().join("\n");
    for secret in ["hunter2-secret", "the-payload", "the-token", "the-cookie"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_storm_is_summed_up() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    let message = "a message from Redis was dropped";
    let mut connection = redis.connection().await;
    for _ in 0..500 {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg("sse:a").arg(r#"{"sse":{}}"#);
        publish.exec_async(&mut connection).await.unwrap();
    }
    redis.publish("a", "the end").await;
    assert_eq!(stream.data().await, "the end");
    let dropped = r#"fanfare_events_dropped_total{reason="envelope"}"#;
    assert_eq!(gateway.metric(dropped).await, 500.0);
    let summed_up = async || {
        let lines = gateway.log();
        let lines = lines
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of_log = lines.filter(|line| line["target"] == "fanfare::log");
        of_log
            .map(|line| line["lines"].as_u64().unwrap())
            .sum::<u64>()
    };
    // However many windows it took.
    eventually("the rest is summed up", async || {
        let written = lines(&gateway, message).len() as u64;
        written + summed_up().await == 500
    })
    .await;
    assert!(lines(&gateway, message).len() <= 50);
}

/// A log driver that hangs, or a terminal that was stopped by Ctrl-S.
#[tokio::test]
async fn a_log_that_is_not_read_stalls_nothing() {
    let redis = Redis::start().await;
    let mut gateway = Gateway::behind(&redis, &[("FANFARE_LOG", "trace")]).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    let go_on = gateway.stop_reading_log();
    let dropped = async || gateway.metric("fanfare_log_lines_dropped_total").await;
    let request = "POST /events/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    let publish = async || Raw::send(gateway.data, request).await.rest().await;
    // Each connection is logged.
    let fill = async |stream: &mut Events| {
        let before = dropped().await;
        while dropped().await == before {
            for answer in join_all((0..100).map(|_| publish())).await {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                assert_eq!(stream.data().await, "x");
            }
        }
    };
    within("the log's pipe and queue are full", fill(&mut stream)).await;
    let mut another = gateway.events("/events/a").await.opened().await;
    gateway.keep("/events/a", "the last").await;
    assert_eq!(stream.data().await, "the last");
    assert_eq!(another.data().await, "the last");
    assert!(gateway.is_ready().await);

    drop(go_on);
    let line = line(
        &gateway,
        "log lines dropped: standard error was not read fast enough",
    )
    .await;
    assert!(line["lines"].as_u64().unwrap() as f64 <= dropped().await);

    let _go_on = gateway.stop_reading_log();
    within("it is full again", fill(&mut stream)).await;
    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
}

#[tokio::test]
async fn text_is_for_people() {
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .env("FANFARE_LISTEN", "127.0.0.1:0")
        .env("FANFARE_ADMIN_LISTEN", "127.0.0.1:0")
        .env("FANFARE_DRAIN_DELAY", "0s")
        .env("FANFARE_DRAIN_PERIOD", "0s")
        .stderr(Stdio::piped())
        .spawn()
        .map(crate::support::Process)
        .unwrap();
    let stderr = gateway.0.stderr.take().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line).unwrap();
        line
    });
    let first = within("a line", first).await.unwrap();
    assert!(first.contains(" INFO fanfare::app: listening "), "{first}");
    assert!(
        !first.contains('\u{1b}'),
        "no colours but on a terminal: {first}"
    );
    gateway.signal("TERM");
    assert!(gateway.ended().await);
}
