//! What this replica tells of itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::report::{Channel, Report};
use crate::admin::AdminState;
use crate::bus::BusHealth;
use crate::hub::{
    BusUpdate, ChannelLoad, CloseReason, LATENCY_BOUNDS_US, LatencyTotal, ShardMessage, ShardStats,
};
use crate::labels::Labels as _;
use crate::protocol::GapReason;
use crate::telemetry::{EventKind, ProcessUsage, process_usage};

/// The most that the shards may take to tell their busiest channels: one that is busy for longer is
/// left out.
const CENSUS: Duration = Duration::from_millis(500);

/// Channels of this replica that are told.
const CHANNELS: usize = 20;

/// Looks at everything that this replica counts.
#[derive(Debug)]
pub struct Sampler {
    id: String,
    name: String,
    started: Instant,
    admin: Arc<AdminState>,
    stats: Vec<Arc<ShardStats>>,
    inboxes: Vec<mpsc::Sender<ShardMessage>>,
    max_connections: usize,
    counted: Instant,
    probes: Probes,
}

/// What was last seen of the probes.
#[derive(Debug, Default)]
struct Probes {
    count: u64,
    seconds: f64,
    newest_us: Option<u64>,
}

impl Sampler {
    /// A sampler of the replica that is called `name`.
    pub fn new(
        name: String,
        admin: Arc<AdminState>,
        stats: Vec<Arc<ShardStats>>,
        inboxes: Vec<mpsc::Sender<ShardMessage>>,
        max_connections: usize,
    ) -> Self {
        Self {
            id: format!("{:016x}", fastrand::u64(..)),
            name,
            started: Instant::now(),
            admin,
            stats,
            inboxes,
            max_connections,
            counted: Instant::now(),
            probes: Probes::default(),
        }
    }

    /// What its reports are known by.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether others can be heard.
    pub(super) fn bus_is_up(&self) -> bool {
        *self.admin.bus.borrow() == BusHealth::Up
    }

    /// How things are now.
    pub(super) async fn report(&mut self) -> Report {
        let channels = self.channels().await;
        let counted = std::mem::replace(&mut self.counted, Instant::now());
        let sum = |of: &dyn Fn(&ShardStats) -> u64| self.stats.iter().map(|one| of(one)).sum();
        let closed = |reason| sum(&|shard| shard.closed(reason));
        let gaps = GapReason::ALL.map(|reason| {
            let told: u64 = sum(&|shard| shard.gaps(reason));
            (reason.label().to_owned(), told)
        });
        let readiness = self.admin.readiness();
        let metrics = &self.admin.metrics;
        let (probes, probe_seconds) = metrics.bus.probes();
        self.probes.look(probes, probe_seconds);
        // What the last good probe took says nothing of a bus that is down.
        let is_up = self.bus_is_up();
        let ProcessUsage {
            cpu_seconds,
            memory_bytes,
        } = process_usage();
        Report {
            id: self.id.clone(),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(self.started.elapsed()),
            ready: readiness.ready,
            reasons: readiness.reasons,
            connections: sum(&|shard| shard.connections.get()),
            max_connections: self.max_connections as u64,
            opened: sum(&|shard| shard.connections_opened.get()),
            closed: CloseReason::all().into_iter().map(closed).sum(),
            slow: closed(CloseReason::SlowClient) + closed(CloseReason::Unresponsive),
            live: metrics.bus.received(EventKind::Live).get(),
            kept: metrics.bus.received(EventKind::Kept).get(),
            delivered: sum(&|shard| shard.events_delivered.get()),
            sent_bytes: sum(&|shard| shard.sent_bytes.get()),
            gaps: gaps.into_iter().filter(|(_, told)| *told > 0).collect(),
            latency: by_bound(&metrics.delivery()),
            bus_lag_us: self.probes.newest_us.filter(|_| is_up),
            cpu_ms: millis(Duration::try_from_secs_f64(cpu_seconds).unwrap_or_default()),
            memory_bytes,
            channels_ms: millis(counted.elapsed()),
            channels,
            ..Report::new()
        }
    }

    /// The busiest channels since the last report, of all shards together.
    async fn channels(&self) -> Vec<Channel> {
        let (reply, mut loads) = mpsc::channel(self.inboxes.len().max(1));
        for inbox in &self.inboxes {
            // A shard that is behind has better things to do.
            let _ = inbox.try_send(ShardMessage::BusUpdate(BusUpdate::Census(reply.clone())));
        }
        drop(reply);
        let mut channels: HashMap<String, Channel> = HashMap::new();
        let add = async {
            while let Some(loads) = loads.recv().await {
                for load in &loads {
                    add_load(&mut channels, load);
                }
            }
        };
        let _ = timeout(CENSUS, add).await;
        let mut channels: Vec<_> = channels.into_values().collect();
        channels.sort_by(|one, other| {
            (other.deliveries, other.events, &one.name).cmp(&(
                one.deliveries,
                one.events,
                &other.name,
            ))
        });
        channels.truncate(CHANNELS);
        channels
    }
}

/// Each shard gets every event of a channel that it has clients for: events are not added up.
fn add_load(channels: &mut HashMap<String, Channel>, load: &ChannelLoad) {
    let name = load.channel.to_string();
    let channel = channels.entry(name).or_insert_with_key(|name| Channel {
        name: name.clone(),
        ..Channel::default()
    });
    channel.clients += load.clients as u64;
    channel.events = channel.events.max(load.events);
    channel.deliveries += load.deliveries;
}

impl Probes {
    /// Takes note of how many there were and what they took together.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few probes, of some microseconds to seconds"
    )]
    fn look(&mut self, count: u64, seconds: f64) {
        let new = count.saturating_sub(self.count);
        if new > 0 {
            let mean = (seconds - self.seconds).max(0.0) / new as f64;
            self.newest_us = Some((mean * 1e6) as u64);
            (self.count, self.seconds) = (count, seconds);
        }
    }
}

/// Counts by upper bound, those that are not zero.
fn by_bound(total: &LatencyTotal) -> BTreeMap<u64, u64> {
    let within = LATENCY_BOUNDS_US.into_iter().zip(total.buckets);
    let all = within.chain([(u64::MAX, total.over)]);
    all.filter(|(_, count)| *count > 0).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_lag_is_that_of_the_newest_probes() {
        let mut probes = Probes::default();
        probes.look(0, 0.0);
        assert_eq!(probes.newest_us, None);
        probes.look(2, 0.004);
        probes.look(2, 0.004);
        assert_eq!(probes.newest_us, Some(2000));
        probes.look(3, 0.007);
        assert_eq!(probes.newest_us, Some(3000));
    }

    #[test]
    fn shards_are_added_up() {
        let mut channels = HashMap::new();
        let load = |clients, events, deliveries| ChannelLoad {
            channel: "a".parse().unwrap(),
            clients,
            events,
            deliveries,
        };
        add_load(&mut channels, &load(2, 10, 20));
        add_load(&mut channels, &load(3, 9, 27));
        let channel = &channels["a"];
        assert_eq!(
            (channel.clients, channel.events, channel.deliveries),
            (5, 10, 47)
        );
    }
}
