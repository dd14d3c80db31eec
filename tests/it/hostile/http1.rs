//! Requests of HTTP/1 that no browser sends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hostile::healthy;
use crate::support::{Gateway, Raw, eventually, test_within, within};

/// What is to come back.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// An answer of this status, whose head or body has this text.
    Status(u16, &'static str),
    /// A stream.
    Stream,
}

use Expected::{Status, Stream};

/// Everything up to the head's end and a little of what follows, or to the end of the connection.
async fn answer(raw: &mut Raw) -> String {
    let mut received = Vec::new();
    within("an answer", async {
        loop {
            let text = String::from_utf8_lossy(&received);
            if text.contains("retry: ") || (text.contains("\r\n\r\n") && text.contains('}')) {
                return;
            }
            if raw.socket.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        }
    })
    .await;
    String::from_utf8_lossy(&received).into_owned()
}

/// What is wrong with the answer to a case.
fn fault(name: &str, expected: Expected, answer: &str) -> Option<String> {
    let status = answer
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5));
    let is_as_expected = match expected {
        Status(expected, part) => {
            status == Some(expected.to_string().as_str()) && answer.contains(part)
        }
        Stream => status == Some("200") && answer.contains("retry: "),
    };
    (!is_as_expected).then(|| format!("{name}: expected {expected:?}, got {answer:?}"))
}

/// A request with this line and these headers, `host` included unless it is among them.
fn request(line: &str, headers: &str) -> Vec<u8> {
    let host = if headers.to_ascii_lowercase().contains("host:") {
        ""
    } else {
        "host: localhost\r\n"
    };
    format!("{line}\r\n{host}{headers}\r\n").into_bytes()
}

fn get(target: &str) -> Vec<u8> {
    request(&format!("GET {target} HTTP/1.1"), "connection: close\r\n")
}

