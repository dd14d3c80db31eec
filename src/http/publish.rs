//! `POST /events/{channel}`: the body becomes one event, for the clients of all replicas.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;

use super::error::Problem;
use super::state::RouterState;
use crate::protocol::{ChannelName, Event};

/// A body over the limit is read on for so many times the limit, so that its sender, who reads
/// only when everything is sent, gets the answer instead of a broken connection.
const READ_ON_FACTOR: usize = 16;

/// A body must have arrived within this time.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// When to try again after the bus did not take an event.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What was published: a live event has no id.
#[derive(Serialize)]
pub(super) struct Published {
    id: Option<String>,
}

pub(super) async fn publish(
    State(state): State<Arc<RouterState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Published>, Problem> {
    if !state.access.may_publish() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "publishing over HTTP is open on loopback listeners only; publish through Redis",
        ));
    }
    let Path(channel) = path.map_err(|rejection| Problem::field("channel", rejection))?;
    let channel = ChannelName::parse(&channel).map_err(|rule| Problem::field("channel", rule))?;
    let fields = Fields::parse(query.as_deref().unwrap_or_default(), &headers)?;
    let data = tokio::time::timeout(BODY_DEADLINE, read_body(body, state.max_event_bytes))
        .await
        .map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            )
        })??;
    let event = fields.apply(data, state.max_event_bytes)?;
    state
        .publisher
        .publish(&channel, event)
        .await
        .map_err(|error| {
            tracing::warn!(%channel, %error, "an event was not published");
            // The reason may name what is not the publisher's business.
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the bus is not available")
                .retry_after(RETRY_AFTER)
        })?;
    Ok(Json(Published { id: None }))
}

/// Reads a body of at most `limit` bytes.
async fn read_body(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut data = BytesMut::new();
    let mut total = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the body broke off"))?
            .into_data()
            .unwrap_or_default();
        total = total.saturating_add(frame.len());
        if total <= limit {
            data.extend_from_slice(&frame);
        } else if total > limit.saturating_mul(READ_ON_FACTOR) {
            break;
        }
    }
    if total > limit {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("event data has at most {limit} bytes (FANFARE_MAX_EVENT_BYTES)"),
        ));
    }
    Ok(data.freeze())
}

/// The fields of the query.
#[derive(Default)]
struct Fields {
    event: String,
    retry: Option<Duration>,
    to: Option<String>,
}

impl Fields {
    /// Unlike a stream's, a publisher's parameters are all known: a mistyped one would change
    /// what clients get without a word.
    fn parse(query: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut fields = Self::default();
        let mut seen = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "event" => fields.event = value.into_owned(),
                "retry" => {
                    let milliseconds = value.parse().map_err(|_| {
                        Problem::field("retry", "is a whole number of milliseconds")
                    })?;
                    fields.retry = Some(Duration::from_millis(milliseconds));
                }
                "to" => fields.to = Some(value.into_owned()),
                "keep" if value == "false" => {}
                "keep" => {
                    let rule = "only live events can be published: keep=false";
                    return Err(Problem::field("keep", rule));
                }
                "key" => return Err(Problem::field("key", KEPT_ONLY)),
                "history" => return Err(Problem::field("history", KEPT_ONLY)),
                _ => {
                    let rule = format!("{key:?} is unknown; there are event, retry, to and keep");
                    return Err(Problem::field("query", rule));
                }
            }
            if seen.contains(&key) {
                return Err(Problem::field("query", format!("{key:?} stands twice")));
            }
            seen.push(key);
        }
        if headers.contains_key("idempotency-key") {
            return Err(Problem::field("idempotency-key", KEPT_ONLY));
        }
        Ok(fields)
    }

    fn apply(self, data: Bytes, max_event_bytes: usize) -> Result<Event, Problem> {
        let mut event =
            Event::new(data, max_event_bytes).map_err(|rule| Problem::field("body", rule))?;
        event = event
            .with_name(&self.event)
            .map_err(|rule| Problem::field("event", rule))?;
        if let Some(retry) = self.retry {
            event = event
                .with_retry(retry)
                .map_err(|rule| Problem::field("retry", rule))?;
        }
        if let Some(to) = &self.to {
            event = event
                .with_to(to)
                .map_err(|rule| Problem::field("to", rule))?;
        }
        Ok(event)
    }
}

const KEPT_ONLY: &str = "belongs to kept events, which this version does not have";
