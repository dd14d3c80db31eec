//! What the router decides about a request, for the edge that answers it.

use std::sync::Arc;

use axum::response::Response;

use super::held_ticket::HeldTicket;
use crate::hub::{Session, Start, StreamRequest};
use crate::protocol::ControlForm;

/// All that passes from the router to the edge beside the answer. Without one the answer is complete.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    /// A stream may be opened; the answer is its head.
    Open {
        /// What the stream is to be.
        stream: StreamRequest,
        /// The ticket that its opening spends.
        ticket: Option<HeldTicket>,
    },
    /// A stream is refused, though its client is known.
    Refused {
        /// The client's session, if it has shown a token.
        session: Option<Arc<Session>>,
        /// How many channels it names.
        channels: usize,
    },
    /// It cannot be decided now.
    Undecided {
        /// What is unavailable.
        why: &'static str,
        /// What the client is answered.
        form: BusyForm,
    },
}

impl Decision {
    /// The answer with this decision.
    pub(super) fn with(self, mut answer: Response) -> Response {
        answer.extensions_mut().insert(self);
        answer
    }

    /// Sets the form in which the client of an undecided request is answered.
    pub(super) fn answer_in(asked: BusyForm, answer: &mut Response) {
        if let Some(Self::Undecided { form, .. }) = answer.extensions_mut().get_mut() {
            *form = asked;
        }
    }

    /// Takes the decision out of an answer.
    pub(super) fn take(answer: &mut Response) -> Option<Self> {
        answer.extensions_mut().remove()
    }
}

/// The form of a busy answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BusyForm {
    /// The form in which the client reads control blocks.
    pub(super) control: ControlForm,
    /// The client has no cursor and asks for nothing of the past: it gets a cursor to come back with,
    /// so that what is kept meanwhile reaches it.
    pub(super) wants_cursor: bool,
    /// The client asked for everything: the answer breaks off, so that it is not taken for that.
    pub(super) is_cut: bool,
}

impl BusyForm {
    /// The form of the busy answer to this request.
    pub(super) fn of(stream: &StreamRequest) -> Self {
        Self {
            control: stream.control,
            wants_cursor: stream.start == Start::Live,
            is_cut: stream.is_whole,
        }
    }
}
