//! What replicas say to each other, beside events.
//!
//! Every replica hears all of it. A message is a JSON object whose only member names its kind; a
//! replica ignores kinds it does not know, so neighbouring versions run side by side.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::redis::RedisPeers;

/// The channel, behind the prefix. `$`: no client can name it.
pub(super) const CHANNEL: &str = "$control";

/// The largest message; a larger one is dropped.
pub const MAX_PEER_BYTES: usize = 16 * 1024;

/// Messages that may wait to be handled: a hundred replicas that all say something at once. What
/// comes beyond is dropped, and said again by whoever needs it to be heard.
const QUEUE: usize = 256;

/// Says something to all replicas, this one included.
#[derive(Clone, Debug)]
pub enum PeerSender {
    /// There are no others.
    Alone,
    /// Through Redis.
    Redis(RedisPeers),
}

impl PeerSender {
    /// Sends a message. One that is lost is told at debug level only: its sender repeats it.
    pub async fn send(&self, message: Vec<u8>) {
        match self {
            Self::Alone => {}
            Self::Redis(redis) => redis.send(message).await,
        }
    }
}

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
