//! Many clients at once.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::faults::failover::{announced_replica_of, behind, primary};
use crate::faults::matrix::Fault;
use crate::faults::{MINUTE, RECOVERY, VARIABLES, refs};
use crate::support::client::{Addresses, Client, Plan};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::proxy::Proxy;
use crate::support::sentinel::Sentinels;
use crate::support::{Gateway, Redis, eventually, eventually_within, test_within};

/// Clients that connect at once: the rest waits, as they would in front of a listener's queue.
const CONNECT_TOGETHER: usize = 200;

/// Descriptors that this process needs for so many clients.
fn descriptors(clients: u64) {
    let (_, most) = rlimit::Resource::NOFILE.get().unwrap();
    assert!(
        most >= clients + 1000,
        "{clients} clients need more descriptors than {most} (ulimit -Hn)"
    );
    rlimit::Resource::NOFILE.set(most, most).unwrap();
}

async fn open_all(addresses: &Addresses, count: usize) -> Vec<Client> {
    futures_util::stream::iter(0..count)
        .map(|number| {
            let mut plan = Plan::new(addresses, &["a", "b"]);
            plan.first_address = number;
            plan.open()
        })
        .buffer_unordered(CONNECT_TOGETHER)
        .collect()
        .await
}

#[tokio::test]
async fn ten_thousand_reconnect_during_a_failover() {
    const CLIENTS: usize = 10_000;
    let mut fault = Fault::new(
        "10,000 clients reconnect during a Sentinel failover",
        3 * RECOVERY,
    );
    test_within(10 * MINUTE, async {
        descriptors(CLIENTS as u64);
        let mut old = primary().await;
        let proxy = Proxy::to(&old).await;
        let _new = announced_replica_of(&old, &proxy).await;
        let sentinels = Sentinels::watching(&old, 3).await;
        sentinels.know_a_replica().await;
        let gateways = [behind(&sentinels, &[]).await, behind(&sentinels, &[]).await];
        let addresses = Addresses::of(&[&gateways[0], &gateways[1]]);
        let clients = open_all(&addresses, CLIENTS).await;
        let journal = Journal::default();
        let mut publisher = Publisher::over_http(&journal, "p", &addresses).keyed();
        for _ in 0..10 {
            publisher.id("a").await;
            publisher.id("b").await;
        }
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        let reads = async || {
            let mut reads = 0.0;
            for gateway in &gateways {
                reads += gateway.metric("fanfare_history_reads_total").await;
            }
            reads
        };
        let before = reads().await;
        old.kill().await;
        for client in &clients {
            client.cut();
        }
        eventually("the loss is noticed", async || {
            !gateways[0].is_ready().await && !gateways[1].is_ready().await
        })
        .await;
        sentinels.name(proxy.port()).await;
        let over = Instant::now();
        for gateway in &gateways {
            gateway.ready().await;
        }
        publisher.acknowledged("a").await;
        for client in &clients {
            client.until("it is back", |log| log.is_open()).await;
        }
        fault.recovered(over);
        settle(&journal, &mut publisher, &refs(&clients), &["rewound"]).await;
        let reads = reads().await - before;
        assert!(reads < 200.0, "reads are shared: {reads}");
        for gateway in &gateways {
            let resident = gateway.resident_bytes();
            assert!(resident < 500 << 20, "memory is bounded: {resident}");
        }
    })
    .await;
}

