//! Faults of requests, as problem details.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

/// A fault of a request, as problem details (RFC 9457): which field breaks which rule.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(serialize_with = "status_number")]
    status: StatusCode,
    title: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    /// Why, for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip)]
    retry_after: Option<Duration>,
    #[serde(skip)]
    challenge: Option<Box<HeaderValue>>,
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
            reason: None,
            retry_after: None,
            challenge: None,
        }
    }

    /// A credential that is missing or wrong; `error` is the code of RFC 6750, section 3.1.
    pub(super) fn unauthorized(detail: impl Into<String>, error: Option<&'static str>) -> Self {
        let mut problem = Self::new(StatusCode::UNAUTHORIZED, detail);
        problem.challenge = Some(Box::new(match error {
            None => HeaderValue::from_static("Bearer"),
            Some(error) => HeaderValue::try_from(format!("Bearer error=\"{error}\""))
                .unwrap_or(HeaderValue::from_static("Bearer")),
        }));
        problem
    }

    /// A field that breaks a rule.
    pub(super) fn field(field: &'static str, rule: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(StatusCode::BAD_REQUEST, format!("{field}: {rule}"));
        problem.field = Some(field);
        problem
    }

    /// Says why, for machines.
    pub(super) fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// What it is answered with.
    pub(super) fn status(&self) -> StatusCode {
        self.status
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
            // Whole seconds, and never too early.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            let seconds = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, *challenge);
        }
        response
    }
}