/// Its framing can be read in more than one way, or in none.
fn smuggling() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let post = "POST /events/a HTTP/1.1";
    let get = "GET /events/a HTTP/1.1";
    let chunked = "transfer-encoding: chunked\r\n";
    let with_body = |headers: &str, body: &str| [request(post, headers), body.into()].concat();
    // Chunks count, and nothing behind them does.
    let both = Status(200, "connection: close");
    vec![
        (
            "length, then encoding",
            with_body(&format!("content-length: 6\r\n{chunked}"), "0\r\n\r\nG"),
            both,
        ),
        (
            "encoding, then length",
            with_body(&format!("{chunked}content-length: 6\r\n"), "0\r\n\r\nG"),
            both,
        ),
        (
            "zero length and encoding",
            with_body(&format!("Content-Length: 0\r\n{chunked}"), "0\r\n\r\n"),
            both,
        ),
        (
            "encoding with a space",
            with_body("transfer-encoding : chunked\r\n", "0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "encoding on a folded line",
            with_body("transfer-encoding:\r\n chunked\r\n", "0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "unknown encoding",
            with_body("transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "encoding behind chunked",
            with_body("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "encoding in HTTP/1.0",
            [
                request("POST /events/a HTTP/1.0", chunked),
                b"0\r\n\r\n".to_vec(),
            ]
            .concat(),
            Status(400, ""),
        ),
        (
            "two lengths",
            with_body("content-length: 1\r\ncontent-length: 2\r\n", "xx"),
            Status(400, ""),
        ),
        (
            "two lengths in one",
            with_body("content-length: 1, 2\r\n", "xx"),
            Status(400, ""),
        ),
        (
            "negative length",
            with_body("content-length: -1\r\n", ""),
            Status(400, ""),
        ),
        (
            "length with a sign",
            with_body("content-length: +1\r\n", "x"),
            Status(400, ""),
        ),
        (
            "hexadecimal length",
            with_body("content-length: 0x1\r\n", "x"),
            Status(400, ""),
        ),
        (
            "length beyond numbers",
            with_body("content-length: 99999999999999999999\r\n", ""),
            Status(400, ""),
        ),
        (
            "chunk beyond numbers",
            with_body(chunked, "fffffffffffffffff\r\nx\r\n0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "chunk that is none",
            with_body(chunked, "xyz\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "a line end in a chunk's extension",
            with_body(chunked, "1;x=\"\n\"\r\nx\r\n0\r\n\r\n"),
            Status(400, ""),
        ),
        (
            "bare LF everywhere",
            b"GET /events/a HTTP/1.1\nhost: localhost\n\n".to_vec(),
            Status(400, "CRLF"),
        ),
        (
            "bare LF in one line",
            b"GET /events/a HTTP/1.1\r\nhost: localhost\n\r\n".to_vec(),
            Status(400, "CRLF"),
        ),
        (
            "bare LF at the end",
            b"GET /events/a HTTP/1.1\r\nhost: localhost\r\n\n".to_vec(),
            Status(400, "CRLF"),
        ),
        (
            "bare CR in a value",
            request(get, "x: a\rb\r\n"),
            Status(400, ""),
        ),
        (
            "NUL in a value",
            request(get, "x: a\0b\r\n"),
            Status(400, ""),
        ),
        ("NUL in a name", request(get, "x\0: a\r\n"), Status(400, "")),
        (
            "folded line",
            request(get, "x: a\r\n b\r\n"),
            Status(400, ""),
        ),
        (
            "header without a name",
            request(get, ": a\r\n"),
            Status(400, ""),
        ),
        (
            "header without a colon",
            request(get, "nonsense\r\n"),
            Status(400, ""),
        ),
        ("one letter", request(get, "X: y\r\n"), Stream),
        ("no value", request(get, "X:\r\n"), Stream),
        (
            "space before the first header",
            b"GET /events/a HTTP/1.1\r\n host: localhost\r\n\r\n".to_vec(),
            Status(400, ""),
        ),
    ]
}

fn hosts() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes()
    };
    vec![
        ("no host", get("/events/a", ""), Status(400, "host")),
        (
            "two hosts",
            get("/events/a", "host: localhost\r\nhost: evil.example\r\n"),
            Status(400, "twice"),
        ),
        (
            "the same host twice",
            get("/events/a", "host: localhost\r\nhost: localhost\r\n"),
            Status(400, "twice"),
        ),
        (
            "a host with a user",
            get("/events/a", "host: me@localhost\r\n"),
            Status(400, "host"),
        ),
        (
            "a host with a path",
            get("/events/a", "host: localhost/x\r\n"),
            Status(400, "host"),
        ),
        (
            "a host with a space",
            get("/events/a", "host: local host\r\n"),
            Status(400, "host"),
        ),
        ("an empty host", get("/events/a", "host:\r\n"), Stream),
        (
            "another host",
            get("/events/a", "host: evil.example\r\n"),
            Status(421, "evil.example"),
        ),
        (
            "a look-alike",
            get("/events/a", "host: localhost.evil.example:8080\r\n"),
            Status(421, "localhost.evil"),
        ),
        (
            "the demo page of another host",
            get("/", "host: evil.example\r\n"),
            Status(421, "evil"),
        ),
        (
            "absolute form",
            get("http://localhost/events/a", "host: localhost\r\n"),
            Stream,
        ),
        (
            "absolute form of another host",
            get("http://evil.example/events/a", "host: localhost\r\n"),
            Status(421, "evil"),
        ),
        (
            "absolute form without a host",
            get("http://localhost/events/a", ""),
            Status(400, "host"),
        ),
        (
            "HTTP/1.0 without a host",
            b"GET /nothing HTTP/1.0\r\n\r\n".to_vec(),
            Status(404, "nothing"),
        ),
    ]
}

fn targets() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let channel = Status(400, "channel");
    let crowd = (0..2_000)
        .map(|n| format!("channel=c{n}&"))
        .collect::<String>();
    let same = "channel=a&".repeat(2_000);
    let ten_thousand = (0..10_000)
        .map(|n| format!("channel=c{n}&"))
        .collect::<String>();
    vec![
        ("NUL in a name", get("/events/a%00b"), channel),
        ("CRLF in a name", get("/events/a%0d%0ab"), channel),
        ("a slash in a name", get("/events/a%2fb"), channel),
        ("no UTF-8 in a name", get("/events/a%ff"), channel),
        ("half an escape", get("/events/a%2"), channel),
        ("an escape of nothing", get("/events/a%zz"), channel),
        ("another prefix", get("/events/..%2f..%2fkeys"), channel),
        (
            "dots in the path",
            get("/events/../metrics"),
            Status(404, "metrics"),
        ),
        (
            "the admin listener's",
            get("/metrics"),
            Status(404, "metrics"),
        ),
        ("everything", get("/events/*"), channel),
        ("a glob", get("/events/%5Ba-z%5D%3f"), channel),
        ("the gateway's own", get("/events/$config"), channel),
        (
            "a name in the query",
            get("/events?channel=a%00&channel=b"),
            channel,
        ),
        ("no UTF-8 in the query", get("/events?channel=%ff"), channel),
        ("no name", get("/events/"), channel),
        ("no channel", get("/events"), channel),
        (
            "a name too long",
            get(&format!("/events/{}", "x".repeat(201))),
            channel,
        ),
        (
            "too many channels",
            get(&format!("/events?{crowd}")),
            Status(400, "at most 64"),
        ),
        (
            "one channel two thousand times",
            get(&format!("/events?{same}")),
            Stream,
        ),
        (
            "ten thousand channels",
            get(&format!("/events?{ten_thousand}")),
            Status(431, ""),
        ),
        (
            "a token in the query",
            get("/events/a?token=x"),
            Status(400, "token"),
        ),
        (
            "a ticket where there are none",
            get("/events/a?ticket=x"),
            Status(401, "ticket"),
        ),
        (
            "a cursor of somebody else",
            get("/events/a?last_event_id=%00%ff"),
            Stream,
        ),
        (
            "asterisk form",
            request("OPTIONS * HTTP/1.1", ""),
            Status(404, ""),
        ),
        (
            "authority form",
            request("CONNECT localhost:80 HTTP/1.1", ""),
            Status(404, ""),
        ),
        (
            "a target that is none",
            request("GET events/a HTTP/1.1", ""),
            Status(400, ""),
        ),
        (
            "a target with a space",
            request("GET /events/a b HTTP/1.1", ""),
            Status(400, ""),
        ),
        (
            "bytes beyond ASCII",
            request("GET /events/\u{e9} HTTP/1.1", ""),
            channel,
        ),
    ]
}

fn methods_and_versions() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let on = |method: &str| request(&format!("{method} /events/a HTTP/1.1"), "");
    vec![
        (
            "OPTIONS",
            on("OPTIONS"),
            Status(405, "allow: GET,HEAD,POST"),
        ),
        ("PUT", on("PUT"), Status(405, "PUT")),
        ("DELETE", on("DELETE"), Status(405, "DELETE")),
        ("TRACE", on("TRACE"), Status(405, "TRACE")),
        ("a method of its own", on("STREAM"), Status(405, "STREAM")),
        ("a method in lower case", on("get"), Status(405, "get")),
        ("a method that is none", on("GE T"), Status(400, "")),
        (
            "a body on GET",
            [
                request("GET /events/a HTTP/1.1", "content-length: 1\r\n"),
                b"x".to_vec(),
            ]
            .concat(),
            Status(400, "body"),
        ),
        (
            "a chunked body on GET",
            [
                request("GET /events/a HTTP/1.1", "transfer-encoding: chunked\r\n"),
                b"1\r\nx\r\n0\r\n\r\n".to_vec(),
            ]
            .concat(),
            Status(400, "body"),
        ),
        (
            "an upgrade that nobody offers",
            request(
                "GET /events/a HTTP/1.1",
                "connection: upgrade\r\nupgrade: websocket\r\n",
            ),
            Stream,
        ),
        (
            "HTTP/0.9",
            b"GET /events/a\r\n\r\n".to_vec(),
            Status(400, ""),
        ),
        (
            "HTTP/3.0",
            request("GET /events/a HTTP/3.0", ""),
            Status(400, ""),
        ),
        (
            "HTTP/2 without its preface",
            request("GET /events/a HTTP/2.0", ""),
            Status(400, ""),
        ),
        (
            "half a preface",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
            Status(400, ""),
        ),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
            Status(400, ""),
        ),
        (
            "the PROXY protocol",
            b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n\r\n".to_vec(),
            Status(400, ""),
        ),
        (
            "binary noise",
            vec![0xff; 1024].into_iter().chain(*b"\r\n\r\n").collect(),
            Status(400, ""),
        ),
        (
            "two cursors",
            request(
                "GET /events/a HTTP/1.1",
                "last-event-id: 5-0\r\nlast-event-id: 6-0\r\n",
            ),
            Stream,
        ),
        (
            "a cursor that is no text",
            [
                b"GET /events/a HTTP/1.1\r\nhost: localhost\r\nlast-event-id: ".to_vec(),
                vec![0xff],
                b"\r\n\r\n".to_vec(),
            ]
            .concat(),
            Stream,
        ),
        (
            "a large header",
            request(
                "GET /events/a HTTP/1.1",
                &format!("x: {}\r\n", "x".repeat(70_000)),
            ),
            Status(431, ""),
        ),
        (
            "many headers",
            request("GET /events/a HTTP/1.1", &"x: y\r\n".repeat(200)),
            Status(431, ""),
        ),
        (
            "nothing but line ends, and a request",
            [
                b"\r\n\r\n\r\n".to_vec(),
                request("GET /events/a HTTP/1.1", ""),
            ]
            .concat(),
            Stream,
        ),
    ]
}

