//! Who reads a stream.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::protocol::Claims;

/// The claim that holds what a token may do; no event is addressed by it.
const GRANTS: &str = "fanfare";

/// What the hub needs to know of who reads. Made from a verified token; a stream without one has
/// no session. One allocation and three texts, however many claims there are.
#[derive(Clone, Debug)]
pub struct Session {
    /// Whom the token speaks of (RFC 7519, `sub`).
    pub subject: Option<Arc<str>>,
    /// The token itself (RFC 7519, `jti`).
    pub token_id: Option<Arc<str>>,
    /// When its streams end (RFC 7519, `exp`).
    pub expires_at: Option<SystemTime>,
    /// What the `to` of events is held against.
    pub claims: Claims,
}

impl Session {
    /// A session of a token with these claims, which are taken as they are: the caller has
    /// verified the token.
    pub fn new(claims: &Map<String, Value>, expires_at: Option<SystemTime>) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(Arc::from);
        Self {
            subject: text("sub"),
            token_id: text("jti"),
            expires_at,
            claims: Claims::new(claims.iter().filter(|(name, _)| *name != GRANTS)),
        }
    }
}
