//! `POST /events/{channel}`: the body becomes one event, for the clients of all replicas.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;

use super::authority::Refusal;
use super::client_address::ClientAddress;
use super::error::Problem;
use super::request_context::trace_parent;
use super::state::RouterState;
use super::subscribe::token_in_query;
use crate::bus::{KeepOptions, PublishError};
use crate::protocol::{ChannelName, EndReason, Event, EventFault, EventId, TraceParent};
use crate::telemetry::occurrences::{EventPublished, PublishFailed, PublishRefused};
use crate::telemetry::{BusMetrics, EventKind};

/// A body over the limit is read on for so many times the limit, so that its sender, who reads
/// only when everything is sent, gets the answer instead of a broken connection.
const READ_ON_FACTOR: usize = 16;

/// A body must have arrived within this time.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// When to try again after the bus did not take an event.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The longest history, in events: as `FANFARE_HISTORY_LENGTH`.
const MAX_HISTORY: u32 = 1_000_000;

/// The longest idempotency key, in bytes.
const MAX_KEY_BYTES: usize = 256;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What was published: a live event has no id.
#[derive(Serialize)]
pub(super) struct Published {
    #[serde(serialize_with = "as_text")]
    id: Option<EventId>,
}

fn as_text<S: serde::Serializer>(id: &Option<EventId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

pub(super) async fn publish(
    State(state): State<Arc<RouterState>>,
    Extension(client): Extension<ClientAddress>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Published>, Refusal> {
    let Path(channel) = path.map_err(|rejection| Problem::field("channel", rejection))?;
    let channel = ChannelName::parse(&channel).map_err(|rule| Problem::field("channel", rule))?;
    let caller = state.authority.caller(&headers, None).await?;
    let fields = Fields::parse(query.as_deref().unwrap_or_default(), &headers);
    let is = |rule: &dyn Fn(&Fields) -> bool| fields.as_ref().is_ok_and(rule);
    if is(&|fields| fields.needs_run(state.history_length)) {
        state.authority.check_run(&caller, &channel)?;
    }
    let mut may_publish = state.authority.check_publish(&caller, &channel);
    if !is(&Fields::ends) {
        // Who may only end the channel may say nothing else.
        may_publish = Ok(may_publish?);
    }
    let subject = caller
        .session
        .as_ref()
        .and_then(|session| session.subject.as_ref());
    state.admission.publish(client, subject).map_err(|wait| {
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "the publish rate limit is exceeded (FANFARE_PUBLISH_RATE_PER_SUBJECT)",
        )
        .retry_after(wait)
    })?;
    let mut fields = fields?;
    let Some(traces) = state.traces else {
        return Ok(publish_body(&state, &channel, fields, may_publish, body).await?);
    };
    let span = traces.publish(&channel, fields.trace_parent);
    fields.trace_parent = span.trace_parent();
    let published = publish_body(&state, &channel, fields, may_publish, body).await;
    span.end(match &published {
        Ok(Json(Published { id })) => Ok(id.as_ref()),
        Err(problem) => Err(problem.status()),
    });
    Ok(published?)
}

async fn publish_body(
    state: &RouterState,
    channel: &ChannelName,
    fields: Fields,
    may_publish: Result<(), Problem>,
    body: Body,
) -> Result<Json<Published>, Problem> {
    let limit = state.max_event_bytes;
    let data = read_body(body, limit, EventFault::TooLarge { limit }).await?;
    if !data.is_empty() {
        may_publish?;
    }
    let keep = fields.keep();
    let event = fields.apply(data, state.max_event_bytes)?;
    let kind = match keep {
        None => EventKind::Live,
        Some(_) => EventKind::Kept,
    };
    let published = match keep {
        None => state.publisher.publish(channel, event).await.map(|()| None),
        Some(options) => {
            let kept = state.publisher.publish_kept(channel, event, options).await;
            kept.map(Some)
        }
    };
    match published {
        Ok(id) => {
            EventPublished(kind).emit(&state.metrics);
            Ok(Json(Published { id }))
        }
        Err(error) => Err(refused(&state.metrics, kind, channel, &error)),
    }
}

/// What a publisher is told. The reason behind an outage may name what is not its business.
fn refused(
    metrics: &BusMetrics,
    kind: EventKind,
    channel: &ChannelName,
    error: &PublishError,
) -> Problem {
    let (status, told) = match error {
        PublishError::Rejected(rule) => {
            PublishRefused(kind).emit(metrics);
            return Problem::new(StatusCode::BAD_REQUEST, rule.as_str());
        }
        PublishError::Ended(reason) => {
            PublishRefused(kind).emit(metrics);
            let told = format!("the channel has ended: {reason}");
            return Problem::new(StatusCode::CONFLICT, told).reason("ended");
        }
        PublishError::NotAHistory(_) => (
            StatusCode::CONFLICT,
            "the key of this channel in Redis holds something that is no history of events \
             (WRONGTYPE); keep=false publishes a live one"
                .to_owned(),
        ),
        PublishError::NotNow { code, .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("Redis takes no events now ({code})"),
        ),
        PublishError::Unavailable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the bus is not available".to_owned(),
        ),
        PublishError::Impossible(_) => (
            StatusCode::NOT_IMPLEMENTED,
            "this Redis cannot keep events, because it has no functions (Redis 7.0 and newer have \
             them); keep=false publishes a live one"
                .to_owned(),
        ),
        PublishError::Unsupported(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "events cannot be kept at the moment; keep=false publishes a live one".to_owned(),
        ),
    };
    PublishFailed {
        kind,
        channel,
        error,
    }
    .emit(metrics);
    let problem = Problem::new(status, told);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        problem.retry_after(RETRY_AFTER)
    } else {
        // Another attempt would not change it.
        problem
    }
}

