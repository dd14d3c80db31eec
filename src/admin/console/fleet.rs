//! What is known of all replicas: their reports, and what follows from two of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::TICK;
use super::latency::{self, Latency};
use super::rates::Rates;
use super::report::{Channel, Report};

/// How much of the past a page is shown.
const PAST: Duration = Duration::from_secs(600);

/// As many points as that has ticks.
const POINTS: usize = 300;
const _: () = assert!(TICK.as_secs() * POINTS as u64 == PAST.as_secs());

/// A replica that is silent for so long is gone: it would have reported three times.
const GONE_AFTER: Duration = TICK.saturating_mul(3);

/// This replica hears nothing of others when its own report has not come back for so long, which
/// is one that was lost. Their last may be older by a tick than its own, and they must not be found
/// silent before.
const DEAF_AFTER: Duration = Duration::from_secs(3);
const _: () = assert!(TICK.as_secs() < 3 && 3 + TICK.as_secs() < GONE_AFTER.as_secs());

/// A replica that has said that it stops is still shown for so long; others as long as the past.
const STOPPED_SHOWN: Duration = Duration::from_secs(60);

/// Rates are of at least so long. What a replica that was held up makes good in the few
/// milliseconds between two reports is no rate.
const LEAST_SPAN_MS: u64 = 1000;

/// What `/readyz` says of a replica that is about to end.
const STOPPING: &str = "stopping";

/// Replicas that are shown at the most. One takes some ten kilobytes.
const MOST_REPLICAS: usize = 256;

/// Channels that are shown.
const CHANNELS: usize = 15;

/// The reports of all replicas, and the past of the fleet as a whole.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    replicas: HashMap<String, Replica>,
    points: VecDeque<Point>,
    /// The last look.
    looked: Option<Instant>,
    hearing: Hearing,
    /// Replicas there was no room for since the last look.
    unseen: HashMap<String, Instant>,
}

/// Whether what is said on the bus is heard here, by the way of our own reports through it.
#[derive(Clone, Copy, Debug, Default)]
struct Hearing {
    /// The last of our own that came back.
    echo: Option<Instant>,
    /// Since when they come back.
    since: Option<Instant>,
}

/// What is known of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Presence {
    /// It reports.
    Present,
    /// Nothing: its reports could not be heard here.
    Unheard,
    /// It ought to report.
    Silent,
    /// It has said that it stops, and then nothing more.
    Stopped,
}

#[derive(Debug)]
struct Replica {
    heard: Instant,
    report: Report,
    /// What rates are counted from.
    base: Report,
    rates: Rates,
    /// Its report at the last look, and what it had counted then and before.
    looked_at: Option<Report>,
    incidents: VecDeque<(u64, u64)>,
}

/// The fleet at one moment; rates are of a second, times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Point {
    /// Unix milliseconds.
    at: u64,
    /// Replicas are not heard here: sums are not those of the fleet.
    partial: bool,
    ready: usize,
    /// Those that are ready, and those that ought to be.
    replicas: usize,
    connections: u64,
    live: f64,
    kept: f64,
    delivered: f64,
    sent: f64,
    opened: f64,
    closed: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    /// Told since the last point, by reason.
    gaps: BTreeMap<String, u64>,
    /// Slow clients cut off since the last point.
    slow: u64,
}

/// A replica as a page shows it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    here: bool,
    presence: Presence,
    silent_s: f64,
    ready: bool,
    reasons: &'a [String],
    uptime_s: f64,
    connections: u64,
    max_connections: u64,
    received: f64,
    delivered: f64,
    sent: f64,
    p99: Option<f64>,
    bus_lag: Option<f64>,
    slow: u64,
    gaps: u64,
    cpu: f64,
    memory: u64,
}

/// A channel as a page shows it, on all replicas together.
#[derive(Debug, Default, PartialEq, Serialize)]
struct ChannelRow {
    name: String,
    clients: u64,
    events: f64,
    deliveries: f64,
}

/// Everything a page shows, and what it adds to the past.
#[derive(Debug, Serialize)]
struct Now<'a> {
    point: &'a Point,
    replicas: Vec<Row<'a>>,
    channels: Vec<ChannelRow>,
    unseen: usize,
}

/// What a page is shown first.
#[derive(Debug, Serialize)]
struct Past<'a> {
    most: usize,
    /// Latencies are not told apart above this.
    most_latency_s: f64,
    points: &'a VecDeque<Point>,
}

impl Fleet {
    /// Forgets everything if nobody has looked since then. `None`: there was no such time yet.
    pub(super) fn forget_unless_seen_since(&mut self, then: Option<Instant>) {
        if self.looked < then {
            *self = Self::default();
        }
    }

    /// Whether nothing was looked at yet.
    pub(super) fn has_no_past(&self) -> bool {
        self.looked.is_none()
    }

