//! The demo page in a real browser.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::support::browser::Browser;
use crate::support::{Gateway, Redis, eventually, within};
use fantoccini::Locator;
use serde_json::{Value, json};

/// The page's log, newest first, a line as `[connection, event, data]`.
async fn log(browser: &Browser) -> Vec<[String; 3]> {
    let rows = browser
        .run(
            "return Array.from(document.querySelectorAll('#log tr'), (row) =>
                [1, 2, 4].map((column) => row.cells[column].textContent))",
        )
        .await;
    serde_json::from_value(rows).unwrap()
}

/// Waits until the log has a line.
async fn logged(browser: &Browser, connection: &str, event: &str, data: &str) {
    let line = [connection, event, data];
    eventually(&format!("the log shows {line:?}"), async || {
        log(browser).await.iter().any(|shown| shown == &line)
    })
    .await;
}

/// The CSS selector of a part of the card at `position`, counted from 1.
fn card(position: usize, part: &str) -> String {
    format!("#connections article:nth-child({position}) {part}")
}

/// Starts the connection of a card and waits until it is open.
async fn start(browser: &Browser, position: usize) {
    browser.click(&card(position, ".toggle")).await;
    browser.shows(&card(position, ".state"), "open").await;
}

async fn publish(browser: &Browser, name: &str, data: &str) {
    browser.fill("#event-name", name).await;
    browser.fill("#data", data).await;
    browser.click("#publish button").await;
}

async fn assert_no_complaints(browser: &Browser) {
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test]
async fn connections_open_receive_and_stop() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    assert_eq!(browser.client.title().await.unwrap(), "Fanfare demo");
    assert_eq!(browser.text(&card(1, ".state")).await, "closed");

    start(&browser, 1).await;
    start(&browser, 3).await;
    logged(&browser, "Orders", "onopen", "events/orders").await;
    let both = "events?channel=orders&channel=prices";
    logged(&browser, "Everything", "onopen", both).await;

    // A connection's channel, from outside and from the page.
    gateway.post("/events/orders?keep=false", "outside").await;
    logged(&browser, "Orders", "message", "outside").await;
    logged(&browser, "Everything", "message", "outside").await;
    browser
        .find("#target")
        .await
        .select_by_label("Prices: prices")
        .await
        .unwrap();
    publish(&browser, "price", "42").await;
    logged(&browser, "Everything", "price", "42").await;
    let id = browser.text(&card(3, ".cursor")).await;
    let told = format!("Published to prices as {id}.");
    browser.shows("#published", &told).await;

    // All of them; a name nobody listens for yet is added to the list.
    browser
        .find("#target")
        .await
        .select_by_value("all")
        .await
        .unwrap();
    browser.click("#keep").await;
    publish(&browser, "greeting", "to all").await;
    browser
        .shows("#published", "Published to orders, prices.")
        .await;
    logged(&browser, "Orders", "greeting", "to all").await;
    logged(&browser, "Everything", "greeting", "to all").await;
    browser.shows(&card(1, ".count"), "2 events").await;
    browser.shows(&card(3, ".count"), "4 events").await;

    // A stopped connection is gone at the gateway, and shows nothing more.
    browser.click(&card(1, ".toggle")).await;
    browser.shows(&card(1, ".state"), "closed").await;
    logged(&browser, "Orders", "stopped", "").await;
    eventually("one stream is left", async || {
        gateway.metric("fanfare_connections").await == 1.0
    })
    .await;
    publish(&browser, "", "afterwards").await;
    logged(&browser, "Everything", "message", "afterwards").await;
    browser.shows(&card(1, ".count"), "2 events").await;

    assert_no_complaints(&browser).await;
    browser.close().await;
}

#[tokio::test]
async fn the_clock_publishes_every_second() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    browser.click("#clock").await;
    eventually("three events", async || {
        browser.text(&card(1, ".count")).await == "3 events"
    })
    .await;
    browser.click("#clock").await;
    assert_no_complaints(&browser).await;
    browser.close().await;
}

