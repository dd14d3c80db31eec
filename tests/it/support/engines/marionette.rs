//! Firefox, driven over Marionette, its own protocol: Debian has no geckodriver.
//!
//! A message is `<length>:<JSON>` over TCP. A command is `[0, id, name, parameters]`, its answer
//! `[1, id, error, result]`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::ProcessGroup;
use crate::support::{eventually, within};

/// Firefox chooses the port, and asks nobody but the tests' servers.
const PREFERENCES: &str = r#"
user_pref("marionette.port", 0);
user_pref("app.update.disabledForTesting", true);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"#;

/// Firefox with one page.
pub struct Firefox {
    socket: BufReader<TcpStream>,
    commands: u64,
    /// Held until Firefox is dropped.
    _process: ProcessGroup,
    _profile: tempfile::TempDir,
}

impl Firefox {
    pub(super) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        std::fs::write(profile.path().join("user.js"), PREFERENCES).unwrap();
        let process = ProcessGroup::start(
            Command::new("firefox-esr")
                .args(["--headless", "--marionette", "--no-remote", "--profile"])
                .arg(profile.path())
                // Its caches and settings end with the test.
                .env("HOME", profile.path())
                .env_remove("DISPLAY")
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
            "firefox-esr",
        );
        let port = port(profile.path()).await;
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut firefox = Self {
            socket: BufReader::new(socket),
            commands: 0,
            _process: process,
            _profile: profile,
        };
        let greeting = within("Firefox speaks", firefox.message()).await;
        assert_eq!(greeting["marionetteProtocol"], 3, "{greeting}");
        firefox.command("WebDriver:NewSession", json!({})).await;
        firefox
    }

    pub(super) async fn goto(&mut self, url: &str) {
        let navigate = self.command("WebDriver:Navigate", json!({ "url": url }));
        within("the page loads", navigate).await;
    }

    pub(super) async fn run(&mut self, script: &str) -> Value {
        let parameters = json!({
            "script": script,
            "args": [],
            // What one script sets, the next finds.
            "newSandbox": false,
        });
        let mut answer = self.command("WebDriver:ExecuteScript", parameters).await;
        answer["value"].take()
    }

    async fn command(&mut self, name: &str, parameters: Value) -> Value {
        self.commands += 1;
        let message = json!([0, self.commands, name, parameters]).to_string();
        let message = format!("{}:{message}", message.len());
        let socket = self.socket.get_mut();
        socket.write_all(message.as_bytes()).await.unwrap();
        let mut answer = within(name, self.message()).await;
        assert_eq!(answer[1], self.commands, "{answer}");
        assert!(answer[2].is_null(), "{name}: {answer}");
        answer[3].take()
    }

    async fn message(&mut self) -> Value {
        let mut length = 0;
        loop {
            match self.socket.read_u8().await.unwrap() {
                b':' => break,
                digit => length = 10 * length + usize::from(digit - b'0'),
            }
        }
        let mut text = vec![0; length];
        self.socket.read_exact(&mut text).await.unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// The port that Firefox listens at, which it writes into its profile.
async fn port(profile: &Path) -> u16 {
    let file = profile.join("MarionetteActivePort");
    let mut port = None;
    eventually("Firefox listens", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        port = text.trim().parse().ok();
        std::future::ready(port.is_some())
    })
    .await;
    port.unwrap()
}
