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

const MOST_STATES: usize = 1_200_000;

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
        channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1, page_events: 2,
    } { ticks: 1, publishes: 3, connects: 3, losses: 1, tells: 1 }
    two_channels_and_expiry: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], length: 1, ttl: 4, before: 1,
    } { ticks: 5, publishes: 2, probes: 1, connects: 2, tells: 1 }
    another_channel: { channels: vec![0, 1], length: 1, ttl: 4 }
        { ticks: 5, publishes: 3, probes: 1, connects: 2, losses: 1, tells: 1 }
    failover: {}
        { ticks: 3, publishes: 3, probes: 1, connects: 2, failovers: 1, tells: 1 }
    failover_with_vouched_cursors: { before: 1, ttl: 6 }
        { ticks: 6, publishes: 2, probes: 2, connects: 2, failovers: 1, tells: 1 }
    failover_between_replicas: { replicas: 2, connected: 2 }
        { ticks: 1, publishes: 3, connects: 2, failovers: 1 }
    failover_of_two_channels: {
        channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1, page_events: 2,
    } { ticks: 1, publishes: 3, connects: 2, failovers: 1 }
    isolation: { replicas: 2, connected: 2, isolation: true }
        { ticks: 2, publishes: 3, connects: 2, failovers: 1, probes: 1, tells: 1 }
    flush: {}
        { ticks: 2, publishes: 3, probes: 1, connects: 3, flushes: 1, losses: 1, tells: 1 }
    eviction: { evictable: true, before: 1 }
        { ticks: 3, publishes: 3, probes: 1, connects: 3, evictions: 1, losses: 1, tells: 1 }
    a_raised_ttl: { ttl: 3, before: 1 }
        { ticks: 7, publishes: 2, probes: 1, connects: 3, raises: 1, tells: 1, losses: 1 }
    foreign_cursors: {
        before: 1,
        foreign: vec![
            Cursor::new(id(500, 0), EventId::ZERO),
            Cursor::fresh(id(500, 0)),
            Cursor::fresh(id(1, 0)),
            Cursor::new(id(0, 0), EventId::ZERO),
            Cursor::new(id(99, 7), EventId::ZERO),
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
        { ticks: 6, publishes: 3, connects: 2, losses: 1 }
    reads_are_shared: {
        clients: vec![vec![0], vec![0]], shared_reads: true, reused_pages: true,
        part_events: 1, page_events: 2,
    } { publishes: 3, connects: 4 }
    reads_are_shared_and_reused: {
        shared_reads: true, reused_pages: true, part_events: 1, page_events: 2,
        channels: vec![0, 1], clients: vec![vec![0, 1]],
    } { publishes: 4, connects: 3 }
    a_replica_that_is_behind: { replicas: 2, connected: 1 }
        { ticks: 1, publishes: 4, connects: 3, losses: 1 }
}
