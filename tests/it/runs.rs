//! Channels that end: who is told, who comes back, who is refused.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::tokens::{SECRET, granting};
use crate::support::{Events, Gateway, Raw, Redis, within};

/// A gateway on either bus. The Redis behind it lives as long.
async fn on_both(variables: &[(&str, &str)]) -> [(Option<Redis>, Gateway); 2] {
    let redis = Redis::start().await;
    let behind = Gateway::behind(&redis, variables).await;
    let embedded = Gateway::start(variables).await;
    [(Some(redis), behind), (None, embedded)]
}

/// All that a stream carries up to its end, for a client that comes back with `cursor`.
async fn whole(gateway: &Gateway, path: &str, cursor: Option<&str>) -> String {
    let cursor = cursor.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{cursor}\r\n");
    Raw::send(gateway.data, &request).await.rest().await
}

/// The answer to a client that comes back with `cursor`: its head.
async fn comes_back(gateway: &Gateway, path: &str, cursor: &str) -> reqwest::Response {
    let request = reqwest::Client::new().get(gateway.url(path));
    let answer = request.header("last-event-id", cursor).send();
    within("an answer", answer).await.unwrap()
}

async fn is_over(gateway: &Gateway, path: &str, cursor: &str, reason: &str) {
    let answer = comes_back(gateway, path, cursor).await;
    assert_eq!(answer.status(), 204, "{cursor}");
    assert_eq!(answer.headers()["fanfare-end"], reason);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.text().await.unwrap(), "");
}

fn end(channel: &str, reason: &str) -> String {
    format!("event: $end\ndata: {{\"channel\":\"{channel}\",\"reason\":\"{reason}\"}}\n\n")
}

const LAST_CHUNK: &str = "0\r\n\r\n";

#[tokio::test]
async fn a_run_ends_for_those_who_watch_and_for_those_who_come_back() {
    for (_redis, gateway) in on_both(&[]).await {
        let path = "/events/run.1";
        let mut watching = Raw::get(gateway.data, path).await;
        watching.until("\n\n").await;
        let first = gateway.keep(path, "one").await;
        let last = gateway
            .keep("/events/run.1?end=done&event=last", "two")
            .await;
        let rest = watching.rest().await;
        let told = format!("id: {last}\nevent: last\ndata: two\n\n\r\n");
        let (_, after) = rest.split_once(&told).unwrap_or_else(|| panic!("{rest}"));
        let (_, after) = after.split_once("\r\n").unwrap();
        assert_eq!(after, format!("{}\r\n{LAST_CHUNK}", end("run.1", "done")));

        is_over(&gateway, path, &last, "done").await;
        let (ms, _) = last.split_once('-').unwrap();
        let later = format!("{first}.{}-0", ms.parse::<u64>().unwrap() + 86_400_000);
        let unknown = comes_back(&gateway, path, &later).await;
        assert_eq!(unknown.status(), 200, "it was never issued");

        let rest = whole(&gateway, path, Some(&first)).await;
        assert!(
            !rest.contains("data: one") && rest.contains(&told),
            "{rest}"
        );
        assert!(rest.ends_with(&format!("{}\r\n{LAST_CHUNK}", end("run.1", "done"))));
        let all = whole(&gateway, "/events/run.1?history=10", None).await;
        assert!(all.contains("data: one") && all.contains(&told), "{all}");
        assert!(all.ends_with(&format!("{}\r\n{LAST_CHUNK}", end("run.1", "done"))));
        assert!(!all.contains("$gap"));

        // What means nothing here is told of it, and of the end.
        let lost = whole(&gateway, path, Some("5-0")).await;
        assert!(
            lost.contains("$gap") && lost.contains("data: two"),
            "{lost}"
        );
        assert!(lost.ends_with(&format!("{}\r\n{LAST_CHUNK}", end("run.1", "done"))));
        let riddle = whole(&gateway, path, Some("riddle")).await;
        assert!(riddle.contains("unknown_id"), "{riddle}");
        let tail = format!("id: {last}\n{}\r\n{LAST_CHUNK}", end("run.1", "done"));
        assert!(riddle.ends_with(&tail), "{riddle}");

        // A new stream asks for what comes; it learns of the end when it comes back.
        let mut fresh = Events::open(&gateway.url(path)).await;
        let cursor = fresh.block().await.unwrap().id.unwrap();
        is_over(&gateway, path, &cursor, "done").await;
        let closed = r#"fanfare_connections_closed_total{reason="ended"}"#;
        assert!(gateway.metric(closed).await >= 5.0);
        assert!(gateway.metric("fanfare_ended_answers_total").await >= 2.0);
    }
}

