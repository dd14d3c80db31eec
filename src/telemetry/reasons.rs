//! Why and how things happen: the enums that metrics are split by and log lines name.

use crate::labels::labels;
use crate::protocol::{EnvelopeFault, EventFault};

labels! { "cause":
    /// Why no events arrive.
    pub enum DownCause {
        /// The process has just begun.
        Starting = "starting",
        /// Too few Sentinels name the same primary.
        Sentinel = "sentinel",
        /// No connection: refused, unknown, no answer, no trust in its certificate.
        Unreachable = "unreachable",
        /// Redis does not let this user in, or do what has to be done.
        Refused = "refused",
        /// Redis is reading its data.
        Loading = "loading",
        /// Redis has closed the connection: it ended, or dropped a subscriber that was too slow.
        Closed = "closed",
        /// Redis has closed the connection, and counts one that exceeded its output buffer limit.
        OutputBuffer = "output_buffer",
        /// Redis does not answer, or a probe did not come back.
        Silent = "silent",
        /// This replica did not keep up, and starts over.
        Behind = "behind",
        /// This Redis is a replica, was replaced, or is not confirmed to be the primary.
        NotPrimary = "not_primary",
        /// Redis has lost ids that it had issued.
        IdsWentBack = "ids_went_back",
        /// The function library was taken away.
        Library = "library",
    }
}

labels! { "reason":
    /// What is wrong with a token.
    pub enum TokenFaultKind {
        /// It is longer than the limit.
        TooLong = "too_long",
        /// It is not a JSON Web Token.
        Malformed = "malformed",
        /// Its header has a critical member that is not understood.
        Critical = "critical",
        /// No key here is for its algorithm.
        Algorithm = "algorithm",
        /// No key here has its `kid`.
        UnknownKey = "unknown_key",
        /// The signature is wrong.
        Signature = "signature",
        /// It has expired.
        Expired = "expired",
        /// It is not valid yet.
        NotYetValid = "not_yet_valid",
        /// It is for another audience.
        Audience = "audience",
        /// It is of another issuer.
        Issuer = "issuer",
        /// It, or its subject, was revoked.
        Revoked = "revoked",
        /// A claim is missing or breaks a rule.
        Claim = "claim",
    }
}

labels! { "outcome":
    /// What came of fetching the JWK set.
    pub enum JwksOutcome {
        /// It is there.
        Fetched = "fetched",
        /// It could not be fetched, or cannot be used.
        Failed = "failed",
    }
}

labels! { "kind":
    /// How an event is published.
    pub enum EventKind {
        /// It leaves nothing behind.
        Live = "live",
        /// It stands in its channel's history.
        Kept = "kept",
    }
}

labels! { "reason":
    /// Why an event did not reach a client it was meant for.
    pub enum DropReason {
        /// Larger than the limit.
        TooLarge = "too_large",
        /// Not UTF-8.
        NotUtf8 = "not_utf8",
        /// A broken envelope, or a field that is out of its bounds.
        Envelope = "envelope",
        /// An event name that is not allowed.
        EventName = "event_name",
        /// Nobody on a shard has the claims it is for; counted by each shard for itself.
        NoAudience = "no_audience",
        /// A frame of the function library that cannot be read.
        Frame = "frame",
        /// An id so far ahead of those known that it cannot be one of this Redis.
        IdAhead = "id_ahead",
        /// Its client was too slow; counted by the shards.
        SlowClient = "slow_client",
    }
}

labels! { "outcome":
    /// What became of an event that was to be published over HTTP.
    pub enum PublishOutcome {
        /// The bus has taken it.
        Published = "published",
        /// It breaks a rule of the bus.
        Refused = "refused",
        /// The bus did not take it.
        Unavailable = "unavailable",
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
