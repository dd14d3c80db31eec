//! Each rule is needed: without it the exploration finds what goes wrong.

use std::sync::Mutex;

use super::search::explore;
use super::worlds;
use crate::continuity::rules::Rule;

/// More than any of these searches needs.
const MAX_STATES: usize = 1_000_000;

const LOST: &str = "follows events that were lost, without a gap";
const NEVER: &str = "was never delivered";
const MISSING: &str = "without a gap";
const NEEDLESS: &str = "which is proven";

/// A rule, the world in which its absence shows, and how. The numbers are those of the rules in
/// `docs/protocol.md`, section "What is proven".
const TABLE: [(Rule, &str, &str); 24] = [
    // 1
    (
        Rule::CursorWasIssued,
        "foreign_cursors",
        "was never issued, and no gap is told",
    ),
    // 2
    (Rule::RedisRemembers, "flush", NEVER),
    // 3
    (
        Rule::EventCounts,
        "failover_of_a_replica_that_came_later",
        LOST,
    ),
    (Rule::LagBound, "failover", LOST),
    // 4
    (Rule::ChannelGoesOn, "another_channel", MISSING),
    (
        Rule::YoungerThanTtl,
        "histories_are_trimmed_and_expire",
        MISSING,
    ),
    (Rule::ClockOfRedis, "another_channel", MISSING),
    (Rule::OldTtl, "a_raised_ttl", NEVER),
    (Rule::NotEvicted, "eviction", NEVER),
    // Positions are made so that rule 3 holds.
    (
        Rule::DurablePosition,
        "isolation_with_vouched_cursors",
        LOST,
    ),
    (
        Rule::HeartbeatAfterGap,
        "flush_and_heartbeats",
        "a heartbeat with",
    ),
    (
        Rule::SeenIsConfirmed,
        "isolation_with_vouched_cursors",
        LOST,
    ),
    (
        Rule::ReadIsSeen,
        "failover_of_a_replica_that_came_later",
        LOST,
    ),
    // On a live stream.
    (Rule::HoleIsRead, "holes", MISSING),
    (Rule::OtherHistory, "holes_and_flush", MISSING),
    // After Redis was away.
    (Rule::ReadWhatWasMissed, "a_replica_that_is_behind", NEVER),
    (Rule::RecoverUpToBound, "a_client_on_two_channels", MISSING),
    (Rule::GapsFirst, "the_newest_events", NEEDLESS),
    // Where a replay joins the live events.
    (Rule::SeamMeetsTails, "failover_between_replicas", MISSING),
    // From the start.
    (Rule::StartIsFirst, "from_the_start", MISSING),
    // Where channels end.
    (
        Rule::EndIsLookedUp,
        "ends_before_a_replica_came",
        "all channels have ended",
    ),
    (Rule::EndHasArrived, "ends", "comes before"),
    (Rule::OverAtTheEnd, "ends", "is over"),
    (Rule::OverIsProven, "ends_and_foreign_cursors", "is over"),
];

#[test]
fn every_rule_is_needed() {
    let waiting = Mutex::new(TABLE.to_vec());
    let wrong = Mutex::new(Vec::new());
    let look = || {
        while let Some((rule, name, expected)) = { waiting.lock().unwrap().pop() } {
            Rule::switch_off(Some(rule));
            let mut all = worlds::all().into_iter();
            let setup = all.find(|setup| setup.name == name).unwrap();
            let found = explore(&setup, MAX_STATES);
            let fault = found.violation.map(|(fault, way)| (way.len(), fault));
            println!(
                "without {rule:?}, {name}: {} states, {fault:?}",
                found.states
            );
            if !fault.is_some_and(|(_, fault)| fault.contains(expected)) {
                wrong.lock().unwrap().push(rule);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(look);
        }
        look();
    });
    assert_eq!(wrong.into_inner().unwrap(), []);
}
