//! The TLS listener: handshakes, certificates that change, tickets, and streams over TLS.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::authority::Authority;
use crate::support::{Events, Gateway, Process, Raw, Redis, eventually, read_until, within};

const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

/// A gateway with a TLS listener, whose certificate is of this authority.
async fn secured(authority: &Authority<'_>, more: &[(&str, &str)]) -> Gateway {
    let (key, cert) = authority.sign("server", NAMES);
    secured_with(&key, &cert, more).await
}

async fn secured_with(key: &str, cert: &str, more: &[(&str, &str)]) -> Gateway {
    let mut variables = vec![
        ("FANFARE_TLS_LISTEN", "127.0.0.1:0"),
        ("FANFARE_TLS_CERT_FILE", cert),
        ("FANFARE_TLS_KEY_FILE", key),
    ];
    variables.extend_from_slice(more);
    Gateway::start(&variables).await
}

/// A client that trusts this authority, and remembers sessions.
fn client(
    authority: &Authority<'_>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(&authority.certificate).unwrap();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(8);
    config
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A connection, and what it begins with on TCP.
struct Secured {
    tls: TlsStream<TcpStream>,
    received: Vec<u8>,
}

impl Secured {
    async fn connect(gateway: &Gateway, config: &Arc<ClientConfig>, name: &str) -> Self {
        Self::connect_behind(gateway, config, name, "").await
    }

    async fn connect_behind(
        gateway: &Gateway,
        config: &Arc<ClientConfig>,
        name: &str,
        header: &str,
    ) -> Self {
        let connecting = async {
            let mut socket = TcpStream::connect(gateway.tls.unwrap()).await.unwrap();
            socket.write_all(header.as_bytes()).await.unwrap();
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let connector = TlsConnector::from(Arc::clone(config));
            connector.connect(name, socket).await.unwrap()
        };
        Self {
            tls: within("the handshake", connecting).await,
            received: Vec::new(),
        }
    }

    async fn get(gateway: &Gateway, config: &Arc<ClientConfig>, path: &str) -> Self {
        let mut secured = Self::connect(gateway, config, "localhost").await;
        secured.ask(path).await;
        secured
    }

    async fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.tls.write_all(request.as_bytes()).await.unwrap();
    }

    async fn until(&mut self, text: &str) -> String {
        read_until(&mut self.tls, &mut self.received, text).await
    }

    /// Reads to the end, which must be an orderly one.
    async fn rest(&mut self) -> String {
        let reading = self.tls.read_to_end(&mut self.received);
        within("the end of the connection", reading).await.unwrap();
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    fn names(&self) -> Vec<u8> {
        self.tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    fn kind(&self) -> HandshakeKind {
        self.tls.get_ref().1.handshake_kind().unwrap()
    }
}

async fn handshakes(gateway: &Gateway, outcome: &str) -> f64 {
    let series = format!(r#"fanfare_tls_handshakes_total{{outcome="{outcome}"}}"#);
    gateway.metric(&series).await
}

#[tokio::test]
async fn a_stream_over_tls_is_one_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let mut gateway = secured(&authority, &[]).await;
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let config = Arc::new(client(&authority, versions));
        let mut stream = Secured::get(&gateway, &config, "/events/a").await;
        let head = stream.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        stream.until("event: $cursor\n").await;
        gateway.keep("/events/a", "sealed").await;
        stream.until("data: sealed\n\n\r\n").await;
        // A client may change its keys at any time, and is answered.
        if versions == &BOTH[..1] {
            stream.tls.get_mut().1.refresh_traffic_keys().unwrap();
            stream.tls.flush().await.unwrap();
            gateway.keep("/events/a", "with other keys").await;
            stream.until("data: with other keys\n\n\r\n").await;
        }
        // Larger than a record.
        let large = "x".repeat(200_000);
        gateway.keep("/events/a", large.clone()).await;
        stream.until(&format!("data: {large}\n\n\r\n")).await;
        drop(stream);
        eventually("the client's end is noticed", async || {
            gateway.metric("fanfare_connections").await == 0.0
        })
        .await;
    }
    let config = Arc::new(client(&authority, &BOTH));
    let mut stream = Secured::get(&gateway, &config, "/events/a").await;
    stream.until("event: $cursor\n").await;
    // What ends is answered by hyper, and the connection is used again.
    let mut other = Secured::connect(&gateway, &config, "localhost").await;
    for _ in 0..2 {
        other.ask("/nothing").await;
        let answer = other.until("\r\n\r\n").await;
        assert!(answer.contains("HTTP/1.1 404"), "{answer}");
        other.until("}").await;
    }
    gateway.process.signal("TERM");
    let rest = stream.rest().await;
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "{rest}");
    assert!(gateway.process.ended().await);
}

