//! Each rule is needed: without it the exploration finds what goes wrong.

use super::search::explore;
use super::worlds;
use crate::continuity::rules::Rule;

const RULES: [Rule; 20] = [
    Rule::CursorWasIssued, Rule::RedisRemembers, Rule::EventCounts, Rule::LagBound,
    Rule::ChannelGoesOn, Rule::YoungerThanTtl, Rule::ClockOfRedis, Rule::OldTtl, Rule::NotEvicted,
    Rule::DurablePosition, Rule::HeartbeatAfterGap, Rule::HoleIsRead, Rule::OtherHistory,
    Rule::ReadWhatWasMissed, Rule::SeenIsConfirmed, Rule::GapsFirst, Rule::RecoverUpToBound,
    Rule::ReadIsSeen, Rule::SeamMeetsTails, Rule::UnconfirmedCursor,
];

#[test]
#[ignore]
fn look_for_all() {
    for rule in RULES {
        Rule::switch_off(Some(rule));
        let mut hit = false;
        for setup in worlds::all() {
            let found = explore(&setup, 300_000);
            if let Some((fault, way)) = found.violation {
                println!("{rule:?} {} {} states, {} steps: {}", setup.name, found.states, way.len(), &fault[..fault.len().min(150)]);
                hit = true;
            }
        }
        if !hit { println!("{rule:?} NOT FOUND"); }
    }
}
