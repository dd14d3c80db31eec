//! Names and wire formats: what may be said, and how it is spelled.
//!
//! Pure: nothing here knows tokio, Redis, HTTP or another module of this crate. Everything that
//! arrives from outside becomes one of these types first, so a value that exists is valid.

mod audience;
mod channel;
mod control;
mod cursor;
mod end;
mod envelope;
mod event;
mod frame;
mod gap;
mod id;
mod json;
mod pattern;
mod retry;
mod revocation;
mod trace_parent;

pub use audience::{Audience, AudienceFault, Claims, MAX_AUDIENCE_BYTES};
pub use channel::{ChannelName, InvalidChannelName};
pub use control::ControlForm;
pub use cursor::{Cursor, InvalidCursor};
pub use end::EndReason;
pub use envelope::{BrokenEnvelope, EnvelopeFault, decode, encode};
pub use event::{
    Event, EventFault, EventName, Framing, LAST_CHUNK, MAX_EVENT_NAME_BYTES, MAX_RETRY, MIN_RETRY,
};
pub use frame::{Frame, FrameFault, KeptFrame, decode_frame, is_frame};
pub use gap::GapReason;
pub use id::{EventId, InvalidEventId};
pub use json::{UniqueObject, is_repetition};
pub use pattern::{ChannelPattern, InvalidPattern};
pub use retry::RetryRange;
pub use revocation::{
    InvalidRevoked, MAX_REVOCATION_TIME, MAX_REVOKED_BYTES, REVOCATION_TIME, Revocation, Revoked,
    TOKEN_LEEWAY,
};
pub use trace_parent::{InvalidTraceParent, TraceParent};
