//! What the integration tests share: real processes on ephemeral ports, torn down when dropped,
//! and clients that see bytes as they arrive.

pub mod authority;
pub mod browser;
pub mod client;
pub mod engines;
pub mod nginx;
pub mod oracle;
pub mod proxy;
#[cfg(feature = "long-tests")]
pub mod release;
pub mod sentinel;
pub mod tokens;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sse_stream::{Sse, SseByteStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Long enough for anything that works, on a machine that is busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Fails the test when `future` takes longer than [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Fails the test when it takes longer than `deadline`, whatever its parts may take.
pub async fn test_within<T>(deadline: Duration, test: impl Future<Output = T>) -> T {
    timeout(deadline, test)
        .await
        .unwrap_or_else(|_| panic!("the test takes longer than {deadline:?}"))
}

/// Looks again and again until `condition` holds, or fails the test.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    eventually_within(DEADLINE, what, &mut condition).await;
}

/// As [`eventually`], with a deadline of its own.
pub async fn eventually_within<F: Future<Output = bool>>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that was free a moment ago, and that no connection takes by chance: it lies below the range that
/// Linux chooses from (32,768 and up).
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Makes a certificate of 127.0.0.1 in `folder`, and returns the files of its key and of itself.
pub fn certificate(folder: &Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl is installed (make test installs it)");
    assert!(openssl.status.success(), "{openssl:?}");
    (key, certificate)
}

/// A child process that does not outlive the test.
pub struct Process(pub Child);

impl Process {
    /// Sends a signal by name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.0.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end and returns whether it was a success.
    pub async fn ended(&mut self) -> bool {
        self.ended_within(DEADLINE).await
    }

