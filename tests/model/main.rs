//! What is proven of kept events, explored in small worlds.
//!
//! Every order of everything that can happen in a world of one or two channels, replicas and
//! clients is gone through. The code of [`continuity`] itself runs there: the [`continuity::Feed`]
//! that the Redis driver and the embedded bus run, the replays, the tails. It is included here by
//! its path, so that one rule at a time can be switched off (`mutations.rs`).
//!
//! Modelled are Redis (`primary.rs`), the clients, and the parts of the gateway that only carry:
//!
//! - A driver that does what `continuity/feed.rs` asks of one.
//! - A shard that keeps tails and positions, and tells its clients.
//! - Pages for clients hold at least two events, or all there are; those of a recovery at least one.
//! - What was read for a client is of use only during the subscription in which it was asked for.
//! - A new client begins like one that comes back with the position it is told.
//! - An event that is for others than the client is left out of what is sent to it, and moves its
//!   cursor no more than an id of another channel does.
//! - Of the gaps of a part only the last has an id; of a live stream none has.
//! - A channel may end, also with an event that is for others than the client. Nothing is published to
//!   it while it is kept.
//!
//! Not covered: histories deleted by hand, two failovers within one lag bound, a stream first
//! opened on an isolated primary, live events, a message that a subscription loses before it has
//! brought any event of its channel, a channel whose end was evicted or flushed and comes back by a failover.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]
#![expect(clippy::print_stdout, reason = "how large the worlds are")]

mod actions;
mod client;
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the gateway uses more of it than a model does"
)]
#[path = "../../src/continuity/mod.rs"]
mod continuity;
mod mutations;
mod primary;
mod replica;
mod search;
mod setup;
mod streams;
mod world;
mod worlds;

use std::sync::Mutex;

use fanfare::protocol;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use search::explore;
use setup::{Budget, Setup};
use world::World;

use crate::protocol::{Cursor, EventId};

/// Beyond it a world is not small; the largest has a good part of it.
const MAX_STATES: usize = 3_000_000;

/// Of so many worlds `cargo test` explores one; the feature `long-tests` has all explored.
const SHARE: usize = if cfg!(feature = "long-tests") { 1 } else { 3 };

#[test]
fn nothing_is_missed_in_any_world() {
    let begin = std::time::Instant::now();
    let all = worlds::all();
    let count = all.len();
    let chosen: Vec<_> = all.into_iter().step_by(SHARE).collect();
    let worlds = chosen.len();
    let waiting = Mutex::new(chosen);
    let states = Mutex::new(0);
    let explore_some = || {
        while let Some(setup) = { waiting.lock().unwrap().pop() } {
            *states.lock().unwrap() += check(&setup);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(explore_some);
        }
        explore_some();
    });
    println!(
        "{worlds} of {count} worlds, {} states, {:?}",
        states.into_inner().unwrap(),
        begin.elapsed()
    );
}

fn check(setup: &Setup) -> usize {
    let begin = std::time::Instant::now();
    let found = explore(setup, MAX_STATES);
    println!(
        "{}: {} states, depth {}, cut: {}, {:?}",
        setup.name,
        found.states,
        found.depth,
        found.is_cut,
        begin.elapsed()
    );
    assert!(!found.is_cut, "{}: too large", setup.name);
    if let Some((fault, way)) = found.violation {
        let way: Vec<_> = way.iter().map(|action| format!("  {action:?}")).collect();
        panic!("{}: {fault}\nafter\n{}", setup.name, way.join("\n"));
    }
    found.states
}

/// Pages of an earlier subscription, used all the same: that this is found shows that the model
/// sees what it should.
#[test]
fn pages_of_an_earlier_subscription_are_of_no_use() {
    let setup = Setup {
        stale_pages: true,
        length: 1,
        foreign: vec![Cursor::fresh(EventId::new(90, 0))],
        budget: Budget {
            publishes: 3,
            connects: 1,
            losses: 1,
            failovers: 1,
            ..Budget::default()
        },
        ..Setup::new("stale pages")
    };
    let found = explore(&setup, MAX_STATES);
    assert!(found.violation.is_some());
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let sizes = (3..12u64, 1..6usize, 2..6usize, 1..4usize, 0..3usize);
    let flags = any::<(bool, bool, bool, bool, bool, bool)>();
    let events = (0..2u8, 0..3u8, 0..2u8, 0..2u8, 0..2u8, 0..2u8);
    (sizes, flags, events).prop_map(|(sizes, flags, events)| {
        let (ttl, length, page_events, part_events, before) = sizes;
        let (evictable, isolation, shared_reads, reused_pages, newest, restricts) = flags;
        let (flushes, failovers, evictions, raises, foreign, ends) = events;
        Setup {
            ttl,
            length,
            evictable,
            clients: vec![vec![0, 1], vec![0], vec![1, 0]],
            channels: vec![0, 1],
            replicas: 2,
            connected: 1,
            page_events,
            part_events,
            backfill_events: part_events,
            before,
            budget: Budget {
                ticks: 60,
                publishes: 60,
                probes: 60,
                connects: 60,
                losses: 6,
                failovers,
                flushes,
                evictions: if evictable { evictions } else { 0 },
                raises: if flushes == 0 { raises } else { 0 },
                tells: 60,
                // The small worlds have these.
                drops: 0,
            },
            foreign: match foreign {
                0 => Vec::new(),
                _ => vec![
                    Cursor::new(EventId::new(500, 0), EventId::ZERO),
                    Cursor::fresh(EventId::new(90, 0)),
                ],
            },
            newest,
            restricts,
            // Not where a failover can bring back what was removed before.
            ends: ends == 1 && (failovers == 0 || flushes == 0 && evictions == 0),
            isolation,
            shared_reads,
            reused_pages,
            ..Setup::new("")
        }
    })
}

fn seed() -> RngSeed {
    if cfg!(feature = "long-tests") {
        RngSeed::Random
    } else {
        RngSeed::Fixed(1)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        rng_seed: seed(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Larger worlds: not everything that can happen there, but long stretches of it. `make test` always draws the
    /// same ones, `make test-faults` others each time.
    #[test]
    fn larger_worlds(
        setup in any_setup(),
        choices in proptest::collection::vec(any::<proptest::sample::Index>(), 1..500),
    ) {
        let mut world = World::new(&setup);
        let mut way = Vec::new();
        for choice in choices {
            let actions = world.actions(&setup);
            if actions.is_empty() {
                // Every client knows that nothing comes.
                break;
            }
            let action = actions[choice.index(actions.len())];
            match world.after(&setup, action) {
                Ok(None) => {}
                Ok(Some(next)) => {
                    way.push(action);
                    world = next;
                }
                Err(fault) => {
                    way.push(action);
                    prop_assert!(false, "{fault}\nafter {way:?}");
                }
            }
        }
    }
}