#[tokio::test]
async fn an_end_without_an_event_has_a_cursor_of_its_own() {
    for (_redis, gateway) in on_both(&[]).await {
        let path = "/events/run.2";
        let first = gateway.keep(path, "one").await;
        let mut watching = Raw::get(gateway.data, path).await;
        watching.until("\n\n").await;
        let mut comments = Raw::get(gateway.data, "/events/run.2?control=comment").await;
        comments.until("\n\n").await;
        let last = gateway.keep("/events/run.2?end=stopped", "").await;
        let told = format!("id: {last}\n{}", end("run.2", "stopped"));
        let rest = watching.rest().await;
        assert!(rest.ends_with(&format!("{told}\r\n{LAST_CHUNK}")), "{rest}");
        assert!(!rest.contains("data: \n"));
        let comment = format!(
            ": $end {{\"channel\":\"run.2\",\"reason\":\"stopped\"}}\nid: {last}\n\n\r\n{LAST_CHUNK}"
        );
        let rest = comments.rest().await;
        assert!(rest.ends_with(&comment), "{rest}");
        is_over(&gateway, path, &last, "stopped").await;
        let rest = whole(&gateway, path, Some(&first)).await;
        assert!(rest.ends_with(&format!("{told}\r\n{LAST_CHUNK}")), "{rest}");
        assert!(!rest.contains("$gap"), "{rest}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_until_all_its_channels_have_ended() {
    for (_redis, gateway) in on_both(&[]).await {
        let path = "/events?channel=run.a&channel=run.b";
        let first = gateway.keep("/events/run.b", "before").await;
        let mut watching = Raw::get(gateway.data, path).await;
        watching.until("\n\n").await;
        gateway.keep("/events/run.a?end=error", "a").await;
        let told = watching.until(&end("run.a", "error")).await;
        assert!(told.contains("data: a\n"), "{told}");
        // Nothing follows an end.
        gateway.post("/events/run.a?keep=false", "too late").await;
        gateway.post("/events/run.b?keep=false", "in time").await;
        let live = watching.until("data: in time\n\n").await;
        assert!(!live.contains("too late"), "{live}");
        let last = gateway.keep("/events/run.b?end=done", "b").await;
        let rest = watching.rest().await;
        assert!(rest.contains(&format!("id: {last}\ndata: b\n\n")), "{rest}");
        assert!(rest.ends_with(&format!("{}\r\n{LAST_CHUNK}", end("run.b", "done"))));
        assert!(
            !rest.contains("id: $end") && !rest.contains("run.a"),
            "{rest}"
        );
        // Of several reasons the gravest.
        is_over(&gateway, path, &last, "error").await;
        is_over(&gateway, "/events/run.b", &last, "done").await;
        let rest = whole(&gateway, path, Some(&first)).await;
        assert!(rest.contains(&end("run.a", "error")) && rest.contains(&end("run.b", "done")));
        // Both in one write.
        let mut both = Raw::get(gateway.data, "/events?channel=run.c&channel=run.d").await;
        both.until("\n\n").await;
        tokio::join!(
            gateway.keep("/events/run.c?end=done", ""),
            gateway.keep("/events/run.d?end=done", "")
        );
        let rest = both.rest().await;
        assert_eq!(rest.matches("event: $end").count(), 2, "{rest}");
        assert_eq!(rest.matches("id: ").count(), 1, "{rest}");
    }
}

#[tokio::test]
async fn over_http2_the_body_ends_in_order() {
    for (_redis, gateway) in on_both(&[]).await {
        let client = reqwest::Client::builder().http2_prior_knowledge();
        let client = client.build().unwrap();
        let answer = client.get(gateway.url("/events/run.h")).send();
        let mut events = Events::of(within("a head", answer).await.unwrap())
            .opened()
            .await;
        let last = gateway.keep("/events/run.h?end=done", "x").await;
        assert_eq!(events.event().await.data.as_deref(), Some("x"));
        let end = events.block().await.unwrap();
        assert_eq!((end.event.as_deref(), end.id), (Some("$end"), None));
        assert!(events.block().await.is_none());
        let answer = client.get(gateway.url("/events/run.h"));
        let answer = answer.header("last-event-id", &last).send();
        assert_eq!(within("an answer", answer).await.unwrap().status(), 204);
    }
}

#[tokio::test]
async fn nothing_is_published_after_an_end() {
    for (redis, gateway) in on_both(&[]).await {
        let last = gateway.keep("/events/run.3?end=error&key=k", "x").await;
        for query in ["", "?end=done", "?key=other"] {
            let (status, text) = gateway.post(&format!("/events/run.3{query}"), "y").await;
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(status, 409, "{text}");
            assert_eq!(problem["reason"], "ended");
            assert_eq!(problem["detail"], "the channel has ended: error");
        }
        // A repetition of the end itself, as of any event with a key.
        assert_eq!(
            gateway.keep("/events/run.3?end=error&key=k", "x").await,
            last
        );
        for (query, field) in [
            ("?end=riddle", "end"),
            ("?end=lost", "end"),
            ("?end=done&keep=false", "end"),
        ] {
            let (status, text) = gateway.post(&format!("/events/run.4{query}"), "y").await;
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, &problem["field"]), (400, &json!(field)), "{text}");
        }
        let Some(redis) = redis else { continue };
        let state: String = redis.command(&["GET", "sse:$state"]).await;
        let publish = async |options: &[&str]| {
            let call = ["FCALL", "fanfare_publish", "1", "sse:run.3", "y"];
            redis
                .try_command::<String>(&[&call, options].concat())
                .await
        };
        let refused = publish(&["end", "done", "key", "another"])
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some("ENDED"));
        assert!(refused.to_string().contains("the channel has ended: error"));
        let broken = publish(&["end", "lost"]).await.unwrap_err();
        assert!(
            broken
                .to_string()
                .contains("end: must be done, error or stopped")
        );
        // No id is issued and no key is set for what is refused.
        assert_eq!(redis.command::<String>(&["GET", "sse:$state"]).await, state);
        let keys: Vec<String> = redis.command(&["KEYS", "sse:$key.run.3/*"]).await;
        assert_eq!(keys, ["sse:$key.run.3/k"]);
        // Expiry forgets an end.
        redis.command::<i64>(&["DEL", "sse:run.3"]).await;
        gateway.keep("/events/run.3", "again").await;
    }
}

