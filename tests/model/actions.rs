//! What can happen next in a small world.

use super::client::{Client, Stage};
use super::primary::LAG;
use super::setup::Setup;
use super::world::World;
use crate::continuity::heartbeat_cursor;
use crate::protocol::{Cursor, EventId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Fresh,
    Newest,
    /// With the first event.
    Beginning,
    Resume,
    Foreign(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    Publish {
        channel: usize,
        isolated: bool,
        /// For none of the clients.
        restricted: bool,
        /// The channel ends with it.
        ends: bool,
    },
    Probe {
        replica: usize,
    },
    Handle {
        replica: usize,
    },
    Lose {
        replica: usize,
    },
    Drop {
        replica: usize,
    },
    Reconnect {
        replica: usize,
    },
    Read {
        replica: usize,
        channel: usize,
    },
    Connect {
        client: usize,
        replica: usize,
        start: Start,
        most: usize,
    },
    Execute {
        client: usize,
        index: usize,
        shared: bool,
        isolated: bool,
    },
    Arrive {
        client: usize,
        index: usize,
        most: usize,
    },
    Step {
        client: usize,
        most: usize,
    },
    Disconnect {
        client: usize,
    },
    Tell {
        client: usize,
    },
    Failover {
        snapshot: usize,
    },
    Flush,
    Evict {
        channel: usize,
    },
    RaiseTtl,
}

/// Deliver all of a part.
pub(super) const ALL: usize = usize::MAX;

impl World {
    /// What can happen next.
    pub(super) fn actions(&self, setup: &Setup) -> Vec<Action> {
        let mut actions = Vec::new();
        let budget = &self.budget;
        // A replica leaves a primary before it could not confirm it for the lag bound: ids of both
        // primaries never meet.
        let must_leave = self.replaced.as_ref().is_some_and(|(_, since)| {
            self.now + 1 >= since + LAG && self.replicas.iter().any(|replica| replica.is_behind)
        });
        if budget.ticks > 0 && !must_leave {
            actions.push(Action::Tick);
        }
        let may_be_isolated =
            setup.isolation && self.replicas.iter().any(|replica| replica.is_behind);
        if budget.publishes > 0 {
            for &channel in &setup.channels {
                for isolated in [false, true] {
                    if isolated && !may_be_isolated || self.has_ended(channel, isolated) {
                        continue;
                    }
                    for restricted in [false, true] {
                        for ends in [false, true] {
                            if (!restricted || setup.restricts) && (!ends || setup.ends) {
                                actions.push(Action::Publish {
                                    channel,
                                    isolated,
                                    restricted,
                                    ends,
                                });
                            }
                        }
                    }
                }
            }
        }
        for (number, replica) in self.replicas.iter().enumerate() {
            let can_probe = replica.is_up() && (!replica.is_behind || setup.isolation);
            if budget.probes > 0 && can_probe {
                actions.push(Action::Probe { replica: number });
            }
            if replica.may_handle() {
                actions.push(Action::Handle { replica: number });
            }
            if budget.drops > 0 && replica.may_handle() && replica.may_drop() {
                actions.push(Action::Drop { replica: number });
            }
            if replica.is_subscribed() && (budget.losses > 0 || replica.is_behind) {
                actions.push(Action::Lose { replica: number });
            }
            if !replica.is_subscribed() {
                actions.push(Action::Reconnect { replica: number });
            }
            for channel in 0..2 {
                if replica.read(channel).is_some() {
                    actions.push(Action::Read {
                        replica: number,
                        channel,
                    });
                }
            }
        }
        for (number, client) in self.clients.iter().enumerate() {
            self.client_actions(setup, number, client, &mut actions);
        }
        // Ids that are ahead of the clock have jumped a moment ago: there is one failover at most
        // within a lag bound.
        let issued = self.primary.issued;
        let has_settled = issued.is_some_and(|issued| issued.last.ms() <= self.now);
        if budget.failovers > 0 && has_settled && self.replaced.is_none() {
            let count = self.snapshots.len() + 1;
            actions.extend((0..count).map(|snapshot| Action::Failover { snapshot }));
        }
        if budget.flushes > 0 {
            actions.push(Action::Flush);
        }
        for &channel in &setup.channels {
            if budget.evictions > 0 && self.primary.holds_any(channel) {
                actions.push(Action::Evict { channel });
            }
        }
        if budget.raises > 0 {
            actions.push(Action::RaiseTtl);
        }
        actions
    }

    fn client_actions(
        &self,
        setup: &Setup,
        number: usize,
        client: &Client,
        actions: &mut Vec<Action>,
    ) {
        match &client.stage {
            Stage::Away if self.budget.connects > 0 => {
                for (at, replica) in self.replicas.iter().enumerate() {
                    let mut connect = |start| {
                        actions.extend(deliveries(|most| Action::Connect {
                            client: number,
                            replica: at,
                            start,
                            most,
                        }));
                    };
                    if !replica.is_up() {
                        continue;
                    }
                    if client.cursor.is_some() {
                        connect(Start::Resume);
                        continue;
                    }
                    if setup.foreign.is_empty() && !replica.is_behind {
                        connect(Start::Fresh);
                    }
                    if setup.from_start && !replica.is_behind {
                        connect(Start::Beginning);
                    }
                    if setup.newest && !replica.is_behind {
                        connect(Start::Newest);
                    }
                    (0..setup.foreign.len()).for_each(|which| connect(Start::Foreign(which)));
                }
            }
            Stage::Away | Stage::Over => {}
            Stage::Replaying { pending, .. } => {
                let replica = &self.replicas[client.replica];
                actions.push(Action::Disconnect { client: number });
                if pending.is_empty() && replica.is_up() {
                    actions.extend(deliveries(|most| Action::Step {
                        client: number,
                        most,
                    }));
                }
                for pending in pending.iter().filter(|_| replica.is_up()) {
                    let index = pending.index;
                    if pending.answer.is_none() {
                        for shared in [false, true] {
                            for isolated in [false, true] {
                                let possible = (!shared || setup.shared_reads)
                                    && (!isolated || setup.isolation && replica.is_behind);
                                if possible {
                                    actions.push(Action::Execute {
                                        client: number,
                                        index,
                                        shared,
                                        isolated,
                                    });
                                }
                            }
                        }
                    } else {
                        actions.extend(deliveries(|most| Action::Arrive {
                            client: number,
                            index,
                            most,
                        }));
                    }
                }
            }
            Stage::Live { .. } => {
                actions.push(Action::Disconnect { client: number });
                if self.budget.tells > 0 && self.moved_cursor(client).is_some() {
                    actions.push(Action::Tell { client: number });
                }
            }
        }
    }

    /// Whether nothing more is published to a channel.
    fn has_ended(&self, channel: usize, isolated: bool) -> bool {
        let primary = match &self.replaced {
            Some((replaced, _)) if isolated => replaced,
            _ => &self.primary,
        };
        primary.end_of(self.now, channel).is_some()
    }

    /// The cursor that a live client is told next.
    pub(super) fn moved_cursor(&self, client: &Client) -> Option<Cursor> {
        let Stage::Live { skip_through, told } = &client.stage else {
            return None;
        };
        let replica = &self.replicas[client.replica];
        let newest_of = |ids: &[EventId; 2]| {
            let ids = client.channels.iter().map(|channel| ids[*channel]);
            ids.max().unwrap()
        };
        let shard = &replica.shard;
        let (newest, gap) = (newest_of(&shard.newest), newest_of(&shard.gaps));
        heartbeat_cursor(
            *told,
            *skip_through,
            newest,
            gap,
            shard.positions.durable()?,
        )
    }
}

/// A part may be delivered as a whole, or the connection ends within it.
fn deliveries(action: impl Fn(usize) -> Action) -> impl Iterator<Item = Action> {
    [ALL, 0, 1, 2, 3].into_iter().map(action)
}
