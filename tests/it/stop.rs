//! Stopping: not ready first, then streams are closed with a reconnection time, then the end. And
//! streams that end because they are old enough.

use std::time::Duration;

use crate::support::{Gateway, Raw, eventually, within};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

#[tokio::test]
async fn a_stop_drains_in_order() {
    let mut gateway = Gateway::start(&[
        ("FANFARE_DRAIN_DELAY", "1s"),
        ("FANFARE_DRAIN_PERIOD", "2s"),
    ])
    .await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::get(gateway.data, "/events/a").await;
        raw.until("\n\n\r\n").await;
        streams.push(raw);
    }
    gateway.process.signal("TERM");
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    let (_, body) = gateway.admin_get("/readyz").await;
    assert!(body.contains("stopping"), "{body}");
    // Until the balancer has looked, streams are opened and events delivered as ever.
    let mut late = Raw::get(gateway.data, "/events/a").await;
    late.until("\n\n\r\n").await;
    gateway.post("/events/a", "x").await;
    late.until("data: x\n\n\r\n").await;
    streams.push(late);
    for stream in &mut streams[..40] {
        stream.until("data: x\n\n\r\n").await;
    }
    let start = Instant::now();
    let ends = futures_util::future::join_all(streams.iter_mut().map(async |stream| {
        let end = stream.rest().await;
        (start.elapsed(), end)
    }))
    .await;
    let mut retries = Vec::new();
    for (_, end) in &ends {
        // A last block with a reconnection time, and an orderly end of the body.
        let block = end
            .strip_suffix("\nevent: $cursor\ndata: {}\n\n\r\n0\r\n\r\n")
            .unwrap_or_else(|| panic!("{end:?}"));
        retries.push(block.split("retry: ").nth(1).unwrap().to_owned());
    }
    retries.sort();
    retries.dedup();
    assert!(retries.len() > 20, "{retries:?}");
    // Spread, not all at once.
    let first = ends.iter().map(|(at, _)| *at).min().unwrap();
    let last = ends.iter().map(|(at, _)| *at).max().unwrap();
    assert!(
        last - first > Duration::from_secs(1),
        "{first:?} to {last:?}"
    );
    assert!(gateway.process.ended().await);
    // And says how far it is.
    let log = gateway.log().concat();
    for phase in [
        "waiting for the load balancer",
        "closing streams",
        "stopped",
    ] {
        assert!(log.contains(phase), "{phase:?} in {log}");
    }
}

#[tokio::test]
async fn a_drain_tells_how_far_it_is() {
    let gateway = Gateway::start(&[("FANFARE_DRAIN_PERIOD", "1h")]).await;
    let _open = gateway.events("/events/a").await.opened().await;
    assert_eq!(gateway.metric("fanfare_draining").await, 0.0);
    gateway.process.signal("TERM");
    eventually("the metric tells of the drain", async || {
        gateway.metric("fanfare_draining").await == 1.0
    })
    .await;
    assert_eq!(gateway.metric("fanfare_connections").await, 1.0);
    eventually("the log tells of progress", async || {
        let log = gateway.log();
        let mut lines = log.iter();
        lines.any(|line| line.contains(r#""draining""#) && line.contains(r#""streams":1"#))
    })
    .await;
}

/// A proxy keeps no connection for a request that would meet the end.
#[tokio::test]
async fn a_draining_replica_keeps_no_connection() {
    let gateway = Gateway::start(&[("FANFARE_DRAIN_PERIOD", "1h")]).await;
    let _open = gateway.events("/events/b").await.opened().await;
    let post = "POST /events/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";
    let head = Raw::send(gateway.data, post).await.until("\r\n\r\n").await;
    assert!(!head.contains("connection: close"), "{head}");
    gateway.process.signal("TERM");
    eventually("connections are closed", async || {
        let head = Raw::send(gateway.data, post).await.until("\r\n\r\n").await;
        head.contains("connection: close")
    })
    .await;
}

/// Whoever publishes while a replica stops learns what became of the event.
#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let mut gateway = Gateway::start(&[("FANFARE_DRAIN_PERIOD", "10s")]).await;
    let post = "POST /events/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nx";
    let mut publisher = Raw::send(gateway.data, post).await;
    eventually("the request has come", async || {
        gateway.metric("fanfare_requests").await == 1.0
    })
    .await;
    gateway.process.signal("TERM");
    eventually("the gateway closes streams", async || {
        gateway.log().concat().contains("closing streams")
    })
    .await;
    publisher.socket.write_all(b"y").await.unwrap();
    let answer = publisher.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(gateway.process.ended().await);
}

#[tokio::test]
async fn streams_end_when_they_are_old_enough_each_at_its_own_time() {
    let gateway = Gateway::start(&[
        ("FANFARE_HEARTBEAT", "200ms"),
        ("FANFARE_MAX_CONNECTION_AGE", "4s"),
    ])
    .await;
    let mut streams = Vec::new();
    let start = Instant::now();
    for _ in 0..40 {
        let mut raw = Raw::get(gateway.data, "/events/a").await;
        raw.until("\n\n\r\n").await;
        streams.push(raw);
    }
    let ends = futures_util::future::join_all(streams.iter_mut().map(async |stream| {
        let end = stream.rest().await;
        (start.elapsed(), end)
    }))
    .await;
    for (at, end) in &ends {
        assert!(
            end.contains("retry: ") && end.ends_with("\n\n\r\n0\r\n\r\n"),
            "{end:?}"
        );
        assert!(*at >= Duration::from_secs(2), "{at:?}");
    }
    let first = ends.iter().map(|(at, _)| *at).min().unwrap();
    let last = ends.iter().map(|(at, _)| *at).max().unwrap();
    assert!(
        last - first > Duration::from_millis(500),
        "{first:?} to {last:?}"
    );
    let aged = r#"fanfare_connections_closed_total{reason="age"}"#;
    eventually("they are counted", async || {
        gateway.metric(aged).await == 40.0
    })
    .await;
}

/// Whoever still comes is told to come back, until the process is gone.
#[tokio::test]
async fn a_draining_replica_answers_retry_and_close() {
    let gateway = Gateway::start(&[("FANFARE_DRAIN_PERIOD", "10s")]).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(gateway.events("/events/a").await.opened().await);
    }
    gateway.process.signal("TERM");
    let rejected = r#"fanfare_connections_rejected_total{reason="draining"}"#;
    eventually("new streams are sent away", async || {
        let mut raw = Raw::get(gateway.data, "/events/a").await;
        raw.until("retry: ").await;
        drop(raw);
        gateway.metric(rejected).await > 0.0
    })
    .await;
    let answer = Raw::get(gateway.data, "/events/a").await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\nevent: $busy\n"), "{answer}");
    assert!(answer.ends_with("data: {}\n\n"), "{answer}");
    let answer = Raw::send(
        gateway.data,
        "GET /events/a HTTP/1.1\r\nhost: localhost\r\nfanfare-busy: 503\r\nconnection: close\r\n\r\n",
    )
    .await
    .rest()
    .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut gateway = Gateway::start(&[
        ("FANFARE_DRAIN_DELAY", "1h"),
        ("FANFARE_DRAIN_PERIOD", "1h"),
    ])
    .await;
    let _open = gateway.events("/events/a").await.opened().await;
    gateway.process.signal("INT");
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
}

