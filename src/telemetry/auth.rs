//! What is counted about tokens and keys.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::http::auth::TokenFault;
use crate::labels::labels;

labels! { "outcome":
    /// What came of fetching the JWK set.
    pub enum JwksOutcome {
        /// It is there.
        Fetched = "fetched",
        /// It could not be fetched, or cannot be used.
        Failed = "failed",
    }
}

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
        for reason in TokenFault::LABELS {
            refused.with_label_values(&[reason]);
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
    pub(super) fn refused(&self, fault: &TokenFault) {
        self.refused.with_label_values(&[fault.label()]).inc();
    }

    /// The JWK set was fetched, or not.
    pub(super) fn jwks_fetched(&self, outcome: JwksOutcome) {
        self.jwks_fetches
            .with_label_values(&[outcome.label()])
            .inc();
    }
}
