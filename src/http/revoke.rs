//! `POST /revocations`: a subject or a token is kept out, on all replicas.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::authority::Refusal;
use super::error::Problem;
use super::publish::read_body;
use super::state::RouterState;
use crate::bus::PublishError;
use crate::protocol::{
    MAX_REVOCATION_TIME, MAX_REVOKED_BYTES, REVOCATION_TIME, Revocation, Revoked, UniqueObject,
};

/// Room for the longest subject with every byte escaped, six for one, and the rest.
const MAX_BODY_BYTES: usize = 8 * MAX_REVOKED_BYTES;

/// When to try again after the bus did not take it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Who, and until when. Times are in seconds, as in tokens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    sub: Option<String>,
    jti: Option<String>,
    exp: Option<u64>,
    ttl: Option<u64>,
}

/// Until when somebody is kept out, in Unix seconds.
#[derive(Serialize)]
pub(super) struct KeptOut {
    exp: u64,
}

pub(super) async fn revoke(
    State(state): State<Arc<RouterState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<KeptOut>, Refusal> {
    let caller = state.authority.caller(&headers, None).await?;
    state.authority.check_admin(&caller)?;
    // Not before: whoever may not revoke is not waited for.
    let rule = format!("a revocation must have at most {MAX_BODY_BYTES} bytes");
    let body = read_body(body, MAX_BODY_BYTES, rule).await?;
    let request = Request::parse(&headers, &body)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let revocation = request.read(now.unwrap_or_default().as_secs())?;
    let exp = revocation.until_ms / 1000;
    let shown = revocation.revoked.to_string();
    match state.publisher.revoke(revocation).await {
        Ok(()) => {
            tracing::info!(revoked = shown, exp, "revoked");
            Ok(Json(KeptOut { exp }))
        }
        Err(error) => Err(refused(error).into()),
    }
}

/// What the caller is told. The reason behind an outage may name what is not its business.
fn refused(error: PublishError) -> Problem {
    let told = match error {
        PublishError::Rejected(rule) => return Problem::new(StatusCode::BAD_REQUEST, rule),
        // No answer to a revocation.
        PublishError::Ended(_) => "the bus is not available",
        PublishError::NotAHistory(_) => "the Redis key of the revocations contains another type",
        PublishError::Unavailable(_) | PublishError::NotNow { .. } => {
            "the bus is unavailable or cannot store more revocations"
        }
        PublishError::Unsupported(_) | PublishError::Impossible(_) => {
            "this Redis does not have the function for it"
        }
    };
    tracing::warn!(%error, "a revocation failed");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, told).retry_after(RETRY_AFTER)
}

impl Request {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        // A form of a foreign page cannot say so (Fetch, "CORS-safelisted request-header").
        let is_json = |value: &HeaderValue| {
            let essence = value.to_str().ok().and_then(|text| text.split(';').next());
            essence.is_some_and(|text| text.trim().eq_ignore_ascii_case("application/json"))
        };
        if !headers.get(CONTENT_TYPE).is_some_and(is_json) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a revocation must have content-type: application/json",
            ));
        }
        serde_json::from_slice(body)
            .and_then(|UniqueObject(members)| serde_json::from_value(Value::Object(members)))
            .map_err(|error| {
                let rule = format!(
                    "the body must be a JSON object with sub or jti, and perhaps exp or ttl: {error}"
                );
                Problem::new(StatusCode::BAD_REQUEST, rule)
            })
    }

    fn read(self, now_seconds: u64) -> Result<Revocation, Problem> {
        let revoked = match (self.sub, self.jti) {
            (Some(subject), None) => Revoked::Subject(bounded("sub", subject)?.into()),
            (None, Some(token)) => Revoked::Token(bounded("jti", token)?.into()),
            _ => {
                let rule = "either sub or jti says who is revoked";
                return Err(Problem::new(StatusCode::BAD_REQUEST, rule));
            }
        };
        let most = MAX_REVOCATION_TIME.as_secs();
        let until_seconds = match (self.exp, self.ttl) {
            (None, None) => now_seconds + REVOCATION_TIME.as_secs(),
            (None, Some(ttl)) if (1..=most).contains(&ttl) => now_seconds + 1 + ttl,
            (None, Some(_)) => {
                let rule = format!("must be a number of seconds from 1 to {most}");
                return Err(Problem::field("ttl", rule));
            }
            (Some(exp), None) if exp > now_seconds && exp - now_seconds <= most => exp,
            (Some(_), None) => {
                let rule = "must be a time to come in Unix seconds, at most ten years from now";
                return Err(Problem::field("exp", rule));
            }
            (Some(_), Some(_)) => return Err(Problem::field("exp", "not beside ttl")),
        };
        Ok(Revocation {
            revoked,
            until_ms: until_seconds.saturating_mul(1000),
        })
    }
}

fn bounded(field: &'static str, value: String) -> Result<String, Problem> {
    if (1..=MAX_REVOKED_BYTES).contains(&value.len()) {
        Ok(value)
    } else {
        let rule = format!("must have 1 to {MAX_REVOKED_BYTES} bytes");
        Err(Problem::field(field, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Option<(String, u64)> {
        let json = HeaderValue::from_static("Application/json; charset=utf-8");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, json)]);
        let request = Request::parse(&headers, body.as_bytes()).ok()?;
        let revocation = request.read(1000).ok()?;
        Some((revocation.revoked.to_string(), revocation.until_ms))
    }

    #[test]
    fn who_and_until_when() {
        let default = (1000 + 30 * 24 * 60 * 60) * 1000;
        for (body, expected) in [
            (r#"{"sub":"alice"}"#, ("sub:alice", default)),
            (r#"{"jti":"a b","exp":1001}"#, ("jti:a b", 1_001_000)),
            (r#"{"sub":"a","ttl":60}"#, ("sub:a", 1_061_000)),
        ] {
            assert_eq!(read(body), Some((expected.0.to_owned(), expected.1)));
        }
        let long = format!(r#"{{"sub":"{}"}}"#, "x".repeat(MAX_REVOKED_BYTES + 1));
        for body in [
            "{}",
            r#"{"sub":""}"#,
            r#"{"sub":"a","jti":"b"}"#,
            r#"{"sub":1}"#,
            r#"{"subject":"a"}"#,
            r#"{"sub":"a","sub":"b"}"#,
            r#"["a",null,null,60]"#,
            "[]",
            "",
            "sub=a",
            r#"{"sub":"a","exp":1000}"#,
            r#"{"sub":"a","exp":18446744073709551615}"#,
            r#"{"sub":"a","ttl":0}"#,
            r#"{"sub":"a","ttl":1e3}"#,
            r#"{"sub":"a","ttl":1,"exp":1002}"#,
            &long,
        ] {
            assert_eq!(read(body), None, "{body}");
        }
    }
}
