//! The three browser engines that people use lose nothing that is kept, whatever becomes of their
//! stream. Chromium notes an `id` without data, Firefox and WebKit do not.

use serde_json::{Value, json};

use crate::support::engines::{Engine, Page};
use crate::support::proxy::Proxy;
use crate::support::{DEADLINE, Gateway, Redis, eventually, eventually_within};

#[tokio::test]
async fn chromium_loses_nothing() {
    loses_nothing(Engine::Chromium).await;
}

#[tokio::test]
async fn firefox_loses_nothing() {
    loses_nothing(Engine::Firefox).await;
}

#[tokio::test]
async fn webkit_loses_nothing() {
    loses_nothing(Engine::WebKit).await;
}

/// How long a history stays. Long enough for every reconnection on a busy machine.
const TTL: &str = "20s";

/// Two replicas behind one address, and a page with a stream from there.
struct Scene {
    redis: Redis,
    proxy: Proxy,
    page: Page,
    /// Everything kept so far.
    kept: Vec<String>,
}

async fn replica(redis: &Redis, more: &[(&str, &str)]) -> Gateway {
    let variables = [
        ("FANFARE_RETRY", "100ms,200ms"),
        ("FANFARE_HEARTBEAT", "500ms"),
        ("FANFARE_MAX_REPLICATION_LAG", "1s"),
        ("FANFARE_HISTORY_TTL", TTL),
    ];
    Gateway::behind(redis, &[&variables[..], more].concat()).await
}

impl Scene {
    /// The page's own stream, as a page opens it that knows nothing of cursors; what comes as
    /// `$cursor` is counted to know when the stream is open.
    async fn open(redis: Redis, first: &Gateway, engine: Engine) -> Self {
        let proxy = Proxy::to_address(first.data).await;
        let mut page = engine.start().await;
        page.goto(&proxy.http_url("/")).await;
        page.run(
            "window.seen = []; window.gaps = []; window.streams = 0; window.cursors = 0;
             window.source = new EventSource('/events/a');
             source.onopen = () => { window.streams += 1; window.cursors = 0; };
             source.onmessage = (event) => { window.seen.push(event.data); };
             source.addEventListener('$cursor', () => { window.cursors += 1; });
             source.addEventListener('$gap', (event) => { window.gaps.push(event.data); });",
        )
        .await;
        let mut scene = Self {
            redis,
            proxy,
            page,
            kept: Vec::new(),
        };
        scene.opened(1).await;
        scene
    }

    /// Waits until the page's stream number `number` is open and proven.
    async fn opened(&mut self, number: u64) {
        let script = "return window.cursors === 0 ? 0 : window.streams";
        self.shows(script, |streams| streams.as_u64() >= Some(number))
            .await;
    }

    async fn shows(&mut self, script: &str, is_right: impl Fn(&Value) -> bool) {
        let page = tokio::sync::Mutex::new(&mut self.page);
        eventually(script, async || {
            is_right(&page.lock().await.run(script).await)
        })
        .await;
    }

    async fn keep(&mut self, data: &str) {
        self.redis.keep("a", data, &[]).await;
        self.kept.push(data.to_owned());
    }

    /// Waits until the page has every event, once and in order, and no `$gap`.
    async fn complete(&mut self) {
        let kept = self.kept.len();
        self.shows("return window.seen.length", |seen| {
            seen.as_u64() >= Some(kept as u64)
        })
        .await;
        let seen = self.page.run("return [window.seen, window.gaps]").await;
        assert_eq!(seen, json!([self.kept, []]));
    }
}

async fn loses_nothing(engine: Engine) {
    let redis = Redis::start().await;
    let first = replica(&redis, &[]).await;
    let mut scene = Scene::open(redis, &first, engine).await;

    // Cut off before the first event.
    scene.proxy.refuse();
    scene.keep("before the first event").await;
    scene.proxy.point_at(first.data);
    scene.complete().await;

    // Silent for longer than the history lives, and then cut off. The first heartbeat after the
    // history's end has a cursor from well after its event.
    eventually_within(2 * DEADLINE, "the history expires", async || {
        let mut connection = scene.redis.connection().await;
        let exists = redis::cmd("EXISTS").arg("sse:a").to_owned();
        let exists: u64 = exists.query_async(&mut connection).await.unwrap();
        exists == 0
    })
    .await;
    let heartbeats = "fanfare_heartbeats_total";
    let before = first.metric(heartbeats).await;
    eventually("heartbeats come", async || {
        first.metric(heartbeats).await >= before + 2.0
    })
    .await;
    scene.proxy.cut();
    scene.opened(3).await;
    scene.keep("after silence").await;
    scene.complete().await;

    // The gateway is killed, and comes back.
    first.process.signal("KILL");
    scene.keep("while the gateway was away").await;
    let address = first.data.to_string();
    drop(first);
    let first = replica(&scene.redis, &[("FANFARE_LISTEN", &address)]).await;
    scene.complete().await;

    // It drains, and another replica takes over.
    let second = replica(&scene.redis, &[]).await;
    scene.proxy.point_at(second.data);
    first.process.signal("TERM");
    scene.keep("while the gateway stopped").await;
    scene.complete().await;
    eventually("the second replica has the stream", async || {
        second.metric("fanfare_connections").await == 1.0
    })
    .await;

    // Another replica, which has seen nothing of it.
    let third = replica(&scene.redis, &[]).await;
    scene.proxy.refuse();
    scene.keep("on another replica").await;
    scene.proxy.point_at(third.data);
    scene.complete().await;
    assert_eq!(third.metric("fanfare_connections").await, 1.0);
}

#[tokio::test]
async fn chromium_stops_at_the_end() {
    stops_at_the_end(Engine::Chromium).await;
}

#[tokio::test]
async fn firefox_stops_at_the_end() {
    stops_at_the_end(Engine::Firefox).await;
}

#[tokio::test]
async fn webkit_stops_at_the_end() {
    stops_at_the_end(Engine::WebKit).await;
}

/// A page that does nothing about `$end` comes back once, and stops at the 204.
async fn stops_at_the_end(engine: Engine) {
    let redis = Redis::start().await;
    let gateway = replica(&redis, &[]).await;
    let mut page = engine.start().await;
    page.goto(&gateway.url("/")).await;
    page.run(
        "window.seen = []; window.ends = 0; window.errors = 0; window.cursors = 0;
         window.source = new EventSource('/events/run.1?history=9');
         source.onmessage = (event) => { window.seen.push(event.data); };
         source.onerror = () => { window.errors += 1; };
         source.addEventListener('$cursor', () => { window.cursors += 1; });
         source.addEventListener('$end', () => { window.ends += 1; });",
    )
    .await;
    let state = "return [source.readyState, window.errors, window.ends, window.seen.join()]";
    eventually("the stream is open", async || {
        gateway.metric("fanfare_connections").await == 1.0
    })
    .await;
    redis.keep("run.1", "token", &[]).await;
    redis.keep("run.1", "last", &["end", "done"]).await;
    let over = json!([2, 2, 1, "token,last"]);
    let page = tokio::sync::Mutex::new(page);
    eventually("the page has stopped", async || {
        page.lock().await.run(state).await == over
    })
    .await;
    assert!(gateway.metric("fanfare_ended_answers_total").await == 1.0);
}
