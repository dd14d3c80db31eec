//! Clients that do not read: bounded, counted, and no trouble to anybody else.

use std::time::Duration;

use crate::support::{Events, Gateway, Raw, Redis, eventually};
use tokio::time::timeout;

const EVENT_BYTES: usize = 16 * 1024;

fn numbered(number: usize) -> String {
    format!("{number}:{}", "x".repeat(EVENT_BYTES))
}

fn number_of(data: &str) -> usize {
    data.split(':').next().unwrap().parse().unwrap()
}

/// Publishes numbered events until `enough`, and has `healthy` receive each of them at once.
async fn publish_until(
    redis: &Redis,
    healthy: &mut Events,
    mut enough: impl AsyncFnMut() -> bool,
) -> usize {
    for number in 0..5000 {
        redis.publish("a", numbered(number)).await;
        assert_eq!(number_of(&healthy.data().await), number);
        if number % 20 == 0 && enough().await {
            return number;
        }
    }
    panic!("eighty mebibytes were not enough");
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_the_others_notice_nothing() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(
        &redis,
        &[
            ("FANFARE_CLIENT_BUFFER_BYTES", "256KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ],
    )
    .await;
    let mut healthy = gateway.events("/events/a").await.opened().await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut raw = Raw::get(gateway.data, "/events/a").await;
        raw.until("retry: ").await;
        slow.push(raw);
    }
    let before = gateway.resident_bytes();
    let closed = r#"fanfare_connections_closed_total{reason="slow_client"}"#;
    publish_until(&redis, &mut healthy, async || {
        gateway.metric(closed).await == 50.0
    })
    .await;
    // Fifty mailboxes share what waits; far below fifty times the bound.
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_eq!(gateway.metric("fanfare_connections").await, 1.0);
    // Cut off with RST: a client that reads what its socket still held ends with an error.
    let mut raw = slow.pop().unwrap();
    let ended = timeout(crate::support::DEADLINE, async {
        use tokio::io::AsyncReadExt;
        let mut sink = vec![0; 1 << 16];
        loop {
            match raw.socket.read(&mut sink).await {
                Ok(0) => return "closed",
                Ok(_) => {}
                Err(_) => return "reset",
            }
        }
    });
    assert_eq!(ended.await.unwrap(), "reset");
    redis.publish("a", "0:still healthy").await;
    assert_eq!(healthy.data().await, "0:still healthy");
}

#[tokio::test]
async fn with_latest_a_slow_client_stays_and_loses_older_events_only() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(
        &redis,
        &[
            ("FANFARE_SLOW_CLIENT", "latest"),
            ("FANFARE_CLIENT_BUFFER_BYTES", "256KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ],
    )
    .await;
    let mut healthy = gateway.events("/events/a").await.opened().await;
    let mut slow = Vec::new();
    for path in ["/events/a", "/events?channel=a&channel=b"] {
        slow.push(gateway.events(path).await.opened().await);
    }
    let dropped = r#"fanfare_events_dropped_total{reason="slow_client"}"#;
    let last = publish_until(&redis, &mut healthy, async || {
        gateway.metric(dropped).await > 400.0
    })
    .await;
    for slow in &mut slow {
        still_there(slow, last).await;
    }
}

/// The client has lost some of the events up to `last`, but none of the newest, and no order.
async fn still_there(slow: &mut Events, last: usize) {
    let mut received = Vec::new();
    while received.last() != Some(&last) {
        received.push(number_of(&slow.data().await));
    }
    assert!(
        received.is_sorted_by(|one, next| one < next),
        "{received:?}"
    );
    assert!(received.len() + 100 < last, "{} of {last}", received.len());
    // The newest that the mailbox holds are complete.
    let newest = &received[received.len() - 10..];
    assert!(
        newest.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{newest:?}"
    );
}

/// The same bound holds where hyper writes: one stalled HTTP/2 stream is reset, and its
/// neighbour on the same connection goes on.
#[tokio::test]
async fn a_stalled_http2_stream_is_reset_and_its_neighbour_goes_on() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_CLIENT_BUFFER_BYTES", "256KiB")]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(65_535)
        .http2_initial_connection_window_size(8 << 20)
        .build()
        .unwrap();
    let stalled = client.get(gateway.url("/events/a")).send().await.unwrap();
    let neighbour = client.get(gateway.url("/events/a")).send().await.unwrap();
    let mut neighbour = Events::of(neighbour).opened().await;
    let closed = r#"fanfare_connections_closed_total{reason="slow_client"}"#;
    publish_until(&redis, &mut neighbour, async || {
        gateway.metric(closed).await == 1.0
    })
    .await;
    redis.publish("a", "0:on").await;
    assert_eq!(neighbour.data().await, "0:on");
    let mut stalled = stalled;
    let broken = timeout(Duration::from_secs(10), async {
        while let Ok(Some(_)) = stalled.chunk().await {}
    });
    broken.await.expect("the stalled stream ends");
    eventually("one stream is left", async || {
        gateway.metric("fanfare_connections").await == 1.0
    })
    .await;
}

/// Events without data cost nothing to publish. They must neither stall the shard nor pass the
/// bounds, however many clients do not read them.
#[tokio::test]
async fn a_flood_of_empty_events_stalls_nobody() {
    const STALLED: usize = 50;
    const EVENTS: usize = 100_000;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(
        &redis,
        &[
            ("FANFARE_SHARDS", "1"),
            ("FANFARE_SLOW_CLIENT", "latest"),
            ("FANFARE_CLIENT_BUFFER_BYTES", "256KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ],
    )
    .await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut raw = Raw::get(gateway.data, "/events?channel=a&channel=b").await;
        raw.until("retry: ").await;
        stalled.push(raw);
    }
    let mut healthy = gateway.events("/events/c").await.opened().await;
    let before = gateway.resident_bytes();
    let mut most = before;
    let flood = async {
        let mut connection = redis.connection().await;
        for _ in 0..EVENTS / 1000 {
            let mut pipeline = redis::pipe();
            for _ in 0..1000 {
                pipeline.cmd("PUBLISH").arg("sse:a").arg("").ignore();
            }
            pipeline.exec_async(&mut connection).await.unwrap();
        }
    };
    let life_goes_on = async {
        for number in 0..10 {
            // A new stream is opened, and events of other channels arrive.
            // Its confirmation comes behind the flood: one that waited for too long is sent away,
            // and comes back.
            eventually("a new stream is open", async || {
                let first = gateway.events("/events/d").await.block().await;
                first.is_some_and(|block| block.event.as_deref() == Some("$cursor"))
            })
            .await;
            redis.publish("c", number.to_string()).await;
            assert_eq!(healthy.data().await, number.to_string());
            most = most.max(gateway.resident_bytes());
        }
    };
    tokio::join!(flood, life_goes_on);
    // Each has a mailbox of its own parcels; their bounds, and as much again for all else.
    let bound = 2 * STALLED * (256 << 10) + (64 << 20);
    assert!(most - before < bound, "{} MiB more", (most - before) >> 20);
}