/// What is for some sessions ends for all.
#[tokio::test]
async fn who_may_not_have_the_last_event_is_told_of_the_end() {
    let gateway = Gateway::start(&[
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_PUBLIC_CHANNELS", "run.*"),
    ])
    .await;
    let path = "/events/run.5";
    let mut watching = Raw::get(gateway.data, path).await;
    watching.until("\n\n").await;
    let grants = json!({"publish": ["run.*"], "run": ["run.*"]});
    let url = gateway.url("/events/run.5?end=done&to={\"role\":\"admin\"}");
    let answer = reqwest::Client::new().post(url).body("secret");
    let answer = answer.bearer_auth(granting(grants)).send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let last = answer["id"].as_str().unwrap();
    let rest = watching.rest().await;
    let told = format!("id: {last}\n{}\r\n{LAST_CHUNK}", end("run.5", "done"));
    assert!(rest.ends_with(&told) && !rest.contains("secret"), "{rest}");
    is_over(&gateway, path, last, "done").await;
}

#[tokio::test]
async fn ending_a_channel_needs_a_grant() {
    let gateway = Gateway::start(&[("FANFARE_JWT_SECRET", SECRET)]).await;
    let post = async |path: &str, grants: Value, body: &'static str| {
        let request = reqwest::Client::new().post(gateway.url(path)).body(body);
        let answer = request.bearer_auth(granting(grants)).send().await.unwrap();
        answer.status().as_u16()
    };
    let publisher = json!({"publish": ["*"]});
    let runner = json!({"publish": ["*"], "run": ["run.*"]});
    let stopper = json!({"run": ["run.9"]});
    for (path, grants, body, status) in [
        ("/events/run.8?end=done", &publisher, "x", 403),
        ("/events/room?end=done", &runner, "x", 403),
        ("/events/run.8?end=done", &runner, "x", 200),
        // A stop button: its user may end the run and say nothing in it.
        ("/events/run.9", &stopper, "x", 403),
        ("/events/run.9?end=stopped", &stopper, "x", 403),
        ("/events/run.8?end=stopped", &stopper, "", 403),
        ("/events/run.9?end=stopped", &stopper, "", 200),
        ("/events/run.9?end=riddle", &stopper, "", 403),
    ] {
        assert_eq!(
            post(path, grants.clone(), body).await,
            status,
            "{path} {grants}"
        );
    }
    let anonymous = reqwest::Client::new().post(gateway.url("/events/run.8?end=done"));
    assert_eq!(anonymous.send().await.unwrap().status(), 401);
    assert_eq!(post("/events/a", json!({"run": "run.*"}), "x").await, 401);
}

