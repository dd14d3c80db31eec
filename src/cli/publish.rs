//! `fanfare publish CHANNEL DATA`.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::SecretString;
use serde::Deserialize;

use super::token::Token;
use super::{Failure, cause, client, gateway_url, runtime};
use crate::bus::{KeepOptions, publish_once};
use crate::config::{RedisSource, RedisTlsFiles, SourceFault, secret};
use crate::protocol::{ChannelName, EndReason, Event, EventId, TraceParent};

/// The limit that a gateway has unless told otherwise; Redis would take more, gateways drop it.
const MAX_EVENT_BYTES: usize = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct Publish {
    /// The channel to publish to
    channel: ChannelName,
    /// The data, UTF-8 text
    data: String,
    /// The event's name
    #[arg(long)]
    event: Option<String>,
    /// New reconnection time of clients, such as 5s; at most a day
    #[arg(long, value_parser = humantime::parse_duration)]
    retry: Option<Duration>,
    /// Deliver only to sessions whose claims contain every member of this JSON object
    #[arg(long, value_name = "JSON")]
    to: Option<String>,
    /// Trim the channel's history to this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    history: Option<u32>,
    /// Idempotency key: an event with a key that was used before is not published
    #[arg(long)]
    key: Option<String>,
    /// End the channel with this event, or without one if the data is empty: done, error or stopped
    #[arg(long, value_name = "REASON", value_parser = end_reason)]
    end: Option<EndReason>,
    /// Publish a live event: it is not kept and has no id
    #[arg(long, conflicts_with_all = ["history", "key", "end"])]
    live: bool,
    /// W3C trace context of the event. It is not sent to clients
    #[arg(long, value_name = "TRACEPARENT")]
    traceparent: Option<TraceParent>,
    /// Publish through this Redis
    #[arg(
        long,
        env = "FANFARE_REDIS_URL",
        hide_env_values = true,
        value_parser = secret
    )]
    redis_url: Option<SecretString>,
    #[command(flatten)]
    redis_tls: RedisTlsFiles,
    /// Prefix of channel names in Redis
    #[arg(long, env = "FANFARE_PREFIX", default_value = "sse:")]
    prefix: String,
    /// Publish over HTTP to this gateway. As an argument it takes precedence over
    /// FANFARE_REDIS_URL; as a variable it is used when no Redis URL is given
    #[arg(long, env = "FANFARE_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    #[command(flatten)]
    token: Token,
}

impl Publish {
    /// `arguments`: what this was read from.
    pub(super) fn run(mut self, arguments: &ArgMatches) -> Result<(), Failure> {
        let is_argument = |id| arguments.value_source(id) == Some(ValueSource::CommandLine);
        match (is_argument("url"), is_argument("redis_url")) {
            (true, true) => return Err("--url and --redis-url exclude each other".into()),
            // Whoever names a gateway does not mean the Redis of the environment.
            (true, false) => self.redis_url = None,
            (false, _) => {}
        }
        let event = Event::new(Bytes::from(self.data), MAX_EVENT_BYTES)?;
        let mut event = event.with_trace_parent(self.traceparent);
        if let Some(name) = &self.event {
            event = event.with_name(name)?;
        }
        if let Some(retry) = self.retry {
            let rule = "--retry must be a duration such as 5s, at most a day";
            event = event.with_retry(retry).map_err(|_| rule)?;
        }
        if let Some(to) = &self.to {
            event = event.with_to(to).map_err(|rule| format!("--to {rule}"))?;
        }
        let keep = (!self.live).then_some(KeepOptions {
            history: self.history,
            key: self.key,
            end: self.end,
        });
        let runtime = runtime()?;
        let read = |url| {
            let source = RedisSource::given(url, self.redis_tls);
            let fault = |SourceFault { setting, rule }| format!("FANFARE_{setting} {rule}");
            source.read().map_err(fault)
        };
        let id = match self.redis_url.map(read).transpose()?.flatten() {
            Some(url) => {
                let keep = keep.as_ref();
                let publish = publish_once(&url, &self.prefix, &self.channel, &event, keep);
                runtime.block_on(publish)?
            }
            None => {
                let authorization = self.token.authorization()?;
                let post = post(
                    &self.url,
                    authorization,
                    &self.channel,
                    &event,
                    keep.as_ref(),
                );
                let is_default = arguments.value_source("url") == Some(ValueSource::DefaultValue);
                runtime.block_on(post).map_err(|failure| match failure {
                    // Perhaps Redis was to be named instead.
                    NotPosted::Lost(failure) if is_default => {
                        format!("{failure}; FANFARE_REDIS_URL is not set, so Redis was not tried")
                    }
                    NotPosted::Lost(failure) | NotPosted::Refused(failure) => failure,
                })?
            }
        };
        if let Some(id) = id {
            writeln!(std::io::stdout(), "{id}")?;
        }
        Ok(())
    }
}

fn end_reason(text: &str) -> Result<EndReason, &'static str> {
    EndReason::parse(text).ok_or("must be done, error or stopped")
}

/// What a gateway answers.
#[derive(Deserialize)]
struct Published {
    id: Option<String>,
}

/// Why an event was not posted.
enum NotPosted {
    /// There was no answer.
    Lost(String),
    Refused(String),
}

async fn post(
    url: &str,
    authorization: Option<HeaderValue>,
    channel: &ChannelName,
    event: &Event,
    keep: Option<&KeepOptions>,
) -> Result<Option<EventId>, NotPosted> {
    let refused = |failure: Failure| NotPosted::Refused(failure.to_string());
    let mut url = gateway_url(url, &format!("/events/{channel}")).map_err(refused)?;
    let gateway = url.origin().ascii_serialization();
    let retry = event.retry().map(|retry| retry.as_millis().to_string());
    let history = keep.and_then(|keep| keep.history);
    let history = history.map(|length| length.to_string());
    for (name, value) in [
        ("keep", keep.is_none().then_some("false")),
        ("event", event.name().map(|name| name.as_str())),
        ("retry", retry.as_deref()),
        ("to", event.audience().map(|audience| audience.as_str())),
        ("history", history.as_deref()),
        ("key", keep.and_then(|keep| keep.key.as_deref())),
        ("end", keep.and_then(|keep| keep.end).map(EndReason::label)),
    ] {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    let client = client(url.as_str())
        .timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| refused(error.into()))?;
    let mut request = client.post(url).body(event.data().clone());
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    if let Some(parent) = event.trace_parent() {
        request = request.header("traceparent", parent.to_string());
    }
    let lost = |error: reqwest::Error| {
        let cause = cause(&error.without_url());
        NotPosted::Lost(format!("cannot publish over HTTP to {gateway}: {cause}"))
    };
    let response = request.send().await.map_err(lost)?;
    let status = response.status();
    let answer = response.text().await.map_err(lost)?;
    if !status.is_success() {
        return Err(NotPosted::Refused(format!("{status}: {answer}")));
    }
    let answer = serde_json::from_str(&answer);
    let Published { id } = answer.map_err(|error| refused(error.into()))?;
    let id = id.map(|id| id.parse()).transpose();
    id.map_err(|rule| refused(format!("{gateway} answered without an id: {rule}").into()))
}
