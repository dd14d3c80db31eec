//! What replicas say to each other, beside events.
//!
//! Every replica hears all of it. A message is a JSON object whose only member names its kind; a
//! replica ignores kinds it does not know, so neighbouring versions run side by side.

use super::redis::peers::RedisPeers;

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