/// Reads a body of at most `limit` bytes, which has to arrive within [`BODY_DEADLINE`]; `rule` is
/// what a longer one breaks.
pub(super) async fn read_body(
    body: Body,
    limit: usize,
    rule: impl fmt::Display,
) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(BODY_DEADLINE, read_frames(body, limit));
    let Ok(read) = read.await else {
        let late = "the body did not arrive in time";
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, late));
    };
    read?.ok_or_else(|| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, rule.to_string()))
}

/// `None`: there are more than `limit` bytes.
async fn read_frames(mut body: Body, limit: usize) -> Result<Option<Bytes>, Problem> {
    let mut data = BytesMut::new();
    let mut total = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the request body ended early"))?
            .into_data()
            .unwrap_or_default();
        total = total.saturating_add(frame.len());
        if total <= limit {
            data.extend_from_slice(&frame);
        } else if total > limit.saturating_mul(READ_ON_FACTOR) {
            break;
        }
    }
    Ok((total <= limit).then(|| data.freeze()))
}

/// The fields of the query and the headers.
#[derive(Default)]
pub(crate) struct Fields {
    event: String,
    retry: Option<Duration>,
    to: Option<String>,
    live: bool,
    trace_parent: Option<TraceParent>,
    options: KeepOptions,
}

impl Fields {
    /// Unlike a stream's, a publisher's parameters are all known: a mistyped one would change
    /// what clients get without a word.
    pub(crate) fn parse(query: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        // Every separator is ASCII, so a sequence of bytes does not reach over one.
        if percent_encoding::percent_decode_str(query)
            .decode_utf8()
            .is_err()
        {
            return Err(Problem::field("query", "must be UTF-8, percent-encoded"));
        }
        let mut fields = Self::default();
        let mut seen = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "event" => fields.event = value.into_owned(),
                "retry" => {
                    let milliseconds = value.parse().map_err(|_| {
                        Problem::field("retry", "must be a whole number of milliseconds")
                    })?;
                    fields.retry = Some(Duration::from_millis(milliseconds));
                }
                "to" => fields.to = Some(value.into_owned()),
                "keep" => {
                    fields.live = match &*value {
                        "true" => false,
                        "false" => true,
                        _ => return Err(Problem::field("keep", "must be true or false")),
                    }
                }
                "key" => fields.options.key = Some(idempotency_key("key", &value)?),
                "history" => {
                    let length = value.parse().ok();
                    fields.options.history = length.filter(|n| (1..=MAX_HISTORY).contains(n));
                    if fields.options.history.is_none() {
                        let rule = format!("must be a whole number from 1 to {MAX_HISTORY}");
                        return Err(Problem::field("history", rule));
                    }
                }
                "end" => {
                    let reason = EndReason::parse(&value);
                    let rule = || Problem::field("end", "must be done, error or stopped");
                    fields.options.end = Some(reason.ok_or_else(rule)?);
                }
                "token" | "jwt" => return Err(token_in_query()),
                _ => {
                    let rule = format!(
                        "{key:?} is unknown; there are event, retry, to, key, history, end and keep"
                    );
                    return Err(Problem::field("query", rule));
                }
            }
            if seen.contains(&key) {
                return Err(Problem::field("query", format!("{key:?} is given twice")));
            }
            seen.push(key);
        }
        fields.read_headers(headers)?;
        if fields.live {
            for (field, is_set) in [
                ("key", fields.options.key.is_some()),
                ("history", fields.options.history.is_some()),
                ("end", fields.options.end.is_some()),
            ] {
                if is_set {
                    return Err(Problem::field(
                        field,
                        "belongs to kept events, not keep=false",
                    ));
                }
            }
        }
        Ok(fields)
    }

    fn read_headers(&mut self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut keys = headers.get_all(IDEMPOTENCY_KEY).into_iter();
        if let Some(value) = keys.next() {
            let text = value.to_str().map_err(|_| {
                Problem::field(IDEMPOTENCY_KEY, "must consist of visible ASCII characters")
            })?;
            let key = idempotency_key(IDEMPOTENCY_KEY, text)?;
            let is_other = |found: &String| *found != key;
            if keys.next().is_some() || self.options.key.as_ref().is_some_and(is_other) {
                return Err(Problem::field(IDEMPOTENCY_KEY, "another key is given too"));
            }
            self.options.key = Some(key);
        }
        self.trace_parent = trace_parent(headers);
        Ok(())
    }

    /// Whether more changes for the channel than one event.
    fn needs_run(&self, history_length: usize) -> bool {
        let length = self.options.history.map_or(0, |length| length as usize);
        self.ends() || length > history_length
    }

    /// Whether the channel ends with it.
    fn ends(&self) -> bool {
        self.options.end.is_some()
    }

    /// How the event is kept; `None`: it is not.
    fn keep(&self) -> Option<KeepOptions> {
        (!self.live).then(|| self.options.clone())
    }

    pub(crate) fn apply(self, data: Bytes, max_event_bytes: usize) -> Result<Event, Problem> {
        let mut event = Event::new(data, max_event_bytes)
            .map_err(|rule| Problem::field("body", rule))?
            .with_trace_parent(self.trace_parent)
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

fn idempotency_key(field: &'static str, key: &str) -> Result<String, Problem> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        Ok(key.to_owned())
    } else {
        let rule = format!("must have 1 to {MAX_KEY_BYTES} bytes");
        Err(Problem::field(field, rule))
    }
}
