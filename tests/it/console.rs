//! The console: its page in a real browser, and its feed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::proxy::Proxy;
use crate::support::{Events, Gateway, Raw, Redis, eventually, test_within, within};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

fn console_of(gateway: &Gateway) -> String {
    format!("http://{}/console", gateway.admin)
}

/// What a replica's console tells, from now on.
async fn feed(gateway: &Gateway) -> Events {
    Events::open(&format!("{}/feed", console_of(gateway))).await
}

/// How things are, told next.
async fn now(feed: &mut Events) -> Value {
    loop {
        let event = feed.event().await;
        if event.event.as_deref() == Some("now") {
            return serde_json::from_str(&event.data.unwrap()).unwrap();
        }
    }
}

/// The first that is told for which `holds`.
async fn once(feed: &mut Events, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    within(what, async {
        loop {
            let now = now(feed).await;
            if holds(&now) {
                return now;
            }
        }
    })
    .await
}

async fn open(gateway: &Gateway, channel: &str, count: usize) -> Vec<Events> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let stream = gateway.events(&format!("/events/{channel}")).await;
        streams.push(stream.opened().await);
    }
    streams
}

/// Publishes kept events to `orders` and live ones to `ticks`, some a second, until dropped.
struct Publishing(Arc<AtomicBool>);

