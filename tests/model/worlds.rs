//! The small worlds that are explored.

use super::setup::{Budget, Setup};
use super::world::START_MS;
use crate::protocol::{Cursor, EventId};

fn id(ms: u64, n: u64) -> EventId {
    EventId::new(ms, n)
}

/// A list of setups.
macro_rules! worlds {
    ($($name:ident: { $($field:ident: $value:expr),* $(,)? } $budget:tt)*) => {
        /// Every world.
        pub(super) fn all() -> Vec<Setup> {
            vec![$(
                Setup {
                    $($field: $value,)*
                    budget: worlds!(budget $budget),
                    ..Setup::new(stringify!($name))
                },
            )*]
        }
    };
    (budget { $($field:ident: $value:expr),* $(,)? }) => {
        Budget { $($field: $value,)* ..Budget::default() }
    };
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
        { ticks: 1, publishes: 2, probes: 1, connects: 1, flushes: 1, losses: 1, tells: 1 }
    flush_and_heartbeats_on_two_channels: { channels: vec![0, 1], clients: vec![vec![0, 1]] }
        { publishes: 1, probes: 1, connects: 1, flushes: 1, losses: 1, tells: 1 }
    eviction: { evictable: true, before: 1 }
        { ticks: 2, publishes: 2, probes: 1, connects: 2, evictions: 1, losses: 1 }
    a_raised_ttl: { ttl: 3, before: 1 }
        { ticks: 6, publishes: 2, connects: 2, losses: 1, raises: 1, tells: 1 }
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
    ends: { ends: true, part_events: 1, page_events: 2, backfill_events: 1 }
        { ticks: 1, publishes: 3, connects: 3, losses: 1 }
    ends_before_a_replica_came: { ends: true, replicas: 2 }
        { publishes: 2, connects: 3 }
    ends_and_heartbeats: { ends: true, before: 1 }
        { ticks: 3, publishes: 2, probes: 1, connects: 2, tells: 1 }
    ends_and_expiry: { ends: true, length: 1, ttl: 4, before: 1 }
        { ticks: 5, publishes: 2, probes: 1, connects: 2 }
    ends_on_two_channels: { ends: true, channels: vec![0, 1], clients: vec![vec![0, 1]], part_events: 1 }
        { publishes: 3, connects: 2, losses: 1 }
    ends_and_failover: { ends: true, replicas: 2, connected: 2 }
        { publishes: 2, connects: 2, failovers: 1 }
    ends_and_isolation: { ends: true, replicas: 2, connected: 2, isolation: true }
        { publishes: 2, connects: 2, failovers: 1 }
    ends_that_are_restricted: { ends: true, restricts: true, newest: true, before: 1 }
        { publishes: 2, connects: 2, losses: 1 }
    ends_and_foreign_cursors: {
        ends: true, before: 1, foreign: vec![Cursor::new(id(500, 0), EventId::ZERO), Cursor::fresh(id(90, 0))],
    } { ticks: 1, publishes: 2, connects: 2, flushes: 1 }
    from_the_start: { from_start: true, ends: true, before: 1, part_events: 1, page_events: 2 }
        { publishes: 3, connects: 2, losses: 1 }
    from_the_start_of_two_channels: {
        from_start: true, channels: vec![0, 1], clients: vec![vec![0, 1]], length: 1, part_events: 1,
        page_events: 2, ttl: 4,
    } { ticks: 4, publishes: 2, connects: 2 }
    from_the_start_and_failover: { from_start: true, before: 1 }
        { ticks: 1, publishes: 2, connects: 2, failovers: 1 }
    ends_and_eviction: { ends: true, evictable: true, length: 1 }
        { ticks: 1, publishes: 3, connects: 3, evictions: 1 }
    a_replica_that_is_behind: { replicas: 2, connected: 1 }
        { publishes: 3, connects: 3, losses: 1 }
    holes: { channels: vec![0, 1], clients: vec![vec![0, 1]], backfill_events: 1 }
        { publishes: 4, connects: 1, losses: 1, drops: 1 }
    holes_and_flush: {} { ticks: 1, publishes: 3, connects: 2, flushes: 1, drops: 1 }
    holes_and_failover: {} { publishes: 3, connects: 2, failovers: 1, drops: 1 }
}