    /// Takes note of a report.
    pub(super) fn note(&mut self, report: Report, now: Instant) {
        if let Some(replica) = self.replicas.get_mut(&report.id) {
            // Not one that was overtaken on its way.
            if report.uptime_ms > replica.report.uptime_ms {
                if report.uptime_ms - replica.base.uptime_ms >= LEAST_SPAN_MS {
                    replica.rates = Rates::between(&replica.base, &report);
                    replica.base = report.clone();
                }
                replica.report = report;
                replica.heard = now;
            }
        } else if self.has_room(now) {
            let replica = Replica {
                heard: now,
                base: report.clone(),
                rates: Rates::default(),
                report: report.clone(),
                looked_at: None,
                incidents: VecDeque::new(),
            };
            self.replicas.insert(report.id, replica);
        } else if self.unseen.len() < MOST_REPLICAS || self.unseen.contains_key(&report.id) {
            self.unseen.insert(report.id, now);
        }
    }

    /// Whether one more replica can be shown, at worst instead of the one that has been gone for
    /// the longest time.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.replicas.len() < MOST_REPLICAS {
            return true;
        }
        let gone = self
            .replicas
            .iter()
            .filter(|(_, replica)| now.saturating_duration_since(replica.heard) >= GONE_AFTER);
        let longest = gone.min_by_key(|(_, replica)| replica.heard);
        let Some(id) = longest.map(|(id, _)| id.clone()) else {
            return false;
        };
        self.replicas.remove(&id).is_some()
    }

    /// Takes note that our own report has come back from the bus.
    pub(super) fn note_echo(&mut self, now: Instant) {
        self.hearing.note_echo(now);
    }

    /// Adds the moment to the past and returns what a page shows, as JSON. `here`: the replica
    /// that serves it, and whether its bus is up.
    pub(super) fn look(&mut self, here: (&str, bool), at_ms: u64, now: Instant) -> String {
        let (here, bus_is_up) = here;
        self.looked = Some(now);
        let silent = |heard: Instant| now.saturating_duration_since(heard);
        self.forget_the_gone(now);
        self.unseen.retain(|_, heard| silent(*heard) < GONE_AFTER);
        let mut point = Point {
            at: at_ms,
            // There may be others, of which nothing was ever heard.
            partial: !bus_is_up && self.hearing.since.is_none(),
            ..Point::default()
        };
        let hearing = self.hearing;
        let mut latency = Latency::default();
        for replica in self.replicas.values_mut() {
            let presence = replica.presence(hearing, now);
            point.replicas += usize::from(presence != Presence::Stopped);
            point.partial |= presence == Presence::Unheard;
            if presence == Presence::Present {
                replica.add_to(&mut point);
            }
            replica.look(&mut point, &mut latency);
        }
        (point.p50, point.p99) = (latency.quantile(0.5), latency.quantile(0.99));
        self.points.push_back(point);
        if self.points.len() > POINTS {
            self.points.pop_front();
        }

        let mut replicas: Vec<Row<'_>> = self
            .replicas
            .values()
            .map(|replica| {
                let presence = replica.presence(hearing, now);
                replica.row(here, presence, silent(replica.heard))
            })
            .collect();
        replicas.sort_by(|one, other| {
            let gone = |row: &Row<'_>| row.presence != Presence::Present;
            let by_name = (gone(one), one.name).cmp(&(gone(other), other.name));
            by_name.then_with(|| one.uptime_s.total_cmp(&other.uptime_s))
        });
        let present = self
            .replicas
            .values()
            .filter(|replica| silent(replica.heard) < GONE_AFTER);
        let now = self.points.back().map(|point| Now {
            point,
            replicas,
            channels: busiest(present),
            unseen: self.unseen.len(),
        });
        // Texts and finite numbers: serialising them cannot fail.
        serde_json::to_string(&now).unwrap_or_default()
    }

    /// Forgets replicas that are not worth a row any more: one that has stopped for a while, one
    /// that has been silent for as long as the past, and one whose place another has taken.
    fn forget_the_gone(&mut self, now: Instant) {
        let is_gone = |replica: &Replica| {
            let silent = now.saturating_duration_since(replica.heard);
            (silent >= GONE_AFTER).then_some(silent)
        };
        let present: HashSet<String> = self
            .replicas
            .values()
            .filter(|replica| is_gone(replica).is_none())
            .map(|replica| replica.report.name.clone())
            .collect();
        self.replicas.retain(|_, replica| {
            let Some(silent) = is_gone(replica) else {
                return true;
            };
            let shown = if replica.is_stopping() {
                STOPPED_SHOWN
            } else {
                PAST
            };
            silent < shown && !present.contains(&replica.report.name)
        });
    }

    /// What a page is shown first, as JSON.
    pub(super) fn past(&self) -> String {
        let past = Past {
            most: POINTS,
            most_latency_s: latency::MOST_SECONDS,
            points: &self.points,
        };
        serde_json::to_string(&past).unwrap_or_default()
    }
}

impl Hearing {
    fn note_echo(&mut self, now: Instant) {
        if !self.works(now) {
            self.since = Some(now);
        }
        self.echo = Some(now);
    }