/// A program that reads a stream, and a line of its output.
async fn first_data(mut command: Command) -> String {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process(command.spawn().unwrap());
    let stdout = process.0.stdout.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let reading = tokio::task::spawn_blocking(move || {
        let mut lines = lines.map_while(Result::ok);
        lines.find(|line| line.starts_with("data: ") && line != "data: {}")
    });
    within("a line", reading).await.unwrap().expect("an event")
}

#[tokio::test]
async fn curl_reads_over_both_protocols() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let gateway = secured(&authority, &[]).await;
    gateway.keep("/events/a", "for curl").await;
    let url = format!(
        "https://localhost:{}/events/a?history=1",
        gateway.tls.unwrap().port()
    );
    for version in ["--http1.1", "--http2"] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", version, "--cacert"]);
        curl.args([&authority.certificate, &url]);
        assert_eq!(first_data(curl).await, "data: for curl", "{version}");
    }
    let mut python = Command::new("python3");
    let program = "import ssl, sys, urllib.request as r\n\
        c = ssl.create_default_context(cafile=sys.argv[1])\n\
        for line in r.urlopen(sys.argv[2], context=c): print(line.decode(), end='', flush=True)";
    python.args(["-c", program, &authority.certificate, &url]);
    assert_eq!(first_data(python).await, "data: for curl");
}

