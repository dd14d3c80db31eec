//! A real Chromium, driven through chromedriver.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::{ParseError, Url};

use crate::support::{Process, eventually, within};

const CHROMIUM: &str = "/usr/bin/chromium";
const CHROMEDRIVER: &str = "/usr/bin/chromedriver";
const INSTALL: &str = "is missing: apt-get install chromium chromium-driver";

/// A browser with one window. It ends with the test, also with one that fails.
pub struct Browser {
    pub client: Client,
    /// Held until the browser is dropped.
    _driver: Process,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts chromedriver on a port it chooses, and Chromium with a fresh profile.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts them with further flags of Chromium.
    pub async fn start_with(more: &[&str]) -> Self {
        assert!(
            std::path::Path::new(CHROMIUM).exists(),
            "{CHROMIUM} {INSTALL}"
        );
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Process(
            Command::new(CHROMEDRIVER)
                .arg("--port=0")
                // Both leave files where temporary files go; there they end with the test.
                .env("TMPDIR", profile.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{CHROMEDRIVER} {INSTALL} ({error})")),
        );
        let stdout = BufReader::new(driver.0.stdout.take().unwrap());
        let port = within("chromedriver listens", started_on(stdout)).await;
        let mut flags = vec![
            "--headless".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            // Over a pipe: Chromium ends when chromedriver does, however that ends.
            "--remote-debugging-pipe".to_owned(),
            "--window-size=1280,860".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        if is_root() {
            // Chromium refuses to sandbox itself as root.
            flags.push("--no-sandbox".to_owned());
        }
        let capabilities = json!({
            // Those that tests make for themselves.
            "acceptInsecureCerts": true,
            "goog:chromeOptions": { "binary": CHROMIUM, "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let url = format!("http://127.0.0.1:{port}");
        let client = within("Chromium starts", builder.connect(&url))
            .await
            .unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        Self {
            client,
            _driver: driver,
            _profile: profile,
        }
    }

    /// Opens a page and waits until it is loaded.
    pub async fn goto(&self, url: &str) {
        within("the page loads", self.client.goto(url))
            .await
            .unwrap_or_else(|error| panic!("{url} does not load: {error}"));
    }

    /// The first element that a CSS selector finds.
    pub async fn find(&self, selector: &str) -> Element {
        self.client
            .find(Locator::Css(selector))
            .await
            .unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    /// The text of the first element that a CSS selector finds.
    pub async fn text(&self, selector: &str) -> String {
        self.find(selector).await.text().await.unwrap()
    }

    /// Clicks the first element that a CSS selector finds.
    pub async fn click(&self, selector: &str) {
        self.find(selector).await.click().await.unwrap();
    }

    /// Replaces the text of a field.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.find(selector).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Runs a function's body in the page and returns what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until the element that a CSS selector finds has this text.
    pub async fn shows(&self, selector: &str, text: &str) {
        let what = format!("{selector} shows {text:?}");
        eventually(&what, async || {
            match self.client.find(Locator::Css(selector)).await {
                Ok(element) => element.text().await.is_ok_and(|shown| shown == text),
                Err(_) => false,
            }
        })
        .await;
    }

    /// What the console has said since the last call: errors and warnings, of the page and of
    /// the browser (a missing file, a policy broken).
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self
            .command("se/log", json!({ "type": "browser" }))
            .await
            .as_array()
            .cloned()
            .unwrap();
        entries
            .iter()
            .filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")))
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Lets the page believe that the user prefers `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({
            "cmd": "Emulation.setEmulatedMedia",
            "params": { "features": features },
        });
        self.command("goog/cdp/execute", command).await;
    }

    /// A command that chromedriver has beside those of the WebDriver standard.
    async fn command(&self, path: &'static str, body: Value) -> Value {
        self.client
            .issue_cmd(DriverCommand { path, body })
            .await
            .unwrap()
    }

    /// Ends Chromium in an orderly way.
    pub async fn close(self) {
        within("Chromium ends", self.client.clone().close())
            .await
            .unwrap();
    }
}

#[derive(Debug)]
struct DriverCommand {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for DriverCommand {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// Reads chromedriver's output up to the port, and the rest so that it never waits for a reader.
async fn started_on(mut stdout: BufReader<std::process::ChildStdout>) -> u16 {
    let (started, port) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let mut started = Some(started);
        while stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
            if let Some((_, rest)) = line.split_once("successfully on port ")
                && let Some(started) = started.take()
            {
                let _ = started.send(rest.trim().trim_end_matches('.').parse().unwrap());
            }
            line.clear();
        }
    });
    port.await
        .unwrap_or_else(|_| panic!("chromedriver ended before it listened"))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The kernel makes /proc/self its process's own.
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
