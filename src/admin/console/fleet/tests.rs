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
    serde_json::from_str(&fleet.look(("a", true), 1, now)).unwrap()
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

/// A replica that was held up reports twice at once: first of the time it has missed, and then,
/// milliseconds later, of all that it has made good meanwhile.
#[test]
fn what_was_made_good_in_milliseconds_is_no_rate() {
    let (mut fleet, now) = (Fleet::default(), Instant::now());
    let mut highest = (0.0_f64, 0.0_f64);
    for (uptime_ms, delivered, channels_ms) in [
        (10_000, 9_000, 2000),
        (22_000, 9_000, 12_000),
        (22_005, 19_800, 5),
        (22_009, 19_810, 4),
        (24_009, 21_600, 2000),
        (26_009, 23_400, 2000),
    ] {
        let channel = Channel {
            name: "a".to_owned(),
            deliveries: if channels_ms == 5 { 10_800 } else { 1800 },
            ..Channel::default()
        };
        fleet.note(
            report("a", 0, |report| {
                (report.uptime_ms, report.delivered) = (uptime_ms, delivered);
                report.latency = BTreeMap::from([(1000, delivered)]);
                (report.channels_ms, report.channels) = (channels_ms, vec![channel]);
            }),
            now,
        );
        let shown = look(&mut fleet, now);
        let rate = |value: &Value| value.as_f64().unwrap();
        highest.0 = highest.0.max(rate(&shown["point"]["delivered"]));
        highest.1 = highest.1.max(rate(&shown["channels"][0]["deliveries"]));
        if uptime_ms == 26_009 {
            assert_eq!(shown["point"]["delivered"], 900.0);
            assert!(shown["replicas"][0]["p99"].is_number());
        }
    }
    // All of it within the two seconds in which it was made good; nothing is lost.
    assert!((6000.0..6500.0).contains(&highest.0), "{highest:?}");
    assert!(highest.1 <= 10_800.0, "{highest:?}");
}

/// Reports of replicas at `now`, and our own back from the bus.
fn hear(fleet: &mut Fleet, ids: &[&str], uptime_s: u64, now: Instant) {
    for id in ids {
        fleet.note(report(id, uptime_s, |_| {}), now);
    }
    fleet.note_echo(now);
}

fn presences(shown: &Value) -> Vec<&str> {
    let rows = shown["replicas"].as_array().unwrap().iter();
    rows.map(|row| row["presence"].as_str().unwrap()).collect()
}

#[test]
fn a_silent_replica_is_missed_for_as_long_as_the_past() {
    let (mut fleet, start) = (Fleet::default(), Instant::now());
    hear(&mut fleet, &["a", "b"], 10, start);
    let point = &look(&mut fleet, start)["point"];
    assert_eq!(
        (&point["ready"], &point["replicas"]),
        (&json!(2), &json!(2))
    );
    let mut now = start;
    for tick in 1..POINTS as u64 {
        now += TICK;
        hear(&mut fleet, &["a"], 10 + 2 * tick, now);
        let shown = look(&mut fleet, now);
        let gone = now - start >= GONE_AFTER;
        let other = if gone { "silent" } else { "present" };
        assert_eq!(presences(&shown), ["present", other], "tick {tick}");
        let point = &shown["point"];
        assert_eq!(point["ready"], if gone { 1 } else { 2 });
        assert_eq!(point["connections"], if gone { 10 } else { 20 });
        assert_eq!(
            (&point["replicas"], &point["partial"]),
            (&json!(2), &json!(false))
        );
    }
    hear(&mut fleet, &["a"], 10_000, now + TICK);
    assert_eq!(look(&mut fleet, now + TICK)["point"]["replicas"], 1);
}

#[test]
fn one_that_has_said_that_it_stops_is_not_missed() {
    let (mut fleet, start) = (Fleet::default(), Instant::now());
    hear(&mut fleet, &["a"], 10, start);
    let stopping = |report: &mut Report| {
        (report.ready, report.reasons) = (false, vec![STOPPING.to_owned()]);
    };
    fleet.note(report("b", 10, stopping), start);
    let point = &look(&mut fleet, start)["point"];
    assert_eq!(
        (&point["ready"], &point["replicas"]),
        (&json!(1), &json!(2))
    );
    let later = start + GONE_AFTER;
    hear(&mut fleet, &["a"], 16, later);
    let shown = look(&mut fleet, later);
    assert_eq!(presences(&shown), ["present", "stopped"]);
    assert_eq!(shown["point"]["replicas"], 1);
    let later = start + STOPPED_SHOWN;
    hear(&mut fleet, &["a"], 70, later);
    assert_eq!(presences(&look(&mut fleet, later)), ["present"]);
}

#[test]
fn one_that_was_started_again_takes_its_own_place() {
    let (mut fleet, start) = (Fleet::default(), Instant::now());
    hear(&mut fleet, &["a", "b"], 10, start);
    let later = start + GONE_AFTER;
    hear(&mut fleet, &["a"], 16, later);
    let again = |report: &mut Report| report.name = "replica b".to_owned();
    fleet.note(report("c", 1, again), later);
    let shown = look(&mut fleet, later);
    assert_eq!(presences(&shown), ["present", "present"]);
    assert_eq!(shown["point"]["replicas"], 2);
}

#[test]
fn who_hears_nothing_blames_nobody() {
    let (mut fleet, start) = (Fleet::default(), Instant::now());
    hear(&mut fleet, &["a", "b"], 10, start);
    look(&mut fleet, start);
    let mut now = start;
    for tick in 1..=30 {
        now += TICK;
        fleet.note(report("a", 10 + 2 * tick, |_| {}), now);
        let shown = look(&mut fleet, now);
        let unheard = now - start >= GONE_AFTER;
        let other = if unheard { "unheard" } else { "present" };
        assert_eq!(presences(&shown), ["present", other]);
        assert_eq!(shown["point"]["partial"], unheard);
    }
    // It hears again, and the other needs its time to report.
    for tick in 31..=33 {
        now += TICK;
        hear(&mut fleet, &["a"], 10 + 2 * tick, now);
        let shown = look(&mut fleet, now);
        assert_eq!(presences(&shown), ["present", "unheard"]);
    }
    now += TICK;
    hear(&mut fleet, &["a"], 100, now);
    assert_eq!(presences(&look(&mut fleet, now)), ["present", "silent"]);
    // A page that is opened while the bus is down knows of no others at all.
    let mut fleet = Fleet::default();
    fleet.note(report("a", 10, |_| {}), now);
    let shown: Value = serde_json::from_str(&fleet.look(("a", false), 1, now)).unwrap();
    assert_eq!(shown["point"]["partial"], true);
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
    // One that is there has room instead of one that is gone.
    let later = now + GONE_AFTER;
    fleet.note(report("new", 10, |_| {}), later);
    let shown = look(&mut fleet, later);
    assert_eq!(shown["replicas"].as_array().unwrap().len(), MOST_REPLICAS);
    assert_eq!(shown["replicas"][0]["name"], "replica new");
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
