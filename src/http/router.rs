//! The routes of the data listener.

use std::sync::Arc;

use axum::Router;
use axum::extract::OriginalUri;
use axum::routing::{get, post};
use http::{Method, StatusCode};

use super::error::Problem;
use super::state::RouterState;
use super::{demo, origin, publish, revoke, subscribe, tickets};

/// The router of the data listener.
pub fn router(state: RouterState) -> Router {
    let demo = state.demo;
    let mut router = Router::new();
    for (path, methods) in [
        ("/events", get(subscribe::by_query)),
        (
            "/events/{channel}",
            get(subscribe::by_path).merge(post(publish::publish)),
        ),
        ("/tickets", post(tickets::draw)),
        ("/revocations", post(revoke::revoke)),
    ] {
        // Some clients and proxies add a slash to what they are given.
        router = router
            .route(&format!("{path}/"), methods.clone())
            .route(path, methods);
    }
    if demo {
        router = router.route("/", get(demo::page));
    }
    let router = router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    let allowed = &state.admission.rules().allow_origins;
    let router = if allowed.is_empty() {
        router
    } else {
        router.layer(origin::cors(allowed))
    };
    router.with_state(Arc::new(state))
}

async fn not_found(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "no such resource: {}. Streams are at /events/{{channel}} and /events?channel=…",
            uri.path()
        ),
    )
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "method {method} is not allowed: GET opens a stream, POST /events/{{channel}} publishes"
        ),
    )
}