    fn works(&self, now: Instant) -> bool {
        self.echo
            .is_some_and(|echo| now.saturating_duration_since(echo) < DEAF_AFTER)
    }

    /// Whether a replica that says something would have been heard for this long.
    fn works_for(&self, time: Duration, now: Instant) -> bool {
        let since = self.since.filter(|_| self.works(now));
        since.is_some_and(|since| now.saturating_duration_since(since) >= time)
    }
}

impl Replica {
    fn is_stopping(&self) -> bool {
        self.report.reasons.iter().any(|reason| reason == STOPPING)
    }

    fn presence(&self, hearing: Hearing, now: Instant) -> Presence {
        if now.saturating_duration_since(self.heard) < GONE_AFTER {
            Presence::Present
        } else if self.is_stopping() {
            Presence::Stopped
        } else if hearing.works_for(GONE_AFTER, now) {
            Presence::Silent
        } else {
            Presence::Unheard
        }
    }

    fn add_to(&self, point: &mut Point) {
        let Self { report, rates, .. } = self;
        point.ready += usize::from(report.ready);
        // What others report may be anything.
        point.connections = point.connections.saturating_add(report.connections);
        point.live += rates.live;
        point.kept += rates.kept;
        point.delivered += rates.delivered;
        point.sent += rates.sent;
        point.opened += rates.opened;
        point.closed += rates.closed;
    }

    /// Counts what has come since the last look.
    fn look(&mut self, point: &mut Point, latency: &mut Latency) {
        let report = &self.report;
        if let Some(before) = &self.looked_at {
            for (reason, total) in &report.gaps {
                let told = total.saturating_sub(before.gaps.get(reason).copied().unwrap_or(0));
                if told > 0 {
                    let gaps = point.gaps.entry(reason.clone()).or_default();
                    *gaps = gaps.saturating_add(told);
                }
            }
            let slow = report.slow.saturating_sub(before.slow);
            point.slow = point.slow.saturating_add(slow);
            latency.add_between(&before.latency, &report.latency);
        }
        if self.looked_at.as_ref() != Some(report) {
            self.looked_at = Some(report.clone());
        }
        self.incidents
            .push_back((report.slow, sum(report.gaps.values())));
        if self.incidents.len() > POINTS {
            self.incidents.pop_front();
        }
    }

    fn row(&self, here: &str, presence: Presence, silent: Duration) -> Row<'_> {
        let Self { report, rates, .. } = self;
        let since = |of: fn(&(u64, u64)) -> u64| {
            let (first, last) = (self.incidents.front(), self.incidents.back());
            let (first, last) = (first.map_or(0, of), last.map_or(0, of));
            last.saturating_sub(first)
        };
        let gone = presence != Presence::Present;
        let rates = if gone { Rates::default() } else { *rates };
        Row {
            name: &report.name,
            version: &report.version,
            here: report.id == here,
            presence,
            silent_s: silent.as_secs_f64(),
            ready: report.ready && !gone,
            reasons: &report.reasons,
            uptime_s: Duration::from_millis(report.uptime_ms).as_secs_f64(),
            connections: if gone { 0 } else { report.connections },
            max_connections: report.max_connections,
            received: rates.live + rates.kept,
            delivered: rates.delivered,
            sent: rates.sent,
            p99: rates.p99,
            bus_lag: report.bus_lag_us.filter(|_| !gone).map(seconds),
            slow: since(|(slow, _)| *slow),
            gaps: since(|(_, gaps)| *gaps),
            cpu: rates.cpu,
            memory: report.memory_bytes,
        }
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a u64>) -> u64 {
    counts.fold(0, |sum, count| sum.saturating_add(*count))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a probe")]
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// The busiest channels of all replicas, by deliveries. Each replica gets every event of a channel
/// that it has clients for: events are not added up.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn busiest<'a>(replicas: impl Iterator<Item = &'a Replica>) -> Vec<ChannelRow> {
    let mut rows: HashMap<&str, ChannelRow> = HashMap::new();
    for Replica { report, .. } in replicas {
        let seconds = report.channels_ms.max(LEAST_SPAN_MS) as f64 / 1e3;
        for channel in &report.channels {
            let Channel {
                name,
                clients,
                events,
                deliveries,
            } = channel;
            let row = rows.entry(name).or_default();
            row.clients = row.clients.saturating_add(*clients);
            row.events = row.events.max(*events as f64 / seconds);
            row.deliveries += *deliveries as f64 / seconds;
        }
    }
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|(name, row)| ChannelRow {
            name: name.to_owned(),
            ..row
        })
        .collect();
    rows.sort_by(|one, other| {
        let by_deliveries = other.deliveries.total_cmp(&one.deliveries);
        by_deliveries.then_with(|| one.name.cmp(&other.name))
    });
    rows.truncate(CHANNELS);
    rows
}

#[cfg(test)]
mod tests;
