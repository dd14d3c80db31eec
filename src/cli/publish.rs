//! `fanfare publish CHANNEL DATA`.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;

use super::{Failure, runtime};
use crate::bus::publish_once;
use crate::config::RedisUrl;
use crate::protocol::{ChannelName, Event};

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
    /// The reconnection time clients should use from now on, such as 5s
    #[arg(long, value_parser = humantime::parse_duration)]
    retry: Option<Duration>,
    /// Publish through this Redis
    #[arg(long, env = "FANFARE_REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// What stands before the channel's name in Redis
    #[arg(long, env = "FANFARE_PREFIX", default_value = "sse:")]
    prefix: String,
    /// Publish over HTTP to this gateway, when no Redis is named
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl Publish {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut event = Event::new(Bytes::from(self.data), MAX_EVENT_BYTES)?;
        if let Some(name) = &self.event {
            event = event.with_name(name)?;
        }
        if let Some(retry) = self.retry {
            event = event.with_retry(retry)?;
        }
        let runtime = runtime()?;
        match self.redis_url.as_deref() {
            Some(url) if url != "memory:" => {
                let url = RedisUrl::parse(url).map_err(|rule| format!("the Redis URL {rule}"))?;
                runtime.block_on(publish_once(&url, &self.prefix, &self.channel, &event))?;
            }
            _ => runtime.block_on(post(&self.url, &self.channel, &event))?,
        }
        Ok(())
    }
}

async fn post(url: &str, channel: &ChannelName, event: &Event) -> Result<(), Failure> {
    let mut url = reqwest::Url::parse(&format!("{}/events/{channel}", url.trim_end_matches('/')))?;
    url.query_pairs_mut().append_pair("keep", "false");
    if let Some(name) = event.name() {
        url.query_pairs_mut().append_pair("event", name.as_str());
    }
    if let Some(retry) = event.retry() {
        let milliseconds = retry.as_millis().to_string();
        url.query_pairs_mut().append_pair("retry", &milliseconds);
    }
    let response = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()?
        .post(url)
        .body(event.data().clone())
        .send()
        .await?;
    if !response.status().is_success() {
        let status = response.status();
        return Err(format!("{status}: {}", response.text().await?).into());
    }
    Ok(())
}
