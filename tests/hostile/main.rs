//! Whatever somebody may send who means harm, or has a fault: each case with its answer, and each
//! followed by a client that must be served as if nothing had happened.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

#[path = "../support/mod.rs"]
mod support;

mod configuration;
mod http1;
mod http2;
mod redis;
mod seeds;
mod slow;

use support::Gateway;

/// The gateway serves a stream as if nothing had happened.
async fn healthy(gateway: &Gateway) {
    let mut events = gateway.events("/events/healthy").await.opened().await;
    gateway.keep("/events/healthy", "well").await;
    assert_eq!(events.data().await, "well");
}