impl Publishing {
    async fn start(redis: &Redis) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut connection = redis.connection().await;
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move {
            // Bounded: two minutes.
            for number in 0..2400 {
                if stopped.load(Relaxed) {
                    break;
                }
                let mut kept = redis::cmd("FCALL");
                kept.arg("fanfare_publish")
                    .arg(1)
                    .arg("sse:orders")
                    .arg(number);
                kept.exec_async(&mut connection).await.unwrap();
                let mut live = redis::cmd("PUBLISH");
                live.arg("sse:ticks").arg(number);
                live.exec_async(&mut connection).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self(stop)
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The shown rows of a table, cell by cell.
async fn rows(browser: &Browser, table: &str) -> Vec<Vec<String>> {
    let script = format!(
        "return Array.from(document.querySelectorAll('#{table} tr'), (row) =>
            Array.from(row.cells, (cell) => cell.innerText.trim()))"
    );
    serde_json::from_value(browser.run(&script).await).unwrap()
}

/// The value of the tile at `position`, counted from 1.
async fn tile(browser: &Browser, position: usize) -> String {
    browser
        .text(&format!("#tiles .tile:nth-child({position}) .value"))
        .await
}

#[tokio::test]
async fn the_page_shows_the_fleet_live() {
    let redis = Redis::start().await;
    let one = Gateway::behind(&redis, &[]).await;
    let two = Gateway::behind(&redis, &[]).await;
    let _streams = [
        open(&one, "orders", 3).await,
        open(&one, "ticks", 2).await,
        open(&two, "orders", 4).await,
    ];
    let browser = Browser::start().await;
    browser.goto(&console_of(&one)).await;
    assert_eq!(browser.client.title().await.unwrap(), "Fanfare console");
    browser
        .shows("#tiles .tile:nth-child(1) .value", "2 of 2")
        .await;
    browser.shows("#tiles .tile:nth-child(2) .value", "9").await;
    let shown = rows(&browser, "fleet").await;
    assert_eq!(shown.len(), 2, "{shown:?}");
    let port = |gateway: &Gateway| format!(":{}", gateway.data.port());
    for (gateway, connections) in [(&one, "5"), (&two, "4")] {
        let row = shown
            .iter()
            .find(|row| row[0].contains(&port(gateway)))
            .unwrap();
        assert_eq!((&*row[1], &*row[2]), ("ready", connections));
        assert_eq!(row[13], env!("CARGO_PKG_VERSION"));
        assert_eq!(row[0].contains("this one"), gateway.data == one.data);
    }
    assert_eq!(rows(&browser, "channels").await.len(), 0);

    // Events arrive: kept ones reach seven clients, live ones two.
    let publishing = Publishing::start(&redis).await;
    eventually("channels are shown", async || {
        let shown = rows(&browser, "channels").await;
        let names: Vec<_> = shown.iter().map(|row| (&*row[0], &*row[1])).collect();
        names == [("orders", "7"), ("ticks", "2")]
    })
    .await;
    eventually("events are counted", async || {
        tile(&browser, 3).await != "0/s" && tile(&browser, 4).await != "0/s"
    })
    .await;
    eventually("latency is measured", async || {
        tile(&browser, 5).await != "–"
    })
    .await;
    for chart in 1..=4 {
        let drawn = format!("#charts section:nth-child({chart}) svg path");
        eventually("a line is drawn", async || {
            browser
                .client
                .find(fantoccini::Locator::Css(&drawn))
                .await
                .is_ok()
        })
        .await;
    }
    drop(publishing);

    // A replica leaves without a word.
    drop(two);
    eventually("it is gone", async || {
        let shown = rows(&browser, "fleet").await;
        tile(&browser, 1).await == "1 of 2" && shown[1][1].starts_with("silent for")
    })
    .await;
    browser.shows("#tiles .tile:nth-child(2) .value", "5").await;
    let script = "return document.querySelector('#tiles .tile').dataset.state";
    assert_eq!(browser.run(script).await, "bad");
    let note = browser.text("#tiles .tile:nth-child(2) .note").await;
    assert!(note.ends_with(", without 1 silent"), "{note}");
    let state = browser.text("#live").await;
    assert!(state.ends_with("; 1 silent"), "{state}");
    assert_eq!(rows(&browser, "fleet").await[1][2], "–");
    // Another joins, and one says that it is about to stop.
    let three = Gateway::behind(&redis, &[("FANFARE_DRAIN_DELAY", "60s")]).await;
    browser
        .shows("#tiles .tile:nth-child(1) .value", "2 of 3")
        .await;
    three.process.signal("TERM");
    browser
        .shows("#tiles .tile:nth-child(1) .value", "1 of 3")
        .await;
    let shown = rows(&browser, "fleet").await;
    let row = shown
        .iter()
        .find(|row| row[0].contains(&port(&three)))
        .unwrap();
    assert_eq!(row[1], "not ready\nstopping");

    // The gateway itself goes: the page says so.
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    drop(one);
    browser
        .shows("#live", "connection lost, trying again")
        .await;
    browser.close().await;
}

#[tokio::test]
async fn any_replica_s_console_shows_all_and_what_it_cannot_read_changes_nothing() {
    let redis = Redis::start().await;
    let one = Gateway::behind(&redis, &[]).await;
    let two = Gateway::behind(&redis, &[]).await;
    let _streams = open(&one, "a", 2).await;
    let (mut first, mut second) = (feed(&one).await, feed(&two).await);
    for feed in [&mut first, &mut second] {
        let both = once(feed, "both are ready", |now| now["point"]["ready"] == 2).await;
        assert_eq!(both["point"]["connections"], 2);
        let here = both["replicas"].as_array().unwrap().iter();
        assert_eq!(here.filter(|replica| replica["here"] == true).count(), 1);
    }
    let hostile = json!({"report": {"v": 1, "id": "x", "name": "<img src=x onerror=alert(1)>",
        "connections": 7, "uptime_ms": 1}});
    for message in [
        "junk".to_owned(),
        "{".repeat(10_000),
        "x".repeat(1 << 20),
        json!({"report": {"v": 99, "id": "y"}}).to_string(),
        json!({"later": {}}).to_string(),
        hostile.to_string(),
    ] {
        redis.publish("$control", message).await;
    }
    let three = once(&mut first, "it is shown", |now| {
        now["point"]["connections"] == 9
    })
    .await;
    assert_eq!(three["replicas"].as_array().unwrap().len(), 3);
    let browser = Browser::start().await;
    browser.goto(&console_of(&one)).await;
    eventually("it is shown as text", async || {
        let shown = rows(&browser, "fleet").await;
        shown
            .iter()
            .any(|row| row[0] == "<img src=x onerror=alert(1)>")
    })
    .await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn a_console_costs_nothing_while_nobody_looks() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.subscribe("sse:$control").await.unwrap();
    let mut messages = listener.into_on_message();
    let mut feed = feed(&gateway).await;
    now(&mut feed).await;
    within("a message", messages.next()).await.unwrap();
    drop(feed);
    // Its last call is good for ten seconds.
    let silence = Duration::from_secs(5);
    test_within(Duration::from_secs(40), async {
        while timeout(silence, messages.next()).await.is_ok() {}
    })
    .await;
    // Who looks again gets news, and none of the past.
    let mut feed = Events::open(&format!("{}/feed", console_of(&gateway))).await;
    let past = feed.event().await;
    assert_eq!(past.event.as_deref(), Some("past"));
    let past: Value = serde_json::from_str(&past.data.unwrap()).unwrap();
    assert_eq!(past["points"], json!([]));
    now(&mut feed).await;
    within("a message", messages.next()).await.unwrap();
}

#[tokio::test]
async fn latency_gaps_and_slow_clients_are_shown() {
    let redis = Redis::start().await;
    let variables = [
        ("FANFARE_CLIENT_BUFFER_BYTES", "256KiB"),
        ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
    ];
    let gateway = Gateway::behind(&redis, &variables).await;
    let _orders = open(&gateway, "orders", 2).await;
    let mut slow = Raw::get(gateway.data, "/events/large").await;
    slow.until("retry: ").await;
    let browser = Browser::start().await;
    browser.goto(&console_of(&gateway)).await;
    browser.shows("#tiles .tile:nth-child(2) .value", "3").await;
    assert_eq!(tile(&browser, 6).await, "0");
    let cell = async |column: usize| rows(&browser, "fleet").await[0][column].clone();
    assert_eq!((cell(8).await, cell(9).await), ("0".into(), "0".into()));

    let _publishing = Publishing::start(&redis).await;
    // A cursor that is none: one gap. And a client that does not read.
    let _lost = gateway.events("/events/orders?last_event_id=none").await;
    let large = "x".repeat(100_000);
    eventually("the slow one is cut off", async || {
        redis.publish("large", &large).await;
        let closed = r#"fanfare_connections_closed_total{reason="slow_client"}"#;
        gateway.metric(closed).await == 1.0
    })
    .await;
    eventually("all of it is shown", async || {
        let is_time = |text: &str| text.ends_with("ms") || text.ends_with('s');
        let bars = browser
            .run("return document.querySelectorAll('#charts section:nth-child(6) rect').length");
        cell(8).await == "1"
            && cell(9).await == "1"
            && is_time(&cell(6).await)
            && tile(&browser, 6).await == "1"
            && is_time(&tile(&browser, 5).await)
            && bars.await == 2
    })
    .await;
    let note = browser.text("#tiles .tile:nth-child(6) .note").await;
    assert!(note.starts_with("unknown_id 1; 1 slow clients"), "{note}");
    let latency = browser.text("#charts section:nth-child(4) .legend").await;
    assert!(
        latency.contains("p50") && latency.contains("p99"),
        "{latency}"
    );
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

/// A gateway that hangs keeps its connections, and says nothing.
#[tokio::test]
async fn a_page_says_when_it_hears_nothing() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&console_of(&gateway)).await;
    browser
        .shows("#tiles .tile:nth-child(1) .value", "1 of 1")
        .await;
    let state = async || {
        let text = browser.text("#live").await;
        (browser.run("return document.body.dataset.live").await, text)
    };
    let (is_live, text) = state().await;
    assert!(is_live == "yes" && text.starts_with("live, "), "{text}");
    gateway.process.signal("STOP");
    eventually("the page says so", async || {
        let (is_live, text) = state().await;
        is_live == "no" && text.starts_with("nothing for ")
    })
    .await;
    gateway.process.signal("CONT");
    eventually("it is live again", async || state().await.0 == "yes").await;
    browser.close().await;
}

/// While Redis is away nothing is known of other replicas: they are not said to be gone, and the sums
/// are not the fleet's.
#[tokio::test]
async fn while_redis_is_away_only_this_replica_is_seen() {
    let redis = Redis::start().await;
    let proxy = Proxy::to(&redis).await;
    let url = proxy.url();
    let one = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let two = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
    let _streams = [open(&one, "a", 1).await, open(&two, "a", 2).await];
    let browser = Browser::start().await;
    browser.goto(&console_of(&one)).await;
    let value = "#tiles .tile:nth-child(1) .value";
    browser.shows(value, "2 of 2").await;
    let mut feed = feed(&one).await;
    proxy.stall(true);
    let mut blames_nobody = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
        once(&mut feed, what, |now| {
            let replicas = now["replicas"].as_array().unwrap();
            assert!(
                replicas.iter().all(|one| one["presence"] != "silent"),
                "{now}"
            );
            holds(now)
        })
        .await
    };
    let away = blames_nobody("the other is not heard", &|now| {
        now["point"]["partial"] == true && now["point"]["ready"] == 0
    })
    .await;
    assert_eq!(away["point"]["connections"], 1);
    browser.shows(value, "0 of ?").await;
    assert_eq!(rows(&browser, "fleet").await[1][1], "not seen");
    let state = browser.text("#live").await;
    assert!(state.contains("; only this replica is seen"), "{state}");
    let legend = browser.text("#charts section:nth-child(1) .legend").await;
    assert!(legend.ends_with('–'), "{legend}");
    proxy.stall(false);
    blames_nobody("both are back", &|now| {
        now["point"]["partial"] == false && now["point"]["connections"] == 3
    })
    .await;
    browser.shows(value, "2 of 2").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

/// What Redis does not take must not hold up what is shown.
#[tokio::test]
async fn while_redis_says_nothing_the_console_goes_on() {
    let redis = Redis::start().await;
    let proxy = Proxy::to(&redis).await;
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &proxy.url())]).await;
    let mut feed = feed(&gateway).await;
    let lag = |now: &Value| now["replicas"][0]["bus_lag"].clone();
    once(&mut feed, "a probe is back", |now| lag(now).is_number()).await;
    proxy.stall(true);
    let mut before: Option<u64> = None;
    let down = loop {
        let now = now(&mut feed).await;
        let at = now["point"]["at"].as_u64().unwrap();
        // Every two seconds. A message takes five to fail, and there are two.
        assert!(before.is_none_or(|before| at - before < 6000), "{now}");
        before = Some(at);
        if now["point"]["ready"] == 0 {
            break now;
        }
    };
    // The last good probe says nothing of now.
    assert_eq!(lag(&down), Value::Null);
    proxy.stall(false);
    once(&mut feed, "it is back", |now| {
        now["point"]["ready"] == 1 && lag(now).is_number()
    })
    .await;
}

