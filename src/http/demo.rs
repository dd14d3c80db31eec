//! `GET /`: the demo page, one file without outside assets.

use std::sync::LazyLock;

use axum::response::{Html, IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};

use super::page_policy::page_policy;

const PAGE: &str = include_str!("demo.html");

static POLICY: LazyLock<String> = LazyLock::new(|| page_policy(PAGE));

/// The demo page.
pub(super) async fn page() -> Response {
    (
        [
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        ],
        Html(PAGE),
    )
        .into_response()
}
