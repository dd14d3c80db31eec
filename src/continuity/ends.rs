//! Which ends a stream has had, and whether anything can come on it.

use super::judge::ChannelEnd;
use super::replay::{End, View};
use super::rules::Rule;
use super::tail::{Ending, Entry};
use crate::protocol::EventId;

/// The channels of a stream that ended by `through`, which has arrived, and those of which that must be
/// read; none where the stream does not ask for them.
pub(super) fn ends_of<E: Entry>(
    views: &[View<'_, E>],
    through: EventId,
    asks: bool,
) -> (Vec<End>, Vec<usize>) {
    let (mut ends, mut unknown) = (Vec::new(), Vec::new());
    for (channel, view) in views.iter().enumerate().filter(|_| asks) {
        let ending = match (view.tail.ending(), view.page.filter(|_| view.fresh)) {
            // Nothing has arrived since it was read. If it knows of fewer ids, Redis has lost some.
            (Ending::Unknown, Some(page)) if page.complete => page.ended_through(through).into(),
            (Ending::Unknown, Some(page)) if page.end() > through => Ending::Open,
            (ending, _) => ending,
        };
        match ending {
            Ending::Ended(end) => ends.push(End { channel, end }),
            Ending::Unknown if !Rule::EndIsLookedUp.is_off() => unknown.push(channel),
            Ending::Unknown | Ending::Open => {}
        }
    }
    (ends, unknown)
}

/// The last end of a stream's channels, where all of them have ended with an end that it `minds`. Its id
/// is the cursor that the stream ends with: to come back with it, the end has to be found again.
pub(crate) fn last_end(
    channels: impl Iterator<Item = Option<ChannelEnd>>,
    minds: impl Fn(EventId) -> bool,
) -> Option<EventId> {
    let mut last = None;
    for end in channels {
        let end = end.filter(|end| minds(end.id))?;
        last = last.max(Some(end.id));
    }
    last
}

/// Whether a client that has had everything up to `position` has had the last end of its channels.
pub(super) fn is_over(position: EventId, last_end: Option<EventId>, has_gaps: bool) -> bool {
    let was_had = |last| last <= position || Rule::OverAtTheEnd.is_off();
    let is_proven = !has_gaps || Rule::OverIsProven.is_off();
    last_end.is_some_and(was_had) && is_proven
}