#[tokio::test]
async fn one_replica_alone_has_a_console_for_a_few_pages() {
    let gateway = Gateway::start(&[]).await;
    let _stream = open(&gateway, "a", 1).await;
    let mut feeds = Vec::new();
    for _ in 0..32 {
        feeds.push(feed(&gateway).await);
    }
    assert_eq!(gateway.admin_get("/console/feed").await.0, 503);
    // A page says so, pretends to know nothing, and tries again.
    let browser = Browser::start().await;
    browser.goto(&console_of(&gateway)).await;
    browser
        .shows(
            "#live",
            "32 consoles are open on this replica, and there may be no more; trying again",
        )
        .await;
    assert_eq!(browser.text("#no-channels").await, "");
    let shown = now(&mut feeds[0]).await;
    assert_eq!(shown["point"]["connections"], 1);
    assert_eq!(shown["replicas"][0]["bus_lag"], Value::Null);
    // Who comes later is shown what was before.
    now(&mut feeds[0]).await;
    drop(feeds.split_off(1));
    eventually("the page gets its turn", async || {
        browser.text("#live").await.starts_with("live, ")
    })
    .await;
    let empty = browser.text("#no-channels").await;
    assert_eq!(empty, "Nothing has been published lately.");
    browser.close().await;
    eventually("a page more fits", async || {
        let url = format!("{}/feed", console_of(&gateway));
        reqwest::get(url).await.unwrap().status() == 200
    })
    .await;
    let past = feed(&gateway).await.event().await;
    let past: Value = serde_json::from_str(&past.data.unwrap()).unwrap();
    assert!(past["points"].as_array().unwrap().len() >= 2, "{past}");
    // The data listener has none of it.
    assert_eq!(gateway.get("/console").await.0, 404);
    assert_eq!(gateway.get("/console/feed").await.0, 404);
}

