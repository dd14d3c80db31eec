//! One subscriber connection, from its first subscription to its end.
//!
//! First everything wanted is subscribed and a probe must come back ([`Phase::Settling`]), then
//! what was missed since the last connection is read ([`Phase::Starting`]); what arrives meanwhile
//! waits in the queue. Then channels are told active, and what arrives is delivered
//! ([`Phase::Serving`]). When history must be read for an event, it and all that follows wait
//! ([`Phase::Filling`]). In every phase probes and interest go on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::backfill::{Backfill, Missed, ReadBudget, Started};
use super::control::Control;
use super::deliver::{Delivery, Filled, IdsWentBack, Interrupted, Interruption};
use super::functions::{Refusal, refusal};
use super::history::{HistoryReader, ReadNote};
use super::ingest::{Incoming, Mark, ProbeArrival, PushQueue, QueueEnd, Take};
use super::keeping::Keeping;
use super::library::{LIBRARY_VERSION, Library};
use super::probe::{self, Sent};
use super::sentinel::{Confirmation, Distrust, NoPrimary};
use super::subscriptions::{Standing, Subscribed, Subscriptions};
use crate::bus::BusHealth;
use crate::bus::routing::Wish;
use crate::hub::InterestUpdate;
use crate::protocol::{ChannelName, Cursor, EventId, Revocation};
use crate::telemetry::DownCause;
use crate::telemetry::occurrences::{ProbeReturned, RedisUp};

/// How often the way through Redis is tried, and how long the probe may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error(transparent)]
    NoPrimary(#[from] NoPrimary),
    #[error("cannot connect to Redis: {0}")]
    Connect(RedisError),
    #[error(transparent)]
    Queue(#[from] QueueEnd),
    #[error("Redis did not take a subscription: {0}")]
    Subscribe(RedisError),
    #[error("Redis did not take a probe: {0}")]
    Probe(RedisError),
    #[error("a probe did not come back within {PROBE_DEADLINE:?}")]
    ProbeLate,
    #[error("a history could not be read: {0}")]
    History(RedisError),
    /// Redis gives no reason when it closes a connection for its output buffer.
    #[error(
        "Redis closed the connection while histories were read; if this repeats, Redis' log says \
         whether its client-output-buffer-limit for pubsub is too low"
    )]
    ClosedWhileReading,
    #[error("Redis is a replica: its primary is elsewhere")]
    Replica,
    #[error(transparent)]
    Distrust(#[from] Distrust),
    #[error(transparent)]
    IdsWentBack(#[from] IdsWentBack),
    /// Everybody is to be told anew, without ids.
    #[error("the function library is not there any more")]
    NotKept,
    #[error("the gateway is stopping")]
    Stopping,
}

impl SessionEnd {
    /// What is the matter, for machines.
    pub(super) fn cause(&self) -> DownCause {
        match self {
            Self::NoPrimary(_) => DownCause::Sentinel,
            Self::Connect(error) => match cause(error) {
                DownCause::Silent | DownCause::Closed => DownCause::Unreachable,
                cause => cause,
            },
            Self::Queue(QueueEnd::Disconnected) | Self::ClosedWhileReading => DownCause::Closed,
            Self::Queue(QueueEnd::Overflowed) => DownCause::Behind,
            Self::Subscribe(error) | Self::Probe(error) | Self::History(error) => cause(error),
            Self::ProbeLate => DownCause::Silent,
            Self::Replica | Self::Distrust(_) => DownCause::NotPrimary,
            Self::IdsWentBack(_) => DownCause::IdsWentBack,
            Self::NotKept => DownCause::Library,
            Self::Stopping => DownCause::Closed,
        }
    }
}

fn cause(error: &RedisError) -> DownCause {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::BusyLoading) => DownCause::Loading,
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => {
            DownCause::NotPrimary
        }
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
            DownCause::Refused
        }
        _ if error.is_timeout() => DownCause::Silent,
        _ => DownCause::Closed,
    }
}

