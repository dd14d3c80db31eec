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
