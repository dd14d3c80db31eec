//! The tasks of a shard: handling what the bus sends, telling it what is wanted, and the clock.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::state::Hub;
use super::{BusUpdate, EventBatch, INBOX_BATCHES, Inbox, InterestUpdate, ShardId, ShardMessage};
use crate::continuity::Positions;
use crate::protocol::{Cursor, EventId};

/// How often lingering channels are looked at.
const LINGER_SWEEP: Duration = Duration::from_millis(100);

impl Hub {
    /// Handles what the bus sends until it is gone. All events that have arrived meanwhile are
    /// one batch.
    pub async fn run(self: Rc<Self>, mut inbox: Inbox) {
        let mut messages = Vec::new();
        let mut batch: Vec<EventBatch> = Vec::new();
        while inbox.recv_many(&mut messages, INBOX_BATCHES).await > 0 {
            for message in messages.drain(..) {
                match message {
                    ShardMessage::Events(events) => batch.push(events),
                    ShardMessage::BusUpdate(update) => {
                        self.deliver(&mut batch).await;
                        self.handle(update);
                    }
                }
            }
            self.deliver(&mut batch).await;
        }
    }

    pub(super) fn handle(self: &Rc<Self>, update: BusUpdate) {
        match update {
            BusUpdate::Position(position) => {
                let mut positions = self.positions.borrow_mut();
                if positions.newest().is_none() {
                    // Ids came into being while channels were active.
                    self.channels.borrow_mut().start_tails(position);
                }
                positions.note(position);
            }
            BusUpdate::Active {
                channels: active,
                position,
            } => {
                if let Some(position) = position {
                    self.positions.borrow_mut().note(position);
                }
                let mut channels = self.channels.borrow_mut();
                for (name, generation) in active {
                    channels.activate(&name, generation, position);
                }
                self.activated.notify_waiters();
            }
            BusUpdate::Rewound(position) => {
                let mut positions = Positions::new(self.settings.lag_bound);
                positions.note(position);
                self.positions.replace(positions);
                self.channels.borrow_mut().forget_events();
                // What a client has had is of the old sequence: it is no reason to skip anything.
                for subscriber in self.heartbeats.borrow().subscribers() {
                    subscriber.reach(Cursor::default());
                    subscriber.ends_through.set(EventId::ZERO);
                    subscriber.asks_for_ends.set(true);
                }
            }
            BusUpdate::Lost => {
                self.losses.set(self.losses.get().wrapping_add(1));
                self.channels.borrow_mut().deactivate_all();
            }
            BusUpdate::Revoked(revoked) => self.cut_off(&revoked),
            BusUpdate::Census(reply) => {
                let loads = self.channels.borrow_mut().take_census(Instant::now());
                // Whoever asked may have given up.
                let _ = reply.try_send(loads);
            }
            BusUpdate::Drain(period) => {
                if !self.draining.replace(true) {
                    self.drain_begun.notify_waiters();
                    tokio::task::spawn_local(Rc::clone(self).drain(period));
                }
            }
        }
    }

    /// Tells the bus what is wanted, until the bus is gone.
    pub async fn tell_interest(self: Rc<Self>, shard: ShardId, bus: mpsc::Sender<InterestUpdate>) {
        loop {
            self.interest_changed.notified().await;
            let changes = self.channels.borrow_mut().take_changes();
            if !changes.is_empty() && bus.send(InterestUpdate { shard, changes }).await.is_err() {
                return;
            }
        }
    }

    /// Sends heartbeats, gives up channels that nobody came back to, and keeps the clock right.
    pub async fn sweep(self: Rc<Self>) {
        let mut heartbeats = interval(self.heartbeats.borrow().tick());
        // A late tick must not be followed by a burst of them: silence is counted in ticks.
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lingering = interval(LINGER_SWEEP);
        lingering.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = heartbeats.tick() => self.beat(),
                _ = lingering.tick() => {
                    let mut channels = self.channels.borrow_mut();
                    channels.expire(Instant::now());
                    channels.end_census(Instant::now());
                    self.clock.follow_time_of_day();
                    self.after_interest_change(&channels);
                }
            }
        }
    }
}
