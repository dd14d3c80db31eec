//! Busy answers: sent at once, ended a moment later, and a cursor to come back with.

use std::time::Duration;

use crate::support::{Events, Gateway, Raw, Redis, eventually};
use tokio::time::Instant;

const HELD: &str = "fanfare_busy_answers";

fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
}

/// The `id` of a busy answer.
fn id(answer: &str) -> Option<String> {
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("$busy"), "{answer}");
    let (_, id) = answer.split_once("\nid: ")?;
    Some(id.split('\n').next().unwrap().to_owned())
}

/// Not at once: a client that reconnects without a pause would ask hundreds of times a second.
#[tokio::test]
async fn it_is_sent_at_once_and_ends_a_moment_later() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let _one = gateway.events("/events/a").await.opened().await;
    let asked = Instant::now();
    let mut held = Raw::get(gateway.data, "/events/a").await;
    held.until("data: {}\n\n").await;
    held.rest().await;
    assert!(asked.elapsed() >= Duration::from_secs(1));
    // Each try is a new answer: on a busy machine one may have ended before the metric is read.
    eventually("they are counted", async || {
        let mut held = Raw::get(gateway.data, "/events/a").await;
        held.until("data: {}\n\n").await;
        gateway.metric(HELD).await >= 1.0
    })
    .await;
    eventually("none is held", async || gateway.metric(HELD).await == 0.0).await;
    // A proxy asks another replica instead.
    let proxy = request("/events/a", "fanfare-busy: 503\r\nconnection: close\r\n");
    let answer = Raw::send(gateway.data, &proxy).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

/// An address is full; another one has a share of its own.
#[tokio::test]
async fn it_takes_no_place_of_others() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "1"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
    ])
    .await;
    let of = |address: &str| request("/events/a", &format!("x-forwarded-for: {address}\r\n"));
    let mut streams = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2"] {
        let mut stream = Raw::send(gateway.data, &of(address)).await;
        stream.until("$cursor").await;
        streams.push(stream);
    }
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut answer = Raw::send(gateway.data, &of("192.0.2.1")).await;
        answer.until("data: {}\n\n").await;
        held.push(answer);
        // Half of the connections that an address may have beside its streams.
        assert!(gateway.metric(HELD).await <= 8.0);
    }
    let asked = Instant::now();
    let mut other = Raw::send(gateway.data, &of("192.0.2.2")).await;
    other.rest().await;
    assert!(asked.elapsed() >= Duration::from_secs(1));
    drop(held);
    eventually("none is held", async || gateway.metric(HELD).await == 0.0).await;
}

/// While it is full, other requests are answered as ever.
#[tokio::test]
async fn a_full_replica_keeps_connections_for_other_requests() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let _one = gateway.events("/events/a").await.opened().await;
    let mut asked = Vec::new();
    for _ in 0..300 {
        asked.push(Raw::get(gateway.data, "/events/a").await);
    }
    for answer in &mut asked {
        answer.until("data: {}\n\n").await;
    }
    assert!(gateway.metric(HELD).await <= 64.0);
    assert_eq!(gateway.post("/events/a", "x").await.0, 200);
}

#[tokio::test]
async fn http2_has_it_too() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let _one = gateway.events("/events/a").await.opened().await;
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let client = client.build().unwrap();
    let mut streams = Vec::new();
    for _ in 0..100 {
        let response = client.get(gateway.url("/events/a")).send().await.unwrap();
        let mut events = Events::of(response);
        let block = events.block().await.unwrap();
        assert_eq!(block.event.as_deref(), Some("$busy"));
        streams.push(events);
        // Those of one connection leave room for its streams.
        assert!(gateway.metric(HELD).await <= 64.0);
    }
    let response = client.get(gateway.url("/events/a")).send().await.unwrap();
    let mut last = Events::of(response);
    drop(streams);
    last.block().await.unwrap();
    assert!(last.block().await.is_none());
    eventually("none is held", async || gateway.metric(HELD).await == 0.0).await;
}

#[tokio::test]
async fn none_is_held_beyond_the_drain() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS", "1"),
        ("FANFARE_DRAIN_PERIOD", "10s"),
    ])
    .await;
    let _one = gateway.events("/events/a").await.opened().await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut answer = Raw::get(gateway.data, "/events/a").await;
        answer.until("data: {}\n\n").await;
        held.push(answer);
    }
    gateway.process.signal("TERM");
    let rejected = r#"fanfare_connections_rejected_total{reason="draining"}"#;
    eventually("new streams are sent away", async || {
        Raw::get(gateway.data, "/events/a").await.rest().await;
        gateway.metric(rejected).await > 0.0
    })
    .await;
    assert_eq!(gateway.metric(HELD).await, 0.0);
}

/// What is kept between the busy answer and the next try reaches a client that had no cursor.
#[tokio::test]
async fn it_has_a_cursor_for_a_client_that_begins() {
    let redis = Redis::start().await;
    let full = Gateway::behind(&redis, &[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let other = Gateway::behind(&redis, &[]).await;
    redis.keep("a", "before", &[]).await;
    let mut one = full.events("/events/a?history=1").await.opened().await;
    assert_eq!(one.data().await, "before");
    let answer = async |path: &str, headers: &str| {
        let request = request(path, headers);
        id(&Raw::send(full.data, &request).await.rest().await)
    };
    let cursor = answer("/events/a", "").await.expect("a cursor");
    assert!(cursor.starts_with("0-0."), "{cursor}");
    assert!(answer("/events/a?control=comment", "").await.is_some());
    assert!(
        answer("/events/a?last_event_id=", "last-event-id: \r\n")
            .await
            .is_some()
    );
    // These have one, or begin with what is kept.
    for (path, headers) in [
        ("/events/a?lastEventId=5-0", ""),
        ("/events/a", "last-event-id: 5-0\r\n"),
        ("/events/a", "last-event-id: none of ours\r\n"),
        ("/events/a?history=3", ""),
    ] {
        assert_eq!(answer(path, headers).await, None, "{path} {headers}");
    }
    redis.keep("a", "meanwhile", &[]).await;
    let mut resumed = other
        .events(&format!("/events/a?last_event_id={cursor}"))
        .await;
    // The position is what the replica had seen last: one that is a moment old only sends more.
    let mut next = resumed.data().await;
    if next == "before" {
        next = resumed.data().await;
    }
    assert_eq!(next, "meanwhile");
}
