//! Fanfare, a multi-node Server-Sent Events gateway behind Redis pub/sub.
pub mod hub;
pub mod protocol;
