//! What a connection begins with: what was missed is read, and delivered in order.

use std::hash::Hash;

use super::{Action, Actions, Feed, Record, Start, Waiting};
use crate::continuity::arrival::missed_from;
use crate::continuity::judge::GapNotice;
use crate::continuity::positions::Positions;
use crate::continuity::recovery::{Recovery, Wanted};
use crate::continuity::rules::Rule;
use crate::continuity::tail::Entry;
use crate::protocol::{Cursor, EventId};

impl<K: Clone + Hash + Ord, E: Entry> Feed<K, E> {
    pub(super) fn connected(
        &mut self,
        subscribed: Vec<K>,
        refused: Vec<K>,
        newest: Option<EventId>,
        actions: &mut Actions<K, E>,
    ) {
        let missed: Vec<_> = match (self.position, newest) {
            (Some(position), Some(_)) => subscribed
                .iter()
                .filter_map(|channel| Some((channel.clone(), self.missed(channel, position)?)))
                .collect(),
            _ => Vec::new(),
        };
        let recovery = Recovery::new(
            missed,
            newest.unwrap_or_default(),
            self.settings.lag_bound,
            self.settings.max_recovery_bytes,
        );
        self.waiting = Waiting::Start(Box::new(Start {
            subscribed,
            refused,
            newest,
            recovery,
        }));
        self.go_on(actions);
    }

    /// From where on a channel must be read because its subscription was interrupted.
    pub(super) fn missed(&self, channel: &K, position: EventId) -> Option<Cursor> {
        let record = self.records.get(channel).filter(|record| record.active)?;
        if Rule::ReadWhatWasMissed.is_off() {
            return None;
        }
        match (record.has_hole, record.seen) {
            (false, seen) => {
                let (durable, lag_bound) = (self.positions.durable(), self.settings.lag_bound);
                Some(missed_from(seen, position, durable, lag_bound))
            }
            (true, Some(seen)) => Some(Cursor::new(seen, EventId::ZERO)),
            (true, None) => None,
        }
    }

    /// Reads, and delivers what is complete, until a page must be waited for.
    pub(super) fn go_on(&mut self, actions: &mut Actions<K, E>) {
        loop {
            match std::mem::take(&mut self.waiting) {
                Waiting::Start(mut start) => {
                    if !read_on(&mut start.recovery, actions) {
                        self.waiting = Waiting::Start(start);
                        return;
                    }
                    self.note_rewound(start.newest, actions);
                    self.deliver_window(&mut start.recovery, true, actions);
                    if start.recovery.is_done() {
                        return self.finish_start(*start, actions);
                    }
                    self.waiting = Waiting::Start(start);
                }
                Waiting::Hole {
                    channel,
                    event,
                    mut recovery,
                } => {
                    let has_read = read_on(&mut recovery, actions);
                    if has_read {
                        self.deliver_window(&mut recovery, false, actions);
                        if recovery.is_done() {
                            return self.deliver_after_read(channel, event, actions);
                        }
                    }
                    self.waiting = Waiting::Hole {
                        channel,
                        event,
                        recovery,
                    };
                    if !has_read {
                        return;
                    }
                }
                waiting @ (Waiting::Look { .. } | Waiting::Nothing) => {
                    self.waiting = waiting;
                    return;
                }
            }
        }
    }

    /// Nothing of a new sequence of ids is late.
    pub(super) fn note_rewound(&mut self, newest: Option<EventId>, actions: &mut Actions<K, E>) {
        if let (Some(from), Some(to)) = (self.position, newest)
            && to < from
        {
            actions.push(Action::Rewound { from, to });
            self.position = Some(EventId::ZERO);
            self.positions = Positions::new(self.settings.lag_bound);
        }
    }

