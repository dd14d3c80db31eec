//! The admin listener: health, metrics and the console, for the inside of the network. No
//! authentication.

mod console;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use tokio::sync::watch;

use crate::auth::KeyRing;
use crate::bus::BusHealth;
use crate::supervision::Hanging;
use crate::telemetry::Metrics;
use crate::warnings::Warnings;

pub use console::{Console, Sampler};

/// What the admin listener tells of the replica.
#[derive(Debug)]
pub struct AdminState {
    /// Everything that is counted.
    pub metrics: Metrics,
    /// Whether shards hang.
    pub hanging: Hanging,
    /// Whether events arrive.
    pub bus: watch::Receiver<BusHealth>,
    /// What is wrong although events arrive.
    pub warnings: Warnings,
    /// The keys that tokens are verified with.
    pub keys: Option<Arc<KeyRing>>,
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    /// Why not.
    reasons: Vec<String>,
    /// What is wrong, and does not keep it from serving yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl AdminState {
    fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.metrics.draining.get() == 1 {
            reasons.push("stopping".to_owned());
        }
        if let BusHealth::Down { reason, .. } = &*self.bus.borrow() {
            reasons.push(format!("redis: {reason}"));
        }
        let keys = self.keys.as_deref();
        reasons.extend(keys.and_then(KeyRing::outage));
        let mut warnings = self.warnings.all();
        warnings.extend(keys.map(KeyRing::warnings).unwrap_or_default());
        Readiness {
            ready: reasons.is_empty(),
            reasons,
            warnings,
        }
    }
}

/// The routes of the admin listener.
pub fn router(state: Arc<AdminState>, console: Arc<Console>) -> Router {
    let console = Router::new()
        .route("/", get(async || Redirect::to("/console")))
        .route("/console", get(console::console_page))
        .route("/console/feed", get(console::console_feed))
        .with_state(console);
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state)
        .merge(console)
}

/// Red where only a new start helps: whoever asks it kills the process. Redis has no part in it.
async fn livez(State(state): State<Arc<AdminState>>) -> Response {
    match state.hanging.shards() {
        0 => "alive\n".into_response(),
        shards => {
            let reason = format!("shards that hang: {shards}\n");
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
    }
}

async fn readyz(State(state): State<Arc<AdminState>>) -> Response {
    let readiness = state.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

async fn metrics(State(state): State<Arc<AdminState>>) -> Response {
    // Counting a replica's descriptors takes the kernel some milliseconds: not on the thread that
    // Redis' events pass.
    let rendered = tokio::task::spawn_blocking(move || {
        let is_ready = state.readiness().ready;
        state.metrics.render(is_ready)
    });
    let rendered = rendered.await.map_err(|error| error.to_string());
    match rendered.and_then(|text| text.map_err(|error| error.to_string())) {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}
