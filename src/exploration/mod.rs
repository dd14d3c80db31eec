//! What is proven of kept events, explored in small worlds.
//!
//! Every order of everything that can happen in a world of one or two channels, replicas and
//! clients is gone through, with the code of [`crate::protocol::judge`], [`crate::hub::replay`],
//! [`crate::hub::tail`] and [`crate::bus::chain`] itself.

mod client;
mod primary;
mod replica;
mod search;
mod world;

use search::explore;
use world::{Budget, Setup};

use crate::protocol::{Cursor, EventId};

const MOST_STATES: usize = 3_000_000;

fn check(setup: &Setup) {
    let begin = std::time::Instant::now();
    let found = explore(setup, MOST_STATES);
    println!(
        "{}: {} states, depth {}, cut: {}, {:?}",
        setup.name,
        found.states,
        found.depth,
        found.is_cut,
        begin.elapsed()
    );
    if let Some((fault, way)) = found.violation {
        let way: Vec<_> = way.iter().map(|action| format!("  {action:?}")).collect();
        panic!("{}: {fault}\nafter\n{}", setup.name, way.join("\n"));
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new("")
    }
}

#[test]
fn histories_are_trimmed_and_expire() {
    check(&Setup {
        name: "trim and expiry",
        budget: Budget {
            ticks: 6,
            publishes: 3,
            probes: 1,
            connects: 3,
            tells: 1,
            ..Budget::default()
        },
        ..Setup::default()
    });
}

#[test]
fn failover() {
    check(&Setup {
        name: "failover",
        replicas: 1,
        budget: Budget {
            ticks: 4,
            publishes: 3,
            probes: 1,
            connects: 3,
            failovers: 1,
            tells: 1,
            ..Budget::default()
        },
        ..Setup::default()
    });
}

#[test]
fn foreign_cursors() {
    let id = EventId::new;
    check(&Setup {
        name: "foreign cursors",
        foreign: vec![
            Cursor::new(id(500, 0), EventId::ZERO),
            Cursor::fresh(id(500, 0)),
            Cursor::fresh(id(1, 0)),
            Cursor::new(id(99, 7), EventId::ZERO),
            Cursor::new(id(90, 0), EventId::ZERO),
        ],
        before: 1,
        budget: Budget {
            ticks: 2,
            publishes: 2,
            probes: 1,
            connects: 2,
            losses: 1,
            tells: 1,
            ..Budget::default()
        },
        ..Setup::default()
    });
}
