//! The heads of streams, and the answer to a stream that cannot be opened now.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::error::Problem;
use super::ignored::IGNORED_HEADER;
use crate::protocol::{ControlForm, Cursor, EndReason, GapReason, RetryRange};

/// The type of every stream. Streams are always UTF-8, but Python's `requests` reads text without a
/// charset as ISO-8859-1.
const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

/// The headers every stream has: nothing between here and the client may keep, change or hold
/// back its bytes.
pub(super) fn stream_headers(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-transform"),
    );
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
}

/// A proxy that wants to try another replica asks for 503 instead of retry-and-close.
pub(super) const BUSY_HEADER: &str = "fanfare-busy";

/// Why there is nothing to come, in the answer that says so.
pub(super) const END_HEADER: &str = "fanfare-end";

/// The answer to a client that has had everything of channels that have ended. It is the one status on
/// which an `EventSource` stops (WHATWG HTML, section 9.2.1).
pub(super) fn over(reason: EndReason) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let reason = HeaderValue::from_static(reason.label());
    headers.insert(HeaderName::from_static(END_HEADER), reason);
    response
}

/// The answer to a client that wants everything, and could not see that a part is missing.
pub(super) fn incomplete(reason: GapReason) -> Problem {
    let told = "the stream cannot begin with everything: its beginning, or what followed the cursor, may be missing";
    Problem::new(StatusCode::GONE, told).reason(reason.label())
}

/// How long clients stay away that were answered with retry-and-close. Longer than the usual
/// reconnection time: something is short, and everybody comes back. nginx/nginx.conf answers the
/// same when no replica takes a stream.
fn busy_retry() -> Duration {
    RetryRange::new(Duration::from_secs(10), Duration::from_secs(30))
        .unwrap_or_default()
        .draw()
}

/// The answer to a proxy that may ask another replica.
pub(super) fn ask_another(why: &'static str) -> Response {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
        .retry_after(busy_retry())
        .into_response()
}

/// The answer to a client whose stream cannot be opened now. A browser gives up for good on any status
/// but 200, so it gets a reconnection time and the end of the stream. `start` is the cursor of a client
/// that has none; without it there is no `id`, so that its cursor stays.
pub(super) fn busy(control: ControlForm, start: Option<Cursor>) -> Response {
    let mut response = Response::new(Body::from(control.busy_block(busy_retry(), start)));
    stream_headers(response.headers_mut());
    response
}

/// Those of the router's headers that every answer has: the names of ignored parameters, and those
/// without which a browser shows no answer to a page of another origin (an `EventSource` would give up
/// instead of coming back).
pub(super) fn common_headers(headers: &HeaderMap) -> HeaderMap {
    let is_one = |name: &HeaderName| {
        *name == VARY || *name == IGNORED_HEADER || name.as_str().starts_with("access-control-")
    };
    headers
        .iter()
        .filter(|(name, _)| is_one(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
