//! Kept events on their way in: published, numbered, delivered once and in order, whatever
//! becomes of the subscription.

use std::time::Duration;

use crate::support::{Events, Gateway, Redis, eventually, within};

/// The log line that says that events cannot be kept.
const CANNOT_KEEP: &str = "events cannot be kept; live events go on";

fn id_of(event: &sse_stream::Sse) -> String {
    event.id.clone().expect("a kept event has an id")
}

/// `1-2` as numbers, to be compared.
fn order(id: &str) -> (u64, u64) {
    let (ms, n) = id.split_once('-').unwrap();
    (ms.parse().unwrap(), n.parse().unwrap())
}

async fn both() -> (Redis, [Gateway; 2]) {
    let redis = Redis::start().await;
    let gateways = [
        Gateway::behind(&redis, &[]).await,
        Gateway::start(&[]).await,
    ];
    (redis, gateways)
}

#[tokio::test]
async fn events_are_kept_unless_told_otherwise() {
    let (_redis, gateways) = both().await;
    for gateway in gateways {
        let mut events = gateway.events("/events/a").await.opened().await;
        let first = gateway.keep("/events/a?event=n&retry=5000", "one").await;
        let second = gateway.keep("/events/a?keep=true", "two").await;
        assert!(order(&second) > order(&first));
        let event = events.event().await;
        assert_eq!(event.event.as_deref(), Some("n"));
        assert_eq!(
            (event.data.as_deref(), event.retry),
            (Some("one"), Some(5000))
        );
        assert_eq!(id_of(&event), first);
        assert_eq!(id_of(&events.event().await), second);
        let live = gateway.post("/events/a?keep=false", "three").await;
        assert_eq!(live, (200, r#"{"id":null}"#.to_owned()));
        let event = events.event().await;
        assert_eq!((event.data.as_deref(), event.id), (Some("three"), None));
        let received = |kind| format!(r#"fanfare_events_received_total{{kind="{kind}"}}"#);
        assert_eq!(gateway.metric(&received("kept")).await, 2.0);
        assert_eq!(gateway.metric(&received("live")).await, 1.0);
        // Whatever the limits of the data are.
        let mebibyte = "0123456789abcdef".repeat(1 << 16);
        gateway.keep("/events/a", mebibyte.clone()).await;
        assert!(events.data().await == mebibyte);
    }
}

#[tokio::test]
async fn a_key_stands_for_one_event() {
    let (_redis, gateways) = both().await;
    for gateway in gateways {
        let mut events = gateway.events("/events/a").await.opened().await;
        let with_key = async |path: &str, keys: &[&str]| {
            let mut request = reqwest::Client::new().post(gateway.url(path)).body("x");
            for key in keys {
                request = request.header("Idempotency-Key", *key);
            }
            let response = within("an answer", request.send()).await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        };
        let first = with_key("/events/a?key=k", &[]).await;
        assert_eq!(first.0, 200);
        assert_eq!(with_key("/events/a", &["k"]).await, first);
        assert_eq!(with_key("/events/a?key=k", &["k"]).await, first);
        let other = with_key("/events/a", &["other"]).await;
        assert_ne!(other, first);
        for (path, keys) in [
            ("/events/a?key=k", vec!["other"]),
            ("/events/a", vec!["k", "other"]),
            ("/events/a", vec![""]),
            ("/events/a?keep=false", vec!["k"]),
        ] {
            assert_eq!(with_key(path, &keys).await.0, 400, "{path} {keys:?}");
        }
        for (_, answer) in [first, other] {
            assert!(answer.contains(&id_of(&events.event().await)));
        }
    }
}

/// What a publisher of its own sends by the function is what clients get.
#[tokio::test]
async fn the_function_and_http_are_the_same() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a?channel=b").await.opened().await;
    let id = redis.keep("a", "one", &["event", "n", "retry", "7"]).await;
    let event = events.event().await;
    // Raised to the least that is delivered.
    assert_eq!((id_of(&event), event.retry), (id, Some(100)));
    let id = gateway.keep("/events/a", "two").await;
    assert_eq!(id_of(&events.event().await), id);
    // A restricted event reaches nobody yet, and leaves no hole.
    redis.keep("a", "secret", &["to", r#"{"role":"x"}"#]).await;
    let id = redis.keep("a", "three", &[]).await;
    assert_eq!(id_of(&events.event().await), id);
    assert_eq!(gateway.metric("fanfare_history_reads_total").await, 0.0);
    // A rule that only the function knows is told to the publisher.
    let _: i64 = redis
        .command(&["HSET", "sse:$config", "max_event_bytes", "5"])
        .await;
    eventually("the function has read it", async || {
        gateway.post("/events/b?keep=true", "123456").await.0 == 400
    })
    .await;
    let (_, answer) = gateway.post("/events/b", "123456").await;
    assert!(answer.contains("at most 5 bytes"), "{answer}");
}

/// Without the right to load the library, or to call it.
#[tokio::test]
async fn where_events_cannot_be_kept_live_ones_go_on() {
    let redis = Redis::start().await;
    let rules = "on >pass resetchannels &sse:* -@all +subscribe +unsubscribe +publish +ping";
    let mut command = vec!["ACL", "SETUSER", "live"];
    command.extend(rules.split(' '));
    let _: String = redis.command(&command).await;
    let url = format!("redis://live:pass@127.0.0.1:{}", redis.port());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    // There is no history to begin with.
    let newest = gateway.events("/events/a?history=5").await;
    let mut newest = newest.opened().await;
    assert_eq!(gateway.post("/events/a?keep=false", "live").await.0, 200);
    assert_eq!(events.data().await, "live");
    assert_eq!(newest.data().await, "live");
    let (status, answer) = gateway.post("/events/a", "x").await;
    assert_eq!(status, 503);
    assert!(answer.contains("keep=false"), "{answer}");
    // Kept by others they are live events here.
    let other = Gateway::behind(&redis, &[]).await;
    other.keep("/events/a", "kept").await;
    let event = events.event().await;
    assert_eq!((event.data.as_deref(), event.id), (Some("kept"), None));
    // It is told once, even when the connection is lost again and again.
    for _ in 0..3 {
        let lost = gateway.metric("fanfare_redis_reconnects_total").await;
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        eventually("the connection is replaced", async || {
            gateway.metric("fanfare_redis_reconnects_total").await > lost
                && gateway.is_ready().await
        })
        .await;
    }
    let log = gateway.log();
    let told: Vec<_> = log.iter().filter(|l| l.contains(CANNOT_KEEP)).collect();
    assert_eq!(told.len(), 1, "{log:#?}");
    assert!(told[0].contains("lacks the right"), "{told:?}");
    assert_eq!(events.gap().await["reason"], "lost");
}

/// `OOM`: reads and live events go on, and so does the connection.
#[tokio::test]
async fn where_redis_refuses_to_write_the_gateway_stays_ready() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway.keep("/events/a", "before").await;
    assert_eq!(events.data().await, "before");
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(gateway.post("/events/a", "x").await.0, 503);
    let probes = gateway.metric("fanfare_redis_probe_seconds_count").await;
    eventually("probes go on", async || {
        gateway.metric("fanfare_redis_probe_seconds_count").await >= probes + 2.0
    })
    .await;
    assert!(gateway.is_ready().await);
    assert_eq!(gateway.metric("fanfare_redis_reconnects_total").await, 0.0);
    redis.publish("a", "live").await;
    assert_eq!(events.data().await, "live");
    // Even a gateway that starts now serves.
    let late = Gateway::behind(&redis, &[]).await;
    let mut late_events = late.events("/events/a").await.opened().await;
    redis.publish("a", "for both").await;
    assert_eq!(late_events.data().await, "for both");
    assert_eq!(events.data().await, "for both");
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let id = gateway.keep("/events/a", "after").await;
    assert_eq!(id_of(&events.event().await), id);
    let log = gateway.log().join("\n");
    assert!(log.contains(CANNOT_KEEP), "{log}");
}

/// `NOREPLICAS`, as of a primary that was just promoted: a connection that is lost meanwhile costs
/// no event and is no reason for a gap, since histories can be read all the same.
#[tokio::test]
async fn a_reconnection_while_redis_refuses_to_write_leaves_no_gap() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a?channel=b").await.opened().await;
    let before = redis.keep("a", "before", &[]).await;
    assert_eq!(next_kept(&mut events).await, (before, "before".into()));
    // One transaction: nothing is subscribed when the event is published.
    let mut connection = redis.connection().await;
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]);
    pipe.cmd("FCALL")
        .arg(&["fanfare_publish", "1", "sse:b", "missed"]);
    pipe.cmd("CONFIG")
        .arg(&["SET", "min-replicas-to-write", "1"]);
    let (_, missed, _): (i64, String, String) = pipe.query_async(&mut connection).await.unwrap();
    assert_eq!(next_kept(&mut events).await, (missed, "missed".into()));
    gateway.ready().await;
    assert_eq!(gateway.post("/events/a", "x").await.0, 503);
    redis.publish("a", "live").await;
    assert_eq!(events.data().await, "live");
    let _: String = redis
        .command(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;
    let after = redis.keep("a", "after", &[]).await;
    assert_eq!(next_kept(&mut events).await, (after, "after".into()));
    assert_eq!(gateway.metric("fanfare_redis_reconnects_total").await, 1.0);
}

/// The name of Redis leads elsewhere, and the old one lives on: what was connected to it while
/// the gateway went over is not used again.
#[tokio::test]
async fn commands_follow_the_subscription_to_another_redis() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let proxy = crate::support::proxy::Proxy::to(&old).await;
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &proxy.url())]).await;
    let gateway = &gateway;
    let is_over = &std::cell::Cell::new(false);
    // All connections of the pool are in use all the time.
    let load = futures_util::future::join_all((0..24).map(async |_| {
        while !is_over.get() {
            gateway.post("/events/a", "x").await;
        }
    }));
    let go_over = async {
        eventually("events are published", async || {
            old.command::<i64>(&["XLEN", "sse:a"]).await > 100
        })
        .await;
        proxy.point(&new);
        let _: i64 = old.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        eventually("the gateway goes over", async || {
            let probes = ["PUBSUB", "CHANNELS", "sse:$probe.*"];
            !new.command::<Vec<String>>(&probes).await.is_empty()
        })
        .await;
        gateway.ready().await;
        is_over.set(true);
    };
    tokio::join!(load, go_over);
    for _ in 0..32 {
        gateway.keep("/events/b", "x").await;
    }
    assert_eq!(old.command::<i64>(&["EXISTS", "sse:b"]).await, 0);
    assert_eq!(new.command::<i64>(&["XLEN", "sse:b"]).await, 32);
}

