//! The stream as a client sees it: head, first block, heartbeats, events, refusals.

use std::time::Duration;

use crate::support::{Events, Gateway, Raw, eventually};
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;

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
            "content-type: text/event-stream; charset=utf-8",
            "transfer-encoding: chunked",
            "x-accel-buffering: no",
        ]
    );
    let first = raw.until("\n\n\r\n").await;
    let (length, block) = first.split_once("\r\n").unwrap();
    let length = usize::from_str_radix(length, 16).unwrap();
    assert_eq!(length, block.len() - "\r\n".len());
    let position = block
        .strip_prefix("retry: 3000\nevent: $cursor\nid: 0-0.")
        .and_then(|rest| rest.strip_suffix("\ndata: {}\n\n\r\n"))
        .unwrap_or_else(|| panic!("{block:?}"));
    let (ms, n) = position.split_once('-').unwrap();
    assert!(ms.parse::<u64>().is_ok() && n.parse::<u64>().is_ok());
    for _ in 0..3 {
        let heartbeat = "19\r\nevent: $cursor\ndata: {}\n\n\r\n";
        assert_eq!(raw.until("\n\n\r\n").await, heartbeat);
    }
    gateway
        .post("/events/orders?event=price&keep=false", "a\nb")
        .await;
    let event = "1e\r\nevent: price\ndata: a\ndata: b\n\n\r\n";
    assert!(raw.until(event).await.ends_with(event));
}

/// What is not data is in no block that a reader could take for an event.
#[tokio::test]
async fn where_comments_are_asked_for_there_is_no_data_but_that_of_events() {
    let variables = [
        ("FANFARE_HEARTBEAT", "200ms"),
        ("FANFARE_RETRY", "3s,3s"),
        ("FANFARE_DRAIN_PERIOD", "0s"),
    ];
    let gateway = Gateway::start(&variables).await;
    let mut raw = Raw::get(gateway.data, "/events/orders?control=comment").await;
    raw.until("\r\n\r\n").await;
    let first = raw.until("\n\n\r\n").await;
    let (_, block) = first.split_once("\r\n").unwrap();
    let position = block
        .strip_prefix("retry: 3000\nid: 0-0.")
        .and_then(|rest| rest.strip_suffix("\n\n\r\n"));
    assert!(
        position.is_some_and(|position| !position.contains('\n')),
        "{block:?}"
    );
    for _ in 0..3 {
        assert_eq!(raw.until("\n\r\n").await, "2\r\n:\n\r\n");
    }
    gateway.post("/events/orders?keep=false", "a").await;
    let event = "9\r\ndata: a\n\n\r\n";
    assert!(raw.until(event).await.ends_with(event));
    // A cursor that means nothing here.
    let path = "/events/orders?control=comment&last_event_id=x";
    let mut lost = Raw::get(gateway.data, path).await;
    let gap = lost.until(r#": $gap {"channel":"orders","reason":"unknown_id""#);
    assert!(!gap.await.contains("data:"));
    gateway.process.signal("TERM");
    let end = raw.rest().await;
    assert!(end.ends_with("\r\nretry: 3000\n\n\r\n0\r\n\r\n"), "{end:?}");
}

#[tokio::test]
async fn head_and_first_block_leave_in_one_write() {
    let gateway = Gateway::start(&[]).await;
    let raw = Raw::get(gateway.data, "/events/orders").await;
    raw.socket.readable().await.unwrap();
    let mut first = [0; 4096];
    let length = raw.socket.try_read(&mut first).unwrap();
    let first = std::str::from_utf8(&first[..length]).unwrap();
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
    assert!(first.ends_with("\n\n\r\n"), "{first}");
}

#[tokio::test]
async fn reconnection_times_are_spread_over_the_range() {
    let gateway = Gateway::start(&[("FANFARE_RETRY", "2s,6s")]).await;
    let mut times = Vec::new();
    for _ in 0..40 {
        let block = gateway.events("/events/a").await.block().await.unwrap();
        times.push(block.retry.unwrap());
    }
    assert!(times.iter().all(|time| (2000..=6000).contains(time)));
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 10, "{times:?}");
}

