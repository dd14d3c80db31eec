//! What is counted about TLS handshakes and certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, Histogram, Registry, register_gauge_with_registry, register_histogram_with_registry,
};

use super::counter_by::CounterBy;
use crate::telemetry::reasons::HandshakeOutcome;

/// What is counted about TLS: once per connection, never for an event.
#[derive(Clone, Debug)]
pub struct TlsMetrics {
    handshakes: CounterBy<HandshakeOutcome>,
    seconds: Histogram,
    expiry: Gauge,
}

impl TlsMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            handshakes: CounterBy::register(
                "fanfare_tls_handshakes_total",
                "Connections of the TLS listener, by what became of their handshakes.",
                registry,
            )?,
            seconds: register_histogram_with_registry!(
                "fanfare_tls_handshake_seconds",
                "From a complete ClientHello to the end of the handshake, the client's part included.",
                // Up to the deadline.
                vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0
                ],
                registry,
            )?,
            expiry: register_gauge_with_registry!(
                "fanfare_tls_certificate_expiry_timestamp_seconds",
                "When the first of the TLS certificates expires, in Unix time; 0 without a TLS listener.",
                registry,
            )?,
        })
    }

    /// A connection of the TLS listener has finished its handshake, or has not.
    pub fn handshake(&self, outcome: HandshakeOutcome) {
        self.handshakes.get(outcome).inc();
    }

    /// A handshake took so long from its ClientHello on.
    pub fn handshake_took(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// When the first certificate expires.
    pub fn note_expiry(&self, first: Option<SystemTime>) {
        let since = first.and_then(|first| first.duration_since(UNIX_EPOCH).ok());
        self.expiry
            .set(since.map_or(0.0, |since| since.as_secs_f64()));
    }
}
