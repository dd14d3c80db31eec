//! The hub of one shard: its state, and the tasks that keep it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::channels::Channels;
use super::heartbeat::{HeartbeatWheel, TICKS_PER_INTERVAL};
use super::mailbox::{CloseReason, Parcel, Pushed};
use super::subscriber::Subscriber;
use super::subscription::{Interest, NotOpened, Subscription};
use super::{
    BusEvent, HistoryRequest, HubSettings, INBOX_BATCHES, Inbox, InterestUpdate, News, ShardId,
    ShardMessage, ShardStats,
};
use crate::protocol::{ChannelName, Framing, HEARTBEAT, HEARTBEAT_CHUNK, retry_block};

/// How often lingering channels are looked at.
const LINGER_SWEEP: Duration = Duration::from_millis(100);

/// How often a drain closes the streams whose turn it is.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// Everything a shard's connections share. Used by one thread only.
pub struct Hub {
    pub(super) settings: HubSettings,
    /// Reads of history are asked for here.
    pub(super) history: mpsc::Sender<HistoryRequest>,
    pub(super) stats: Arc<ShardStats>,
    pub(super) channels: RefCell<Channels>,
    heartbeats: RefCell<HeartbeatWheel>,
    /// Some channels became active.
    activated: Notify,
    /// The bus is to be told of interest.
    interest_changed: Notify,
    draining: Cell<bool>,
}

impl Hub {
    /// An empty hub.
    pub fn new(
        settings: HubSettings,
        stats: Arc<ShardStats>,
        history: mpsc::Sender<HistoryRequest>,
    ) -> Rc<Self> {
        Rc::new(Self {
            settings,
            history,
            stats,
            channels: RefCell::default(),
            heartbeats: RefCell::new(HeartbeatWheel::new()),
            activated: Notify::new(),
            interest_changed: Notify::new(),
            draining: Cell::new(false),
        })
    }

    /// What the shard counts.
    pub fn stats(&self) -> &ShardStats {
        &self.stats
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// Whether streams are being closed because the replica stops.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Opens a stream on `names`: waits until each is active at the bus, for `patience` at most,
    /// and returns with the first bytes in the mailbox: `head`, then the first block. Whatever is
    /// published after a client has seen one of these bytes reaches it.
    ///
    /// # Errors
    /// When a channel is not active in time, or the shard is draining by then.
    pub async fn subscribe(
        self: &Rc<Self>,
        names: &[ChannelName],
        framing: Framing,
        head: impl FnOnce() -> Vec<u8>,
        patience: Duration,
    ) -> Result<Subscription, NotOpened> {
        let interest = self.acquire(names);
        timeout(patience, self.all_active(&interest))
            .await
            .map_err(|_| NotOpened::NotActive)?;
        if self.draining.get() {
            return Err(NotOpened::Draining);
        }
        // From here to the end nothing awaits, so no event can pass between the check above and
        // the first block.
        let subscriber = Rc::new(Subscriber::new(framing));
        let mut first = head();
        let block = retry_block(self.settings.retry.draw());
        framing.append(block.as_bytes(), &mut first);
        subscriber.mailbox.borrow_mut().open(Bytes::from(first));
        self.channels
            .borrow_mut()
            .attach(&subscriber, interest.keys());
        self.heartbeats.borrow_mut().insert(&subscriber);
        Ok(Subscription::new(interest, subscriber))
    }

    fn acquire(self: &Rc<Self>, names: &[ChannelName]) -> Interest {
        let mut channels = self.channels.borrow_mut();
        let keys = names.iter().map(|name| channels.acquire(name)).collect();
        self.after_interest_change(&channels);
        Interest::new(Rc::clone(self), keys)
    }

    async fn all_active(&self, interest: &Interest) {
        loop {
            let activated = self.activated.notified();
            if self.channels.borrow().all_active(interest.keys()) {
                return;
            }
            activated.await;
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
        let pushed = subscriber.mailbox.borrow_mut().push(
            parcel,
            self.settings.client_buffer_bytes,
            self.settings.slow_client,
        );
        if let Pushed::Dropped(events) = pushed {
            self.stats.events_dropped_slow_client.add(events);
        }
    }

    /// Handles what the bus sends until it is gone. All events that have arrived meanwhile are
    /// one batch.
    pub async fn run(self: Rc<Self>, mut inbox: Inbox) {
        let mut messages = Vec::new();
        let mut batch: Vec<Arc<[BusEvent]>> = Vec::new();
        while inbox.recv_many(&mut messages, INBOX_BATCHES).await > 0 {
            for message in messages.drain(..) {
                match message {
                    ShardMessage::Events(events) => batch.push(events),
                    ShardMessage::News(news) => {
                        self.deliver(&mut batch).await;
                        self.handle(news);
                    }
                }
            }
            self.deliver(&mut batch).await;
        }
    }

    fn handle(self: &Rc<Self>, news: News) {
        match news {
            News::Position(_) => {}
            News::Active {
                channels: active, ..
            } => {
                let mut channels = self.channels.borrow_mut();
                for (name, generation) in active {
                    channels.activate(&name, generation);
                }
                self.activated.notify_waiters();
            }
            News::Lost => self.channels.borrow_mut().deactivate_all(),
            News::Drain(period) => {
                if !self.draining.replace(true) {
                    tokio::task::spawn_local(Rc::clone(self).drain(period));
                }
            }
        }
    }

    /// Tells the bus what is wanted, until the bus is gone.
    pub async fn tell_interest(self: Rc<Self>, shard: ShardId, bus: mpsc::Sender<InterestUpdate>) {
        loop {
            self.interest_changed.notified().await;
            let changes = self.channels.borrow_mut().take_changes();
            if !changes.is_empty() && bus.send(InterestUpdate { shard, changes }).await.is_err() {
                return;
            }
        }
    }

    /// Sends heartbeats, and gives up channels that nobody came back to.
    pub async fn sweep(self: Rc<Self>) {
        let tick = self.settings.heartbeat.div_f64(TICKS_PER_INTERVAL as f64);
        let mut heartbeats = interval(tick.max(Duration::from_millis(1)));
        // A late tick must not be followed by a burst of them: silence is counted in ticks.
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lingering = interval(LINGER_SWEEP);
        lingering.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = heartbeats.tick() => self.beat(),
                _ = lingering.tick() => {
                    let mut channels = self.channels.borrow_mut();
                    channels.expire(Instant::now());
                    self.after_interest_change(&channels);
                }
            }
        }
    }

