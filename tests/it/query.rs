//! What a stream's URL and headers may say, as clients in use send it.

use std::time::Duration;

use crate::support::{Gateway, Raw, Redis};
use tokio::time::Instant;

const IGNORED: &str = "fanfare_requests_with_ignored_parameters_total";

async fn head(gateway: &Gateway, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    let mut raw = Raw::send(gateway.data, &request).await;
    raw.until("\r\n\r\n").await
}

/// Polyfills send the cursor in the query, under names of their own.
#[tokio::test]
async fn a_cursor_is_taken_under_the_names_of_polyfills() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut ids = Vec::new();
    for data in ["1", "2", "3"] {
        ids.push(redis.keep("a", data, &[]).await);
    }
    let (one, two) = (&ids[0], &ids[1]);
    let client = reqwest::Client::new();
    let next = async |query: &str, header: Option<&str>| {
        let mut request = client.get(gateway.url(&format!("/events/a?{query}")));
        if let Some(cursor) = header {
            request = request.header("last-event-id", cursor);
        }
        let mut events = crate::support::Events::of(request.send().await.unwrap());
        events.data().await
    };
    for name in [
        "last_event_id",
        "lastEventId",
        "lastEventID",
        "Last-Event-ID",
    ] {
        assert_eq!(next(&format!("{name}={one}"), None).await, "2", "{name}");
        assert_eq!(next(&format!("{name}={two}"), None).await, "3", "{name}");
    }
    // The last that is not empty counts, and the header before all unless it is empty.
    for (query, header, expected) in [
        (format!("last_event_id={one}&lastEventId={two}"), None, "3"),
        (format!("lastEventId={two}&last_event_id={one}"), None, "2"),
        (
            format!("lastEventId={one}&lastEventId=&last_event_id="),
            None,
            "2",
        ),
        (format!("lastEventId={one}"), Some(two.as_str()), "3"),
        (format!("lastEventId={one}"), Some(""), "2"),
    ] {
        assert_eq!(next(&query, header).await, expected, "{query} {header:?}");
    }
    assert_eq!(gateway.metric(IGNORED).await, 0.0);
}

/// No error, because a front may add its own; but a misspelt name is to be found.
#[tokio::test]
async fn unknown_parameters_are_named_and_counted() {
    let gateway = Gateway::start(&[
        ("FANFARE_MAX_CONNECTIONS", "1"),
        ("FANFARE_ALLOW_ORIGINS", "https://app.example.com"),
    ])
    .await;
    let known = "history=0&last_event_id=&control=event&cursor=event&channel=b&heartbeat=5s";
    let answer = head(&gateway, &format!("/events/a?{known}"), "").await;
    assert!(!answer.contains("\r\nfanfare-ignored: "), "{answer}");
    let origin = "origin: https://app.example.com\r\n";
    let unknown = "/events/a?historyy=5&utm_source=x&historyy=6&a%0d%0ab=1";
    let answer = head(&gateway, unknown, origin).await;
    assert!(
        answer.contains("\r\nfanfare-ignored: historyy, utm_source, a??b\r\n"),
        "{answer}"
    );
    // A page of another origin may read it.
    let exposed = answer
        .lines()
        .find_map(|line| line.strip_prefix("access-control-expose-headers: "));
    assert!(exposed.unwrap().contains("fanfare-ignored"), "{answer}");
    // A busy answer and a problem name them, too.
    let _one = gateway.events("/events/a").await.opened().await;
    let busy = Raw::get(gateway.data, "/events/a?x=1").await.rest().await;
    assert!(
        busy.contains("$busy") && busy.contains("\r\nfanfare-ignored: x\r\n"),
        "{busy}"
    );
    let many: String = (0..2000).map(|number| format!("&n{number}=")).collect();
    let answer = head(&gateway, &format!("/events/a?{many}"), "").await;
    assert!(answer.len() < 1000, "{answer}");
    assert_eq!(gateway.metric(IGNORED).await, 3.0);
}

/// Libraries give up reading after five or ten seconds; phones want longer pauses.
#[tokio::test]
async fn a_stream_has_the_heartbeat_it_asks_for() {
    let gateway = Gateway::start(&[("FANFARE_HEARTBEAT", "1h")]).await;
    let mut slow = gateway.events("/events/a").await.opened().await;
    let mut quick = gateway
        .events("/events/a?heartbeat=2s")
        .await
        .opened()
        .await;
    // The first comes early, at random.
    quick.block().await.unwrap();
    let first = Instant::now();
    for _ in 0..2 {
        let beat = quick.block().await.unwrap();
        assert_eq!(beat.event.as_deref(), Some("$cursor"));
    }
    assert!(first.elapsed() >= Duration::from_secs(3));
    gateway.post("/events/a", "the first").await;
    assert_eq!(
        slow.block().await.unwrap().data.as_deref(),
        Some("the first")
    );
    for wrong in [
        "1s",
        "1999ms",
        "61s",
        "1h",
        "4",
        "",
        "-4s",
        "x",
        "0",
        "9999999999999999y",
    ] {
        let answer = gateway.get(&format!("/events/a?heartbeat={wrong}")).await;
        assert_eq!(answer.0, 400, "{wrong}");
        assert!(answer.1.contains("heartbeat"), "{}", answer.1);
    }
    for right in ["2s", "60s", "1m", "2500ms"] {
        let answer = head(&gateway, &format!("/events/a?heartbeat={right}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{right}: {answer}");
    }
}

/// With less than that, clients without a pause of their own would come back at once, for ever.
#[tokio::test]
async fn a_publishers_retry_is_at_least_a_tenth_of_a_second() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    for retry in ["0", "99"] {
        let posted = gateway.post(&format!("/events/a?retry={retry}"), "x").await;
        assert_eq!(posted.0, 200, "{posted:?}");
        redis.keep("a", "x", &["retry", retry]).await;
        let envelope = format!(r#"{{"sse":{{"data":"x","retry":{retry}}}}}"#);
        redis.publish("a", envelope).await;
    }
    for _ in 0..6 {
        assert_eq!(events.event().await.retry, Some(100));
    }
    gateway.post("/events/a?retry=101", "x").await;
    assert_eq!(events.event().await.retry, Some(101));
    // Replayed as well.
    let mut again = gateway.events("/events/a?history=1").await;
    assert!(again.event().await.retry >= Some(100));
}

#[tokio::test]
async fn a_slash_at_the_end_changes_nothing() {
    let gateway = Gateway::start(&[]).await;
    let mut events = gateway.events("/events/orders/").await.opened().await;
    let mut both = gateway
        .events("/events/?channel=orders")
        .await
        .opened()
        .await;
    assert_eq!(gateway.post("/events/orders/", "x").await.0, 200);
    assert_eq!(events.data().await, "x");
    assert_eq!(both.data().await, "x");
    for (path, status) in [("/events/a/b", 404), ("/events//", 400), ("/tickets/", 405)] {
        assert_eq!(gateway.get(path).await.0, status, "{path}");
    }
}