    /// As [`ended`](Self::ended), with a deadline of its own.
    pub async fn ended_within(&mut self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(
                Instant::now() < end,
                "not within {deadline:?}: the process ends"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process takes SIGKILL too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server that stands for Redis: `TEST_REDIS_SERVER`, for example a Valkey, or `redis-server`.
fn server_program() -> PathBuf {
    std::env::var_os("TEST_REDIS_SERVER").map_or_else(|| "redis-server".into(), Into::into)
}

/// A `redis-server` of its own, without persistence.
pub struct Redis {
    program: PathBuf,
    process: Process,
    port: u16,
    directory: tempfile::TempDir,
    options: Vec<String>,
}

impl Redis {
    /// Starts a server on a free port.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further options.
    pub async fn start_with(options: &[(&str, &str)]) -> Self {
        Self::start_program(&server_program(), options).await
    }

    /// Starts a server by this program.
    pub async fn start_program(program: &Path, options: &[(&str, &str)]) -> Self {
        let port = free_port();
        let directory = tempfile::tempdir().unwrap();
        let options: Vec<String> = options
            .iter()
            .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
            .collect();
        let process = Self::spawn(program, port, &directory, &options);
        let mut redis = Self {
            program: program.to_owned(),
            process,
            port,
            directory,
            options,
        };
        redis.answers().await;
        redis
    }

    fn spawn(
        program: &Path,
        port: u16,
        directory: &tempfile::TempDir,
        options: &[String],
    ) -> Process {
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(directory.path().join("redis.sock"))
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (make test installs it)");
        Process(child)
    }

    /// Waits until this very server answers: its port was free, but nobody kept it so.
    async fn answers(&mut self) {
        let own = self.directory.path().canonicalize().unwrap();
        let url = self.url();
        let end = Instant::now() + DEADLINE;
        loop {
            let exited = self.process.0.try_wait().unwrap();
            assert!(exited.is_none(), "redis-server has exited: {exited:?}");
            let client = redis::Client::open(url.as_str()).unwrap();
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
                let found: redis::RedisResult<Vec<String>> = redis::cmd("CONFIG")
                    .arg(&["GET", "dir"])
                    .query_async(&mut connection)
                    .await;
                // CONFIG is answered while data is being loaded; PING is not.
                let loaded = redis::cmd("PING").exec_async(&mut connection).await;
                if let (Ok(found), Ok(())) = (found, loaded) {
                    assert_eq!(Path::new(&found[1]), own);
                    return;
                }
            }
            assert!(Instant::now() < end, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// A connection for commands.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        self.try_connection().await.unwrap()
    }

    /// The crate's own timeout of half a second is too short for a busy machine.
    async fn try_connection(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Runs a command and returns what it answers.
    pub async fn command<T: redis::FromRedisValue>(&self, parts: &[&str]) -> T {
        self.try_command(parts).await.unwrap()
    }

    /// As [`command`](Self::command), of a server that may close the connection meanwhile.
    pub async fn try_command<T: redis::FromRedisValue>(
        &self,
        parts: &[&str],
    ) -> redis::RedisResult<T> {
        let mut connection = self.try_connection().await?;
        let mut command = redis::cmd(parts[0]);
        command.arg(&parts[1..]);
        command.query_async(&mut connection).await
    }

    /// Publishes `payload` to the channel `sse:<channel>` and returns how many received it.
    pub async fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        let mut connection = self.connection().await;
        redis::cmd("PUBLISH")
            .arg(format!("sse:{channel}"))
            .arg(payload.as_ref())
            .query_async(&mut connection)
            .await
            .unwrap()
    }

    /// Publishes a kept event with options and returns its id.
    pub async fn keep(&self, channel: &str, data: &str, options: &[&str]) -> String {
        let key = format!("sse:{channel}");
        let command = [&["FCALL", "fanfare_publish", "1", &key, data], options].concat();
        self.command(&command).await
    }

    /// The subscribed channels without prefix, sorted, the gateway's own left out.
    pub async fn channels(&self) -> Vec<String> {
        let all: Vec<String> = self.command(&["PUBSUB", "CHANNELS", "sse:*"]).await;
        let mut names: Vec<_> = all
            .iter()
            .filter_map(|name| name.strip_prefix("sse:"))
            .filter(|name| !name.starts_with('$'))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// Kills it with SIGKILL.
    pub async fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.ended().await;
    }

    /// Starts it again on the same port.
    pub async fn restart(&mut self) {
        self.process = Self::spawn(&self.program, self.port, &self.directory, &self.options);
        self.answers().await;
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }
}

/// The gateway of this version.
pub const BINARY: &str = env!("CARGO_BIN_EXE_fanfare");

/// A gateway process.
pub struct Gateway {
    pub process: Process,
    /// The data listener.
    pub data: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The listener for the PROXY protocol, if there is one.
    pub proxied: Option<SocketAddr>,
    /// The TLS listener, if there is one.
    pub tls: Option<SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    http: reqwest::Client,
}

impl Gateway {
    /// Starts a gateway on ephemeral ports with these variables, and waits until it is ready.
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let gateway = Self::start_unready(variables).await;
        gateway.ready().await;
        gateway
    }

    /// Starts a gateway behind `redis`, and waits until it is ready.
    pub async fn behind(redis: &Redis, variables: &[(&str, &str)]) -> Self {
        let url = redis.url();
        let mut all = vec![("FANFARE_REDIS_URL", url.as_str())];
        all.extend_from_slice(variables);
        Self::start(&all).await
    }

    /// Starts a gateway behind `redis` that may have so many descriptors, and waits until it is
    /// ready.
    pub async fn start_limited(
        redis: &Redis,
        descriptors: u32,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\"")])
            .arg(BINARY)
            .env("FANFARE_REDIS_URL", redis.url());
        let gateway = Self::spawn(command, variables).await;
        gateway.ready().await;
        gateway
    }

    /// Starts a gateway and waits until it listens.
    pub async fn start_unready(variables: &[(&str, &str)]) -> Self {
        Self::start_binary(Path::new(BINARY), variables).await
    }

    /// Stops reading the log until what is returned is dropped.
    pub fn stop_reading_log(&self) -> std::sync::mpsc::Sender<()> {
        let log = Arc::clone(&self.log);
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let (stopped, has_stopped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _not_read = log.lock().unwrap();
            stopped.send(()).unwrap();
            let _ = may_go_on.recv();
        });
        has_stopped.recv().unwrap();
        go_on
    }

