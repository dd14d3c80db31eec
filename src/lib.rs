//! Fanfare, a multi-node Server-Sent Events gateway behind Redis pub/sub.
//!
//! The way of an event, and the modules it passes:
//!
//! ```text
//! Redis ──push──► bus ──batches──► hub (one a shard) ──mailbox──► http (one task a connection)
//!   ▲              │ decode, route      encode once, fan out        write to the socket
//!   └──interest────┘◄──────────── what the shard's clients want
//! ```
//!
//! - [`protocol`]: names and wire formats. Pure.
//! - [`continuity`]: whether anything is missing: ids, holes, positions, gaps. Pure, and explored
//!   by `tests/model`.
//! - [`bus`]: where events come from, Redis or this process, and keeping exactly the wanted
//!   channels subscribed.
//! - [`hub`]: a shard's channels, subscribers and mailboxes; encoding once, heartbeats.
//! - [`tls`]: certificates and session tickets of the TLS listener.
//! - [`auth`]: tokens and their keys: who a request is from, and what it was granted.
//! - [`http`]: the data listener, from an accepted connection to a stream, and what a request may do.
//! - [`admin`]: health, metrics and the console. [`telemetry`]: what is logged, counted and traced.
//!   [`labels`]: what metrics are split by.
//! - [`fuzzing`]: what must hold for any bytes from outside.
//! - [`config`]: every setting. [`cli`]: the commands. [`app`]: puts all of it together;
//!   [`tasks`]: what must not end before it; [`supervision`]: whether its threads turn;
//!   [`files`]: what is read again when it changes; [`warnings`]: what `/readyz` warns of.
//!
//! What holds everywhere:
//!
//! - A shard is a thread that owns its connections. Nothing on the way of an event is locked or
//!   shared with another shard.
//! - Whatever is published after a client has seen its first `$cursor` reaches it, unless the bus is
//!   lost in between.
//! - Every queue is bounded, and nothing waits for a client: one that does not keep up is cut off
//!   or, with the `latest` policy, loses its oldest events.
//! - Imports point down, in the order of the list `ORDER` in `tests/it/layout.rs`, which checks it:
//!   `protocol` ← `continuity` ← `hub` ← `telemetry` ← `auth` ← `tls` ← `config` ← `bus` ← `http` ← `admin` ← `app` ← `cli`.
//!   `protocol` imports nothing of this crate. What a part can be set to is defined by that part;
//!   `config` reads it.
//!
//! Deliberately absent: storage of any kind in the gateway, and a protocol beside Server-Sent Events.

mod admin;
mod app;
mod auth;
mod bus;
pub mod cli;
mod config;
mod continuity;
mod files;
pub mod fuzzing;
mod http;
mod hub;
mod labels;
pub mod protocol;
mod supervision;
mod tasks;
mod telemetry;
mod tls;
mod warnings;

pub use bus::library;
