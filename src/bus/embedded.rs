//! A bus inside the process: one replica, no Redis, the same behaviour.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::routing::{Routing, Wish};
use super::{BusHealth, PublishError, Publisher};
use crate::hub::{BusEvent, InterestUpdate, Item};
use crate::protocol::{ChannelName, Event};
use crate::telemetry::{BusMetrics, DropReason};

/// Published events that may wait: publishers beyond it wait for their answer.
const PUBLISH_QUEUE: usize = 64;

/// How long a publisher waits for a place in the queue.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// Publishes into this process.
#[derive(Clone, Debug)]
pub struct EmbeddedPublisher(mpsc::Sender<BusEvent>);

impl EmbeddedPublisher {
    pub(super) async fn publish(
        &self,
        channel: &ChannelName,
        event: Event,
    ) -> Result<(), PublishError> {
        let event = BusEvent::live(channel.clone(), event);
        match timeout(PUBLISH_DEADLINE, self.0.send(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PublishError("the gateway is stopping".into())),
            Err(_) => Err(PublishError("its queue is full".into())),
        }
    }
}

/// Starts the bus.
pub(super) fn start(
    control: &Handle,
    routing: Routing,
    updates: mpsc::Receiver<InterestUpdate>,
    metrics: BusMetrics,
) -> (Publisher, watch::Receiver<BusHealth>) {
    let (publisher, published) = mpsc::channel(PUBLISH_QUEUE);
    let (_, health) = watch::channel(BusHealth::Up);
    control.spawn(run(routing, updates, published, metrics));
    (Publisher::Embedded(EmbeddedPublisher(publisher)), health)
}

async fn run(
    mut routing: Routing,
    mut updates: mpsc::Receiver<InterestUpdate>,
    mut published: mpsc::Receiver<BusEvent>,
    metrics: BusMetrics,
) {
    let mut events = Vec::new();
    loop {
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { return };
                let shard = update.shard;
                let active: Vec<_> = routing
                    .apply(update)
                    .into_iter()
                    .filter_map(|(name, wish)| match wish {
                        Wish::Wanted(generation) => Some((name, generation)),
                        Wish::Unwanted | Wish::Unchanged => None,
                    })
                    .collect();
                if !active.is_empty() {
                    routing.tell_one_active(active, None, shard).await;
                }
            }
            _ = published.recv_many(&mut events, PUBLISH_QUEUE) => {
                for event in events.drain(..) {
                    metrics.live_received.inc();
                    if matches!(&event.item, Item::Live(event) if event.audience().is_some()) {
                        metrics.dropped(DropReason::NoAudience).inc();
                    } else {
                        routing.route(event).await;
                    }
                }
                routing.flush().await;
            }
        }
    }
}