#[tokio::test]
async fn data_that_looks_like_markup_is_shown_as_text() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    // The name of a connection is the user's own, and text all the same.
    let name = "<b>Orders</b>";
    browser.fill(&card(1, ".name"), name).await;
    start(&browser, 1).await;
    let markup =
        "<img src=x onerror=\"document.title='run'\">\n<script>document.title='run'</script>";
    publish(&browser, "<i>price</i>", markup).await;
    logged(&browser, name, "<i>price</i>", markup).await;
    publish(&browser, "", "afterwards").await;
    logged(&browser, name, "message", "afterwards").await;
    let injected =
        "return document.querySelectorAll('main img, main script, main i, main b').length";
    assert_eq!(browser.run(injected).await, json!(0));
    assert_eq!(browser.client.title().await.unwrap(), "Fanfare demo");
    assert_no_complaints(&browser).await;

    // Even a fault in the page would not help: the browser makes no markup of text here, and
    // runs no script but the page's.
    let refused = browser
        .run(
            "try { document.body.innerHTML = '<p>'; return 'done' }
             catch (error) { return error.name }",
        )
        .await;
    assert_eq!(refused, json!("TypeError"));
    browser.close().await;
}

#[tokio::test]
async fn events_named_like_the_browsers_own_are_events() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    for name in ["error", "open", "message"] {
        publish(&browser, name, "data").await;
        logged(&browser, "Orders", name, "data").await;
    }
    browser.shows(&card(1, ".count"), "3 events").await;
    assert_eq!(browser.text(&card(1, ".state")).await, "open");
    browser.close().await;
}

#[tokio::test]
async fn the_page_leaves_the_browser_connections_for_publishing() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    browser.click("#add").await;
    browser.click("#add").await;
    for position in 1..=4 {
        start(&browser, position).await;
    }
    let fifth = browser.find(&card(5, ".toggle")).await;
    assert!(!fifth.is_enabled().await.unwrap());
    let why = browser.text("#limit").await;
    assert!(why.starts_with("4 of at most 4 are running. "), "{why}");
    publish(&browser, "", "hello").await;
    logged(&browser, "Connection 4", "message", "hello").await;
    browser.click(&card(1, ".toggle")).await;
    start(&browser, 5).await;
    assert_no_complaints(&browser).await;
    browser.close().await;
}

#[tokio::test]
async fn the_log_is_bounded() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    for number in 0..310 {
        let path = "/events/orders?keep=false";
        gateway.post(path, number.to_string()).await;
    }
    publish(&browser, "", &"x".repeat(2_500)).await;
    let shortened = format!("{}… (2500 characters)", "x".repeat(2_000));
    logged(&browser, "Orders", "message", &shortened).await;
    browser.shows(&card(1, ".count"), "311 events").await;
    let lines = log(&browser).await;
    assert_eq!(lines.len(), 300);
    assert_eq!(lines[299][2], "11");
    browser.click("#clear").await;
    assert_eq!(log(&browser).await.len(), 0);
    browser.close().await;
}

#[tokio::test]
async fn a_refused_connection_shows_the_reason() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    browser.fill(&card(1, ".channels"), "not/a/channel").await;
    browser.click(&card(1, ".toggle")).await;
    browser.shows(&card(1, ".state"), "error").await;
    let (_, problem) = gateway.get("/events/not%2Fa%2Fchannel").await;
    let problem: Value = serde_json::from_str(&problem).unwrap();
    let reason = problem["detail"].as_str().unwrap();
    logged(&browser, "Orders", "onerror", reason).await;
    browser.close().await;
}