/// With exactly the rights that the documentation names.
#[tokio::test]
async fn a_gateway_with_the_documented_rights_uses_its_connections_again() {
    let redis = Redis::start().await;
    let page = include_str!("../../docs/protocol.md");
    let rights = page
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER gateway "))
        .unwrap();
    let mut command = vec!["ACL", "SETUSER", "gateway"];
    command.extend(rights.split(' '));
    let _: String = redis.command(&command).await;
    let url = format!("redis://gateway:password@127.0.0.1:{}", redis.port());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let connections = async || {
        let stats: String = redis.command(&["INFO", "stats"]).await;
        let count = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = connections().await;
    for _ in 0..30 {
        gateway.keep("/events/a", "x").await;
    }
    // The second look is a connection, too.
    let made = connections().await - before;
    assert!(made <= 3, "{made}");
    let log: Vec<redis::Value> = redis.command(&["ACL", "LOG"]).await;
    assert!(log.is_empty(), "{log:?}");
}

/// Such a channel has no history that anybody could read; its live events and the other channels
/// go on.
#[tokio::test]
async fn a_key_of_another_type_harms_its_own_channel_alone() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let first = redis.keep("b", "first", &[]).await;
    let _: String = redis.command(&["SET", "sse:a", "text"]).await;
    let mut events = gateway
        .events("/events?channel=a&channel=b")
        .await
        .opened()
        .await;
    let (status, answer) = gateway.post("/events/a", "x").await;
    assert_eq!(status, 409);
    assert!(
        answer.contains("WRONGTYPE") && !answer.contains("sse:"),
        "{answer}"
    );
    redis.publish("a", "live").await;
    assert_eq!(events.data().await, "live");
    let second = redis.keep("b", "second", &[]).await;
    assert_eq!(
        next_kept(&mut events).await,
        (second.clone(), "second".into())
    );
    // A gateway that has not seen it, so that it has to read.
    let other = Gateway::behind(&redis, &[]).await;
    let path = format!("/events?channel=a&channel=b&last_event_id={first}");
    let mut resumed = other.events(&path).await;
    let gap = resumed.gap().await;
    assert_eq!(
        (&gap["channel"], &gap["reason"]),
        (&"a".into(), &"expired".into())
    );
    assert_eq!(next_kept(&mut resumed).await, (second, "second".into()));
    let mut newest = other
        .events("/events?channel=a&channel=b&history=1")
        .await
        .opened()
        .await;
    assert_eq!(newest.data().await, "second");
    let log = other.log().join("\n");
    assert!(
        log.contains("no history (WRONGTYPE)") && log.contains(r#""channel":"a""#),
        "{log}"
    );
}

/// Redis says why it takes nothing now; its own words stay in the log.
#[tokio::test]
async fn a_publisher_is_told_why_redis_takes_nothing() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let (status, answer) = gateway.post("/events/a", "x").await;
    assert_eq!(status, 503);
    assert!(
        answer.contains("(OOM)") && !answer.contains("maxmemory"),
        "{answer}"
    );
    for query in ["event=%ff", "key=%ff", "to=%7b%ff%7d"] {
        let (status, answer) = gateway.post(&format!("/events/a?{query}"), "x").await;
        assert_eq!(status, 400, "{query}");
        assert!(answer.contains("UTF-8"), "{answer}");
    }
}

