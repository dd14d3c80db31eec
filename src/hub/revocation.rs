//! Who is kept out, for everybody who admits: the shards and the HTTP edge.
//!
//! The bus adds what it hears to [`Revocations`] first and tells the shards then. So a stream that
//! is being opened either finds itself revoked, or is open when its shard hears of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::session::Session;
use crate::protocol::{Revocation, Revoked, TOKEN_LEEWAY};

/// Revocations at a time, at the most: some ten megabytes. The function library takes no more
/// either.
pub const MOST_REVOCATIONS: usize = 100_000;

/// Revoked subjects and tokens, each until their tokens are good no more (Unix milliseconds).
#[derive(Clone, Debug, Default)]
pub struct RevocationSet {
    subjects: HashMap<Arc<str>, u64>,
    tokens: HashMap<Arc<str>, u64>,
}

impl RevocationSet {
    /// Whether a session is of a subject or a token in it, at this time (Unix milliseconds).
    pub(super) fn holds(&self, session: &Session, now_ms: u64) -> bool {
        let is_in = |map: &HashMap<Arc<str>, u64>, key: &Option<Arc<str>>| {
            let until = key.as_ref().and_then(|key| map.get(key));
            until.is_some_and(|until| *until > now_ms)
        };
        is_in(&self.subjects, &session.subject) || is_in(&self.tokens, &session.token_id)
    }

    fn len(&self) -> usize {
        self.subjects.len() + self.tokens.len()
    }

    /// The later of two ends counts. Past the bound nobody new is taken.
    fn add(&mut self, revocation: &Revocation) -> bool {
        let has_room = self.len() < MOST_REVOCATIONS;
        let leeway_ms = u64::try_from(TOKEN_LEEWAY.as_millis()).unwrap_or(u64::MAX);
        let until_ms = revocation.until_ms.saturating_add(leeway_ms);
        let (map, key) = match &revocation.revoked {
            Revoked::Subject(subject) => (&mut self.subjects, subject),
            Revoked::Token(token) => (&mut self.tokens, token),
        };
        if let Some(until) = map.get_mut(key) {
            *until = until_ms.max(*until);
        } else if has_room {
            map.insert(Arc::clone(key), until_ms);
        } else {
            return false;
        }
        true
    }

    /// Forgets who need not be kept out any more.
    fn prune(&mut self, now_ms: u64) {
        for map in [&mut self.subjects, &mut self.tokens] {
            map.retain(|_, until| *until > now_ms);
            if map.len() * 4 < map.capacity() {
                map.shrink_to(map.len() * 2);
            }
        }
    }

    fn has_expired(&self, now_ms: u64) -> bool {
        let mut untils = self.subjects.values().chain(self.tokens.values());
        untils.any(|until| *until <= now_ms)
    }
}

impl FromIterator<Revocation> for RevocationSet {
    fn from_iter<I: IntoIterator<Item = Revocation>>(revocations: I) -> Self {
        let mut set = Self::default();
        for revocation in revocations {
            set.add(&revocation);
        }
        set
    }
}

/// Everybody who is kept out now. Looking somebody up takes no lock; one task adds, and copies the
/// whole for it: revocations are rare, and what has arrived together is added together.
#[derive(Debug, Default)]
pub struct Revocations(ArcSwap<RevocationSet>);

impl Revocations {
    /// Whether a session is kept out.
    pub fn is_revoked(&self, session: &Session) -> bool {
        self.0.load().holds(session, now_ms())
    }

    /// Adds these, and returns how many there was no room for. To be called by one task only.
    pub fn add(&self, revocations: &[Revocation]) -> usize {
        let mut set = RevocationSet::clone(&self.0.load());
        set.prune(now_ms());
        let refused = revocations
            .iter()
            .filter(|revocation| !set.add(revocation))
            .count();
        self.0.store(Arc::new(set));
        refused
    }

    /// Forgets who need not be kept out any more. By the task that adds.
    pub fn prune(&self) {
        let now_ms = now_ms();
        let set = self.0.load();
        if set.has_expired(now_ms) {
            let mut set = RevocationSet::clone(&set);
            set.prune(now_ms);
            self.0.store(Arc::new(set));
        }
    }
}

/// The time of day, in Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn session(claims: &serde_json::Value) -> Session {
        Session::new(claims.as_object().unwrap(), None)
    }

    fn revocation(revoked: &str, until_ms: u64) -> Revocation {
        Revocation {
            revoked: revoked.parse().unwrap(),
            until_ms,
        }
    }

    #[test]
    fn a_subject_and_a_token_are_kept_out_until_their_time() {
        let revocations = Revocations::default();
        let alice = session(&json!({"sub": "alice", "jti": "1"}));
        let again = session(&json!({"sub": "alice", "jti": "2"}));
        let bob = session(&json!({"sub": "bob", "jti": "3"}));
        let nobody = session(&json!({"jti": 1, "sub": ["alice"]}));
        let later = now_ms() + 60_000;
        assert_eq!(revocations.add(&[revocation("jti:1", later)]), 0);
        assert!(revocations.is_revoked(&alice) && !revocations.is_revoked(&again));
        revocations.add(&[revocation("sub:alice", later), revocation("sub:bob", 1)]);
        assert!(revocations.is_revoked(&again));
        // It is over already.
        assert!(!revocations.is_revoked(&bob) && !revocations.is_revoked(&nobody));
        // An earlier end shortens nothing.
        revocations.add(&[revocation("sub:alice", now_ms() + 1)]);
        revocations.prune();
        let until = revocations.0.load().subjects["alice"];
        assert_eq!(until, later + 5000);
        assert_eq!(revocations.0.load().len(), 2);
    }

    /// A token is good for the leeway behind its `exp`: revoked until then, it is kept out for it.
    #[test]
    fn a_revoked_token_does_not_come_back_in_its_leeway() {
        let revocations = Revocations::default();
        let alice = session(&json!({"jti": "1"}));
        let exp_ms = now_ms() - 2000;
        revocations.add(&[revocation("jti:1", exp_ms)]);
        revocations.prune();
        assert!(revocations.is_revoked(&alice));
        let leeway_ms = u64::try_from(TOKEN_LEEWAY.as_millis()).unwrap();
        assert!(!revocations.0.load().holds(&alice, exp_ms + leeway_ms));
    }

    #[test]
    fn past_the_bound_nobody_new_is_taken() {
        let revocations = Revocations::default();
        let later = now_ms() + 60_000;
        let many: Vec<_> = (0..MOST_REVOCATIONS)
            .map(|number| revocation(&format!("jti:{number}"), later))
            .collect();
        assert_eq!(revocations.add(&many), 0);
        assert_eq!(revocations.add(&[revocation("sub:x", later)]), 1);
        assert_eq!(revocations.add(&[revocation("jti:7", later + 1)]), 0);
    }
}
