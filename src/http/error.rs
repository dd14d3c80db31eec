//! Answers that are no stream: problem details, and retry-and-close.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::protocol::{RetryRange, retry_block};

/// A fault of a request, as problem details (RFC 9457): which field breaks which rule.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(serialize_with = "status_number")]
    status: StatusCode,
    title: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

fn status_number<S: serde::Serializer>(
    status: &StatusCode,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem with the request as a whole.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            title: status.canonical_reason().unwrap_or("Error"),
            detail: detail.into(),
            field: None,
            retry_after: None,
        }
    }

    /// A field that breaks a rule.
    pub(super) fn field(field: &'static str, rule: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(StatusCode::BAD_REQUEST, format!("{field}: {rule}"));
        problem.field = Some(field);
        problem
    }

    /// Says when to try again.
    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Texts and a number: serialising them cannot fail.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (
            self.status,
            [
                (
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/problem+json"),
                ),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ],
            body,
        )
            .into_response();
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        response
    }
}

/// A proxy that wants to try another replica asks for 503 instead of retry-and-close.
pub(super) const BUSY_HEADER: &str = "fanfare-busy";

/// How long clients stay away that were answered with retry-and-close. Longer than the usual
/// reconnection time: something is short, and everybody comes back.
fn busy_retry() -> Duration {
    RetryRange::new(Duration::from_secs(10), Duration::from_secs(30))
        .unwrap_or_default()
        .draw()
}

/// The answer to a stream that cannot be opened now. A browser gives up for good on any status
/// but 200, so it gets a reconnection time and the end of the stream; without an `id`, so that
/// its cursor stays.
pub(super) fn busy(wants_503: bool, why: &'static str) -> Response {
    let retry = busy_retry();
    if wants_503 {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
            .retry_after(retry)
            .into_response();
    }
    let mut response = Response::new(Body::from(retry_block(retry)));
    super::subscribe::stream_headers(response.headers_mut());
    response
}
