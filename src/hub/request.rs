//! What a stream is to be, and why it was not opened.

use std::sync::Arc;
use std::time::Duration;

use super::session::Session;
use crate::protocol::{ChannelName, ControlForm, Cursor, EndReason, GapReason};

/// What a stream is to be.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    /// Its channels, each once.
    pub channels: Vec<ChannelName>,
    /// Where its client wants to begin.
    pub start: Start,
    /// How its client gets cursors, gaps and what else the gateway itself says.
    pub control: ControlForm,
    /// Its own heartbeat interval, at least two seconds and at most a minute; `None`: that of the
    /// configuration.
    pub heartbeat: Option<Duration>,
    /// Who reads; `None`: anybody, without a token.
    pub session: Option<Arc<Session>>,
    /// It ends when so many of its channels, the first, have ended.
    pub counted: usize,
    /// Its client is told when its replay is over.
    pub tells_live: bool,
    /// Its client asked for everything: where the stream ends before its channels do, it is cut off.
    pub is_whole: bool,
    /// Its client sees the status of an answer: where nothing can come, it gets one instead of a stream.
    pub sees_status: bool,
}

/// Where a client wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Live,
    /// With the first kept event of each channel.
    Beginning,
    /// With the newest so many kept events of each channel.
    Newest(u32),
    /// After this cursor.
    After(Cursor),
    /// After something that is no cursor.
    Unknown,
}

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// A channel did not become active in time: the bus is away, or refuses it.
    NotActive,
    /// The shard closes its streams.
    Draining,
    /// The session was revoked meanwhile.
    Revoked,
    /// All channels have ended, and the client has had the last event of each.
    Over(EndReason),
    /// A part may be missing, and its client could not see that.
    Incomplete(GapReason),
}
