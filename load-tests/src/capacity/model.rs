//! The model: what a number of connections and events needs, from what one of each was measured to.
//!
//! Everything is linear, and that is the finding of `docs/benchmarks.md`: a stream, a delivery and a push from
//! Redis cost the same whether there are many or few of them, up to the limits listed here. Only what the
//! replicas ask each other grows with their square.

use serde::Serialize;

/// What one of each costs. The source of every figure is in `docs/scaling.md`.
pub(super) struct Costs {
    /// A stream in a replica's process.
    pub(super) process_bytes: f64,
    /// The kernel's part of an idle stream: socket, file, epoll entry.
    pub(super) kernel_bytes: f64,
    /// A replica without streams.
    pub(super) replica_bytes: f64,
    /// Recent events of a replica, at most (`TAIL_BYTES` in `src/config/mod.rs`).
    pub(super) tail_bytes: f64,
    /// A stream in nginx, which ends TLS.
    pub(super) nginx_bytes: f64,
    /// A replica's processor time: an event written to one stream, alone.
    pub(super) delivery_seconds: f64,
    /// A replica's processor time: an event received from Redis and handed to a shard.
    pub(super) receive_seconds: f64,
    /// Redis' processor time: taking one kept event.
    pub(super) publish_seconds: f64,
    /// Redis' processor time: passing an event on to one replica, in a write of its own. So it is while
    /// Redis is done with one event before the next comes.
    pub(super) push_alone_seconds: f64,
    /// The same for an event that shares its write with those before it: the least a push can come to,
    /// when Redis has no time to spare or events are published together.
    pub(super) push_together_seconds: f64,
    /// Redis' processor time, where clients have limits (`src/bus/redis/tally.rs`): one replica asks it of
    /// another, when a stream opens.
    pub(super) exchange_seconds: f64,
    /// The same for each client that it asks for: whoever has opened a stream.
    pub(super) asked_client_seconds: f64,
    /// How long a stream lasts: `FANFARE_MAX_CONNECTION_AGE` of `k8s/overlays/prod`, three quarters of it.
    pub(super) stream_seconds: f64,
    /// Connections that one shard accepts and answers a second.
    pub(super) connects_per_second: f64,
    /// What stands around an event's data on a stream: `id:` and `data:` lines, chunk, TCP and IP.
    pub(super) stream_overhead_bytes: f64,
    /// The same on the way from Redis to a replica; a batch shares its packets.
    pub(super) push_overhead_bytes: f64,
    /// `FANFARE_HEARTBEAT`.
    pub(super) heartbeat_seconds: f64,
}

/// Exchanges of one replica, where clients have limits: `GATHER` of `src/http/limits/share.rs`.
const MOST_EXCHANGES_PER_SECOND: f64 = 20.0;

pub(super) const MEASURED: Costs = Costs {
    process_bytes: 1.08 * 1024.0,
    kernel_bytes: 3.9 * 1024.0,
    replica_bytes: 17.0 * MIB,
    tail_bytes: 64.0 * MIB,
    nginx_bytes: 38.0 * 1024.0,
    delivery_seconds: 6.3e-6,
    receive_seconds: 8.2e-6,
    publish_seconds: 23.4e-6,
    push_alone_seconds: 4.4e-6,
    push_together_seconds: 0.25e-6,
    exchange_seconds: 1.0e-6,
    asked_client_seconds: 0.23e-6,
    stream_seconds: 2_700.0,
    connects_per_second: 21_000.0,
    stream_overhead_bytes: 110.0,
    push_overhead_bytes: 60.0,
    heartbeat_seconds: 15.0,
};

const MIB: f64 = 1024.0 * 1024.0;
pub(super) const GIB: f64 = 1024.0 * MIB;

/// Of a core and of a link, the share that is used in the ordinary hour: the rest is for a replica's
/// loss, and for the storm that follows.
const USED: f64 = 0.5;

