//! What the shards count, added up.

use std::sync::Arc;

use prometheus::proto::MetricFamily;

use super::family::{counter, counters, counters_by, float, gauge, gauges, label, latencies};
use crate::hub::{
    CloseReason, Latencies, LatencyTotal, RefuseReason, RejectReason, ResumeOutcome, ResumeSource,
    ShardStats,
};
use crate::protocol::GapReason;
use crate::telemetry::DropReason;

type Read = fn(&ShardStats) -> u64;

/// Numbers that go up and down.
const GAUGES: [(&str, &str, Read); 5] = [
    ("fanfare_connections", "Open streams.", |shard| {
        shard.connections.get()
    }),
    (
        "fanfare_requests",
        "Requests that are being answered; open streams are not among them.",
        |shard| shard.requests.get(),
    ),
    (
        "fanfare_busy_answers",
        "Busy answers that have been sent and end within two seconds.",
        |shard| shard.busy_answers.get(),
    ),
    (
        "fanfare_channels",
        "Channels with interest, counted once a shard.",
        |shard| shard.channels.get(),
    ),
    (
        "fanfare_subscriptions",
        "Channels of open streams, counted once a stream.",
        |shard| shard.subscriptions.get(),
    ),
];

/// Numbers that only grow.
const COUNTERS: [(&str, &str, Read); 7] = [
    (
        "fanfare_connections_opened_total",
        "Streams opened.",
        |shard| shard.connections_opened.get(),
    ),
    (
        "fanfare_requests_with_ignored_parameters_total",
        "Requests for streams with unknown query parameters, which the answer names in Fanfare-Ignored.",
        |shard| shard.requests_with_ignored_parameters.get(),
    ),
    (
        "fanfare_ended_answers_total",
        "Streams answered with 204: all channels have ended, and the client has had the last event of each.",
        |shard| shard.ended_answers.get(),
    ),
    (
        "fanfare_accept_errors_total",
        "Failures to accept a connection: descriptors have run out, most likely.",
        |shard| shard.accept_errors.get(),
    ),
    (
        "fanfare_events_delivered_total",
        "Events written to streams, counted once a stream.",
        |shard| shard.events_delivered.get(),
    ),
    (
        "fanfare_sent_bytes_total",
        "Bytes written to streams, response heads included on HTTP/1.1.",
        |shard| shard.sent_bytes.get(),
    ),
    (
        "fanfare_heartbeats_total",
        "Heartbeats queued: for silent streams, and cursors that have moved.",
        |shard| shard.heartbeats.get(),
    ),
];

/// Numbers of each shard, which show whether the kernel spreads connections evenly.
const BY_SHARD: [(&str, &str, Read); 1] = [(
    "fanfare_shard_connections",
    "Open streams of each shard.",
    |shard| shard.connections.get(),
)];

/// Likewise, of those that only grow.
const COUNTERS_BY_SHARD: [(&str, &str, Read); 1] = [(
    "fanfare_shard_events_delivered_total",
    "Events written to the streams of each shard.",
    |shard| shard.events_delivered.get(),
)];

/// The shards of a replica.
#[derive(Clone, Debug)]
pub(super) struct Shards(Vec<Arc<ShardStats>>);

impl Shards {
    pub(super) fn new(shards: Vec<Arc<ShardStats>>) -> Self {
        Self(shards)
    }

    pub(super) fn sum(&self, read: impl Fn(&ShardStats) -> u64) -> u64 {
        self.0.iter().map(|shard| read(shard)).sum()
    }

    pub(super) fn latencies(&self, read: impl Fn(&ShardStats) -> &Latencies) -> LatencyTotal {
        let mut total = LatencyTotal::default();
        self.0
            .iter()
            .for_each(|shard| read(shard).add_to(&mut total));
        total
    }

    /// `dropped`: what the bus has dropped, for the family that both have a part in.
    pub(super) fn families(&self, dropped: impl Fn(DropReason) -> u64) -> Vec<MetricFamily> {
        let by_shard = |read: Read| {
            let value = |(number, shard): (usize, &Arc<ShardStats>)| {
                let labels = vec![label("shard", number.to_string())];
                (labels, float(read(shard)))
            };
            self.0.iter().enumerate().map(value).collect::<Vec<_>>()
        };
        let total = |read: Read| float(self.sum(read));
        let gauges_total = GAUGES.map(|(name, help, read)| gauge(name, help, total(read)));
        let counters_total = COUNTERS.map(|(name, help, read)| counter(name, help, total(read)));
        let gauges_each = BY_SHARD.map(|(name, help, read)| gauges(name, help, by_shard(read)));
        let counters_each =
            COUNTERS_BY_SHARD.map(|(name, help, read)| counters(name, help, by_shard(read)));
        let split = [
            counters_by(
                "fanfare_connections_closed_total",
                "Streams closed.",
                |reason: CloseReason| self.sum(|shard| shard.closed(reason)),
            ),
            counters_by(
                "fanfare_connections_rejected_total",
                "Streams that were refused or answered with retry-and-close, and connections closed before a request.",
                |reason: RejectReason| self.sum(|shard| shard.rejected(reason)),
            ),
            counters_by(
                "fanfare_requests_refused_total",
                "Requests refused before anything was done for them.",
                |reason: RefuseReason| self.sum(|shard| shard.refused(reason)),
            ),
            counters_by(
                "fanfare_gaps_total",
                "Gaps told to clients, counted once a client and channel.",
                |reason: GapReason| self.sum(|shard| shard.gaps(reason)),
            ),
            counters_by(
                "fanfare_resumes_total",
                "Streams opened with a cursor that could be read, by what came of it and where from.",
                |(outcome, source): (ResumeOutcome, ResumeSource)| {
                    self.sum(|shard| shard.resumes(outcome, source))
                },
            ),
            counters_by(
                "fanfare_events_dropped_total",
                "Events that did not reach a client they were meant for; no_audience once for each shard with clients of the channel and none who may have it.",
                |reason| match reason {
                    DropReason::NoAudience => self.sum(|shard| shard.events_without_audience.get()),
                    DropReason::SlowClient => {
                        self.sum(|shard| shard.events_dropped_slow_client.get())
                    }
                    reason => dropped(reason),
                },
            ),
            latencies(
                "fanfare_delivery_seconds",
                "From the publication of a kept event, by the clock of Redis, to its write to a stream; counted once a stream, replays left out.",
                &self.latencies(|shard| &shard.delivery),
            ),
            latencies(
                "fanfare_fanout_seconds",
                "From the arrival of an event to its last write to an HTTP/1.1 stream whose client was ready for it; counted once an event on each shard.",
                &self.latencies(|shard| &shard.fanout),
            ),
        ];
        let mut families = Vec::new();
        families.extend(gauges_total);
        families.extend(counters_total);
        families.extend(gauges_each);
        families.extend(counters_each);
        families.extend(split);
        families
    }
}
