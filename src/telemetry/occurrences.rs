//! What happens to a replica, one type each: it writes the log line and counts together, so that
//! neither is forgotten and both say the same.
//!
//! Lines have the target of the part that they are of: whoever asks for the log of one part
//! (`FANFARE_LOG`) gets them with it.
//!
//! What shards count of each stream and event is counted where it happens, and not logged.

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use prometheus::IntCounter;

use super::reasons::{
    DownCause, DropReason, EventKind, JwksOutcome, PublishOutcome, TokenFaultKind,
};
use super::{AuthMetrics, BusMetrics};
use crate::hub::{CloseReason, ShardStats};
use crate::protocol::{ChannelName, EventId};

/// An event has arrived for somebody.
pub(crate) struct EventReceived(pub(crate) EventKind);

impl EventReceived {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.received(self.0).inc();
    }
}

/// A message of the bus reaches nobody, because of what it says.
pub(crate) struct MessageDropped<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) reason: DropReason,
    pub(crate) fault: &'a dyn Display,
}

impl MessageDropped<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.dropped(self.reason).inc();
        let Self { channel, fault, .. } = self;
        tracing::warn!(target: "fanfare::bus", %channel, %fault, "a message from Redis was dropped");
    }
}

/// An entry of a history cannot be read. It is found again at each read of the history, and told
/// once.
pub(crate) struct EntryUnreadable<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) fault: &'a dyn Display,
}

impl EntryUnreadable<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.dropped(DropReason::Frame).inc();
        let Self { channel, fault } = self;
        tracing::warn!(target: "fanfare::bus", %channel, %fault, "an entry of a history cannot be read");
    }
}

/// A history is read.
pub(crate) struct HistoryReadSent;

impl HistoryReadSent {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.history_reads.inc();
    }
}

/// An event that the subscription missed was read from history.
pub(crate) struct EventBackfilled;

impl EventBackfilled {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.backfilled.inc();
    }
}

/// A probe has come back.
pub(crate) struct ProbeReturned {
    pub(crate) took: Duration,
}

impl ProbeReturned {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.probe_seconds.observe(self.took.as_secs_f64());
    }
}

/// What is subscribed arrives.
pub(crate) struct RedisUp;

impl RedisUp {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.note_up(None);
        tracing::info!(target: "fanfare::bus", "connected to Redis");
    }
}

/// The subscriber connection has ended, or was not made.
pub(crate) struct RedisDown<'a> {
    pub(crate) cause: DownCause,
    pub(crate) reason: &'a str,
    /// Until now events arrived.
    pub(crate) was_up: bool,
    /// The reason is another one than before.
    pub(crate) is_new: bool,
}

impl RedisDown<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.note_up(Some(self.cause));
        metrics.reconnects.inc();
        let (cause, reason) = (self.cause.label(), self.reason);
        if self.was_up {
            metrics.losses.inc();
            tracing::warn!(
            target: "fanfare::bus",
                           cause,
                           reason,
                           "lost connection to Redis; streams stay open but receive no events"
                       );
        } else if self.is_new {
            tracing::warn!(target: "fanfare::bus", cause, reason, "Redis is unavailable");
        }
    }
}

/// Redis refuses the subscription to a channel.
pub(crate) struct ChannelRefused<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) error: &'a dyn Display,
}

impl ChannelRefused<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.refused_channels.inc();
        let Self { channel, error } = self;
        tracing::warn!(target: "fanfare::bus", %channel, %error, "Redis refused the subscription to a channel");
    }
}

/// Redis takes kept events.
pub(crate) struct EventsKept {
    /// Until now it did not; `false` at the start.
    pub(crate) again: bool,
}

impl EventsKept {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.keeps.set(1);
        if self.again {
            tracing::info!(target: "fanfare::bus", "Redis accepts kept events again");
        }
    }
}

/// Redis takes no kept events.
pub(crate) struct EventsNotKept<'a> {
    pub(crate) reason: &'a str,
    /// It was not so, or for another reason.
    pub(crate) is_new: bool,
}

impl EventsNotKept<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.keeps.set(0);
        if self.is_new {
            let reason = self.reason;
            tracing::warn!(target: "fanfare::bus", reason, "events cannot be kept; live events go on");
        }
    }
}

/// Redis does not know ids any more that it had issued.
pub(crate) struct IdsLost {
    pub(crate) from: EventId,
    pub(crate) to: EventId,
}

impl IdsLost {
    /// What it means to clients is counted as gaps.
    pub(crate) fn emit(self) {
        let Self { from, to } = self;
        tracing::warn!(target: "fanfare::bus", %from, %to, "Redis has lost the newest ids: they begin anew");
    }
}

/// Somebody has published over HTTP.
pub(crate) struct EventPublished(pub(crate) EventKind);

