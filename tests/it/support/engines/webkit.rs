//! WebKitGTK's own browser, driven through WebKitWebDriver, on a display that nobody sees.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::ProcessGroup;
use crate::support::{eventually, free_port, within};

/// Debian's package has it in a folder that the package's version names.
const MINI_BROWSER: &str = "/usr/lib/*/webkit2gtk-4.*/MiniBrowser";

/// The browser with one page.
pub struct WebKit {
    client: Client,
    /// Held until the browser is dropped; the browser ends before its display.
    _driver: ProcessGroup,
    _display: ProcessGroup,
    _home: tempfile::TempDir,
}

impl WebKit {
    pub(super) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (display, number) = display().await;
        let port = free_port();
        let driver = ProcessGroup::start(
            Command::new("WebKitWebDriver")
                .arg(format!("--port={port}"))
                .env("DISPLAY", format!(":{number}"))
                // Its caches and settings end with the test.
                .env("HOME", home.path())
                .env("XDG_RUNTIME_DIR", home.path())
                // Neither a desktop's services nor a graphics card are there.
                .env("GTK_A11Y", "none")
                .env("NO_AT_BRIDGE", "1")
                .env("LIBGL_ALWAYS_SOFTWARE", "1")
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
            "webkit2gtk-driver",
        );
        eventually("WebKitWebDriver listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let capabilities = json!({
            "webkitgtk:browserOptions": { "binary": mini_browser(), "args": ["--automation"] },
        });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let url = format!("http://127.0.0.1:{port}");
        let client = within("WebKit starts", builder.connect(&url))
            .await
            .unwrap_or_else(|error| panic!("WebKit does not start: {error}"));
        Self {
            client,
            _driver: driver,
            _display: display,
            _home: home,
        }
    }

    pub(super) async fn goto(&self, url: &str) {
        within("the page loads", self.client.goto(url))
            .await
            .unwrap_or_else(|error| panic!("{url} does not load: {error}"));
    }

    pub(super) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }
}

/// A display in memory, and its number, which it chooses itself.
async fn display() -> (ProcessGroup, u32) {
    let mut display = ProcessGroup::start(
        Command::new("Xvfb")
            .args(["-displayfd", "1", "-nolisten", "tcp"])
            .args(["-screen", "0", "1280x1024x24"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
        "xvfb",
    );
    let mut stdout = BufReader::new(display.0.0.stdout.take().unwrap());
    let number = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    });
    let number = within("Xvfb is ready", number).await.unwrap();
    (display, number)
}

fn mini_browser() -> String {
    let found = Command::new("sh")
        .args(["-c", &format!("ls {MINI_BROWSER}")])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let first = found.lines().next();
    first
        .expect("MiniBrowser is missing: apt-get install webkit2gtk-driver")
        .to_owned()
}
