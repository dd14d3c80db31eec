//! HTTP/2 as nobody means it: streams opened and reset without end, heads without end, clients
//! that stop reading one of their streams.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::hostile::healthy;
use crate::support::{Events, Gateway, Raw, eventually, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113, section 7).
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET path` to localhost, without compression (RFC 7541, appendix A and section 6.2.2).
fn get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(b"\x01\x09localhost");
    block
}

/// A connection of frames.
struct Frames {
    raw: Raw,
}

impl Frames {
    async fn connect(gateway: &Gateway) -> Self {
        let mut raw = Raw::connect(gateway.data).await;
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        raw.socket.write_all(&hello).await.unwrap();
        Self { raw }
    }

    /// The next frame: type, stream and payload; `None` at the end.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        within("a frame", async {
            let mut head = [0; 9];
            self.raw.socket.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.raw.socket.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some((head[3], stream, payload))
        })
        .await
    }

    /// Reads to a frame of this type.
    async fn until(&mut self, kind: u8) -> Option<(u32, Vec<u8>)> {
        while let Some((found, stream, payload)) = self.next().await {
            if found == kind {
                return Some((stream, payload));
            }
        }
        None
    }

    /// Writes until all is written or the connection is gone.
    async fn flood(&mut self, frames: impl Iterator<Item = Vec<u8>>) {
        let bytes: Vec<u8> = frames.flatten().collect();
        let _ =
            tokio::time::timeout(Duration::from_secs(5), self.raw.socket.write_all(&bytes)).await;
    }

    /// The connection ends, with this error where it is told.
    async fn ends_with(&mut self, code: u32) {
        if let Some((_, payload)) = self.until(GOAWAY).await {
            let found = u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]);
            assert_eq!(found, code);
            while self.next().await.is_some() {}
        }
    }
}

#[tokio::test]
async fn streams_opened_and_reset_without_end_end_the_connection() {
    let gateway = Gateway::start(&[]).await;
    let mut frames = Frames::connect(&gateway).await;
    let head = get("/events/a");
    let resets = (0..5_000).flat_map(|number| {
        let stream = 2 * number + 1;
        [
            frame(HEADERS, END_STREAM | END_HEADERS, stream, &head),
            frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
        ]
    });
    frames.flood(resets).await;
    frames.ends_with(ENHANCE_YOUR_CALM).await;
    healthy(&gateway).await;
    eventually("nobody is left", async || {
        gateway.metric("fanfare_connections").await == 0.0
    })
    .await;
    // Far fewer were served than asked for.
    assert!(gateway.metric("fanfare_connections_opened_total").await < 1_000.0);
}

#[tokio::test]
async fn heads_without_end_end_the_connection() {
    let gateway = Gateway::start(&[]).await;
    let mut frames = Frames::connect(&gateway).await;
    // Never END_HEADERS (CVE-2024-27316).
    let field = [b"\0\x01x\x7f\x81\x7e".as_slice(), &[b'y'; 16_000]].concat();
    let first = frame(HEADERS, END_STREAM, 1, &get("/events/a"));
    let rest = (0..2_000).map(|_| frame(CONTINUATION, 0, 1, &field));
    frames.flood(std::iter::once(first).chain(rest)).await;
    while frames.next().await.is_some() {}
    assert!(gateway.resident_bytes() < 200 << 20);
    healthy(&gateway).await;
}

#[tokio::test]
async fn pings_without_end_cost_no_memory() {
    let gateway = Gateway::start(&[]).await;
    let mut frames = Frames::connect(&gateway).await;
    // Nothing is read: what is to be answered must not be kept.
    frames
        .flood((0..200_000).map(|_| frame(PING, 0, 0, &[0; 8])))
        .await;
    assert!(gateway.resident_bytes() < 200 << 20);
    healthy(&gateway).await;
}

#[tokio::test]
async fn a_connection_has_so_many_streams() {
    let gateway = Gateway::start(&[]).await;
    let mut frames = Frames::connect(&gateway).await;
    let (_, settings) = frames.until(SETTINGS).await.unwrap();
    let setting = |id: u16| {
        settings
            .chunks(6)
            .find(|pair| pair[..2] == id.to_be_bytes())
            .map(|pair| u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
    };
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE (section 6.5.2).
    assert_eq!(setting(3), Some(256));
    assert_eq!(setting(6), Some(32 * 1024));
    let head = get("/events/a");
    let streams =
        (0..300).map(|number| frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &head));
    frames.flood(streams).await;
    let (_, code) = frames.until(RST_STREAM).await.unwrap();
    assert_eq!(code, REFUSED_STREAM.to_be_bytes());
    eventually("as many as are allowed are open", async || {
        gateway.metric("fanfare_connections").await == 256.0
    })
    .await;
    healthy(&gateway).await;
}

/// A page that stops reading one of its streams goes on reading the others.
#[tokio::test]
async fn a_stalled_stream_does_not_stall_its_neighbours() {
    let gateway = Gateway::start(&[("FANFARE_CLIENT_BUFFER_BYTES", "256KiB")]).await;
    // As browsers have it: a connection may have more under way than one of its streams.
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(64 * 1024)
        .http2_initial_connection_window_size(1024 * 1024)
        .build()
        .unwrap();
    let stalled = client
        .get(gateway.url("/events/stalled"))
        .send()
        .await
        .unwrap();
    let neighbour = client
        .get(gateway.url("/events/neighbour"))
        .send()
        .await
        .unwrap();
    assert_eq!(neighbour.version(), http::Version::HTTP_2);
    let mut neighbour = Events::of(neighbour).opened().await;
    for number in 0..40 {
        let (status, _) = gateway
            .post("/events/stalled?keep=false", vec![b'x'; 64 * 1024])
            .await;
        assert_eq!(status, 200);
        let data = number.to_string();
        gateway
            .post("/events/neighbour?keep=false", data.clone())
            .await;
        assert_eq!(neighbour.data().await, data);
    }
    let closed = r#"fanfare_connections_closed_total{reason="slow_client"}"#;
    eventually("the stalled one is cut off", async || {
        gateway.metric(closed).await == 1.0
    })
    .await;
    gateway
        .post("/events/neighbour?keep=false", "still here")
        .await;
    assert_eq!(neighbour.data().await, "still here");
    drop(stalled);
}

/// Whoever is sent away comes back over another connection, to another replica: over this one it would
/// be sent away again.
#[tokio::test]
async fn a_connection_is_given_up_when_its_replica_drains() {
    let gateway = Gateway::start(&[("FANFARE_DRAIN_PERIOD", "1h")]).await;
    let mut frames = Frames::connect(&gateway).await;
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/events/a"));
    frames.flood(std::iter::once(request)).await;
    frames.until(HEADERS).await.expect("a stream");
    gateway.process.signal("TERM");
    let (_, payload) = frames.until(GOAWAY).await.expect("a goodbye");
    assert_eq!(payload[4..8], NO_ERROR.to_be_bytes());
    gateway.post("/events/a", "still here").await;
    loop {
        let (_, payload) = frames.until(DATA).await.expect("the stream goes on");
        if String::from_utf8_lossy(&payload).contains("data: still here") {
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_is_given_up_when_one_of_its_streams_is_too_old() {
    let gateway = Gateway::start(&[
        ("FANFARE_HEARTBEAT", "200ms"),
        ("FANFARE_MAX_CONNECTION_AGE", "2s"),
    ])
    .await;
    let mut frames = Frames::connect(&gateway).await;
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/events/a"));
    let begun = Instant::now();
    frames.flood(std::iter::once(request)).await;
    let (_, payload) = frames.until(GOAWAY).await.expect("a goodbye");
    assert_eq!(payload[4..8], NO_ERROR.to_be_bytes());
    // Not because it is idle: that takes ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(8));
}
