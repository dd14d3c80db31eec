//! Why and how things happen: the enums that metrics are split by and log lines name.

use crate::labels::labels;
use crate::protocol::{EnvelopeFault, EventFault};

labels! { "cause":
    /// Why no events arrive.
    pub enum DownCause {
        /// The process has just begun.
        Starting,
        /// Too few Sentinels name the same primary.
        Sentinel,
        /// No connection: refused, unknown, no answer, no trust in its certificate.
        Unreachable,
        /// Redis does not let this user in, or do what has to be done.
        Refused,
        /// Redis is reading its data.
        Loading,
        /// Redis has closed the connection: it ended, or dropped a subscriber that was too slow.
        Closed,
        /// Redis has closed the connection, and counts one that exceeded its output buffer limit.
        OutputBuffer,
        /// Redis does not answer, or a probe did not come back.
        Silent,
        /// This replica did not keep up, and starts over.
        Behind,
        /// This Redis is a replica, was replaced, or is not confirmed to be the primary.
        NotPrimary,
        /// Redis has lost ids that it had issued.
        IdsWentBack,
        /// The function library was taken away.
        Library,
    }
}

labels! { "outcome":
    /// What became of a connection to the TLS listener.
    pub enum HandshakeOutcome {
        /// A full handshake was finished.
        Full,
        /// A session was resumed.
        Resumed,
        /// The client closed the connection before its ClientHello, as TCP checks of balancers do.
        ClosedBeforeHello,
        /// There was no ClientHello in time, or it is too large.
        NoHello,
        /// Too many connections without a ClientHello waited: this one was the oldest.
        Crowded,
        /// HTTP without TLS, which is answered with 400.
        PlainHttp,
        /// The handshake was not finished in time.
        Late,
        /// The handshake failed: no common version, a certificate that the client does not trust, garbage.
        Failed,
    }
}

labels! { "reason":
    /// What is wrong with a token.
    pub enum TokenFaultKind {
        /// It is longer than the limit.
        TooLong,
        /// It is not a JSON Web Token.
        Malformed,
        /// Its header has a critical member that is not understood.
        Critical,
        /// No key here is for its algorithm.
        Algorithm,
        /// No key here has its `kid`.
        UnknownKey,
        /// The signature is wrong.
        Signature,
        /// It has expired.
        Expired,
        /// It is not valid yet.
        NotYetValid,
        /// It is for another audience.
        Audience,
        /// It is of another issuer.
        Issuer,
        /// It, or its subject, was revoked.
        Revoked,
        /// A claim is missing or breaks a rule.
        Claim,
    }
}

labels! { "outcome":
    /// What came of fetching the JWK set.
    pub enum JwksOutcome {
        /// It is there.
        Fetched,
        /// It could not be fetched, or cannot be used.
        Failed,
    }
}

labels! { "kind":
    /// How an event is published.
    pub enum EventKind {
        /// It leaves nothing behind.
        Live,
        /// It stands in its channel's history.
        Kept,
    }
}

labels! { "reason":
    /// Why an event did not reach a client it was meant for.
    pub enum DropReason {
        /// Larger than the limit.
        TooLarge,
        /// Not UTF-8.
        NotUtf8,
        /// A broken envelope, or a field that is out of its bounds.
        Envelope,
        /// An event name that is not allowed.
        EventName,
        /// Nobody on a shard has the claims it is for; counted by each shard for itself.
        NoAudience,
        /// A frame of the function library that cannot be read.
        Frame,
        /// An id so far ahead of those known that it cannot be one of this Redis.
        IdAhead,
        /// Its client was too slow; counted by the shards.
        SlowClient,
    }
}

labels! { "outcome":
    /// What became of an event that was to be published over HTTP.
    pub enum PublishOutcome {
        /// The bus has taken it.
        Published,
        /// It breaks a rule of the bus.
        Refused,
        /// The bus did not take it.
        Unavailable,
    }
}

impl From<&EnvelopeFault> for DropReason {
    fn from(fault: &EnvelopeFault) -> Self {
        match fault {
            EnvelopeFault::Broken(_) | EnvelopeFault::Audience(_) => Self::Envelope,
            EnvelopeFault::Event(fault) => match fault {
                EventFault::TooLarge { .. } => Self::TooLarge,
                EventFault::NotUtf8 => Self::NotUtf8,
                EventFault::RetryTooLong => Self::Envelope,
                EventFault::NameBreaksLine | EventFault::NameReserved | EventFault::NameTooLong => {
                    Self::EventName
                }
            },
        }
    }
}
