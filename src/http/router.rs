//! The routes of the data listener.

use std::sync::Arc;

use axum::Router;
use axum::extract::OriginalUri;
use axum::routing::{get, post};
use http::{Method, StatusCode};

use super::error::Problem;
use super::{demo, publish, subscribe};
use crate::bus::Publisher;
use crate::config::Access;

/// What the handlers need. Shared by all shards: nothing here is touched by an event.
#[derive(Debug)]
pub struct RouterState {
    /// Who may read and publish.
    pub access: Access,
    /// The way to the bus.
    pub publisher: Publisher,
    /// Channels of one stream at the most.
    pub max_channels_per_connection: usize,
    /// Data of one event at the most.
    pub max_event_bytes: usize,
    /// Whether `GET /` is the demo page.
    pub demo: bool,
}

/// The router of the data listener.
pub fn router(state: RouterState) -> Router {
    let demo = state.demo;
    let mut router = Router::new()
        .route("/events", get(subscribe::by_query))
        .route(
            "/events/{channel}",
            get(subscribe::by_path).merge(post(publish::publish)),
        );
    if demo {
        router = router.route("/", get(demo::page));
    }
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(state))
}

async fn not_found(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "nothing is at {}: streams are at /events/{{channel}} and /events?channel=…",
            uri.path()
        ),
    )
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{method} is not possible here: GET opens a stream, POST /events/{{channel}} publishes"
        ),
    )
}
