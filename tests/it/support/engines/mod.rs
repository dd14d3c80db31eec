//! The browser engines that people use, each with one page, for tests that run in all of them.

mod marionette;
mod webkit;

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::support::Process;
use crate::support::browser::Browser;

/// A browser engine.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    Chromium,
    Firefox,
    /// Safari's engine, in the browser that comes with WebKitGTK.
    WebKit,
}

/// A page in a browser of its own. The browser ends with the test, also with one that fails.
pub enum Page {
    Chromium(Browser),
    Firefox(marionette::Firefox),
    WebKit(webkit::WebKit),
}

impl Engine {
    /// Starts the browser with a fresh profile.
    pub async fn start(self) -> Page {
        match self {
            Self::Chromium => Page::Chromium(Browser::start().await),
            Self::Firefox => Page::Firefox(marionette::Firefox::start().await),
            Self::WebKit => Page::WebKit(webkit::WebKit::start().await),
        }
    }
}

impl Page {
    /// Opens a page and waits until it is loaded.
    pub async fn goto(&mut self, url: &str) {
        match self {
            Self::Chromium(browser) => browser.goto(url).await,
            Self::Firefox(firefox) => firefox.goto(url).await,
            Self::WebKit(webkit) => webkit.goto(url).await,
        }
    }

    /// Runs a function's body in the page and returns what it returns.
    pub async fn run(&mut self, script: &str) -> Value {
        match self {
            Self::Chromium(browser) => browser.run(script).await,
            Self::Firefox(firefox) => firefox.run(script).await,
            Self::WebKit(webkit) => webkit.run(script).await,
        }
    }
}

/// A process and all that it starts: browsers are several processes.
struct ProcessGroup(Process);

impl ProcessGroup {
    /// Starts `command`. `package` is where it comes from.
    fn start(command: &mut Command, package: &str) -> Self {
        let started = command.process_group(0).spawn();
        let program = command.get_program().display();
        Self(Process(started.unwrap_or_else(|error| {
            panic!("{program} is missing: apt-get install {package} ({error})")
        })))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
}
