//! The queue between the Redis client, which must never wait, and the supervisor.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

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

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    end: Option<QueueEnd>,
}

/// A queue bounded in bytes, of one connection.
#[derive(Clone, Default)]
pub(super) struct PushQueue(Arc<(Mutex<State>, Notify)>);

impl PushQueue {
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
                state.bytes += channel.len() + payload.len() + MESSAGE_OVERHEAD_BYTES;
                if state.bytes > MOST_WAITING_BYTES && !state.messages.is_empty() {
                    state.end = Some(QueueEnd::Overflowed);
                } else {
                    state.messages.push_back(Message { channel, payload });
                }
            }
            PushKind::Disconnection => state.end = Some(QueueEnd::Disconnected),
            // Confirmations: they answer the commands that asked for them.
            _ => return,
        }
        drop(state);
        self.0.1.notify_one();
    }

    /// Waits for messages and takes all there are.
    ///
    /// # Errors
    /// When the queue has ended and is empty.
    pub(super) async fn take(&self) -> Result<VecDeque<Message>, QueueEnd> {
        loop {
            {
                let mut state = self.lock();
                if !state.messages.is_empty() {
                    state.bytes = 0;
                    return Ok(std::mem::take(&mut state.messages));
                }
                if let Some(end) = state.end {
                    return Err(end);
                }
            }
            self.0.1.notified().await;
        }
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
        let queue = PushQueue::default();
        queue.push(message(b"one".to_vec()));
        queue.push(message(b"two".to_vec()));
        queue.push(PushInfo {
            kind: PushKind::Disconnection,
            data: vec![],
        });
        queue.push(message(b"late".to_vec()));
        let taken = queue.take().await.unwrap();
        assert_eq!(taken.len(), 2);
        assert_eq!(queue.take().await.unwrap_err(), QueueEnd::Disconnected);
    }

    #[tokio::test]
    async fn past_its_bound_it_ends() {
        let queue = PushQueue::default();
        queue.push(message(vec![0; MOST_WAITING_BYTES * 2]));
        queue.push(message(vec![0; 1]));
        assert_eq!(queue.take().await.unwrap().len(), 1);
        assert_eq!(queue.take().await.unwrap_err(), QueueEnd::Overflowed);
    }
}
