//! The admin listener: health and metrics.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use support::Gateway;

#[tokio::test]
async fn health_and_metrics_are_served() {
    let gateway = Gateway::start(&[]).await;
    assert_eq!(gateway.admin_get("/livez").await, (200, "alive\n".into()));
    let ready = r#"{"ready":true,"reasons":[]}"#;
    assert_eq!(gateway.admin_get("/readyz").await, (200, ready.into()));
    assert_eq!(gateway.admin_get("/").await.0, 404);
    // The data listener serves none of it.
    assert_eq!(gateway.get("/metrics").await.0, 404);
    assert_eq!(gateway.get("/readyz").await.0, 404);
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
    assert_eq!(gateway.metric("fanfare_connections").await, 2.0);
    assert_eq!(gateway.metric("fanfare_subscriptions").await, 3.0);
    assert_eq!(gateway.metric("fanfare_events_delivered_total").await, 2.0);
    let received = r#"fanfare_events_received_total{kind="live"}"#;
    assert_eq!(gateway.metric(received).await, 1.0);
    let (_, text) = gateway.admin_get("/metrics").await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (make test installs it)");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.trim().is_empty(), "{told}");
}
