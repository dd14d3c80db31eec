//! A small world: what can happen in it, and what must hold after whatever happens.

use std::rc::Rc;

use super::client::{Client, Pending, Published, Read, Stage, Wanted};
use super::primary::{LAG, Primary, lag_bound};
use super::replica::{Message, Replica, TAIL, Told};
use crate::hub::replay::{Part, Replay, Step, View};
use crate::protocol::{Cursor, EventId, Link};

/// What a world is made of, and how often each thing may happen in it.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) name: &'static str,
    pub(super) ttl: u64,
    /// The most events of a history.
    pub(super) length: usize,
    pub(super) evictable: bool,
    /// The channels of each client.
    pub(super) clients: Vec<Vec<usize>>,
    /// Events are published to these.
    pub(super) channels: Vec<usize>,
    pub(super) replicas: usize,
    /// How many of them are connected from the start.
    pub(super) connected: usize,
    /// The most events of a page, and of a part.
    pub(super) page_events: usize,
    pub(super) part_events: usize,
    /// Events of each channel from before the start.
    pub(super) before: usize,
    pub(super) budget: Budget,
    /// Clients may come with cursors that were never told.
    pub(super) foreign: Vec<Cursor>,
    /// Clients may ask for the newest event of each channel.
    pub(super) newest: bool,
    /// A replaced primary goes on for the replicas connected to it.
    pub(super) isolation: bool,
    /// Pages may hold more than was asked for.
    pub(super) shared_reads: bool,
    /// Pages are used for later steps too.
    pub(super) reused_pages: bool,
    /// Pages are used even when the subscription was lost since they were asked for. Wrong.
    pub(super) stale_pages: bool,
}