/// Streams that hyper writes end in order as well, and their connection with them.
#[tokio::test]
async fn a_stop_ends_http2_streams_in_order() {
    let mut gateway = Gateway::start(&[]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let response = client.get(gateway.url("/events/a")).send().await.unwrap();
        streams.push(crate::support::Events::of(response).opened().await);
    }
    gateway.process.signal("TERM");
    for stream in &mut streams {
        let last = stream.block().await.expect("a last block");
        assert!(last.retry.is_some() && last.data.is_some(), "{last:?}");
        assert!(stream.block().await.is_none());
    }
    assert!(gateway.process.ended().await);
}

/// What a service manager hears: readiness, a beat every third of the time it waits for one, and that
/// a stop takes as long as the drain.
#[tokio::test]
async fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let hear = async || {
        let mut message = [0; 256];
        let length = within("a message", socket.recv(&mut message))
            .await
            .unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut gateway = Gateway::start(&[
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "300000"),
        ("FANFARE_SHARDS", "2"),
        ("FANFARE_DRAIN_PERIOD", "3s"),
    ])
    .await;
    assert_eq!(hear().await, "READY=1\n");
    assert_eq!(hear().await, "WATCHDOG=1\n");
    assert_eq!(hear().await, "WATCHDOG=1\n");
    let mut stream = Raw::get(gateway.data, "/events/a").await;
    stream.until("\n\n\r\n").await;
    gateway.process.signal("TERM");
    let stopping = loop {
        let message = hear().await;
        if message != "WATCHDOG=1\n" {
            break message;
        }
    };
    // Delay, period, and two seconds for the last bytes.
    assert_eq!(stopping, "STOPPING=1\nEXTEND_TIMEOUT_USEC=5000000\n");
    // A drain is no reason to be thought dead.
    assert_eq!(hear().await, "WATCHDOG=1\n");
    // Nor does it wait for a service manager that does not listen any more.
    assert!(gateway.process.ended().await);
}

/// A closed terminal, or a reload: the files that are read again are, and nothing else happens.
#[tokio::test]
async fn sighup_stops_nothing() {
    let mut gateway = Gateway::start(&[]).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    for _ in 0..2 {
        gateway.process.signal("HUP");
    }
    gateway
        .logged("SIGHUP: reading keys, certificates and the Redis URL again")
        .await;
    gateway.keep("/events/a", "still here").await;
    assert_eq!(stream.data().await, "still here");
    assert!(gateway.is_ready().await);

    gateway.process.signal("QUIT");
    assert!(gateway.process.ended().await, "SIGQUIT drains like SIGTERM");
    let end = within("the stream ends in order", stream.block()).await;
    assert!(end.is_none_or(|block| block.retry.is_some()));
}
