//! The files of `nginx/` with a real nginx: streams pass at once, the next replica is tried, and a
//! browser never sees anything but a stream.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::nginx::{FILES, Nginx, Site, addresses};
use crate::support::tokens::{SECRET, granting, token};
use crate::support::{DEADLINE, Events, Gateway, Raw, Redis, eventually, read_until, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

/// Nothing is sent on a stream but what the test publishes.
const NO_HEARTBEAT: (&str, &str) = ("FANFARE_HEARTBEAT", "1h");

/// Streams that stay open.
type Held = Mutex<Vec<Events>>;

/// The body of an answer that tells a browser to come back: 10 to 30 seconds, no id.
fn is_retry_and_close(body: &str) -> bool {
    is_retry_and(body, "event: $busy\ndata: {}")
}

fn is_retry_and(body: &str, busy: &str) -> bool {
    body.strip_prefix("retry: ")
        .and_then(|rest| rest.strip_suffix(&format!("\n{busy}\n\n")))
        .and_then(|ms| ms.parse::<u64>().ok())
        .is_some_and(|ms| (10_000..=30_000).contains(&ms))
}

/// Asks for a stream; whether it was opened, or sent away as a browser has to be.
async fn is_opened(nginx: &Nginx, held: &Held) -> bool {
    let response = nginx.get("/events/a").await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    assert_eq!(
        response.headers()["cache-control"],
        "no-store, no-transform"
    );
    // A stream has no length.
    if response.content_length().is_none() {
        let stream = Events::of(response).opened().await;
        held.lock().unwrap().push(stream);
        return true;
    }
    let body = within("the answer ends", response.text()).await.unwrap();
    assert!(is_retry_and_close(&body), "{body:?}");
    false
}

/// An address where nothing listens.
fn dead() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], crate::support::free_port()))
}

fn check(main: &str, variables: &[(&str, &str)]) -> Result<(), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["check", "--nginx", main])
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_files_are_valid_and_agree_with_the_gateways_defaults() {
    let site = Site::of(&[dead(), dead()]);
    site.test("nginx.conf").unwrap();
    site.test("l4.conf").unwrap();
    for main in ["nginx.conf", "l4.conf"] {
        check(&format!("{FILES}/{main}"), &[]).unwrap();
    }
}