/// The page of a ticket is an `EventSource`, which shows no status.
#[tokio::test]
async fn a_ticket_gets_a_stream_that_ends() {
    let gateway = Gateway::start(&[("FANFARE_JWT_SECRET", SECRET)]).await;
    let token = granting(json!({"subscribe": ["*"], "publish": ["*"], "run": ["*"]}));
    let post = async |path: &str| {
        let request = reqwest::Client::new().post(gateway.url(path));
        let answer = request.bearer_auth(&token).send().await.unwrap();
        serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap()
    };
    let last = post("/events/run.6?end=done").await;
    let last = last["id"].as_str().unwrap();
    let ticket = post("/tickets").await;
    let path = format!(
        "/events/run.6?ticket={}",
        ticket["ticket"].as_str().unwrap()
    );
    let answer = whole(&gateway, &path, Some(last)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let told = format!("id: {last}\n{}\r\n{LAST_CHUNK}", end("run.6", "done"));
    assert!(answer.ends_with(&told), "{answer}");
}

/// Nothing later shows that an end was lost: the connection has to.
#[tokio::test]
async fn an_end_that_the_connection_lost_is_read() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut one = Events::open(&gateway.url("/events/run.7"))
        .await
        .opened()
        .await;
    let mut two = Events::open(&gateway.url("/events?channel=run.7&channel=run.x")).await;
    two = two.opened().await;
    redis.keep("run.7", "token", &[]).await;
    assert_eq!(one.data().await, "token");
    assert_eq!(two.data().await, "token");
    // In one go, so that the gateway cannot come between.
    let mut connection = redis.connection().await;
    let mut both = redis::pipe();
    both.atomic()
        .cmd("CLIENT")
        .arg(&["KILL", "TYPE", "pubsub"])
        .ignore()
        .cmd("FCALL")
        .arg(&["fanfare_publish", "1", "sse:run.7", "last", "end", "done"])
        .ignore();
    both.exec_async(&mut connection).await.unwrap();
    for (events, goes_on) in [(&mut one, false), (&mut two, true)] {
        assert_eq!(events.data().await, "last");
        let told = events.block().await.unwrap();
        assert_eq!(told.event.as_deref(), Some("$end"));
        if !goes_on {
            assert!(events.block().await.is_none());
        }
    }
}

/// One end among several attempts, and among several replicas.
#[tokio::test]
async fn the_first_of_several_ends_counts() {
    let redis = Redis::start().await;
    let gateways = [
        Gateway::behind(&redis, &[]).await,
        Gateway::behind(&redis, &[]).await,
    ];
    let mut watching = Vec::new();
    for gateway in &gateways {
        watching.push(
            Events::open(&gateway.url("/events/run.e"))
                .await
                .opened()
                .await,
        );
    }
    let [done, stopped] = [
        gateways[0].post("/events/run.e?end=done", ""),
        gateways[1].post("/events/run.e?end=stopped", ""),
    ];
    let (done, stopped) = tokio::join!(done, stopped);
    let reason = match (done.0, stopped.0) {
        (200, 409) => "done",
        (409, 200) => "stopped",
        other => panic!("{other:?}"),
    };
    for mut events in watching {
        let told = events.block().await.unwrap();
        assert!(told.data.unwrap().contains(reason));
        assert!(events.block().await.is_none());
    }
}

