//! `GET /events/{channel}` and `GET /events?channel=…`: what a stream is asked for.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::answer::stream_headers;
use super::error::Problem;
use super::state::RouterState;
use crate::protocol::ChannelName;

/// A stream that may be opened, beside the head of its response.
#[derive(Clone, Debug)]
pub(super) struct StreamRequest {
    /// Its channels, each once.
    pub(super) channels: Vec<ChannelName>,
}

/// Opens a stream on the path's channel, and on those of the query.
pub(super) async fn by_path(
    State(state): State<Arc<RouterState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let Path(channel) = path.map_err(|rejection| Problem::field("channel", rejection))?;
    stream_head(&state, Some(&channel), query.as_deref())
}

/// Opens a stream on the channels of the query.
pub(super) async fn by_query(
    State(state): State<Arc<RouterState>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    stream_head(&state, None, query.as_deref())
}

fn stream_head(
    state: &RouterState,
    path: Option<&str>,
    query: Option<&str>,
) -> Result<Response, Problem> {
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
    let mut response = StatusCode::OK.into_response();
    stream_headers(response.headers_mut());
    response.extensions_mut().insert(StreamRequest { channels });
    Ok(response)
}
