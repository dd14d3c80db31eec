//! The state that a shard's connections share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, Semaphore, mpsc};

use super::channels::Channels;
use super::fanout::mailbox::{PushRules, Pushed};
use super::fanout::outgoing::Parcel;
use super::fanout::timing::Clock;
use super::heartbeat::HeartbeatWheel;
use super::reads::MAX_READS;
use super::revocation::Revocations;
use super::session::Session;
use super::stats::CloseReason;
use super::subscriber::Subscriber;
use super::{HistoryRequest, HubSettings, ShardStats};
use crate::continuity::Positions;
use crate::protocol::{Cursor, GapReason};

/// Everything a shard's connections share. Used by one thread only.
pub struct Hub {
    pub(super) settings: HubSettings,
    /// Reads of history are asked for here.
    pub(super) history: mpsc::Sender<HistoryRequest>,
    pub(super) stats: Arc<ShardStats>,
    pub(super) clock: Clock,
    pub(super) channels: RefCell<Channels>,
    pub(super) heartbeats: RefCell<HeartbeatWheel>,
    /// Some channels became active.
    pub(super) activated: Notify,
    /// The bus is to be told of interest.
    pub(super) interest_changed: Notify,
    pub(super) draining: Cell<bool>,
    /// The shard begins to drain.
    pub(super) drain_begun: Notify,
    /// How often the bus was lost.
    pub(super) losses: Cell<u64>,
    pub(super) positions: RefCell<Positions>,
    /// Places for reads of history.
    pub(super) reads: Semaphore,
    /// Who is kept out.
    revocations: Arc<Revocations>,
}

impl Hub {
    /// An empty hub.
    pub fn new(
        settings: HubSettings,
        stats: Arc<ShardStats>,
        history: mpsc::Sender<HistoryRequest>,
        revocations: Arc<Revocations>,
    ) -> Rc<Self> {
        Rc::new(Self {
            settings,
            history,
            stats,
            clock: Clock::start(),
            channels: RefCell::new(Channels::new(settings.tail_bytes)),
            positions: RefCell::new(Positions::new(settings.lag_bound)),
            heartbeats: RefCell::new(HeartbeatWheel::new(settings.heartbeat)),
            reads: Semaphore::new(MAX_READS),
            revocations,
            activated: Notify::new(),
            interest_changed: Notify::new(),
            draining: Cell::new(false),
            drain_begun: Notify::new(),
            losses: Cell::new(0),
        })
    }

    /// What the shard counts.
    pub fn stats(&self) -> &ShardStats {
        &self.stats
    }

    /// Whether a session is kept out.
    pub fn is_revoked(&self, session: &Session) -> bool {
        self.revocations.is_revoked(session)
    }

    /// Whether streams are being closed because the replica stops.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// The cursor of a client that has had nothing and begins now, where kept events are known: all up to
    /// it has been seen. While the bus is away it is that of before, which is as safe: more is sent.
    pub fn start_cursor(&self) -> Option<Cursor> {
        self.positions.borrow().newest().map(Cursor::fresh)
    }

    /// Waits until the replica stops and streams are being closed.
    pub async fn drains(&self) {
        let begun = self.drain_begun.notified();
        if !self.draining.get() {
            begun.await;
        }
    }

    pub(super) fn after_interest_change(&self, channels: &Channels) {
        let (before, now) = (self.stats.channels.get(), channels.len() as u64);
        self.stats.channels.add(now.saturating_sub(before));
        self.stats.channels.sub(before.saturating_sub(now));
        if channels.has_changes() {
            self.interest_changed.notify_one();
        }
    }

    /// Queues bytes for one connection.
    pub(super) fn push(&self, subscriber: &Subscriber, parcel: Parcel) {
        let rules = PushRules {
            limit: self.settings.client_buffer_bytes,
            policy: self.settings.slow_client,
            framing: subscriber.framing,
            control: subscriber.control,
        };
        let pushed = subscriber.mailbox.borrow_mut().push(parcel, rules);
        if let Pushed::Dropped { events, gaps } = pushed {
            self.stats.events_dropped_slow_client.add(events);
            self.stats.count_gaps(GapReason::Slow, gaps);
            if gaps > 0 && subscriber.ends_with_gap() {
                subscriber.mailbox.borrow_mut().end(CloseReason::Incomplete);
            }
        }
    }

    pub(super) fn tick(&self) -> u64 {
        self.heartbeats.borrow().now()
    }
}
