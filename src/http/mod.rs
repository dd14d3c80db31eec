//! The data listener: from an accepted connection to a stream.
//!
//! [`listener`] accepts, [`handshake`] makes TLS connections of some sockets, [`connection`] tells HTTP/1.1 from HTTP/2 and serves it, and the
//! [`mod@router`] parses and [authorises](authority) like that of any axum program. Its handlers never touch a
//! hub: they answer, and leave a [`decision`] for the [`edge`] of the shard, which opens streams on
//! its hub. Over HTTP/1.1 the
//! connection is then taken out of hyper ([`takeover`]) and only a small task with a [socket](stream_socket) remains; everything
//! else is an ordinary body ([`stream`]).
//!
//! Who may come so far: [`first_head`] and [`host`] refuse what is no proper request, [`origin`] the
//! pages of foreign sites, and [`admission`] whoever has all it may have, by the address that
//! [`client_address`] finds (and [`proxy_protocol`] on a listener of its own) and the [`limits`].

mod admission;
mod answer;
mod authority;
mod client_address;
mod client_io;
mod connection;
mod cut_off;
mod decision;
mod demo;
mod edge;
mod error;
mod first_head;
mod handshake;
mod held_answer;
mod held_ticket;
mod host;
mod ignored;
mod limits;
mod listener;
mod origin;
mod page_policy;
mod proxy_protocol;
mod publish;
mod request_context;
mod revoke;
mod router;
mod state;
mod stream;
mod stream_socket;
mod subscribe;
mod takeover;
mod tickets;

pub use admission::Admission;
pub use authority::Authority;
pub use connection::Preamble;
pub(crate) use connection::{HEAD_DEADLINE, MAX_HEAD_BYTES};
pub use edge::{Edge, EdgeParts};
pub use host::only_this_machine;
pub use listener::{Listener, accept, bind, bind_alone};
pub use origin::only_own_pages;
pub(crate) use page_policy::page_policy;
pub(crate) use publish::Fields as PublishFields;
pub use router::router;
pub use state::RouterState;
pub(crate) use subscribe::StreamQuery;
