//! Whether anything is missing: every judgement about ids, holes, positions and gaps.
//!
//! Pure: no runtime, no Redis, no clock. Time is an argument, and what must be read is an answer.
//!
//! - [`Feed`] follows the kept events of one primary: inputs go in (what arrives, what was read),
//!   actions come out (what to deliver, what to read). The Redis driver, the embedded bus and the
//!   exploration in `tests/model` run the same [`Feed`]. A Redis Cluster has several.
//! - [`judge`] says what one read of a history proves of a cursor, `arrival` what the next event
//!   proves, `recovery` puts what several channels have missed in order.
//! - [`Replay`] brings one client from its cursor to the live events, by way of the [`Tail`]s.
//! - [`Positions`] says which position no failover can take back.
//!
//! The rules are those of `docs/protocol.md`, section "What is proven". `tests/model` explores
//! them exhaustively in small worlds, and shows that it notices when one of them is weakened.

mod arrival;
mod ends;
mod feed;
mod judge;
mod positions;
mod recovery;
mod replay;
pub(crate) mod rules;
mod table;
mod tail;

pub(crate) use ends::last_end;
pub(crate) use feed::{Action, Feed, FeedSettings, Input, PageSize};
pub use judge::{ChannelEnd, GapNotice, HistoryPage, Issued, KeptEvent, Link, Linked, Retention};
pub(crate) use positions::{Positions, heartbeat_cursor};
pub(crate) use replay::{Gap, Part, Replay, Step, View};
pub(crate) use tail::{Entry, Tail, TailLimits};
