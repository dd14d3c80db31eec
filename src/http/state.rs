//! What the handlers of the router share.

use std::sync::Arc;

use super::admission::Admission;
use super::authority::Authority;
use crate::bus::Publisher;
use crate::telemetry::{BusMetrics, Traces};

/// What the handlers need. Shared by all shards: nothing here is touched by an event.
#[derive(Debug)]
pub struct RouterState {
    /// Who may read and publish.
    pub authority: Authority,
    /// What clients may take.
    pub admission: Arc<Admission>,
    /// The way to the bus.
    pub publisher: Publisher,
    /// Where publishing is counted.
    pub metrics: BusMetrics,
    /// Channels of one stream at the most.
    pub max_channels_per_connection: usize,
    /// Data of one event at the most.
    pub max_event_bytes: usize,
    /// The length of histories that no publish has made longer.
    pub history_length: usize,
    /// Whether `GET /` is the demo page.
    pub demo: bool,
    /// Traces what is published, if anything does.
    pub traces: Option<Traces>,
}
