//! Each rule is needed: without it the exploration finds what goes wrong.

use super::search::explore;
use super::worlds;
use crate::continuity::rules::Rule;

const RULES: [Rule; 20] = [
    Rule::CursorWasIssued,
    Rule::RedisRemembers,
    Rule::EventCounts,
    Rule::LagBound,
    Rule::ChannelGoesOn,
    Rule::YoungerThanTtl,
    Rule::ClockOfRedis,
    Rule::OldTtl,
    Rule::NotEvicted,
    Rule::DurablePosition,
    Rule::HeartbeatAfterGap,
    Rule::HoleIsRead,
    Rule::OtherHistory,
    Rule::ReadWhatWasMissed,
    Rule::SeenIsConfirmed,
    Rule::GapsFirst,
    Rule::RecoverUpToBound,
    Rule::ReadIsSeen,
    Rule::SeamMeetsTails,
    Rule::UnconfirmedCursor,
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
                println!(
                    "{rule:?} {} {} states, {} steps: {}",
                    setup.name,
                    found.states,
                    way.len(),
                    &fault[..fault.len().min(150)]
                );
                hit = true;
            }
        }
        if !hit {
            println!("{rule:?} NOT FOUND");
        }
    }
}

#[test]
#[ignore]
fn look_for_stale() {
    use super::setup::{Budget, Setup};
    use crate::protocol::{Cursor, EventId};
    for (length, publishes, connects, losses, foreign) in [
        (1, 4, 1, 1, true),
        (1, 3, 2, 1, true),
        (1, 3, 2, 1, false),
        (2, 4, 2, 1, false),
        (1, 4, 2, 2, true),
    ] {
        let setup = Setup {
            stale_pages: true,
            length,
            foreign: if foreign {
                vec![Cursor::fresh(EventId::new(90, 0))]
            } else {
                Vec::new()
            },
            budget: Budget {
                publishes,
                connects,
                losses,
                flushes: 1,
                failovers: 0,
                ..Budget::default()
            },
            ..Setup::new("stale pages")
        };
        let found = explore(&setup, 1_000_000);
        println!(
            "{length} {publishes} {connects} {losses} {foreign}: {} {:?}",
            found.states, found.violation
        );
    }
}
