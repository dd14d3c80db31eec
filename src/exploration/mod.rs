//! What is proven of kept events, explored in small worlds.
//!
//! Every order of everything that can happen in a world of one or two channels, replicas and
//! clients is gone through, with the code of [`crate::protocol::judge`], [`crate::hub::replay`],
//! [`crate::hub::tail`] and [`crate::bus::chain`] itself. What drives that code is modelled; so
//! whoever drives it in earnest must do as much:
//!
//! - A channel is active from the first id on that came after its subscription was acknowledged.
//! - After a reconnection all channels are subscribed, a probe comes back, every channel is
//!   backfilled up to that probe, and only then what has queued up behind it is handled. All gaps
//!   go before all recovered events. A page that has a gap before it replaces the earlier ones.
//! - Pages hold at least two events, or all there are.
//! - What was read for a client is of use only during the subscription in which it was asked for.
//!   It is noted in the chain of its channel ([`crate::bus::chain::seen_in`]).
//! - A new client begins like one that comes back with the position it is told.
//! - An event that is for others than the client is left out of what is sent to it, and moves its
//!   cursor no more than an id of another channel does.
//! - Of the gaps of a part only the last has an id; of a live stream none has.
//!
//! Not covered: histories deleted by hand, two failovers within one lag bound, a stream first
//! opened on an isolated primary, a hole in the middle of a connection.

mod actions;
mod client;
mod primary;
mod replica;
mod search;
mod setup;
mod streams;
mod world;

use search::explore;
use setup::{Budget, Setup};
use world::{START_MS, World};

use proptest::prelude::*;

use crate::protocol::{Cursor, EventId};

/// Beyond it a world is not small; the largest has a good part of it.
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
    assert!(!found.is_cut, "{}: too large", setup.name);
    if let Some((fault, way)) = found.violation {
        let way: Vec<_> = way.iter().map(|action| format!("  {action:?}")).collect();
        panic!("{}: {fault}\nafter\n{}", setup.name, way.join("\n"));
    }
}

/// Pages of an earlier subscription, used all the same: that this is found shows that the model
/// sees what it should.
#[test]
fn pages_of_an_earlier_subscription_are_of_no_use() {
    let setup = Setup {
        stale_pages: true,
        length: 1,
        foreign: vec![Cursor::fresh(id(90, 0))],
        budget: Budget {
            publishes: 3,
            connects: 1,
            losses: 1,
            ..Budget::default()
        },
        ..Setup::new("stale pages")
    };
    let found = explore(&setup, MOST_STATES);
    assert!(found.violation.is_some());
}

/// Ids that begin anew jump, which makes the last position from before look old enough.
#[test]
fn heartbeats_take_heed_of_gaps() {
    let setup = Setup {
        heedless_heartbeats: true,
        budget: Budget {
            publishes: 1,
            connects: 1,
            losses: 1,
            flushes: 1,
            probes: 1,
            tells: 1,
            ..Budget::default()
        },
        ..Setup::new("heedless heartbeats")
    };
    let found = explore(&setup, MOST_STATES);
    assert!(found.violation.is_some());
}

/// A test for each world.
macro_rules! worlds {
    ($($name:ident: { $($field:ident: $value:expr),* $(,)? } $budget:tt)*) => {$(
        #[test]
        fn $name() {
            check(&Setup {
                $($field: $value,)*
                budget: worlds!(budget $budget),
                ..Setup::new(stringify!($name))
            });
        }
    )*};
    (budget { $($field:ident: $value:expr),* $(,)? }) => {
        Budget { $($field: $value,)* ..Budget::default() }
    };
}

fn id(ms: u64, n: u64) -> EventId {
    EventId::new(ms, n)
}

