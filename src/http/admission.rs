//! How many streams and connections there may be, and what an open one holds.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::client_address::ClientAddress;
use super::limits::{Client, Counts, Hold, RateLimit, share};
use super::request_context::{ConnectionId, RequestContext};
use crate::bus::Tally;
use crate::config::{ClientRules, Rate};
use crate::hub::{CloseReason, Session, Subscription};
use crate::telemetry::occurrences::ClientCutOff;

/// Connections beside the streams: requests that end, and clients that are told to come back.
/// Half of the descriptors that the configuration keeps in reserve; the other half is for Redis,
/// the admin listener and files.
const CONNECTIONS_BESIDE_STREAMS: usize = 128;

/// Connections of one address beside its streams, likewise.
const CONNECTIONS_BESIDE_STREAMS_PER_ADDRESS: usize = 16;

/// Busy answers of one address that are held: half of those connections, so that the other half can ask
/// for something else.
const HELD_ANSWERS_PER_ADDRESS: NonZeroUsize =
    NonZeroUsize::new(CONNECTIONS_BESIDE_STREAMS_PER_ADDRESS / 2).unwrap();

/// TLS connections of one shard without a ClientHello. As many as may come at once in a storm of
/// reconnecting clients before the shard has read what they sent, and at least a few.
const MAX_WAITING_HELLOS: usize = 1024;
const MIN_WAITING_HELLOS: usize = 16;

/// Tickets of one subject (else one token id, else one address), on each replica. A page draws one
/// for each stream. Kept for half a minute, at a kilobyte each, those of one client take less than
/// a megabyte of what there is for all.
const TICKET_RATE: Rate = Rate {
    count: NonZeroU32::new(300).unwrap(),
    period: Duration::from_secs(30),
};

/// The bounds on streams and connections, shared by all shards. Looked at when they open and
/// close, never when events pass.
#[derive(Debug)]
pub struct Admission {
    most: usize,
    open: AtomicUsize,
    connections: Arc<Semaphore>,
    /// A connection has to wait for a place.
    crowded: Notify,
    /// Connections of each address that is no proxy's.
    connections_per_address: Arc<Counts>,
    held_answers: Arc<Counts>,
    streams: Arc<Counts>,
    stream_rate: Option<RateLimit>,
    publish_rate: Option<RateLimit>,
    ticket_rate: RateLimit,
    rules: ClientRules,
}

/// Why a stream is not opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The replica has all it can hold.
    Replica,
    /// The address has all it may have.
    Address,
    /// The subject has all it may have.
    Subject,
    /// The address asks too often.
    Rate,
}

impl Admission {
    /// Allows `most` streams on this replica, and each client what `rules` say.
    pub fn new(most: usize, rules: ClientRules) -> Arc<Self> {
        let per_address = rules.max_connections_per_ip;
        let connections_per_address =
            per_address.map(|most| most.saturating_add(CONNECTIONS_BESIDE_STREAMS_PER_ADDRESS));
        Arc::new(Self {
            most,
            open: AtomicUsize::new(0),
            connections: Arc::new(Semaphore::new(
                most.saturating_add(CONNECTIONS_BESIDE_STREAMS)
                    .min(Semaphore::MAX_PERMITS),
            )),
            crowded: Notify::new(),
            connections_per_address: Counts::new(connections_per_address, None::<NonZeroUsize>),
            held_answers: Counts::new(
                per_address.map(|_| HELD_ANSWERS_PER_ADDRESS),
                None::<NonZeroUsize>,
            ),
            streams: Counts::new(per_address, rules.max_connections_per_subject),
            stream_rate: rules.connect_rate_per_ip.map(RateLimit::new),
            publish_rate: rules.publish_rate_per_subject.map(RateLimit::new),
            ticket_rate: RateLimit::new(TICKET_RATE),
            rules,
        })
    }

    /// How many TLS connections of one shard may be without a ClientHello: together with those of other
    /// shards they leave most places to connections that speak.
    pub(super) fn max_waiting_hellos(&self) -> usize {
        let connections = self.most.saturating_add(CONNECTIONS_BESIDE_STREAMS);
        (connections / 64).clamp(MIN_WAITING_HELLOS, MAX_WAITING_HELLOS)
    }

    /// What is allowed.
    pub(super) fn rules(&self) -> &ClientRules {
        &self.rules
    }

    /// Has the limits of single clients hold for all replicas together, for ever.
    pub async fn share(self: Arc<Self>, tally: Tally) {
        if self.streams.is_off() {
            return std::future::pending().await;
        }
        share(Arc::clone(&self.streams), tally).await;
    }