#[test]
fn what_does_not_agree_with_the_gateway_is_told() {
    let main = format!("{FILES}/nginx.conf");
    let slower = ("FANFARE_HEARTBEAT", "16s");
    let told = check(&main, &[slower]).unwrap_err();
    assert!(
        told.contains("proxy_read_timeout must be at least 48s"),
        "{told}"
    );
    let told = check(&format!("{FILES}/l4.conf"), &[slower]).unwrap_err();
    assert!(
        told.contains("proxy_timeout must be at least 48s"),
        "{told}"
    );
    let told = check(&main, &[("FANFARE_MAX_EVENT_BYTES", "2MiB")]).unwrap_err();
    assert!(told.contains("client_max_body_size"), "{told}");
    for (directive, from, to) in [
        (
            "proxy_read_timeout",
            "proxy_read_timeout 45s",
            "proxy_read_timeout 30s",
        ),
        (
            "proxy_read_timeout",
            "proxy_read_timeout 45s;",
            "proxy_read_timeout 45s",
        ),
        ("proxy_http_version", "proxy_http_version 1.1;", ""),
        (
            "proxy_http_version",
            "proxy_http_version 1.1",
            "proxy_http_version 1.0",
        ),
        ("gzip", "gzip off", "gzip on"),
        ("keepalive_timeout", "keepalive_timeout 5s;", ""),
        ("proxy_next_upstream", "Fanfare-Busy 503", "Fanfare-Busy no"),
        ("proxy_next_upstream", "http_502 http_503", "http_502"),
        (
            "proxy_next_upstream",
            "error timeout;",
            "error timeout non_idempotent;",
        ),
        (
            "error_page",
            "error_page 429 500 502 503",
            "error_page 429 500 502",
        ),
        ("error_page", "proxy_intercept_errors on;", ""),
        (
            "client_max_body_size",
            "client_max_body_size 1m",
            "client_max_body_size 16k",
        ),
        (
            "large_client_header_buffers",
            "large_client_header_buffers 1 24k;",
            "",
        ),
        (
            "large_client_header_buffers",
            "large_client_header_buffers 1 24k",
            "large_client_header_buffers 2 15k",
        ),
        (
            "large_client_header_buffers",
            "large_client_header_buffers 1 24k",
            "client_header_buffer_size 16k; large_client_header_buffers 1 24k",
        ),
        (
            "proxy_next_upstream_timeout",
            "proxy_next_upstream_timeout 100s",
            "proxy_next_upstream_timeout 45s",
        ),
        // Of tickets, revocations, and publishing.
        (
            "proxy_read_timeout",
            "proxy_read_timeout 15s",
            "proxy_read_timeout 10s",
        ),
    ] {
        let site = Site::of(&[dead()]);
        site.edit("nginx.conf", from, to);
        let told = check(site.path("nginx.conf").to_str().unwrap(), &[]).unwrap_err();
        assert!(told.contains(&format!(": {directive} ")), "{from}: {told}");
    }
    let site = Site::of(&[dead()]);
    site.write("site/replicas.conf", "server 127.0.0.1:8080;");
    site.write("site/l4-replicas.conf", "server 127.0.0.1:8080;");
    for main in ["nginx.conf", "l4.conf"] {
        let told = check(site.path(main).to_str().unwrap(), &[]).unwrap_err();
        assert!(told.contains(": server has max_fails=0"), "{told}");
    }
    let trusted = ("FANFARE_TRUSTED_PROXIES", "127.0.0.1");
    let origins = "https://a.example,https://b.example";
    let origins = ("FANFARE_ALLOW_ORIGINS", origins);
    let limited = ("FANFARE_MAX_CONNECTIONS_PER_IP", "9");
    check(&main, &[trusted, limited]).unwrap();
    let told = check(&main, &[limited]).unwrap_err();
    assert!(told.contains("FANFARE_TRUSTED_PROXIES"), "{told}");
    let told = check(&main, &[origins]).unwrap_err();
    assert!(
        told.contains("https://a.example, https://b.example"),
        "{told}"
    );
    let site = Site::of(&[dead()]);
    site.write(
        "site/origins.conf",
        "\"https://a.example\" $http_origin;\nhttps://b.example $http_origin;",
    );
    site.edit("nginx.conf", "X-Forwarded-For $remote_addr", "X-Real-IP 1");
    let main = site.path("nginx.conf");
    let main = main.to_str().unwrap();
    check(main, &[origins]).unwrap();
    let told = check(main, &[trusted, origins]).unwrap_err();
    assert!(
        told.contains("proxy_set_header sets x-forwarded-for"),
        "{told}"
    );
    let told = check(main, &[]).unwrap_err();
    assert!(told.contains(": map names the origins"), "{told}");
    let told = check("nowhere.conf", &[]).unwrap_err();
    assert!(told.contains("nowhere.conf"), "{told}");
}

#[tokio::test]
async fn events_pass_at_once_over_tls_and_http2() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[NO_HEARTBEAT]).await;
    let nginx = Nginx::before(&[&gateway]).await;
    for http1 in [false, true] {
        let client = match http1 {
            false => nginx.client(),
            true => nginx.client().http1_only(),
        };
        let client = client.build().unwrap();
        let request = client
            .get(nginx.url("/events?channel=a&channel=b"))
            .header("accept-encoding", "gzip, br");
        let response = within("a stream", request.send()).await.unwrap();
        let version = match http1 {
            false => reqwest::Version::HTTP_2,
            true => reqwest::Version::HTTP_11,
        };
        assert_eq!(response.version(), version);
        assert_eq!(response.headers().get("content-encoding"), None);
        assert_eq!(
            response.headers()["cache-control"],
            "no-store, no-transform"
        );
        let mut events = Events::of(response).opened().await;
        // Nothing else follows, so whatever is held back is never received.
        for number in 0..20 {
            let id = redis.keep("a", &number.to_string(), &[]).await;
            let event = events.event().await;
            assert_eq!((event.data, event.id), (Some(number.to_string()), Some(id)));
        }
        let large = "x".repeat(700_000);
        redis.publish("b", &large).await;
        assert_eq!(events.data().await, large);
    }
}

