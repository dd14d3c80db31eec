//! What a shard counts. One thread writes; any thread reads when metrics are scraped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::labels::{Labels, labels};
use crate::protocol::GapReason;

labels! { "reason":
    /// Why a stream ended.
    pub enum CloseReason {
        /// The client closed it, or its connection broke.
        Client,
        /// The client was slower than its mailbox could hold.
        SlowClient,
        /// The client took nothing for so long that the kernel gave it up.
        Unresponsive,
        /// The replica is being stopped.
        Drain,
        /// It was open for long enough.
        Age,
        /// The client's token has expired.
        Expired,
        /// The client's token, or all of its subject, was revoked.
        Revoked,
        /// All of its channels have ended.
        Ended,
        /// A part may be missing, which its client could not see.
        Incomplete,
    }
}

labels! { "reason":
    /// Why a stream was not opened.
    pub enum RejectReason {
        /// The replica has all the streams it can hold.
        Limit,
        /// The replica is being stopped.
        Draining,
        /// The channels did not become active in time.
        BusUnavailable,
        /// The request's head was malformed, too large, or did not come in time.
        RequestHead,
        /// Who asks may not read it: no token, a wrong one, another's.
        Denied,
        /// Nobody could tell: keys or tickets were not to be had.
        Undecided,
        /// The address has all it may have.
        Address,
        /// The subject has all it may have.
        Subject,
        /// The address asks too often.
        Rate,
        /// There was no header of the PROXY protocol, or it came from nobody who may send one.
        ProxyHeader,
    }
}

labels! { "reason":
    /// Why a request was refused before anything was done for it.
    pub enum RefuseReason {
        /// Its head can be read in more than one way, or names no host.
        Malformed,
        /// It is addressed to another host.
        Host,
        /// A page of a foreign site asks.
        Origin,
        /// Its client publishes too often.
        PublishRate,
        /// Its client draws too many tickets.
        TicketRate,
    }
}

labels! { "outcome":
    /// What became of a cursor.
    pub enum ResumeOutcome {
        /// Nothing was missed.
        Complete,
        /// The client was told of a gap.
        Gap,
    }
}

labels! { "source":
    /// Where what a client missed came from.
    pub enum ResumeSource {
        /// This replica had all of it.
        Tail,
        /// History was read.
        History,
    }
}

impl Labels for GapReason {
    const COUNT: usize = Self::ALL.len();

    fn names() -> Vec<&'static str> {
        vec!["reason"]
    }

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(self) -> Vec<&'static str> {
        vec![self.label()]
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// A count that only grows. One writer: a plain load and store, so no locked instruction stands on
/// the delivery path.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. To be called by the owning thread only: a second writer would lose counts.
    pub fn add(&self, amount: u64) {
        self.0
            .store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls. One writer, like [`Counter`].
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Raises it by `amount`.
    pub fn add(&self, amount: u64) {
        self.0
            .store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }

    /// Lowers it by `amount`.
    pub fn sub(&self, amount: u64) {
        self.0
            .store(self.get().saturating_sub(amount), Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Raises it by one for as long as what is returned lives.
    pub fn hold(&self) -> Held<'_> {
        self.add(1);
        Held(self)
    }
}

/// One of what a [`Gauge`] counts.
#[derive(Debug)]
pub struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

/// The upper bounds of [`Latencies`], in microseconds: each about half as much again as the one
/// before, with 250 ms, the objective of `docs/operations.md`, among them.
pub const LATENCY_BOUNDS_US: [u64; 28] = [
    100, 250, 500, 1_000, 1_500, 2_500, 3_500, 5_000, 7_500, 10_000, 15_000, 25_000, 35_000,
    50_000, 75_000, 100_000, 150_000, 250_000, 350_000, 500_000, 750_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 15_000_000, 20_000_000, 30_000_000,
];

/// How long something took, each time. One writer, like [`Counter`].
#[derive(Debug, Default)]
pub struct Latencies {
    /// Those up to each bound and above the one before.
    buckets: [Counter; LATENCY_BOUNDS_US.len()],
    /// Those above the last bound.
    over: Counter,
    sum_us: Counter,
}

impl Latencies {
    /// Counts `times` occurrences that took so long.
    pub fn add(&self, took: Duration, times: u64) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < took_us);
        self.buckets.get(bucket).unwrap_or(&self.over).add(times);
        self.sum_us.add(took_us.saturating_mul(times));
    }

    /// Adds what was counted here to `total`.
    pub fn add_to(&self, total: &mut LatencyTotal) {
        for (sum, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.get();
        }
        total.over += self.over.get();
        total.sum_us = total.sum_us.wrapping_add(self.sum_us.get());
    }
}

/// The [`Latencies`] of all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyTotal {
    /// Those up to each of [`LATENCY_BOUNDS_US`] and above the one before.
    pub buckets: [u64; LATENCY_BOUNDS_US.len()],
    /// Those above the last bound.
    pub over: u64,
    /// What all took together.
    pub sum_us: u64,
}

