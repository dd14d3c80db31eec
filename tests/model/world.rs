//! A small world: what can happen in it, and what must hold after whatever happens.

use std::rc::Rc;

use super::actions::Action;
use super::client::{Client, Published, Stage};
use super::primary::{LAG, Primary};
use super::replica::{Message, Replica, Told};
use super::setup::{Budget, Setup};
use crate::continuity::last_end;
use crate::protocol::{Cursor, EventId};

/// When a world begins.
pub(super) const START_MS: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) now: u64,
    pub(super) primary: Rc<Primary>,
    /// What the primary was before each of its latest writes, and when.
    pub(super) snapshots: Vec<(u64, Rc<Primary>)>,
    /// The primary that was replaced, and when.
    pub(super) replaced: Option<(Rc<Primary>, u64)>,
    /// Histories were lost in other ways than by length and time.
    pub(super) has_lost: bool,
    pub(super) published: Vec<Published>,
    pub(super) replicas: Vec<Replica>,
    pub(super) clients: Vec<Client>,
    pub(super) budget: Budget,
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let epoch = EventId::new(START_MS - 20, 0);
        let first = EventId::new(setup.before_ms - 1, 0);
        let mut world = Self {
            now: START_MS,
            primary: Rc::new(Primary::new(epoch, first, setup.ttl, setup.evictable)),
            snapshots: Vec::new(),
            replaced: None,
            has_lost: false,
            published: Vec::new(),
            replicas: vec![
                Replica::down(&setup.channels, setup.ttl, setup.restricts);
                setup.replicas
            ],
            clients: {
                let new = |on: &Vec<usize>| Client::new(on, setup.restricts);
                setup.clients.iter().map(new).collect()
            },
            budget: setup.budget,
        };
        let primary = Rc::make_mut(&mut world.primary);
        for _ in 0..setup.before {
            for &channel in &setup.channels {
                let open = setup.restricts.then_some(false);
                let kept = primary.publish(setup.before_ms, channel, setup.length, open, false);
                world.published.push(Published {
                    channel,
                    id: kept.link.id,
                    lost: false,
                    ends: false,
                });
            }
        }
        for replica in &mut world.replicas[..setup.connected] {
            let first = primary.issue(START_MS);
            replica.connect(first, epoch).unwrap();
        }
        world
    }

    /// What the world is after `action`; `None` where that is nothing new.
    pub(super) fn after(&self, setup: &Setup, action: Action) -> Result<Option<Self>, String> {
        let mut next = self.clone();
        if !next.act(setup, action)? {
            return Ok(None);
        }
        next.check()?;
        Ok(Some(next))
    }

    fn act(&mut self, setup: &Setup, action: Action) -> Result<bool, String> {
        match action {
            Action::Tick => {
                self.budget.ticks -= 1;
                self.now += 1;
                Rc::make_mut(&mut self.primary).expire(self.now);
                let oldest = self.now - LAG;
                self.snapshots.retain(|(when, _)| *when >= oldest);
            }
            Action::Publish {
                channel,
                isolated,
                restricted,
                ends,
            } => {
                self.budget.publishes -= 1;
                let restricted = setup.restricts.then_some(restricted);
                self.publish(setup, channel, isolated, restricted, ends);
            }
            Action::Probe { replica } => {
                self.budget.probes -= 1;
                let is_behind = self.replicas[replica].is_behind;
                let (id, epoch) = self.write(is_behind, Primary::probe);
                self.replicas[replica].queue.push_back(Message::Probe {
                    id,
                    epoch,
                    is_first: false,
                });
            }
            Action::Handle { replica } => {
                let has_lost = self.has_lost;
                let told = self.replicas[replica].handle(has_lost)?;
                self.tell(replica, &told)?;
            }
            Action::Drop { replica } => {
                self.budget.drops -= 1;
                // A later event shows the hole.
                self.has_lost = true;
                self.replicas[replica].queue.pop_front();
            }
            Action::Lose { replica } => {
                if !self.replicas[replica].is_behind {
                    self.budget.losses -= 1;
                }
                self.replicas[replica].lose();
                if !setup.stale_pages {
                    self.drop_pages(replica);
                }
                if self.replicas.iter().all(|replica| !replica.is_behind) {
                    self.replaced = None;
                }
            }
            Action::Reconnect { replica } => {
                let (id, epoch) = self.write(false, Primary::probe);
                let told = self.replicas[replica].connect(id, epoch)?;
                self.tell(replica, &told)?;
            }
            Action::Read { replica, channel } => {
                let reader = &self.replicas[replica];
                let wanted = reader.read(channel).unwrap();
                let replaced = self.replaced.as_ref().map(|(replaced, _)| &**replaced);
                let source = reader.source(&self.primary, replaced);
                let page = source.page(self.now, channel, wanted.from, setup.backfill_events);
                let is_proven = source.proves(self.now, wanted.cursor, &[channel])[0];
                let reader = &mut self.replicas[replica];
                let told = reader.take_read(channel, page, is_proven)?;
                if reader.read(channel) == Some(wanted) && told.is_empty() {
                    return Err(format!("the recovery does not get beyond {wanted:?}"));
                }
                self.tell(replica, &told)?;
            }
            Action::Connect {
                client,
                replica,
                start,
                most,
            } => {
                self.budget.connects -= 1;
                return self.connect(setup, client, replica, start, most);
            }
            Action::Execute {
                client,
                index,
                shared,
                isolated,
            } => return Ok(self.execute(setup, client, index, shared, isolated)),
            Action::Arrive {
                client,
                index,
                most,
            } => return self.arrive(setup, client, index, most),
            Action::Step { client, most } => return self.step(setup, client, most),
            Action::Disconnect { client } => self.clients[client].disconnect(),
            Action::Tell { client } => {
                self.budget.tells -= 1;
                let moved = self.moved_cursor(&self.clients[client]).unwrap();
                let client = &mut self.clients[client];
                if let Stage::Live { told, .. } = &mut client.stage {
                    *told = moved;
                }
                client.take_cursor(moved)?;
            }
            Action::Failover { snapshot } => self.fail_over(snapshot),
            Action::Flush => {
                self.budget.flushes -= 1;
                self.has_lost = true;
                Rc::make_mut(&mut self.primary).flush();
                self.snapshots.clear();
            }
            Action::Evict { channel } => {
                self.budget.evictions -= 1;
                self.has_lost = true;
                Rc::make_mut(&mut self.primary).evict(channel);
            }
            Action::RaiseTtl => {
                self.budget.raises -= 1;
                Rc::make_mut(&mut self.primary).raise_ttl(setup.ttl + 2);
            }
        }
        Ok(true)
    }

    /// Has a primary write something.
    fn write<T>(&mut self, isolated: bool, write: impl FnOnce(&mut Primary, u64) -> T) -> T {
        if isolated {
            let (replaced, _) = self.replaced.as_mut().unwrap();
            return write(Rc::make_mut(replaced), self.now);
        }
        if self.budget.failovers > 0 {
            self.snapshots.push((self.now, Rc::clone(&self.primary)));
        }
        write(Rc::make_mut(&mut self.primary), self.now)
    }

    fn publish(
        &mut self,
        setup: &Setup,
        channel: usize,
        isolated: bool,
        restricted: Option<bool>,
        ends: bool,
    ) {
        let kept = self.write(isolated, |primary, now| {
            primary.publish(now, channel, setup.length, restricted, ends)
        });
        let event = Published {
            channel,
            id: kept.link.id,
            lost: isolated,
            ends,
        };
        let at = self.published.partition_point(|other| other.id < event.id);
        self.published.insert(at, event);
        for replica in &mut self.replicas {
            if replica.is_subscribed() && replica.is_behind == isolated {
                replica.queue.push_back(Message::Event(channel, kept));
            }
        }
        if isolated {
            for client in &mut self.clients {
                client.lose(event, true);
            }
        }
    }

    fn fail_over(&mut self, snapshot: usize) {
        self.budget.failovers -= 1;
        self.has_lost = true;
        let promoted = self.snapshots.get(snapshot).map_or_else(
            || Rc::clone(&self.primary),
            |(_, primary)| Rc::clone(primary),
        );
        self.snapshots.clear();
        let replaced = std::mem::replace(&mut self.primary, promoted);
        Rc::make_mut(&mut self.primary).promote(self.now);
        self.replaced = Some((replaced, self.now));
        for replica in &mut self.replicas {
            replica.is_behind = replica.is_subscribed();
        }
        let last = self
            .primary
            .issued
            .map_or(EventId::ZERO, |issued| issued.last);
        for event in &mut self.published {
            if event.id > last {
                event.lost = true;
                for client in &mut self.clients {
                    client.lose(*event, false);
                }
            }
        }
    }

    /// What a replica tells its live clients.
    fn tell(&mut self, replica: usize, told: &[Told]) -> Result<(), String> {
        for item in told {
            for client in &mut self.clients {
                let Stage::Live { skip_through, .. } = &mut client.stage else {
                    continue;
                };
                if client.replica != replica {
                    continue;
                }
                let has_had = *skip_through;
                match *item {
                    Told::Event {
                        channel,
                        link,
                        late,
                        ..
                    } => {
                        let is_for = client.channels.contains(&channel) && client.may_have(link.id);
                        if is_for && link.id > has_had {
                            let lost = is_lost(&self.published, link.id);
                            client.take_event(channel, link, lost, late)?;
                        }
                    }
                    Told::Gap {
                        channel,
                        id,
                        through,
                    } => {
                        if client.channels.contains(&channel) && through > has_had {
                            client.take_live_gap(channel, id, through, &self.published)?;
                        }
                    }
                    Told::Rewound => {
                        *skip_through = EventId::ZERO;
                        client.ends_through = EventId::ZERO;
                        client.asks_for_ends = true;
                    }
                }
            }
        }
        self.tell_ends(replica, told)
    }

    fn tell_ends(&mut self, replica: usize, told: &[Told]) -> Result<(), String> {
        let tails = &self.replicas[replica].shard.tails;
        for item in told {
            let Told::Event {
                channel,
                link,
                ends: true,
                ..
            } = *item
            else {
                continue;
            };
            for client in self
                .clients
                .iter_mut()
                .filter(|client| client.replica == replica)
            {
                let is_live = matches!(client.stage, Stage::Live { .. });
                let is_on = is_live && client.channels.contains(&channel);
                if !is_on || link.id <= client.ends_through {
                    continue;
                }
                client.take_end(channel, link.id, &self.published)?;
                let ends = client
                    .channels
                    .iter()
                    .map(|channel| tails[*channel].ended());
                if let Some(last) = last_end(ends, |end| client.minds_end(end)) {
                    client.finish(last);
                }
            }
        }
        Ok(())
    }

    /// What must hold always.
    fn check(&self) -> Result<(), String> {
        let last = self.primary.issued.map(|issued| issued.last);
        for client in &self.clients {
            let position = client.cursor.map(Cursor::position).unwrap_or_default();
            let owed = client.owed(&self.published, position);
            if let Some(event) = owed {
                return Err(format!(
                    "{event:?} is missing before {position}, without a gap: {client:?}"
                ));
            }
            let replica = &self.replicas[client.replica];
            let is_quiet = replica.is_up() && !replica.is_behind && replica.is_quiet();
            if let (Stage::Live { .. }, true) = (&client.stage, is_quiet)
                && let Some(event) = client.owed(&self.published, EventId::MAX)
            {
                return Err(format!("{event:?} was never delivered"));
            }
            if let (Stage::Live { .. }, true) = (&client.stage, is_quiet) {
                let end_of = |channel: &usize| self.primary.end_of(self.now, *channel);
                let minds = |end| client.minds_end(end);
                if client
                    .channels
                    .iter()
                    .all(|channel| end_of(channel).is_some_and(minds))
                {
                    return Err(format!("all channels have ended, and {client:?} waits"));
                }
            }
        }
        for replica in &self.replicas {
            if let (true, Some(last)) = (replica.is_up() && !replica.is_behind, last)
                && replica.shard.position() > Some(last)
            {
                let position = replica.shard.position();
                return Err(format!("position {position:?} is after {last}"));
            }
        }
        Ok(())
    }
}

fn is_lost(published: &[Published], id: EventId) -> bool {
    published.iter().any(|event| event.id == id && event.lost)
}