/// The answers to a crowd cost reads by channel, not by client.
#[tokio::test]
async fn a_crowd_at_the_end_costs_few_reads() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_SHARDS", "1")]).await;
    let mut watching = Events::open(&gateway.url("/events/run.c"))
        .await
        .opened()
        .await;
    let last = gateway.keep("/events/run.c?end=done", "x").await;
    watching.event().await;
    let before = gateway.metric("fanfare_history_reads_total").await;
    let crowd = (0..50).map(|_| is_over(&gateway, "/events/run.c", &last, "done"));
    let crowd = futures_util::future::join_all(crowd);
    tokio::time::timeout(Duration::from_secs(20), crowd)
        .await
        .unwrap();
    let reads = gateway.metric("fanfare_history_reads_total").await - before;
    // The channel may be given up and wanted again while they come.
    assert!(reads <= 3.0, "{reads}");
}

#[tokio::test]
async fn from_the_start_everything_comes_and_then_what_is_live() {
    for (redis, gateway) in on_both(&[("FANFARE_HISTORY_LENGTH", "5")]).await {
        let path = "/events/run.s?from=start&live=event";
        for number in 0..4 {
            gateway
                .keep("/events/run.s", format!("token {number}"))
                .await;
        }
        let mut raw = Raw::get(gateway.data, path).await;
        let head = raw.until("\r\n\r\n").await;
        assert!(!head.contains("connection: close"), "{head}");
        let replay = raw.until("event: $live\ndata: {}\n\n").await;
        assert!(replay.contains("event: $cursor\nid: 0-0\n"), "{replay}");
        assert_eq!(replay.matches("data: token").count(), 4, "{replay}");
        assert!(!replay.contains("$gap"), "{replay}");
        // The cursor of one that has had nothing is the same as asking for everything.
        for (query, cursor) in [("?last_event_id=0-0", None), ("", Some("0-0"))] {
            let cursor = cursor.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
            let request =
                format!("GET /events/run.s{query} HTTP/1.1\r\nhost: localhost\r\n{cursor}\r\n");
            let mut again = Raw::send(gateway.data, &request).await;
            let replay = again.until("data: token 3\n\n").await;
            assert_eq!(replay.matches("data: token").count(), 4, "{replay}");
            assert!(!replay.contains("$gap"), "{replay}");
        }
        let last = gateway.keep("/events/run.s?end=done", "last").await;
        let rest = raw.rest().await;
        assert!(rest.contains("data: last\n"), "{rest}");
        assert!(
            rest.ends_with(&format!("{}\r\n{LAST_CHUNK}", end("run.s", "done"))),
            "{rest}"
        );
        is_over(&gateway, "/events/run.s?from=start", &last, "done").await;
        // A channel that has no history is complete.
        let mut empty = Raw::get(gateway.data, "/events/run.t?from=start&live=event").await;
        let begun = empty.until("event: $live\ndata: {}\n\n").await;
        assert!(!begun.contains("$gap"), "{begun}");
        gateway.keep("/events/run.t", "first").await;
        empty.until("data: first\n\n").await;

        // One whose beginning is gone says so.
        for number in 0..9 {
            gateway
                .keep("/events/run.u", format!("token {number}"))
                .await;
        }
        let mut cut = Raw::get(gateway.data, "/events/run.u?from=start").await;
        let replay = cut.until("data: token 8\n\n").await;
        let gap = r#"{"channel":"run.u","reason":"expired","after":"0-0","oldest":""#;
        assert!(replay.contains(gap), "{replay}");
        // Where a gap cannot be seen it is an answer of its own.
        let (status, text) = gateway
            .get("/events/run.u?from=start&control=comment")
            .await;
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &problem["reason"]), (410, &json!("expired")));

        // What a publisher made longer stays so.
        for number in 0..9 {
            let query = if number == 0 { "?history=20" } else { "" };
            let path = format!("/events/run.v{query}");
            gateway.keep(&path, format!("token {number}")).await;
        }
        gateway.keep("/events/run.v?end=done", "").await;
        let whole = whole(&gateway, "/events/run.v?from=start", None).await;
        assert_eq!(whole.matches("data: token").count(), 9, "{whole}");
        assert!(
            !whole.contains("$gap") && whole.ends_with(LAST_CHUNK),
            "{whole}"
        );
        for (query, field) in [
            ("?from=end", "from"),
            ("?live=yes", "live"),
            ("?from=start&history=3", "from"),
        ] {
            let (status, text) = gateway.get(&format!("/events/a{query}")).await;
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, &problem["field"]), (400, &json!(field)), "{text}");
        }
        drop(redis);
    }
}