/// Counts by labels.
#[derive(Debug)]
struct Counts<const N: usize>([Counter; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Counts<N> {
    fn add(&self, labels: impl Labels, amount: u64) {
        if let Some(counter) = self.0.get(labels.place()) {
            counter.add(amount);
        }
    }

    fn get(&self, labels: impl Labels) -> u64 {
        self.0.get(labels.place()).map_or(0, Counter::get)
    }
}

/// The counts of one shard, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardStats {
    /// Open streams.
    pub connections: Gauge,
    /// Requests that are being answered, streams that are being opened among them.
    pub requests: Gauge,
    /// Busy answers that have been sent and are still to end.
    pub busy_answers: Gauge,
    /// Channels the shard holds interest in, lingering ones included.
    pub channels: Gauge,
    /// Channels of open streams, counted once a stream.
    pub subscriptions: Gauge,
    /// Streams opened.
    pub connections_opened: Counter,
    /// Requests for streams with query parameters that mean nothing.
    pub requests_with_ignored_parameters: Counter,
    /// Requests for streams that were answered with the end of all their channels.
    pub ended_answers: Counter,
    closed: Counts<{ <CloseReason as Labels>::COUNT }>,
    rejected: Counts<{ <RejectReason as Labels>::COUNT }>,
    refused: Counts<{ <RefuseReason as Labels>::COUNT }>,
    /// Accepting a connection failed: descriptors have run out, most likely.
    pub accept_errors: Counter,
    /// Events written to clients, counted once a client.
    pub events_delivered: Counter,
    /// Events a slow client did not get, counted once a client.
    pub events_dropped_slow_client: Counter,
    /// Events that are not for everybody, and that no stream of the shard on their channel might
    /// have.
    pub events_without_audience: Counter,
    /// Bytes written to streams, heads included.
    pub sent_bytes: Counter,
    /// Heartbeats queued, those that tell a cursor included.
    pub heartbeats: Counter,
    gaps: Counts<{ <GapReason as Labels>::COUNT }>,
    resumes: Counts<{ <(ResumeOutcome, ResumeSource)>::COUNT }>,
    /// From the publication of a kept event to its write, once a client.
    pub delivery: Latencies,
    /// From the arrival of an event at this replica to its last write, once an event.
    pub fanout: Latencies,
}

impl ShardStats {
    /// Streams closed for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed.get(reason)
    }

    /// Counts a stream's end.
    pub fn count_closed(&self, reason: CloseReason) {
        self.closed.add(reason, 1);
    }

    /// Streams not opened for this reason.
    pub fn rejected(&self, reason: RejectReason) -> u64 {
        self.rejected.get(reason)
    }

    /// Counts a stream that is not opened.
    pub fn count_rejected(&self, reason: RejectReason) {
        self.rejected.add(reason, 1);
    }

    /// Requests refused for this reason.
    pub fn refused(&self, reason: RefuseReason) -> u64 {
        self.refused.get(reason)
    }

    /// Counts a request that is refused.
    pub fn count_refused(&self, reason: RefuseReason) {
        self.refused.add(reason, 1);
    }

    /// Gaps told for this reason.
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps.get(reason)
    }

    pub(super) fn count_gaps(&self, reason: GapReason, gaps: u64) {
        self.gaps.add(reason, gaps);
    }

    /// Streams opened with a cursor that came to this.
    pub fn resumes(&self, outcome: ResumeOutcome, source: ResumeSource) -> u64 {
        self.resumes.get((outcome, source))
    }

    pub(super) fn count_resume(&self, outcome: ResumeOutcome, source: ResumeSource) {
        self.resumes.add((outcome, source), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_counted_up_to_their_bound() {
        let (one, two) = (Latencies::default(), Latencies::default());
        one.add(Duration::ZERO, 1);
        one.add(Duration::from_micros(250), 2);
        two.add(Duration::from_micros(251), 3);
        two.add(Duration::from_secs(31), 4);
        let mut total = LatencyTotal::default();
        one.add_to(&mut total);
        two.add_to(&mut total);
        assert_eq!(total.buckets[..4], [1, 2, 3, 0]);
        assert_eq!(total.buckets.iter().sum::<u64>(), 6);
        assert_eq!(total.over, 4);
        assert_eq!(total.sum_us, 2 * 250 + 3 * 251 + 4 * 31_000_000);
        assert!(LATENCY_BOUNDS_US.is_sorted());
    }

    #[test]
    fn every_resume_has_a_place_of_its_own() {
        let stats = ShardStats::default();
        stats.count_resume(ResumeOutcome::Complete, ResumeSource::History);
        stats.count_resume(ResumeOutcome::Gap, ResumeSource::Tail);
        stats.count_resume(ResumeOutcome::Gap, ResumeSource::Tail);
        let counts = ResumeOutcome::all().into_iter().flat_map(|outcome| {
            let sources = ResumeSource::all().into_iter();
            sources.map(move |source| (outcome, source))
        });
        let counts: Vec<_> = counts
            .map(|(outcome, source)| stats.resumes(outcome, source))
            .collect();
        assert_eq!(counts, [0, 1, 2, 0]);
    }
}
