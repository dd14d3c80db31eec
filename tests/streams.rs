//! The stream as a client sees it: head, first block, heartbeats, events, refusals.

mod support;

use support::{Events, Gateway, Raw};

#[tokio::test]
async fn head_first_block_and_heartbeat_are_as_documented_byte_for_byte() {
    let gateway =
        Gateway::start(&[("FANFARE_HEARTBEAT", "200ms"), ("FANFARE_RETRY", "3s,3s")]).await;
    let mut raw = Raw::get(gateway.data, "/events/orders").await;
    let head = raw.until("\r\n\r\n").await;
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "HTTP/1.1 200 OK");
    let date = lines
        .iter()
        .position(|line| line.starts_with("date: "))
        .unwrap();
    assert!(lines.remove(date).ends_with(" GMT"));
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "cache-control: no-store, no-transform",
            "connection: close",
            "content-type: text/event-stream",
            "transfer-encoding: chunked",
            "x-accel-buffering: no",
        ]
    );
    assert_eq!(raw.until("\n\n\r\n").await, "d\r\nretry: 3000\n\n\r\n");
    for _ in 0..3 {
        assert_eq!(raw.until("\n\n\r\n").await, "3\r\n:\n\n\r\n");
    }
    gateway.post("/events/orders?event=price", "a\nb").await;
    let event = "1e\r\nevent: price\ndata: a\ndata: b\n\n\r\n";
    assert!(raw.until(event).await.ends_with(event));
}

#[tokio::test]
async fn an_event_reaches_the_stream() {
    let gateway = Gateway::start(&[]).await;
    let mut events: Events = gateway.events("/events/orders").await.opened().await;
    gateway.post("/events/orders", "hello").await;
    assert_eq!(events.data().await, "hello");
}
