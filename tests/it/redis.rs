//! The Redis side: what is published reaches every replica, and what is subscribed is what
//! clients want.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{
    DEADLINE, Events, Gateway, Raw, Redis, eventually, eventually_within, free_port, within,
};
use futures_util::future::join_all;
use tokio::time::Instant;

#[tokio::test]
async fn one_publish_reaches_every_client_of_every_replica() {
    let redis = Redis::start().await;
    let one = Gateway::behind(&redis, &[]).await;
    let two = Gateway::behind(&redis, &[]).await;
    let mut clients = Vec::new();
    for gateway in [&one, &two, &one, &two] {
        clients.push(gateway.events("/events/orders").await.opened().await);
    }
    assert_eq!(
        redis.publish("orders", "hello").await,
        2,
        "one subscriber a replica"
    );
    one.post("/events/orders?event=n", "over http").await;
    for client in &mut clients {
        assert_eq!(client.data().await, "hello");
        let event = client.event().await;
        assert_eq!(event.event.as_deref(), Some("n"));
        assert_eq!(event.data.as_deref(), Some("over http"));
    }
}

#[tokio::test]
async fn envelopes_carry_fields_and_everything_else_is_data() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let envelope = r#"{"sse":{"event":"price","retry":5000,"data":{"sym": "X", "p": 1.10}}}"#;
    redis.publish("a", envelope).await;
    let event = events.event().await;
    assert_eq!(event.event.as_deref(), Some("price"));
    assert_eq!(event.retry, Some(5000));
    assert_eq!(event.data.as_deref(), Some(r#"{"sym":"X","p":1.10}"#));
    for data in [r#"{"data":"x"}"#, "", "[]", "äöü 🦀\u{2028}"] {
        redis.publish("a", data).await;
        assert_eq!(events.data().await, data);
    }
    let mebibyte = "0123456789abcdef".repeat(1 << 16);
    redis.publish("a", &mebibyte).await;
    assert!(events.data().await == mebibyte);
}

#[tokio::test]
async fn what_is_broken_is_dropped_and_counted_and_disturbs_nothing() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_MAX_EVENT_BYTES", "1KiB")]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    for (payload, reason) in [
        (vec![b'x'; 1025], "too_large"),
        (vec![b'x'; 4 << 20], "too_large"),
        (b"\xfe\x00".to_vec(), "not_utf8"),
        // A frame of kept events, by its first byte.
        (b"\xff\x00".to_vec(), "frame"),
        (b"\xff9e1-0 0-0 1 - 0 0 0\nx".to_vec(), "frame"),
        (b"\xff1e1-0 2-0 1 - 0 0 0\nx".to_vec(), "frame"),
        (
            b"\xff1e9999999999999-0 0-0 1 - 0 0 0\nx".to_vec(),
            "id_ahead",
        ),
        (br#"{"sse":{}}"#.to_vec(), "envelope"),
        (br#"{"sse":{"data":"x","id":"1"}}"#.to_vec(), "envelope"),
        (
            br#"{"sse":{"data":"x","event":"a\nb"}}"#.to_vec(),
            "event_name",
        ),
        (
            br#"{"sse":{"data":"x","event":"a\u0000b"}}"#.to_vec(),
            "event_name",
        ),
        (
            br#"{"sse":{"data":"x","event":"$gap"}}"#.to_vec(),
            "event_name",
        ),
        // For claims that no stream here has.
        (
            br#"{"sse":{"data":"x","to":{"role":"admin"}}}"#.to_vec(),
            "no_audience",
        ),
    ] {
        let series = format!(r#"fanfare_events_dropped_total{{reason="{reason}"}}"#);
        let before = gateway.metric(&series).await;
        redis.publish("a", &payload).await;
        eventually(reason, async || {
            gateway.metric(&series).await == before + 1.0
        })
        .await;
    }
    redis.publish("a", "the only one").await;
    assert_eq!(events.data().await, "the only one");
    let log = gateway.log().join("\n");
    assert!(log.contains("a message from Redis was dropped"), "{log}");
}

/// The promise of the first byte, as a race: an event published as soon as a client has seen
/// anything must reach it, on whichever replica and however new the channel.
#[tokio::test]
async fn what_is_published_after_the_first_byte_arrives_thousands_of_times() {
    const RACES: usize = 3000;
    const AT_ONCE: usize = 24;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let race = async |racer: usize| {
        let mut publisher = redis.connection().await;
        for round in 0..RACES / AT_ONCE {
            // New channels, shared ones, and ones that linger from the round before.
            let channel = match round % 3 {
                0 => format!("new.{racer}.{round}"),
                1 => format!("shared.{}", round / 8),
                _ => format!("again.{racer}.{}", round % 2),
            };
            let mut raw = Raw::get(gateway.data, &format!("/events/{channel}")).await;
            within("the first byte", raw.socket.readable())
                .await
                .unwrap();
            let data = format!("data: {racer}.{round}.end\n\n");
            redis::cmd("PUBLISH")
                .arg(format!("sse:{channel}"))
                .arg(format!("{racer}.{round}.end"))
                .exec_async(&mut publisher)
                .await
                .unwrap();
            raw.until(&data).await;
        }
    };
    tokio::time::timeout(DEADLINE * 4, join_all((0..AT_ONCE).map(race)))
        .await
        .expect("all races are run");
}

/// Under churn nothing is lost and nothing leaks: the oracle is Redis itself. Clients come and go
/// on both replicas at once, while the subscriber connections are killed.
#[tokio::test]
async fn redis_has_exactly_the_channels_that_clients_want() {
    let redis = Redis::start().await;
    let gateways = [
        Gateway::behind(&redis, &[]).await,
        Gateway::behind(&redis, &[]).await,
    ];
    let worker = async |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut held: Vec<(usize, Vec<String>, Events)> = Vec::new();
        for _ in 0..80 {
            if held.len() > 5 || (!held.is_empty() && random.bool()) {
                held.swap_remove(random.usize(..held.len()));
            } else {
                let replica = random.usize(..2);
                let names: Vec<_> = (0..random.usize(1..4))
                    .map(|_| format!("c{}", random.usize(..25)))
                    .collect();
                let path = format!("/events?channel={}", names.join("&channel="));
                let events = gateways[replica].events(&path).await;
                held.push((replica, names, events));
            }
        }
        held
    };
    let killer = async {
        for _ in 0..3 {
            let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            for gateway in &gateways {
                gateway.ready().await;
            }
        }
    };
    let (held, ()) = tokio::time::timeout(DEADLINE * 4, async {
        tokio::join!(join_all((0..8).map(worker)), killer)
    })
    .await
    .expect("the churn ends");
    let mut held: Vec<_> = held.into_iter().flatten().collect();
    assert!(!held.is_empty());
    // Which replicas should be subscribed to what.
    let mut wanted: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for (replica, names, _) in &held {
        for name in names {
            wanted.entry(name.clone()).or_default()[*replica] = true;
        }
    }
    let expected: Vec<_> = wanted.keys().cloned().collect();
    eventually("Redis has the wanted channels and no others", async || {
        redis.channels().await == expected
    })
    .await;
    for (name, replicas) in &wanted {
        let subscribers = replicas.iter().filter(|wants| **wants).count();
        eventually("each replica subscribes once", async || {
            let counts: Vec<(String, usize)> = redis
                .command(&["PUBSUB", "NUMSUB", &format!("sse:{name}")])
                .await;
            counts[0].1 == subscribers
        })
        .await;
    }
    // Each stream gets each of its channels' events once.
    for name in wanted.keys() {
        redis.publish(name, name).await;
    }
    for (_, mut names, mut events) in held.drain(..) {
        names.sort_unstable();
        names.dedup();
        for name in names {
            assert_eq!(events.data().await, name);
        }
    }
    eventually("nothing is left", async || {
        redis.channels().await.is_empty()
    })
    .await;
}

/// A channel that Redis refuses costs those nothing who asked for others.
#[tokio::test]
async fn a_refused_channel_is_nobody_elses_trouble() {
    let redis = Redis::start().await;
    let user = "narrow on >pass resetchannels &sse:public.* &sse:$* -@all +subscribe +unsubscribe +publish +ping";
    let mut command = vec!["ACL", "SETUSER"];
    command.extend(user.split(' '));
    let _: String = redis.command(&command).await;
    let url = format!("redis://narrow:pass@127.0.0.1:{}", redis.port());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let mut events = gateway.events("/events/public.0").await.opened().await;
    let refused = Raw::get(gateway.data, "/events?channel=secret&channel=public.1").await;
    // Asked for together with the refused one.
    let others = join_all((2..40).map(|number| {
        let path = format!("/events/public.{number}");
        let gateway = &gateway;
        async move { gateway.events(&path).await.opened().await }
    }));
    let (mut others, answer) = tokio::join!(others, async {
        let mut refused = refused;
        refused.rest().await
    });
    assert!(answer.contains("\nevent: $busy\n"), "{answer}");
    for (number, other) in others.iter_mut().enumerate() {
        let channel = format!("public.{}", number + 2);
        redis.publish(&channel, &channel).await;
        assert_eq!(other.data().await, channel);
    }
    redis.publish("public.0", "undisturbed").await;
    assert_eq!(events.data().await, "undisturbed");
    assert_eq!(gateway.metric("fanfare_redis_reconnects_total").await, 0.0);
    // When the rights change, the next who asks gets it.
    let _: String = redis
        .command(&["ACL", "SETUSER", "narrow", "&sse:secret"])
        .await;
    eventually("nobody waits for it any more", async || {
        gateway.metric("fanfare_channels").await == 39.0
    })
    .await;
    gateway.events("/events/secret").await.opened().await;
}

#[tokio::test]
async fn streams_survive_a_restart_of_redis() {
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_HEARTBEAT", "500ms")]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    redis.kill().await;
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    let (_, body) = gateway.admin_get("/readyz").await;
    assert!(body.contains("redis: "), "{body}");
    let heartbeats = gateway.metric("fanfare_heartbeats_total").await;
    eventually("heartbeats go on", async || {
        gateway.metric("fanfare_heartbeats_total").await > heartbeats
    })
    .await;
    // Publishing says that it cannot.
    let (status, _) = gateway.post("/events/a", "x").await;
    assert_eq!(status, 503);
    redis.restart().await;
    gateway.ready().await;
    eventually("the channel is subscribed again", async || {
        redis.channels().await == ["a"]
    })
    .await;
    redis.publish("a", "back").await;
    // Nothing was persisted, so nobody knows what may have been published.
    assert_eq!(events.gap().await["reason"], "rewound");
    assert_eq!(events.data().await, "back");
    assert_eq!(gateway.post("/events/a", "over http").await.0, 200);
    assert_eq!(events.data().await, "over http");
    assert!(gateway.metric("fanfare_redis_reconnects_total").await >= 1.0);
    assert_eq!(
        gateway.metric("fanfare_connections_opened_total").await,
        1.0
    );
}

#[tokio::test]
async fn a_stream_requested_while_redis_is_away_waits_for_it() {
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    redis.kill().await;
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    let mut raw = Raw::get(gateway.data, "/events/a").await;
    redis.restart().await;
    // It opens by itself: no retry-and-close, no second request.
    raw.until("transfer-encoding: chunked").await;
    raw.until("retry: ").await;
    redis.publish("a", "worth the wait").await;
    raw.until("data: worth the wait\n\n").await;
}

#[tokio::test]
async fn a_stream_that_waits_in_vain_is_told_to_come_back() {
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    redis.kill().await;
    let asked = Instant::now();
    let answer = Raw::get(gateway.data, "/events/a").await.rest().await;
    assert!(
        asked.elapsed() >= Duration::from_secs(4),
        "{:?}",
        asked.elapsed()
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\nevent: $busy\n"), "{answer}");
    // A client that does not wait for the answer leaves nothing behind.
    drop(Raw::get(gateway.data, "/events/b").await);
    eventually("no interest is left", async || {
        gateway.metric("fanfare_channels").await == 0.0
    })
    .await;
    let rejected = r#"fanfare_connections_rejected_total{reason="bus_unavailable"}"#;
    assert_eq!(gateway.metric(rejected).await, 1.0);
}

/// A stopped Redis keeps its connections open and answers nothing: only the probe can tell.
#[tokio::test]
async fn a_connection_that_only_looks_alive_is_replaced() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    redis.signal("STOP");
    eventually("readiness turns red", async || !gateway.is_ready().await).await;
    redis.signal("CONT");
    gateway.ready().await;
    eventually("the channel is subscribed again", async || {
        redis.channels().await == ["a"]
    })
    .await;
    // The replaced connection is gone: one subscriber, one delivery.
    eventually("one subscriber is left", async || {
        let counts: Vec<(String, usize)> = redis.command(&["PUBSUB", "NUMSUB", "sse:a"]).await;
        counts[0].1 == 1
    })
    .await;
    redis.publish("a", "back").await;
    assert_eq!(events.data().await, "back");
}

#[tokio::test]
async fn killed_subscriber_connections_come_back_every_time() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    for round in 0..20 {
        let reconnects = gateway.metric("fanfare_redis_reconnects_total").await;
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        eventually("the connection is replaced", async || {
            gateway.metric("fanfare_redis_reconnects_total").await > reconnects
                && redis.channels().await == ["a"]
        })
        .await;
        if round > 0 {
            // The live event of the last round: others may have followed it.
            assert_eq!(events.gap().await["reason"], "lost");
        }
        let data = format!("round {round}");
        redis.publish("a", &data).await;
        assert_eq!(events.data().await, data);
    }
    gateway.ready().await;
}

