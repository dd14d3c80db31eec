//! `fanfare tail CHANNEL…`: a client of a gateway's streams, for the terminal.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use sse_stream::{Sse, SseByteStream};

use super::{Failure, runtime};
use crate::protocol::ChannelName;

/// A stream that is silent for so long is dead: heartbeats come more often.
const SILENCE: Duration = Duration::from_secs(90);

/// Until the server says otherwise.
const DEFAULT_RETRY: Duration = Duration::from_secs(3);

#[derive(Args, Debug)]
pub(super) struct Tail {
    /// The channels to read
    #[arg(required = true)]
    channels: Vec<ChannelName>,
    /// The gateway to read from
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Exit after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// How a stream ended.
enum End {
    /// As many events as asked for were printed.
    Enough,
    /// The connection is gone, for this reason; worth another try.
    Lost(String),
}

impl Tail {
    pub(super) fn run(self) -> Result<(), Failure> {
        runtime()?.block_on(self.follow())
    }

    /// Reads until enough has come, reconnecting as a browser does.
    async fn follow(self) -> Result<(), Failure> {
        let mut url = reqwest::Url::parse(&format!("{}/events", self.url.trim_end_matches('/')))?;
        for channel in &self.channels {
            url.query_pairs_mut().append_pair("channel", channel);
        }
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .build()?;
        let mut retry = DEFAULT_RETRY;
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            match read(&client, url.clone(), &mut retry, &mut left).await? {
                End::Enough => break,
                End::Lost(reason) => {
                    writeln!(std::io::stderr(), "fanfare: {reason}; again in {retry:?}")?;
                }
            }
            tokio::time::sleep(retry).await;
        }
        Ok(())
    }
}

async fn read(
    client: &reqwest::Client,
    url: reqwest::Url,
    retry: &mut Duration,
    left: &mut u64,
) -> Result<End, Failure> {
    let request = client.get(url).header("accept", "text/event-stream");
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(End::Lost(error.without_url().to_string())),
    };
    let status = response.status();
    if status.is_client_error() {
        return Err(format!("{status}: {}", response.text().await?).into());
    }
    if !status.is_success() {
        return Ok(End::Lost(status.to_string()));
    }
    let mut events = SseByteStream::new(response.bytes_stream());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return Ok(End::Lost(error.to_string())),
        };
        if let Some(milliseconds) = event.retry {
            *retry = Duration::from_millis(milliseconds);
        }
        if event.data.is_some() {
            print(&event)?;
            *left -= 1;
            if *left == 0 {
                return Ok(End::Enough);
            }
        }
    }
    Ok(End::Lost("the stream ended".into()))
}

/// One line an event. Control characters, line ends among them, are shown escaped: data must not
/// be able to write over the terminal.
fn print(event: &Sse) -> std::io::Result<()> {
    let name = printable(event.event.as_deref().unwrap_or("message"));
    let data = printable(event.data.as_deref().unwrap_or_default());
    let id = printable(event.id.as_deref().unwrap_or("-"));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{id}\t{name}\t{data}")?;
    out.flush()
}

fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || character == '\\' {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}