#[tokio::test]
async fn a_stream_carries_its_channels_and_no_others() {
    let gateway = Gateway::start(&[]).await;
    let mut one = gateway.events("/events/a").await.opened().await;
    let mut two = gateway
        .events("/events?channel=a&channel=b&channel=a")
        .await
        .opened()
        .await;
    let mut both = gateway.events("/events/b?channel=c").await.opened().await;
    for (channel, data) in [
        ("a", "1"),
        ("b", "2"),
        ("c", "3"),
        ("d", "4"),
        ("a", "5"),
        ("b", "6"),
    ] {
        let path = format!("/events/{channel}?keep=false");
        let (status, body) = gateway.post(&path, data).await;
        assert_eq!((status, body.as_str()), (200, r#"{"id":null}"#));
    }
    for data in ["1", "5"] {
        assert_eq!(one.data().await, data);
    }
    for data in ["1", "2", "5", "6"] {
        assert_eq!(two.data().await, data);
    }
    for data in ["2", "3", "6"] {
        assert_eq!(both.data().await, data);
    }
}

#[tokio::test]
async fn names_and_retry_come_with_the_event() {
    let gateway = Gateway::start(&[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway
        .post("/events/a?event=price%20list&retry=1500", "x")
        .await;
    let event = events.event().await;
    assert_eq!(event.event.as_deref(), Some("price list"));
    assert_eq!(event.retry, Some(1500));
    assert!(event.id.is_some());
    // What looks like an envelope is data when it comes as a body.
    let lookalike = r#"{"sse":{"event":"forged","data":"x"}}"#;
    gateway.post("/events/a?event=", lookalike).await;
    let event = events.event().await;
    assert_eq!(
        (event.event, event.data.as_deref()),
        (None, Some(lookalike))
    );
}

#[tokio::test]
async fn any_text_arrives_with_its_line_ends_normalised() {
    let gateway = Gateway::start(&[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let mebibyte = "ü🦀\r\n".repeat((1 << 20) / 8);
    for data in [
        "",
        "\n",
        "\r\n\r",
        " leading and trailing ",
        ": a comment?",
        "data: nested\n\nid: 7",
        "nul \0 and \u{feff}",
        mebibyte.as_str(),
    ] {
        let (status, body) = gateway.post("/events/a", data.to_owned()).await;
        assert_eq!(status, 200, "{body}");
        let expected = data.replace("\r\n", "\n").replace('\r', "\n");
        assert!(
            events.data().await == expected,
            "{:?}",
            &data[..data.len().min(40)]
        );
    }
}

/// Every fault has its status, names its field, and leaves the gateway as it was.
#[tokio::test]
async fn requests_that_can_never_work_are_refused_with_the_rule() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CHANNELS_PER_CONNECTION", "2")]).await;
    let long = format!("/events/{}", "x".repeat(201));
    for (path, status, part) in [
        ("/events", 400, "channel"),
        ("/events?channel=", 400, "channel"),
        ("/events/a%20b", 400, "channel"),
        ("/events/%24config", 400, "channel"),
        ("/events/a%0d%0ab", 400, "channel"),
        ("/events/a%00", 400, "channel"),
        ("/events/%ff", 400, "channel"),
        ("/events/a*", 400, "channel"),
        (&long, 400, "200 bytes"),
        ("/events?channel=a&channel=b&channel=c", 400, "at most 2"),
        ("/events/a?token=x", 400, "token"),
        ("/events/a?jwt=x", 400, "token"),
        ("/events/a/b", 404, "/events/a/b"),
        ("/other", 404, "/other"),
    ] {
        let (found, body) = gateway.get(path).await;
        assert_eq!(found, status, "{path}: {body}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], status);
        assert!(body.contains(part), "{path}: {body}");
    }
    let mut raw = Raw::send(
        gateway.data,
        "PUT /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n",
    )
    .await;
    let answer = raw.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    assert!(answer.contains("allow: GET,HEAD,POST"), "{answer}");
    healthy(&gateway).await;
}

#[tokio::test]
async fn events_that_break_a_rule_are_refused_and_reach_nobody() {
    let gateway = Gateway::start(&[("FANFARE_MAX_EVENT_BYTES", "100")]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    for (path, body, status, part) in [
        ("/events/a?event=x%0ay", b"x".to_vec(), 400, "event"),
        ("/events/a?event=x%0dy", b"x".to_vec(), 400, "event"),
        ("/events/a?event=x%00y", b"x".to_vec(), 400, "event"),
        ("/events/a?event=$gap", b"x".to_vec(), 400, "event"),
        ("/events/a?retry=soon", b"x".to_vec(), 400, "retry"),
        ("/events/a?retry=-1", b"x".to_vec(), 400, "retry"),
        ("/events/a?retry=86400001", b"x".to_vec(), 400, "retry"),
        ("/events/a?to=5", b"x".to_vec(), 400, "to"),
        ("/events/a?evnt=x", b"x".to_vec(), 400, "evnt"),
        ("/events/a?event=x&event=y", b"x".to_vec(), 400, "twice"),
        ("/events/a?key=k&keep=false", b"x".to_vec(), 400, "key"),
        (
            "/events/a?history=1&keep=false",
            b"x".to_vec(),
            400,
            "history",
        ),
        ("/events/a?key=", b"x".to_vec(), 400, "256"),
        ("/events/a?history=0", b"x".to_vec(), 400, "history"),
        ("/events/a?history=1000001", b"x".to_vec(), 400, "history"),
        ("/events/a?keep=no", b"x".to_vec(), 400, "keep"),
        ("/events/a", b"\xff\xfe".to_vec(), 400, "UTF-8"),
        ("/events/a", vec![b'x'; 101], 413, "100 bytes"),
        ("/events/a", vec![b'x'; 1000], 413, "100 bytes"),
        ("/events/a%2f", b"x".to_vec(), 400, "channel"),
        ("/events", b"x".to_vec(), 405, "POST"),
    ] {
        let (found, answer) = gateway.post(path, body).await;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer.contains(part), "{path}: {answer}");
    }
    gateway.post("/events/a", "the only one").await;
    assert_eq!(events.data().await, "the only one");
}

#[tokio::test]
async fn head_answers_the_head_and_subscribes_nothing() {
    let gateway = Gateway::start(&[]).await;
    let mut raw = Raw::send(
        gateway.data,
        "HEAD /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n",
    )
    .await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-type: text/event-stream"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(
        gateway.metric("fanfare_connections_opened_total").await,
        0.0
    );
}

/// Over HTTP/2 with prior knowledge hyper frames the same mailboxes.
#[tokio::test]
async fn http2_with_prior_knowledge_carries_many_streams_on_one_connection() {
    let gateway = Gateway::start(&[("FANFARE_HEARTBEAT", "300ms")]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let mut streams = join_all((0..20).map(|number| {
        let client = client.clone();
        let url = gateway.url(&format!("/events?channel=all&channel=own.{number}"));
        async move {
            Events::of(client.get(url).send().await.unwrap())
                .opened()
                .await
        }
    }))
    .await;
    assert_eq!(streams[0].head.version, http::Version::HTTP_2);
    assert!(!streams[0].head.headers.contains_key("connection"));
    gateway.post("/events/all", "to all").await;
    for (number, stream) in streams.iter_mut().enumerate() {
        let own = format!("to {number}");
        gateway
            .post(&format!("/events/own.{number}"), own.clone())
            .await;
        assert_eq!(stream.data().await, "to all");
        assert_eq!(stream.data().await, own);
    }
    eventually("heartbeats are sent", async || {
        gateway.metric("fanfare_heartbeats_total").await >= 20.0
    })
    .await;
    // A stream that ends leaves its neighbours alone.
    streams.truncate(10);
    eventually("ten streams are left", async || {
        gateway.metric("fanfare_connections").await == 10.0
    })
    .await;
    gateway.post("/events/all", "again").await;
    for stream in &mut streams {
        assert_eq!(stream.data().await, "again");
    }
}

#[tokio::test]
async fn http_1_0_gets_a_stream_that_ends_with_the_connection() {
    let gateway = Gateway::start(&[]).await;
    let mut raw = Raw::send(gateway.data, "GET /events/a HTTP/1.0\r\n\r\n").await;
    let head = raw.until("\r\n\r\n").await;
    assert!(!head.contains("chunked"), "{head}");
    raw.until("\n\n").await;
    gateway.post("/events/a?keep=false", "x").await;
    assert_eq!(raw.until("\n\n").await, "data: x\n\n");
}

/// A request that comes while the answer before it is still unread must not lose that answer.
#[tokio::test]
async fn pipelined_requests_are_answered_in_full_before_the_stream() {
    let gateway = Gateway::start(&[]).await;
    let page = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let stream = "GET /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut alone = Raw::send(
        gateway.data,
        &page.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
    )
    .await;
    let body = alone
        .rest()
        .await
        .split_once("\r\n\r\n")
        .unwrap()
        .1
        .to_owned();
    // More answers than the socket buffers hold, all unread when the stream is asked for.
    let pages = (8 << 20) / body.len().max(1);
    let request = page.repeat(pages) + stream + page;
    let mut raw = Raw::connect(gateway.data).await;
    let (mut read, mut write) = raw.socket.split();
    let writing = async {
        write.write_all(request.as_bytes()).await.unwrap();
    };
    let reading = crate::support::read_until(&mut read, &mut raw.received, "retry: ");
    let (_, answers) = tokio::join!(writing, reading);
    assert_eq!(answers.matches(&body).count(), pages);
    gateway.post("/events/a", "after it all").await;
    let (mut read, _write) = raw.socket.split();
    crate::support::read_until(&mut read, &mut raw.received, "data: after it all").await;
}

#[tokio::test]
async fn keep_alive_serves_requests_before_a_stream() {
    let gateway = Gateway::start(&[]).await;
    let mut raw = Raw::get(gateway.data, "/nowhere").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    raw.until("\"}").await;
    raw.socket
        .write_all(b"GET /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    raw.until("retry: ").await;
}

/// What a client sends on an open stream is read and forgotten.
#[tokio::test]
async fn a_client_that_goes_on_talking_disturbs_nothing() {
    let gateway = Gateway::start(&[]).await;
    let mut raw = Raw::get(gateway.data, "/events/a").await;
    raw.until("retry: ").await;
    raw.socket.write_all(&[b'x'; 100_000]).await.unwrap();
    gateway.post("/events/a", "still here").await;
    raw.until("data: still here\n\n").await;
}

#[tokio::test]
async fn at_the_connection_limit_clients_are_told_to_come_back() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "2")]).await;
    let one = gateway.events("/events/a").await.opened().await;
    let _two = gateway.events("/events/a").await.opened().await;
    let mut raw = Raw::get(gateway.data, "/events/a").await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("\nevent: $busy\n"), "{answer}");
    let (_, retry) = answer.split_once("\r\nretry: ").unwrap();
    let retry: u64 = retry.lines().next().unwrap().parse().unwrap();
    assert!((10_000..=30_000).contains(&retry));
    let comment = Raw::get(gateway.data, "/events/a?control=comment");
    let answer = comment.await.rest().await;
    assert!(answer.contains("\n: $busy\n"), "{answer}");
    let mut raw = Raw::send(
        gateway.data,
        "GET /events/a HTTP/1.1\r\nhost: localhost\r\nfanfare-busy: 503\r\nconnection: close\r\n\r\n",
    )
    .await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: "), "{answer}");
    let rejected = r#"fanfare_connections_rejected_total{reason="limit"}"#;
    assert_eq!(gateway.metric(rejected).await, 3.0);
    // A place that becomes free is given again.
    drop(one);
    eventually("a place is free", async || {
        gateway.metric("fanfare_connections").await == 1.0
    })
    .await;
    gateway.events("/events/a").await.opened().await;
}

/// A client that goes away on a channel where nothing happens is noticed all the same.
#[tokio::test]
async fn a_client_that_leaves_a_silent_channel_is_gone_within_a_second() {
    let gateway = Gateway::start(&[("FANFARE_HEARTBEAT", "1h")]).await;
    let _stays = gateway.events("/events/a").await.opened().await;
    let leaves = gateway.events("/events/silent").await.opened().await;
    assert_eq!(gateway.metric("fanfare_subscriptions").await, 2.0);
    drop(leaves);
    crate::support::eventually_within(Duration::from_secs(1), "it is gone", async || {
        gateway.metric("fanfare_subscriptions").await == 1.0
            && gateway.metric("fanfare_channels").await == 1.0
    })
    .await;
}

/// A connection that asks for nothing is closed, whichever protocol it speaks; one with an open
/// stream is not.
#[tokio::test]
async fn connections_without_a_request_do_not_stay() {
    let gateway = Gateway::start(&[]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let stream = client.get(gateway.url("/events/a")).send().await.unwrap();
    let mut stream = Events::of(stream).opened().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    let mut idle = [
        Raw::connect(gateway.data).await,
        Raw::send(gateway.data, "GET /events/a HTTP/1.1\r\nhost").await,
        Raw::send(gateway.data, "PRI * HT").await,
        Raw::send(gateway.data, preface).await,
    ];
    join_all(idle.iter_mut().map(async |raw| {
        use tokio::io::AsyncReadExt;
        let mut sink = Vec::new();
        crate::support::within("it is closed", raw.socket.read_to_end(&mut sink))
            .await
            .ok();
    }))
    .await;
    gateway.post("/events/a", "still open").await;
    assert_eq!(stream.data().await, "still open");
    let rejected = r#"fanfare_connections_rejected_total{reason="request_head"}"#;
    assert_eq!(gateway.metric(rejected).await, 3.0);
}

/// Connections that ask for nothing can take every place but not for long, and never the
/// descriptors that Redis and the admin listener need.
#[tokio::test]
async fn connections_are_bounded_too() {
    let gateway = Gateway::start(&[("FANFARE_MAX_CONNECTIONS", "1")]).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(Raw::connect(gateway.data).await);
    }
    eventually("as many as there are places are accepted", async || {
        gateway.descriptors() > 129
    })
    .await;
    assert!(gateway.descriptors() < 180, "{}", gateway.descriptors());
    assert!(gateway.is_ready().await);
    drop(idle);
    healthy(&gateway).await;
}

#[tokio::test]
async fn heads_that_are_no_heads_are_refused_and_counted() {
    let gateway = Gateway::start(&[]).await;
    let too_large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    for (request, status) in [
        ("nonsense\r\n\r\n", "400"),
        ("GET /events/a HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        (too_large.as_str(), "431"),
    ] {
        let mut raw = Raw::send(gateway.data, request).await;
        let answer = raw.until("\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let rejected = r#"fanfare_connections_rejected_total{reason="request_head"}"#;
    eventually("they are counted", async || {
        gateway.metric(rejected).await == 3.0
    })
    .await;
    healthy(&gateway).await;
}

#[tokio::test]
async fn a_stream_is_asked_for_without_a_body() {
    let gateway = Gateway::start(&[]).await;
    let request = "GET /events/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";
    let mut raw = Raw::send(gateway.data, request).await;
    assert!(raw.until("\r\n").await.starts_with("HTTP/1.1 400 "));
    healthy(&gateway).await;
}

/// The gateway serves a stream as if nothing had happened.
async fn healthy(gateway: &Gateway) {
    let mut events = gateway.events("/events/healthy").await.opened().await;
    gateway.post("/events/healthy", "well").await;
    assert_eq!(events.data().await, "well");
}