#[tokio::test]
async fn a_gateway_starts_without_redis_and_becomes_ready_when_it_comes() {
    let mut redis = Redis::start().await;
    redis.kill().await;
    let gateway = Gateway::start_unready(&[("FANFARE_REDIS_URL", &redis.url())]).await;
    assert!(!gateway.is_ready().await);
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
    redis.restart().await;
    gateway.ready().await;
    gateway.events("/events/a").await.opened().await;
}

#[tokio::test]
async fn a_prefix_keeps_channels_apart() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_PREFIX", "app:")]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let connection = &mut redis.connection().await;
    for (channel, data) in [("sse:a", "other"), ("a", "bare"), ("app:a", "ours")] {
        let publish = redis::cmd("PUBLISH")
            .arg(channel)
            .arg(data)
            .exec_async(connection)
            .await;
        publish.unwrap();
    }
    assert_eq!(events.data().await, "ours");
}

/// Exactly the rights that docs/protocol.md lists, and nothing in the server's log of refusals.
#[tokio::test]
async fn the_documented_rights_suffice() {
    let redis = Redis::start().await;
    let documented = include_str!("../../docs/protocol.md")
        .lines()
        .find(|line| line.starts_with("ACL SETUSER gateway "))
        .expect("docs/protocol.md lists a gateway's rights");
    for line in [
        documented,
        "ACL SETUSER publisher on >password resetchannels &sse:* -@all +publish",
    ] {
        let command: Vec<_> = line.split_whitespace().collect();
        let _: String = redis.command(&command).await;
    }
    let url = |user| format!("redis://{user}:password@127.0.0.1:{}", redis.port());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url("gateway"))]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    for data in ["one", "two"] {
        let (status, body) = gateway.post("/events/a", data).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(events.data().await, data);
    }
    let publisher = redis::Client::open(url("publisher")).unwrap();
    let mut publisher = publisher.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("PUBLISH")
        .arg("sse:a")
        .arg("three")
        .exec_async(&mut publisher)
        .await
        .unwrap();
    assert_eq!(events.data().await, "three");
    drop(events);
    eventually("the channel is given up", async || {
        redis.channels().await.is_empty()
    })
    .await;
    gateway.ready().await;
    let refusals: Vec<redis::Value> = redis.command(&["ACL", "LOG"]).await;
    // CLIENT SETINFO only names the library, and may be refused.
    let refusals = format!("{refusals:?}");
    assert!(
        ![
            "subscribe",
            "publish",
            "ping",
            "unwatch",
            "hello",
            "fcall",
            "get",
            "x"
        ]
        .iter()
        .any(|command| refusals.contains(command)),
        "{refusals}"
    );
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let redis = Redis::start().await;
    let url = format!("redis+unix://{}", redis.socket().display());
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway.post("/events/a", "by post").await;
    assert_eq!(events.data().await, "by post");
    redis.publish("a", "by redis").await;
    assert_eq!(events.data().await, "by redis");
}

