//! One subscriber connection, from its first subscription to its end.
//!
//! First everything wanted is subscribed and a probe must come back ([`Phase::Subscribing`]). Then
//! the [`Driver`] is told so, and from then on ([`Phase::Serving`]) what arrives is handed to it.
//! While it reads history, for what was missed before the connection or before an event, what
//! arrives waits in the queue. In every phase probes and interest go on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::backfill::{Backfill, ReadBudget, ReadPage, read_state, state_key};
use super::control::Control;
use super::driver::Driver;
use super::functions::{Refusal, refusal};
use super::history::{HistoryReader, ReadNote};
use super::keeping::Keeping;
use super::library::{LIBRARY_VERSION, Library};
use super::probe::{self, Sent};
use super::push_queue::{Incoming, Mark, ProbeArrival, PushQueue, Take};
use super::sentinel::Confirmation;
use super::session_end::SessionEnd;
use super::subscriptions::{Subscribed, SubscriptionState, Subscriptions};
use crate::bus::BusHealth;
use crate::bus::routing::InterestChange;
use crate::continuity::Input;
use crate::hub::InterestUpdate;
use crate::protocol::{EventId, Revocation};
use crate::telemetry::DownCause;
use crate::telemetry::occurrences::{ProbeReturned, RedisUp};

/// How often the way through Redis is tried, and how long the probe may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
pub(super) const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// What outlives a connection: the wishes, what was seen, the ways to shards and operators.
pub(super) struct SubscriberState {
    pub(super) probe_channel: String,
    pub(super) control: Control,
    pub(super) driver: Driver,
    pub(super) keeping: Keeping,
    pub(super) reader: HistoryReader,
    pub(super) read_budget: ReadBudget,
    pub(super) updates: mpsc::Receiver<InterestUpdate>,
    /// What clients' reads of history told.
    pub(super) reads: mpsc::Receiver<ReadNote>,
    pub(super) health: watch::Sender<BusHealth>,
    /// Where messages of other replicas go.
    pub(super) hears: mpsc::Sender<Bytes>,
}

impl SubscriberState {
    /// Keeps these out, and has their streams ended.
    pub(super) async fn revoke(&mut self, revocations: Vec<Revocation>) {
        if revocations.is_empty() {
            return;
        }
        self.control.add(&revocations);
        let revoked = Arc::new(revocations.into_iter().collect());
        self.driver.routing.tell_revoked(revoked).await;
    }

    /// Takes note of what was found of the library.
    ///
    /// # Errors
    /// When it shows that this Redis is a replica or a node of a cluster, or events were kept until now.
    pub(super) fn note_library(&mut self, library: Library) -> Result<(), SessionEnd> {
        match library {
            Library::Replica => return Err(SessionEnd::Replica),
            Library::ClusterNode => return Err(SessionEnd::ClusterNode),
            _ => {}
        }
        let was_ready = self.keeping.is_ready();
        match self.keeping.note(library) {
            Some(retention) => self.driver.note_retention(retention),
            None if was_ready => return Err(SessionEnd::NotKept),
            None => {}
        }
        Ok(())
    }
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Subscribing to everything that was wanted, and waiting for the first probe.
    Subscribing,
    /// The newest id is being read: what is newer arrives.
    Starting,
    /// The driver handles what arrives, and reads what is missing.
    Serving,
}