/// Whoever may PUBLISH to a channel of Redis may send what looks like a kept event.
#[tokio::test]
async fn a_forged_frame_from_the_future_hides_nothing() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway
        .events("/events?channel=a&channel=b")
        .await
        .opened()
        .await;
    let first = redis.keep("a", "first", &[]).await;
    assert_eq!(
        next_kept(&mut events).await,
        (first.clone(), "first".into())
    );
    let (ms, _) = order(&first);
    for ahead in [10_000, 500_000] {
        let forged = format!("1e{}-0 {first} {ms} - 0 0 0\nforged", ms + ahead);
        redis
            .publish("a", [&[0xff], forged.as_bytes()].concat())
            .await;
    }
    for (channel, data) in [("a", "second"), ("b", "third"), ("a", "fourth")] {
        let id = redis.keep(channel, data, &[]).await;
        assert_eq!(next_kept(&mut events).await, (id, data.into()));
    }
    let dropped = r#"fanfare_events_dropped_total{reason="id_ahead"}"#;
    assert_eq!(gateway.metric(dropped).await, 2.0);
}

/// Redis is restarted without its data, again and again: what a heartbeat tells after the gap is
/// nothing from before it.
#[tokio::test]
async fn ids_on_a_connection_increase_when_redis_begins_anew() {
    let mut redis = Redis::start().await;
    let variables = [
        ("FANFARE_MAX_REPLICATION_LAG", "1s"),
        ("FANFARE_HEARTBEAT", "100ms"),
    ];
    let gateway = Gateway::behind(&redis, &variables).await;
    let _other = gateway.events("/events/a").await.opened().await;
    let mut events = gateway.events("/events/c").await;
    let mut last = (0, 0);
    for round in 0..3 {
        let own = redis.keep("c", "x", &[]).await;
        let own = order(&own);
        let (mut is_vouched, mut is_anew) = (false, false);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !is_anew {
            assert!(tokio::time::Instant::now() < deadline, "round {round}");
            if is_vouched {
                redis.kill().await;
                redis.restart().await;
                gateway.ready().await;
                is_vouched = false;
            }
            // So that positions move.
            let _: redis::RedisResult<String> = {
                let mut connection = redis.connection().await;
                redis::cmd("FCALL")
                    .arg(&["fanfare_publish", "1", "sse:a", "x"])
                    .query_async(&mut connection)
                    .await
            };
            let next = tokio::time::timeout(Duration::from_millis(20), events.block()).await;
            let Ok(block) = next else {
                continue;
            };
            let block = block.unwrap();
            if let Some(id) = &block.id {
                let position = order(id.rsplit('.').next().unwrap());
                assert!(position > last, "{block:?} after {last:?}, round {round}");
                last = position;
                let is_heartbeat = block.event.as_deref() == Some("$cursor");
                is_vouched = is_heartbeat && position > own;
                is_anew = block.event.as_deref() == Some("$gap");
            }
        }
    }
}