/// A client that notes how late events are. Their data is the time since `epoch` in microseconds.
async fn timed(gateway: &Gateway, epoch: Instant) -> JoinHandle<Result<Vec<Duration>, String>> {
    let mut socket = stream(gateway, None).await;
    // The first block: from here on every event arrives.
    let mut bytes = Vec::new();
    socket.read_buf(&mut bytes).await.unwrap();
    tokio::spawn(async move {
        let mut delays = Vec::new();
        while matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
            let now = epoch.elapsed();
            let whole = bytes
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in bytes[..whole].split(|byte| *byte == b'\n') {
                let Some(data) = line.strip_prefix(b"data: at ") else {
                    continue;
                };
                let text = std::str::from_utf8(data).unwrap();
                let text = text.split(' ').next().unwrap();
                if text == "end" {
                    return Ok(delays);
                }
                let sent = Duration::from_micros(text.parse().unwrap());
                delays.push(now.saturating_sub(sent));
            }
            bytes.drain(..whole);
        }
        Err(format!(
            "cut off after {} events, {:?}",
            delays.len(),
            epoch.elapsed()
        ))
    })
}

async fn stream(gateway: &Gateway, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let mut socket = socket.connect(gateway.data).await.unwrap();
    let request = b"GET /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n";
    socket.write_all(request).await.unwrap();
    socket
}

/// The 99th percentile of so many healthy clients' delays.
async fn p99(redis: &Redis, gateway: &Gateway, clients: usize) -> Duration {
    let epoch = Instant::now();
    let mut healthy = Vec::new();
    for _ in 0..clients {
        healthy.push(timed(gateway, epoch).await);
    }
    let filling = "x".repeat(2000);
    for _ in 0..60 {
        let at = epoch.elapsed().as_micros();
        redis.publish("a", format!("at {at} {filling}")).await;
        sleep(Duration::from_millis(250)).await;
    }
    redis.publish("a", "at end").await;
    let mut delays = Vec::new();
    let mut faults = Vec::new();
    for client in healthy {
        match client.await.unwrap() {
            Ok(seen) => delays.extend(seen),
            Err(fault) => faults.push(fault),
        }
    }
    if let Some(fault) = faults.first() {
        let (_, metrics) = gateway.admin_get("/metrics").await;
        let closed = metrics
            .lines()
            .filter(|line| line.contains("closed_total{"));
        let closed: Vec<_> = closed.collect();
        panic!("{} healthy clients {fault}: {closed:?}", faults.len());
    }
    assert_eq!(delays.len(), clients * 60);
    delays.sort_unstable();
    delays[delays.len() / 100 * 99]
}

#[tokio::test]
async fn clients_that_never_read_slow_down_nobody() {
    const HEALTHY: usize = 5_000;
    const STUCK: usize = 500;
    let mut fault = Fault::new("500 clients that never read beside 5,000 that do", RECOVERY);
    test_within(5 * MINUTE, async {
        descriptors((HEALTHY + STUCK) as u64);
        let redis = Redis::start().await;
        let mut variables = vec![
            ("FANFARE_CLIENT_BUFFER_BYTES", "64KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "8KiB"),
        ];
        variables.extend(VARIABLES);
        let gateway = Gateway::behind(&redis, &variables).await;
        let alone = p99(&redis, &gateway, HEALTHY).await;
        eventually_within(RECOVERY, "they have left", async || {
            gateway.metric("fanfare_connections").await == 0.0
        })
        .await;
        let mut stuck = Vec::new();
        for _ in 0..STUCK {
            stuck.push(stream(&gateway, Some(2048)).await);
        }
        let beside = p99(&redis, &gateway, HEALTHY).await;
        eprintln!("99th percentile: {alone:?} alone, {beside:?} beside them");
        let closed = gateway
            .metric("fanfare_connections_closed_total{reason=\"slow_client\"}")
            .await;
        assert!(closed > 0.0, "they are noticed");
        // A machine that is busy has its moments.
        let limit = 2 * alone + Duration::from_millis(50);
        assert!(beside <= limit, "{beside:?} instead of {alone:?}");
        let resident = gateway.resident_bytes();
        assert!(resident < 300 << 20, "memory is bounded: {resident}");
        let over = Instant::now();
        drop(stuck);
        eventually("all are gone", async || {
            gateway.metric("fanfare_connections").await == 0.0
        })
        .await;
        fault.recovered(over);
    })
    .await;
}