#[tokio::test]
async fn heartbeats_keep_a_silent_stream_and_a_silent_replica_is_left() {
    let heartbeat = ("FANFARE_HEARTBEAT", "400ms");
    let gateway = Gateway::start(&[heartbeat]).await;
    let site = Site::of(&addresses(&[&gateway]));
    site.silence(Duration::from_secs(3));
    let nginx = site.start().await;
    let mut events = nginx.events("/events/a").await.opened().await;
    // Longer than nginx waits for a silent replica.
    let ended = timeout(Duration::from_secs(4), async {
        while events.block().await.is_some() {}
    });
    assert!(ended.await.is_err(), "the stream has ended");
    gateway.process.signal("STOP");
    within("the stream ends", async {
        while events.block().await.is_some() {}
    })
    .await;
    // A stream that it does not answer is not for ever either.
    let held = Held::default();
    assert!(!is_opened(&nginx, &held).await);
    gateway.process.signal("CONT");
}

/// `least_conn` sends new streams to replicas that hang, since they lose those they had.
#[tokio::test]
async fn replicas_that_hang_are_passed_over() {
    let heartbeat = ("FANFARE_HEARTBEAT", "400ms");
    let gateways = [
        Gateway::start(&[heartbeat]).await,
        Gateway::start(&[heartbeat]).await,
        Gateway::start(&[heartbeat]).await,
    ];
    let site = Site::of(&addresses(&gateways.each_ref()));
    site.silence(Duration::from_secs(3));
    let nginx = site.start().await;
    let held = Held::default();
    for _ in 0..3 {
        assert!(is_opened(&nginx, &held).await);
    }
    gateways[0].process.signal("STOP");
    gateways[1].process.signal("STOP");
    for _ in 0..2 {
        assert!(is_opened(&nginx, &held).await);
    }
    assert_eq!(gateways[2].metric("fanfare_connections").await, 3.0);
    let tried = nginx.requests().join("\n");
    assert!(!tried.contains("answered \"504\""), "{tried}");
    for gateway in &gateways[..2] {
        gateway.process.signal("CONT");
    }
}

