//! What happens during a stream: events for some sessions only, the end of a token, revocation.

use crate::support::client::{parse_cursor, parse_id};
use crate::support::tokens::{SECRET, now, token};
use crate::support::{Events, Gateway, Redis, eventually, within};
use serde_json::{Value, json};

/// Anybody reads everything; tokens say who reads.
const OPEN: [(&str, &str); 2] = [
    ("FANFARE_JWT_SECRET", SECRET),
    ("FANFARE_PUBLIC_CHANNELS", "*"),
];

async fn behind(redis: &Redis, variables: &[(&str, &str)]) -> Gateway {
    Gateway::behind(redis, &[&OPEN, variables].concat()).await
}

/// Opens a stream.
async fn open(gateway: &Gateway, path: &str, token: Option<&str>) -> Events {
    let mut request = reqwest::Client::new().get(gateway.url(path));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = within("the stream's head", request.send()).await.unwrap();
    Events::of(response)
}

/// Data of the events up to `end`, which is one of them, and the id of that.
async fn until(events: &mut Events, end: &str) -> (Vec<String>, String) {
    let mut seen = Vec::new();
    loop {
        let event = events.event().await;
        assert_eq!(event.event, None, "{event:?}");
        let data = event.data.unwrap();
        if data == end {
            return (seen, event.id.unwrap_or_default());
        }
        seen.push(data);
    }
}

/// Waits for `$close` and the end of the stream.
async fn closed(events: &mut Events, reason: &str) {
    let event = events.event().await;
    assert_eq!(event.event.as_deref(), Some("$close"), "{event:?}");
    let said: Value = serde_json::from_str(&event.data.unwrap()).unwrap();
    assert_eq!(said, json!({ "reason": reason }));
    assert!(event.id.is_none());
    let after = events.block().await;
    assert!(after.is_none(), "{after:?}");
}

