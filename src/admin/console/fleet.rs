//! What is known of all replicas: their reports, and what follows from two of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::TICK;
use super::latency::Latency;
use super::report::{Channel, Report};

/// How much of the past a page is shown.
const PAST: Duration = Duration::from_secs(600);

/// As many points as that has ticks.
const POINTS: usize = 300;
const _: () = assert!(TICK.as_secs() * POINTS as u64 == PAST.as_secs());

/// A replica that is silent for so long is gone: it would have reported three times.
const GONE_AFTER: Duration = TICK.saturating_mul(3);

/// So long it is still shown.
const SHOWN_AFTER: Duration = Duration::from_secs(60);

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
    /// Replicas there was no room for since the last look.
    unseen: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Replica {
    heard: Instant,
    report: Report,
    rates: Rates,
    /// Its report at the last look, and what it had counted then and before.
    looked_at: Option<Report>,
    incidents: VecDeque<(u64, u64)>,
}

/// What a replica does in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    live: f64,
    kept: f64,
    delivered: f64,
    sent: f64,
    opened: f64,
    closed: f64,
    cpu: f64,
    p99: Option<f64>,
}

/// The fleet at one moment; rates are of a second, times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Point {
    /// Unix milliseconds.
    at: u64,
    ready: usize,
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
    gone: bool,
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
                replica.rates = Rates::between(&replica.report, &report);
                replica.report = report;
                replica.heard = now;
            }
        } else if self.replicas.len() < MOST_REPLICAS {
            let replica = Replica {
                heard: now,
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

    /// Adds the moment to the past and returns what a page shows, as JSON. `here`: the replica
    /// that serves it.
    pub(super) fn look(&mut self, here: &str, at_ms: u64, now: Instant) -> String {
        self.looked = Some(now);
        let silent = |heard: Instant| now.saturating_duration_since(heard);
        self.replicas
            .retain(|_, replica| silent(replica.heard) < SHOWN_AFTER);
        self.unseen.retain(|_, heard| silent(*heard) < GONE_AFTER);
        let mut point = Point {
            at: at_ms,
            ..Point::default()
        };
        let mut latency = Latency::default();
        for replica in self.replicas.values_mut() {
            if silent(replica.heard) < GONE_AFTER {
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
            .map(|replica| replica.row(here, silent(replica.heard)))
            .collect();
        replicas.sort_by(|one, other| {
            (
                one.gone,
                one.name,
                one.uptime_s.total_cmp(&other.uptime_s).is_gt(),
            )
                .cmp(&(other.gone, other.name, false))
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

    /// What a page is shown first, as JSON.
    pub(super) fn past(&self) -> String {
        let past = Past {
            most: POINTS,
            points: &self.points,
        };
        serde_json::to_string(&past).unwrap_or_default()
    }
}

impl Replica {
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

    fn row(&self, here: &str, silent: Duration) -> Row<'_> {
        let Self { report, rates, .. } = self;
        let since = |of: fn(&(u64, u64)) -> u64| {
            let (first, last) = (self.incidents.front(), self.incidents.back());
            let (first, last) = (first.map_or(0, of), last.map_or(0, of));
            last.saturating_sub(first)
        };
        let gone = silent >= GONE_AFTER;
        let rates = if gone { Rates::default() } else { *rates };
        Row {
            name: &report.name,
            version: &report.version,
            here: report.id == here,
            gone,
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

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    fn between(before: &Report, after: &Report) -> Self {
        let seconds = after.uptime_ms.saturating_sub(before.uptime_ms).max(1) as f64 / 1e3;
        let rate = |of: fn(&Report) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        let mut latency = Latency::default();
        latency.add_between(&before.latency, &after.latency);
        Self {
            live: rate(|report| report.live),
            kept: rate(|report| report.kept),
            delivered: rate(|report| report.delivered),
            sent: rate(|report| report.sent_bytes),
            opened: rate(|report| report.opened),
            closed: rate(|report| report.closed),
            cpu: rate(|report| report.cpu_ms) / 1e3,
            p99: latency.quantile(0.99),
        }
    }
}

/// The busiest channels of all replicas, by deliveries. Each replica gets every event of a channel
/// that it has clients for: events are not added up.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn busiest<'a>(replicas: impl Iterator<Item = &'a Replica>) -> Vec<ChannelRow> {
    let mut rows: HashMap<&str, ChannelRow> = HashMap::new();
    for Replica { report, .. } in replicas {
        let seconds = report.channels_ms.max(1) as f64 / 1e3;
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
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(id: &str, uptime_s: u64, of: impl FnOnce(&mut Report)) -> Report {
        let mut report = Report {
            id: id.to_owned(),
            name: format!("replica {id}"),
            uptime_ms: uptime_s * 1000,
            ready: true,
            connections: 10,
            ..Report::new()
        };
        of(&mut report);
        report
    }

    fn look(fleet: &mut Fleet, now: Instant) -> Value {
        serde_json::from_str(&fleet.look("a", 1, now)).unwrap()
    }

    #[test]
    fn rates_follow_from_two_reports_and_are_added_up() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for id in ["a", "b"] {
            fleet.note(report(id, 10, |_| {}), now);
        }
        assert_eq!(look(&mut fleet, now)["point"]["delivered"], 0.0);
        for id in ["a", "b"] {
            fleet.note(
                report(id, 14, |report| {
                    (report.live, report.kept, report.delivered) = (4, 8, 400);
                    report.cpu_ms = 1000;
                    report.slow = 1;
                    report.gaps = BTreeMap::from([("lost".to_owned(), 2)]);
                    report.latency = BTreeMap::from([(1000, 98), (2000, 2)]);
                }),
                now,
            );
        }
        let shown = look(&mut fleet, now);
        let point = &shown["point"];
        assert_eq!(point["connections"], 20);
        assert_eq!((&point["live"], &point["kept"]), (&json!(2.0), &json!(4.0)));
        assert_eq!(point["delivered"], 200.0);
        assert_eq!(
            (&point["slow"], &point["gaps"]),
            (&json!(2), &json!({"lost": 4}))
        );
        assert!(point["p50"].as_f64().unwrap() < 0.001);
        assert!(point["p99"].as_f64().unwrap() > 0.001);
        let row = &shown["replicas"][0];
        assert_eq!(
            (&row["name"], &row["here"]),
            (&json!("replica a"), &json!(true))
        );
        assert_eq!((&row["cpu"], &row["slow"]), (&json!(0.25), &json!(1)));
        // Nothing twice.
        let point = &look(&mut fleet, now)["point"];
        assert_eq!((&point["slow"], &point["gaps"]), (&json!(0), &json!({})));
        assert_eq!(point["p99"], Value::Null);
    }

    #[test]
    fn a_silent_replica_is_gone_and_later_forgotten() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        fleet.note(report("a", 10, |_| {}), now);
        fleet.note(report("b", 10, |report| report.ready = false), now);
        assert_eq!(look(&mut fleet, now)["point"]["ready"], 1);
        let later = now + GONE_AFTER;
        fleet.note(report("a", 16, |_| {}), later);
        let shown = look(&mut fleet, later);
        assert_eq!(shown["point"]["connections"], 10);
        assert_eq!(shown["replicas"][0]["gone"], false);
        assert_eq!(shown["replicas"][1]["gone"], true);
        assert_eq!(shown["replicas"][1]["connections"], 0);
        let later = now + SHOWN_AFTER;
        fleet.note(report("a", 70, |_| {}), later);
        assert_eq!(
            look(&mut fleet, later)["replicas"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn reports_that_were_overtaken_change_nothing() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        fleet.note(report("a", 10, |report| report.connections = 1), now);
        fleet.note(report("a", 9, |report| report.connections = 2), now);
        assert_eq!(look(&mut fleet, now)["point"]["connections"], 1);
    }

    #[test]
    fn numbers_without_measure_are_as_large_as_can_be() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        let all = |report: &mut Report| {
            (report.connections, report.slow) = (u64::MAX, u64::MAX);
            report.gaps = ["lost", "slow"]
                .map(|one| (one.to_owned(), u64::MAX))
                .into();
            let channel = Channel {
                name: "a".to_owned(),
                clients: u64::MAX,
                ..Channel::default()
            };
            report.channels = vec![channel];
        };
        for uptime_s in [10, 12] {
            for id in ["a", "b"] {
                fleet.note(
                    report(id, uptime_s, |report| {
                        if uptime_s > 10 {
                            all(report);
                        }
                    }),
                    now,
                );
            }
            look(&mut fleet, now);
        }
        let point = fleet.points.back().unwrap();
        assert_eq!((point.connections, point.slow), (u64::MAX, u64::MAX));
        assert_eq!(point.gaps["lost"], u64::MAX);
        assert_eq!(look(&mut fleet, now)["channels"][0]["clients"], u64::MAX);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        assert!(fleet.has_no_past());
        fleet.note(report("a", 10, |_| {}), now);
        look(&mut fleet, now);
        fleet.forget_unless_seen_since(Some(now));
        assert!(!fleet.has_no_past() && fleet.past().contains("\"at\""));
        fleet.forget_unless_seen_since(Some(now + TICK));
        assert!(fleet.has_no_past() && !fleet.past().contains("\"at\""));
        assert!(fleet.replicas.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for number in 0..MOST_REPLICAS * 3 {
            fleet.note(report(&number.to_string(), 10, |_| {}), now);
        }
        let shown = look(&mut fleet, now);
        assert_eq!(shown["replicas"].as_array().unwrap().len(), MOST_REPLICAS);
        assert_eq!(shown["unseen"], MOST_REPLICAS);
        for _ in 0..POINTS + 10 {
            look(&mut fleet, now);
        }
        let past: Value = serde_json::from_str(&fleet.past()).unwrap();
        assert_eq!(past["points"].as_array().unwrap().len(), POINTS);
        assert!(
            fleet
                .replicas
                .values()
                .all(|replica| replica.incidents.len() == POINTS)
        );
    }

    #[test]
    fn channels_are_those_of_all_replicas_together() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        let channel = |name: &str, clients, events, deliveries| Channel {
            name: name.to_owned(),
            clients,
            events,
            deliveries,
        };
        for id in ["a", "b"] {
            let channels = vec![channel("orders", 3, 20, 60), channel(id, 1, 40, 40)];
            fleet.note(
                report(id, 10, |report| {
                    (report.channels_ms, report.channels) = (2000, channels);
                }),
                now,
            );
        }
        let shown = look(&mut fleet, now);
        assert_eq!(
            shown["channels"][0],
            json!({"name": "orders", "clients": 6, "events": 10.0, "deliveries": 60.0})
        );
        assert_eq!(shown["channels"][1]["name"], "a");
    }
}