#[tokio::test]
async fn functions_that_are_flushed_come_back() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let before = gateway.keep("/events/a", "before").await;
    let _: String = redis.command(&["FUNCTION", "FLUSH"]).await;
    // The first who finds it missing has it loaded.
    eventually("it is loaded again", async || {
        gateway.post("/events/a", "after").await.0 == 200
    })
    .await;
    assert_eq!(id_of(&events.event().await), before);
    assert!(order(&id_of(&events.event().await)) > order(&before));
    // Nobody has to publish for it.
    let _: String = redis.command(&["FUNCTION", "FLUSH"]).await;
    eventually("a probe finds it missing", async || {
        let list: Vec<redis::Value> = redis.command(&["FUNCTION", "LIST"]).await;
        !list.is_empty()
    })
    .await;
    assert_eq!(gateway.metric("fanfare_redis_reconnects_total").await, 0.0);
}

/// A primary that becomes a replica keeps its connections open: the gateway has to leave it.
#[tokio::test]
async fn a_replica_is_left() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let _: String = redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    eventually("and says why", async || {
        gateway.admin_get("/readyz").await.1.contains("replica")
    })
    .await;
    let _: String = redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    gateway.ready().await;
    let id = gateway.keep("/events/a", "back").await;
    assert_eq!(id_of(&events.event().await), id);
}

