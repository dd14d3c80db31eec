//! The rules that the exploration must be able to tell from weaker ones.
//!
//! In tests one rule at a time can be switched off, and the exploration must find what goes wrong
//! without it. In every other build [`Rule::is_off`] is `false`, and costs nothing.

/// A rule of `docs/protocol.md`, section "What is proven".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// 1: a cursor that is newer than every issued id is unknown.
    CursorWasIssued,
    /// 2: a cursor that is older than the epoch is not judged by newer ids.
    RedisRemembers,
    /// 3: an event that a failover may have taken back must be found.
    EventCounts,
    /// 3: only a position that is later by more than the lag bound confirms an event.
    LagBound,
    /// 4: the first event after the position names an event that is not later than it.
    ChannelGoesOn,
    /// 4: a missing history proves something only while the position is younger than the TTL.
    YoungerThanTtl,
    /// 4: the clock of Redis counts where ids have stood still.
    ClockOfRedis,
    /// 4: after the TTL was raised, the old one counts for positions from before.
    OldTtl,
    /// 4: a history that may be evicted proves nothing by its absence.
    NotEvicted,
    /// Clients are told only positions that are at least the lag bound old.
    DurablePosition,
    /// A heartbeat says nothing about what was before a gap.
    HeartbeatAfterGap,
    /// On a live stream a later `prev` is a hole, which is read.
    HoleIsRead,
    /// On a live stream an older `prev` is another history.
    OtherHistory,
    /// After a loss every channel is read from the last id seen.
    ReadWhatWasMissed,
    /// What was seen counts after a loss only as far as a position confirms it.
    SeenIsConfirmed,
    /// All gaps are told before the recovered events.
    GapsFirst,
    /// What arrives by itself is not recovered too.
    RecoverUpToBound,
    /// What clients have read was seen.
    ReadIsSeen,
    /// A replay goes live only where the tails meet it.
    SeamMeetsTails,
    /// From the start: the first event that is retained is the channel's first.
    StartIsFirst,
    /// Before a replay goes live it is known of every channel whether it has ended.
    EndIsLookedUp,
    /// An end that was read counts when it has arrived: not before the last event.
    EndHasArrived,
    /// A client that has not had the ends of all its channels gets a stream.
    OverAtTheEnd,
    /// So does one whose cursor is not proven.
    OverIsProven,
}

impl Rule {
    /// Whether the rule is switched off, which only tests do.
    #[cfg(test)]
    pub(crate) fn is_off(self) -> bool {
        tests::OFF.get() == Some(self)
    }

    /// Whether the rule is switched off, which only tests do.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests look at it")]
    pub(crate) const fn is_off(self) -> bool {
        false
    }

    /// Switches a rule off for this thread, or all on.
    #[cfg(test)]
    #[allow(dead_code, reason = "for the exploration, which includes this module")]
    pub(crate) fn switch_off(rule: Option<Self>) {
        tests::OFF.set(rule);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        pub(super) static OFF: Cell<Option<Rule>> = const { Cell::new(None) };
    }
}
