//! `GET /events/{channel}` and `GET /events?channel=…`: what a stream is asked for.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use super::answer::stream_headers;
use super::error::Problem;
use super::state::RouterState;
use crate::hub::{Start, StreamRequest};
use crate::protocol::{ChannelName, CursorStyle};

/// The most kept events of a channel that a new stream may begin with; who asks for more gets
/// these.
const MOST_NEWEST: u32 = 10_000;

/// Opens a stream on the path's channel, and on those of the query.
pub(super) async fn by_path(
    State(state): State<Arc<RouterState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(channel) = path.map_err(|rejection| Problem::field("channel", rejection))?;
    stream_head(&state, Some(&channel), query.as_deref(), &headers)
}

/// Opens a stream on the channels of the query.
pub(super) async fn by_query(
    State(state): State<Arc<RouterState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    stream_head(&state, None, query.as_deref(), &headers)
}

fn stream_head(
    state: &RouterState,
    path: Option<&str>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut begin = Begin::default();
    let mut cursor_style = CursorStyle::Silent;
    let mut channels = Vec::new();
    let mut add = |name: &str| {
        let name = ChannelName::parse(name).map_err(|rule| Problem::field("channel", rule))?;
        if !channels.contains(&name) {
            if channels.len() >= state.max_channels_per_connection {
                return Err(Problem::field(
                    "channel",
                    format!(
                        "a stream has at most {} channels (FANFARE_MAX_CHANNELS_PER_CONNECTION)",
                        state.max_channels_per_connection
                    ),
                ));
            }
            channels.push(name);
        }
        Ok(())
    };
    path.map(&mut add).transpose()?;
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*key {
            "channel" => add(&value)?,
            "last_event_id" => begin.after(&value),
            "history" => begin.newest = Some(newest(&value)?),
            "cursor" if value == "event" => cursor_style = CursorStyle::Event,
            "cursor" => {
                return Err(Problem::field("cursor", "is event, or left out"));
            }
            "token" | "jwt" => {
                return Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "a token does not belong into a URL, where logs and histories keep it",
                ));
            }
            _ => {}
        }
    }
    if channels.is_empty() {
        return Err(Problem::field(
            "channel",
            "name at least one: /events?channel=orders",
        ));
    }
    if let Some(channel) = channels
        .iter()
        .find(|channel| !state.access.may_read(channel))
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("channel {channel} is not public here"),
        ));
    }
    // What the browser itself sends wins over what the page began with.
    if let Some(cursor) = headers.get("last-event-id") {
        begin.after(cursor.to_str().unwrap_or(NO_CURSOR));
    }
    let mut response = StatusCode::OK.into_response();
    stream_headers(response.headers_mut());
    response.extensions_mut().insert(StreamRequest {
        channels,
        start: begin.start(),
        cursor_style,
        session: None,
    });
    Ok(response)
}

/// Stands for a header that is not even text.
const NO_CURSOR: &str = "?";

/// Where a client asks to begin.
#[derive(Default)]
struct Begin {
    after: Option<Start>,
    newest: Option<u32>,
}

impl Begin {
    /// Notes a cursor. The empty one is none: a client that has had no id sends it so.
    fn after(&mut self, cursor: &str) {
        if !cursor.is_empty() {
            self.after = Some(cursor.parse().map_or(Start::Unknown, Start::After));
        }
    }

    /// A cursor says more than a number of events.
    fn start(self) -> Start {
        match (self.after, self.newest) {
            (Some(after), _) => after,
            (None, Some(newest @ 1..)) => Start::Newest(newest.min(MOST_NEWEST)),
            (None, _) => Start::Live,
        }
    }
}

fn newest(value: &str) -> Result<u32, Problem> {
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(Problem::field("history", "is a whole number of events"));
    }
    // Digits that do not fit are more than there can be.
    Ok(value.parse().unwrap_or(u32::MAX))
}