/// A difference between what is set here and what Redis says is told once.
#[tokio::test]
async fn other_settings_in_redis_are_told() {
    let redis = Redis::start().await;
    let _first = Gateway::behind(&redis, &[("FANFARE_HISTORY_LENGTH", "5")]).await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let log = gateway.log();
    let told = log
        .iter()
        .filter(|line| line.contains("FANFARE_HISTORY_LENGTH is 1000 here"));
    assert_eq!(told.count(), 1, "{log:#?}");
}

/// No stream is admitted before a probe has proven the connection.
#[tokio::test]
async fn streams_wait_for_the_first_probe() {
    let redis = Redis::start().await;
    // Everything but the probe's way back.
    let _: String = redis
        .command(&["ACL", "SETUSER", "default", "resetchannels", "&sse:a"])
        .await;
    let gateway = Gateway::start_unready(&[("FANFARE_REDIS_URL", &redis.url())]).await;
    let mut raw = crate::support::Raw::get(gateway.data, "/events/a").await;
    let early = tokio::time::timeout(Duration::from_secs(2), raw.socket.readable()).await;
    assert!(early.is_err(), "it was answered");
    let _: String = redis.command(&["ACL", "SETUSER", "default", "&*"]).await;
    raw.until("retry: ").await;
    gateway.ready().await;
}

async fn next_kept(events: &mut Events) -> (String, String) {
    let event = events.event().await;
    assert_eq!(event.event, None, "{event:?}");
    (id_of(&event), event.data.unwrap())
}

/// Subscriptions are lost again and again while two channels are published to: a client of both
/// gets everything, once, in order.
#[tokio::test]
async fn what_a_lost_subscription_missed_is_read_and_delivered_in_order() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway
        .events("/events?channel=a&channel=b")
        .await
        .opened()
        .await;
    let mut publisher = redis.connection().await;
    let publish = async {
        let mut published = Vec::new();
        for number in 0..3000 {
            let channel = ["sse:a", "sse:b"][number % 3 % 2];
            let data = format!("{channel} {number}");
            let id: String = redis::cmd("FCALL")
                .arg(&["fanfare_publish", "1", channel, &data])
                .query_async(&mut publisher)
                .await
                .unwrap();
            published.push((id, data));
            if number % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        published
    };
    let kill = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
    };
    let receive = async {
        let mut received = Vec::new();
        while received.len() < 3000 {
            received.push(next_kept(&mut events).await);
        }
        received
    };
    let (published, received, ()) = tokio::join!(publish, receive, kill);
    assert!(published == received, "{received:?}");
    assert!(gateway.metric("fanfare_redis_reconnects_total").await >= 2.0);
    assert!(gateway.metric("fanfare_backfilled_events_total").await > 0.0);
    let dropped = r#"fanfare_events_dropped_total{reason="id_ahead"}"#;
    assert_eq!(gateway.metric(dropped).await, 0.0);
}