/// Those without Redis say so, and the one that has it takes the stream.
#[tokio::test]
async fn replicas_without_redis_are_passed_over() {
    let redis = Redis::start().await;
    let good = Gateway::behind(&redis, &[]).await;
    let url = format!("redis://{}", dead());
    let away = ("FANFARE_REDIS_URL", url.as_str());
    let others = [
        Gateway::start_unready(&[away]).await,
        Gateway::start_unready(&[away]).await,
    ];
    let nginx = Nginx::before(&[&others[0], &good, &others[1]]).await;
    let held = Held::default();
    let begun = Instant::now();
    for _ in 0..3 {
        assert!(is_opened(&nginx, &held).await);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(good.metric("fanfare_connections").await, 3.0);
}

/// The longest that the gateway takes, over both protocols.
#[tokio::test]
async fn a_long_token_passes() {
    let gateway = Gateway::start(&[("FANFARE_JWT_SECRET", SECRET)]).await;
    let nginx = Nginx::before(&[&gateway]).await;
    let long = token(serde_json::json!({
        "fanfare": { "subscribe": ["a"] },
        "more": "x".repeat(12_000),
    }));
    assert!((16_000..=16 * 1024).contains(&long.len()), "{}", long.len());
    for client in [nginx.client(), nginx.client().http1_only()] {
        let client = client.build().unwrap();
        let request = client.get(nginx.url("/events/a")).bearer_auth(&long);
        let answer = within("an answer", request.send()).await.unwrap();
        assert_eq!(answer.status(), 200, "{:?}", answer.version());
        let request = client.post(nginx.url("/tickets")).bearer_auth(&long);
        let answer = within("an answer", request.send()).await.unwrap();
        assert_eq!(answer.status(), 200, "{:?}", answer.version());
    }
}

#[tokio::test]
async fn a_full_replica_makes_room_at_the_next_until_all_are_full() {
    let limit = ("FANFARE_MAX_CONNECTIONS", "3");
    let gateways = [
        Gateway::start(&[limit]).await,
        Gateway::start(&[limit]).await,
        Gateway::start(&[limit]).await,
    ];
    let nginx = Nginx::before(&gateways.each_ref()).await;
    let held = Held::default();
    for _ in 0..9 {
        assert!(is_opened(&nginx, &held).await);
    }
    for _ in 0..4 {
        assert!(!is_opened(&nginx, &held).await);
    }
    for gateway in &gateways {
        assert_eq!(gateway.metric("fanfare_connections").await, 3.0);
    }
    // Publishing goes on while no stream can be opened.
    assert_eq!(nginx.post("/events/a", "x").await.0, 200);
    // A place that is given back is found.
    held.lock().unwrap().pop();
    eventually("a place is found", async || is_opened(&nginx, &held).await).await;
}

#[tokio::test]
async fn new_streams_go_elsewhere_while_a_replica_drains() {
    let drain = ("FANFARE_DRAIN_PERIOD", "1h");
    let draining = Gateway::start(&[drain]).await;
    let other = Gateway::start(&[drain]).await;
    let nginx = Nginx::before(&[&draining, &other]).await;
    let held = Held::default();
    for _ in 0..10 {
        assert!(is_opened(&nginx, &held).await);
    }
    draining.process.signal("TERM");
    eventually("the replica drains", async || {
        let answer = Raw::get(draining.data, "/events/a")
            .await
            .until("\n\n")
            .await;
        let rejected = r#"fanfare_connections_rejected_total{reason="draining"}"#;
        !answer.is_empty() && draining.metric(rejected).await > 0.0
    })
    .await;
    for _ in 0..10 {
        assert!(is_opened(&nginx, &held).await);
    }
    other.process.signal("TERM");
    eventually("both drain", async || !is_opened(&nginx, &held).await).await;
}

#[tokio::test]
async fn a_dead_replica_is_passed_over_and_with_all_dead_a_browser_comes_back() {
    let mut gateway = Gateway::start(&[]).await;
    let nginx = Site::of(&[dead(), gateway.data, dead()]).start().await;
    let held = Held::default();
    for _ in 0..6 {
        assert!(is_opened(&nginx, &held).await);
    }
    gateway.process.signal("KILL");
    gateway.process.ended().await;
    let mut retries = Vec::new();
    for _ in 0..20 {
        let response = nginx.get("/events?channel=a").await;
        assert_eq!(response.status(), 200);
        let body = response.text().await.unwrap();
        assert!(is_retry_and_close(&body), "{body}");
        retries.push(body);
    }
    retries.sort();
    retries.dedup();
    assert!(retries.len() > 5, "{retries:?}");
    let response = nginx.get("/events/a?control=comment").await;
    let body = response.text().await.unwrap();
    assert!(is_retry_and(&body, ": $busy"), "{body}");
    let head = nginx.client().build().unwrap().head(nginx.url("/events/a"));
    assert_eq!(head.send().await.unwrap().status(), 200);
}

/// nginx' passive health would trust it again only when a stream to it has ended.
#[tokio::test]
async fn a_replica_that_is_back_gets_its_streams_at_once() {
    let mut away = Gateway::start(&[]).await;
    let other = Gateway::start(&[]).await;
    let nginx = Nginx::before(&[&away, &other]).await;
    let held = Held::default();
    let address = away.data.to_string();
    away.process.signal("KILL");
    away.process.ended().await;
    for _ in 0..6 {
        assert!(is_opened(&nginx, &held).await);
    }
    let back = Gateway::start(&[("FANFARE_LISTEN", &address)]).await;
    for _ in 0..6 {
        assert!(is_opened(&nginx, &held).await);
    }
    assert_eq!(back.metric("fanfare_connections").await, 6.0);
    assert_eq!(other.metric("fanfare_connections").await, 6.0);
}

/// A page of another origin could not read an answer without its headers, and would give up.
#[tokio::test]
async fn allowed_origins_may_read_that_they_are_to_come_back() {
    let site = Site::of(&[dead()]);
    site.write("site/origins.conf", "\"https://app.example\" $http_origin;");
    let nginx = site.start().await;
    let client = nginx.client().build().unwrap();
    let asked = async |origin: &str| {
        let request = client.get(nginx.url("/events/a")).header("origin", origin);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let header = |name| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        [
            header("access-control-allow-origin"),
            header("access-control-allow-credentials"),
        ]
    };
    let own = "https://app.example";
    assert_eq!(asked(own).await, [Some(own.into()), Some("true".into())]);
    assert_eq!(asked("https://app.example.evil").await, [None, None]);
    assert_eq!(asked("null").await, [None, None]);

    // Before that, a page that sets headers asks whether it may.
    let preflight = async |url: &str, origin: &str| {
        let request = client
            .request(reqwest::Method::OPTIONS, url)
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "last-event-id");
        let response = within("an answer", request.send()).await.unwrap();
        assert_eq!(response.status(), 200);
        let allowed = response.headers().get("access-control-allow-headers");
        allowed.map(|allowed| allowed.to_str().unwrap().to_owned())
    };
    let gateway = Gateway::start(&[("FANFARE_ALLOW_ORIGINS", own)]).await;
    let allowed = preflight(&gateway.url("/events/a"), own).await;
    assert!(
        allowed
            .as_ref()
            .is_some_and(|all| all.contains("last-event-id"))
    );
    let url = nginx.url("/events/a");
    assert_eq!(preflight(&url, own).await, allowed);
    assert_eq!(preflight(&url, "https://app.example.evil").await, None);
}