worlds! {
    histories_are_trimmed_and_expire: {}
        { ticks: 6, publishes: 3, probes: 1, connects: 3, tells: 1 }
    a_client_on_two_channels: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1, page_events: 2, backfill_events: 1,
    } { ticks: 1, publishes: 3, connects: 3, losses: 1, tells: 1 }
    two_channels_and_expiry: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], length: 1, ttl: 4, before: 1,
    } { ticks: 5, publishes: 2, probes: 1, connects: 2, tells: 1 }
    another_channel: { channels: vec![0, 1], length: 1, ttl: 4 }
        { ticks: 5, publishes: 3, connects: 2, tells: 1 }
    failover: {}
        { ticks: 1, publishes: 3, probes: 1, connects: 2, failovers: 1 }
    failover_with_vouched_cursors: {
        ttl: 7, before: 1, before_ms: START_MS - 3, foreign: vec![Cursor::new(id(97, 0), id(100, 0))],
    } { ticks: 3, publishes: 2, probes: 1, connects: 2, failovers: 1, tells: 1 }
    failover_between_replicas: { replicas: 2, connected: 2 }
        { publishes: 3, connects: 2, failovers: 1 }
    failover_of_a_replica_that_came_later: { replicas: 2 }
        { publishes: 2, connects: 2, failovers: 1 }
    failover_of_two_channels: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1, page_events: 2, backfill_events: 1,
    } { ticks: 1, publishes: 3, connects: 2, failovers: 1 }
    isolation: { replicas: 2, connected: 2, isolation: true }
        { publishes: 3, connects: 2, failovers: 1 }
    isolation_with_vouched_cursors: { isolation: true }
        { ticks: 3, publishes: 2, probes: 2, connects: 2, failovers: 1, tells: 1 }
    flush: {}
        { ticks: 1, publishes: 3, connects: 2, flushes: 1, losses: 1 }
    flush_and_heartbeats: {}
        { publishes: 2, probes: 1, connects: 1, flushes: 1, losses: 1, tells: 1 }
    flush_and_heartbeats_on_two_channels: { channels: vec![0, 1], clients: vec![vec![0, 1]] }
        { publishes: 1, probes: 1, connects: 1, flushes: 1, losses: 1, tells: 1 }
    eviction: { evictable: true, before: 1 }
        { ticks: 2, publishes: 2, probes: 1, connects: 2, evictions: 1, losses: 1 }
    a_raised_ttl: { ttl: 3, before: 1 }
        { ticks: 6, publishes: 2, probes: 1, connects: 2, raises: 1, tells: 1 }
    foreign_cursors: {
        before: 1,
        foreign: vec![
            Cursor::new(id(500, 0), EventId::ZERO),
            Cursor::fresh(id(500, 0)),
            Cursor::fresh(id(1, 0)),
            Cursor::new(id(0, 0), EventId::ZERO),
            Cursor::new(id(99, 7), EventId::ZERO),
            Cursor::new(id(99, 0), EventId::ZERO),
            Cursor::new(id(90, 0), EventId::ZERO),
        ],
    } { ticks: 2, publishes: 2, probes: 1, connects: 2, losses: 1, tells: 1 }
    foreign_cursors_and_flush: {
        before: 1,
        foreign: vec![Cursor::new(id(500, 0), EventId::ZERO), Cursor::fresh(id(95, 0))],
    } { ticks: 1, publishes: 2, probes: 1, connects: 2, losses: 1, flushes: 1 }
    the_newest_events: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], newest: true, length: 1, before: 1,
        part_events: 1,
    } { publishes: 3, connects: 2, losses: 1 }
    the_newest_events_of_old_histories: { newest: true, length: 3, before: 1, ttl: 3 }
        { ticks: 5, publishes: 2, connects: 2, losses: 1 }
    reads_are_shared: {
        clients: vec![vec![0], vec![0]], shared_reads: true, reused_pages: true,
        part_events: 1, page_events: 2, backfill_events: 1,
    } { publishes: 3, connects: 4 }
    reads_are_shared_and_reused: {
        shared_reads: true, reused_pages: true, part_events: 1, page_events: 2, backfill_events: 1,
        channels: vec![0, 1], clients: vec![vec![0, 1]],
    } { publishes: 4, connects: 3 }
    restricted_events: { restricts: true, part_events: 1, page_events: 2, backfill_events: 1 }
        { ticks: 4, publishes: 3, probes: 1, connects: 2, tells: 1 }
    restricted_events_on_two_channels: {
        restricts: true, channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1,
        page_events: 2, backfill_events: 1,
    } { ticks: 1, publishes: 3, connects: 2, losses: 1, tells: 1 }
    restricted_events_and_failover: { restricts: true, part_events: 1, page_events: 2, backfill_events: 1 }
        { ticks: 3, publishes: 2, probes: 1, connects: 2, failovers: 1, tells: 1 }
    restricted_events_and_isolation: { restricts: true, replicas: 2, connected: 2, isolation: true }
        { publishes: 2, connects: 2, failovers: 1, tells: 1 }
    the_newest_of_restricted_events: { restricts: true, newest: true, length: 2, before: 1 }
        { ticks: 1, publishes: 3, connects: 2, losses: 1 }
    a_replica_that_is_behind: { replicas: 2, connected: 1 }
        { publishes: 3, connects: 3, losses: 1 }
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let sizes = (3..12u64, 1..6usize, 2..6usize, 1..4usize, 0..3usize);
    let flags = any::<(bool, bool, bool, bool, bool, bool)>();
    let events = (0..2u8, 0..3u8, 0..2u8, 0..2u8, 0..2u8);
    (sizes, flags, events).prop_map(|(sizes, flags, events)| {
        let (ttl, length, page_events, part_events, before) = sizes;
        let (evictable, isolation, shared_reads, reused_pages, newest, restricts) = flags;
        let (flushes, failovers, evictions, raises, foreign) = events;
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
            },
            foreign: match foreign {
                0 => Vec::new(),
                _ => vec![
                    Cursor::new(id(500, 0), EventId::ZERO),
                    Cursor::fresh(id(90, 0)),
                ],
            },
            newest,
            restricts,
            isolation,
            shared_reads,
            reused_pages,
            ..Setup::new("")
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Larger worlds: not everything that can happen there, but long stretches of it.
    #[test]
    fn larger_worlds(
        setup in any_setup(),
        choices in proptest::collection::vec(any::<proptest::sample::Index>(), 1..500),
    ) {
        let mut world = World::new(&setup);
        let mut way = Vec::new();
        for choice in choices {
            let actions = world.actions(&setup);
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
