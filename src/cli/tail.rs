//! `fanfare tail CHANNEL…`: a client of a gateway's streams, for the terminal.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use super::token::Token;
use super::{Failure, cause, client, gateway_url, runtime};
use crate::protocol::{ChannelName, Cursor, EndReason};

/// A stream that is silent for so long is dead: heartbeats come more often.
const SILENCE: Duration = Duration::from_secs(90);

/// Until the server says otherwise.
const DEFAULT_RETRY: Duration = Duration::from_secs(3);

/// Exits when all channels have ended: with 0 if all are done, otherwise with 3 if one was stopped, 4 if one
/// failed (error), 5 if the publisher of one was lost
#[derive(Args, Debug)]
pub(super) struct Tail {
    /// The channels to read
    #[arg(required = true)]
    channels: Vec<ChannelName>,
    /// Gateway to read from
    #[arg(long, env = "FANFARE_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Start after this cursor: the id of the last event received
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
    /// Start with the newest N kept events of each channel
    #[arg(long, value_name = "N", conflicts_with = "after")]
    history: Option<u32>,
    /// Start with the first kept event of each channel: start
    #[arg(long, value_name = "start", value_parser = ["start"], conflicts_with = "history")]
    from: Option<String>,
    /// Exit after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    token: Token,
}