#[tokio::test]
async fn the_browser_comes_back_by_itself_after_a_restart() {
    let variables = [("FANFARE_RETRY", "200ms,400ms")];
    let mut gateway = Gateway::start(&variables).await;
    let address = gateway.data.to_string();
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    assert_no_complaints(&browser).await;

    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
    browser.shows(&card(1, ".state"), "connecting").await;
    let lost = "connection lost, the browser reconnects";
    logged(&browser, "Orders", "onerror", lost).await;
    publish(&browser, "", "nobody answers").await;
    let refused = "Not published. The gateway does not answer.";
    browser.shows("#published", refused).await;

    let [retry] = variables;
    let gateway = Gateway::start(&[retry, ("FANFARE_LISTEN", &address)]).await;
    browser.shows(&card(1, ".state"), "open").await;
    gateway.post("/events/orders?keep=false", "again").await;
    logged(&browser, "Orders", "message", "again").await;

    // While nothing listened, the browser said so; and nothing else.
    let complaints = browser.complaints().await;
    let unexpected: Vec<_> = complaints
        .iter()
        .filter(|complaint| !(complaint.contains("/events/") && complaint.contains("net::ERR_")))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    browser.close().await;
}

#[tokio::test]
async fn pages_on_two_replicas_show_what_redis_publishes() {
    let redis = Redis::start().await;
    let replicas = [
        Gateway::behind(&redis, &[]).await,
        Gateway::behind(&redis, &[]).await,
    ];
    let browser = Browser::start().await;
    let first = browser.client.window().await.unwrap();
    let second = browser.client.new_window(false).await.unwrap().handle;
    let windows = [first, second];
    for (window, replica) in windows.iter().zip(&replicas) {
        browser
            .client
            .switch_to_window(window.clone())
            .await
            .unwrap();
        browser.goto(&replica.url("/")).await;
        start(&browser, 1).await;
    }
    redis_cli(&redis, &["PUBLISH", "sse:orders", "hello"]);
    for window in windows {
        browser.client.switch_to_window(window).await.unwrap();
        logged(&browser, "Orders", "message", "hello").await;
        browser.shows(&card(1, ".count"), "1 event").await;
        assert_no_complaints(&browser).await;
    }
    browser.close().await;
}

fn redis_cli(redis: &Redis, command: &[&str]) {
    let status = Command::new("redis-cli")
        .args(["-p", &redis.port().to_string()])
        .args(command)
        .stdout(Stdio::null())
        .status()
        .expect("redis-cli is missing: apt-get install redis-tools");
    assert!(status.success());
}

/// How many lines of the log are of a kind.
async fn lines_of(browser: &Browser, kind: &str) -> u64 {
    let script = format!("return document.querySelectorAll('tr[data-kind=\"{kind}\"]').length");
    browser.run(&script).await.as_u64().unwrap()
}

#[tokio::test]
async fn a_cut_connection_resumes_and_shows_what_was_kept_meanwhile() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    let first = gateway.keep("/events/orders", "first").await;
    logged(&browser, "Orders", "message", "first").await;
    browser.shows(&card(1, ".cursor"), &first).await;

    browser.click(&card(1, ".cut")).await;
    browser.shows(&card(1, ".state"), "cut").await;
    eventually("the stream is gone", async || {
        gateway.metric("fanfare_connections").await == 0.0
    })
    .await;
    let mut last = String::new();
    for data in ["one", "two", "three"] {
        last = gateway.keep("/events/orders", data).await;
    }
    gateway
        .post("/events/orders?keep=false", "nobody hears")
        .await;
    browser.click(&card(1, ".cut")).await;
    browser.shows(&card(1, ".state"), "open").await;
    logged(&browser, "Orders", "resumed", "3 events while away").await;
    browser.shows(&card(1, ".cursor"), &last).await;
    browser.shows(&card(1, ".count"), "4 events").await;
    assert_eq!(lines_of(&browser, "missed").await, 3);

    // What is new is not marked, be it kept or live.
    gateway.keep("/events/orders", "new").await;
    gateway.post("/events/orders?keep=false", "live").await;
    logged(&browser, "Orders", "message", "new").await;
    logged(&browser, "Orders", "message", "live").await;
    assert_eq!(lines_of(&browser, "missed").await, 3);
    let data: Vec<_> = log(&browser)
        .await
        .into_iter()
        .filter_map(|[_, event, data]| (event == "message").then_some(data))
        .collect();
    assert_eq!(data, ["live", "new", "three", "two", "one", "first"]);

    // A new one may begin with the newest.
    browser.fill(&card(2, ".channels"), "orders").await;
    browser.fill(&card(2, ".history"), "2").await;
    start(&browser, 2).await;
    logged(&browser, "Prices", "message", "three").await;
    browser.shows(&card(2, ".count"), "2 events").await;
    assert_no_complaints(&browser).await;
    browser.close().await;
}