/// An event would be lost on each node that is not asked, so it must not look well.
#[tokio::test]
async fn a_node_of_a_cluster_is_not_ready() {
    // The default, ten thousand above its port, may be another test's.
    let bus = free_port().to_string();
    let cluster = [("--cluster-enabled", "yes"), ("--cluster-port", &bus)];
    let redis = Redis::start_with(&cluster).await;
    let gateway = Gateway::start_unready(&[("FANFARE_REDIS_URL", &redis.url())]).await;
    let not_ready = async |gateway: &Gateway, reason: &str| {
        eventually(reason, async || {
            let (status, body) = gateway.admin_get("/readyz").await;
            status == 503 && body.contains(reason)
        })
        .await;
    };
    not_ready(&gateway, "redis-cluster://").await;
    // Nor where its user may not ask.
    let rights = ["ACL", "SETUSER", "default", "-info"];
    let _: String = redis.command(&rights).await;
    let gateway = Gateway::start_unready(&[("FANFARE_REDIS_URL", &redis.url())]).await;
    not_ready(&gateway, "redis-cluster://").await;
}

#[tokio::test]
async fn a_redis_without_functions_is_named_as_such() {
    let redis = Redis::start_with(&[
        ("--rename-command", "FUNCTION"),
        ("", "--rename-command"),
        ("FCALL", ""),
    ])
    .await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await;
    redis.publish("a", "live").await;
    assert_eq!(events.data().await, "live");
    let (status, answer) = gateway.post("/events/a", "kept").await;
    assert_eq!(status, 501, "{answer}");
    assert!(answer.contains("no functions (Redis 7.0"), "{answer}");
    let (_, body) = gateway.admin_get("/readyz").await;
    assert!(
        body.contains("redis functions: events cannot be kept"),
        "{body}"
    );
    assert_eq!(gateway.metric("fanfare_redis_keeps_events").await, 0.0);
}

#[tokio::test]
async fn a_redis_that_may_evict_is_told() {
    let redis = Redis::start_with(&[("--maxmemory", "100mb")]).await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let set = async |policy: &str| {
        let _: String = redis
            .command(&["CONFIG", "SET", "maxmemory-policy", policy])
            .await;
    };
    assert_eq!(gateway.metric("fanfare_redis_may_evict").await, 0.0);
    set("volatile-lru").await;
    let other = Gateway::behind(&redis, &[]).await;
    eventually("a warning", async || {
        let (status, body) = other.admin_get("/readyz").await;
        status == 200 && body.contains("redis memory: Redis may evict histories")
    })
    .await;
    assert_eq!(other.metric("fanfare_redis_may_evict").await, 1.0);
    // A change is noticed, both ways.
    eventually_within(DEADLINE * 3, "the policy changed", async || {
        gateway.metric("fanfare_redis_may_evict").await == 1.0
    })
    .await;
}