#[tokio::test]
async fn only_the_inside_publishes() {
    let gateway = Gateway::start(&[]).await;
    let nginx = Site::of(&[dead(), gateway.data]).start().await;
    let client = nginx.client().build().unwrap();
    let public = client.post(nginx.url("/events/a")).body("x").send().await;
    assert_eq!(public.unwrap().status(), 403);
    let mut events = nginx.events("/events/a").await.opened().await;
    for number in 0..4 {
        let (status, answer) = nginx.post("/events/a?event=price", "hello").await;
        assert_eq!(status, 200, "{number}: {answer}");
        assert_eq!(events.data().await, "hello");
    }
    // Faults are told as they are.
    assert_eq!(nginx.post("/events/a?event=$x", "hello").await.0, 400);
    let get = reqwest::get(nginx.inside("/events/a")).await.unwrap();
    assert_eq!(get.status(), 403);
    let large = "x".repeat(1 << 20);
    let request = reqwest::Client::new().post(nginx.inside("/events/a"));
    assert_eq!(request.body(large).send().await.unwrap().status(), 200);
}

/// A replica that takes requests and never answers.
async fn silent_replica() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_publication_that_may_have_happened_is_not_repeated() {
    let (one, first) = silent_replica().await;
    let (two, second) = silent_replica().await;
    let nginx = Site::of(&[first, second]).start().await;
    let posted = tokio::spawn(
        reqwest::Client::new()
            .post(nginx.inside("/events/a"))
            .body("once")
            .send(),
    );
    let accepted = async {
        tokio::select! {
            accepted = one.accept() => accepted,
            accepted = two.accept() => accepted,
        }
    };
    let (mut socket, _) = within("a request", accepted).await.unwrap();
    read_until(&mut socket, &mut Vec::new(), "once").await;
    drop(socket);
    // Its connection is gone: nobody knows whether it has published.
    let answer = within("the publisher is told", posted).await.unwrap();
    assert_eq!(answer.unwrap().status(), 502);
    for listener in [&one, &two] {
        let again = timeout(Duration::from_millis(300), listener.accept()).await;
        assert!(again.is_err(), "the publication is repeated");
    }
}