/// What outlives a connection: the wishes, what was seen, the ways to shards and operators.
pub(super) struct SubscriberState {
    pub(super) probe_channel: String,
    pub(super) control: Control,
    pub(super) delivery: Delivery,
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
        self.delivery.routing.tell_revoked(revoked).await;
    }

    /// Takes note of what was found of the library.
    ///
    /// # Errors
    /// When it shows that this Redis is a replica, or events were kept until now.
    pub(super) fn note_library(&mut self, library: Library) -> Result<(), SessionEnd> {
        if matches!(&library, Library::Unavailable(reason) if reason.contains("connected to a replica"))
        {
            return Err(SessionEnd::Replica);
        }
        let was_ready = self.keeping.is_ready();
        match self.keeping.note(library) {
            Some(retention) => self.delivery.retention = retention,
            None if was_ready => return Err(SessionEnd::NotKept),
            None => {}
        }
        Ok(())
    }
}

/// What a connection is at.
enum Phase {
    /// Subscribing to everything that was wanted, and waiting for the first probe.
    Settling,
    /// Reading what these channels have missed.
    Starting(Vec<ChannelName>),
    /// Delivering.
    Serving,
    /// Reading what was missed before this event.
    Filling(Interrupted),
}

/// What was read from history.
enum Read {
    Started(Started),
    Filled(Filled),
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
    reading: OptionFuture<BoxFuture<'static, RedisResult<Read>>>,
    /// Taken from the queue and not delivered yet.
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
        let Delivery {
            prefix, routing, ..
        } = &state.delivery;
        Self {
            subscriptions: Subscriptions::new(connection.clone(), prefix, routing),
            state,
            connection,
            queue,
            confirmation,
            phase: Phase::Settling,
            reading: OptionFuture::default(),
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
        let is_reading = matches!(self.phase, Phase::Starting(_) | Phase::Filling(_));
        let end = if is_reading && end.cause() == DownCause::Closed {
            self.state.read_budget.note_closed();
            SessionEnd::ClosedWhileReading
        } else {
            end
        };
        let mut unhandled = self.held;
        unhandled.extend(self.queue.take_rest());
        self.state.delivery.abandon(unhandled);
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
            let take = match self.phase {
                Phase::Serving => Take::Everything,
                // The rest waits where its size is bounded.
                Phase::Settling | Phase::Starting(_) | Phase::Filling(_) => Take::UrgentOnly,
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
                        self.state.delivery.routing.note_arrival(since);
                    }
                    self.state.revoke(arrived.revocations).await;
                    self.held.extend(arrived.items);
                    self.deliver().await?;
                }
                update = self.state.updates.recv() => {
                    self.take_interest(update.ok_or(SessionEnd::Stopping)?).await;
                }
                Some((channel, page)) = self.state.reads.recv() => {
                    self.state.delivery.note_read(&channel, &page);
                }
                Some(answer) = OptionFuture::from(self.subscriptions.answer()) => {
                    let routing = &self.state.delivery.routing;
                    let metrics = &self.state.delivery.metrics;
                    let settled = self.subscriptions.settle(answer, routing, metrics);
                    self.subscribed(settled.map_err(SessionEnd::Subscribe)?);
                }
                Some(read) = &mut self.reading => {
                    self.reading = OptionFuture::default();
                    self.take_read(read.map_err(SessionEnd::History)?).await?;
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
            .advance(&self.state.delivery.routing, with_position);
        if self.state.keeping.takes_turn() {
            let asked = self.state.keeping.ask(self.connection.clone());
            self.asking = Some(asked.boxed()).into();
        }
        if matches!(self.phase, Phase::Settling) && self.proven && self.subscriptions.is_settled() {
            let channels = self.subscriptions.subscribed();
            let missed = self.state.delivery.missed(&channels);
            let backfill = self.backfill();
            let reading = async move {
                if with_position {
                    backfill.start(missed).await.map(Read::Started)
                } else {
                    Ok(Read::Started(Started::default()))
                }
            };
            self.phase = Phase::Starting(channels);
            self.reading = Some(reading.boxed()).into();
        }
    }

    fn backfill(&self) -> Backfill {
        Backfill::new(
            self.connection.clone(),
            self.state.reader.clone(),
            self.state.delivery.lag_bound,
            self.state.read_budget,
        )
    }

