//! Many clients come and go, and nothing of them stays.

use crate::support::{DEADLINE, Gateway, Raw, Redis, eventually_within};
use futures_util::future::join_all;

#[tokio::test]
async fn ten_thousand_short_lived_clients_leave_nothing_behind() {
    const CLIENTS: usize = 10_000;
    const AT_ONCE: usize = 50;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_HEARTBEAT", "1s")]).await;
    let visits = async |visitor: usize, visits: usize| {
        for visit in 0..visits {
            let channel = format!("/events?channel=all&channel=c{visitor}.{}", visit % 7);
            let mut raw = Raw::get(gateway.data, &channel).await;
            // Some leave before the answer, some in the middle of it.
            match visit % 4 {
                0 => {}
                1 => drop(raw.until("HTTP/1.1 200").await),
                _ => drop(raw.until("retry: ").await),
            }
        }
    };
    let everybody_leaves = async || {
        eventually_within(DEADLINE, "everything is given back", async || {
            gateway.metric("fanfare_connections").await == 0.0
                && gateway.metric("fanfare_channels").await == 0.0
                && gateway.metric("fanfare_subscriptions").await == 0.0
                && redis.channels().await.is_empty()
        })
        .await;
    };
    // The first thousand fill allocator and caches.
    let all = async |clients: usize| {
        let visitors = (0..AT_ONCE).map(|visitor| visits(visitor, clients / AT_ONCE));
        tokio::time::timeout(DEADLINE * 4, join_all(visitors))
            .await
            .expect("all clients are served");
    };
    all(CLIENTS / 10).await;
    everybody_leaves().await;
    let (descriptors, memory) = (gateway.descriptors(), gateway.resident_bytes());
    all(CLIENTS).await;
    everybody_leaves().await;
    eventually_within(DEADLINE, "descriptors are given back", async || {
        gateway.descriptors() <= descriptors + 2
    })
    .await;
    // A kilobyte a client would be ten megabytes.
    eventually_within(DEADLINE, "memory is given back", async || {
        gateway.resident_bytes() < memory + (6 << 20)
    })
    .await;
    let opened = gateway.metric("fanfare_connections_opened_total").await;
    let closed = gateway
        .metric(r#"fanfare_connections_closed_total{reason="client"}"#)
        .await;
    assert_eq!(opened, closed);
    assert!(opened >= 5_000.0, "{opened}");
}

/// Each page of a channel must cost the same, however many channels are read.
#[tokio::test]
async fn a_hundred_thousand_channels_miss_nothing_when_the_connection_is_lost() {
    const STREAMS: usize = 1600;
    const CHANNELS: usize = 64;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let channels =
        |stream: usize| (0..CHANNELS).map(move |one| format!("{}", stream * CHANNELS + one));
    let mut streams = Vec::new();
    for stream in 0..STREAMS {
        let query: Vec<_> = channels(stream)
            .map(|one| format!("channel={one}"))
            .collect();
        let mut raw = Raw::get(gateway.data, &format!("/events?{}", query.join("&"))).await;
        raw.until("event: $cursor\n").await;
        streams.push(raw);
    }
    gateway.process.signal("STOP");
    let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let mut connection = redis.connection().await;
    for stream in 0..STREAMS {
        let mut publishes = redis::pipe();
        for channel in channels(stream) {
            let key = format!("sse:{channel}");
            let data = format!("of-{channel}");
            publishes
                .cmd("FCALL")
                .arg("fanfare_publish")
                .arg(1)
                .arg(key)
                .arg(data);
        }
        publishes.exec_async(&mut connection).await.unwrap();
    }
    gateway.process.signal("CONT");
    let all = (STREAMS * CHANNELS) as f64;
    eventually_within(DEADLINE * 4, "everything is delivered", async || {
        gateway.metric("fanfare_events_delivered_total").await == all
    })
    .await;
    for (number, stream) in streams.iter_mut().enumerate() {
        for channel in channels(number) {
            let before = stream.until(&format!("data: of-{channel}\n")).await;
            assert!(!before.contains("$gap"), "{before}");
        }
    }
}
