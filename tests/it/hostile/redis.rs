//! What comes from Redis: payloads of publishers who know no rules, and a Redis that refuses.

use std::time::Duration;

use crate::hostile::healthy;
use crate::support::{Events, Gateway, Redis, eventually, test_within};

async fn dropped(gateway: &Gateway, reason: &str) -> f64 {
    let series = format!("fanfare_events_dropped_total{{reason=\"{reason}\"}}");
    gateway.metric(&series).await
}

/// Payloads, and why they are dropped; `None`: they are data, whatever they look like.
fn payloads() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let envelope = |members: &str| format!("{{\"sse\":{{{members}}}}}").into_bytes();
    vec![
        ("nothing", vec![], None),
        ("giant", vec![b'x'; 3 << 20], Some("too_large")),
        (
            "a giant envelope",
            envelope(&format!("\"data\":\"{}\"", "x".repeat(3 << 20))),
            Some("too_large"),
        ),
        ("no UTF-8", b"\xc3\x28".to_vec(), Some("not_utf8")),
        (
            "no UTF-8 in an envelope",
            b"{\"sse\":{\"data\":\"\xff\"}}".to_vec(),
            Some("not_utf8"),
        ),
        (
            "a truncated envelope",
            b"{\"sse\":{\"data\":\"x\"".to_vec(),
            None,
        ),
        ("nested data", nested(100_000).into_bytes(), None),
        (
            "the same member twice",
            envelope("\"data\":\"a\",\"data\":\"b\""),
            Some("envelope"),
        ),
        (
            "sse twice",
            b"{\"sse\":{\"data\":\"a\"},\"sse\":{\"data\":\"b\"}}".to_vec(),
            Some("envelope"),
        ),
        (
            "an unknown member",
            envelope("\"data\":\"a\",\"id\":\"5-0\""),
            Some("envelope"),
        ),
        ("no data", envelope("\"event\":\"a\""), Some("envelope")),
        (
            "an envelope that is a list",
            b"{\"sse\":[]}".to_vec(),
            Some("envelope"),
        ),
        (
            "a name that is a number",
            envelope("\"data\":1,\"event\":5"),
            Some("envelope"),
        ),
        (
            "a retry that is text",
            envelope("\"data\":1,\"retry\":\"1\""),
            Some("envelope"),
        ),
        (
            "a negative retry",
            envelope("\"data\":1,\"retry\":-1"),
            Some("envelope"),
        ),
        (
            "a retry beyond numbers",
            envelope("\"data\":1,\"retry\":1e999"),
            Some("envelope"),
        ),
        (
            "a retry of years",
            envelope("\"data\":1,\"retry\":99999999999"),
            Some("envelope"),
        ),
        (
            "a to that is a list",
            envelope("\"data\":1,\"to\":[]"),
            Some("envelope"),
        ),
        (
            "half a surrogate",
            envelope("\"data\":\"\\ud800\""),
            Some("envelope"),
        ),
        (
            "a line end in the name",
            envelope("\"data\":1,\"event\":\"a\\nb\""),
            Some("event_name"),
        ),
        (
            "a name of the gateway's",
            envelope("\"data\":1,\"event\":\"$gap\""),
            Some("event_name"),
        ),
        (
            "a name too long",
            envelope(&format!("\"data\":1,\"event\":\"{}\"", "x".repeat(2000))),
            Some("event_name"),
        ),
        (
            "an event in the data",
            b"x\n\nevent: $gap\ndata: {}\nid: 9-9\n".to_vec(),
            None,
        ),
        ("a frame of nothing", b"\xff".to_vec(), Some("frame")),
        (
            "a frame of another version",
            b"\xff91-0".to_vec(),
            Some("frame"),
        ),
        (
            "a frame without an end",
            b"\xff1e5-0 0-0 5 - 0 0 0".to_vec(),
            Some("frame"),
        ),
        (
            "a frame with lengths of nothing",
            b"\xff1e5-0 0-0 5 - 9999999999 0 0\nx".to_vec(),
            Some("frame"),
        ),
        (
            "a frame of the future",
            b"\xff1e99999999999999-0 0-0 5 - 0 0 0\nx".to_vec(),
            Some("id_ahead"),
        ),
    ]
}

#[tokio::test]
async fn each_payload_is_data_or_dropped_and_harms_nobody() {
    test_within(Duration::from_secs(120), async {
        let redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, &[]).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        for (name, payload, reason) in payloads() {
            let before = match reason {
                Some(reason) => dropped(&gateway, reason).await,
                None => 0.0,
            };
            redis.publish("a", &payload).await;
            redis.publish("a", "next").await;
            let data = events.data().await;
            match reason {
                None => {
                    let sent = String::from_utf8(payload).unwrap();
                    assert_eq!(data, sent, "{name}");
                    assert_eq!(events.data().await, "next", "{name}");
                }
                Some(reason) => {
                    assert_eq!(data, "next", "{name}: dropped");
                    assert_eq!(
                        dropped(&gateway, reason).await,
                        before + 1.0,
                        "{name}: {reason}"
                    );
                }
            }
        }
        healthy(&gateway).await;
    })
    .await;
}