async fn post(gateway: &Gateway, path: &str, token: Option<&str>, body: &Value) -> (u16, String) {
    let mut request = reqwest::Client::new()
        .post(gateway.url(path))
        .header("content-type", "application/json")
        .body(body.to_string());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = within("an answer", request.send()).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Status of a stream asked for.
async fn asked(gateway: &Gateway, token: &str) -> u16 {
    let request = reqwest::Client::new().get(gateway.url("/events/a"));
    let answer = within("an answer", request.bearer_auth(token).send()).await;
    answer.unwrap().status().as_u16()
}

/// Who reads in the tests of `to`, and which of [`EVENTS`] are theirs.
fn readers() -> Vec<(Option<String>, Vec<&'static str>)> {
    vec![
        (None, vec!["all"]),
        (Some(token(json!({ "sub": "eve" }))), vec!["all"]),
        (
            Some(token(json!({ "sub": "ann", "role": "admin" }))),
            vec!["all", "admin"],
        ),
        (
            Some(token(
                json!({ "sub": "bob", "groups": ["red", "blue"], "level": 3 }),
            )),
            vec!["all", "red", "level"],
        ),
        (
            Some(token(
                json!({ "sub": "cid", "role": ["admin", "x"], "groups": "red" }),
            )),
            vec!["all", "admin", "red", "both"],
        ),
    ]
}

const EVENTS: [(&str, &str); 7] = [
    ("all", ""),
    ("admin", r#"{"role":"admin"}"#),
    ("red", r#"{ "groups": "red" }"#),
    ("level", r#"{"level":3.0}"#),
    ("both", r#"{"groups":"red","role":"admin"}"#),
    ("nobody", r#"{"sub":"zoe"}"#),
    ("all", "{}"),
];

/// How often each of the events is published: with two hundred of them batches are of all kinds.
const ROUNDS: usize = 30;

fn expected(meant: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        for (number, (name, _)) in EVENTS.iter().enumerate() {
            if meant.contains(name) {
                all.push(format!("{name} {round} {number}"));
            }
        }
    }
    all
}

/// Live on one channel, on several, over HTTP/2; then in replay from the tail, from history, and
/// among the newest.
#[tokio::test]
async fn an_event_reaches_the_sessions_it_is_for_and_nobody_else() {
    let redis = Redis::start().await;
    let first = behind(&redis, &[]).await;
    let second = behind(&redis, &[("FANFARE_SHARDS", "1")]).await;
    let mut streams = Vec::new();
    for (token, meant) in readers() {
        for (gateway, path) in [
            (&first, "/events/a"),
            (&second, "/events/a"),
            (&second, "/events?channel=a&channel=b"),
        ] {
            let events = open(gateway, path, token.as_deref()).await.opened().await;
            streams.push((events, meant.clone()));
        }
        let client = reqwest::Client::builder().http2_prior_knowledge();
        let mut request = client.build().unwrap().get(first.url("/events/a"));
        if let Some(token) = &token {
            request = request.bearer_auth(token);
        }
        let response = within("the stream's head", request.send()).await.unwrap();
        streams.push((Events::of(response).opened().await, meant));
    }
    let begin = redis.keep("a", "begin", &[]).await;
    let mut connection = redis.connection().await;
    let mut pipe = redis::pipe();
    for round in 0..ROUNDS {
        for (number, (name, to)) in EVENTS.iter().enumerate() {
            let data = format!("{name} {round} {number}");
            // Live ones among kept ones.
            if round % 3 == 2 {
                let mut sse = json!({ "data": data });
                if !to.is_empty() {
                    sse["to"] = serde_json::from_str(to).unwrap();
                }
                let payload = json!({ "sse": sse }).to_string();
                pipe.cmd("PUBLISH").arg("sse:a").arg(payload).ignore();
            } else {
                let command = pipe.cmd("FCALL").arg("fanfare_publish").arg(1).arg("sse:a");
                command.arg(data);
                if !to.is_empty() {
                    command.arg("to").arg(*to);
                }
                command.ignore();
            }
        }
    }
    let () = pipe.query_async(&mut connection).await.unwrap();
    redis.keep("a", "end", &[]).await;
    for (events, meant) in &mut streams {
        until(events, "begin").await;
        let (seen, _) = until(events, "end").await;
        assert_eq!(seen, expected(meant));
    }

    // What was kept comes again: from the tail, from history, and as the newest.
    let third = behind(&redis, &[]).await;
    for (token, meant) in readers() {
        let is_kept = |data: &String| data.split(' ').nth(1).unwrap().parse().unwrap_or(0) % 3 != 2;
        let kept: Vec<_> = expected(&meant).into_iter().filter(is_kept).collect();
        for gateway in [&first, &second, &third] {
            for query in [format!("last_event_id={begin}"), "history=1000".to_owned()] {
                for channels in ["channel=a", "channel=b&channel=a"] {
                    let path = format!("/events?{channels}&{query}");
                    let mut events = open(gateway, &path, token.as_deref()).await.opened().await;
                    if query.starts_with("history") {
                        until(&mut events, "begin").await;
                    }
                    let (seen, _) = until(&mut events, "end").await;
                    assert_eq!(seen, kept, "{path}");
                }
            }
        }
    }
    let series = r#"fanfare_events_dropped_total{reason="no_audience"}"#;
    assert!(second.metric(series).await >= ROUNDS as f64);
}

#[tokio::test]
async fn the_embedded_bus_and_http_publishers_restrict_events_alike() {
    let gateway = Gateway::start(&OPEN).await;
    let publisher = token(json!({ "fanfare": { "publish": ["*"] } }));
    let publish = async |query: &str, data: &str| {
        let (status, answer) = post(
            &gateway,
            &format!("/events/a?{query}"),
            Some(&publisher),
            &json!(data),
        )
        .await;
        assert_eq!(status, 200, "{answer}");
    };
    let admin = token(json!({ "role": "admin" }));
    let mut meant = open(&gateway, "/events/a", Some(&admin))
        .await
        .opened()
        .await;
    let mut other = open(&gateway, "/events/a", None).await.opened().await;
    for keep in ["true", "false"] {
        publish(&format!("keep={keep}&to={{\"role\":\"admin\"}}"), "secret").await;
    }
    publish("", "end").await;
    let secret = json!("secret").to_string();
    let end = json!("end").to_string();
    assert_eq!(until(&mut meant, &end).await.0, [&*secret, &*secret]);
    assert!(until(&mut other, &end).await.0.is_empty());
    let mut again = open(&gateway, "/events/a?history=9", None).await;
    // Not even that there was an event before is told.
    let first = again.block().await.unwrap();
    let (_, position) = parse_cursor(&first.id.unwrap()).unwrap();
    let (seen, id) = until(&mut again, &end).await;
    assert!(seen.is_empty());
    let end_id = parse_id(&id).unwrap();
    assert!(position.unwrap() < end_id && position.unwrap().0 + 1 >= end_id.0);
    let mut again = open(&gateway, "/events/a?history=9", Some(&admin)).await;
    assert_eq!(until(&mut again, &end).await.0, [&*secret]);
    for (to, rule) in [
        ("[]", "to: must be a JSON object"),
        ("{\"n\":1e99}", "to: must not contain a number"),
        (
            &format!("{{\"n\":\"{}\"}}", "x".repeat(16 << 10)),
            "to: must have at most 16384 bytes",
        ),
    ] {
        let path = format!("/events/a?to={to}");
        let (status, answer) = post(&gateway, &path, Some(&publisher), &json!(1)).await;
        assert!(status == 400 && answer.contains(rule), "{answer}");
    }
}

/// Its cursor moves past them, names none of them, and resumes without a gap.
#[tokio::test]
async fn a_client_learns_nothing_of_what_it_may_not_have() {
    let redis = Redis::start().await;
    let variables = [
        ("FANFARE_HEARTBEAT", "500ms"),
        ("FANFARE_MAX_REPLICATION_LAG", "500ms"),
    ];
    let first = behind(&redis, &variables).await;
    let second = behind(&redis, &variables).await;
    let mut other = open(&first, "/events/a", None).await.opened().await;
    let open_id = redis.keep("a", "open", &[]).await;
    until(&mut other, "open").await;
    let to = ["to", r#"{"role":"admin"}"#];
    let mut restricted = Vec::new();
    for _ in 0..3 {
        restricted.push(redis.keep("a", "secret", &to).await);
    }
    let last = parse_id(&restricted[2]).unwrap();
    let cursor = loop {
        let block = other.block().await.expect("the stream goes on");
        assert_eq!(block.event.as_deref(), Some("$cursor"), "{block:?}");
        let Some(id) = block.id else { continue };
        let (event, position) = parse_cursor(&id).unwrap();
        assert_eq!(Some(event), parse_id(&open_id), "{id}");
        if position > Some(last) {
            break id;
        }
    };
    redis.keep("a", "secret", &to).await;
    redis.keep("a", "end", &[]).await;
    assert!(until(&mut other, "end").await.0.is_empty());
    // A client that sees all of them, for comparison.
    let admin = token(json!({ "role": "admin" }));
    for gateway in [&first, &second] {
        for (cursor, secrets) in [(&cursor, 1), (&open_id, 4)] {
            let path = format!("/events/a?last_event_id={cursor}");
            let mut again = open(gateway, &path, None).await.opened().await;
            assert!(until(&mut again, "end").await.0.is_empty());
            let mut again = open(gateway, &path, Some(&admin)).await.opened().await;
            assert_eq!(until(&mut again, "end").await.0.len(), secrets);
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let gateway = Gateway::start(&[&OPEN[..], &[("FANFARE_HEARTBEAT", "1s")]].concat()).await;
    // The leeway is added to it.
    let short = token(json!({ "sub": "alice", "exp": now() + 1 }));
    let mut expiring = open(&gateway, "/events/a", Some(&short))
        .await
        .opened()
        .await;
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let request = client.build().unwrap().get(gateway.url("/events/a"));
    let response = within("the stream's head", request.bearer_auth(&short).send()).await;
    let mut over_http2 = Events::of(response.unwrap()).opened().await;
    let long = token(json!({ "sub": "alice" }));
    let mut staying = open(&gateway, "/events/a", Some(&long))
        .await
        .opened()
        .await;
    closed(&mut expiring, "expired").await;
    closed(&mut over_http2, "expired").await;
    let series = r#"fanfare_connections_closed_total{reason="expired"}"#;
    eventually("they are counted", async || {
        gateway.metric(series).await == 2.0
    })
    .await;
    eventually("the token is refused", async || {
        asked(&gateway, &short).await == 401
    })
    .await;
    let publisher = token(json!({ "fanfare": { "publish": ["a"] } }));
    post(&gateway, "/events/a", Some(&publisher), &json!(7)).await;
    assert_eq!(staying.data().await, "7");
}

#[tokio::test]
async fn who_is_revoked_is_cut_off_everywhere_and_kept_out() {
    let mut redis = Redis::start().await;
    let first = behind(&redis, &[]).await;
    let second = behind(&redis, &[]).await;
    let alice = token(json!({ "sub": "alice", "jti": "1", "fanfare": { "publish": ["*"] } }));
    let alices = token(json!({ "sub": "alice", "jti": "2" }));
    let bob = token(json!({ "sub": "bob", "jti": "3" }));
    let admin = token(json!({ "sub": "root", "fanfare": { "admin": true } }));
    let mut streams = Vec::new();
    for gateway in [&first, &second] {
        for token in [&alice, &alices, &bob] {
            let path = "/events?channel=a&channel=b";
            streams.push(open(gateway, path, Some(token)).await.opened().await);
        }
    }
    // One of its tokens, by the Redis command.
    let exp: u64 = redis
        .command(&[
            "FCALL",
            "fanfare_revoke",
            "1",
            "sse:$revocations",
            "jti",
            "2",
        ])
        .await;
    assert!(exp.abs_diff(now() + 30 * 24 * 60 * 60) < 60, "{exp}");
    closed(&mut streams[1], "revoked").await;
    closed(&mut streams[4], "revoked").await;
    assert_eq!(asked(&first, &alices).await, 401);
    assert_eq!(asked(&second, &alices).await, 401);
    assert_eq!(asked(&first, &alice).await, 200);

    // The subject, by who may.
    let body = json!({ "sub": "alice", "exp": now() + 900 });
    for (token, expected) in [(None, 401), (Some(&bob), 403), (Some(&admin), 200)] {
        let token = token.map(String::as_str);
        let (status, answer) = post(&first, "/revocations", token, &body).await;
        assert_eq!(status, expected, "{answer}");
    }
    closed(&mut streams[0], "revoked").await;
    closed(&mut streams[3], "revoked").await;
    for gateway in [&first, &second] {
        let (status, answer) = post(gateway, "/events/a", Some(&alice), &json!(1)).await;
        assert!(
            status == 401 && answer.contains("was revoked"),
            "{status} {answer}"
        );
        let (status, _) = post(gateway, "/tickets", Some(&alice), &json!(1)).await;
        assert_eq!(status, 401);
    }
    let series = r#"fanfare_connections_closed_total{reason="revoked"}"#;
    eventually("they are counted", async || {
        second.metric(series).await == 2.0
    })
    .await;

    // Who comes later knows of it, and who was there goes on.
    let third = behind(&redis, &[]).await;
    assert_eq!(asked(&third, &alice).await, 401);
    assert_eq!(asked(&third, &bob).await, 200);
    redis.publish("a", "goes on").await;
    for number in [2, 5] {
        assert_eq!(streams[number].data().await, "goes on");
    }
    // A Redis that has forgotten lets nobody in.
    redis.kill().await;
    redis.restart().await;
    second.ready().await;
    assert_eq!(asked(&second, &alice).await, 401);
}

#[tokio::test]
async fn what_was_revoked_while_redis_was_away_is_read() {
    let redis = Redis::start().await;
    let gateway = behind(&redis, &[]).await;
    let alice = token(json!({ "sub": "alice" }));
    let mut events = open(&gateway, "/events/a", Some(&alice))
        .await
        .opened()
        .await;
    let until_ms = ((now() + 600) * 1000).to_string();
    // As if its message had been lost; beside it what is no revocation.
    let add = ["ZADD", "sse:$revocations", &until_ms, "sub:alice"];
    let _: i64 = redis.command(&add).await;
    let _: i64 = redis
        .command(&["ZADD", "sse:$revocations", "inf", "alice"])
        .await;
    assert_eq!(asked(&gateway, &alice).await, 200);
    let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    closed(&mut events, "revoked").await;
    assert_eq!(asked(&gateway, &alice).await, 401);
}

#[tokio::test]
async fn a_revocation_ends() {
    for bus in ["memory:", "redis"] {
        let redis = Redis::start().await;
        let url = redis.url();
        let url = if bus == "redis" { &url } else { bus };
        let variables = [&OPEN[..], &[("FANFARE_REDIS_URL", url)]].concat();
        let gateway = Gateway::start(&variables).await;
        let alice = token(json!({ "sub": "alice" }));
        let admin = token(json!({ "fanfare": { "admin": true } }));
        let mut events = open(&gateway, "/events/a", Some(&alice))
            .await
            .opened()
            .await;
        let body = json!({ "sub": "alice", "ttl": 1 });
        let (status, answer) = post(&gateway, "/revocations", Some(&admin), &body).await;
        assert_eq!(status, 200, "{answer}");
        closed(&mut events, "revoked").await;
        eventually("it is over", async || asked(&gateway, &alice).await == 200).await;
    }
}

#[tokio::test]
async fn what_breaks_a_rule_revokes_nobody() {
    let redis = Redis::start().await;
    let gateway = behind(&redis, &[]).await;
    let mut connection = redis.connection().await;
    let long = "x".repeat(1025);
    for (key, arguments, told) in [
        ("sse:$other", &["sub", "a"][..], "key"),
        ("sse:$revocations", &[], "arguments"),
        ("sse:$revocations", &["iss", "a"], "arguments"),
        ("sse:$revocations", &["sub"], "sub"),
        ("sse:$revocations", &["sub", ""], "sub"),
        ("sse:$revocations", &["jti", &long], "jti"),
        ("sse:$revocations", &["sub", "a", "exp"], "exp"),
        ("sse:$revocations", &["sub", "a", "exp", "1000"], "exp"),
        ("sse:$revocations", &["sub", "a", "ttl", "0"], "ttl"),
        ("sse:$revocations", &["sub", "a", "ttl", "1.5"], "ttl"),
        ("sse:$revocations", &["sub", "a", "for", "1"], "arguments"),
        (
            "sse:$revocations",
            &["sub", "a", "ttl", "1", "x"],
            "arguments",
        ),
    ] {
        let mut command = redis::cmd("FCALL");
        command.arg("fanfare_revoke").arg(1).arg(key).arg(arguments);
        let refused = command.query_async::<i64>(&mut connection).await;
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains(&format!("fanfare_revoke: {told}: ")),
            "{arguments:?}: {error}"
        );
    }
    let admin = token(json!({ "fanfare": { "admin": true } }));
    for body in [
        json!({}),
        json!({ "sub": 1 }),
        json!({ "sub": "a", "ttl": 0 }),
        json!([]),
        json!(["a", null, null, 60]),
        json!("sub"),
    ] {
        let (status, answer) = post(&gateway, "/revocations", Some(&admin), &body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(!answer.contains("struct"), "{answer}");
    }
    let stored: i64 = redis.command(&["EXISTS", "sse:$revocations"]).await;
    assert_eq!(stored, 0);
    // The later end counts, and the key lasts as long as the longest.
    for ttl in ["100", "900", "50"] {
        let revoke = [
            "FCALL",
            "fanfare_revoke",
            "1",
            "sse:$revocations",
            "sub",
            "a",
        ];
        let _: i64 = redis.command(&[&revoke[..], &["ttl", ttl]].concat()).await;
    }
    let until: f64 = redis
        .command(&["ZSCORE", "sse:$revocations", "sub:a"])
        .await;
    let expires: f64 = redis.command(&["PEXPIRETIME", "sse:$revocations"]).await;
    // With the leeway that tokens have.
    assert_eq!(until + 5000.0, expires);
    assert!(
        (until / 1000.0 - now() as f64 - 900.0).abs() < 60.0,
        "{until}"
    );
}

/// The rights of who revokes, and a gateway that lacks its own.
#[tokio::test]
async fn revocations_need_their_rights_and_a_gateway_without_says_so() {
    const REVOKER: &str = "+fcall +time +zremrangebyscore +zcard +zscore +zadd +pexpireat +publish \
                           ~sse:$revocations &sse:$control";
    let redis = Redis::start().await;
    let gateway = behind(&redis, &[]).await;
    let user = async |name: &str, rules: &str| {
        let mut command = vec!["ACL", "SETUSER", name, "reset", "on", ">pass"];
        command.extend(rules.split_whitespace());
        let _: String = redis.command(&command).await;
        format!("redis://{name}:pass@127.0.0.1:{}", redis.port())
    };
    let revoke = async |url: &str, sub: &str| {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd("FCALL");
        command.arg(&["fanfare_revoke", "1", "sse:$revocations", "sub", sub]);
        command.query_async::<i64>(&mut connection).await
    };
    let url = user("revoker", REVOKER).await;
    revoke(&url, "alice").await.unwrap();
    let alice = token(json!({ "sub": "alice" }));
    eventually("alice is kept out", async || {
        asked(&gateway, &alice).await == 401
    })
    .await;
    for right in REVOKER
        .split_whitespace()
        .filter(|right| *right != "+zscore")
    {
        let url = user("other", &REVOKER.replace(right, "")).await;
        assert!(revoke(&url, "bob").await.is_err(), "{right}");
    }
    let bob = token(json!({ "sub": "bob" }));
    assert_eq!(asked(&gateway, &bob).await, 200);

    let url = user("gateway", "+@all -zrange ~* &*").await;
    let variables = [&OPEN[..], &[("FANFARE_REDIS_URL", &url)]].concat();
    let blind = Gateway::start(&variables).await;
    let log = blind.log().join("\n");
    assert!(log.contains("revocations cannot be read"), "{log}");
    let mut events = open(&blind, "/events/a", None).await.opened().await;
    redis.publish("a", "all the same").await;
    assert_eq!(events.data().await, "all the same");
}
