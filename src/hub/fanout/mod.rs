//! One fan-out pass: a batch of events is encoded once and handed to every member.

pub(super) mod batch;
pub(super) mod encoded;
pub(super) mod mailbox;
pub(super) mod outgoing;
pub(super) mod timing;

use std::cell::OnceCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use self::batch::{Batch, BatchItem, EncodedBatch, ItemKind};
use self::encoded::{EncodedEvent, Wire};
use self::mailbox::SlowClientPolicy;
use self::outgoing::{Loss, Origin, Parcel};
use self::timing::FanoutPass;
use crate::hub::channels::{Channel, Channels};
use crate::hub::state::Hub;
use crate::hub::stats::CloseReason;
use crate::hub::subscriber::{ChannelKey, Subscriber};
use crate::hub::{BusEvent, EventBatch, FanOutWatch, Item};
use crate::protocol::{ControlForm, EventId, Framing};

/// Pushes of one pass: some milliseconds of work, after which connections get to write and the
/// shard to accept, however many events there are for however many clients.
const MOST_PUSHES: usize = 64 * 1024;

/// Lets every task run that has been woken so far. Unlike `yield_now` it does not have the runtime
/// look for I/O as well, which would cost a system call per pass.
async fn after_those_woken() {
    let mut woken = false;
    poll_fn(|context| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The events of a pass, before they are handed out.
struct Gathered<'a> {
    batches: Vec<Batch>,
    items: Vec<BatchItem>,
    watched: Vec<Watched<'a>>,
}

impl Hub {
    /// Delivers `batch` in passes. After each every connection gets its turn to write.
    pub(super) async fn deliver(&self, batches: &mut Vec<EventBatch>) {
        {
            let arriving = |batch: &EventBatch| batch.arrived;
            let events = |batch| std::iter::repeat(arriving(batch)).zip(batch.events.iter());
            let mut events = batches.iter().flat_map(events).peekable();
            while let Some((arrived, _)) = events.peek() {
                let pass = FanoutPass::new(&self.clock, *arrived, &self.stats);
                self.fan_out(&mut events.by_ref().map(|(_, event)| event), &pass);
                drop(pass);
                // Encoding and handing out took their time.
                self.clock.expire();
                after_those_woken().await;
            }
        }
        batches.clear();
    }

    /// Delivers as many of `events` as one pass holds, at least one. Connections on one channel
    /// get that channel's events as one buffer; the others get theirs one by one, in order.
    fn fan_out<'a>(&self, events: &mut impl Iterator<Item = &'a BusEvent>, pass: &Rc<FanoutPass>) {
        let mut channels = self.channels.borrow_mut();
        let Gathered {
            batches,
            items,
            watched,
        } = self.gather(&mut channels, events, pass);
        let tells_of_loss = self.tells_of_loss();
        let encoded: Vec<_> = batches
            .into_iter()
            .map(|batch| batch.encoded(tells_of_loss))
            .collect();
        for item in &items {
            if let Some(batch) = encoded.get(item.batch) {
                self.note_kept(&mut channels, batch, item);
            }
        }
        for (number, batch) in encoded.iter().enumerate() {
            if let Some(channel) = channels.by_key(batch.key) {
                channel.batch = None;
                self.push_batch(number, batch, &channel.batch_members, &items);
            }
        }
        self.push_items(&channels, &encoded, &items);
        self.push_ends(&channels, &encoded);
        self.count_pass(&mut channels, &encoded, pass);
        for Watched {
            watch,
            batch,
            clients,
        } in watched
        {
            let restricted = encoded.get(batch).filter(|batch| batch.audience.is_some());
            watch.handed_to(restricted.map_or(clients, |batch| batch.readers.get()));
        }
    }

    /// Encodes the events of a pass, as many as it holds.
    fn gather<'a>(
        &self,
        channels: &mut Channels,
        events: &mut impl Iterator<Item = &'a BusEvent>,
        pass: &Rc<FanoutPass>,
    ) -> Gathered<'a> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut items: Vec<BatchItem> = Vec::new();
        let mut watched: Vec<Watched<'a>> = Vec::new();
        let (mut cost_bytes, mut pushes) = (0, 0);
        // The channels that end in this pass.
        let mut ended: Vec<(ChannelKey, EventId)> = Vec::new();
        while cost_bytes < self.settings.max_batch_bytes() && pushes < MOST_PUSHES {
            let Some(event) = events.next() else {
                break;
            };
            cost_bytes += event.cost_bytes();
            let Some(key) = channels.key_of(&event.channel) else {
                continue;
            };
            let Some(channel) = channels.by_key(key) else {
                continue;
            };
            let has_members = channel.has_members();
            let is_live = matches!(event.item, Item::Live(_));
            if is_live && !has_members {
                continue;
            }
            let audience = event.item.audience();
            let mut begin_batch = || {
                pushes += channel.batch_members.len();
                batches.push(Batch::new(
                    key,
                    event.channel.clone(),
                    audience.cloned(),
                    pass,
                ));
                batches.len() - 1
            };
            let number = if audience.is_none() {
                *channel.batch.get_or_insert_with(begin_batch)
            } else {
                // What follows it begins another one, and so stays behind it.
                channel.batch = None;
                begin_batch()
            };
            pushes += channel.event_members.len() + channel.replaying_members.len();
            let clients = channel.members_of(is_live);
            if let Some(watch) = &event.watch {
                watched.push(Watched {
                    watch,
                    batch: number,
                    clients,
                });
            }
            let Some(batch) = batches.get_mut(number) else {
                continue;
            };
            let ended_now = ended.iter().rev().find(|(of, _)| *of == key);
            let after_end = match ended_now {
                Some((_, id)) => Some(*id),
                None => channel.tail.ended().map(|end| end.id),
            };
            let (range, kind) = batch.add(&event.item, after_end);
            if let ItemKind::Kept { end: Some(end), .. } = &kind {
                ended.push((key, end.id));
                // What is published live all the same stays apart.
                channel.batch = None;
            }
            // Who gets one that is not for everybody is known later.
            if channels.are_counted() && audience.is_none() && !matches!(kind, ItemKind::Gap { .. })
            {
                channels.count(key, clients);
            }
            items.push(BatchItem {
                batch: number,
                range,
                kind,
            });
        }
        Gathered {
            batches,
            items,
            watched,
        }
    }

    /// Hands the items to the connections that take them one by one.
    fn push_items(&self, channels: &Channels, encoded: &[EncodedBatch], items: &[BatchItem]) {
        for item in items {
            let Some((batch, channel)) = encoded
                .get(item.batch)
                .and_then(|batch| Some((batch, channels.get(batch.key)?)))
            else {
                continue;
            };
            let origins = ItemOrigins::default();
            let push = |members: &[Rc<Subscriber>]| {
                for member in members.iter().filter(|member| batch.is_for(member)) {
                    self.push_item(member, batch, item, &origins, true);
                }
            };
            push(&channel.event_members);
            // Kept events come to these from their replay.
            if item.kind.id().is_none() {
                push(&channel.replaying_members);
            } else if !channel.replaying_members.is_empty() {
                batch.is_replayed.set(true);
            }
        }
    }

    /// Counts what the pass has delivered.
    fn count_pass(&self, channels: &mut Channels, encoded: &[EncodedBatch], pass: &FanoutPass) {
        for batch in encoded {
            if batch.audience.is_some() && channels.are_counted() {
                channels.count(batch.key, batch.readers.get());
            }
            if !channels.get(batch.key).is_some_and(Channel::has_members) {
                continue;
            }
            if batch.audience.is_none() || batch.has_readers() {
                pass.count_events(batch.events);
            } else {
                self.stats.events_without_audience.add(1);
            }
        }
    }

    fn tells_of_loss(&self) -> bool {
        self.settings.slow_client == SlowClientPolicy::Latest
    }

    /// Has a channel remember its kept event.
    fn note_kept(&self, channels: &mut Channels, batch: &EncodedBatch, item: &BatchItem) {
        match &item.kind {
            ItemKind::Live { .. } => {}
            ItemKind::Gap { complete_after, .. } => {
                if let Some(position) = complete_after {
                    channels.note_gap(batch.key, *position);
                }
            }
            ItemKind::Kept { link, end, .. } => {
                self.positions.borrow_mut().note(link.id);
                let wire = item.range.as_ref().map(|range| {
                    let wire = Wire::slice(&batch.bytes, &range.chunk, &range.payload);
                    if batch.is_mostly_kept {
                        wire
                    } else {
                        wire.detached()
                    }
                });
                // Of others each client's own is kept: its cursor names nothing it may not have.
                if batch.audience.is_none()
                    && let Some(channel) = channels.by_key(batch.key)
                {
                    channel.newest = channel.newest.max(link.id);
                }
                let event = EncodedEvent {
                    channel: batch.channel.clone(),
                    link: *link,
                    wire,
                    audience: batch.audience.clone(),
                    end: end.map(|end| end.reason),
                };
                channels.append_to_tail(batch.key, event);
            }
        }
    }

    /// Hands a batch to the connections that take it whole.
    fn push_batch(
        &self,
        number: usize,
        batch: &EncodedBatch,
        members: &[Rc<Subscriber>],
        items: &[BatchItem],
    ) {
        let tick = self.tick();
        for member in members {
            self.push_batch_to(member, number, batch, items, tick);
            self.push_end(member, batch);
        }
    }

    fn push_batch_to(
        &self,
        member: &Subscriber,
        number: usize,
        batch: &EncodedBatch,
        items: &[BatchItem],
        tick: u64,
    ) {
        if batch.is_for(member) {
            let has_had_some = batch.first_id <= member.skip_through.get();
            let needs_comments = member.control == ControlForm::Comment && !batch.gaps.is_empty();
            if has_had_some || needs_comments {
                for item in items.iter().filter(|item| item.batch == number) {
                    self.push_item(member, batch, item, &ItemOrigins::default(), false);
                }
                return;
            }
            for reason in &batch.gaps {
                self.stats.count_gaps(*reason, 1);
            }
            if !batch.bytes.is_empty() {
                member.last_push.set(tick);
                let parcel = Parcel {
                    bytes: batch.bytes.clone(),
                    events: batch.events,
                    origin: Some(Rc::clone(&batch.origin)),
                };
                batch.note_sent(member, Some(batch.first_id));
                self.push(member, parcel);
            }
        }
    }

    /// Hands one event to a connection it is for that has not had it. `is_one_of_many`: it may have had
    /// later events of other channels.
    fn push_item(
        &self,
        member: &Subscriber,
        batch: &EncodedBatch,
        item: &BatchItem,
        origins: &ItemOrigins,
        is_one_of_many: bool,
    ) {
        if item.kind.was_had(member.skip_through.get()) {
            return;
        }
        if let ItemKind::Live {
            after_end: Some(end),
        } = item.kind
            && member.minds_end(end)
        {
            return;
        }
        let Some(range) = &item.range else {
            return;
        };
        let is_late = is_one_of_many && item.kind.is_late();
        let wire = item.kind.wire(member.control, is_late).cloned();
        let wire = wire.unwrap_or_else(|| Wire::slice(&batch.bytes, &range.chunk, &range.payload));
        let events = match item.kind {
            ItemKind::Gap { reason, .. } => {
                self.stats.count_gaps(reason, 1);
                0
            }
            _ => 1,
        };
        member.last_push.set(self.tick());
        batch.note_sent(member, item.kind.id());
        let made = if is_late {
            &origins.late
        } else {
            &origins.on_time
        };
        let origin = made.get_or_init(|| self.origin(batch, item, !is_late));
        let parcel = Parcel {
            bytes: wire.framed(member.framing),
            events,
            origin: match member.framing {
                Framing::Chunked => origin.clone(),
                // hyper does not say when its client is not ready to take something.
                Framing::Plain => origin.as_ref().map(Origin::outside),
            },
        };
        self.push(member, parcel);
        if matches!(item.kind, ItemKind::Gap { .. }) && member.ends_with_gap() {
            let mut mailbox = member.mailbox.borrow_mut();
            mailbox.end(CloseReason::Incomplete);
        }
    }

    /// Where an event comes from, for those that get it by itself.
    fn origin(&self, batch: &EncodedBatch, item: &BatchItem, with_id: bool) -> Option<Rc<Origin>> {
        let timing = item.kind.timing(batch.origin.pass());
        let span = self
            .tells_of_loss()
            .then(|| item.kind.span(&batch.channel, with_id));
        let loss = span.flatten().map(Loss::Kept);
        (timing.is_some() || loss.is_some()).then(|| Rc::new(Origin::new(timing, loss)))
    }
}

/// An event of a pass that somebody follows.
struct Watched<'a> {
    watch: &'a Arc<dyn FanOutWatch>,
    batch: usize,
    /// All members of its channel that it comes to now.
    clients: usize,
}

/// The origins of an item, each made when it is needed.
#[derive(Default)]
struct ItemOrigins {
    on_time: OnceCell<Option<Rc<Origin>>>,
    /// For those that get it without its id.
    late: OnceCell<Option<Rc<Origin>>>,
}

#[cfg(test)]
mod tests;