#[tokio::test]
async fn the_server_name_chooses_and_the_first_is_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let (key, cert) = authority.sign("one", NAMES);
    let (other_key, other_cert) = authority.sign("other", "DNS:*.other.example,DNS:other.example");
    let (keys, certs) = (format!("{key},{other_key}"), format!("{cert},{other_cert}"));
    let gateway = secured_with(&keys, &certs, &[]).await;
    let config = Arc::new(client(&authority, &BOTH));
    let file = |path: &str| CertificateDer::from_pem_file(path).unwrap().to_vec();
    for (name, expected) in [
        ("localhost", &cert),
        ("127.0.0.1", &cert),
        ("a.other.example", &other_cert),
        ("OTHER.example", &other_cert),
    ] {
        let secured = Secured::connect(&gateway, &config, name).await;
        assert_eq!(secured.names(), file(expected), "{name}");
    }
    // A wrong name gets the default, which its client does not accept.
    let socket = TcpStream::connect(gateway.tls.unwrap()).await.unwrap();
    let name = ServerName::try_from("unknown.example").unwrap();
    let refused = TlsConnector::from(config).connect(name, socket).await;
    assert!(refused.unwrap_err().to_string().contains("certificate"));
    eventually("it is counted", async || {
        handshakes(&gateway, "failed").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_certificate_changes_under_open_streams() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let (key, cert) = authority.sign("server", NAMES);
    let gateway = secured_with(&key, &cert, &[]).await;
    let config = Arc::new(client(&authority, &BOTH));
    let mut stream = Secured::get(&gateway, &config, "/events/a").await;
    stream.until("event: $cursor\n").await;
    let first = stream.names();
    let expiry = "fanfare_tls_certificate_expiry_timestamp_seconds";
    assert!(gateway.metric(expiry).await > 1.7e9);

    // The new certificate is there before its key: the old pair stays in force.
    let (new_key, new_cert) = authority.sign("renewed", NAMES);
    std::fs::copy(&new_cert, &cert).unwrap();
    eventually("a warning", async || {
        let (status, body) = gateway.admin_get("/readyz").await;
        status == 200 && body.contains("tls: FANFARE_TLS_KEY_FILE")
    })
    .await;
    let between = Secured::connect(&gateway, &config, "localhost").await;
    assert_eq!(between.names(), first);
    std::fs::copy(&new_key, &key).unwrap();
    eventually("the new pair is in force", async || {
        !gateway.admin_get("/readyz").await.1.contains("warnings")
    })
    .await;
    let fresh = Arc::new(client(&authority, &BOTH));
    let after = Secured::connect(&gateway, &fresh, "localhost").await;
    assert_ne!(after.names(), first);

    gateway.keep("/events/a", "still open").await;
    stream.until("data: still open\n\n\r\n").await;
}

#[tokio::test]
async fn a_session_is_resumed_at_another_replica() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let (key, cert) = authority.sign("server", NAMES);
    let tickets = |name: &str, keys: &[u8]| {
        let path = directory.path().join(name);
        let keys: Vec<_> = keys.iter().map(|byte| ticket_key(*byte)).collect();
        std::fs::write(&path, keys.join("\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, two) = (tickets("one", &[1]), tickets("two", &[2, 1]));
    let one = secured_with(&key, &cert, &[("FANFARE_TLS_TICKET_KEYS_FILE", &one)]).await;
    let two = secured_with(&key, &cert, &[("FANFARE_TLS_TICKET_KEYS_FILE", &two)]).await;
    let alone = secured_with(&key, &cert, &[]).await;
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let config = Arc::new(client(&authority, versions));
        let visit = async |gateway: &Gateway| {
            let mut visit = Secured::get(gateway, &config, "/nothing").await;
            // With TLS 1.3 the tickets come behind the handshake.
            visit.until("HTTP/1.1 404").await;
            visit.kind()
        };
        assert_eq!(visit(&one).await, HandshakeKind::Full);
        assert_eq!(visit(&two).await, HandshakeKind::Resumed);
        // Encrypted with a key that the first one does not have.
        let config = Arc::new(client(&authority, versions));
        let visit = async |gateway: &Gateway| {
            let mut visit = Secured::get(gateway, &config, "/nothing").await;
            visit.until("HTTP/1.1 404").await;
            visit.kind()
        };
        assert_eq!(visit(&two).await, HandshakeKind::Full);
        assert_eq!(visit(&one).await, HandshakeKind::Full);
        assert_eq!(visit(&alone).await, HandshakeKind::Full);
        assert_eq!(visit(&alone).await, HandshakeKind::Resumed);
    }
    assert_eq!(handshakes(&two, "resumed").await, 2.0);
}

fn ticket_key(byte: u8) -> String {
    let secret = Command::new("sh")
        .args([
            "-c",
            &format!("printf '\\{byte:03o}%.0s' $(seq 64) | base64 -w 0"),
        ])
        .output()
        .unwrap();
    String::from_utf8(secret.stdout).unwrap()
}

#[tokio::test]
async fn what_is_no_handshake_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let gateway = secured(&authority, &[]).await;
    let tls = gateway.tls.unwrap();
    let counted = async |outcome: &str| {
        eventually(outcome, async || handshakes(&gateway, outcome).await == 1.0).await;
    };
    // As a balancer's TCP check.
    drop(TcpStream::connect(tls).await.unwrap());
    counted("closed_before_hello").await;

    let answer = Raw::get(tls, "/events/a").await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("the URL begins with https\n"), "{answer}");
    counted("plain_http").await;

    let garbage = Raw::send(tls, "\u{16}\u{3}\u{1}\0\u{5}hello")
        .await
        .rest()
        .await;
    assert!(!garbage.contains("HTTP"), "{garbage}");
    counted("failed").await;

    // TLS where there is none.
    let config = Arc::new(client(&authority, &BOTH));
    let socket = TcpStream::connect(gateway.data).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(config).connect(name, socket);
    assert!(within("an end", connecting).await.is_err());

    let mut silent = TcpStream::connect(tls).await.unwrap();
    let mut nothing = Vec::new();
    within("it is closed in time", silent.read_to_end(&mut nothing))
        .await
        .unwrap();
    counted("no_hello").await;
}

