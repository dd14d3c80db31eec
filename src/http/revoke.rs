//! `POST /revocations`: a subject or a token is kept out, on all replicas.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{FromRequest, State};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::auth::Refusal;
use super::error::Problem;
use super::publish::{BODY_DEADLINE, body_too_late};
use super::state::RouterState;
use crate::bus::PublishError;
use crate::protocol::{
    MAX_REVOCATION_TIME, MAX_REVOKED_BYTES, REVOCATION_TIME, Revocation, Revoked,
};

/// Room for the longest subject with every byte escaped, six for one, and the rest.
pub(super) const MAX_BODY_BYTES: usize = 8 * MAX_REVOKED_BYTES;

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
    request: axum::extract::Request,
) -> Result<Json<KeptOut>, Refusal> {
    let caller = state.authority.caller(&headers, None).await?;
    state.authority.check_admin(&caller)?;
    // Not before: whoever may not revoke is not waited for.
    let read = tokio::time::timeout(BODY_DEADLINE, Json::<Request>::from_request(request, &()));
    let Json(request) = read
        .await
        .map_err(|_| body_too_late())?
        .map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
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
        PublishError::NotAHistory(_) => "the key of revocations in Redis holds something else",
        PublishError::Unavailable(_) | PublishError::NotNow { .. } => {
            "the bus is not available, or holds no more revocations"
        }
        PublishError::Unsupported(_) => "this Redis does not have the function for it",
    };
    tracing::warn!(%error, "a revocation was not taken");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, told).retry_after(RETRY_AFTER)
}

impl Request {
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
                let rule = format!("is a number of seconds from 1 to {most}");
                return Err(Problem::field("ttl", rule));
            }
            (Some(exp), None) if exp > now_seconds && exp - now_seconds <= most => exp,
            (Some(_), None) => {
                let rule = "is a time to come in Unix seconds, at most ten years from now";
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
        let rule = format!("has 1 to {MAX_REVOKED_BYTES} bytes");
        Err(Problem::field(field, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Option<(String, u64)> {
        let request: Request = serde_json::from_str(body).ok()?;
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
