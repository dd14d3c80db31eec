//! Pages of other origins, in a real browser and as bytes: allowed ones are served with
//! credentials, all others get nothing and change nothing.

use crate::support::browser::Browser;
use crate::support::{Gateway, Raw, eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An answer to a request with these headers.
async fn ask(gateway: &Gateway, line: &str, headers: &str) -> String {
    let request =
        format!("{line} HTTP/1.1\r\nhost: sse.localhost\r\nconnection: close\r\n{headers}\r\n");
    let mut raw = Raw::send(gateway.data, &request).await;
    if headers.contains("body-follows") || !line.contains("/events/stream") {
        return raw.rest().await;
    }
    raw.until("\r\n\r\n").await
}

const ALLOWED: &str = "https://app.example.com";

async fn refused(gateway: &Gateway) -> f64 {
    gateway
        .metric(r#"fanfare_requests_refused_total{reason="origin"}"#)
        .await
}

#[tokio::test]
async fn allowed_origins_get_streams_and_answers_with_credentials() {
    let gateway = Gateway::start(&[
        (
            "FANFARE_ALLOW_ORIGINS",
            "https://app.example.com,http://localhost:3000",
        ),
        ("FANFARE_MAX_CONNECTIONS_PER_IP", "1"),
    ])
    .await;
    let origin = format!("origin: {ALLOWED}\r\nsec-fetch-site: cross-site\r\n");
    let shown = |answer: &str| {
        assert!(
            answer.contains(&format!("access-control-allow-origin: {ALLOWED}\r\n")),
            "{answer}"
        );
        assert!(
            answer.contains("access-control-allow-credentials: true\r\n"),
            "{answer}"
        );
        assert!(answer.to_lowercase().contains("vary: origin"), "{answer}");
    };
    // A refusal and a problem are shown too, or the page would never know.
    let answer = ask(&gateway, "GET /events/a*", &origin).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    shown(&answer);
    let request = format!("GET /events/stream HTTP/1.1\r\nhost: sse.localhost\r\n{origin}\r\n");
    let mut stream = Raw::send(gateway.data, &request).await;
    let head = stream.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    shown(&head);
    // Retry-and-close is of no use to a browser that may not read it.
    let mut busy = Raw::send(gateway.data, &request).await;
    let answer = busy.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("$busy"),
        "{answer}"
    );
    shown(&answer);
    let busy = request.replace("\r\n\r\n", "\r\nfanfare-busy: 503\r\n\r\n");
    let answer = Raw::send(gateway.data, &busy).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    shown(&answer);
    let answer = ask(
        &gateway,
        "POST /events/a",
        &format!("{origin}content-length: 0\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    shown(&answer);
    let preflight = format!(
        "{origin}access-control-request-method: POST\r\n\
         access-control-request-headers: authorization,idempotency-key\r\n"
    );
    let answer = ask(&gateway, "OPTIONS /events/a", &preflight).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    shown(&answer);
    assert!(
        answer.contains("access-control-allow-methods: GET,HEAD,POST\r\n"),
        "{answer}"
    );
    for header in [
        "authorization",
        "idempotency-key",
        "last-event-id",
        "x-requested-with",
        "fanfare-busy",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
    assert!(
        answer.contains("access-control-max-age: 7200\r\n"),
        "{answer}"
    );
    assert_eq!(refused(&gateway).await, 0.0);
}

#[tokio::test]
async fn other_origins_get_nothing_and_change_nothing() {
    let gateway = Gateway::start(&[("FANFARE_ALLOW_ORIGINS", ALLOWED)]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let foreign = [
        "origin: null\r\n",
        "origin: https://evil.example\r\n",
        "origin: https://app.example.com.evil.example\r\n",
        "origin: https://evilapp.example.com\r\n",
        "origin: https://app.example.com:444\r\n",
        "origin: http://app.example.com\r\n",
        "origin: https://app.example.com\r\norigin: https://evil.example\r\n",
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
    ];
    for headers in foreign {
        for (line, more) in [
            ("GET /events/a", ""),
            (
                "POST /events/a",
                "content-length: 4\r\ncontent-type: text/plain\r\nbody-follows: 1\r\n",
            ),
            (
                "OPTIONS /events/a",
                "access-control-request-method: POST\r\n",
            ),
            ("POST /tickets", "content-length: 0\r\n"),
        ] {
            let answer = ask(&gateway, line, &format!("{headers}{more}")).await;
            assert!(
                answer.starts_with("HTTP/1.1 403 "),
                "{line} {headers}: {answer}"
            );
            assert!(
                !answer.contains("access-control-"),
                "{line} {headers}: {answer}"
            );
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = (foreign.len() * 4) as f64;
    assert_eq!(refused(&gateway).await, all);
    // This host's own pages, and programs that are no browsers, are served.
    for own in [
        "",
        "origin: http://sse.localhost\r\n",
        "sec-fetch-site: same-origin\r\n",
    ] {
        let answer = ask(
            &gateway,
            "POST /events/a",
            &format!("{own}content-length: 0\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{own}: {answer}");
        assert_eq!(events.data().await, "", "only what was allowed arrives");
    }
}

/// The admin listener is nobody's to ask but its own page's and that of programs, whatever the data
/// listener allows.
#[tokio::test]
async fn pages_of_other_sites_learn_nothing_of_the_admin_listener() {
    let gateway = Gateway::start(&[("FANFARE_ALLOW_ORIGINS", ALLOWED)]).await;
    let answer = async |path: &str, headers: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let mut raw = Raw::send(gateway.admin, &request).await;
        raw.until("\r\n\r\n").await
    };
    let paths = [
        "/livez",
        "/readyz",
        "/metrics",
        "/console",
        "/console/feed",
        "/nothing",
    ];
    let allowed = format!("origin: {ALLOWED}\r\n");
    for headers in [
        "origin: https://evil.example\r\n",
        "origin: null\r\n",
        &allowed,
        "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
        "sec-fetch-site: same-site\r\nsec-fetch-mode: cors\r\n",
        "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: iframe\r\n",
    ] {
        for path in paths {
            let answer = answer(path, headers).await;
            assert!(
                answer.starts_with("HTTP/1.1 403 "),
                "{path} {headers}: {answer}"
            );
        }
    }
    // A link on another site leads a person here, and nobody into a feed.
    let link =
        "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n";
    for (headers, path, status) in [
        (link, "/console", 200),
        (link, "/metrics", 200),
        (link, "/console/feed", 403),
        ("", "/livez", 200),
        ("", "/readyz", 200),
        ("", "/metrics", 200),
        ("", "/console/feed", 200),
        ("sec-fetch-site: same-origin\r\n", "/console/feed", 200),
        ("sec-fetch-site: none\r\n", "/console", 200),
        ("origin: http://localhost\r\n", "/console/feed", 200),
    ] {
        let answer = answer(path, headers).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path} {headers}: {answer}"
        );
    }
}

/// Without allowed origins nothing speaks of them, and the admin listener knows its name too.
#[tokio::test]
async fn a_local_listener_answers_to_its_own_name_only() {
    let gateway = Gateway::start(&[]).await;
    for address in [gateway.data, gateway.admin] {
        for (host, is_served) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("[::1]:80", true),
            ("evil.example", false),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
        ] {
            let request =
                format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let answer = Raw::send(address, &request).await.rest().await;
            let is_misdirected = answer.starts_with("HTTP/1.1 421 ");
            assert_eq!(is_misdirected, !is_served, "{host}: {answer}");
        }
    }
}

/// A server of one empty page, on a port of its own: another origin.
async fn page_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 22\r\n\
                    connection: close\r\n\r\n<!doctype html><title>";
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

/// Opens an `EventSource` in the page and notes what becomes of it.
async fn open_stream(browser: &Browser, url: &str) {
    let script = format!(
        "window.seen = [];
         const source = new EventSource({}, {{ withCredentials: true }});
         source.onopen = () => seen.push('open');
         source.onmessage = (event) => seen.push(event.data);
         source.onerror = () => {{ if (source.readyState === 2) seen.push('closed'); }};",
        json!(url)
    );
    browser.run(&script).await;
}

async fn sees(browser: &Browser, expected: &[&str]) {
    eventually(&format!("the page sees {expected:?}"), async || {
        browser.run("return window.seen").await == json!(expected)
    })
    .await;
}

/// What a page's `fetch` comes to: a status, or the name of its error.
async fn fetch(browser: &Browser, url: &str, options: &Value) -> Value {
    let script = format!(
        "window.fetched = null;
         fetch({}, {options}).then((answer) => window.fetched = answer.status,
                                   (error) => window.fetched = error.name);",
        json!(url)
    );
    browser.run(&script).await;
    eventually("the fetch ends", async || {
        browser.run("return window.fetched").await != Value::Null
    })
    .await;
    browser.run("return window.fetched").await
}

#[tokio::test]
async fn in_a_browser_an_allowed_page_reads_and_publishes_and_another_does_neither() {
    let port = page_server().await;
    let allowed = format!("http://localhost:{port}");
    let gateway = Gateway::start(&[("FANFARE_ALLOW_ORIGINS", &allowed)]).await;
    let url = format!("http://127.0.0.1:{}/events/a", gateway.data.port());
    let mut events = gateway.events("/events/a").await.opened().await;
    let browser = Browser::start().await;
    let options = json!({ "method": "POST", "body": "from a page", "credentials": "include",
        "headers": { "idempotency-key": "1" } });

    browser.goto(&allowed).await;
    open_stream(&browser, &url).await;
    sees(&browser, &["open"]).await;
    assert_eq!(fetch(&browser, &url, &options).await, 200);
    assert_eq!(events.data().await, "from a page");
    sees(&browser, &["open", "from a page"]).await;

    // The same page by another name is another origin.
    browser.goto(&format!("http://127.0.0.1:{port}")).await;
    open_stream(&browser, &url).await;
    sees(&browser, &["closed"]).await;
    assert_eq!(fetch(&browser, &url, &options).await, "TypeError");
    // Without asking the browser for the answer, and so without a preflight.
    let blind = json!({ "method": "POST", "body": "blindly", "mode": "no-cors" });
    assert_eq!(fetch(&browser, &url, &blind).await, 0);
    // Nor does a sandboxed frame, whose origin is null.
    browser
        .run(&format!(
            "window.told = null; addEventListener('message', (event) => window.told = event.data);
             const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts';
             frame.srcdoc = `<script>fetch('{url}', {{method: 'POST', body: 'sandboxed'}}).then(
                 (answer) => parent.postMessage(answer.status, '*'),
                 (error) => parent.postMessage(error.name, '*'))</` + `script>`;
             document.body.append(frame);"
        ))
        .await;
    eventually("the frame tells", async || {
        browser.run("return window.told").await == "TypeError"
    })
    .await;
    gateway.keep("/events/a", "the next one").await;
    assert_eq!(
        events.data().await,
        "the next one",
        "nothing of them was published"
    );
    assert!(refused(&gateway).await >= 4.0);
    browser.close().await;
}

/// A foreign page whose name leads to this machine is of the same origin as far as its browser
/// knows; the name gives it away.
#[tokio::test]
async fn in_a_browser_a_name_that_leads_here_opens_nothing() {
    let gateway = Gateway::start(&[]).await;
    let flag = "--host-resolver-rules=MAP evil.example 127.0.0.1";
    let browser = Browser::start_with(&[flag]).await;
    let own = format!("http://evil.example:{}", gateway.data.port());
    within("the page loads", browser.client.goto(&format!("{own}/")))
        .await
        .unwrap();
    let shown = browser.run("return document.body.textContent").await;
    assert!(shown.as_str().unwrap().contains("421"), "{shown}");
    let url = format!("{own}/events/a");
    let options = json!({ "method": "POST", "body": "rebound" });
    assert_eq!(fetch(&browser, &url, &options).await, 421);
    open_stream(&browser, &url).await;
    sees(&browser, &["closed"]).await;
    let host = r#"fanfare_requests_refused_total{reason="host"}"#;
    assert!(gateway.metric(host).await >= 3.0);
    browser.close().await;
}