/// What was trimmed meanwhile is told as lost, and what is left follows.
#[tokio::test]
async fn what_is_no_longer_there_is_told() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a?channel=b").await.opened().await;
    let seen = redis.keep("a", "seen", &[]).await;
    assert_eq!(id_of(&events.event().await), seen);
    let lost = gateway.metric("fanfare_redis_reconnects_total").await;
    // One transaction: nothing is subscribed while the events are published.
    let mut connection = redis.connection().await;
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]);
    for number in 0..5 {
        pipe.cmd("FCALL").arg(&["fanfare_publish", "1", "sse:a"]);
        pipe.arg(number).arg(&["history", "2"]);
    }
    let answers: Vec<redis::Value> = pipe.query_async(&mut connection).await.unwrap();
    let ids: Vec<String> = answers
        .into_iter()
        .skip(1)
        .map(|id| redis::from_redis_value(id).unwrap())
        .collect();
    let gap = events.event().await;
    assert_eq!(gap.event.as_deref(), Some("$gap"), "{gap:?}");
    let told: serde_json::Value = serde_json::from_str(gap.data.as_deref().unwrap()).unwrap();
    assert_eq!(
        (&told["channel"], &told["reason"]),
        (&"a".into(), &"lost".into())
    );
    assert_eq!(told["oldest"], ids[3].as_str());
    assert!(order(&id_of(&gap)) < order(&ids[3]));
    for (id, data) in [(&ids[3], "3"), (&ids[4], "4")] {
        assert_eq!(next_kept(&mut events).await, (id.clone(), data.to_owned()));
    }
    assert_eq!(
        gateway.metric("fanfare_redis_reconnects_total").await,
        lost + 1.0
    );
    assert_eq!(gateway.metric("fanfare_backfilled_events_total").await, 2.0);
}

/// A frame that the subscription never brought is missed as soon as the next one comes.
#[tokio::test]
async fn a_hole_is_filled_before_the_event_that_shows_it() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let first = redis.keep("a", "0", &[]).await;
    assert_eq!(next_kept(&mut events).await, (first.clone(), "0".into()));
    // Published by a user whose messages go nowhere: added to the history as the function does.
    let (ms, n) = order(&first);
    let missed = format!("{ms}-{}", n + 1);
    let frame = format!("1e{missed} {first} {ms} - 0 0 0\nmissed");
    let frame = [&b"\xff"[..], frame.as_bytes()].concat();
    let added: String = redis::cmd("XADD")
        .arg(&["sse:a", &missed, "f"])
        .arg(frame)
        .query_async(&mut redis.connection().await)
        .await
        .unwrap();
    assert_eq!(added, missed);
    let last = redis.keep("a", "last", &[]).await;
    assert_eq!(next_kept(&mut events).await, (missed, "missed".into()));
    assert_eq!(next_kept(&mut events).await, (last, "last".into()));
    // One more asks whether an id so far ahead was issued: the function has jumped over the entry.
    assert_eq!(gateway.metric("fanfare_history_reads_total").await, 2.0);
    assert_eq!(gateway.metric("fanfare_backfilled_events_total").await, 1.0);
    // A history that begins anew does not continue what was seen.
    let _: i64 = redis.command(&["DEL", "sse:a"]).await;
    let anew = redis.keep("a", "anew", &[]).await;
    assert_eq!(events.gap().await["reason"], "rewound");
    assert_eq!(next_kept(&mut events).await, (anew, "anew".into()));
}

/// A Redis that comes back with everything it had: nothing is told as missing.
#[tokio::test]
async fn a_restart_that_lost_nothing_leaves_no_gap() {
    let mut redis =
        Redis::start_with(&[("--appendonly", "yes"), ("--appendfsync", "always")]).await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a?channel=b").await.opened().await;
    let before = redis.keep("a", "before", &[]).await;
    assert_eq!(
        next_kept(&mut events).await,
        (before.clone(), "before".into())
    );
    redis.kill().await;
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    redis.restart().await;
    let missed = redis.keep("b", "missed", &[]).await;
    // Ids jump ahead, because others may have been issued before.
    assert!(order(&missed).0 >= order(&before).0 + 60_000);
    assert_eq!(next_kept(&mut events).await, (missed, "missed".into()));
    gateway.ready().await;
    let after = redis.keep("a", "after", &[]).await;
    assert_eq!(next_kept(&mut events).await, (after, "after".into()));
}

/// A stream of the channels `c0`, `c1`, …
fn path_of(channels: usize) -> String {
    let names = (0..channels).map(|number| format!("channel=c{number}"));
    format!("/events?{}", names.collect::<Vec<_>>().join("&"))
}

