//! What `/metrics` says: its table in the documentation, its format, and the latencies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::proxy::Proxy;
use crate::support::{Gateway, Raw, Redis, eventually};

/// The line behind which the table stands, and the one that ends it.
const TABLE: [&str; 2] = ["<!-- metrics -->\n", "<!-- /metrics -->\n"];

/// Labels whose values are not a list that we make.
const OPEN_LABELS: [&str; 4] = ["le", "shard", "thread", "version"];

/// The table of `docs/metrics.md`, made from what a gateway says.
fn table(text: &str) -> String {
    let mut labels: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let (pairs, _) = rest.split_once('}').unwrap();
        for (label, value) in pairs.split(',').map(|pair| pair.split_once('=').unwrap()) {
            let values = labels.entry(name).or_default().entry(label).or_default();
            let value = value.trim_matches('"');
            if !OPEN_LABELS.contains(&label) && !values.contains(&value) {
                values.push(value);
            }
        }
    }
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(help) = line.strip_prefix("# HELP ") else {
            continue;
        };
        let (name, help) = help.split_once(' ').unwrap();
        let kind = lines.next().unwrap().rsplit_once(' ').unwrap().1;
        let labels = labels.get(name).map(|labels| {
            let label = |(label, values): (&&str, &Vec<&str>)| match values[..] {
                [] => format!("`{label}`"),
                _ => format!("`{label}`: {}", values.join(", ")),
            };
            labels.iter().map(label).collect::<Vec<_>>().join("; ")
        });
        let labels = labels.unwrap_or_default();
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    table
}

/// `BLESS=1 cargo test --test it metrics::` writes the table anew.
#[tokio::test]
async fn the_documentation_lists_every_metric() {
    let gateway = Gateway::start(&[]).await;
    let (_, text) = gateway.admin_get("/metrics").await;
    let table = table(&text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(TABLE[0]).unwrap();
    let (written, after) = rest.split_once(TABLE[1]).unwrap();
    if std::env::var_os("BLESS").is_some() {
        let page = [before, TABLE[0], &table, TABLE[1], after].concat();
        std::fs::write(&path, page).unwrap();
        return;
    }
    assert_eq!(
        written, table,
        "docs/metrics.md differs from /metrics: BLESS=1 cargo test --test it metrics::"
    );
}

#[tokio::test]
async fn metrics_count_what_happens_and_promtool_finds_no_fault() {
    let gateway = Gateway::start(&[]).await;
    let mut one = gateway.events("/events/a").await.opened().await;
    let mut two = gateway
        .events("/events?channel=a&channel=b")
        .await
        .opened()
        .await;
    gateway.post("/events/a?keep=false", "x").await;
    one.data().await;
    two.data().await;
    for (series, value) in [
        ("fanfare_connections", 2.0),
        ("fanfare_subscriptions", 3.0),
        ("fanfare_events_delivered_total", 2.0),
        (r#"fanfare_events_received_total{kind="live"}"#, 1.0),
        (
            r#"fanfare_events_published_total{kind="live",outcome="published"}"#,
            1.0,
        ),
        ("fanfare_ready", 1.0),
    ] {
        assert_eq!(gateway.metric(series).await, value, "{series}");
    }
    let (_, text) = gateway.admin_get("/metrics").await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (make test installs it)");
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.trim().is_empty(), "{told}");
}

#[tokio::test]
async fn deliveries_are_timed_from_their_publication() {
    let redis = Redis::start().await;
    let proxy = Proxy::to(&redis).await;
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &proxy.url())]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(gateway.events("/events/a").await.opened().await);
    }
    // On the way from Redis: before their arrival, and after their publication.
    let way = Duration::from_millis(100);
    proxy.delay(Some(way..way));
    for number in 0..5 {
        redis.keep("a", &number.to_string(), &[]).await;
        redis.publish("a", "live").await;
    }
    for stream in &mut streams {
        while stream.data().await != "4" {}
        stream.data().await;
    }
    // Counted after the write that a client has seen.
    eventually("every delivery is timed", async || {
        gateway.metric("fanfare_delivery_seconds_count").await == 15.0
    })
    .await;
    let took = gateway.metric("fanfare_delivery_seconds_sum").await;
    let least = way.as_secs_f64() * 15.0;
    assert!((least..20.0 * 15.0).contains(&took), "{took}");
    proxy.delay(None);
    eventually("every event's fan-out is timed", async || {
        // Shards count for themselves: three streams are on one to three of them.
        gateway.metric("fanfare_fanout_seconds_count").await >= 10.0
    })
    .await;
    let took = gateway.metric("fanfare_fanout_seconds_sum").await;
    assert!(took > 0.0 && took < 20.0 * 30.0, "{took}");
    // What a client missed says how long it was away.
    let mut resumed = gateway.events("/events/a?history=10").await.opened().await;
    while resumed.data().await != "4" {}
    assert_eq!(gateway.metric("fanfare_delivery_seconds_count").await, 15.0);
}

/// A mailbox that the socket cannot empty: the fan-out is over without it.
#[tokio::test]
async fn a_client_that_does_not_read_says_nothing_of_the_fan_out() {
    let gateway = Gateway::start(&[("FANFARE_SHARDS", "1")]).await;
    let mut stalled = Raw::get(gateway.data, "/events/a").await;
    stalled.until("retry: ").await;
    let mut reading = gateway.events("/events/a").await.opened().await;
    let large = "x".repeat(500_000);
    let mut sent = 0.0;
    // Until its socket is full, and more waits behind the one that is half written. What the other
    // has received may not be counted yet.
    while gateway.metric("fanfare_events_delivered_total").await > sent * 2.0 - 3.0 {
        gateway.post("/events/a", large.clone()).await;
        reading.data().await;
        sent += 1.0;
        assert!(sent < 100.0, "the kernel takes everything");
    }
    eventually("the fan-out is over without it", async || {
        gateway.metric("fanfare_fanout_seconds_count").await == sent
    })
    .await;
    assert!(gateway.metric("fanfare_delivery_seconds_count").await < sent * 2.0);
}