/// A Redis whose answer to writes is an error: what is to be kept is refused with 503, live
/// events go on, and so does everything once it is over.
#[tokio::test]
async fn a_redis_that_refuses_writes_keeps_streams_open() {
    test_within(Duration::from_secs(120), async {
        let redis = Redis::start_with(&[("--enable-debug-command", "yes")]).await;
        let other = Redis::start().await;
        let gateway = Gateway::behind(&redis, &[]).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        let other_port = other.port().to_string();
        let refusals: [(&str, &[&str], &[&str]); 3] = [
            (
                "OOM",
                &["CONFIG", "SET", "maxmemory", "1"],
                &["CONFIG", "SET", "maxmemory", "0"],
            ),
            (
                "NOPERM",
                &["ACL", "SETUSER", "default", "-fcall"],
                &["ACL", "SETUSER", "default", "+fcall"],
            ),
            (
                "READONLY",
                &["REPLICAOF", "127.0.0.1", &other_port],
                &["REPLICAOF", "NO", "ONE"],
            ),
        ];
        for (name, begin, end) in refusals {
            redis.command::<()>(begin).await;
            eventually(&format!("{name} is told to publishers"), async || {
                gateway.post("/events/a", "lost").await.0 == 503
            })
            .await;
            redis.command::<()>(end).await;
            eventually(&format!("{name} is over"), async || {
                gateway.post("/events/b", "x").await.0 == 200
            })
            .await;
            gateway.ready().await;
            gateway.keep("/events/a", name).await;
            until(&mut events, name).await;
            healthy(&gateway).await;
        }
    })
    .await;
}

/// Reads to the event with this data. A `$gap` may come before it: a Redis that was a replica has
/// lost what it had.
async fn until(events: &mut Events, data: &str) {
    while events.data().await != data {}
}

/// While Redis loads its data it answers `-LOADING` to everything.
#[tokio::test]
async fn a_redis_that_loads_is_waited_for() {
    test_within(Duration::from_secs(120), async {
        let redis = Redis::start_with(&[("--enable-debug-command", "yes")]).await;
        let gateway = Gateway::behind(&redis, &[]).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        let before = gateway.keep("/events/a", "before").await;
        assert_eq!(events.data().await, "before");
        redis
            .command::<()>(&["DEBUG", "POPULATE", "2000", "filler"])
            .await;
        // Half a second and more, told key by key.
        redis
            .command::<()>(&["CONFIG", "SET", "key-load-delay", "500"])
            .await;
        redis
            .command::<()>(&[
                "CONFIG",
                "SET",
                "loading-process-events-interval-bytes",
                "1024",
            ])
            .await;
        let mut connection = redis.connection().await;
        let loading = tokio::spawn(async move {
            redis::cmd("DEBUG")
                .arg("RELOAD")
                .exec_async(&mut connection)
                .await
        });
        while !loading.is_finished() {
            let (status, answer) = gateway.post("/events/b", "x").await;
            assert!(matches!(status, 200 | 503), "{answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        gateway.ready().await;
        eventually("events are kept again", async || {
            gateway.post("/events/b", "x").await.0 == 200
        })
        .await;
        gateway.keep("/events/a", "after").await;
        until(&mut events, "after").await;
        let mut resumed = gateway
            .events(&format!("/events/a?last_event_id={before}"))
            .await
            .opened()
            .await;
        until(&mut resumed, "after").await;
        healthy(&gateway).await;
    })
    .await;
}

/// A password that is changed, and the connections made with the old one cut: streams stay open,
/// the reason is told without the password, and the old password serves again when it is valid.
#[tokio::test]
async fn a_password_rotated_while_running_is_survived() {
    test_within(Duration::from_secs(120), async {
        let redis = Redis::start().await;
        for command in [&[
            "ACL",
            "SETUSER",
            "gateway",
            "on",
            ">first-secret",
            "~*",
            "&*",
            "+@all",
        ][..]]
        {
            redis.command::<()>(command).await;
        }
        let url = format!("redis://gateway:first-secret@127.0.0.1:{}", redis.port());
        let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        // Both are valid for a while, as it is done; then the old one is not.
        redis
            .command::<()>(&["ACL", "SETUSER", "gateway", ">second-secret"])
            .await;
        gateway.keep("/events/a", "both").await;
        assert_eq!(events.data().await, "both");
        redis
            .command::<()>(&["ACL", "SETUSER", "gateway", "<first-secret"])
            .await;
        redis
            .command::<i64>(&["CLIENT", "KILL", "USER", "gateway"])
            .await;
        eventually("it is not ready, and says why", async || {
            let (status, reasons) = gateway.admin_get("/readyz").await;
            assert!(!reasons.contains("secret"), "{reasons}");
            status == 503
        })
        .await;
        assert_eq!(gateway.metric("fanfare_connections").await, 1.0);
        redis
            .command::<()>(&["ACL", "SETUSER", "gateway", ">first-secret"])
            .await;
        gateway.ready().await;
        gateway.keep("/events/a", "again").await;
        until(&mut events, "again").await;
        healthy(&gateway).await;
        assert!(!gateway.log().iter().any(|line| line.contains("secret")));
    })
    .await;
}
