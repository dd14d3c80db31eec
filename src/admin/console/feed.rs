//! What the console is over HTTP: a page, and its feed.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};

use super::page::{PAGE, POLICY};
use super::{Console, MOST_PAGES};

/// `GET /console`: the page.
pub(in crate::admin) async fn console_page() -> Response {
    (
        [
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        ],
        Html(PAGE),
    )
        .into_response()
}

/// `GET /console/feed`: the past once, then how things are every two seconds. A page that does not
/// keep up misses what is old by then.
pub(in crate::admin) async fn console_feed(State(console): State<Arc<Console>>) -> Response {
    let Some((past, watch)) = console.watch() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MOST_PAGES} consoles are open on this replica, and there may be no more\n"),
        )
            .into_response();
    };
    let news = stream::unfold(watch, async |mut watch| {
        // Fails only when the console is gone, with the process.
        watch.changed().await.ok()?;
        let shown = watch.borrow_and_update().clone();
        Some((shown, watch))
    });
    let blocks = stream::once(async { past }).chain(news);
    let body = Body::from_stream(blocks.map(Ok::<Bytes, std::convert::Infallible>));
    (
        [
            (CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (CACHE_CONTROL, "no-store, no-transform"),
        ],
        body,
    )
        .into_response()
}

/// An event with data of one line, as JSON is written here.
pub(super) fn event(name: &str, json: &str) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {json}\n\n"))
}
