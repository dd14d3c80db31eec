//! The hub of one shard: its state, and the tasks that keep it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::channels::Channels;
use super::heartbeat::HeartbeatWheel;
use super::mailbox::{PushRules, Pushed};
use super::parcel::Parcel;
use super::resume::{Opening, READ_AGAIN, Start};
use super::revocation::{RevocationSet, Revocations, now_ms};
use super::session::Session;
use super::stats::CloseReason;
use super::subscriber::{ChannelKey, Member, Reader, Subscriber};
use super::subscription::{Interest, NotOpened, StreamRequest, Subscription};
use super::timing::Clock;
use super::{
    EventBatch, HistoryRequest, HubSettings, INBOX_BATCHES, Inbox, InterestUpdate, News, ShardId,
    ShardMessage, ShardStats,
};
use crate::continuity::{Positions, heartbeat_cursor};
use crate::protocol::{ChannelName, Cursor, EventId, Framing, GapReason};

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
    pub(super) clock: Clock,
    pub(super) channels: RefCell<Channels>,
    pub(super) heartbeats: RefCell<HeartbeatWheel>,
    /// Some channels became active.
    activated: Notify,
    /// The bus is to be told of interest.
    interest_changed: Notify,
    draining: Cell<bool>,
    /// The shard begins to drain.
    drain_begun: Notify,
    /// How often the bus was lost.
    pub(super) losses: Cell<u64>,
    pub(super) positions: RefCell<Positions>,
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

    /// Opens a stream: waits until each channel is active at the bus and it is known what the
    /// client missed, for `patience` at most, and returns with the first bytes in the mailbox:
    /// `head`, then the first block. Whatever is published after a client has seen one of these
    /// bytes reaches it.
    ///
    /// # Errors
    /// When a channel is not active in time, or its history cannot be read, or the shard is
    /// draining or the session revoked by then.
    pub async fn subscribe(
        self: &Rc<Self>,
        request: &StreamRequest,
        framing: Framing,
        head: impl FnOnce() -> Vec<u8>,
        patience: Duration,
    ) -> Result<Subscription, NotOpened> {
        let interest = self.acquire(&request.channels);
        let keys = interest.keys();
        let session = request.session.as_ref();
        let opening = self.open(keys, request.start, session.map(Arc::as_ref));
        let opening = timeout(patience, opening)
            .await
            .map_err(|_| NotOpened::NotActive)?;
        if self.draining.get() {
            return Err(NotOpened::Draining);
        }
        if session.is_some_and(|session| self.is_revoked(session)) {
            return Err(NotOpened::Revoked);
        }
        if let Some(reason) = opening.is_over.filter(|_| request.sees_status) {
            return Err(NotOpened::Over(reason));
        }
        // From the moment that the opening tells of to the end nothing awaits, so no event can
        // pass in between.
        let Opening {
            cursor,
            part,
            replay,
            is_over: _,
        } = opening;
        let subscriber = Rc::new(Subscriber::new(framing, request.control, session.cloned()));
        subscriber.asks_for_ends.set(request.start != Start::Live);
        let age = self.settings.draw_age();
        subscriber.ends_at.set(age.map(|age| Instant::now() + age));
        let retry = self.settings.retry.draw();
        let mut block = request.control.first_block(retry, cursor);
        block += &self.gap_blocks(&subscriber, keys, &part);
        let mut first = head();
        framing.append(block.as_bytes(), &mut first);
        subscriber.mailbox.borrow_mut().open(Bytes::from(first));
        self.heartbeats
            .borrow_mut()
            .insert(&subscriber, request.heartbeat);
        self.send_events(&subscriber, &part);
        if part.live {
            self.go_live(&subscriber, keys, part.cursor);
            self.tell_ends(&subscriber, keys, &part);
            return Ok(Subscription::new(interest, subscriber, None));
        }
        self.channels
            .borrow_mut()
            .attach_replaying(&subscriber, keys);
        let replay = Rc::clone(self).replay(
            Rc::downgrade(&subscriber),
            replay,
            keys.into(),
            session.cloned(),
        );
        let replay = tokio::task::spawn_local(replay).abort_handle();
        Ok(Subscription::new(interest, subscriber, Some(replay)))
    }

    /// Tries until it is known how the stream begins.
    async fn open(
        self: &Rc<Self>,
        keys: &[ChannelKey],
        start: Start,
        session: Option<&Session>,
    ) -> Opening {
        loop {
            match self.begin(keys, start, session).await {
                Ok(opening) => return opening,
                Err(error) => {
                    tracing::debug!(%error, "a stream waits for its history");
                    sleep(READ_AGAIN).await;
                }
            }
        }
    }

    fn acquire(self: &Rc<Self>, names: &[ChannelName]) -> Interest {
        let mut channels = self.channels.borrow_mut();
        let keys = names.iter().map(|name| channels.acquire(name)).collect();
        self.after_interest_change(&channels);
        Interest::new(Rc::clone(self), keys)
    }

    pub(super) async fn all_active(&self, keys: &[ChannelKey]) {
        loop {
            let activated = self.activated.notified();
            if self.channels.borrow().all_active(keys) {
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
        }
    }

    /// Handles what the bus sends until it is gone. All events that have arrived meanwhile are
    /// one batch.
    pub async fn run(self: Rc<Self>, mut inbox: Inbox) {
        let mut messages = Vec::new();
        let mut batch: Vec<EventBatch> = Vec::new();
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

    pub(super) fn handle(self: &Rc<Self>, news: News) {
        match news {
            News::Position(position) => {
                let mut positions = self.positions.borrow_mut();
                if positions.newest().is_none() {
                    // Ids came into being while channels were active.
                    self.channels.borrow_mut().start_tails(position);
                }
                positions.note(position);
            }
            News::Active {
                channels: active,
                position,
            } => {
                if let Some(position) = position {
                    self.positions.borrow_mut().note(position);
                }
                let mut channels = self.channels.borrow_mut();
                for (name, generation) in active {
                    channels.activate(&name, generation, position);
                }
                self.activated.notify_waiters();
            }
            News::Rewound(position) => {
                let mut positions = Positions::new(self.settings.lag_bound);
                positions.note(position);
                self.positions.replace(positions);
                self.channels.borrow_mut().forget_events();
                // What a client has had is of the old sequence: it is no reason to skip anything.
                for subscriber in self.heartbeats.borrow().subscribers() {
                    subscriber.reach(Cursor::default());
                    subscriber.ends_through.set(EventId::ZERO);
                    subscriber.asks_for_ends.set(true);
                }
            }
            News::Lost => {
                self.losses.set(self.losses.get().wrapping_add(1));
                self.channels.borrow_mut().deactivate_all();
            }
            News::Revoked(revoked) => self.cut_off(&revoked),
            News::Census(reply) => {
                let loads = self.channels.borrow_mut().take_census(Instant::now());
                // Whoever asked may have given up.
                let _ = reply.try_send(loads);
            }
            News::Drain(period) => {
                if !self.draining.replace(true) {
                    self.drain_begun.notify_waiters();
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

    /// Sends heartbeats, gives up channels that nobody came back to, and keeps the clock right.
    pub async fn sweep(self: Rc<Self>) {
        let mut heartbeats = interval(self.heartbeats.borrow().tick());
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
                    channels.end_census(Instant::now());
                    self.clock.follow_time_of_day();
                    self.after_interest_change(&channels);
                }
            }
        }
    }

    /// Sends heartbeats to silent streams, and to all that are live their cursor where it has
    /// moved. Ends those whose token has expired, or that are old enough.
    fn beat(&self) {
        let mut sent = 0;
        let now = Instant::now();
        let durable = self.positions.borrow().durable();
        let channels = self.channels.borrow();
        let (tick, time) = (self.tick() + 1, SystemTime::now());
        self.heartbeats
            .borrow_mut()
            .advance(|subscriber, is_silent| {
                if is_silent && is_overdue(subscriber) {
                    self.abort(subscriber);
                } else if subscriber.expires_at().is_some_and(|at| at <= time) {
                    self.dismiss(subscriber, CloseReason::Expired, tick);
                } else if subscriber.ends_at.get().is_some_and(|at| at <= now) {
                    self.end(subscriber, CloseReason::Age);
                }
                let mailbox = subscriber.mailbox.borrow();
                // Bytes that wait are no silence of ours.
                if mailbox.end_reason().is_some() || !mailbox.is_empty() {
                    return;
                }
                drop(mailbox);
                let bytes = match moved_cursor(&channels, subscriber, durable) {
                    Some(cursor) => {
                        subscriber.told.set(cursor);
                        let block = subscriber.control.cursor_block(cursor);
                        subscriber.framing.frame(block.as_bytes())
                    }
                    None if is_silent => {
                        Bytes::from_static(subscriber.control.heartbeat(subscriber.framing))
                    }
                    None => return,
                };
                self.push(subscriber, Parcel::control(bytes));
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

    /// Ends the streams of revoked sessions.
    fn cut_off(&self, revoked: &RevocationSet) {
        let (tick, now_ms) = (self.tick(), now_ms());
        for subscriber in self.heartbeats.borrow().subscribers() {
            let is_revoked = |reader: &Reader| revoked.holds(&reader.session, now_ms);
            if subscriber.reader.as_deref().is_some_and(is_revoked) {
                // It gets nothing more, not even what is on its way.
                subscriber.mailbox.borrow_mut().discard();
                self.dismiss(&subscriber, CloseReason::Revoked, tick);
            }
        }
    }

    /// Tells a client why its stream ends, and ends it.
    fn dismiss(&self, subscriber: &Subscriber, reason: CloseReason, tick: u64) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let block = subscriber.control.close_block(reason.label());
        let bytes = subscriber.framing.frame(block.as_bytes());
        mailbox.queue(Parcel::control(bytes));
        mailbox.end(reason);
        subscriber.last_push.set(tick);
    }

    fn abort(&self, subscriber: &Subscriber) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if let Some(reason) = mailbox.end_reason() {
            let lost = mailbox.abort(reason);
            self.stats.events_dropped_slow_client.add(lost);
        }
    }

    fn end(&self, subscriber: &Subscriber, reason: CloseReason) {
        let mut mailbox = subscriber.mailbox.borrow_mut();
        if mailbox.end_reason().is_some() {
            return;
        }
        let mut bytes = Vec::new();
        let block = subscriber.control.retry_block(self.settings.retry.draw());
        subscriber.framing.append(block.as_bytes(), &mut bytes);
        mailbox.queue(Parcel::control(Bytes::from(bytes)));
        mailbox.end(reason);
    }
}

/// Whether a stream that was to end still has not: who may not read may not stay by not reading.
fn is_overdue(subscriber: &Subscriber) -> bool {
    let reason = subscriber.mailbox.borrow().end_reason();
    matches!(reason, Some(CloseReason::Expired | CloseReason::Revoked))
}

/// The cursor of a live stream, where it is later than what its client knows.
fn moved_cursor(
    channels: &Channels,
    subscriber: &Subscriber,
    durable: Option<EventId>,
) -> Option<Cursor> {
    if subscriber.member.get() == Member::Replaying {
        return None;
    }
    let (newest, gap) = channels.newest_of(subscriber);
    heartbeat_cursor(
        subscriber.told.get(),
        subscriber.skip_through.get(),
        newest.max(subscriber.newest_restricted()),
        gap,
        durable?,
    )
}
