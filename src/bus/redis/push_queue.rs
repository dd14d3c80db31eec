//! The queue between the Redis client, which must never wait, and the supervisor.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::bus::peer_queue;
use crate::protocol::{ChannelName, EventId, Frame, Revocation, decode_frame, is_frame};

/// What may wait, in bytes. As much as Redis itself keeps for a subscriber that does not read
/// (`client-output-buffer-limit pubsub 32mb`): a replica that is further behind than that starts
/// over on a new connection.
const MOST_WAITING_BYTES: usize = 32 << 20;

/// What an item costs beside its channel and payload.
const ITEM_OVERHEAD_BYTES: usize = 128;

/// A message of a channel.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) channel: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

/// What arrived, in the order of the connection.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Message),
    /// A probe of ours with an id: what was published before it has arrived.
    Probe(ProbeId),
    /// A note of our own, see [`PushQueue::mark`].
    Mark(Mark),
}

/// What the function library says of a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeId {
    pub(super) id: EventId,
    /// The first id of the sequence.
    pub(super) epoch: EventId,
    pub(super) library_version: u64,
}

/// These channels are active once everything is handled that arrived before.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) channels: Vec<ChannelName>,
    /// The newest id that had been issued when they were subscribed already.
    pub(super) position: Option<EventId>,
}

/// Why no more messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueueEnd {
    #[error("Redis closed the connection")]
    Disconnected,
    #[error("this replica fell behind by more than {} MiB", MOST_WAITING_BYTES >> 20)]
    Overflowed,
}

/// A probe that came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeArrival {
    pub(super) number: u64,
    pub(super) at: Instant,
}

/// What has arrived.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) items: VecDeque<Incoming>,
    /// When the first of them came.
    pub(super) since: Option<std::time::Instant>,
    /// The newest probe. Noted as it comes in: a backlog of ours is no fault of Redis.
    pub(super) probe: Option<ProbeArrival>,
    /// They wait for nothing: what is before them may take a while.
    pub(super) revocations: Vec<Revocation>,
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.probe.is_none() && self.revocations.is_empty()
    }
}

/// What is to be taken from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    Everything,
    /// What has arrived stays where it is, but for what does not wait: that a probe came back, and
    /// revocations.
    UrgentOnly,
}

struct State {
    probe_channel: Vec<u8>,
    control_channel: Vec<u8>,
    hears: mpsc::Sender<Bytes>,
    arrived: Arrived,
    bytes: usize,
    /// What revocations take.
    urgent_bytes: usize,
    end: Option<QueueEnd>,
}

/// A queue bounded in bytes, of one connection.
#[derive(Clone)]
pub(super) struct PushQueue(Arc<(Mutex<State>, Notify)>);

impl PushQueue {
    /// An empty queue; messages of `probe_channel` are probes. Those of `control_channel` are
    /// revocations, and what else replicas say to each other, which goes to `hears` at once.
    pub(super) fn new(
        probe_channel: &str,
        control_channel: &str,
        hears: &mpsc::Sender<Bytes>,
    ) -> Self {
        let state = State {
            probe_channel: probe_channel.into(),
            control_channel: control_channel.into(),
            hears: hears.clone(),
            arrived: Arrived::default(),
            bytes: 0,
            urgent_bytes: 0,
            end: None,
        };
        Self(Arc::new((Mutex::new(state), Notify::new())))
    }

    /// Takes what the Redis client received. Never waits: past the bound the queue ends.
    pub(super) fn push(&self, push: PushInfo) {
        let mut state = self.lock();
        match push.kind {
            PushKind::Message => {
                let mut parts = push.data.into_iter();
                if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
                    (parts.next(), parts.next())
                {
                    if channel == state.probe_channel {
                        state.take_probe(payload);
                    } else if channel == state.control_channel {
                        if is_frame(&payload) {
                            state.take_control(payload);
                        } else {
                            peer_queue::take(payload, &state.hears);
                        }
                    } else {
                        let bytes = channel.len() + payload.len();
                        state.add(Incoming::Message(Message { channel, payload }), bytes);
                    }
                }
            }
            PushKind::Disconnection => {
                state.end.get_or_insert(QueueEnd::Disconnected);
            }
            // Confirmations: they answer the commands that asked for them.
            _ => return,
        }
        drop(state);
        self.0.1.notify_one();
    }

