//! What arrives on a connection: events, probes, and pages about them.

use std::hash::Hash;

use super::{Action, Actions, Doubt, Feed, MAX_AHEAD, Waiting};
use crate::continuity::arrival::{Arrival, arrival};
use crate::continuity::judge::{GapNotice, HistoryPage};
use crate::continuity::recovery::{PageSize, Recovery};
use crate::continuity::tail::Entry;
use crate::protocol::{Cursor, EventId, GapReason};

impl<K: Clone + Hash + Ord, E: Entry> Feed<K, E> {
    pub(super) fn kept(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        let id = event.link().id;
        if self.position.is_none() {
            if let Some(record) = self.records.get_mut(&channel) {
                record.had_live = true;
            }
            actions.push(Action::AsLive { channel, event });
        } else if self.is_far_ahead(id) {
            actions.push(look(&channel, id));
            self.waiting = Waiting::Look {
                channel,
                event,
                doubt: Doubt::FarAhead,
            };
        } else {
            self.in_order(channel, event, actions);
        }
    }

    pub(super) fn is_far_ahead(&self, id: EventId) -> bool {
        let ahead = MAX_AHEAD.saturating_add(self.now.saturating_sub(self.moved_at));
        self.position.is_some_and(|newest| id.since(newest) > ahead)
    }

    /// Delivers a kept event of a wanted channel, unless something before it is missing.
    pub(super) fn in_order(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        let link = event.link();
        let Some(record) = self.records.get_mut(&channel) else {
            return;
        };
        if !record.active || link.id <= self.read_through {
            // It was read already, or came before the channel was active.
            return self.advance(link.id);
        }
        let seen = record.seen;
        match arrival(seen, link, self.retention) {
            Arrival::Known => {}
            Arrival::Next => {
                record.seen = Some(link.id);
                self.deliver(channel, event, false, actions);
            }
            Arrival::Hole => {
                record.has_hole = true;
                let cursor = Cursor::new(seen.unwrap_or_default(), EventId::ZERO);
                let recovery = Recovery::new(
                    [(channel.clone(), cursor)],
                    link.prev,
                    self.settings.lag_bound,
                    self.settings.max_recovery_bytes,
                );
                self.waiting = Waiting::Hole {
                    channel,
                    event,
                    recovery: Box::new(recovery),
                };
                self.go_on(actions);
            }
            Arrival::OtherHistory => {
                record.has_hole = true;
                actions.push(look(&channel, seen.unwrap_or_default()));
                self.waiting = Waiting::Look {
                    channel,
                    event,
                    doubt: Doubt::OtherHistory,
                };
            }
        }
    }

    pub(super) fn page(
        &mut self,
        channel: &K,
        page: Option<HistoryPage<E>>,
        actions: &mut Actions<K, E>,
    ) {
        if let Some(page) = &page {
            self.retention = page.retention;
        }
        match std::mem::take(&mut self.waiting) {
            Waiting::Start(mut start) => {
                start.recovery.take(channel, page);
                self.waiting = Waiting::Start(start);
                self.go_on(actions);
            }
            Waiting::Hole {
                channel: of,
                event,
                mut recovery,
            } => {
                recovery.take(channel, page);
                self.waiting = Waiting::Hole {
                    channel: of,
                    event,
                    recovery,
                };
                self.go_on(actions);
            }
            Waiting::Look {
                channel: of,
                event,
                doubt,
            } if of == *channel => self.looked(of, event, doubt, page, actions),
            waiting @ (Waiting::Look { .. } | Waiting::Nothing) => self.waiting = waiting,
        }
    }

    /// Goes on with an event that was looked up.
    pub(super) fn looked(
        &mut self,
        channel: K,
        event: E,
        doubt: Doubt,
        page: Option<HistoryPage<E>>,
        actions: &mut Actions<K, E>,
    ) {
        let id = event.link().id;
        match doubt {
            Doubt::FarAhead => {
                let issued = page.and_then(|page| page.issued);
                if issued.is_some_and(|issued| id <= issued.last) {
                    self.in_order(channel, event, actions);
                } else {
                    actions.push(Action::NeverIssued { channel, id });
                }
            }
            Doubt::OtherHistory => {
                let seen = self.records.get(&channel).and_then(|record| record.seen);
                // The page may say that histories last shorter than was known.
                if arrival(seen, event.link(), self.retention) != Arrival::Next {
                    let oldest = page.and_then(|page| page.oldest).map(|oldest| oldest.id);
                    actions.push(Action::Gap {
                        channel: channel.clone(),
                        notice: GapNotice::kept(GapReason::Rewound, seen, oldest, id.pred()),
                        late: false,
                    });
                }
                self.deliver_after_read(channel, event, actions);
            }
        }
    }

    /// Delivers an event after everything before it was read.
    pub(super) fn deliver_after_read(&mut self, channel: K, event: E, actions: &mut Actions<K, E>) {
        if let Some(record) = self.records.get_mut(&channel) {
            record.has_hole = false;
            record.seen = Some(event.link().id);
        }
        self.deliver(channel, event, false, actions);
    }

    pub(super) fn deliver(
        &mut self,
        channel: K,
        event: E,
        recovered: bool,
        actions: &mut Actions<K, E>,
    ) {
        let id = event.link().id;
        let late = self.position.is_some_and(|position| id <= position);
        actions.push(Action::Event {
            channel,
            event,
            late,
            recovered,
        });
        self.advance(id);
    }

    pub(super) fn advance(&mut self, id: EventId) {
        if self.position.is_some_and(|position| position < id) {
            self.reach(id);
        }
    }

    pub(super) fn reach(&mut self, id: EventId) {
        self.position = Some(id);
        self.positions.note(id);
        self.moved_at = self.now;
    }

    pub(super) fn probe(&mut self, id: EventId, epoch: EventId, actions: &mut Actions<K, E>) {
        if id < self.probed {
            let from = self.probed;
            actions.push(Action::WentBack { from, to: id });
            return;
        }
        self.probed = id;
        if self.epoch.is_some_and(|known| known != epoch) {
            actions.push(Action::NewEpoch(epoch));
        }
        self.epoch = Some(epoch);
        self.is_confirmed = true;
        let position = self.position.map_or(id, |position| position.max(id));
        self.reach(position);
        if std::mem::take(&mut self.active_without_position) {
            // A channel that Redis refuses was active on an earlier connection, and is not now.
            let active = self.records.iter();
            let channels = active
                .filter(|(_, record)| record.active && !record.has_hole)
                .map(|(channel, _)| channel.clone())
                .collect();
            actions.push(Action::Active {
                channels,
                position: Some(position),
            });
        }
        actions.push(Action::Position(position));
    }
}

/// What the history says about `id`: the newest id issued, and its oldest event.
fn look<K: Clone, E>(channel: &K, id: EventId) -> Action<K, E> {
    Action::Read {
        channel: channel.clone(),
        cursor: Cursor::new(id, EventId::ZERO),
        from: id,
        size: PageSize::First,
    }
}
