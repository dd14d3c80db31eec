//! Tickets in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bus::TicketsUnavailable;

/// What all tickets may take. At a kilobyte a ticket, a thousand a second can be drawn.
const MOST_BYTES: usize = 32 << 20;

/// What a ticket takes beside its text.
const OVERHEAD_BYTES: usize = 256;

/// Tickets of this process, for all shards. A lock: a ticket is drawn and spent once, far from
/// the way of an event.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedTickets(Arc<Mutex<Tickets>>);

#[derive(Debug, Default)]
struct Tickets {
    kept: HashMap<Box<str>, Kept>,
    /// In the order in which they were drawn, the spent among them too.
    expiry: VecDeque<(Instant, Box<str>)>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    value: String,
    expires: Instant,
}

impl EmbeddedTickets {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        // Nothing below panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keep(
        &self,
        key: &str,
        value: String,
        life: Duration,
    ) -> Result<(), TicketsUnavailable> {
        self.lock().keep(key, value, Instant::now() + life)
    }

    pub(crate) fn look(&self, key: &str) -> Option<String> {
        let tickets = self.lock();
        let kept = tickets.kept.get(key)?;
        (kept.expires > Instant::now()).then(|| kept.value.clone())
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
        expires: Instant,
    ) -> Result<(), TicketsUnavailable> {
        self.forget_expired();
        let bytes = cost_bytes(key, &value);
        if self.bytes + bytes > MOST_BYTES {
            return Err(TicketsUnavailable("there are too many".into()));
        }
        self.bytes += bytes;
        self.expiry.push_back((expires, key.into()));
        self.kept.insert(key.into(), Kept { value, expires });
        Ok(())
    }

    fn spend(&mut self, key: &str, now: Instant) -> bool {
        let Some(kept) = self.kept.remove(key) else {
            return false;
        };
        // Its place in the order stays until its time is over.
        self.bytes -= cost_bytes(key, &kept.value);
        self.bytes += cost_bytes(key, "");
        kept.expires > now
    }

    /// Tickets live about equally long, so the oldest go first; one that lives shorter than those
    /// before it takes room a little longer.
    fn forget_expired(&mut self) {
        let now = Instant::now();
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

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_spent_once_and_expires() {
        let tickets = EmbeddedTickets::default();
        tickets.keep("a", "A".into(), LIFE).unwrap();
        tickets.keep("b", "B".into(), LIFE).unwrap();
        assert_eq!(tickets.look("a").as_deref(), Some("A"));
        assert!(tickets.spend("a") && !tickets.spend("a"));
        assert_eq!(tickets.look("a"), None);
        tokio::time::advance(LIFE).await;
        assert_eq!(tickets.look("b"), None);
        assert!(!tickets.spend("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_what_is_over_takes_no_room() {
        let tickets = EmbeddedTickets::default();
        let value = "x".repeat(1 << 20);
        let mut kept = 0;
        while tickets.keep(&kept.to_string(), value.clone(), LIFE).is_ok() {
            kept += 1;
        }
        assert_eq!(kept, 31);
        assert!(tickets.spend("0"));
        assert!(tickets.keep("new", value.clone(), LIFE).is_ok());
        tokio::time::advance(LIFE).await;
        assert!(tickets.keep("last", String::new(), LIFE).is_ok());
        let left = tickets.lock();
        assert_eq!((left.kept.len(), left.expiry.len()), (1, 1));
        assert_eq!(left.bytes, cost_bytes("last", ""));
    }
}
