//! Tickets in memory.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::bus::TicketsUnavailable;

/// What all tickets may take. At a kilobyte a ticket, a thousand a second can be drawn.
const MOST_BYTES: usize = 32 << 20;

/// What a ticket takes beside its text.
const OVERHEAD_BYTES: usize = 256;

/// Tickets of this process, for all shards. A lock: a ticket is drawn and spent once, far from
/// the way of an event.
#[derive(Clone, Default)]
pub struct EmbeddedTickets(Arc<Mutex<Tickets>>);

/// Claims are about people: no log needs them.
impl fmt::Debug for EmbeddedTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmbeddedTickets")
    }
}

#[derive(Default)]
struct Tickets {
    kept: HashMap<Box<str>, Kept>,
    /// In the order in which they were drawn, the spent among them too.
    expiry: VecDeque<(Instant, Box<str>)>,
    bytes: usize,
}

struct Kept {
    value: String,
    expires: Instant,
}

impl EmbeddedTickets {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        // Nothing below panics halfway.
        self.0.lock()
    }

    pub(crate) fn keep(
        &self,
        key: &str,
        value: String,
        life: Duration,
    ) -> Result<(), TicketsUnavailable> {
        self.lock().keep(key, value, life, Instant::now())
    }

    pub(crate) fn look(&self, key: &str) -> Option<String> {
        self.lock().look(key, Instant::now())
    }

    pub(crate) fn spend(&self, key: &str) -> bool {
        self.lock().spend(key, Instant::now())
    }
}

impl Tickets {
    fn keep(
        &mut self,
        key: &str,
        value: String,
        life: Duration,
        now: Instant,
    ) -> Result<(), TicketsUnavailable> {
        self.forget_expired(now);
        let bytes = cost_bytes(key, &value);
        if self.bytes + bytes > MOST_BYTES {
            return Err(TicketsUnavailable("there are too many".into()));
        }
        let expires = now + life;
        self.bytes += bytes;
        self.expiry.push_back((expires, key.into()));
        self.kept.insert(key.into(), Kept { value, expires });
        Ok(())
    }

    fn look(&self, key: &str, now: Instant) -> Option<String> {
        let kept = self.kept.get(key)?;
        (kept.expires > now).then(|| kept.value.clone())
    }

    /// What is left of a spent one is its place in the order, until its time is over.
    fn spend(&mut self, key: &str, now: Instant) -> bool {
        let Some(kept) = self.kept.remove(key) else {
            return false;
        };
        self.bytes -= kept.value.len();
        kept.expires > now
    }

    /// Tickets live about equally long, so the oldest go first; one that lives shorter than those
    /// before it takes room a little longer.
    fn forget_expired(&mut self, now: Instant) {
        while self.expiry.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, key)) = self.expiry.pop_front()
        {
            let value = self.kept.remove(&key).map(|kept| kept.value);
            self.bytes -= cost_bytes(&key, &value.unwrap_or_default());
        }
    }
}

fn cost_bytes(key: &str, value: &str) -> usize {
    2 * key.len() + value.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(30);

    #[test]
    fn a_ticket_is_spent_once_and_expires() {
        let mut tickets = Tickets::default();
        let now = Instant::now();
        tickets.keep("a", "A".into(), LIFE, now).unwrap();
        tickets.keep("b", "B".into(), LIFE, now).unwrap();
        assert_eq!(tickets.look("a", now).as_deref(), Some("A"));
        assert!(tickets.spend("a", now) && !tickets.spend("a", now));
        assert_eq!(tickets.look("a", now), None);
        assert_eq!(tickets.look("b", now + LIFE), None);
        assert!(!tickets.spend("b", now + LIFE));
    }

    #[test]
    fn they_are_bounded_and_what_is_over_takes_no_room() {
        let mut tickets = Tickets::default();
        let now = Instant::now();
        let value = "x".repeat(1 << 20);
        let mut kept = 0;
        while tickets
            .keep(&kept.to_string(), value.clone(), LIFE, now)
            .is_ok()
        {
            kept += 1;
        }
        assert_eq!(kept, 31);
        assert!(tickets.spend("0", now));
        assert!(tickets.keep("new", value, LIFE, now).is_ok());
        let later = now + LIFE;
        assert!(tickets.keep("last", String::new(), LIFE, later).is_ok());
        assert_eq!((tickets.kept.len(), tickets.expiry.len()), (1, 1));
        assert_eq!(tickets.bytes, cost_bytes("last", ""));
    }
}