#[tokio::test]
async fn nothing_of_the_inside_is_reachable_from_outside() {
    let gateway = Gateway::start(&[]).await;
    let nginx = Site::of(&[gateway.data]).start().await;
    for path in [
        "/metrics",
        "/readyz",
        "/livez",
        "/console",
        "/nginx_status",
        "/revocations",
        "/events/../metrics",
        "/",
    ] {
        assert_eq!(nginx.get(path).await.status(), 404, "{path}");
    }
    for path in ["/readyz", "/metrics/x", "/"] {
        let response = reqwest::get(nginx.inside(path)).await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
    }
    // What nginx tells of itself is what Prometheus reads.
    let status = reqwest::get(nginx.inside("/nginx_status")).await.unwrap();
    assert!(
        status
            .text()
            .await
            .unwrap()
            .starts_with("Active connections:")
    );
    let metrics = reqwest::get(nginx.inside("/metrics")).await.unwrap();
    assert_eq!(
        metrics.headers()["content-type"],
        "text/plain; version=0.0.4"
    );
    let text = metrics.text().await.unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("promtool is installed (make test installs it)");
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "{text}");
}

#[tokio::test]
async fn a_replica_is_told_who_asks_and_what_was_claimed_is_replaced() {
    let (listener, address) = silent_replica().await;
    let nginx = Site::of(&[address]).start().await;
    let request = nginx
        .client()
        .build()
        .unwrap()
        .get(nginx.url("/events/a"))
        .header("x-forwarded-for", "192.0.2.1")
        .header("forwarded", "for=192.0.2.1")
        .header("fanfare-busy", "200")
        .header("last-event-id", "5-0");
    let asked = tokio::spawn(request.send());
    let (mut socket, _) = within("a request", listener.accept()).await.unwrap();
    let head = read_until(&mut socket, &mut Vec::new(), "\r\n\r\n").await;
    let head = head.to_ascii_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("get /events/a http/1.1"));
    let mut headers: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    headers.retain(|line| !line.starts_with("x-request-id: ") && !line.starts_with("accept"));
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "fanfare-busy: 503",
            &format!("host: {}", nginx.site.public),
            "last-event-id: 5-0",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: https",
        ]
    );
    asked.abort();
}

/// What nginx writes, searched for what browsers and the gateway keep secret.
#[tokio::test]
async fn nginx_writes_no_secrets() {
    let gateway = Gateway::start(&[("FANFARE_JWT_SECRET", SECRET)]).await;
    // What it logs of one that is dead has the request in it.
    let nginx = Site::of(&[dead(), gateway.data, dead()]).start().await;
    let good = granting(serde_json::json!({ "subscribe": ["a"] }));
    let client = nginx.client().build().unwrap();
    let drawn = client.post(nginx.url("/tickets")).bearer_auth(&good).send();
    let drawn = within("a ticket", drawn)
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let drawn: serde_json::Value = serde_json::from_str(&drawn).unwrap();
    let ticket = drawn["ticket"].as_str().unwrap();
    let cookie = format!("fanfare={good}");
    for (request, status) in [
        (client.get(nginx.url("/events/a")).bearer_auth(&good), 200),
        (
            client.get(nginx.url("/events/a")).header("cookie", &cookie),
            200,
        ),
        (client.get(nginx.url("/events/b")).bearer_auth(&good), 403),
        (
            client.get(nginx.url(&format!("/events/a?ticket={ticket}"))),
            200,
        ),
        (
            client.get(nginx.url(&format!("/events/a?ticket={ticket}"))),
            401,
        ),
        (
            client.get(nginx.url(&format!("/events/a?token={good}"))),
            400,
        ),
        (
            client.get(nginx.url(&format!("/nothing?token={good}"))),
            404,
        ),
    ] {
        let answer = within("an answer", request.send()).await.unwrap();
        assert_eq!(answer.status(), status);
    }
    // Each replica is tried first by one of them.
    for _ in 0..6 {
        let spent = client.get(nginx.url(&format!("/events/a?ticket={ticket}")));
        let answer = within("an answer", spent.send()).await.unwrap();
        assert_eq!(answer.status(), 401);
    }
    eventually("all are logged", async || nginx.requests().len() >= 14).await;
    let tried = |line: &String| line.contains("401 ") && line.contains("answered \"502, ");
    assert!(nginx.requests().iter().any(tried), "a dead one was tried");
    let told = nginx.requests().join("\n") + &nginx.log();
    assert!(told.contains("/events/b"), "{told}");
    let signature = good.rsplit('.').next().unwrap();
    for secret in [SECRET, "canary", signature, ticket] {
        assert!(!told.contains(secret), "{secret} is in {told}");
    }
}