/// Publishes so many events to each of so many channels while no replica is subscribed: one
/// transaction ends the subscriptions first. Returns the ids.
async fn publish_unheard(
    redis: &Redis,
    channels: usize,
    events: usize,
    data: impl Fn(usize) -> String,
) -> Vec<String> {
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut connection = redis::Client::open(redis.url())
        .unwrap()
        .get_multiplexed_async_connection_with_config(&patient)
        .await
        .unwrap();
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]);
    for number in 0..channels * events {
        pipe.cmd("FCALL").arg(&["fanfare_publish", "1"]);
        pipe.arg(format!("sse:c{}", number % channels))
            .arg(data(number));
    }
    let answers: Vec<redis::Value> = pipe.query_async(&mut connection).await.unwrap();
    let ids = answers.into_iter().skip(1);
    ids.map(|id| redis::from_redis_value(id).unwrap()).collect()
}

/// Redis closes a subscriber whose answers exceed its output buffer limit. However much was
/// missed, a replica asks for less than that at once: every stream gets every event, in order.
#[tokio::test]
async fn a_recovery_stays_below_the_output_buffer_limit_of_redis() {
    // Channels, events of each, bytes, the largest event, Redis' limit.
    for (channels, events, bytes, max_event, limit) in [
        (16, 1000, 2500, "1MiB", None),
        (16, 3, 1_000_000, "1MiB", None),
        (6, 100, 100_000, "4MiB", None),
        (3, 20, 1_000_000, "8MiB", None),
        (3, 2, 8_000_000, "8MiB", None),
        (4, 1000, 2500, "1MiB", Some("pubsub 1mb 1mb 10")),
        (4, 10, 500_000, "1MiB", Some("pubsub 1mb 1mb 10")),
    ] {
        let case = format!("{channels} x {events} x {bytes}, {max_event}, {limit:?}");
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("redis.log");
        let redis = Redis::start_with(&[("--logfile", log.to_str().unwrap())]).await;
        let variables = [
            ("FANFARE_CLIENT_BUFFER_BYTES", "256MiB"),
            ("FANFARE_MAX_EVENT_BYTES", max_event),
        ];
        let gateway = Gateway::behind(&redis, &variables).await;
        let mut stream = gateway.events(&path_of(channels)).await.opened().await;
        if let Some(limit) = limit {
            let set = ["CONFIG", "SET", "client-output-buffer-limit", limit];
            let _: String = redis.command(&set).await;
        }
        let padding = "x".repeat(bytes - 8);
        let data = |number: usize| format!("{number:08}{padding}");
        let ids = publish_unheard(&redis, channels, events, data).await;
        for (number, id) in ids.iter().enumerate() {
            let (received, text) = next_kept(&mut stream).await;
            assert_eq!(
                (&received, &text[..8]),
                (id, &*format!("{number:08}")),
                "{case}"
            );
        }
        gateway.ready().await;
        if limit.is_none() {
            let told = std::fs::read_to_string(&log).unwrap();
            assert!(!told.contains("output buffer limits"), "{case}: {told}");
        }
        // The next event arrives by itself.
        let id = redis.keep("c0", "next", &[]).await;
        assert_eq!(next_kept(&mut stream).await, (id, "next".into()));
    }
}

/// Redis closes the connection without a word: the limit that may be the cause is named.
#[tokio::test]
async fn a_connection_closed_while_histories_are_read_names_the_limit() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_MAX_EVENT_BYTES", "2MiB")]).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    let set = async |limit: &str| {
        let set = ["CONFIG", "SET", "client-output-buffer-limit", limit];
        let _: String = redis.command(&set).await;
    };
    // Neither the message nor an answer with it fits.
    set("pubsub 256kb 256kb 10").await;
    let large = "x".repeat(2_000_000);
    redis.keep("a", &large, &[]).await;
    let limit = "client-output-buffer-limit for pubsub";
    eventually("it is named", async || {
        let (status, told) = gateway.admin_get("/readyz").await;
        status == 503 && told.contains(limit) && gateway.log().join("\n").contains(limit)
    })
    .await;
    set("pubsub 32mb 8mb 60").await;
    assert_eq!(next_kept(&mut stream).await.1.len(), large.len());
    gateway.ready().await;
}