    /// Puts a note behind everything that has arrived until now.
    pub(super) fn mark(&self, mark: Mark) {
        let bytes = mark.channels.len() * size_of::<ChannelName>();
        self.lock().add(Incoming::Mark(mark), bytes);
        self.0.1.notify_one();
    }

    /// Waits until something has arrived and takes it.
    ///
    /// # Errors
    /// When the queue has ended, and nothing is left of what was to be taken.
    pub(super) async fn take(&self, take: Take) -> Result<Arrived, QueueEnd> {
        loop {
            {
                let mut state = self.lock();
                state.urgent_bytes = 0;
                let mut arrived = std::mem::take(&mut state.arrived);
                match take {
                    Take::Everything => state.bytes = 0,
                    Take::UrgentOnly => {
                        state.arrived.items = std::mem::take(&mut arrived.items);
                        state.arrived.since = arrived.since.take();
                    }
                }
                if !arrived.is_empty() {
                    return Ok(arrived);
                }
                if let Some(end) = state.end {
                    return Err(end);
                }
            }
            self.0.1.notified().await;
        }
    }

    /// Takes what is there, at once.
    pub(super) fn take_rest(&self) -> VecDeque<Incoming> {
        std::mem::take(&mut self.lock().arrived.items)
    }

    /// The probe that has arrived and was not taken yet.
    pub(super) fn probe(&self) -> Option<ProbeArrival> {
        self.lock().arrived.probe
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock()
    }
}

impl State {
    fn add(&mut self, item: Incoming, bytes: usize) {
        if self.end.is_some() {
            return;
        }
        self.bytes += bytes + ITEM_OVERHEAD_BYTES;
        let waiting_bytes = self.bytes + self.urgent_bytes;
        if waiting_bytes > MOST_WAITING_BYTES && !self.arrived.items.is_empty() {
            self.end = Some(QueueEnd::Overflowed);
        } else {
            self.arrived
                .since
                .get_or_insert_with(std::time::Instant::now);
            self.arrived.items.push_back(item);
        }
    }

    /// A message of another gateway or of an operator. One of a kind that this version does not
    /// know is for later ones.
    fn take_control(&mut self, payload: Vec<u8>) {
        if self.end.is_some() {
            return;
        }
        self.urgent_bytes += payload.len() + ITEM_OVERHEAD_BYTES;
        match decode_frame(Bytes::from(payload), 0) {
            Ok(Frame::Revocation(revocation)) => self.arrived.revocations.push(revocation),
            Ok(_) => {}
            Err(fault) => tracing::debug!(%fault, "a control message is not understood"),
        }
        if self.bytes + self.urgent_bytes > MOST_WAITING_BYTES {
            self.end = Some(QueueEnd::Overflowed);
        }
    }