#[tokio::test]
async fn an_address_has_so_many_streams_and_is_told_to_come_back() {
    let gateway = Gateway::start(&[]).await;
    let site = Site::of(&addresses(&[&gateway]));
    site.edit(
        "site/public.conf",
        "streams_of_address 200",
        "streams_of_address 5",
    );
    let nginx = site.start().await;
    let held = Held::default();
    for _ in 0..5 {
        assert!(is_opened(&nginx, &held).await);
    }
    assert!(!is_opened(&nginx, &held).await);
    // Streams of one HTTP/2 connection count each.
    drop(held);
    let client = nginx.client().build().unwrap();
    let held = Held::default();
    eventually("the places are given back", async || {
        let response = client.get(nginx.url("/events/a")).send().await.unwrap();
        if response.content_length().is_none() {
            let stream = Events::of(response).opened().await;
            held.lock().unwrap().push(stream);
        }
        held.lock().unwrap().len() == 5
    })
    .await;
    let response = client.get(nginx.url("/events/a")).send().await.unwrap();
    assert!(is_retry_and_close(&response.text().await.unwrap()));
}

/// The L4 variant: the client's address stands before the bytes, and both protocols pass.
#[tokio::test]
async fn the_l4_variant_hands_on_the_clients_address_and_its_bytes() {
    let (listener, address) = silent_replica().await;
    let nginx = Site::of(&[dead(), address]).start_l4().await;
    for (http1, first) in [
        (true, "GET /events/a HTTP/1.1\r\n"),
        (false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        let client = match http1 {
            true => nginx.client().http1_only(),
            false => nginx.client(),
        };
        let request = client.build().unwrap().get(nginx.url("/events/a"));
        let asked = tokio::spawn(request.send());
        let (mut socket, bytes) = loop {
            let (mut socket, _) = within("a connection", listener.accept()).await.unwrap();
            let mut bytes = Vec::new();
            let line = read_until(&mut socket, &mut bytes, "\r\n").await;
            let words: Vec<_> = line.trim_end().split(' ').collect();
            assert_eq!(words[..4], ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"]);
            assert_eq!(words[5], nginx.site.public.port().to_string());
            // That nginx listens was found out with a connection without a request.
            let found = timeout(DEADLINE, first_bytes(&mut socket, &mut bytes, first)).await;
            if found.unwrap() {
                break (socket, bytes);
            }
        };
        assert!(bytes.starts_with(first.as_bytes()));
        if http1 {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            let answer = within("an answer", asked).await.unwrap().unwrap();
            assert_eq!(answer.text().await.unwrap(), "ok");
        } else {
            asked.abort();
        }
    }
}

/// Whether the connection begins with these bytes; not when it ends before.
async fn first_bytes(socket: &mut tokio::net::TcpStream, bytes: &mut Vec<u8>, first: &str) -> bool {
    while bytes.len() < first.len() {
        if tokio::io::AsyncReadExt::read_buf(socket, bytes)
            .await
            .unwrap_or(0)
            == 0
        {
            return false;
        }
    }
    true
}

/// Where a name's addresses change, nginx is had to look again, and nobody is cut off.
#[tokio::test]
async fn nginx_follows_a_name_to_new_replicas() {
    let old = Gateway::start(&[]).await;
    let new = Gateway::start(&[]).await;
    let nginx = Site::of(&addresses(&[&old])).start().await;
    let mut open = nginx.events("/events/a").await.opened().await;
    // The machine's table of names cannot be changed here: this one is a file.
    let table = nginx.site.path("names").display().to_string();
    nginx
        .site
        .write_program("getent", &format!("#!/bin/sh\ncat {table}\n"));
    nginx
        .site
        .write("names", "192.0.2.1 STREAM replicas\n192.0.2.1 DGRAM\n");
    let path = std::env::var("PATH").unwrap();
    let _follows = crate::support::Process(
        Command::new(format!("{FILES}/follow-names"))
            .args(["replicas", "0.1", "kill", "-HUP"])
            .arg(
                std::fs::read_to_string(nginx.site.path("nginx.pid"))
                    .unwrap()
                    .trim(),
            )
            .env("PATH", format!("{}:{path}", nginx.site.path("").display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let replicas = format!("server {} max_fails=0;\n", new.data);
    nginx.site.write("site/replicas.conf", &replicas);
    let held = Held::default();
    eventually("streams are opened at the new replica", async || {
        // Again and again, so that it is read by whoever follows.
        let own = held.lock().unwrap().len();
        nginx.site.write(
            "names",
            &format!("192.0.2.{} STREAM replicas\n", 2 + own % 2),
        );
        is_opened(&nginx, &held).await && new.metric("fanfare_connections").await > 0.0
    })
    .await;
    old.post("/events/a", "still here").await;
    assert_eq!(open.data().await, "still here");
}

/// Chromium's own `EventSource` over HTTP/2, on replicas that are killed one after the other.
#[tokio::test]
async fn a_browser_resumes_through_nginx_when_its_replica_is_killed() {
    let redis = Redis::start().await;
    let variables = [("FANFARE_RETRY", "100ms,200ms")];
    let mut gateways = vec![
        Gateway::behind(&redis, &variables).await,
        Gateway::behind(&redis, &variables).await,
    ];
    let site = Site::of(&addresses(&gateways.iter().collect::<Vec<_>>()));
    site.write(
        "site/locations.conf",
        "location = /page { default_type text/html; return 200 '<!doctype html><title>x</title>'; }",
    );
    let nginx = site.start().await;
    let browser = Browser::start().await;
    browser.goto(&nginx.url("/page")).await;
    browser
        .run(
            "window.seen = []; window.gaps = []; window.opened = 0;
             const source = new EventSource('/events/numbers');
             source.onopen = () => { window.opened += 1 };
             source.onmessage = (event) => window.seen.push(event.data);
             source.addEventListener('$gap', (event) => window.gaps.push(event.data));",
        )
        .await;
    let opened = async |times: u64| {
        eventually("the stream is open", async || {
            browser.run("return window.opened").await.as_u64() >= Some(times)
        })
        .await;
    };
    opened(1).await;
    let http2 = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.run(http2).await, "h2");
    let mut published: u64 = 0;
    let mut publish = async |count: u64| {
        for _ in 0..count {
            published += 1;
            redis.keep("numbers", &published.to_string(), &[]).await;
        }
        published
    };
    publish(20).await;
    for round in 0..3 {
        let mut streams = Vec::new();
        for gateway in &gateways {
            streams.push(gateway.metric("fanfare_connections").await);
        }
        let its = streams.iter().position(|open| *open == 1.0).unwrap();
        let address = gateways[its].data.to_string();
        gateways[its].process.signal("KILL");
        gateways[its].process.ended().await;
        publish(20).await;
        opened(round + 2).await;
        let again = [&variables[..], &[("FANFARE_LISTEN", address.as_str())]].concat();
        gateways[its] = Gateway::behind(&redis, &again).await;
    }
    let last = publish(20).await;
    eventually("the browser has the last event", async || {
        browser.run("return window.seen.length").await.as_u64() >= Some(last)
    })
    .await;
    let seen = browser.run("return window.seen.map(Number)").await;
    let seen: Vec<u64> = serde_json::from_value(seen).unwrap();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    assert_eq!(browser.run("return window.gaps.length").await, 0);
    browser.close().await;
}
