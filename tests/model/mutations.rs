//! Each rule is needed: without it the exploration finds what goes wrong.

use std::sync::Mutex;

use super::search::explore;
use super::worlds;
use crate::continuity::rules::Rule;

/// Far more than any of these searches needs.
const MAX_STATES: usize = 700_000;

/// A rule, the worlds to look in, the first in which its absence is noticed; and what is noticed.
const TABLE: [(Rule, &[&str], &str); 20] = [
    (
        Rule::CursorWasIssued,
        &["foreign_cursors"],
        "was never issued, and no gap is told",
    ),
    (
        Rule::RedisRemembers,
        &["flush_and_heartbeats"],
        "was never delivered",
    ),
    (
        Rule::EventCounts,
        &["failover_of_a_replica_that_came_later"],
        "follows events that were lost, without a gap",
    ),
    (
        Rule::LagBound,
        &["failover"],
        "follows events that were lost, without a gap",
    ),
    (
        Rule::ChannelGoesOn,
        &[
            "another_channel",
            "histories_are_trimmed_and_expire",
            "the_newest_events",
        ],
        "?",
    ),
    (
        Rule::YoungerThanTtl,
        &[
            "histories_are_trimmed_and_expire",
            "two_channels_and_expiry",
            "another_channel",
        ],
        "?",
    ),
    (
        Rule::ClockOfRedis,
        &[
            "another_channel",
            "histories_are_trimmed_and_expire",
            "two_channels_and_expiry",
        ],
        "?",
    ),
    (Rule::OldTtl, &["a_raised_ttl"], "?"),
    (Rule::NotEvicted, &["eviction"], "?"),
    (
        Rule::DurablePosition,
        &[
            "failover_with_vouched_cursors",
            "isolation_with_vouched_cursors",
            "restricted_events_and_failover",
        ],
        "?",
    ),
    (
        Rule::HeartbeatAfterGap,
        &[
            "flush_and_heartbeats",
            "flush_and_heartbeats_on_two_channels",
        ],
        "?",
    ),
    (
        Rule::HoleIsRead,
        &["isolation", "failover_between_replicas", "failover"],
        "?",
    ),
    (
        Rule::OtherHistory,
        &["flush", "flush_and_heartbeats", "failover_between_replicas"],
        "?",
    ),
    (
        Rule::ReadWhatWasMissed,
        &[
            "a_replica_that_is_behind",
            "flush",
            "a_client_on_two_channels",
        ],
        "?",
    ),
    (
        Rule::SeenIsConfirmed,
        &[
            "failover_between_replicas",
            "isolation",
            "failover_of_a_replica_that_came_later",
            "failover_with_vouched_cursors",
        ],
        "?",
    ),
    (
        Rule::GapsFirst,
        &[
            "the_newest_events",
            "two_channels_and_expiry",
            "failover_of_two_channels",
            "a_client_on_two_channels",
        ],
        "?",
    ),
    (
        Rule::RecoverUpToBound,
        &[
            "a_client_on_two_channels",
            "a_replica_that_is_behind",
            "flush",
        ],
        "?",
    ),
    (
        Rule::ReadIsSeen,
        &["failover_of_a_replica_that_came_later"],
        "follows events that were lost, without a gap",
    ),
    (
        Rule::SeamMeetsTails,
        &["failover_between_replicas"],
        "without a gap",
    ),
    (
        Rule::UnconfirmedCursor,
        &[
            "failover_with_vouched_cursors",
            "isolation_with_vouched_cursors",
            "failover",
            "restricted_events_and_failover",
        ],
        "?",
    ),
];

#[test]
fn every_rule_is_needed() {
    let waiting = Mutex::new(TABLE.to_vec());
    let missed = Mutex::new(Vec::new());
    let look = || {
        while let Some((rule, names, expected)) = { waiting.lock().unwrap().pop() } {
            Rule::switch_off(Some(rule));
            let mut seen = None;
            for name in names {
                let setup = worlds::all()
                    .into_iter()
                    .find(|setup| setup.name == *name)
                    .unwrap();
                let found = explore(&setup, MAX_STATES);
                println!(
                    "{rule:?} in {name}: {} states, {:?}",
                    found.states,
                    found.violation.as_ref().map(|(fault, way)| (
                        way.len(),
                        fault.chars().take(120).collect::<String>()
                    ))
                );
                seen = found.violation;
                if seen.is_some() {
                    break;
                }
            }
            if !seen.is_some_and(|(fault, _)| fault.contains(expected)) {
                missed.lock().unwrap().push(rule);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(look);
        look();
    });
    assert_eq!(missed.into_inner().unwrap(), []);
}