/// Waits until the replica holds no recent events any more that a resume could be served from.
async fn forgotten(gateway: &Gateway) {
    eventually("the channels are let go", async || {
        gateway.metric("fanfare_channels").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_gap_is_shown_with_its_channel_and_reason() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 3).await;
    gateway.keep("/events/orders", "first").await;
    gateway.keep("/events/prices", "first").await;
    browser.shows(&card(3, ".count"), "2 events").await;
    let cursor = browser.text(&card(3, ".cursor")).await;
    browser.click(&card(3, ".cut")).await;
    forgotten(&gateway).await;
    let mut oldest = String::new();
    for data in ["one", "two", "three"] {
        oldest = gateway.keep("/events/orders?history=1", data).await;
    }
    browser.click(&card(3, ".cut")).await;
    let told = format!(
        "Gap in orders: expired. Events after {cursor} may be missing; the oldest still there: \
         {oldest}. An application now fetches its state anew."
    );
    browser.shows(&card(3, ".gaps"), &told).await;
    let data = format!(
        r#"{{"channel":"orders","reason":"expired","after":"{cursor}","oldest":"{oldest}"}}"#
    );
    logged(&browser, "Everything", "$gap", &data).await;
    logged(&browser, "Everything", "message", "three").await;
    assert_eq!(lines_of(&browser, "gap").await, 1);
    assert_no_complaints(&browser).await;
    browser.close().await;
}

#[tokio::test]
async fn publishing_keeps_an_event_or_not_and_once_for_a_key() {
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    browser
        .find("#target")
        .await
        .select_by_label("Orders: orders")
        .await
        .unwrap();
    start(&browser, 1).await;
    browser.fill("#key", "k").await;
    publish(&browser, "", "once").await;
    logged(&browser, "Orders", "message", "once").await;
    let id = browser.text(&card(1, ".cursor")).await;
    let told = format!("Published to orders as {id}.");
    browser.shows("#published", &told).await;
    publish(&browser, "", "again").await;
    browser.click("#keep").await;
    publish(&browser, "", "live").await;
    logged(&browser, "Orders", "message", "live").await;
    browser.shows("#published", "Published to orders.").await;
    browser.shows(&card(1, ".count"), "2 events").await;
    assert_no_complaints(&browser).await;
    browser.close().await;
}

/// Chromium's own `EventSource`, with nothing around it, on a gateway that ends and starts again
/// while events are published all the time.
#[tokio::test]
async fn the_browser_misses_nothing_across_restarts() {
    let redis = Arc::new(Redis::start().await);
    let mut variables = vec![
        ("FANFARE_RETRY", "100ms,200ms"),
        // However fast this machine publishes while nobody listens.
        ("FANFARE_HISTORY_LENGTH", "1000000"),
    ];
    let mut gateway = Gateway::behind(&redis, &variables).await;
    let address = gateway.data.to_string();
    variables.push(("FANFARE_LISTEN", &address));
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    browser
        .run(
            "window.seen = []; window.gaps = []; window.opened = 0;
             const source = new EventSource('events/numbers');
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
    let seen = async || -> Vec<u64> {
        let seen = browser.run("return window.seen.map(Number)").await;
        serde_json::from_value(seen).unwrap()
    };
    opened(1).await;

    let published = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn({
        let (redis, published, stop) = (redis.clone(), published.clone(), stop.clone());
        async move {
            while !stop.load(Relaxed) {
                let number = published.load(Relaxed) + 1;
                redis.keep("numbers", &number.to_string(), &[]).await;
                published.store(number, Relaxed);
            }
        }
    });
    let more = async |count: u64| {
        let goal = published.load(Relaxed) + count;
        eventually("more is published", async || {
            published.load(Relaxed) >= goal
        })
        .await;
    };
    for (restart, signal) in (1..).zip(["TERM", "KILL"]) {
        more(50).await;
        gateway.process.signal(signal);
        gateway.process.ended().await;
        more(50).await;
        gateway = Gateway::behind(&redis, &variables).await;
        opened(restart + 1).await;
    }
    more(50).await;
    stop.store(true, Relaxed);
    publisher.await.unwrap();
    let all: Vec<u64> = (1..=published.load(Relaxed)).collect();
    assert!(all.len() >= 250);
    eventually("the last event is seen", async || {
        seen().await.last() >= all.last()
    })
    .await;
    assert_eq!(seen().await, all);
    assert_eq!(browser.run("return window.gaps").await, json!([]));
    browser.close().await;
}

/// Leaves pictures of the page in `target/tmp`; `docs/images/demo.png` is the light one.
#[tokio::test]
async fn the_page_is_light_or_dark_as_the_reader_prefers() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let gateway = Gateway::start(&[]).await;
    let browser = Browser::start().await;
    browser.goto(&gateway.url("/")).await;
    start(&browser, 1).await;
    start(&browser, 2).await;
    let price = |price: &str| format!(r#"{{"symbol":"ACME","price":{price}}}"#);
    let prices = "/events/prices?event=price&history=1";
    gateway.keep("/events/orders", "order 4711 is paid").await;
    gateway.keep(prices, price("102.5")).await;
    logged(&browser, "Orders", "message", "order 4711 is paid").await;
    logged(&browser, "Prices", "price", &price("102.5")).await;
    // One resumes, and one has missed too much.
    browser.click(&card(1, ".cut")).await;
    browser.click(&card(2, ".cut")).await;
    forgotten(&gateway).await;
    gateway.keep("/events/orders", "order 4711 is packed").await;
    gateway
        .keep("/events/orders", "order 4711 has left the warehouse")
        .await;
    for number in ["102.75", "103.1"] {
        gateway.keep(prices, price(number)).await;
    }
    browser.click(&card(1, ".cut")).await;
    logged(&browser, "Orders", "resumed", "2 events while away").await;
    browser.click(&card(2, ".cut")).await;
    logged(&browser, "Prices", "price", &price("103.1")).await;
    logged(&browser, "Prices", "resumed", "1 event while away").await;
    publish(&browser, "ping", r#"{"sequence":1}"#).await;
    browser.shows(&card(1, ".count"), "4 events").await;
    // With room for the frame of the window, which the picture does not show.
    browser.client.set_window_size(1280, 1150).await.unwrap();
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let picture = within("a screenshot", browser.client.screenshot()).await;
        std::fs::write(format!("{folder}/demo-{scheme}.png"), picture.unwrap()).unwrap();
        let script = "return getComputedStyle(document.body).backgroundColor";
        let background = browser.client.execute(script, vec![]).await.unwrap();
        backgrounds.push(background);
    }
    assert_ne!(backgrounds[0], backgrounds[1]);
    browser.client.set_window_size(480, 900).await.unwrap();
    browser
        .client
        .find(Locator::Css("summary"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    let picture = within("a screenshot", browser.client.screenshot()).await;
    std::fs::write(format!("{folder}/demo-narrow.png"), picture.unwrap()).unwrap();
    browser.close().await;
}