impl Tail {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(self.follow())
    }

    /// Reads until enough has come, reconnecting as a browser does.
    async fn follow(self) -> Result<ExitCode, Failure> {
        let mut url = gateway_url(&self.url, "/events")?;
        let gateway = url.origin().ascii_serialization();
        for channel in &self.channels {
            url.query_pairs_mut().append_pair("channel", channel);
        }
        if let Some(count) = self.history {
            let count = count.to_string();
            url.query_pairs_mut().append_pair("history", &count);
        }
        if let Some(from) = &self.from {
            url.query_pairs_mut().append_pair("from", from);
        }
        let client = client(url.as_str())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .build()?;
        let mut reader = Reader {
            client,
            url,
            gateway,
            cursor: self.after.map(|cursor| cursor.to_string()),
            retry: DEFAULT_RETRY,
            left: self.count.unwrap_or(u64::MAX),
            resumes: false,
            token: self.token,
            channels: self.channels.iter().collect::<HashSet<_>>().len(),
            ends: HashMap::new(),
        };
        while reader.left > 0 {
            match reader.read().await? {
                End::Enough => break,
                End::Over(reason) => return Ok(exit_code(reason)),
                End::Lost(reason) => {
                    let Reader { gateway, retry, .. } = &reader;
                    note(&format!("{gateway}: {reason}; again in {retry:?}"))?;
                }
            }
            tokio::time::sleep(reader.retry).await;
            reader.resumes = true;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How a stream ended.
enum End {
    /// As many events as asked for were printed.
    Enough,
    /// All channels have ended; the gravest of their reasons.
    Over(EndReason),
    /// The connection is gone, for this reason; worth another try.
    Lost(String),
}

/// What an `EventSource` keeps from one connection to the next.
struct Reader {
    client: reqwest::Client,
    url: reqwest::Url,
    /// Scheme, host and port of the URL, for people: the rest may hold a password.
    gateway: String,
    /// The last id received. Not a [`Cursor`]: it is the server's, and goes back as it came.
    cursor: Option<String>,
    retry: Duration,
    /// Events still to be printed.
    left: u64,
    /// There was a connection before, which the user is to be told of once this one stands.
    resumes: bool,
    token: Token,
    /// How many channels were asked for.
    channels: usize,
    /// How channels have ended, as far as this connection says.
    ends: HashMap<String, EndReason>,
}

impl Reader {
    /// Reads one stream to its end.
    async fn read(&mut self) -> Result<End, Failure> {
        let mut request = self
            .client
            .get(self.url.clone())
            .header("accept", "text/event-stream");
        if let Some(cursor) = &self.cursor {
            request = request.header("last-event-id", cursor);
        }
        if let Some(authorization) = self.token.authorization()? {
            request = request.header(reqwest::header::AUTHORIZATION, authorization);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => return Err(error.into()),
            Err(error) => return Ok(End::Lost(cause(&error.without_url()))),
        };
        let status = response.status();
        if status == reqwest::StatusCode::NO_CONTENT {
            let reason = response.headers().get("fanfare-end");
            let reason = reason.and_then(|reason| reason.to_str().ok());
            return Ok(End::Over(EndReason::read(reason.unwrap_or("done"))));
        }
        if status.is_client_error() {
            let answer = response.text().await?;
            return Err(format!("{}: {status}: {answer}", self.gateway).into());
        }
        if !status.is_success() {
            return Ok(End::Lost(status.to_string()));
        }
        self.ends.clear();
        let mut blocks = SseByteStream::new(response.bytes_stream());
        while let Some(block) = blocks.next().await {
            match block {
                Ok(block) => self.take(block)?,
                Err(error) => return Ok(End::Lost(error.to_string())),
            }
            if self.left == 0 {
                return Ok(End::Enough);
            }
        }
        let gravest = self.ends.values().max().copied();
        let all_have_ended = gravest.filter(|_| self.ends.len() == self.channels);
        Ok(match all_have_ended {
            Some(reason) => End::Over(reason),
            None => End::Lost("the stream ended".into()),
        })
    }

    fn note_end(&mut self, data: &str) {
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |member: &str| data.get(member).and_then(Value::as_str);
        if let (Some(channel), Some(reason)) = (text("channel"), text("reason")) {
            self.ends
                .insert(channel.to_owned(), EndReason::read(reason));
        }
    }

    fn take(&mut self, block: Sse) -> std::io::Result<()> {
        if let Some(milliseconds) = block.retry {
            self.retry = Duration::from_millis(milliseconds);
        }
        let name = block.event.as_deref().unwrap_or("message");
        if name == "$busy" {
            return note("the gateway cannot open the stream now");
        }
        // What only says when to come back has neither. An older gateway is busy in that form.
        if (block.id.is_some() || block.data.is_some())
            && std::mem::take(&mut self.resumes)
            && let Some(cursor) = &self.cursor
        {
            note(&format!("connected again, resuming after {cursor}"))?;
        }
        if let Some(data) = &block.data {
            if name != "$cursor" {
                print(block.id.as_deref().unwrap_or("-"), name, data)?;
            }
            match name {
                "$gap" => note(&gap(data))?,
                "$end" => self.note_end(data),
                _ => {}
            }
            // The gateway's own are no events of a channel.
            if !name.starts_with('$') {
                self.left -= 1;
            }
        }
        // Noted without data too, as the WHATWG rules have it; the empty id is none.
        if let Some(id) = block.id {
            self.cursor = (!id.is_empty()).then_some(id);
        }
        Ok(())
    }
}

/// What a process ends with after channels have ended so.
fn exit_code(reason: EndReason) -> ExitCode {
    ExitCode::from(match reason {
        EndReason::Done => 0,
        EndReason::Stopped => 3,
        EndReason::Error => 4,
        EndReason::Lost => 5,
    })
}

/// A gap, for people.
fn gap(data: &str) -> String {
    let data: Value = serde_json::from_str(data).unwrap_or_default();
    let text = |member: &str| data.get(member).and_then(Value::as_str);
    let mut gap = format!(
        "gap: events of {} may be missing",
        text("channel").unwrap_or("?")
    );
    if let Some(after) = text("after") {
        gap += &format!(" after {after}");
    }
    if let Some(reason) = text("reason") {
        gap += &format!(" ({reason})");
    }
    gap
}

/// A line about the stream itself, beside what is on it.
fn note(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "fanfare: {}", printable(text))
}

/// One line an event. Control characters, line ends among them, are shown escaped: data must not
/// be able to write over the terminal.
fn print(id: &str, name: &str, data: &str) -> std::io::Result<()> {
    let [id, name, data] = [id, name, data].map(printable);
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