    /// Hands on what was read, and goes on serving.
    async fn take_read(&mut self, read: Read) -> Result<(), SessionEnd> {
        self.state.read_budget.note_done();
        let delivery = &mut self.state.delivery;
        match (std::mem::replace(&mut self.phase, Phase::Serving), read) {
            (Phase::Starting(channels), Read::Started(started)) => {
                delivery.routing.note_arrival(std::time::Instant::now());
                let position = started.bound;
                delivery.start(started, &channels).await;
                let subscriptions = &self.subscriptions;
                delivery.miss(|name| subscriptions.standing(name) == Some(Standing::Refused));
                // Behind what arrived meanwhile.
                self.queue.mark(Mark { channels, position });
                self.tell_health();
            }
            (Phase::Filling(interrupted), Read::Filled(filled)) => {
                if let Some(interrupted) = delivery.fill(interrupted, filled).await {
                    self.read_before(interrupted);
                    return Ok(());
                }
            }
            // A read belongs to its phase.
            (phase, _) => self.phase = phase,
        }
        self.deliver().await
    }

    /// Delivers what is held, until history must be read for it.
    async fn deliver(&mut self) -> Result<(), SessionEnd> {
        while matches!(self.phase, Phase::Serving)
            && let Some(item) = self.held.pop_front()
        {
            match item {
                Incoming::Message(message) => {
                    if let Some(interrupted) = self.state.delivery.message(message).await {
                        self.read_before(interrupted);
                    }
                }
                Incoming::Probe(probe) if self.state.keeping.is_ready() => {
                    if probe.library_version < LIBRARY_VERSION {
                        self.state.keeping.ask_now();
                    }
                    self.state.delivery.probe(probe).await?;
                }
                Incoming::Probe(_) => {}
                Incoming::Mark(mark) => self.state.delivery.mark(mark).await,
            }
        }
        self.state.delivery.routing.flush().await;
        Ok(())
    }

    fn read_before(&mut self, interrupted: Interrupted) {
        let backfill = self.backfill();
        let channel = interrupted.channel.clone();
        let last = interrupted.event.prev;
        let reading = match interrupted.why {
            Interruption::Hole(seen) => {
                let cursor = Cursor::new(seen, EventId::ZERO);
                let read = backfill.fill(Missed { channel, cursor }, last);
                read.map(|recovery| recovery.map(|recovery| Read::Filled(Filled::Hole(recovery))))
                    .boxed()
            }
            Interruption::Ahead => backfill
                .look(channel, interrupted.event.id)
                .map(|page| page.map(|page| Read::Filled(Filled::Ahead(page))))
                .boxed(),
            Interruption::Rewound(seen) => backfill
                .look(channel, seen)
                .map(|page| page.map(|page| Read::Filled(Filled::Rewound(page))))
                .boxed(),
        };
        self.reading = Some(reading).into();
        self.phase = Phase::Filling(interrupted);
    }

    /// Notes what the shards want; what Redis already has is active at once.
    async fn take_interest(&mut self, update: InterestUpdate) {
        let delivery = &mut self.state.delivery;
        let is_started = matches!(self.phase, Phase::Serving | Phase::Filling(_));
        let shard = update.shard;
        let mut active = Vec::new();
        let mut again = Vec::new();
        for (name, wish) in delivery.routing.apply(update) {
            match (wish, self.subscriptions.standing(&name)) {
                // Otherwise all are told once the connection is started.
                (Wish::Wanted(generation), Some(Standing::Subscribed)) if is_started => {
                    let record = delivery.routing.record(&name);
                    if record.is_some_and(|record| record.active) {
                        active.push((name, generation));
                    } else {
                        again.push(name);
                    }
                }
                (Wish::Wanted(_), None) => self.subscriptions.want(name),
                (Wish::Unwanted, _) => self.subscriptions.give_up(name),
                // A command under way: what is wanted then is looked at when it is settled.
                _ => {}
            }
        }
        if !active.is_empty() {
            delivery.tell_one_active(active, shard).await;
        }
        if !again.is_empty() {
            self.queue.mark(Mark {
                channels: again,
                position: delivery.told_position(),
            });
        }
    }

    /// Channels subscribed after the start are active when all that arrived before is delivered.
    fn subscribed(&mut self, subscribed: Option<Subscribed>) {
        if let Some(Subscribed { channels, position }) = subscribed
            && !matches!(self.phase, Phase::Settling)
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
            Err(error) if refusal(&error) == Some(Refusal::Replica) => {
                return Err(SessionEnd::Replica);
            }
            Err(error) => return Err(SessionEnd::Probe(error)),
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
        ProbeReturned { took }.emit(&self.state.delivery.metrics);
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
        RedisUp.emit(&state.delivery.metrics);
    }
}