/// A recovery that exceeds what a replica collects at once is delivered in parts: everything, in
/// order, without a `$gap`.
#[tokio::test]
async fn a_recovery_of_any_size_is_complete() {
    const CHANNELS: usize = 48;
    let redis = Redis::start().await;
    let variables = [
        ("FANFARE_CLIENT_BUFFER_BYTES", "256MiB"),
        ("FANFARE_MAX_EVENT_BYTES", "2MiB"),
    ];
    let gateway = Gateway::behind(&redis, &variables).await;
    let mut events = gateway.events(&path_of(CHANNELS)).await.opened().await;
    let large = "0123456789abcdef".repeat(2 << 16);
    let ids = publish_unheard(&redis, CHANNELS, 1, |_| large.clone()).await;
    for id in ids {
        let (received, data) = next_kept(&mut events).await;
        assert!(received == id && data == large, "{received} for {id}");
    }
    // The next event of each channel is no hole.
    let reads = gateway.metric("fanfare_history_reads_total").await;
    for number in 0..CHANNELS {
        let channel = format!("c{number}");
        let id = redis.keep(&channel, &channel, &[]).await;
        assert_eq!(next_kept(&mut events).await, (id, channel));
    }
    assert_eq!(gateway.metric("fanfare_history_reads_total").await, reads);
}

/// Thousands of channels are read again within moments, and probes go on meanwhile.
#[tokio::test]
async fn many_channels_are_backfilled_quickly() {
    const STREAMS: usize = 40;
    const CHANNELS_EACH: usize = 60;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let open = |stream: usize| {
        let names: Vec<_> = (0..CHANNELS_EACH)
            .map(|number| format!("channel=c{stream}.{number}"))
            .collect();
        let path = format!("/events?{}", names.join("&"));
        let gateway = &gateway;
        async move { gateway.events(&path).await.opened().await }
    };
    let mut streams = futures_util::future::join_all((0..STREAMS).map(open)).await;
    let mut connection = redis.connection().await;
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]);
    for stream in 0..STREAMS {
        for number in 0..CHANNELS_EACH {
            let key = format!("sse:c{stream}.{number}");
            pipe.cmd("FCALL").arg(&["fanfare_publish", "1", &key, "x"]);
        }
    }
    let killed = tokio::time::Instant::now();
    let _: Vec<redis::Value> = pipe.query_async(&mut connection).await.unwrap();
    for events in &mut streams {
        let mut last = String::from("0-0");
        for _ in 0..CHANNELS_EACH {
            let (id, _) = next_kept(events).await;
            assert!(order(&id) > order(&last));
            last = id;
        }
    }
    assert!(
        killed.elapsed() < Duration::from_secs(8),
        "{:?}",
        killed.elapsed()
    );
    gateway.ready().await;
    let missed = gateway.metric("fanfare_backfilled_events_total").await;
    assert_eq!(missed, (STREAMS * CHANNELS_EACH) as f64);
    assert_eq!(gateway.metric("fanfare_redis_reconnects_total").await, 1.0);
}

/// A library that goes away for good: whoever had kept events is told, and live ones go on.
#[tokio::test]
async fn a_library_that_is_taken_away_is_told_to_clients() {
    let redis = Redis::start().await;
    let user = async |rules: &str| {
        let mut command = vec!["ACL", "SETUSER", "gateway"];
        command.extend(rules.split_whitespace());
        let _: String = redis.command(&command).await;
    };
    user("on >pass ~sse:* &sse:* +@all").await;
    let url = format!("redis://gateway:pass@127.0.0.1:{}", redis.port());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let mut events = gateway.events("/events/a?channel=b").await.opened().await;
    let id = gateway.keep("/events/a", "kept").await;
    assert_eq!(next_kept(&mut events).await, (id, "kept".into()));
    user("-function|load").await;
    let _: String = redis.command(&["FUNCTION", "FLUSH"]).await;
    assert_eq!(gateway.post("/events/a", "x").await.0, 503);
    let gap = events.gap().await;
    assert_eq!(
        (&gap["channel"], &gap["reason"]),
        (&"a".into(), &"lost".into())
    );
    gateway.ready().await;
    redis.publish("a", "live").await;
    assert_eq!(events.data().await, "live");
    // A fresh stream has no cursor to come back with.
    let mut fresh = gateway.events("/events/c").await;
    assert!(fresh.block().await.unwrap().retry.is_some());
    redis.publish("c", "live").await;
    assert_eq!(fresh.data().await, "live");
}
