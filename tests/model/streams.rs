//! The streams of a small world: what a replica does for the clients that open them.

use std::rc::Rc;

use super::actions::{ALL, Start};
use super::client::{Pending, Read, Stage, Wanted};
use super::primary::lag_bound;
use super::setup::{Kept, Setup, is_restricted};
use super::world::World;
use crate::continuity::{Part, Replay, Step, View};
use crate::protocol::{Cursor, EventId};

impl World {
    pub(super) fn drop_pages(&mut self, replica: usize) {
        for client in &mut self.clients {
            if client.replica != replica {
                continue;
            }
            if let Stage::Replaying {
                replay,
                pages,
                pending,
                ..
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

    pub(super) fn connect(
        &mut self,
        setup: &Setup,
        number: usize,
        replica: usize,
        start: Start,
        most: usize,
    ) -> Result<bool, String> {
        let position = self.replicas[replica].shard.position().unwrap();
        let client = &mut self.clients[number];
        let count = client.channels.len();
        let cursor = match start {
            Start::Fresh => {
                // What was delivered already after the position is told comes from the tails.
                let replay = Replay::fresh(position, count, lag_bound());
                client.cursor = Some(Cursor::fresh(position));
                client.start = [Some(position); 2];
                let stage = Stage::Replaying {
                    replay: Some(replay),
                    pages: vec![None; count],
                    pending: Vec::new(),
                    is_first: true,
                };
                client.connect(replica, stage);
                client.asks_for_ends = false;
                return self.step(setup, number, most);
            }
            Start::Newest => {
                let stage = Stage::Replaying {
                    replay: None,
                    pages: vec![None; count],
                    pending: newest(count).collect(),
                    is_first: true,
                };
                client.connect(replica, stage);
                return Ok(most == ALL);
            }
            Start::Beginning => Cursor::default(),
            Start::Resume => client.cursor.unwrap(),
            Start::Foreign(which) => setup.foreign[which],
        };
        let replay = if cursor == Cursor::default() {
            client.cursor = Some(cursor);
            Replay::from_start(count, lag_bound())
        } else {
            Replay::resume(cursor, count, lag_bound())
        };
        let stage = Stage::Replaying {
            replay: Some(replay),
            pages: vec![None; count],
            pending: Vec::new(),
            is_first: true,
        };
        client.connect(replica, stage);
        self.step(setup, number, most)
    }

    /// Redis executes a read.
    pub(super) fn execute(
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
    pub(super) fn arrive(
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
            ..
        } = &mut client.stage
        else {
            return Ok(false);
        };
        let which = pending.iter().position(|pending| pending.index == at);
        let arrived = pending.remove(which.unwrap());
        let read = arrived.answer.unwrap();
        replica.take_page(channel, &read.page);
        pages[at] = Some((read, true));
        if !pending.is_empty() {
            return Ok(most == ALL);
        }
        if replay.is_none() {
            for (page, channel) in pages.iter().flatten().zip(&client.channels) {
                client.start[*channel] = Some(page.0.page.end());
            }
            let read = pages.iter().flatten().map(|(read, _)| &read.page);
            let may_have = |kept: &Kept| !(setup.restricts && is_restricted(kept.link.id));
            let begun = Replay::newest(read, may_have, lag_bound());
            client.cursor = Some(begun.cursor());
            *replay = Some(begun);
        }
        self.step(setup, number, most)
    }

    pub(super) fn step(
        &mut self,
        setup: &Setup,
        number: usize,
        most: usize,
    ) -> Result<bool, String> {
        let client = &mut self.clients[number];
        let replica = &self.replicas[client.replica];
        let Stage::Replaying {
            replay: Some(replay),
            pages,
            pending,
            is_first,
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
                tail: &replica.shard.tails[*channel],
                page: page.as_ref().map(|(read, _)| &read.page),
                fresh: page.as_ref().is_some_and(|(_, fresh)| *fresh),
            })
            .collect();
        let may_have = |kept: &Kept| !(setup.restricts && is_restricted(kept.link.id));
        let step = replay.step(
            &views,
            replica.shard.position(),
            setup.part_events,
            may_have,
        );
        let part = match step {
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
        if before == Cursor::default() {
            for (page, channel) in pages.iter().flatten().zip(&client.channels) {
                // What expired before is of another history.
                client.start[*channel] = Some(match page.0.page.oldest {
                    Some(oldest) if oldest.prev == EventId::ZERO => oldest.id.pred(),
                    Some(_) => EventId::ZERO,
                    None => page.0.page.end(),
                });
            }
        }
        let is_over = std::mem::take(is_first) && part.is_over;
        if is_over {
            client.stage = Stage::Over;
            return self.check_over(number, before).map(|()| most == ALL);
        }
        let things = part.gaps.len() + part.events.len();
        if most != ALL && most >= things {
            return Ok(false);
        }
        let is_up_to_date = |read: &Rc<Read>| read.page.issued == self.primary.issued;
        let is_undisturbed = !replica.is_behind
            && replica.is_quiet()
            && pages.iter().flatten().all(|(read, _)| is_up_to_date(read));
        if !part.live && things == 0 && replay.cursor() == before && is_undisturbed {
            return Err(format!(
                "nothing comes after {before}: {pages:?} {replica:?}"
            ));
        }
        let last = self
            .primary
            .issued
            .map_or(EventId::ZERO, |issued| issued.last);
        if !self.has_lost && before.position() > last && part.gaps.len() < client.channels.len() {
            return Err(format!("{before} was never issued, and no gap is told"));
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
        // A gap also tells of what is past the cursor, which does not vouch for it: up to the seam, or up to where the
        // channel was read, if nothing that follows there is for the client.
        let mut gone = Vec::new();
        for gap in part.gaps.iter().take(most) {
            let channel = client.channels[gap.channel];
            let page = pages[gap.channel].as_ref().map(|(read, _)| &read.page);
            let known_through = if part.live {
                replica.shard.position()
            } else {
                page.map(|page| page.end())
            };
            let is_retained =
                |id| page.is_some_and(|page| page.events.iter().any(|event| event.link.id == id));
            gone.extend(self.published.iter().filter_map(|event| {
                let is_gone = event.channel == channel
                    && Some(event.id) <= known_through
                    && !is_retained(event.id);
                is_gone.then_some(event.id)
            }));
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
        gone.into_iter().for_each(|id| client.settle(id));
        self.deliver(number, &part, most)
    }

    fn deliver(&mut self, number: usize, part: &Part<Kept>, most: usize) -> Result<bool, String> {
        let published = &self.published;
        let channel_of = |id| {
            let event = published.iter().find(|event| event.id == id).unwrap();
            (event.channel, event.lost)
        };
        let client = &mut self.clients[number];
        let is_all = client.take_part(part, most, published, channel_of)?;
        if !is_all {
            client.disconnect();
            return Ok(true);
        }
        if part.live {
            client.ends_through = part.ends_through;
        }
        for end in &part.ends {
            client.take_end(client.channels[end.channel], end.end.id, published)?;
        }
        if let Some(last_end) = part.last_end {
            client.finish(last_end);
        }
        Ok(true)
    }

    /// A client with this cursor is told that nothing comes.
    fn check_over(&self, number: usize, cursor: Cursor) -> Result<(), String> {
        let client = &self.clients[number];
        let replica = &self.replicas[client.replica];
        let position = cursor.position();
        let was_issued = self
            .primary
            .issued
            .is_some_and(|issued| position <= issued.last);
        if !self.has_lost && !was_issued {
            return Err(format!("{cursor} is over, which was never issued"));
        }
        for channel in &client.channels {
            let mut of_channel = self
                .published
                .iter()
                .filter(|event| event.channel == *channel);
            let mut had = of_channel.clone().filter(|event| event.id <= position);
            if !had.any(|event| event.ends) {
                return Err(format!("{cursor} is told that {channel} is over"));
            }
            // What a replica that is behind knows is right where it is.
            let is_certain = replica.is_quiet() && !replica.is_behind;
            let last = of_channel.rfind(|event| !event.lost);
            let is_end = last.is_some_and(|last| last.ends && last.id <= position);
            if is_certain && !is_end {
                return Err(format!(
                    "{cursor} is told that {channel} is over, which goes on"
                ));
            }
        }
        Ok(())
    }
}

/// Reads of the newest events of so many channels.
fn newest(channels: usize) -> impl Iterator<Item = Pending> {
    (0..channels).map(|index| Pending {
        index,
        wanted: Wanted::Newest,
        answer: None,
    })
}