impl EventPublished {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.published(self.0, PublishOutcome::Published).inc();
    }
}

/// Somebody wanted to publish over HTTP what the bus refuses; the publisher is told why.
pub(crate) struct PublishRefused(pub(crate) EventKind);

impl PublishRefused {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics.published(self.0, PublishOutcome::Refused).inc();
    }
}

/// The bus did not take what somebody published over HTTP.
pub(crate) struct PublishFailed<'a> {
    pub(crate) kind: EventKind,
    pub(crate) channel: &'a ChannelName,
    pub(crate) error: &'a dyn Display,
}

impl PublishFailed<'_> {
    pub(crate) fn emit(self, metrics: &BusMetrics) {
        metrics
            .published(self.kind, PublishOutcome::Unavailable)
            .inc();
        let Self { channel, error, .. } = self;
        tracing::warn!(target: "fanfare::http::publish", %channel, %error, "an event was not published");
    }
}

/// A token was refused; its bearer is told why.
pub(crate) struct TokenRefused(pub(crate) TokenFaultKind);

impl TokenRefused {
    pub(crate) fn emit(self, metrics: &AuthMetrics) {
        metrics.refused(self.0);
        let reason = self.0.label();
        // Anybody can show a wrong one.
        tracing::debug!(target: "fanfare::http::auth", reason, "a token was refused");
    }
}

/// The JWK set was fetched.
pub(crate) struct JwksFetched<'a> {
    pub(crate) host: &'a str,
    pub(crate) keys: usize,
    /// Why others were left out.
    pub(crate) left_out: &'a [String],
    /// It holds other keys than before, or could not be fetched before.
    pub(crate) is_new: bool,
}

impl JwksFetched<'_> {
    pub(crate) fn emit(self, metrics: &AuthMetrics) {
        metrics.jwks_fetched(JwksOutcome::Fetched);
        let Self {
            host,
            keys,
            left_out,
            is_new,
        } = self;
        if is_new {
            tracing::info!(target: "fanfare::http::auth", host, keys, ?left_out, "fetched the JWK set");
        }
    }
}

/// The JWK set could not be fetched, or cannot be used.
pub(crate) struct JwksNotFetched<'a> {
    pub(crate) fault: &'a str,
    /// It is another fault than before.
    pub(crate) is_new: bool,
}

impl JwksNotFetched<'_> {
    pub(crate) fn emit(self, metrics: &AuthMetrics) {
        metrics.jwks_fetched(JwksOutcome::Failed);
        let Self { fault, is_new } = self;
        if is_new {
            tracing::warn!(
            target: "fanfare::http::auth",
                           fault,
                           "JWKS fetch failed; keeping the previous keys"
                       );
        }
    }
}

/// A connection was not accepted.
pub(crate) struct AcceptFailed<'a>(pub(crate) &'a io::Error);

impl AcceptFailed<'_> {
    pub(crate) fn emit(self, stats: &ShardStats) {
        stats.accept_errors.add(1);
        let error = self.0;
        tracing::error!(target: "fanfare::http", %error, "accepting a connection failed");
    }
}

/// A client was cut off because it did not keep up. The shard counts it with all streams that end.
pub(crate) struct ClientCutOff<'a> {
    pub(crate) connection: &'a dyn Display,
    pub(crate) client: IpAddr,
    pub(crate) subject: Option<&'a str>,
    pub(crate) reason: CloseReason,
}

impl ClientCutOff<'_> {
    pub(crate) fn emit(self) {
        let Self {
            connection,
            client,
            subject,
            reason,
        } = self;
        let reason = reason.label();
        tracing::info!(target: "fanfare::http", %connection, %client, subject, reason, "disconnected a slow client");
    }
}

/// A span finds too many waiting for the collector of traces.
pub(crate) struct SpanTooMany;

impl SpanTooMany {
    pub(crate) fn emit(self, dropped: &IntCounter) {
        dropped.inc();
        // Why they wait is told when they are not sent.
        tracing::debug!(target: "fanfare::telemetry", "dropped a span: the export queue is full");
    }
}

/// Spans did not reach the collector of traces.
pub(crate) struct SpansDropped<'a> {
    pub(crate) spans: usize,
    pub(crate) collector: &'a str,
    pub(crate) error: &'a dyn Display,
    /// Why there was no answer; empty where there was one.
    pub(crate) cause: &'a str,
}

impl SpansDropped<'_> {
    pub(crate) fn emit(self, dropped: &IntCounter) {
        let Self {
            spans,
            collector,
            error,
            cause,
        } = self;
        dropped.inc_by(spans as u64);
        tracing::warn!(target: "fanfare::telemetry", %error, cause, collector, spans, "failed to export spans");
    }
}
