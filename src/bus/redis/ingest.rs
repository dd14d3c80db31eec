//! The queue between the Redis client, which must never wait, and the supervisor.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What may wait, in bytes. As much as Redis itself keeps for a subscriber that does not read
/// (`client-output-buffer-limit pubsub 32mb`): a replica that is further behind than that starts
/// over on a new connection.
const MOST_WAITING_BYTES: usize = 32 << 20;

/// What a message costs beside its channel and payload.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// A message of a channel.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) channel: Vec<u8>,
    pub(super) payload: Vec<u8>,
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
    pub(super) messages: VecDeque<Message>,
    /// The newest probe. Noted as it comes in: a backlog of ours is no fault of Redis.
    pub(super) probe: Option<ProbeArrival>,
}

struct State {
    probe_channel: Vec<u8>,
    arrived: Arrived,
    bytes: usize,
    end: Option<QueueEnd>,
}

/// A queue bounded in bytes, of one connection.
#[derive(Clone)]
pub(super) struct PushQueue(Arc<(Mutex<State>, Notify)>);

impl PushQueue {
    /// An empty queue; messages of `probe_channel` are probes.
    pub(super) fn new(probe_channel: &str) -> Self {
        let state = State {
            probe_channel: probe_channel.into(),
            arrived: Arrived::default(),
            bytes: 0,
            end: None,
        };
        Self(Arc::new((Mutex::new(state), Notify::new())))
    }

    /// Takes what the Redis client received. Never waits: past the bound the queue ends.
    pub(super) fn push(&self, push: PushInfo) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        match push.kind {
            PushKind::Message => {
                let mut parts = push.data.into_iter();
                let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
                    (parts.next(), parts.next())
                else {
                    return;
                };
                if channel == state.probe_channel {
                    let number = std::str::from_utf8(&payload)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    if let Some(number) = number {
                        let at = Instant::now();
                        state.arrived.probe = Some(ProbeArrival { number, at });
                        drop(state);
                        self.0.1.notify_one();
                    }
                    return;
                }
                state.bytes += channel.len() + payload.len() + MESSAGE_OVERHEAD_BYTES;
                if state.bytes > MOST_WAITING_BYTES && !state.arrived.messages.is_empty() {
                    state.end = Some(QueueEnd::Overflowed);
                } else {
                    state
                        .arrived
                        .messages
                        .push_back(Message { channel, payload });
                }
            }
            PushKind::Disconnection => state.end = Some(QueueEnd::Disconnected),
            // Confirmations: they answer the commands that asked for them.
            _ => return,
        }
        drop(state);
        self.0.1.notify_one();
    }

    /// Waits until something has arrived and takes it all.
    ///
    /// # Errors
    /// When the queue has ended and is empty.
    pub(super) async fn take(&self) -> Result<Arrived, QueueEnd> {
        loop {
            {
                let mut state = self.lock();
                if !state.arrived.messages.is_empty() || state.arrived.probe.is_some() {
                    state.bytes = 0;
                    return Ok(std::mem::take(&mut state.arrived));
                }
                if let Some(end) = state.end {
                    return Err(end);
                }
            }
            self.0.1.notified().await;
        }
    }

    /// The probe that has arrived and was not taken yet.
    pub(super) fn probe(&self) -> Option<ProbeArrival> {
        self.lock().arrived.probe
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: Vec<u8>) -> PushInfo {
        PushInfo {
            kind: PushKind::Message,
            data: vec![Value::BulkString(b"c".to_vec()), Value::BulkString(payload)],
        }
    }

    #[tokio::test]
    async fn what_came_before_the_end_is_still_handed_out() {
        let queue = PushQueue::new("probe");
        queue.push(message(b"one".to_vec()));
        queue.push(message(b"two".to_vec()));
        queue.push(PushInfo {
            kind: PushKind::Disconnection,
            data: vec![],
        });
        queue.push(message(b"late".to_vec()));
        let taken = queue.take().await.unwrap();
        assert_eq!(taken.messages.len(), 2);
        assert_eq!(queue.take().await.unwrap_err(), QueueEnd::Disconnected);
    }

    #[tokio::test]
    async fn a_probe_passes_what_waits() {
        let queue = PushQueue::new("probe");
        queue.push(message(b"one".to_vec()));
        queue.push(PushInfo {
            kind: PushKind::Message,
            data: vec![
                Value::BulkString(b"probe".to_vec()),
                Value::BulkString(b"7".to_vec()),
            ],
        });
        assert_eq!(queue.probe().unwrap().number, 7);
        let taken = queue.take().await.unwrap();
        assert_eq!((taken.messages.len(), taken.probe.unwrap().number), (1, 7));
        assert!(queue.probe().is_none());
    }

    #[tokio::test]
    async fn past_its_bound_it_ends() {
        let queue = PushQueue::new("probe");
        queue.push(message(vec![0; MOST_WAITING_BYTES * 2]));
        queue.push(message(vec![0; 1]));
        assert_eq!(queue.take().await.unwrap().messages.len(), 1);
        assert_eq!(queue.take().await.unwrap_err(), QueueEnd::Overflowed);
    }
}