    /// A probe carries an id, or is a bare number where the function is not to be had.
    fn take_probe(&mut self, payload: Vec<u8>) {
        let number = if is_frame(&payload) {
            match decode_frame(Bytes::from(payload), 0) {
                Ok(Frame::Probe {
                    id,
                    epoch,
                    library_version,
                    number,
                }) => {
                    let probe = ProbeId {
                        id,
                        epoch,
                        library_version,
                    };
                    self.add(Incoming::Probe(probe), 0);
                    Some(number)
                }
                Ok(_) => None,
                Err(fault) => {
                    tracing::warn!(
                        %fault,
                        "a probe came back that cannot be read: see to the ids in <prefix>$state"
                    );
                    None
                }
            }
        } else {
            let text = std::str::from_utf8(&payload).ok();
            text.and_then(|text| text.parse().ok())
        };
        if let Some(number) = number {
            let at = Instant::now();
            self.arrived.probe = Some(ProbeArrival { number, at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(channel: &str, payload: Vec<u8>) -> PushInfo {
        PushInfo {
            kind: PushKind::Message,
            data: vec![
                Value::BulkString(channel.into()),
                Value::BulkString(payload),
            ],
        }
    }

    fn queue() -> PushQueue {
        PushQueue::new("probe", "control", &mpsc::channel(1).0)
    }

    #[tokio::test]
    async fn what_came_before_the_end_is_still_handed_out() {
        let queue = queue();
        queue.push(message("c", b"one".to_vec()));
        queue.push(message("c", b"two".to_vec()));
        queue.push(PushInfo {
            kind: PushKind::Disconnection,
            data: vec![],
        });
        queue.push(message("c", b"late".to_vec()));
        let end = queue.take(Take::UrgentOnly).await.unwrap_err();
        assert_eq!(end, QueueEnd::Disconnected);
        let taken = queue.take(Take::Everything).await.unwrap();
        assert_eq!(taken.items.len(), 2);
        let end = queue.take(Take::Everything).await.unwrap_err();
        assert_eq!(end, QueueEnd::Disconnected);
    }

    #[tokio::test]
    async fn a_probe_passes_what_waits_and_its_id_does_not() {
        let queue = queue();
        queue.push(message("c", b"one".to_vec()));
        queue.push(message("probe", b"\xff1p7-0 5-0 1\n7".to_vec()));
        assert_eq!(queue.probe().unwrap().number, 7);
        let taken = queue.take(Take::UrgentOnly).await.unwrap();
        assert_eq!((taken.items.len(), taken.probe.unwrap().number), (0, 7));
        queue.push(message("probe", b"8".to_vec()));
        let taken = queue.take(Take::Everything).await.unwrap();
        assert_eq!(taken.probe.unwrap().number, 8);
        assert!(matches!(
            (&taken.items[0], &taken.items[1]),
            (Incoming::Message(_), Incoming::Probe(probe)) if probe.id == EventId::new(7, 0)
        ));
        assert!(queue.probe().is_none());
    }

    #[tokio::test]
    async fn a_revocation_passes_what_waits() {
        let (hears, mut heard) = mpsc::channel(1);
        let queue = PushQueue::new("probe", "control", &hears);
        queue.push(message("c", b"one".to_vec()));
        queue.push(message("control", b"\xff1r5\nsub:alice".to_vec()));
        for of_a_later_version in [&b"\xff1z5\nx"[..], b"\xff9r5\nsub:bob", b"hello"] {
            queue.push(message("control", of_a_later_version.to_vec()));
        }
        let taken = queue.take(Take::UrgentOnly).await.unwrap();
        let revoked: Vec<_> = taken
            .revocations
            .iter()
            .map(|revocation| revocation.revoked.to_string())
            .collect();
        assert_eq!((taken.items.len(), revoked), (0, vec!["sub:alice".into()]));
        // What is no frame is for the other replicas' own business.
        assert_eq!(heard.try_recv().unwrap(), "hello");
        assert!(heard.try_recv().is_err());
        let taken = queue.take(Take::Everything).await.unwrap();
        assert_eq!((taken.items.len(), taken.revocations.len()), (1, 0));
    }

    #[tokio::test]
    async fn past_its_bound_it_ends() {
        let queue = queue();
        queue.push(message("c", vec![0; MOST_WAITING_BYTES * 2]));
        queue.push(message("c", vec![0; 1]));
        let taken = queue.take(Take::Everything).await.unwrap();
        assert_eq!(taken.items.len(), 1);
        let end = queue.take(Take::Everything).await.unwrap_err();
        assert_eq!(end, QueueEnd::Overflowed);
    }
}
