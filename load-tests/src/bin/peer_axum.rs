//! The peer "a plain axum server as people write it first": axum's `Sse`, a tokio broadcast channel for
//! each channel, one Redis subscription to all of them.
//!
//! `peer-axum LISTEN [REDIS_URL]` prints its address; without Redis, events come by `POST /events/{channel}` only.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum::{Router, serve};
use futures_util::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// What stands before a channel's name in Redis.
const PREFIX: &str = "sse:";
/// Events a subscriber may be behind; one that is further behind loses some.
const BACKLOG: usize = 1024;

type Channels = Arc<Mutex<HashMap<String, broadcast::Sender<String>>>>;

fn channel(channels: &Channels, name: &str) -> broadcast::Sender<String> {
    let mut channels = channels.lock().unwrap_or_else(PoisonError::into_inner);
    channels
        .entry(name.to_owned())
        .or_insert_with(|| broadcast::channel(BACKLOG).0)
        .clone()
}

async fn events(
    State(channels): State<Channels>,
    Path(name): Path<String>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let received = BroadcastStream::new(channel(&channels, &name).subscribe());
    let events = received.filter_map(async |data| Some(Ok(Event::default().data(data.ok()?))));
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn publish(State(channels): State<Channels>, Path(name): Path<String>, data: String) {
    // An error says that nobody listens.
    let _ = channel(&channels, &name).send(data);
}

async fn subscribe(redis: redis::Client, channels: Channels) -> redis::RedisResult<()> {
    let mut pubsub = redis.get_async_pubsub().await?;
    pubsub.psubscribe(format!("{PREFIX}*")).await?;
    let mut messages = pubsub.on_message();
    while let Some(message) = messages.next().await {
        let name = message.get_channel_name().trim_start_matches(PREFIX);
        if let Ok(data) = message.get_payload::<String>() {
            let _ = channel(&channels, name).send(data);
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments
        .next()
        .ok_or("usage: peer-axum LISTEN [REDIS_URL]")?;
    let channels = Channels::default();
    if let Some(url) = arguments.next() {
        let redis = redis::Client::open(url)?;
        let channels = Arc::clone(&channels);
        tokio::spawn(async move {
            if let Err(error) = subscribe(redis, channels).await {
                let _ = writeln!(std::io::stderr(), "peer-axum: {error}");
            }
        });
    }
    let router = Router::new()
        .route("/events/{channel}", get(events).post(publish))
        .with_state(channels);
    let listener = TcpListener::bind(&listen).await?;
    // Port 0 is anyone's guess: whoever started this reads the address here.
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    serve(listener, router).await?;
    Ok(())
}