    /// Starts a gateway of any version and waits until it listens.
    pub async fn start_binary(binary: &Path, variables: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(binary), variables).await
    }

    async fn spawn(mut command: Command, variables: &[(&str, &str)]) -> Self {
        command
            .env("FANFARE_LISTEN", "127.0.0.1:0")
            .env("FANFARE_ADMIN_LISTEN", "127.0.0.1:0")
            .env("FANFARE_DRAIN_DELAY", "0s")
            .env("FANFARE_DRAIN_PERIOD", "0s")
            .env("FANFARE_LOG_FORMAT", "json")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let stderr = BufReader::new(process.0.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listening, addresses) = std::sync::mpsc::channel();
        {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                    if entry["message"] == "listening" {
                        let address = |name: &str| entry[name].as_str()?.parse().ok();
                        let found = ["data", "admin", "proxied", "tls"].map(address);
                        let _ = listening.send(found);
                    }
                    log.lock().unwrap().push(line);
                }
            });
        }
        let found = tokio::task::spawn_blocking(move || addresses.recv_timeout(DEADLINE)).await;
        let [data, admin, proxied, tls]: [Option<SocketAddr>; 4] = found
            .unwrap()
            .unwrap_or_else(|_| panic!("the gateway did not start: {:#?}", log.lock().unwrap()));
        Self {
            process,
            data: data.unwrap(),
            admin: admin.unwrap(),
            proxied,
            tls,
            log,
            http: reqwest::Client::new(),
        }
    }

    /// Waits until `/readyz` is green.
    pub async fn ready(&self) {
        eventually("the gateway is ready", async || self.is_ready().await).await;
    }

    /// Whether `/readyz` is green.
    pub async fn is_ready(&self) -> bool {
        self.admin_get("/readyz").await.0 == 200
    }

    /// Status and body of a path of the admin listener.
    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.admin);
        let response = within("the admin listener answers", self.http.get(url).send())
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The value of a series of `/metrics`.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.admin_get("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no series {series} in {text}"));
        value.parse().unwrap()
    }

    /// The log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line with this message.
    pub async fn logged(&self, message: &str) {
        let message = format!("\"message\":\"{message}\"");
        eventually(&message, async || {
            self.log().iter().any(|line| line.contains(&message))
        })
        .await;
    }

    /// The URL of a path of the data listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.data)
    }

    /// Publishes over HTTP; status and body.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let request = self.http.post(self.url(path)).body(body);
        let response = within("the gateway answers", request.send()).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Publishes a kept event over HTTP and returns its id.
    pub async fn keep(&self, path: &str, body: impl Into<reqwest::Body>) -> String {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// Status and body of an answer that ends.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = within("the gateway answers", self.http.get(self.url(path)).send())
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Opens a stream and returns it when its head has arrived.
    pub async fn events(&self, path: &str) -> Events {
        Events::open(&self.url(path)).await
    }

    /// How many descriptors the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.0.id()))
            .unwrap()
            .count()
    }

    /// The processor time it has used, in ticks of 10 ms (`/proc/PID/stat`, proc(5)).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<_> = fields.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// What the process holds of memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        resident_bytes(self.process.0.id()).unwrap()
    }
}

/// What a process holds of memory, in bytes (`/proc/PID/statm`, proc(5)).
fn resident_bytes(process: u32) -> std::io::Result<usize> {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages: Option<usize> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    Ok(pages.unwrap_or_default() * 4096)
}

/// What each gateway holds of memory that this process has started.
pub fn resident_bytes_of_gateways() -> Vec<usize> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        // A thread, or a child, may be gone by now.
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if name.trim() == "fanfare" {
                found.extend(resident_bytes(child.parse().unwrap()));
            }
        }
    }
    found
}

type Blocks = Pin<Box<dyn Stream<Item = Result<Sse, sse_stream::Error>> + Send>>;

