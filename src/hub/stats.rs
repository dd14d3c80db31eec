//! What a shard counts. One thread writes; any thread reads when metrics are scraped.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::GapReason;

/// A count that only grows. One writer: a plain load and store, so no locked instruction stands on
/// the delivery path.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. To be called by the owning thread only: a second writer would lose counts.
    pub fn add(&self, amount: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
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
            .store(self.0.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }

    /// Lowers it by `amount`.
    pub fn sub(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).saturating_sub(amount),
            Ordering::Relaxed,
        );
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one shard, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardStats {
    /// Open streams.
    pub connections: Gauge,
    /// Channels the shard holds interest in, lingering ones included.
    pub channels: Gauge,
    /// Channels of open streams, counted once a stream.
    pub subscriptions: Gauge,
    /// Streams opened.
    pub connections_opened: Counter,
    /// Streams closed, by [`CloseReason`](super::CloseReason).
    connections_closed: [Counter; super::CloseReason::ALL.len()],
    /// Streams answered with retry-and-close because their channels did not become active.
    pub rejected_bus_unavailable: Counter,
    /// Streams answered with retry-and-close at the connection limit.
    pub rejected_limit: Counter,
    /// Streams answered with retry-and-close while draining.
    pub rejected_draining: Counter,
    /// Connections closed because a request's head was malformed, too large, or did not come in
    /// time.
    pub rejected_head: Counter,
    /// Streams refused because who asks may not read them: no token, a wrong one, another's.
    pub rejected_denied: Counter,
    /// Streams answered with retry-and-close because nobody could tell: keys or tickets were not
    /// to be had.
    pub rejected_undecided: Counter,
    /// Streams answered with retry-and-close, and connections closed, because their address has
    /// all it may have.
    pub rejected_address: Counter,
    /// Streams answered with retry-and-close because their subject has all it may have.
    pub rejected_subject: Counter,
    /// Streams answered with retry-and-close because their address asks too often.
    pub rejected_rate: Counter,
    /// Connections closed because they had no header of the PROXY protocol, or came from nobody
    /// who may send one.
    pub rejected_proxy_header: Counter,
    /// Requests refused because their head can be read in more than one way.
    pub refused_malformed: Counter,
    /// Requests refused because they were addressed to another host.
    pub refused_host: Counter,
    /// Requests refused because a page of a foreign site asked.
    pub refused_origin: Counter,
    /// Requests refused because their client publishes too often.
    pub refused_publish_rate: Counter,
    /// Events written to clients, counted once a client.
    pub events_delivered: Counter,
    /// Events a slow client did not get under the `latest` policy, counted once a client.
    pub events_dropped_slow_client: Counter,
    /// Bytes written to streams, heads included.
    pub sent_bytes: Counter,
    /// Heartbeats sent.
    pub heartbeats: Counter,
    /// Gaps told, by [`GapReason`].
    gaps: [Counter; GapReason::ALL.len()],
    /// Streams opened with a cursor, by [`ResumeOutcome`] and [`ResumeSource`].
    resumes: [[Counter; ResumeSource::ALL.len()]; ResumeOutcome::ALL.len()],
}

/// What became of a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// Nothing was missed.
    Complete,
    /// The client was told of a gap.
    Gap,
}

impl ResumeOutcome {
    /// Every outcome, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Complete, Self::Gap];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Gap => "gap",
        }
    }
}

/// Where what a client missed came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeSource {
    /// This replica had all of it.
    Tail,
    /// History was read.
    History,
}

impl ResumeSource {
    /// Every source, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Tail, Self::History];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::History => "history",
        }
    }
}

impl ShardStats {
    /// Streams closed for this reason.
    pub fn closed(&self, reason: super::CloseReason) -> u64 {
        self.connections_closed
            .get(reason as usize)
            .map_or(0, Counter::get)
    }

    /// Gaps told for this reason.
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps.get(reason as usize).map_or(0, Counter::get)
    }

    pub(super) fn count_gaps(&self, reason: GapReason, gaps: u64) {
        if let Some(counter) = self.gaps.get(reason as usize) {
            counter.add(gaps);
        }
    }

    /// Streams opened with a cursor that came to this.
    pub fn resumes(&self, outcome: ResumeOutcome, source: ResumeSource) -> u64 {
        let counter = self.resumes.get(outcome as usize);
        counter
            .and_then(|sources| sources.get(source as usize))
            .map_or(0, Counter::get)
    }

    pub(super) fn count_resume(&self, outcome: ResumeOutcome, source: ResumeSource) {
        let counter = self.resumes.get(outcome as usize);
        if let Some(counter) = counter.and_then(|sources| sources.get(source as usize)) {
            counter.add(1);
        }
    }

    pub(super) fn count_closed(&self, reason: super::CloseReason) {
        if let Some(counter) = self.connections_closed.get(reason as usize) {
            counter.add(1);
        }
    }
}
