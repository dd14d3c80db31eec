//! What is counted about tokens and keys.

use prometheus::Registry;

use super::counter_by::CounterBy;
use crate::telemetry::reasons::{JwksOutcome, TokenFaultKind};

/// What is counted about tokens and keys: once per request, never for an event.
/// [Occurrences](crate::telemetry::occurrences) write it.
#[derive(Clone, Debug)]
pub struct AuthMetrics {
    refused: CounterBy<TokenFaultKind>,
    jwks_fetches: CounterBy<JwksOutcome>,
}

impl AuthMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            refused: CounterBy::register(
                "fanfare_tokens_refused_total",
                "Tokens that were refused, by what is wrong with them.",
                registry,
            )?,
            jwks_fetches: CounterBy::register(
                "fanfare_jwks_fetches_total",
                "Fetches of the JWK set.",
                registry,
            )?,
        })
    }

    /// A token was refused.
    pub(in crate::telemetry) fn refused(&self, fault: TokenFaultKind) {
        self.refused.get(fault).inc();
    }

    /// The JWK set was fetched, or not.
    pub(in crate::telemetry) fn jwks_fetched(&self, outcome: JwksOutcome) {
        self.jwks_fetches.get(outcome).inc();
    }
}
