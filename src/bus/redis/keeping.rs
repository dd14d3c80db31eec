//! Whether events can be kept: what is known of the function library.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::library::{Library, LibrarySettings, ensure};
use crate::continuity::Retention;
use crate::telemetry::BusMetrics;
use crate::telemetry::occurrences::{EventsKept, EventsNotKept};
use crate::warnings::Warnings;

/// How soon a library that was not to be had is asked for again: somebody may have loaded it, or
/// given the right to. As often as probes are sent; each change is logged once.
const RETRY: Duration = Duration::from_secs(5);

/// What those who call functions know of the library.
#[derive(Debug, Default)]
pub(super) struct Support {
    is_ready: AtomicBool,
    is_impossible: AtomicBool,
    missing: Notify,
}

impl Support {
    /// Whether functions may be called.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Whether this Redis has no functions at all.
    pub(super) fn is_impossible(&self) -> bool {
        self.is_impossible.load(Ordering::Relaxed)
    }

    /// A function that should be there is not: somebody has flushed the functions.
    pub(super) fn note_missing(&self) {
        if self.is_ready() {
            self.missing.notify_one();
        }
    }

    /// Waits until a function is found missing.
    pub(super) async fn missing(&self) {
        self.missing.notified().await;
    }
}

/// What is known of the library, across connections.
pub(super) struct Keeping {
    pub(super) settings: LibrarySettings,
    pub(super) support: Arc<Support>,
    /// Why events cannot be kept; `None` where they can, or nothing is known yet.
    unavailable: Option<String>,
    /// In what Redis differs from the settings, as it was told last.
    difference: Option<String>,
    /// The functions are refused for now, as it was told last.
    refused: bool,
    ask_at: Option<Instant>,
    metrics: BusMetrics,
    warnings: Warnings,
}

/// The source of the warning that events cannot be kept.
const WARNING: &str = "redis functions";

impl Keeping {
    pub(super) fn new(settings: LibrarySettings, metrics: BusMetrics, warnings: Warnings) -> Self {
        Self {
            settings,
            metrics,
            warnings,
            support: Arc::default(),
            unavailable: None,
            difference: None,
            refused: false,
            ask_at: None,
        }
    }

    /// Whether functions may be called.
    pub(super) fn is_ready(&self) -> bool {
        self.support.is_ready()
    }

    /// The library is missing, or older: it is to be loaded at once.
    pub(super) fn ask_now(&mut self) {
        self.ask_at = Some(Instant::now());
    }

    /// Whether it is time to ask for the library; if so, somebody does.
    pub(super) fn takes_turn(&mut self) -> bool {
        self.ask_at.take_if(|at| *at <= Instant::now()).is_some()
    }

    /// Asks for the library.
    pub(super) fn ask(
        &self,
        mut connection: MultiplexedConnection,
    ) -> impl Future<Output = RedisResult<Library>> + Send + use<> {
        let settings = self.settings.clone();
        async move { ensure(&mut connection, &settings).await }
    }

    /// Takes note of what was found. Each change is logged once.
    pub(super) fn note(&mut self, library: Library) -> Option<Retention> {
        match library {
            Library::Ready { config } => {
                let again = self.unavailable.take().is_some();
                EventsKept { again }.emit(&self.metrics);
                self.warnings.set(WARNING, None);
                self.support.is_impossible.store(false, Ordering::Relaxed);
                let difference = config.differs_from(&self.settings);
                if let Some(difference) = &difference
                    && self.difference.as_ref() != Some(difference)
                {
                    tracing::warn!(
                        difference,
                        "histories are kept as Redis says, not as set here; \
                         `fanfare functions load` changes it"
                    );
                }
                self.difference = difference;
                self.ask_at = None;
                self.support.is_ready.store(true, Ordering::Relaxed);
                Some(Retention {
                    ttl: config.ttl,
                    old_ttl: config.old_ttl,
                    ttl_since: config.ttl_since,
                })
            }
            // The connection is given up.
            Library::Replica | Library::ClusterNode => None,
            Library::Unavailable(reason) => {
                self.note_unavailable(reason);
                None
            }
            Library::Impossible(reason) => {
                self.support.is_impossible.store(true, Ordering::Relaxed);
                self.note_unavailable(reason);
                None
            }
        }
    }

    fn note_unavailable(&mut self, reason: String) {
        let is_new = self.unavailable.as_ref() != Some(&reason);
        EventsNotKept {
            reason: &reason,
            is_new,
        }
        .emit(&self.metrics);
        self.warn(&reason);
        self.unavailable = Some(reason);
        self.ask_at = Some(Instant::now() + RETRY);
        self.support.is_ready.store(false, Ordering::Relaxed);
    }

    fn warn(&self, reason: &str) {
        let warning = format!("events cannot be kept: {reason}; live events go on");
        self.warnings.set(WARNING, Some(warning));
    }

    /// Redis runs the functions, or refuses to for now.
    pub(super) fn note_refused(&mut self, reason: Option<String>) {
        match reason {
            Some(reason) => {
                self.warn(&reason);
                EventsNotKept {
                    reason: &reason,
                    is_new: !std::mem::replace(&mut self.refused, true),
                }
                .emit(&self.metrics);
            }
            None => {
                self.warnings.set(WARNING, None);
                EventsKept {
                    again: std::mem::take(&mut self.refused),
                }
                .emit(&self.metrics);
            }
        }
    }
}
