//! What one client may take: streams at a time, here and on all replicas, and how often.
//!
//! [`counts`] knows how many streams each address and subject has open, [`rates`] how often they
//! come, and [`mod@share`] tells the other replicas. Looked at when a stream opens or closes and when
//! something is published, never when an event passes.

mod counts;
mod rates;
mod share;

use std::sync::Arc;

pub(super) use counts::{Counts, Hold};
pub(super) use rates::RateLimit;
pub(super) use share::share;

use super::client_address::{AddressGroup, ClientAddress};

/// Who is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// Whoever has this address.
    Address(AddressGroup),
    /// Whom a token names, wherever from.
    Subject(Arc<str>),
    /// All those together for whom there was no room.
    Others,
}

impl Client {
    pub(super) fn of(address: ClientAddress, subject: Option<&Arc<str>>) -> Self {
        match subject {
            Some(subject) => Self::Subject(Arc::clone(subject)),
            None => Self::Address(address.group()),
        }
    }
}

impl std::fmt::Display for Client {
    /// As the replicas write it among themselves.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(group) => write!(f, "a:{group}"),
            Self::Subject(subject) => write!(f, "s:{subject}"),
            Self::Others => f.write_str("others"),
        }
    }
}