#[tokio::test]
async fn each_gets_its_answer_and_harms_nobody() {
    test_within(std::time::Duration::from_secs(240), async {
        let gateway = Gateway::start(&[]).await;
        let cases = [smuggling(), hosts(), targets(), methods_and_versions()].concat();
        let mut faults = Vec::new();
        for (name, bytes, expected) in cases {
            let mut raw = Raw::connect(gateway.data).await;
            // A refusal may come, and the end with it, before everything is sent.
            let _ = raw.socket.write_all(&bytes).await;
            faults.extend(fault(name, expected, &answer(&mut raw).await));
            drop(raw);
            healthy(&gateway).await;
        }
        assert!(faults.is_empty(), "{faults:#?}");
        eventually("nobody is left", async || {
            gateway.metric("fanfare_connections").await == 0.0
        })
        .await;
        let malformed = r#"fanfare_requests_refused_total{reason="malformed"}"#;
        assert!(gateway.metric(malformed).await >= 10.0);
        let host = r#"fanfare_requests_refused_total{reason="host"}"#;
        assert_eq!(gateway.metric(host).await, 4.0);
    })
    .await;
}

/// What a request before another leaves behind must not become part of it.
#[tokio::test]
async fn nothing_is_smuggled_into_a_kept_connection() {
    let gateway = Gateway::start(&[]).await;
    let post = |body: &str| {
        let line = "POST /events/a?keep=false HTTP/1.1\r\nhost: localhost\r\n";
        format!("{line}content-length: {}\r\n\r\n{body}", body.len())
    };
    let chunked = "POST /events/a?keep=false HTTP/1.1\r\nhost: localhost\r\n\
        transfer-encoding: chunked\r\n\r\n5;x=y\r\nfirst\r\n4\r\n\r\n\r\n\r\n0\r\nx: y\r\n\r\n";
    let hidden = "GET /events/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut events = gateway.events("/events/a").await.opened().await;
    let good = [post(hidden), post("x")].concat();
    let mut raw = Raw::send(gateway.data, &good).await;
    for _ in 0..2 {
        assert!(raw.until("\"id\":null}").await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(events.data().await, hidden.replace("\r\n", "\n"));
    assert_eq!(events.data().await, "x");
    // Chunks are followed to their end.
    let both = [chunked.to_owned(), post("second")].concat();
    raw.socket.write_all(both.as_bytes()).await.unwrap();
    for data in ["first\n\n", "second"] {
        assert!(raw.until("\"id\":null}").await.starts_with("HTTP/1.1 200 "));
        assert_eq!(events.data().await, data);
    }
    // Whichever of two framings a proxy in front believes, what it might have hidden is not answered.
    let twofold = "POST /events/a?keep=false HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\
        transfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut raw = Raw::send(gateway.data, &[twofold, &post("smuggled")].concat()).await;
    let rest = raw.rest().await;
    assert!(
        rest.starts_with("HTTP/1.1 200 ") && rest.contains("connection: close"),
        "{rest}"
    );
    assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{rest}");
    assert_eq!(events.data().await, "");
    let request = [post("before"), hidden.to_owned(), post("after")].concat();
    let mut raw = Raw::send(gateway.data, &request).await;
    assert!(raw.until("\"id\":null}").await.starts_with("HTTP/1.1 200 "));
    let rest = raw.rest().await;
    assert!(
        rest.starts_with("HTTP/1.1 400 ") && rest.contains("connection: close"),
        "{rest}"
    );
    assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{rest}");
    gateway.post("/events/a?keep=false", "the next").await;
    for data in ["before", "the next"] {
        assert_eq!(events.data().await, data);
    }
    healthy(&gateway).await;
}

/// A client that closes its half is gone; one that sends nothing, or half of a head, costs a
/// place for ten seconds and no more.
#[tokio::test]
async fn half_closed_connections_end() {
    let gateway = Gateway::start(&[]).await;
    for request in [
        "",
        "GET /events/a HT",
        "GET /events/a HTTP/1.1\r\nhost: localhost\r\n",
        "GET /events/a HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "POST /events/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf",
        "GET /events/a HTTP/1.0\r\n\r\n",
    ] {
        let mut raw = Raw::send(gateway.data, request).await;
        raw.socket.shutdown().await.unwrap();
        raw.rest().await;
        healthy(&gateway).await;
    }
    eventually("nobody is left", async || {
        gateway.metric("fanfare_connections").await == 0.0
    })
    .await;
}