/// One connection's life.
pub(super) struct Session<'a> {
    state: &'a mut SubscriberState,
    connection: MultiplexedConnection,
    queue: PushQueue,
    subscriptions: Subscriptions,
    /// Where Sentinels name the primary.
    confirmation: Option<Confirmation>,
    phase: Phase,
    /// The newest id issued, for [`Phase::Starting`].
    newest: OptionFuture<BoxFuture<'static, RedisResult<Option<EventId>>>>,
    backfill: Backfill,
    /// Taken from the queue and not handled yet.
    held: VecDeque<Incoming>,
    asking: OptionFuture<BoxFuture<'static, RedisResult<Library>>>,
    probe_answer: OptionFuture<BoxFuture<'static, RedisResult<Sent>>>,
    probe_number: u64,
    /// When the probe under way was sent.
    probe_sent: Option<Instant>,
    /// A probe has come back.
    proven: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        state: &'a mut SubscriberState,
        connection: MultiplexedConnection,
        queue: PushQueue,
        confirmation: Option<Confirmation>,
    ) -> Self {
        let (prefix, routing) = (state.driver.prefix(), &state.driver.routing);
        let backfill = Backfill::new(connection.clone(), state.reader.clone(), state.read_budget);
        Self {
            subscriptions: Subscriptions::new(connection.clone(), prefix, routing),
            backfill,
            state,
            connection,
            queue,
            confirmation,
            phase: Phase::Subscribing,
            newest: OptionFuture::default(),
            held: VecDeque::new(),
            asking: OptionFuture::default(),
            probe_answer: OptionFuture::default(),
            probe_number: fastrand::u64(..),
            probe_sent: None,
            proven: false,
        }
    }

    /// Serves until the connection has to be given up.
    pub(super) async fn run(mut self) -> SessionEnd {
        let end = match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let end = if self.state.driver.is_reading() && end.cause() == DownCause::Closed {
            self.state.read_budget.note_closed();
            SessionEnd::ClosedWhileReading
        } else {
            end
        };
        let mut unhandled = self.held;
        unhandled.extend(self.queue.take_rest());
        self.state.driver.lose(unhandled);
        end
    }

    async fn serve(&mut self) -> Result<Infallible, SessionEnd> {
        let mut probes = interval(PROBE_INTERVAL);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Before anything of it is told: this process may have been stopped for a while.
            if let Some(confirmation) = &mut self.confirmation {
                confirmation.check(Instant::now())?;
            }
            self.advance();
            let take = if self.may_handle() {
                Take::Everything
            } else {
                // The rest waits where its size is bounded.
                Take::UrgentOnly
            };
            let probe_deadline = self
                .probe_sent
                .map(|sent| sleep_until(sent + PROBE_DEADLINE));
            tokio::select! {
                arrived = self.queue.take(take) => {
                    let arrived = arrived?;
                    if let Some(probe) = arrived.probe {
                        self.probe_returned(probe);
                    }
                    if let Some(since) = arrived.since {
                        self.state.driver.routing.note_arrival(since);
                    }
                    self.state.revoke(arrived.revocations).await;
                    self.held.extend(arrived.items);
                    self.handle_held().await?;
                }
                update = self.state.updates.recv() => {
                    self.take_interest(update.ok_or(SessionEnd::Stopping)?).await;
                }
                Some((channel, page)) = self.state.reads.recv() => {
                    self.state.driver.note_client_read(channel, page);
                }
                Some(answer) = OptionFuture::from(self.subscriptions.answer()) => {
                    let Driver { routing, metrics, .. } = &self.state.driver;
                    let subscribed = self.subscriptions.take_answer(answer, routing, metrics);
                    self.subscribed(subscribed.map_err(SessionEnd::Subscribe)?);
                }
                Some(newest) = &mut self.newest => {
                    self.newest = OptionFuture::default();
                    self.start(newest.map_err(SessionEnd::History)?).await?;
                }
                Some(page) = self.backfill.next() => {
                    self.take_page(page.map_err(SessionEnd::History)?).await?;
                }
                Some(library) = &mut self.asking => {
                    self.asking = OptionFuture::default();
                    self.state.note_library(library.map_err(SessionEnd::Probe)?)?;
                    // The next probe has an id, or has none any more.
                    probes.reset_immediately();
                }
                Some(()) = OptionFuture::from(self.confirmation.as_mut().map(Confirmation::stirs)) => {}
                () = self.state.keeping.support.missing() => self.state.keeping.ask_now(),
                _ = probes.tick(), if self.probe_sent.is_none() => self.send_probe(),
                Some(sent) = &mut self.probe_answer => {
                    self.probe_answer = OptionFuture::default();
                    self.probe_taken(sent)?;
                }
                Some(()) = OptionFuture::from(probe_deadline) => match self.queue.probe() {
                    Some(probe) => self.probe_returned(probe),
                    None => return Err(SessionEnd::ProbeLate),
                },
            }
        }
    }

    /// Begins whatever can begin now.
    fn advance(&mut self) {
        let with_position = self.state.keeping.is_ready();
        self.subscriptions
            .advance(&self.state.driver.routing, with_position);
        if self.state.keeping.takes_turn() {
            let asked = self.state.keeping.ask(self.connection.clone());
            self.asking = Some(asked.boxed()).into();
        }
        let is_subscribed = self.proven && self.subscriptions.is_complete();
        if self.phase == Phase::Subscribing && is_subscribed {
            let mut connection = self.connection.clone();
            let key = state_key(self.state.driver.prefix());
            let newest = async move {
                if with_position {
                    read_state(&mut connection, &key).await
                } else {
                    Ok(None)
                }
            };
            self.phase = Phase::Starting;
            self.newest = Some(newest.boxed()).into();
        }
    }

    /// Whether what has arrived may be handed to the driver.
    fn may_handle(&self) -> bool {
        self.phase == Phase::Serving && !self.state.driver.is_reading()
    }

    /// Everything is subscribed, and what is newer than `newest` arrives.
    async fn start(&mut self, newest: Option<EventId>) -> Result<(), SessionEnd> {
        self.phase = Phase::Serving;
        let driver = &mut self.state.driver;
        driver.routing.note_arrival(std::time::Instant::now());
        let started = Input::Connected {
            subscribed: self.subscriptions.subscribed(),
            refused: self.subscriptions.refused(),
            newest,
        };
        driver.input(started).await?;
        self.after_input().await
    }

    /// Hands on a page that was read.
    async fn take_page(&mut self, (channel, page): ReadPage) -> Result<(), SessionEnd> {
        let driver = &mut self.state.driver;
        driver.routing.note_arrival(std::time::Instant::now());
        driver.input(Input::Page { channel, page }).await?;
        self.after_input().await
    }

    /// Sends the reads that the driver waits for, and goes on when there are none.
    async fn after_input(&mut self) -> Result<(), SessionEnd> {
        for read in self.state.driver.take_reads() {
            self.backfill.push(read);
        }
        if let Some(mark) = self.state.driver.take_started() {
            // Behind what arrived meanwhile.
            self.queue.mark(mark);
            self.tell_health();
        }
        if !self.state.driver.is_reading() {
            self.backfill.finish();
            self.state.read_budget.note_done();
            return self.handle_held().await;
        }
        self.state.driver.routing.flush().await;
        Ok(())
    }

    /// Hands on what is held, until history must be read for it.
    async fn handle_held(&mut self) -> Result<(), SessionEnd> {
        while self.may_handle()
            && let Some(item) = self.held.pop_front()
        {
            let driver = &mut self.state.driver;
            match item {
                Incoming::Message(message) => driver.message(message).await?,
                Incoming::Probe(probe) if self.state.keeping.is_ready() => {
                    if probe.library_version < LIBRARY_VERSION {
                        self.state.keeping.ask_now();
                    }
                    driver.probe(probe).await?;
                }
                Incoming::Probe(_) => {}
                Incoming::Mark(mark) => driver.mark(mark).await?,
            }
        }
        for read in self.state.driver.take_reads() {
            self.backfill.push(read);
        }
        self.state.driver.routing.flush().await;
        Ok(())
    }

    /// Notes what the shards want; what Redis already has is active at once.
    async fn take_interest(&mut self, update: InterestUpdate) {
        let driver = &mut self.state.driver;
        // Before that, all are told once the connection is started.
        let is_started = self.phase == Phase::Serving;
        let shard = update.shard;
        let mut active = Vec::new();
        let mut again = Vec::new();
        for (name, change) in driver.note_interest(update) {
            match (change, self.subscriptions.state(&name)) {
                (InterestChange::Wanted(generation), Some(SubscriptionState::Subscribed))
                    if is_started =>
                {
                    if driver.is_active(&name) {
                        active.push((name, generation));
                    } else {
                        again.push(name);
                    }
                }
                (InterestChange::Wanted(_), None) => self.subscriptions.want(name),
                (InterestChange::Unwanted, _) => self.subscriptions.give_up(name),
                // A command is under way: what is wanted then is looked at when it is answered.
                _ => {}
            }
        }
        if !active.is_empty() {
            driver.tell_one_active(active, shard).await;
        }
        if !again.is_empty() {
            self.queue.mark(driver.mark_again(again));
        }
    }

    /// Channels subscribed after the start are active when all that arrived before is handled.
    fn subscribed(&mut self, subscribed: Option<Subscribed>) {
        if let Some(Subscribed { channels, position }) = subscribed
            && self.phase != Phase::Subscribing
        {
            self.queue.mark(Mark { channels, position });
        }
    }

    fn send_probe(&mut self) {
        self.state.control.revocations.prune();
        self.probe_number = self.probe_number.wrapping_add(1);
        self.probe_sent = Some(Instant::now());
        let sending = probe::send(
            self.connection.clone(),
            self.state.probe_channel.clone(),
            self.probe_number,
            self.state.keeping.is_ready(),
        );
        self.probe_answer = Some(sending.boxed()).into();
    }

    /// Redis has taken a probe, or has not.
    fn probe_taken(&mut self, sent: RedisResult<Sent>) -> Result<(), SessionEnd> {
        let keeping = &mut self.state.keeping;
        match sent {
            Ok(Sent::AsAsked) => {
                if keeping.is_ready() {
                    keeping.note_refused(None);
                }
            }
            Ok(Sent::Refused(Refusal::Missing, _)) => keeping.ask_now(),
            Ok(Sent::Refused(_, error)) => keeping.note_refused(Some(error.to_string())),
            Err(error) => {
                return Err(match refusal(&error) {
                    Some(Refusal::Replica) => SessionEnd::Replica,
                    Some(Refusal::ClusterNode) => SessionEnd::ClusterNode,
                    _ => SessionEnd::Probe(error),
                });
            }
        }
        Ok(())
    }

    /// A probe came back: what is subscribed arrives.
    fn probe_returned(&mut self, probe: ProbeArrival) {
        if probe.number != self.probe_number {
            return;
        }
        let Some(sent) = self.probe_sent.take() else {
            return;
        };
        let took = probe.at.saturating_duration_since(sent);
        ProbeReturned { took }.emit(&self.state.driver.metrics);
        self.proven = true;
    }

    /// Up is: proven, and everything that was wanted when the connection was made is subscribed
    /// and complete.
    fn tell_health(&mut self) {
        let state = &mut *self.state;
        if *state.health.borrow() == BusHealth::Up {
            return;
        }
        state.health.send_replace(BusHealth::Up);
        RedisUp.emit(&state.driver.metrics);
    }
}