    /// Waits for a place for one connection more: at the bound accepting pauses, and the kernel's
    /// queue holds who comes.
    pub(super) async fn place(&self) -> Option<Place> {
        let places = || Arc::clone(&self.connections);
        let permit = match places().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.crowded.notify_waiters();
                // Fails only when closed, which it never is.
                places().acquire_owned().await.ok()?
            }
        };
        Some(Place {
            _permit: permit,
            _of_address: None,
        })
    }

    /// Waits until a connection finds no place free.
    pub(super) async fn is_crowded(&self) {
        self.crowded.notified().await;
    }

    /// A place for a busy answer of this client that is held with its connection, or `None` where others
    /// may need it more.
    pub(super) fn hold_answer(&self, client: ClientAddress) -> Option<Option<Hold>> {
        if self.connections.available_permits() < CONNECTIONS_BESIDE_STREAMS / 2 {
            return None;
        }
        self.held_answers.hold(Client::Address(client.group()), 0)
    }

    /// Gives a connection's place to whoever is at its other end, unless there are too many of
    /// that address. Proxies have as many as they need.
    pub(super) fn seat(&self, place: Place, peer: IpAddr) -> Option<Place> {
        if self.rules.trusted_proxies.contains(peer.to_canonical()) {
            return Some(place);
        }
        let client = Client::Address(ClientAddress(peer).group());
        Some(Place {
            _of_address: self.connections_per_address.hold(client, 0)?,
            ..place
        })
    }

    /// A place for one stream more.
    ///
    /// # Errors
    /// When there is none, with what is full.
    pub(super) async fn admit(
        self: &Arc<Self>,
        address: ClientAddress,
        session: Option<&Session>,
    ) -> Result<Permit, Full> {
        let client = Client::Address(address.group());
        if let Some(rate) = &self.stream_rate
            && rate.check(client.clone()).is_err()
        {
            return Err(Full::Rate);
        }
        let subject = session.and_then(|session| session.subject.clone());
        let of_subject = async {
            match subject {
                Some(subject) => self.streams.hold_among_all(Client::Subject(subject)).await,
                None => Some(None),
            }
        };
        let (of_address, of_subject) =
            tokio::join!(self.streams.hold_among_all(client), of_subject);
        let of_address = of_address.ok_or(Full::Address)?;
        let of_subject = of_subject.ok_or(Full::Subject)?;
        // Counted first, so that two shards cannot both take the last place.
        let permit = Permit {
            admission: Arc::clone(self),
            _of_address: of_address,
            _of_subject: of_subject,
        };
        if self.open.fetch_add(1, Ordering::Relaxed) < self.most {
            Ok(permit)
        } else {
            Err(Full::Replica)
        }
    }

    /// Counts one ticket more that a client draws.
    ///
    /// # Errors
    /// When it draws too many, with the time after which it may again.
    pub(super) fn ticket(
        &self,
        address: ClientAddress,
        drawer: Option<&Arc<str>>,
    ) -> Result<(), Duration> {
        self.ticket_rate.check(Client::of(address, drawer))
    }

    /// Counts one event more that a client publishes.
    ///
    /// # Errors
    /// When it publishes too often, with the time after which it may again.
    pub(super) fn publish(
        &self,
        address: ClientAddress,
        subject: Option<&Arc<str>>,
    ) -> Result<(), Duration> {
        match &self.publish_rate {
            Some(rate) => rate.check(Client::of(address, subject)),
            None => Ok(()),
        }
    }
}

/// A connection's place within the limits, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _of_address: Option<Hold>,
}

/// A stream's place within the limits, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    _of_address: Option<Hold>,
    _of_subject: Option<Hold>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open stream: its place within the limits and in the hub, given back together.
pub(super) struct OpenStream {
    pub(super) subscription: Subscription,
    _permit: Permit,
    connection: ConnectionId,
    client: IpAddr,
    subject: Option<Arc<str>>,
}

impl OpenStream {
    pub(super) fn new(
        subscription: Subscription,
        permit: Permit,
        context: &RequestContext,
    ) -> Self {
        Self {
            subscription,
            _permit: permit,
            connection: context.connection,
            client: context.client,
            subject: context.subject.clone(),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if !self.subscription.is_open() {
            return;
        }
        let Self {
            connection,
            client,
            subject,
            ..
        } = self;
        let reason = self.subscription.close_reason();
        match reason {
            CloseReason::SlowClient | CloseReason::Unresponsive => ClientCutOff {
                connection,
                client: *client,
                subject: subject.as_deref(),
                reason,
            }
            .emit(),
            _ => {
                let reason = reason.label();
                let subject = subject.as_deref();
                tracing::debug!(%connection, %client, subject, reason, "stream closed");
            }
        }
    }
}
