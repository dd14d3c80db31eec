//! Tickets: for a browser that cannot send headers. Drawn with a token, they stand for its claims
//! for half a minute, and open one stream.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use super::authority::{Identity, Refusal, wrong_token};
use super::client_address::ClientAddress;
use super::error::Problem;
use super::state::RouterState;
use crate::auth::VerifiedClaims;
use crate::bus::{TicketStore, TicketsUnavailable};

/// How long a ticket can be spent: a page asks for it and uses it at once.
const TICKET_LIFE: Duration = Duration::from_secs(30);

/// Random bytes of a ticket: nobody guesses 192 bits.
const TICKET_BYTES: usize = 24;

/// A ticket's text: base64url of its bytes.
const TICKET_TEXT_BYTES: usize = TICKET_BYTES.div_ceil(3) * 4;

/// A ticket was not drawn.
const NOT_NOW: &str = "tickets are not to be had at the moment";

/// What a ticket is kept under: its hash, so that whoever reads Redis finds no ticket to use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(String);

impl Key {
    /// The key of a ticket; `None` where the text is no ticket.
    fn of(text: &str) -> Option<Self> {
        let is_ticket = text.len() == TICKET_TEXT_BYTES
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let hash = || BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()));
        is_ticket.then(|| Self(hash()))
    }
}

/// A ticket that a stream is asked for with. Only the stream's opening spends it.
#[derive(Clone)]
pub(super) struct HeldTicket {
    store: TicketStore,
    key: Key,
}

impl fmt::Debug for HeldTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldTicket")
    }
}

/// Why redeeming a ticket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSpent {
    /// Another stream was opened with it meanwhile, or its time is over.
    Gone,
    /// The bus is not available.
    NotNow,
}

impl HeldTicket {
    /// Spends it: of all who hold it, on all replicas, one succeeds.
    pub(super) async fn spend(&self) -> Result<(), NotSpent> {
        match self.store.spend(&self.key.0).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotSpent::Gone),
            Err(TicketsUnavailable(reason)) => {
                tracing::warn!(reason, "redeeming a ticket failed");
                Err(NotSpent::NotNow)
            }
        }
    }
}

/// The answer to a ticket that opens nothing. 401 by design: an `EventSource` gives up, and its
/// page opens another with a new ticket.
pub(super) fn wrong_ticket() -> Problem {
    Problem::unauthorized(
        "the ticket is spent, or expired, or none: draw another with POST /tickets",
        Some("invalid_token"),
    )
}

/// What a ticket stands for. It is not spent by this.
pub(super) async fn look(
    store: &TicketStore,
    text: &str,
) -> Result<(VerifiedClaims, HeldTicket), Refusal> {
    let key = Key::of(text).ok_or_else(wrong_ticket)?;
    let kept = store.look(&key.0).await.map_err(|error| {
        tracing::warn!(%error, "looking up a ticket failed");
        Refusal::NotNow(NOT_NOW)
    })?;
    // Only this gateway writes them; what somebody else has put there is no ticket.
    let claims: Option<Map<String, Value>> =
        kept.and_then(|claims| serde_json::from_str(&claims).ok());
    let claims = claims.ok_or_else(wrong_ticket)?;
    // The token may have expired since.
    let claims = VerifiedClaims::read(claims).map_err(|fault| wrong_token(&fault))?;
    let store = store.clone();
    Ok((claims, HeldTicket { store, key }))
}

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
    if authority.ring.is_none() {
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
    let identity = authority.identify(&headers, None).await?;
    let Identity {
        claims, session, ..
    } = identity.ok_or_else(|| Problem::unauthorized("a ticket is drawn with a token", None))?;
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
    let ticket = random_text().ok_or(Refusal::NotNow(NOT_NOW))?;
    let key = Key::of(&ticket).ok_or(Refusal::NotNow(NOT_NOW))?;
    let value = Value::Object(claims.claims).to_string();
    let kept = authority.tickets.keep(&key.0, value, life).await;
    kept.map_err(|error| {
        tracing::warn!(%error, "issuing a ticket failed");
        Refusal::NotNow(NOT_NOW)
    })?;
    let mut response = Json(Drawn {
        ticket,
        expires_in: life.as_secs(),
    })
    .into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    Ok(response)
}

/// Text that nobody can guess; `None` when the system has no randomness.
fn random_text() -> Option<String> {
    let mut bytes = [0; TICKET_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_differ_and_are_kept_under_another_name() {
        let (one, two) = (random_text().unwrap(), random_text().unwrap());
        assert_ne!(one, two);
        let Key(key) = Key::of(&one).unwrap();
        assert_ne!(key, one);
        assert!(Key(key) == Key::of(&one).unwrap() && Key::of(&one) != Key::of(&two));
    }

    #[test]
    fn what_is_no_ticket_is_not_looked_up() {
        let good = random_text().unwrap();
        for bad in [
            "",
            "x",
            &good[1..],
            &format!("{good}x"),
            &format!("{}*", &good[1..]),
            &format!("{}\0", &good[1..]),
            &"é".repeat(TICKET_TEXT_BYTES / 2),
        ] {
            assert!(Key::of(bad).is_none(), "{bad:?}");
        }
    }
}
