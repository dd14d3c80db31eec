//! The queue of messages from other replicas, and the channel that they come on.

use bytes::Bytes;
use tokio::sync::mpsc;

/// The channel, behind the prefix. `$`: clients cannot name it.
pub(super) const CHANNEL: &str = "$control";

/// The largest message, in bytes; larger ones are dropped.
pub const MAX_PEER_BYTES: usize = 16 * 1024;

/// Messages that may wait to be handled: a hundred replicas that all send at once. Further ones are
/// dropped; their senders repeat what has to arrive.
const QUEUE: usize = 256;

/// Where messages arrive.
pub(super) fn queue() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(QUEUE)
}

/// Takes what has arrived on the channel.
pub(super) fn take(message: Vec<u8>, queue: &mpsc::Sender<Bytes>) {
    if message.len() <= MAX_PEER_BYTES {
        // Full: see `QUEUE`. Closed: the process stops.
        let _ = queue.try_send(Bytes::from(message));
    }
}
