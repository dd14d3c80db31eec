//! Kept events while things break: connections, replicas, Redis itself.
//!
//! One file a family of faults; `long` has those that take minutes or need root (`make test-faults`).
//! Every test holds what its clients saw against what was published (see `support/oracle.rs`):
//! nothing acknowledged is missing, nothing comes twice or out of order, and a `$gap` comes only
//! where the fault allows it.

mod balancer;
mod clock;
mod failover;
#[cfg(feature = "long-tests")]
mod long;
mod matrix;
mod redis_faults;
mod replicas;
mod scene;

use std::time::Duration;

use crate::support::Redis;
use crate::support::client::{Addresses, Client, Plan};

/// How soon after a fault is over everything has to be as before, without help.
const RECOVERY: Duration = Duration::from_secs(20);

/// What a test may take as a whole.
const MINUTE: Duration = Duration::from_secs(60);

/// Between the events of a publisher under load.
const PAUSE: Duration = Duration::from_millis(2);

const VARIABLES: &[(&str, &str)] = &[
    ("FANFARE_HEARTBEAT", "500ms"),
    ("FANFARE_SHARDS", "2"),
    // No test here is about trimming, except where it says so.
    ("FANFARE_HISTORY_LENGTH", "20000"),
];

async fn open(addresses: &Addresses, channels: &[&str]) -> Client {
    Plan::new(addresses, channels).open().await
}

/// Two clients of one channel each, and some of both.
async fn clients_of_two_channels(addresses: &Addresses) -> Vec<Client> {
    let mut clients = Vec::new();
    let all: [&[&str]; 6] = [
        &["a"],
        &["b"],
        &["a", "b"],
        &["b", "a"],
        &["a", "b"],
        &["a"],
    ];
    for (number, channels) in all.into_iter().enumerate() {
        let mut plan = Plan::new(addresses, channels);
        plan.first_address = number;
        clients.push(plan.open().await);
    }
    clients
}

fn refs(clients: &[Client]) -> Vec<&Client> {
    clients.iter().collect()
}

/// Where replicas have their probes: how many gateways are at this server.
async fn probes(redis: &Redis) -> usize {
    let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS", "sse:$probe.*"]).await;
    channels.len()
}
