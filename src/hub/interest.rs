//! What a shard tells the bus: which channels its clients want.

use crate::protocol::ChannelName;

/// A shard's number, counted from 0.
pub type ShardId = usize;

/// Tells one interest in a channel from an earlier one of the same shard, so that news about the
/// earlier one is not taken for news about this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub(super) u64);

/// A shard's interest in some channels has changed. Only the newest state of a channel counts, so
/// changes that cancel each other out are never sent.
#[derive(Debug)]
pub struct InterestUpdate {
    /// Whose interest.
    pub shard: ShardId,
    /// For each channel the interest that now holds; `None`: not wanted any more.
    pub changes: Vec<(ChannelName, Option<Generation>)>,
}
