//! Who may read and publish: tokens from wherever they come, what they grant, keys that change.

use std::path::Path;
use std::sync::Arc;

use crate::support::tokens::{Issuer, SECRET, granting, now, token};
use crate::support::{Events, Gateway, Raw, Redis, eventually, within};
use arc_swap::ArcSwap;
use serde_json::{Value, json};

async fn guarded(variables: &[(&str, &str)]) -> Gateway {
    let mut all = vec![("FANFARE_JWT_SECRET", SECRET)];
    all.extend_from_slice(variables);
    Gateway::start(&all).await
}

/// What a request with these headers is answered with.
async fn request(
    method: &str,
    url: String,
    headers: &[(&'static str, String)],
) -> reqwest::Response {
    let method = method.parse().unwrap();
    let mut request = reqwest::Client::new().request(method, url).body("x");
    if request.try_clone().unwrap().build().unwrap().method() != http::Method::POST {
        request = request.body("");
    }
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    within("an answer", request.send()).await.unwrap()
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

/// Status of a stream asked for with a token, and the answer's text where it is no stream.
async fn asked(gateway: &Gateway, path: &str, token: Option<&str>) -> (u16, String) {
    let headers = token.map(bearer);
    let headers = headers.as_ref().map_or(&[][..], |headers| &headers[..]);
    let answer = request("GET", gateway.url(path), headers).await;
    let status = answer.status().as_u16();
    if status == 200 {
        return (200, String::new());
    }
    (status, answer.text().await.unwrap())
}

async fn stream(gateway: &Gateway, path: &str, token: &str) -> Events {
    Events::of(request("GET", gateway.url(path), &bearer(token)).await)
        .opened()
        .await
}

#[tokio::test]
async fn what_may_be_read_follows_from_the_token_and_the_rules() {
    let gateway = guarded(&[
        ("FANFARE_PUBLIC_CHANNELS", "news.*"),
        ("FANFARE_TOKEN_CHANNELS", "user.{sub},members"),
    ])
    .await;
    let some = granting(json!({ "subscribe": ["orders", "shop.*"], "join": ["joined"] }));
    let none = token(json!({}));
    let all = granting(json!({ "subscribe": ["*"] }));
    for (path, token, status, told) in [
        ("/events/news.eu", None, 200, ""),
        ("/events/news.eu", Some(&none), 200, ""),
        ("/events/orders", None, 401, "orders"),
        ("/events/orders", Some(&some), 200, ""),
        ("/events/orders2", Some(&some), 403, "orders2"),
        ("/events/shop.7", Some(&some), 200, ""),
        ("/events/joined", Some(&some), 200, ""),
        ("/events/user.alice", Some(&some), 200, ""),
        ("/events/user.bob", Some(&some), 403, "user.bob"),
        ("/events/user.alice", Some(&none), 403, "user.alice"),
        ("/events/members", Some(&none), 200, ""),
        ("/events/anything", Some(&all), 200, ""),
        // One that may not be read refuses all, and is named.
        (
            "/events?channel=orders&channel=news.eu&channel=secret",
            Some(&some),
            403,
            "secret",
        ),
        // The token's own channels need not be asked for.
        ("/events", Some(&some), 200, ""),
        ("/events", Some(&none), 400, "channel"),
        ("/events", None, 400, "channel"),
    ] {
        let (found, text) = asked(&gateway, path, token.map(String::as_str)).await;
        assert_eq!(found, status, "{path}: {text}");
        assert!(text.contains(told), "{path}: {text}");
    }
    let denied = r#"fanfare_connections_rejected_total{reason="denied"}"#;
    assert_eq!(gateway.metric(denied).await, 5.0);
}

#[tokio::test]
async fn a_token_comes_in_the_header_or_the_cookie_and_never_in_a_query() {
    let gateway = guarded(&[]).await;
    let good = granting(json!({ "subscribe": ["a"] }));
    let expired = token(json!({ "exp": now() - 60, "fanfare": { "subscribe": ["a"] } }));
    let status = async |headers: &[(&'static str, String)], query: &str| {
        let url = gateway.url(&format!("/events/a{query}"));
        let answer = request("GET", url, headers).await;
        let challenge = answer.headers().get("www-authenticate").cloned();
        let challenge = challenge.map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), challenge.unwrap_or_default())
    };
    let cookie = |token: &str| ("cookie", format!("theme=dark; fanfare={token}"));
    let header = |token: &str| ("authorization", format!("Bearer {token}"));
    let invalid = r#"Bearer error="invalid_token""#;
    for (headers, query, expected) in [
        (vec![header(&good)], "", (200, "")),
        (vec![cookie(&good)], "", (200, "")),
        (vec![], "", (401, "Bearer")),
        (vec![header(&expired)], "", (401, invalid)),
        (vec![cookie(&expired)], "", (401, invalid)),
        (vec![header("x")], "", (401, invalid)),
        // What is sent on purpose wins.
        (vec![header(&good), cookie(&expired)], "", (200, "")),
        (vec![header(&expired), cookie(&good)], "", (401, invalid)),
        (vec![header(&good), header(&good)], "", (400, "")),
        // Of two domains or paths: the page cannot help it.
        (vec![cookie(&good), cookie(&good)], "", (200, "")),
        (vec![cookie(&expired), cookie(&good)], "", (200, "")),
        (vec![cookie("x"), cookie(&good)], "", (200, "")),
        (vec![cookie("x"), cookie(&expired)], "", (401, invalid)),
        (vec![cookie(""), cookie(&good)], "", (200, "")),
        (
            vec![("authorization", "Basic eDp5".into())],
            "",
            (401, "Bearer"),
        ),
        (
            vec![("authorization", "Basic eDp5".into()), cookie(&good)],
            "",
            (200, ""),
        ),
        (vec![], &format!("?token={good}"), (400, "")),
        (vec![], &format!("?jwt={good}"), (400, "")),
        (vec![header(&good)], "?token=", (400, "")),
        (vec![], "?ticket=x", (401, invalid)),
        (vec![cookie(&good)], "?ticket=x", (401, invalid)),
        (vec![cookie(&good)], "?ticket=x&ticket=y", (400, "")),
    ] {
        let (status, challenge) = status(&headers, query).await;
        assert_eq!(
            (status, challenge.as_str()),
            expected,
            "{headers:?} {query}"
        );
    }
    let reasons = r#"fanfare_tokens_refused_total{reason="expired"}"#;
    assert_eq!(gateway.metric(reasons).await, 3.0);
}

#[tokio::test]
async fn a_wrong_token_is_refused_where_none_is_needed_and_unread_where_none_can_be_judged() {
    let gateway = guarded(&[("FANFARE_PUBLIC_CHANNELS", "*")]).await;
    assert_eq!(asked(&gateway, "/events/a", Some("x")).await.0, 401);
    assert_eq!(asked(&gateway, "/events/a", None).await.0, 200);
    for variables in [&[][..], &[("FANFARE_PUBLIC_CHANNELS", "a")]] {
        let open = Gateway::start(variables).await;
        assert_eq!(asked(&open, "/events/a", Some("x")).await.0, 200);
        assert_eq!(asked(&open, "/events/a?ticket=x", None).await.0, 401);
        let answer = request("POST", open.url("/tickets"), &bearer("x")).await;
        assert_eq!(answer.status(), 403);
    }
}

#[tokio::test]
async fn joined_channels_are_on_the_stream_unasked() {
    let gateway = guarded(&[("FANFARE_MAX_CHANNELS_PER_CONNECTION", "3")]).await;
    let token = granting(json!({ "subscribe": ["*"], "join": ["mine", "all"], "publish": ["*"] }));
    let mut events = stream(&gateway, "/events/orders?history=0", &token).await;
    for channel in ["mine", "orders", "all"] {
        let url = gateway.url(&format!("/events/{channel}?keep=false"));
        assert_eq!(request("POST", url, &bearer(&token)).await.status(), 200);
        assert_eq!(events.data().await, "x");
    }
    // They count.
    let both = "/events?channel=a&channel=b";
    assert_eq!(asked(&gateway, both, Some(&token)).await.0, 400);
    assert_eq!(
        asked(&gateway, "/events?channel=a&channel=all", Some(&token))
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn publishing_needs_a_grant_of_its_own() {
    let gateway = guarded(&[("FANFARE_PUBLIC_CHANNELS", "*")]).await;
    let reader = granting(json!({ "subscribe": ["*"] }));
    let writer = granting(json!({ "publish": ["orders", "shop.*"] }));
    let mut events = stream(&gateway, "/events?channel=orders&channel=shop.1", &reader).await;
    for (path, token, status, told) in [
        ("/events/orders", None, 401, "token"),
        ("/events/orders", Some("x"), 401, "token"),
        ("/events/orders", Some(&reader), 403, "orders"),
        ("/events/news", Some(&writer), 403, "news"),
        ("/events/orders", Some(&writer), 200, "id"),
        ("/events/shop.1?keep=false", Some(&writer), 200, "null"),
        ("/events/orders?token=x", Some(&writer), 400, "URL"),
        ("/events/orders?ticket=x", Some(&writer), 400, "ticket"),
    ] {
        let headers = token.map(bearer);
        let headers = headers.as_ref().map_or(&[][..], |headers| &headers[..]);
        let answer = request("POST", gateway.url(path), headers).await;
        let found = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert_eq!(found, status, "{path}: {text}");
        assert!(text.contains(told), "{path}: {text}");
    }
    assert!(events.event().await.id.is_some());
    assert!(events.event().await.id.is_none());
    // Public channels without keys: nobody can show a grant.
    let public = Gateway::start(&[("FANFARE_PUBLIC_CHANNELS", "*")]).await;
    let (status, text) = public.post("/events/orders", "x").await;
    assert!(status == 403 && text.contains("key"), "{text}");
}

/// Draws a ticket.
async fn draw(gateway: &Gateway, token: &str) -> String {
    let answer = request("POST", gateway.url("/tickets"), &bearer(token)).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(answer["expires_in"], 30);
    answer["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_ticket_opens_one_stream_on_any_replica() {
    let redis = Redis::start().await;
    // With exactly the rights that docs/protocol.md lists.
    let rights = include_str!("../../docs/protocol.md")
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER gateway "))
        .unwrap();
    let mut command = vec!["ACL", "SETUSER", "gateway"];
    command.extend(rights.split(' '));
    let _: String = redis.command(&command).await;
    let url = format!("redis://gateway:password@127.0.0.1:{}", redis.port());
    let variables = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("FANFARE_JWT_SECRET", SECRET),
    ];
    let one = Gateway::start(&variables).await;
    let two = Gateway::start(&variables).await;
    let alone = guarded(&[]).await;
    let token = granting(json!({ "subscribe": ["a"], "publish": ["a"] }));
    for (drawn_at, used_at) in [(&one, &two), (&alone, &alone)] {
        let ticket = draw(drawn_at, &token).await;
        let path = |channel: &str| format!("/events/{channel}?ticket={ticket}");
        // What it does not open does not spend it, and HEAD opens nothing.
        assert_eq!(asked(used_at, &path("b"), None).await.0, 403);
        let head = request("HEAD", used_at.url(&path("a")), &[]).await;
        assert_eq!(head.status(), 200);
        let mut events = used_at.events(&path("a")).await.opened().await;
        for gateway in [drawn_at, used_at] {
            let (status, text) = asked(gateway, &path("a"), None).await;
            assert!(status == 401 && text.contains("spent"), "{text}");
        }
        let url = drawn_at.url("/events/a");
        assert_eq!(request("POST", url, &bearer(&token)).await.status(), 200);
        assert_eq!(events.data().await, "x");
    }
    let refused: Vec<redis::Value> = redis.command(&["ACL", "LOG"]).await;
    assert!(refused.is_empty(), "{refused:?}");
    // Redis knows neither a ticket nor a token.
    let ticket = draw(&one, &token).await;
    let keys: Vec<String> = redis.command(&["KEYS", "sse:$ticket.*"]).await;
    assert_eq!(keys.len(), 1);
    let value: String = redis.command(&["GET", &keys[0]]).await;
    let life_ms: i64 = redis.command(&["PTTL", &keys[0]]).await;
    assert!((1..=30_000).contains(&life_ms), "{life_ms}");
    assert!(!keys[0].contains(&ticket) && !value.contains(&token) && !value.contains(&ticket));
}

#[tokio::test]
async fn of_many_who_use_a_ticket_at_once_one_gets_a_stream() {
    let redis = Redis::start().await;
    let variables = [("FANFARE_JWT_SECRET", SECRET), ("FANFARE_SHARDS", "2")];
    let one = Gateway::behind(&redis, &variables).await;
    let two = Gateway::behind(&redis, &variables).await;
    let token = granting(json!({ "subscribe": ["a"] }));
    for _ in 0..5 {
        let ticket = draw(&one, &token).await;
        let path = format!("/events/a?ticket={ticket}");
        let asking = (0..16).map(|number| {
            let gateway = if number % 2 == 0 { &one } else { &two };
            request("GET", gateway.url(&path), &[])
        });
        let answers = futures_util::future::join_all(asking).await;
        let opened = answers
            .iter()
            .filter(|answer| answer.status() == 200)
            .count();
        let refused = answers
            .iter()
            .filter(|answer| answer.status() == 401)
            .count();
        assert_eq!((opened, refused), (1, 15));
    }
    // Who came too late with a ticket was no stream, not even for a moment.
    let count = async |series: &str| one.metric(series).await + two.metric(series).await;
    assert_eq!(count("fanfare_connections_opened_total").await, 5.0);
    let denied = r#"fanfare_connections_rejected_total{reason="denied"}"#;
    assert_eq!(count(denied).await, 75.0);
    let closed = r#"fanfare_connections_closed_total{reason="client"}"#;
    eventually("the streams are closed", async || {
        count("fanfare_connections").await == 0.0
    })
    .await;
    assert_eq!(count(closed).await, 5.0);
}

#[tokio::test]
async fn tickets_are_drawn_with_a_token_only() {
    let gateway = guarded(&[]).await;
    let good = granting(json!({ "subscribe": ["a"] }));
    let ticket = draw(&gateway, &good).await;
    let with_ticket = format!("/tickets?ticket={ticket}");
    for (path, headers, status) in [
        ("/tickets", vec![], 401),
        (
            "/tickets",
            vec![("authorization", "Bearer x".to_owned())],
            401,
        ),
        ("/tickets", vec![("cookie", format!("fanfare={good}"))], 200),
        (with_ticket.as_str(), vec![], 400),
        ("/tickets?token=x", bearer(&good).to_vec(), 400),
    ] {
        let answer = request("POST", gateway.url(path), &headers).await;
        assert_eq!(answer.status(), status, "{path} {headers:?}");
    }
    assert_eq!(
        request("GET", gateway.url("/tickets"), &[]).await.status(),
        405
    );
    // A ticket does not outlive its token.
    let short = token(json!({ "exp": now(), "fanfare": { "subscribe": ["a"] } }));
    let answer = request("POST", gateway.url("/tickets"), &bearer(&short)).await;
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert!(answer["expires_in"].as_u64().unwrap() <= 5, "{answer}");
    let path = format!("/events/a?ticket={}", answer["ticket"].as_str().unwrap());
    eventually("the token has expired", async || {
        let head = request("HEAD", gateway.url(&path), &[]).await;
        head.status() == 401
    })
    .await;
}

#[tokio::test]
async fn a_ticket_is_not_spent_by_an_answer_that_says_to_come_back() {
    let mut redis = Redis::start().await;
    let variables = [
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_MAX_CONNECTIONS", "1"),
    ];
    let gateway = Gateway::behind(&redis, &variables).await;
    let token = granting(json!({ "subscribe": ["a"] }));
    let held = stream(&gateway, "/events/a", &token).await;
    let ticket = draw(&gateway, &token).await;
    let path = format!("/events/a?ticket={ticket}");
    let mut raw = Raw::get(gateway.data, &path).await;
    let answer = raw.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("event: $busy\n"),
        "{answer}"
    );
    drop(held);
    eventually("there is place", async || {
        gateway.metric("fanfare_connections").await == 0.0
    })
    .await;
    let _ = gateway.events(&path).await.opened().await;
    assert_eq!(asked(&gateway, &path, None).await.0, 401);
    // Where tickets cannot be looked up, nobody can say that one is wrong.
    redis.kill().await;
    let mut raw = Raw::get(gateway.data, &path).await;
    let answer = raw.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("retry: "),
        "{answer}"
    );
    let answer = request("POST", gateway.url("/tickets"), &bearer(&token)).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
}

/// Replaces what a volume shows, as Kubernetes does: a folder for each version, a link to the
/// newest that is renamed into place, and files that are links through it.
fn publish_version(volume: &Path, version: u32, content: &str) {
    let folder = volume.join(format!("..version_{version}"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("key.pem"), content).unwrap();
    let link = volume.join("..data_tmp");
    std::os::unix::fs::symlink(folder.file_name().unwrap(), &link).unwrap();
    std::fs::rename(link, volume.join("..data")).unwrap();
}

#[tokio::test]
async fn key_files_are_read_again_when_they_change() {
    let volume = tempfile::tempdir().unwrap();
    let file = volume.path().join("key.pem");
    std::os::unix::fs::symlink("..data/key.pem", &file).unwrap();
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    publish_version(volume.path(), 1, &old.pem());
    let path = file.to_str().unwrap();
    let gateway = Gateway::start(&[("FANFARE_JWT_PUBLIC_KEY_FILE", path)]).await;
    let claims = || json!({ "fanfare": { "subscribe": ["a"] } });
    let takes = async |issuer: &Issuer| {
        let token = issuer.token(claims());
        asked(&gateway, "/events/a", Some(&token)).await.0 == 200
    };
    assert!(takes(&old).await && !takes(&new).await);
    publish_version(volume.path(), 2, &format!("{}{}", old.pem(), new.pem()));
    eventually("both keys are in force", async || takes(&new).await).await;
    assert!(takes(&old).await);
    publish_version(volume.path(), 3, &new.pem());
    eventually("the old key is out of force", async || !takes(&old).await).await;
    assert!(takes(&new).await);
    // A broken file changes nothing, and is told.
    publish_version(volume.path(), 4, "-----BEGIN PUBLIC KEY-----\nMCow");
    eventually("the broken file is told", async || {
        let (status, text) = gateway.admin_get("/readyz").await;
        status == 200 && text.contains("warnings") && text.contains("key.pem")
    })
    .await;
    assert!(takes(&new).await);
    std::fs::remove_file(volume.path().join("..data")).unwrap();
    assert!(takes(&new).await);
    publish_version(volume.path(), 5, &old.pem());
    eventually("the old key is back", async || takes(&old).await).await;
    let ready = r#"{"ready":true,"reasons":[]}"#;
    assert_eq!(gateway.admin_get("/readyz").await, (200, ready.into()));
}

/// A server of a JWK set that can be changed, or taken away.
struct JwksServer {
    url: String,
    /// What is answered; empty: 500.
    set: Arc<ArcSwap<String>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl JwksServer {
    async fn start() -> Self {
        let set = Arc::new(ArcSwap::from_pointee(String::new()));
        let asked = Arc::<std::sync::atomic::AtomicUsize>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks?canary", listener.local_addr().unwrap());
        let answer = {
            let (set, asked) = (Arc::clone(&set), Arc::clone(&asked));
            move || {
                asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let set = set.load().to_string();
                let status = if set.is_empty() { 500 } else { 200 };
                async move { (http::StatusCode::from_u16(status).unwrap(), set) }
            }
        };
        let router = axum::Router::new().route("/jwks", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, set, asked }
    }

    fn serve(&self, issuers: &[&Issuer]) {
        let keys: Vec<_> = issuers.iter().map(|issuer| issuer.jwk()).collect();
        self.set
            .store(Arc::new(json!({ "keys": keys }).to_string()));
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Whether a stream is opened, and not told to come back, or refused.
async fn outcome(gateway: &Gateway, token: &str) -> &'static str {
    let headers = format!("host: x\r\nauthorization: Bearer {token}\r\nfanfare-busy: 503");
    let request = format!("GET /events/a HTTP/1.1\r\n{headers}\r\n\r\n");
    let mut raw = Raw::send(gateway.data, &request).await;
    let head = raw.until("\r\n").await;
    match head.split(' ').nth(1).unwrap() {
        "200" => "opened",
        "503" => "not now",
        _ => "refused",
    }
}

#[tokio::test]
async fn a_key_set_rotates_and_survives_an_outage_of_who_serves_it() {
    let server = JwksServer::start().await;
    let (one, two, never) = (Issuer::new("1"), Issuer::new("2"), Issuer::new("3"));
    let gateway = Gateway::start_unready(&[
        ("FANFARE_JWKS_URL", &server.url),
        ("FANFARE_JWKS_MAX_AGE", "30d"),
    ])
    .await;
    let claims = || json!({ "sub": "alice", "fanfare": { "subscribe": ["a"] } });
    let (first, second, third) = (
        one.token(claims()),
        two.token(claims()),
        never.token(claims()),
    );
    // Without keys nobody can say that a token is wrong.
    let (status, text) = gateway.admin_get("/readyz").await;
    assert!(status == 503 && text.contains("keys: "), "{text}");
    assert!(!text.contains("canary"), "{text}");
    assert_eq!(outcome(&gateway, &first).await, "not now");
    server.serve(&[&one]);
    gateway.ready().await;
    assert_eq!(outcome(&gateway, &first).await, "opened");
    // A key that is not known yet is asked for at once,
    server.serve(&[&one, &two]);
    let before = server.asked();
    assert_eq!(outcome(&gateway, &second).await, "opened");
    assert_eq!(server.asked(), before + 1);
    // and whoever invents keys causes no more fetches for a while, nor is told that they never work.
    for _ in 0..20 {
        assert_eq!(outcome(&gateway, &third).await, "not now");
    }
    assert_eq!(server.asked(), before + 1);
    assert_eq!(outcome(&gateway, &first).await, "opened");
    // When it is asked for again, a key that is still not there is refused.
    server.serve(&[&two]);
    eventually("an unknown key is refused", async || {
        outcome(&gateway, &third).await == "refused"
    })
    .await;
    assert_ne!(outcome(&gateway, &first).await, "opened");
    assert_eq!(outcome(&gateway, &second).await, "opened");
    // An outage: the last good set stays in force, and readiness says so.
    server.set.store(Arc::default());
    eventually("the outage is told", async || {
        outcome(&gateway, &third).await;
        let (status, text) = gateway.admin_get("/readyz").await;
        status == 200 && text.contains("stays in force")
    })
    .await;
    assert_eq!(outcome(&gateway, &second).await, "opened");
    assert!(
        !gateway.log().join("").contains("canary"),
        "{:?}",
        gateway.log()
    );
}

#[tokio::test]
async fn a_key_set_that_is_too_old_is_out_of_force() {
    let server = JwksServer::start().await;
    let issuer = Issuer::new("1");
    server.serve(&[&issuer]);
    let gateway = Gateway::start(&[
        ("FANFARE_JWKS_URL", server.url.as_str()),
        ("FANFARE_JWKS_MAX_AGE", "3s"),
        ("FANFARE_PUBLIC_CHANNELS", "news"),
    ])
    .await;
    let token = issuer.token(json!({ "fanfare": { "subscribe": ["a"] } }));
    server.set.store(Arc::default());
    eventually("the set is too old", async || {
        let (status, text) = gateway.admin_get("/readyz").await;
        status == 503 && text.contains("older than 3s")
    })
    .await;
    assert_eq!(outcome(&gateway, &token).await, "not now");
    let answer = request("POST", gateway.url("/events/a"), &bearer(&token)).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(asked(&gateway, "/events/news", None).await.0, 200);
    server.serve(&[&issuer]);
    eventually("it is in force again", async || {
        outcome(&gateway, &token).await == "opened"
    })
    .await;
}

#[tokio::test]
async fn a_subject_draws_so_many_tickets_and_takes_none_from_others() {
    let gateway = guarded(&[]).await;
    let (alice, bob) = (
        token(json!({ "sub": "alice" })),
        token(json!({ "sub": "bob" })),
    );
    let client = reqwest::Client::new();
    let draw = async |token: &str| {
        let request = client.post(gateway.url("/tickets")).bearer_auth(token);
        within("an answer", request.send()).await.unwrap()
    };
    // Ten a second come back meanwhile.
    let mut refused = None;
    for _ in 0..2000 {
        let answer = draw(&alice).await;
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("tickets end");
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(draw(&bob).await.status(), 200);
    let series = r#"fanfare_requests_refused_total{reason="ticket_rate"}"#;
    assert_eq!(gateway.metric(series).await, 1.0);
}

/// Whoever may not revoke is answered before they have sent what they would.
#[tokio::test]
async fn a_revocation_of_somebody_who_may_not_is_not_waited_for() {
    let gateway = guarded(&[]).await;
    let request = "POST /revocations HTTP/1.1\r\nhost: localhost\r\n\
        content-type: application/json\r\ncontent-length: 100\r\n\r\n";
    let mut raw = Raw::send(gateway.data, request).await;
    let answer = raw.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

/// Everything that the gateway writes, tells or shows of itself, searched for every secret it has
/// been given.
#[tokio::test]
async fn secrets_are_written_nowhere() {
    const PASSWORD: &str = "canary-51c8-of-redis";
    let redis = Redis::start().await;
    let password = format!(">{PASSWORD}");
    let user = [
        "ACL", "SETUSER", "gateway", "on", &password, "~*", "&*", "+@all",
    ];
    let _: String = redis.command(&user).await;
    let url = format!("redis://gateway:{PASSWORD}@127.0.0.1:{}", redis.port());
    let jwks = JwksServer::start().await;
    let issuer = Issuer::new("1");
    jwks.serve(&[&issuer]);
    let variables = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_JWKS_URL", jwks.url.as_str()),
        ("FANFARE_LOG", "trace"),
        ("FANFARE_RETRY", "100ms,200ms"),
    ];
    let gateway = Gateway::start(&variables).await;
    // The log says who asks, and nothing else that a token says.
    let good = token(json!({
        "sub": "reader-9a02",
        "email": "canary-9a02-claim",
        "fanfare": { "subscribe": ["a"], "publish": ["a"] },
    }));
    let wrong = good.replacen('.', ".x", 1);
    let ticket = draw(&gateway, &good).await;
    let mut told = String::new();
    // Right and wrong, over both versions of HTTP.
    for token in [&good, &wrong] {
        let cookie = ("cookie", format!("fanfare={token}"));
        for headers in [bearer(token).to_vec(), vec![cookie]] {
            let answer = request("GET", gateway.url("/events/b"), &headers).await;
            told += &answer.text().await.unwrap();
            let answer = request("POST", gateway.url("/events/a"), &headers).await;
            told += &answer.text().await.unwrap();
        }
        let client = reqwest::Client::builder()
            .http2_prior_knowledge()
            .build()
            .unwrap();
        let request = client.get(gateway.url("/events/b")).bearer_auth(token);
        told += &within("an answer", request.send())
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        told += &asked(&gateway, &format!("/events/a?token={token}"), None)
            .await
            .1;
    }
    let spent = format!("/events/a?ticket={ticket}");
    drop(gateway.events(&spent).await.opened().await);
    told += &asked(&gateway, &spent, None).await.1;
    for path in ["/metrics", "/readyz", "/livez"] {
        told += &gateway.admin_get(path).await.1;
    }
    let arguments = format!("/proc/{}/cmdline", gateway.process.0.id());
    told += &std::fs::read_to_string(arguments).unwrap();
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .arg("check")
        .envs(variables)
        .output()
        .unwrap();
    assert!(check.status.success());
    told += &String::from_utf8_lossy(&check.stdout);
    told += &String::from_utf8_lossy(&check.stderr);
    assert!(!told.contains("reader-9a02"), "only the log says who asks");
    told += &gateway.log().join("\n");
    assert!(told.contains("listening"), "the log is among it");
    assert!(told.contains("reader-9a02"), "the log says who asks");
    let signature = good.rsplit('.').next().unwrap();
    for secret in [PASSWORD, SECRET, "canary", signature, &ticket] {
        if let Some(at) = told.find(secret) {
            let start = told[..at].rfind('\n').unwrap_or(0);
            panic!(
                "{secret} is in {}",
                &told[start..(at + 200).min(told.len())]
            );
        }
    }
}

#[test]
fn a_start_without_rules_or_with_weak_ones_is_refused_and_check_says_why() {
    let check = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .arg("check")
            .args(arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!told.contains("canary"), "{told}");
        (output.status.success(), told)
    };
    let outside = ["--listen", "0.0.0.0:0", "--redis-url", "memory:"];
    for (arguments, variables, told) in [
        (&outside[..], &[][..], "FANFARE_PUBLIC_CHANNELS"),
        (
            &outside,
            &[("FANFARE_JWT_SECRET", "canary")],
            "FANFARE_JWT_SECRET",
        ),
        (
            &[],
            &[("FANFARE_JWT_SECRET_FILE", "/nowhere")],
            "FANFARE_JWT_SECRET_FILE",
        ),
        (
            &[],
            &[("FANFARE_JWT_PUBLIC_KEY_FILE", "/dev/null")],
            "FANFARE_JWT_PUBLIC_KEY_FILE",
        ),
        (
            &[],
            &[("FANFARE_JWKS_URL", "http://id.example/canary")],
            "FANFARE_JWKS_URL",
        ),
        (&[], &[("FANFARE_JWT_ISSUER", "me")], "FANFARE_JWT_ISSUER"),
        (
            &["--jwt-secret", SECRET],
            &[],
            "other users of the machine can read arguments",
        ),
        (
            &["--redis-url", "redis://:canary@127.0.0.1"],
            &[],
            "other users of the machine can read arguments",
        ),
    ] {
        let (valid, text) = check(arguments, variables);
        assert!(
            !valid && text.contains(told),
            "{arguments:?} {variables:?}: {text}"
        );
    }
    assert!(check(&outside, &[("FANFARE_JWT_SECRET", SECRET)]).0);
    let jwks = ("FANFARE_JWKS_URL", "https://id.example/keys");
    assert!(check(&outside, &[jwks, ("FANFARE_JWT_AUDIENCE", "fanfare")]).0);
}

#[tokio::test]
async fn the_commands_show_a_token() {
    let gateway = guarded(&[]).await;
    let token = granting(json!({ "subscribe": ["a"], "publish": ["a"] }));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let url = gateway.url("");
    let run = async |arguments: Vec<String>, variables: Vec<(&'static str, String)>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.args(arguments).envs(variables);
        let running = tokio::task::spawn_blocking(move || command.output().unwrap());
        within("the command ends", running).await.unwrap()
    };
    let words = |words: &[&str]| -> Vec<String> {
        let all = words.iter().copied().chain(["--url", &url]);
        all.map(str::to_owned).collect()
    };
    let published = run(words(&["publish", "a", "x"]), vec![]).await;
    assert!(!published.status.success());
    let published = run(
        words(&["publish", "a", "x"]),
        vec![("FANFARE_TOKEN", token.clone())],
    )
    .await;
    assert!(published.status.success(), "{published:?}");
    let path = file.to_str().unwrap();
    let tail = words(&[
        "tail",
        "a",
        "--history",
        "1",
        "--count",
        "1",
        "--token-file",
        path,
    ]);
    let tail = run(tail, vec![]).await;
    assert!(
        String::from_utf8_lossy(&tail.stdout).ends_with("\tmessage\tx\n"),
        "{tail:?}"
    );
    let exposed = run(words(&["tail", "a", "--token", &token]), vec![]).await;
    assert!(!exposed.status.success());
    let told = String::from_utf8_lossy(&exposed.stderr);
    assert!(
        told.contains("other users") && !told.contains(&token),
        "{told}"
    );
}
