//! How many streams may be open, and what an open one holds.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::requester::{ConnectionId, Requester};
use crate::hub::{CloseReason, Subscription};
use crate::telemetry::occurrences::ClientCutOff;

/// Connections beside the streams: requests that end, and clients that are told to come back.
/// Half of the descriptors that the configuration keeps in reserve; the other half is for Redis,
/// the admin listener and files.
const CONNECTIONS_BESIDE_STREAMS: usize = 128;

/// The bound on open streams, and on connections, shared by all shards. Counted when they open and
/// close, never when events pass.
#[derive(Debug)]
pub struct ConnectionLimit {
    most: usize,
    open: AtomicUsize,
    connections: Arc<Semaphore>,
}

/// A connection's place within the limit, until dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit);

impl ConnectionLimit {
    /// Allows `most` streams.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: AtomicUsize::new(0),
            connections: Arc::new(Semaphore::new(
                most.saturating_add(CONNECTIONS_BESIDE_STREAMS)
                    .min(Semaphore::MAX_PERMITS),
            )),
        })
    }

    /// Waits for a place for one connection more: at the bound accepting pauses, and the kernel's
    /// queue holds who comes.
    pub(super) async fn place(&self) -> Option<Place> {
        // Fails only when closed, which it never is.
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        permit.map(Place).ok()
    }

    /// A place for one stream more, if there is one.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Permit> {
        // Counted first, so that two shards cannot both take the last place.
        let permit = Permit(Arc::clone(self));
        (self.open.fetch_add(1, Ordering::Relaxed) < self.most).then_some(permit)
    }
}

/// A stream's place within the limit, until dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<ConnectionLimit>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open stream: its place within the limit and in the hub, given back together.
pub(super) struct OpenStream {
    pub(super) subscription: Subscription,
    _permit: Permit,
    connection: ConnectionId,
    client: IpAddr,
    subject: Option<Arc<str>>,
}

impl OpenStream {
    pub(super) fn new(subscription: Subscription, permit: Permit, requester: &Requester) -> Self {
        Self {
            subscription,
            _permit: permit,
            connection: requester.connection,
            client: requester.client,
            subject: requester.subject.clone(),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
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
                tracing::debug!(%connection, %client, subject, reason, "a stream has ended");
            }
        }
    }
}
