//! Integration tests, in one program: real processes on ephemeral ports, one file per subject.
//!
//! `faults` has tests that take minutes or need root; they are behind the feature `long-tests`
//! (`make test-faults`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod admin;
mod auth;
mod browser;
mod busy;
mod churn;
mod cli;
mod cluster;
mod console;
mod engines;
mod examples;
mod faults;
mod functions;
mod hostile;
mod kept;
mod layout;
mod limits;
mod log;
mod metrics;
mod nginx;
mod origins;
mod prometheus;
mod query;
mod redis;
mod redis_access;
mod resume;
mod rollout;
mod runs;
mod session;
mod slow_clients;
mod stop;
mod streams;
mod support;
mod tls;
mod traces;
#[cfg(feature = "long-tests")]
mod upgrade;