impl Setup {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            ttl: 5,
            length: 2,
            evictable: false,
            clients: vec![vec![0]],
            channels: vec![0],
            replicas: 1,
            connected: 1,
            page_events: usize::MAX,
            part_events: usize::MAX,
            before: 0,
            budget: Budget::default(),
            foreign: Vec::new(),
            newest: false,
            isolation: false,
            shared_reads: false,
            reused_pages: false,
            stale_pages: false,
        }
    }
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) ticks: u8,
    pub(super) publishes: u8,
    pub(super) probes: u8,
    pub(super) connects: u8,
    pub(super) losses: u8,
    pub(super) failovers: u8,
    pub(super) flushes: u8,
    pub(super) evictions: u8,
    pub(super) raises: u8,
    pub(super) tells: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Fresh,
    Newest,
    Resume,
    Foreign(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    Publish {
        channel: usize,
        isolated: bool,
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
    Reconnect {
        replica: usize,
    },
    Backfill {
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
const ALL: usize = usize::MAX;

const START_MS: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    now: u64,
    primary: Rc<Primary>,
    /// What the primary was before each of its latest writes, and when.
    snapshots: Vec<(u64, Rc<Primary>)>,
    /// The primary that was replaced, and when.
    replaced: Option<(Rc<Primary>, u64)>,
    /// Histories were lost in other ways than by length and time.
    has_lost: bool,
    published: Vec<Published>,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    budget: Budget,
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let epoch = EventId::new(START_MS - 20, 0);
        let first = EventId::new(START_MS - 1, 0);
        let mut world = Self {
            now: START_MS,
            primary: Rc::new(Primary::new(epoch, first, setup.ttl, setup.evictable)),
            snapshots: Vec::new(),
            replaced: None,
            has_lost: false,
            published: Vec::new(),
            replicas: vec![Replica::down(); setup.replicas],
            clients: setup.clients.iter().map(|on| Client::new(on)).collect(),
            budget: setup.budget,
        };
        let primary = Rc::make_mut(&mut world.primary);
        for _ in 0..setup.before {
            for &channel in &setup.channels {
                let link = primary.publish(START_MS - 1, channel, setup.length);
                world.published.push(Published {
                    channel,
                    id: link.id,
                    lost: false,
                });
            }
        }
        for replica in &mut world.replicas[..setup.connected] {
            replica.connect(primary.issue(START_MS), &setup.channels);
            replica.finish_recovery().unwrap();
        }
        world
    }

    /// What can happen next.
    pub(super) fn actions(&self, setup: &Setup) -> Vec<Action> {
        let mut actions = Vec::new();
        let budget = &self.budget;
        // A replica leaves a primary that it cannot confirm within the lag bound.
        let must_leave = self.replaced.as_ref().is_some_and(|(_, since)| {
            self.now >= since + LAG && self.replicas.iter().any(|replica| replica.is_behind)
        });
        if budget.ticks > 0 && !must_leave {
            actions.push(Action::Tick);
        }
        let may_be_isolated =
            setup.isolation && self.replicas.iter().any(|replica| replica.is_behind);
        if budget.publishes > 0 {
            for &channel in &setup.channels {
                actions.push(Action::Publish {
                    channel,
                    isolated: false,
                });
                if may_be_isolated {
                    actions.push(Action::Publish {
                        channel,
                        isolated: true,
                    });
                }
            }
        }
        for (number, replica) in self.replicas.iter().enumerate() {
            let can_probe = replica.is_up() && (!replica.is_behind || setup.isolation);
            if budget.probes > 0 && can_probe {
                actions.push(Action::Probe { replica: number });
            }
            if replica.is_up() && !replica.queue.is_empty() {
                actions.push(Action::Handle { replica: number });
            }
            if replica.is_subscribed() && (budget.losses > 0 || replica.is_behind) {
                actions.push(Action::Lose { replica: number });
            }
            if !replica.is_subscribed() {
                actions.push(Action::Reconnect { replica: number });
            }
            for channel in 0..2 {
                if replica.backfill(channel).is_some() {
                    actions.push(Action::Backfill {
                        replica: number,
                        channel,
                    });
                }
            }
        }
        for (number, client) in self.clients.iter().enumerate() {
            self.client_actions(setup, number, client, &mut actions);
        }
        if budget.failovers > 0 {
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
                    if setup.newest && !replica.is_behind {
                        connect(Start::Newest);
                    }
                    (0..setup.foreign.len()).for_each(|which| connect(Start::Foreign(which)));
                }
            }
            Stage::Away => {}
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

    /// The cursor that a live client is told next.
    fn moved_cursor(&self, client: &Client) -> Option<Cursor> {
        let Stage::Live { skip_through, told } = &client.stage else {
            return None;
        };
        let replica = &self.replicas[client.replica];
        let newest = client
            .channels
            .iter()
            .map(|channel| replica.newest[*channel]);
        let newest = newest.max().unwrap();
        let event = if newest > *skip_through {
            newest
        } else {
            told.event()
        };
        let settled = replica.settled()?;
        (settled > event && settled > told.position()).then(|| Cursor::new(event, settled))
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
            Action::Publish { channel, isolated } => {
                self.budget.publishes -= 1;
                self.publish(setup, channel, isolated);
            }
            Action::Probe { replica } => {
                self.budget.probes -= 1;
                let is_behind = self.replicas[replica].is_behind;
                let id = self.write(is_behind, |primary, now| primary.issue(now));
                self.replicas[replica].queue.push_back(Message::Probe(id));
            }
            Action::Handle { replica } => {
                let has_lost = self.has_lost;
                let told = self.replicas[replica].handle(&self.primary, has_lost)?;
                self.tell(replica, &told)?;
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
                let probe = self.write(false, |primary, now| primary.issue(now));
                self.replicas[replica].connect(probe, &setup.channels);
                self.finish_recovery(replica)?;
            }
            Action::Backfill { replica, channel } => {
                let cursor = self.replicas[replica].backfill(channel).unwrap();
                let from = cursor.read_from(lag_bound());
                let page = self
                    .primary
                    .page(self.now, channel, from, setup.page_events);
                let gap = self.replicas[replica].recover(channel, &page);
                if gap && self.primary.proves(self.now, cursor, &[channel])[0] {
                    return Err(format!("a gap after {cursor}, which is proven: {page:?}"));
                }
                if self.replicas[replica].backfill(channel) == Some(cursor) {
                    return Err(format!("the backfill does not get beyond {cursor}"));
                }
                self.finish_recovery(replica)?;
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
                client.cursor = Some(moved);
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

    fn publish(&mut self, setup: &Setup, channel: usize, isolated: bool) {
        let link = self.write(isolated, |primary, now| {
            primary.publish(now, channel, setup.length)
        });
        let event = Published {
            channel,
            id: link.id,
            lost: isolated,
        };
        let at = self.published.partition_point(|other| other.id < event.id);
        self.published.insert(at, event);
        for replica in &mut self.replicas {
            if replica.is_subscribed() && replica.is_behind == isolated {
                replica.queue.push_back(Message::Event(channel, link));
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

    fn finish_recovery(&mut self, replica: usize) -> Result<(), String> {
        match self.replicas[replica].finish_recovery() {
            Some(told) => self.tell(replica, &told),
            None => Ok(()),
        }
    }

    /// What a replica tells its live clients.
    fn tell(&mut self, replica: usize, told: &[Told]) -> Result<(), String> {
        for item in told {
            for client in &mut self.clients {
                let Stage::Live { skip_through, .. } = client.stage else {
                    continue;
                };
                if client.replica != replica || item.id() <= skip_through {
                    continue;
                }
                match *item {
                    Told::Event(channel, link) if client.channels.contains(&channel) => {
                        let lost = is_lost(&self.published, link.id);
                        client.take_event(channel, link, lost)?;
                    }
                    Told::Gap(channel, id) if client.channels.contains(&channel) => {
                        // Several channels may have one, each with events of its own after it.
                        client.take_gap(channel, None, id, &[], &self.published)?;
                    }
                    Told::Event(..) | Told::Gap(..) => {}
                }
            }
        }
        Ok(())
    }

    fn drop_pages(&mut self, replica: usize) {
        for client in &mut self.clients {
            if client.replica != replica {
                continue;
            }
            if let Stage::Replaying {
                replay,
                pages,
                pending,
            } = &mut client.stage
            {
                pages.fill(None);
                pending.clear();
                if replay.is_none() {
                    pending.extend(newest(client.channels.len()));
                }
            }
        }
    }

    fn connect(
        &mut self,
        setup: &Setup,
        number: usize,
        replica: usize,
        start: Start,
        most: usize,
    ) -> Result<bool, String> {
        let position = self.replicas[replica].position.unwrap();
        let client = &mut self.clients[number];
        let count = client.channels.len();
        let cursor = match start {
            Start::Fresh => {
                // What was delivered already after the position is told comes from the tails.
                let replay = Replay::resume(Cursor::fresh(position), count, lag_bound());
                client.cursor = Some(Cursor::fresh(position));
                client.start = [Some(position); 2];
                let stage = Stage::Replaying {
                    replay: Some(replay),
                    pages: vec![None; count],
                    pending: Vec::new(),
                };
                client.connect(replica, stage);
                return self.step(setup, number, most);
            }
            Start::Newest => {
                let stage = Stage::Replaying {
                    replay: None,
                    pages: vec![None; count],
                    pending: newest(count).collect(),
                };
                client.connect(replica, stage);
                return Ok(most == ALL);
            }
            Start::Resume => client.cursor.unwrap(),
            Start::Foreign(which) => setup.foreign[which],
        };
        let stage = Stage::Replaying {
            replay: Some(Replay::resume(cursor, count, lag_bound())),
            pages: vec![None; count],
            pending: Vec::new(),
        };
        client.connect(replica, stage);
        self.step(setup, number, most)
    }

    /// Redis executes a read.
    fn execute(
        &mut self,
        setup: &Setup,
        number: usize,
        at: usize,
        shared: bool,
        isolated: bool,
    ) -> bool {
        let client = &mut self.clients[number];
        let replica = &self.replicas[client.replica];
        let channel = client.channels[at];
        let Stage::Replaying { pending, .. } = &mut client.stage else {
            return false;
        };
        let pending = pending.iter_mut().find(|pending| pending.index == at);
        let pending = pending.unwrap();
        let primary = match &self.replaced {
            Some((replaced, _)) if isolated => replaced,
            _ => &self.primary,
        };
        let page = match pending.wanted {
            Wanted::Newest if shared => return false,
            Wanted::Newest => primary.newest_page(self.now, channel, 1),
            Wanted::From(_) if shared => {
                let page = primary.page(self.now, channel, EventId::ZERO, setup.page_events);
                if !page.complete {
                    return false;
                }
                page
            }
            Wanted::From(from) => primary.page(self.now, channel, from, setup.page_events),
        };
        pending.answer = Some(Rc::new(Read {
            page,
            now: self.now,
            primary: Rc::clone(primary),
            era: replica.era,
        }));
        true
    }

    /// The answer of a read is there; after the last one the replay goes on.
    fn arrive(
        &mut self,
        setup: &Setup,
        number: usize,
        at: usize,
        most: usize,
    ) -> Result<bool, String> {
        let client = &mut self.clients[number];
        let replica = &mut self.replicas[client.replica];
        let channel = client.channels[at];
        let Stage::Replaying {
            replay,
            pages,
            pending,
        } = &mut client.stage
        else {
            return Ok(false);
        };
        let which = pending.iter().position(|pending| pending.index == at);
        let arrived = pending.remove(which.unwrap());
        let read = arrived.answer.unwrap();
        replica.tails[channel].extend(&read.page, TAIL);
        pages[at] = Some((read, true));
        if !pending.is_empty() {
            return Ok(most == ALL);
        }
        if replay.is_none() {
            let mut floors = Vec::new();
            for (page, channel) in pages.iter().flatten().zip(&client.channels) {
                let page = &page.0.page;
                floors.push(match page.events.first() {
                    Some(_) => page.from,
                    None => page.end().next(),
                });
                client.start[*channel] = Some(page.end());
            }
            let begun = Replay::from_floors(floors, lag_bound());
            client.cursor = Some(begun.cursor());
            *replay = Some(begun);
        }
        self.step(setup, number, most)
    }

    fn step(&mut self, setup: &Setup, number: usize, most: usize) -> Result<bool, String> {
        let client = &mut self.clients[number];
        let replica = &self.replicas[client.replica];
        let Stage::Replaying {
            replay: Some(replay),
            pages,
            pending,
        } = &mut client.stage
        else {
            // Its newest pages were lost with the subscription.
            return Ok(false);
        };
        let before = replay.cursor();
        let views: Vec<_> = client
            .channels
            .iter()
            .zip(&*pages)
            .map(|(channel, page)| View {
                tail: &replica.tails[*channel],
                page: page.as_ref().map(|(read, _)| &read.page),
                fresh: page.as_ref().is_some_and(|(_, fresh)| *fresh),
            })
            .collect();
        let part = match replay.step(&views, replica.position, setup.part_events) {
            Step::Read(reads) => {
                let is_answered = reads.iter().all(|(index, _)| {
                    let page = pages[*index].as_ref();
                    page.is_some_and(|(read, fresh)| *fresh && read.era == replica.era)
                });
                if is_answered {
                    return Err(format!("{reads:?} are read already: {pages:?}"));
                }
                for (index, from) in reads {
                    pages[index] = None;
                    pending.push(Pending {
                        index,
                        wanted: Wanted::From(from),
                        answer: None,
                    });
                }
                return Ok(most == ALL);
            }
            Step::Send(part) => part,
        };
        let things = part.gaps.len() + part.events.len();
        if most != ALL && most >= things {
            return Ok(false);
        }
        let is_up_to_date = |read: &Rc<Read>| read.page.issued == self.primary.issued;
        let is_undisturbed = !replica.is_behind
            && replica.queue.is_empty()
            && pages.iter().flatten().all(|(read, _)| is_up_to_date(read));
        if !part.live && things == 0 && part.cursor == before && is_undisturbed {
            return Err(format!(
                "nothing comes after {before}: {pages:?} {replica:?}"
            ));
        }
        for gap in &part.gaps {
            let reads = pages.iter().flatten().map(|(read, _)| read);
            let mut proven = self.primary.proves(self.now, before, &client.channels)[gap.channel];
            for read in reads {
                proven &= read.primary.proves(read.now, before, &client.channels)[gap.channel];
            }
            if proven {
                return Err(format!(
                    "{gap:?} after {before}, which is proven: {pages:?}"
                ));
            }
        }
        if part.live {
            client.stage = Stage::Live {
                skip_through: part.cursor.position(),
                told: part.cursor,
            };
        } else if setup.reused_pages {
            pages
                .iter_mut()
                .flatten()
                .for_each(|(_, fresh)| *fresh = false);
        } else {
            pages.fill(None);
        }
        self.deliver(number, &part, most)
    }

    fn deliver(&mut self, number: usize, part: &Part<Link>, most: usize) -> Result<bool, String> {
        let published = &self.published;
        let channel_of = |id| {
            let event = published.iter().find(|event| event.id == id).unwrap();
            (event.channel, event.lost)
        };
        let client = &mut self.clients[number];
        let is_all = client.take_part(part, most, published, channel_of)?;
        if !is_all {
            client.disconnect();
        }
        Ok(true)
    }

    /// What must hold always.
    fn check(&self) -> Result<(), String> {
        let last = self.primary.issued.map(|issued| issued.last);
        for client in &self.clients {
            let position = client.cursor.map(Cursor::position).unwrap_or_default();
            let owed = client.owed(&self.published, position);
            if let Some(event) = owed {
                return Err(format!(
                    "{event:?} is missing before {position}, without a gap"
                ));
            }
            let replica = &self.replicas[client.replica];
            let is_quiet = replica.is_up() && !replica.is_behind && replica.queue.is_empty();
            if let (Stage::Live { .. }, true) = (&client.stage, is_quiet)
                && let Some(event) = client.owed(&self.published, EventId::MAX)
            {
                return Err(format!("{event:?} was never delivered"));
            }
        }
        for replica in &self.replicas {
            if let (true, Some(last)) = (replica.is_up() && !replica.is_behind, last)
                && replica.position > Some(last)
            {
                return Err(format!("position {:?} is after {last}", replica.position));
            }
        }
        Ok(())
    }
}

/// A part may be delivered as a whole, or the connection ends within it.
fn deliveries(action: impl Fn(usize) -> Action) -> impl Iterator<Item = Action> {
    [ALL, 0, 1, 2, 3].into_iter().map(action)
}

/// Reads of the newest events of so many channels.
fn newest(channels: usize) -> impl Iterator<Item = Pending> {
    (0..channels).map(|index| Pending {
        index,
        wanted: Wanted::Newest,
        answer: None,
    })
}

fn is_lost(published: &[Published], id: EventId) -> bool {
    published.iter().any(|event| event.id == id && event.lost)
}
