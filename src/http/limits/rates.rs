//! How often a client may do something.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::Client;
use crate::config::Rate;

/// Clients that are told apart: some 10 MB. A client is forgotten as soon as it may do everything
/// again; those that come while so many are remembered share one rate.
const MAX_CLIENTS: usize = 100_000;

/// Fewer are not worth a look at which can be forgotten.
const FEW_CLIENTS: usize = 1024;

/// A rate for each client of this replica (the generic cell rate algorithm).
pub(in crate::http) struct RateLimit {
    limiter: RateLimiter<Client, HashMapStateStore<Client>, DefaultClock>,
    max_clients: usize,
    /// At this many clients those are forgotten that may do everything again.
    sweep_at: AtomicUsize,
}

impl std::fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RateLimit")
    }
}

impl RateLimit {
    pub(in crate::http) fn new(rate: Rate) -> Self {
        Self::for_clients(rate, MAX_CLIENTS)
    }

    fn for_clients(rate: Rate, max_clients: usize) -> Self {
        // A rate has at most a million a second: a period is never zero.
        let quota = Quota::with_period(rate.period / rate.count.get())
            .unwrap_or(Quota::per_second(rate.count))
            .allow_burst(rate.count);
        Self {
            limiter: RateLimiter::hashmap(quota),
            max_clients,
            sweep_at: AtomicUsize::new(FEW_CLIENTS.min(max_clients)),
        }
    }

    /// Counts one more of `client`.
    ///
    /// # Errors
    /// When it has done too many, with the time after which it may again.
    pub(in crate::http) fn check(&self, client: Client) -> Result<(), Duration> {
        let client = if self.has_room() {
            client
        } else {
            Client::Others
        };
        self.limiter
            .check_key(&client)
            .map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now()))
    }

    fn has_room(&self) -> bool {
        let sweep_at = self.sweep_at.load(Ordering::Relaxed);
        if self.limiter.len() < sweep_at {
            return true;
        }
        // Half as many must come again before the next look, so a look costs each of them little.
        self.limiter.retain_recent();
        let left = self.limiter.len();
        let next = (left + left / 2).clamp(FEW_CLIENTS.min(self.max_clients), self.max_clients);
        self.sweep_at.store(next, Ordering::Relaxed);
        left < self.max_clients
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::http::client_address::ClientAddress;

    fn client(number: u32) -> Client {
        let address = IpAddr::from(number.to_be_bytes());
        Client::of(ClientAddress(address), None)
    }

    #[test]
    fn each_client_has_a_rate_of_its_own() {
        let limit = RateLimit::new(Rate::parse("3/h").unwrap());
        for _ in 0..3 {
            limit.check(client(1)).unwrap();
        }
        let wait = limit.check(client(1)).unwrap_err();
        assert!(
            wait > Duration::from_secs(1000) && wait <= Duration::from_secs(1200),
            "{wait:?}"
        );
        limit.check(client(2)).unwrap();
    }

    #[test]
    fn memory_is_bounded_and_those_without_room_share_a_rate() {
        let limit = RateLimit::for_clients(Rate::parse("2/h").unwrap(), 10);
        for number in 0..10 {
            limit.check(client(number)).unwrap();
        }
        limit.check(client(100)).unwrap();
        limit.check(client(101)).unwrap();
        assert!(limit.check(client(102)).is_err());
        for number in 0..10_000 {
            let _ = limit.check(client(number));
        }
        assert!(limit.limiter.len() <= 11);
    }

    #[test]
    fn who_may_do_everything_again_is_forgotten() {
        let limit = RateLimit::for_clients(Rate::parse("1000000/s").unwrap(), 100);
        for number in 0..10_000 {
            limit.check(client(number)).unwrap();
        }
        assert!(limit.limiter.len() <= 101);
    }
}
