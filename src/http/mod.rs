//! The data listener: from an accepted connection to a stream.
//!
//! [`listener`] accepts, [`connection`] tells HTTP/1.1 from HTTP/2 and serves it, and the
//! [`mod@router`] parses and [authorises](auth) like that of any axum program. Its handlers never touch a
//! hub: a stream's handler answers with the head and a [`StreamRequest`](crate::hub::StreamRequest)
//! beside it, and the [`edge`] of the shard opens the stream on its hub. Over HTTP/1.1 the
//! connection is then taken out of hyper ([`takeover`]) and only a small task remains; everything
//! else is an ordinary body ([`stream`]).

mod admission;
mod answer;
pub mod auth;
mod connection;
mod cut_off;
mod demo;
mod edge;
mod error;
mod listener;
mod publish;
mod router;
mod state;
mod stream;
mod subscribe;
mod takeover;

pub use admission::ConnectionLimit;
pub(crate) use connection::{HEAD_DEADLINE, MAX_HEAD_BYTES};
pub use edge::Edge;
pub use listener::{accept, bind};
pub use router::router;
pub use state::RouterState;
