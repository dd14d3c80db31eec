//! What is counted about tokens and keys.

use prometheus::{IntCounterVec, Opts, Registry};

use super::reasons::{JwksOutcome, TokenFaultKind};

/// What is counted about tokens and keys: once a request, never for an event.
/// [Occurrences](crate::telemetry::occurrences) write it.
#[derive(Clone, Debug)]
pub struct AuthMetrics {
    refused: IntCounterVec,
    jwks_fetches: IntCounterVec,
}

impl AuthMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let refused = IntCounterVec::new(
            Opts::new(
                "fanfare_tokens_refused_total",
                "Tokens that were refused, by what is wrong with them.",
            ),
            &["reason"],
        )?;
        for reason in TokenFaultKind::ALL {
            refused.with_label_values(&[reason.label()]);
        }
        let jwks_fetches = IntCounterVec::new(
            Opts::new("fanfare_jwks_fetches_total", "Fetches of the JWK set."),
            &["outcome"],
        )?;
        for outcome in JwksOutcome::ALL {
            jwks_fetches.with_label_values(&[outcome.label()]);
        }
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(jwks_fetches.clone()))?;
        Ok(Self {
            refused,
            jwks_fetches,
        })
    }

    /// A token was refused.
    pub(super) fn refused(&self, fault: TokenFaultKind) {
        self.refused.with_label_values(&[fault.label()]).inc();
    }

    /// The JWK set was fetched, or not.
    pub(super) fn jwks_fetched(&self, outcome: JwksOutcome) {
        self.jwks_fetches
            .with_label_values(&[outcome.label()])
            .inc();
    }
}
