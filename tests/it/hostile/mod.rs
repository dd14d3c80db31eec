//! Whatever somebody may send who means harm, or has a fault: each case with its answer, and each
//! followed by a client that must be served as if nothing had happened.

mod configuration;
mod http1;
mod http2;
mod redis;
mod seeds;
mod slow;

use crate::support::Gateway;

/// The gateway serves a stream as if nothing had happened.
async fn healthy(gateway: &Gateway) {
    let mut events = gateway.events("/events/healthy").await.opened().await;
    gateway.keep("/events/healthy", "well").await;
    assert_eq!(events.data().await, "well");
}
