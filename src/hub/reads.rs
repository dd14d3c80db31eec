//! The reads of one channel's history, and which clients each read answers.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::fanout::encoded::EncodedEvent;
use super::{HistoryError, HistoryRead};
use crate::continuity::HistoryPage;
use crate::protocol::EventId;

/// A page of history, encoded.
pub(super) type Page = Rc<HistoryPage<EncodedEvent>>;

/// From the second read of a channel on, so many events before the one asked for are read too:
/// a crowd is coming back, and its cursors lie close together. The length of a usual history.
const PRECEDING_FOR_A_CROWD: u32 = 1000;

/// The reads of one channel.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) is_under_way: bool,
    /// The last page did not reach the newest event.
    pub(super) was_cut: bool,
    is_crowd: bool,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) from: EventId,
    pub(super) reply: oneshot::Sender<Result<Page, HistoryError>>,
}

/// Reads of history that a shard asks for at once. Others wait: a page is up to two megabytes of
/// the shard's memory.
pub(super) const MAX_READS: usize = 64;

impl Reads {
    /// The next read, and who gets it. The earliest id serves everybody as long as pages reach
    /// the newest event; when they do not, it would keep those waiting who are nearer to it, so
    /// then who came first is served first.
    pub(super) fn next(&mut self) -> Option<(HistoryRead, Vec<Waiting>)> {
        let first = self.waiting.front()?.from;
        let from = if self.was_cut {
            first
        } else {
            self.waiting.iter().map(|waiting| waiting.from).min()?
        };
        let preceding = if self.is_crowd && !self.was_cut {
            PRECEDING_FOR_A_CROWD
        } else {
            0
        };
        self.is_crowd = true;
        let (served, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.from >= from);
        self.waiting = waiting;
        let read = HistoryRead::From {
            id: from,
            preceding,
        };
        Some((read, served.into()))
    }
}
