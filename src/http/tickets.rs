//! `POST /tickets`: draws a ticket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use super::authority::Refusal;
use super::client_address::ClientAddress;
use super::error::Problem;
use super::state::RouterState;

/// How long a ticket can be spent: a page asks for it and uses it at once.
const TICKET_LIFE: Duration = Duration::from_secs(30);

/// The answer of `POST /tickets`.
#[derive(Serialize)]
struct Drawn {
    ticket: String,
    /// Seconds until it is worth nothing.
    expires_in: u64,
}

/// `POST /tickets`, with a token.
pub(super) async fn draw(
    State(state): State<Arc<RouterState>>,
    Extension(client): Extension<ClientAddress>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let authority = &state.authority;
    if !authority.knows_tokens() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "tickets are not needed: no key is configured to verify tokens",
        )
        .into());
    }
    if query.is_some_and(|query| !query.is_empty()) {
        return Err(Problem::field(
            "query",
            "is empty: the token comes in the Authorization header or the cookie fanfare",
        )
        .into());
    }
    let (caller, claims) = authority.identify(&headers, None).await?;
    let (Some(session), Some(claims)) = (caller.session, claims) else {
        return Err(Problem::unauthorized("a ticket is drawn with a token", None).into());
    };
    // A backend draws for all its users from one address.
    let drawer = session.subject.as_ref().or(session.token_id.as_ref());
    let counted = state.admission.ticket(client, drawer);
    counted.map_err(|wait| {
        let told = "too many tickets in too short a time";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, told).retry_after(wait)
    })?;
    let left = claims
        .expires_at
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    let life = TICKET_LIFE.min(left);
    let drawn = Drawn {
        ticket: authority.draw_ticket(claims.claims, life).await?,
        expires_in: life.as_secs(),
    };
    let no_store = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(drawn)).into_response())
}