    fn beat(&self) {
        let mut sent = 0;
        self.heartbeats.borrow_mut().advance(|subscriber| {
            // Bytes that wait are no silence of ours.
            if !subscriber.mailbox.borrow().is_empty() {
                return;
            }
            let bytes = Bytes::from_static(match subscriber.framing {
                Framing::Chunked => HEARTBEAT_CHUNK,
                Framing::Plain => HEARTBEAT,
            });
            self.push(subscriber, Parcel { bytes, events: 0 });
            sent += 1;
        });
        self.stats.heartbeats.add(sent);
    }

    pub(super) fn tick(&self) -> u64 {
        self.heartbeats.borrow().now()
    }

    /// Closes every stream, spread evenly over `period`, each with a reconnection time of its own.
    async fn drain(self: Rc<Self>, period: Duration) {
        let mut streams: Vec<_> = self
            .heartbeats
            .borrow()
            .subscribers()
            .map(|subscriber| Rc::downgrade(&subscriber))
            .collect();
        fastrand::shuffle(&mut streams);
        let total = streams.len();
        let start = Instant::now();
        let mut steps = interval(DRAIN_STEP);
        while !streams.is_empty() {
            let now = steps.tick().await;
            let share = if period.is_zero() {
                1.0
            } else {
                (now - start).div_duration_f64(period).min(1.0)
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share between 0 and 1 of a length"
            )]
            let left = total - (total as f64 * share) as usize;
            for stream in streams.drain(left.min(streams.len())..) {
                if let Some(subscriber) = stream.upgrade() {
                    self.end(&subscriber, CloseReason::Drain);
                }
            }
        }
    }

    fn end(&self, subscriber: &Subscriber, reason: CloseReason) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let mut bytes = Vec::new();
        let block = retry_block(self.settings.retry.draw());
        subscriber.framing.append(block.as_bytes(), &mut bytes);
        mailbox.queue(Parcel {
            bytes: Bytes::from(bytes),
            events: 0,
        });
        mailbox.end(reason);
    }
}