    /// `is_start`: a gap also speaks of the live events that were lost with the connection.
    pub(super) fn deliver_window(
        &mut self,
        recovery: &mut Recovery<K, E>,
        is_start: bool,
        actions: &mut Actions<K, E>,
    ) {
        let window = recovery.window();
        let first = window.events.first().map(|(_, event)| event.link().id);
        // The cursor of a client that gets a gap: just below what follows.
        let told = first.map_or(window.end, EventId::pred);
        let gaps_at = actions.len();
        for (channel, gap, complete_after) in window.gaps {
            if let Some(record) = self.records.get_mut(&channel) {
                record.seen = None;
                record.had_live &= !is_start;
                let mut notice = GapNotice::kept(gap.reason, Some(gap.after), gap.oldest, told);
                notice.complete_after = Some(complete_after);
                let late = self.position.is_some_and(|position| told < position);
                actions.push(Action::Gap {
                    channel,
                    notice,
                    late,
                });
            }
        }
        let gaps = actions.len() - gaps_at;
        for (channel, event) in window.events {
            if let Some(record) = self.records.get_mut(&channel) {
                record.seen = Some(event.link().id);
                self.deliver(channel, event, true, actions);
            }
        }
        if Rule::GapsFirst.is_off() {
            actions
                .get_mut(gaps_at..)
                .unwrap_or_default()
                .rotate_left(gaps);
        }
    }

    pub(super) fn finish_start(&mut self, start: Start<K, E>, actions: &mut Actions<K, E>) {
        for channel in start.recovery.channels() {
            if let Some(record) = self.records.get_mut(channel) {
                record.has_hole = false;
            }
        }
        let keeps = self.position.is_some() && start.newest.is_some();
        for (channel, record) in self.records.iter_mut() {
            let cannot_tell = record.has_hole || !keeps && record.seen.is_some();
            if record.active && (record.had_live || cannot_tell) {
                let complete_after = start.newest.filter(|_| cannot_tell);
                actions.push(Action::Gap {
                    channel: channel.clone(),
                    notice: GapNotice::live(record.seen, complete_after),
                    late: false,
                });
            }
            record.had_live = false;
            if cannot_tell {
                record.seen = None;
                record.has_hole = false;
            }
        }
        self.activate(&start.subscribed);
        if start.newest.is_none() {
            self.positions = Positions::new(self.settings.lag_bound);
        }
        self.position = None;
        if let Some(newest) = start.newest {
            self.reach(newest);
        }
        self.read_through = start.newest.unwrap_or_default();
        self.is_confirmed = false;
        self.active_without_position = false;
        self.probed = EventId::ZERO;
        // Of what is refused nothing arrives on this connection.
        for channel in &start.refused {
            if let Some(record) = self.records.get_mut(channel)
                && record.active
            {
                record.has_hole = true;
                record.had_live = true;
            }
        }
        actions.push(Action::Started {
            channels: start.subscribed,
            newest: start.newest,
        });
    }

    pub(super) fn subscribed(
        &mut self,
        channels: Vec<K>,
        newest: Option<EventId>,
        actions: &mut Actions<K, E>,
    ) {
        if let Some(newest) = newest {
            self.advance(newest);
        }
        self.activate(&channels);
        let position = newest.and(self.position).filter(|_| self.is_confirmed);
        self.active_without_position |= position.is_none();
        actions.push(Action::Active { channels, position });
    }

    pub(super) fn activate(&mut self, channels: &[K]) {
        for channel in channels {
            if let Some(record) = self.records.get_mut(channel)
                && !record.active
            {
                *record = Record::ACTIVE;
            }
        }
    }
}

/// Sends the reads of a recovery, and says whether a window is complete.
fn read_on<K: Clone + Hash + Ord, E: Entry>(
    recovery: &mut Recovery<K, E>,
    actions: &mut Actions<K, E>,
) -> bool {
    recovery.advance(|wanted| {
        let Wanted {
            channel,
            cursor,
            from,
            size,
        } = wanted;
        actions.push(Action::Read {
            channel,
            cursor,
            from,
            size,
        });
    })
}