/// Who reads with `fetch` must not take a cut for the end.
#[tokio::test]
async fn what_is_cut_before_its_end_has_no_last_chunk() {
    let redis = Redis::start().await;
    let mut gateway = Gateway::behind(&redis, &[("FANFARE_DRAIN_PERIOD", "0s")]).await;
    let mut whole = Raw::get(gateway.data, "/events/run.c?from=start").await;
    whole.until("\n\n").await;
    let mut other = Raw::get(gateway.data, "/events/run.c").await;
    other.until("\n\n").await;
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let http2 = client
        .build()
        .unwrap()
        .get(gateway.url("/events/run.c?from=start"));
    let mut http2 = within("a head", http2.send()).await.unwrap();
    within("a block", http2.chunk()).await.unwrap();
    gateway.process.signal("TERM");
    let rest = whole.rest().await;
    assert!(!rest.ends_with(LAST_CHUNK), "{rest}");
    let rest = other.rest().await;
    assert!(rest.ends_with(LAST_CHUNK), "{rest}");
    let broken = within("the end", async {
        loop {
            match http2.chunk().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    });
    assert!(broken.await.is_err(), "an orderly end");
    assert!(gateway.process.ended().await);
}

/// So must who is told to come back.
#[tokio::test]
async fn a_busy_answer_to_who_wants_everything_has_no_last_chunk() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let mut first = Raw::get(gateway.data, "/events/a").await;
    first.until("\n\n").await;
    let answer = whole(&gateway, "/events/run.c?from=start", None).await;
    assert!(answer.contains("event: $busy\n"), "{answer}");
    assert!(!answer.ends_with(LAST_CHUNK), "{answer}");
    let answer = whole(&gateway, "/events/run.c", None).await;
    assert!(answer.contains("event: $busy\n"), "{answer}");
}

/// What a token joins is no part of a run.
#[tokio::test]
async fn joined_channels_do_not_keep_a_run_open() {
    let gateway = Gateway::start(&[("FANFARE_JWT_SECRET", SECRET)]).await;
    let grants =
        json!({"subscribe": ["*"], "publish": ["*"], "run": ["run.*"], "join": ["user.1"]});
    let token = granting(grants);
    let ask = async |path: &str, cursor: &str| {
        let request = reqwest::Client::new()
            .get(gateway.url(path))
            .bearer_auth(&token);
        let answer = request.header("last-event-id", cursor).send();
        within("an answer", answer).await.unwrap()
    };
    let post = reqwest::Client::new().post(gateway.url("/events/run.j?end=done"));
    let answer = post.bearer_auth(&token).body("x").send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let last = answer["id"].as_str().unwrap();
    let whole = ask("/events/run.j?from=start", "").await;
    let text = within("the end", whole.text()).await.unwrap();
    assert!(text.ends_with(&end("run.j", "done")), "{text}");
    assert_eq!(ask("/events/run.j?from=start", last).await.status(), 204);
    let mut both = Events::of(ask("/events/run.j", last).await);
    both.block().await.unwrap();
    assert_eq!(both.block().await.unwrap().event.as_deref(), Some("$end"));
    // Longer histories need the grant, too.
    let longer = async |channel: &str| {
        let post =
            reqwest::Client::new().post(gateway.url(&format!("/events/{channel}?history=2000")));
        let answer = post.bearer_auth(&token).body("x").send().await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!((longer("run.k").await, longer("room").await), (200, 403));
}