/// A core of a replica reads from Redis alone; shards do the rest.
const REDIS_CORES: f64 = 1.0;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    pub(super) connections: f64,
    /// Published a second, over all channels.
    pub(super) events_per_second: f64,
    /// What one connection receives a second, on average.
    pub(super) received_per_second: f64,
    /// An event's data.
    pub(super) event_bytes: f64,
    /// Shards of a replica, one core each.
    pub(super) shards: f64,
    /// Streams of a replica, at most.
    pub(super) connections_a_replica: f64,
    /// Of a machine, bits a second.
    pub(super) link_bits_per_second: f64,
    /// `FANFARE_MAX_CONNECTIONS_PER_IP` or `_PER_SUBJECT` is set, so that replicas tell each other what
    /// they count.
    pub(super) client_limits: bool,
}

/// What decides how many replicas there are, or that there cannot be enough of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    /// `--connections-a-replica`: descriptors, ports, and how many streams one loss may cut.
    StreamsOfAReplica,
    /// The shards' cores.
    Deliveries,
    /// A replica's link.
    Link,
    /// Receiving every event fills a replica before it has delivered any.
    EventsOfAReplica,
}

impl Limit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StreamsOfAReplica => "streams of a replica",
            Self::Deliveries => "deliveries, cores",
            Self::Link => "a replica's link",
            Self::EventsOfAReplica => "events: each reaches every replica",
        }
    }
}

/// What it takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Plan {
    pub(super) connections: f64,
    pub(super) replicas: f64,
    pub(super) decided_by: Limit,
    /// That are busy, of replicas.
    pub(super) busy_cores: f64,
    /// That are there, of replicas.
    pub(super) cores: f64,
    /// Of replicas, the kernel's part and recent events included.
    pub(super) memory_bytes: f64,
    pub(super) nginx_memory_bytes: f64,
    /// To clients.
    pub(super) client_bits_per_second: f64,
    /// From Redis: events x replicas.
    pub(super) redis_bits_per_second: f64,
    /// Cores of Redis with every event in writes of its own. One primary has one: above that, events share
    /// writes until they fit.
    pub(super) redis_alone_cores: f64,
    /// The same with all writes shared: what decides how many primaries there are.
    pub(super) redis_together_cores: f64,
    pub(super) redis_primaries: f64,
    /// Everybody comes back at once: how long the replicas accept.
    pub(super) reconnect_seconds: f64,
}