/// Sockets that say nothing take no place from clients.
#[tokio::test]
async fn idle_sockets_cannot_fill_the_places_of_handshakes() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let limits = [("FANFARE_MAX_CONNECTIONS", "100"), ("FANFARE_SHARDS", "1")];
    let gateway = secured(&authority, &limits).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(gateway.tls.unwrap()).await.unwrap());
    }
    let config = Arc::new(client(&authority, &BOTH));
    let mut stream = Secured::get(&gateway, &config, "/events/a").await;
    stream.until("event: $cursor\n").await;
    eventually("the oldest made room", async || {
        handshakes(&gateway, "crowded").await >= 900.0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let limits = [
        ("FANFARE_CLIENT_BUFFER_BYTES", "64KiB"),
        ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
    ];
    let gateway = secured(&authority, &limits).await;
    let config = Arc::new(client(&authority, &BOTH));
    let mut slow = Secured::get(&gateway, &config, "/events/a").await;
    slow.until("event: $cursor\n").await;
    let mut other = gateway.events("/events/a").await.opened().await;
    let closed = r#"fanfare_connections_closed_total{reason="slow_client"}"#;
    let data = "x".repeat(16 * 1024);
    let flood = async {
        while gateway.metric(closed).await == 0.0 {
            gateway.post("/events/a?keep=false", data.clone()).await;
            assert_eq!(other.data().await, data);
        }
    };
    within("the slow client is cut off", flood).await;
}

#[tokio::test]
async fn a_proxy_tells_the_client_before_the_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let behind = [
        ("FANFARE_TLS_PROXY_PROTOCOL", "on"),
        ("FANFARE_TRUSTED_PROXIES", "127.0.0.1"),
        ("FANFARE_LOG", "info,fanfare::http=debug"),
    ];
    let gateway = secured(&authority, &behind).await;
    let config = Arc::new(client(&authority, &BOTH));
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n";
    let mut stream = Secured::connect_behind(&gateway, &config, "localhost", header).await;
    stream.ask("/events/a").await;
    stream.until("event: $cursor\n").await;
    eventually("the log has the client's address", async || {
        gateway.log().iter().any(|line| line.contains("192.0.2.7"))
    })
    .await;
    // Without a header it is refused.
    let socket = TcpStream::connect(gateway.tls.unwrap()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(config).connect(name, socket);
    assert!(within("an end", connecting).await.is_err());
    let refused = r#"fanfare_connections_rejected_total{reason="proxy_header"}"#;
    assert_eq!(gateway.metric(refused).await, 1.0);
}

#[test]
fn check_names_certificates_and_what_is_wrong_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let (key, cert) = authority.sign("server", NAMES);
    let (other_key, _) = authority.sign("other", NAMES);
    let check = |cert: &str, key: &str, more: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .arg("check")
            .envs([
                ("FANFARE_TLS_LISTEN", "127.0.0.1:8443"),
                ("FANFARE_TLS_CERT_FILE", cert),
                ("FANFARE_TLS_KEY_FILE", key),
            ])
            .envs(more.iter().copied())
            .output()
            .unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let good = check(&cert, &key, &[]);
    assert!(
        good.contains("for localhost, 127.0.0.1, until 20"),
        "{good}"
    );
    assert!(good.contains("FANFARE_TLS_ALPN=h2,http/1.1"), "{good}");
    let missing = Path::new(&cert).with_extension("missing");
    for (cert, key, more, rule) in [
        (
            &*cert,
            &*other_key,
            ("FANFARE_LOG", "info"),
            "FANFARE_TLS_KEY_FILE",
        ),
        (
            &key,
            &key,
            ("FANFARE_LOG", "info"),
            "contains no certificate in PEM",
        ),
        (
            missing.to_str().unwrap(),
            &key,
            ("FANFARE_LOG", "info"),
            "cannot be read",
        ),
        (
            &cert,
            "",
            ("FANFARE_LOG", "info"),
            "FANFARE_TLS_KEY_FILE is required",
        ),
        (
            &cert,
            &key,
            ("FANFARE_TLS_ALPN", "h3"),
            "must be h2,http/1.1",
        ),
        (
            &cert,
            &key,
            ("FANFARE_TLS_PROXY_PROTOCOL", "on"),
            "needs FANFARE_TRUSTED_PROXIES",
        ),
        (
            &cert,
            &key,
            ("FANFARE_TLS_LISTEN", "0.0.0.0:8443"),
            "FANFARE_REDIS_URL",
        ),
        (
            &cert,
            &key,
            ("FANFARE_TLS_TICKET_KEYS_FILE", &cert),
            "line 1 must be a key of 64 bytes",
        ),
    ] {
        let told = check(cert, key, &[more]);
        assert!(told.contains(rule), "{rule}: {told}");
    }
}

/// Streams of Redis arrive over TLS as over any listener, and resume from one to the other.
#[tokio::test]
async fn a_cursor_of_one_listener_is_one_of_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let redis = Redis::start().await;
    let gateway = secured(&authority, &[("FANFARE_REDIS_URL", &redis.url())]).await;
    let mut events: Events = gateway.events("/events/a").await.opened().await;
    let id = redis.keep("a", "one", &[]).await;
    assert_eq!(events.data().await, "one");
    redis.keep("a", "two", &[]).await;
    let config = Arc::new(client(&authority, &BOTH));
    let path = format!("/events/a?last_event_id={id}");
    let mut stream = Secured::get(&gateway, &config, &path).await;
    let before = stream.until("data: two\n\n\r\n").await;
    assert!(
        !before.contains("$gap") && !before.contains("data: one"),
        "{before}"
    );
}