/// A stream, decoded by a decoder that is not ours.
pub struct Events {
    pub head: http::response::Parts,
    blocks: Blocks,
}

impl Events {
    /// Opens a stream on a connection of its own.
    pub async fn open(url: &str) -> Self {
        let response = within("the stream's head", reqwest::get(url)).await;
        Self::of(response.unwrap())
    }

    /// Reads the stream that `response` is.
    pub fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200);
        let response: http::Response<reqwest::Body> = response.into();
        let (head, body) = response.into_parts();
        let body = http_body_util::BodyExt::into_data_stream(body);
        Self {
            head,
            blocks: Box::pin(SseByteStream::new(
                body.map(|bytes| bytes.map(|b: Bytes| b)),
            )),
        }
    }

    /// The next block, one without data included; `None` at the end of the stream.
    pub async fn block(&mut self) -> Option<Sse> {
        within("a block", self.blocks.next())
            .await
            .and_then(Result::ok)
    }

    /// Waits for the first block, after which every event arrives.
    pub async fn opened(mut self) -> Self {
        let first = self.block().await.expect("a first block");
        let is_cursor = first.event.as_deref() == Some("$cursor") && first.data.is_some();
        assert!(first.retry.is_some() && is_cursor, "{first:?}");
        self
    }

    /// The next event; a `$cursor` is none that an application hears of.
    pub async fn event(&mut self) -> Sse {
        loop {
            let block = self.block().await.expect("the stream goes on");
            assert!(block.data.is_some(), "a block without data: {block:?}");
            if block.event.as_deref() != Some("$cursor") {
                return block;
            }
        }
    }

    /// What the next event, a gap, says.
    pub async fn gap(&mut self) -> serde_json::Value {
        let event = self.event().await;
        assert_eq!(event.event.as_deref(), Some("$gap"), "{event:?}");
        serde_json::from_str(&event.data.unwrap()).unwrap()
    }

    /// The data of the next event.
    pub async fn data(&mut self) -> String {
        self.event().await.data.unwrap()
    }
}

/// A connection whose bytes are seen as they are.
pub struct Raw {
    pub socket: TcpStream,
    pub received: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = within("connecting", TcpStream::connect(address)).await;
        Self {
            socket: socket.unwrap(),
            received: Vec::new(),
        }
    }

    /// Connects and sends `request`.
    pub async fn send(address: SocketAddr, request: &str) -> Self {
        let mut raw = Self::connect(address).await;
        raw.socket.write_all(request.as_bytes()).await.unwrap();
        raw
    }

    /// Opens a stream.
    pub async fn get(address: SocketAddr, path: &str) -> Self {
        Self::send(
            address,
            &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        )
        .await
    }

    /// Reads until `text` has been received, and returns everything up to its end.
    pub async fn until(&mut self, text: &str) -> String {
        read_until(&mut self.socket, &mut self.received, text).await
    }

    /// Reads to the end of the connection.
    pub async fn rest(&mut self) -> String {
        within("the end of the connection", async {
            while self.socket.read_buf(&mut self.received).await.unwrap_or(0) > 0 {}
            String::from_utf8(std::mem::take(&mut self.received)).unwrap()
        })
        .await
    }
}

/// Reads until `text` has been received, and returns everything up to its end. What was received
/// beyond it stays in `received`.
pub async fn read_until(
    socket: &mut (impl AsyncRead + Unpin),
    received: &mut Vec<u8>,
    text: &str,
) -> String {
    let mut searched = 0;
    within(&format!("receiving {text:?}"), async {
        loop {
            let found = memchr::memmem::find(&received[searched..], text.as_bytes());
            if let Some(at) = found {
                let rest = received.split_off(searched + at + text.len());
                let before = std::mem::replace(received, rest);
                return String::from_utf8(before).unwrap();
            }
            searched = received.len().saturating_sub(text.len());
            let count = socket.read_buf(received).await.unwrap();
            assert_ne!(
                count,
                0,
                "closed before {text:?}: {:?}",
                String::from_utf8_lossy(received)
            );
        }
    })
    .await
}