/// Leaves pictures of the page in `target/tmp`.
#[tokio::test]
async fn the_page_is_light_or_dark_and_fits_a_narrow_window() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let redis = Redis::start().await;
    let one = Gateway::behind(&redis, &[]).await;
    let two = Gateway::behind(&redis, &[]).await;
    let _streams = [open(&one, "orders", 3).await, open(&two, "ticks", 5).await];
    let _publishing = Publishing::start(&redis).await;
    let browser = Browser::start().await;
    browser.client.set_window_size(1440, 1250).await.unwrap();
    browser.goto(&console_of(&one)).await;
    browser.shows("#tiles .tile:nth-child(2) .value", "8").await;
    eventually("both channels are shown", async || {
        rows(&browser, "channels").await.len() == 2
    })
    .await;
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let picture = within("a screenshot", browser.client.screenshot()).await;
        std::fs::write(format!("{folder}/console-{scheme}.png"), picture.unwrap()).unwrap();
        let script = "return getComputedStyle(document.body).backgroundColor";
        backgrounds.push(browser.run(script).await);
    }
    assert_ne!(backgrounds[0], backgrounds[1]);
    browser.client.set_window_size(500, 1000).await.unwrap();
    eventually("the charts are drawn anew", async || {
        let script = "return [...document.querySelectorAll('.chart')].every((box) =>
            box.querySelector('svg').getBoundingClientRect().right <= innerWidth)
            && document.documentElement.scrollWidth <= innerWidth
            && [...document.querySelectorAll('td')].every((cell) =>
                cell.getBoundingClientRect().right <= innerWidth && cell.dataset.label)";
        browser.run(script).await == true
    })
    .await;
    let picture = within("a screenshot", browser.client.screenshot()).await;
    std::fs::write(format!("{folder}/console-narrow.png"), picture.unwrap()).unwrap();
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}
