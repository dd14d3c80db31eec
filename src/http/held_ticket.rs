//! Tickets: for a browser that cannot send headers. A ticket is drawn with a token, stands for the
//! token's claims for half a minute, and opens one stream.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::error::Problem;
use crate::auth::{TokenFault, VerifiedClaims};
use crate::bus::{TicketStore, TicketsUnavailable};

/// Random bytes of a ticket: nobody guesses 192 bits.
const TICKET_BYTES: usize = 24;

/// A ticket's text: base64url of its bytes.
const TICKET_TEXT_BYTES: usize = TICKET_BYTES.div_ceil(3) * 4;

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

/// Why a ticket was not spent.
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

/// Why a ticket says nothing of its bearer.
pub(super) enum TicketFault {
    /// It is spent, or expired, or was never drawn.
    Wrong,
    /// The token that it was drawn with does not hold any more.
    Token(TokenFault),
    /// The bus is not available.
    NotNow,
}

/// Draws a ticket for these claims, which may be spent for `life`.
///
/// # Errors
/// [`TicketFault::NotNow`], when the bus does not take it or the system has no randomness.
pub(super) async fn draw(
    store: &TicketStore,
    claims: Map<String, Value>,
    life: Duration,
) -> Result<String, TicketFault> {
    let ticket = random_text().ok_or(TicketFault::NotNow)?;
    let key = Key::of(&ticket).ok_or(TicketFault::NotNow)?;
    let value = Value::Object(claims).to_string();
    let kept = store.keep(&key.0, value, life).await;
    kept.map_err(|error| {
        tracing::warn!(%error, "issuing a ticket failed");
        TicketFault::NotNow
    })?;
    Ok(ticket)
}

/// Looks up the claims that a ticket was drawn with. This does not spend it.
///
/// # Errors
/// When there are none, they do not hold any more, or the bus is not available.
pub(super) async fn look(
    store: &TicketStore,
    text: &str,
) -> Result<(VerifiedClaims, HeldTicket), TicketFault> {
    let key = Key::of(text).ok_or(TicketFault::Wrong)?;
    let kept = store.look(&key.0).await.map_err(|error| {
        tracing::warn!(%error, "looking up a ticket failed");
        TicketFault::NotNow
    })?;
    // Only gateways write tickets; anything else under the key is not one.
    let claims: Option<Map<String, Value>> =
        kept.and_then(|claims| serde_json::from_str(&claims).ok());
    let claims = claims.ok_or(TicketFault::Wrong)?;
    // The token may have expired since.
    let claims = VerifiedClaims::read(claims).map_err(TicketFault::Token)?;
    let store = store.clone();
    Ok((claims, HeldTicket { store, key }))
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