pub(super) fn plan(costs: &Costs, demand: &Demand) -> Plan {
    let connections = demand.connections;
    let deliveries = connections * demand.received_per_second;
    // A silent stream is written to once a heartbeat; one that receives more often is not.
    let quiet = (1.0 / costs.heartbeat_seconds - demand.received_per_second).max(0.0);
    let heartbeats = connections * quiet;
    let delivering = (deliveries + heartbeats) * costs.delivery_seconds;
    let client_bits = 8.0
        * (deliveries * (demand.event_bytes + costs.stream_overhead_bytes)
            + heartbeats * costs.stream_overhead_bytes);

    // Every event reaches every replica, on one thread of its own.
    let receiving = demand.events_per_second * costs.receive_seconds;
    let event_bits =
        8.0 * demand.events_per_second * (demand.event_bytes + costs.push_overhead_bytes);
    let link_left = demand.link_bits_per_second * USED - event_bits;
    let can_receive = receiving <= USED * REDIS_CORES && link_left > 0.0;

    let (replicas, decided_by) = [
        (
            connections / demand.connections_a_replica,
            Limit::StreamsOfAReplica,
        ),
        (delivering / (demand.shards * USED), Limit::Deliveries),
        (client_bits / link_left.max(1.0), Limit::Link),
    ]
    .into_iter()
    .max_by(|one, other| one.0.total_cmp(&other.0))
    .unwrap_or((1.0, Limit::StreamsOfAReplica));
    // One more than is needed: it may be missing, in a rollout or after a loss. Three at least.
    let replicas = (replicas.ceil() + 1.0).max(3.0);

    let redis_bits = event_bits * replicas;
    // Each replica asks for what each other counts of those that come to it, at most so often.
    let exchanging = if demand.client_limits {
        let opened = connections / costs.stream_seconds;
        let asking = opened.min(replicas * MOST_EXCHANGES_PER_SECOND);
        let of_each_other = asking * costs.exchange_seconds + opened * costs.asked_client_seconds;
        (replicas - 1.0) * of_each_other
    } else {
        0.0
    };
    let redis_cores = |push_seconds| {
        demand.events_per_second * (costs.publish_seconds + replicas * push_seconds) + exchanging
    };
    let redis_together_cores = redis_cores(costs.push_together_seconds);
    let redis =
        (redis_together_cores / USED).max(redis_bits / (demand.link_bits_per_second * USED));
    Plan {
        connections,
        replicas,
        decided_by: if can_receive {
            decided_by
        } else {
            Limit::EventsOfAReplica
        },
        busy_cores: delivering + replicas * receiving,
        cores: replicas * (demand.shards + REDIS_CORES),
        memory_bytes: connections * (costs.process_bytes + costs.kernel_bytes)
            + replicas * (costs.replica_bytes + costs.tail_bytes),
        nginx_memory_bytes: connections * costs.nginx_bytes,
        client_bits_per_second: client_bits,
        redis_bits_per_second: redis_bits,
        redis_alone_cores: redis_cores(costs.push_alone_seconds),
        redis_together_cores,
        redis_primaries: redis.ceil().max(1.0),
        reconnect_seconds: connections / (replicas * demand.shards * costs.connects_per_second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(connections: f64) -> Demand {
        Demand {
            connections,
            events_per_second: 1_000.0,
            received_per_second: 0.1,
            event_bytes: 100.0,
            shards: 1.0,
            connections_a_replica: 12_000.0,
            link_bits_per_second: 10e9,
            client_limits: false,
        }
    }

    /// "A crowd": 100,000 connections over six replicas on one core, an event a second each; in
    /// docs/benchmarks.md 0.97 cores, and 164.2 MiB of processes.
    #[test]
    fn the_run_of_100_000_connections_is_roughly_what_the_model_says() {
        let crowd = Demand {
            events_per_second: 1.0,
            received_per_second: 1.0,
            shards: 1.0,
            connections_a_replica: 20_000.0,
            ..demand(100_000.0)
        };
        // The kernel's memory was not counted in that run, and there was nothing recent to keep. The program
        // itself, 6.4 MiB, is there once for all six.
        let costs = Costs {
            kernel_bytes: 0.0,
            tail_bytes: 0.0,
            replica_bytes: MEASURED.replica_bytes - 6.4 * MIB * 5.0 / 6.0,
            ..MEASURED
        };
        let plan = plan(&costs, &crowd);
        assert_eq!(plan.busy_cores.floor(), 0.0);
        assert!((plan.busy_cores / 0.97 - 1.0).abs() < 0.4, "{plan:?}");
        let streams = plan.memory_bytes - plan.replicas * costs.replica_bytes;
        let memory = streams + 6.0 * costs.replica_bytes;
        assert!((memory / (164.2 * MIB) - 1.0).abs() < 0.15, "{memory}");
    }

    #[test]
    fn what_is_asked_for_grows_what_it_takes() {
        let plans = [1e5, 1e6, 1e7, 1e8].map(|many| plan(&MEASURED, &demand(many)));
        for pair in plans.windows(2) {
            assert!(pair[0].replicas < pair[1].replicas);
            assert!(pair[0].memory_bytes < pair[1].memory_bytes);
            assert!(pair[0].redis_bits_per_second < pair[1].redis_bits_per_second);
            assert!(pair[0].redis_primaries <= pair[1].redis_primaries);
        }
        assert!(plans[0].replicas >= 3.0);
        assert_eq!(plans[0].redis_primaries, 1.0);
        assert!(plans[0].redis_alone_cores > plans[0].redis_together_cores);
    }

    #[test]
    fn what_replicas_ask_each_other_grows_with_their_square() {
        let redis_cores = |connections, client_limits| {
            let asked = Demand {
                client_limits,
                events_per_second: 0.0,
                ..demand(connections)
            };
            plan(&MEASURED, &asked).redis_together_cores
        };
        assert_eq!(redis_cores(1.2e6, false), 0.0);
        let (hundred, thousand) = (redis_cores(1.2e6, true), redis_cores(1.2e7, true));
        assert!((thousand / hundred / 100.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn events_that_fill_a_replica_alone_are_told() {
        let flood = Demand {
            events_per_second: 1e6,
            ..demand(1e6)
        };
        assert_eq!(plan(&MEASURED, &flood).decided_by, Limit::EventsOfAReplica);
        let busy = Demand {
            received_per_second: 100.0,
            ..demand(1e6)
        };
        assert_eq!(plan(&MEASURED, &busy).decided_by, Limit::Deliveries);
    }
}
