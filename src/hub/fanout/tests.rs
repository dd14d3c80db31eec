//! What reaches whom, in which bytes, and what is counted of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;
use crate::continuity::{GapNotice, KeptEvent};
use crate::hub::{BusUpdate, CloseReason, HubSettings, LatencyTotal, Session};
use crate::protocol::{ChannelName, ControlForm, Cursor, Event, EventId, GapReason, RetryRange};

fn id(ms: u64) -> EventId {
    EventId::new(ms, 0)
}

fn name(name: &str) -> ChannelName {
    name.parse().unwrap()
}

fn event(bytes: usize) -> Event {
    Event::new(Bytes::from(vec![b'x'; bytes]), usize::MAX).unwrap()
}

fn kept(channel: &str, ms: u64, event: Option<Event>) -> BusEvent {
    let event = KeptEvent {
        id: id(ms),
        prev: EventId::ZERO,
        published_ms: ms,
        event: event.map(Arc::new),
        end: None,
    };
    BusEvent::kept(name(channel), event, false)
}

fn hub() -> Rc<Hub> {
    let minute = Duration::from_secs(60);
    let settings = HubSettings {
        heartbeat: minute,
        retry: RetryRange::new(minute, minute).unwrap(),
        client_buffer_bytes: 1 << 20,
        slow_client: SlowClientPolicy::Close,
        lag_bound: minute,
        tail_bytes: 1 << 20,
        max_connection_age: None,
    };
    Hub::new(settings, Arc::default(), mpsc::channel(1).0, Arc::default())
}

/// A live client of these channels, which are active since `1-0`.
fn client(hub: &Hub, names: &[&str]) -> Rc<Subscriber> {
    client_with(hub, names, None)
}

fn client_with(hub: &Hub, names: &[&str], session: Option<Arc<Session>>) -> Rc<Subscriber> {
    let subscriber = Subscriber::new(Framing::Chunked, ControlForm::Event, session);
    connected(hub, names, subscriber)
}

fn connected(hub: &Hub, names: &[&str], subscriber: Subscriber) -> Rc<Subscriber> {
    let subscriber = Rc::new(subscriber);
    let mut channels = hub.channels.borrow_mut();
    let mut keys = Vec::new();
    for name in names.iter().copied().map(name) {
        let key = channels.acquire(&name);
        let generation = channels.get(key).unwrap().generation;
        channels.activate(&name, generation, Some(id(1)));
        keys.push(key);
    }
    channels.attach(&subscriber, &keys);
    hub.heartbeats.borrow_mut().insert(&subscriber, None);
    subscriber
}

fn deliver(hub: &Hub, events: &[BusEvent]) {
    let mut events = events.iter().peekable();
    while events.peek().is_some() {
        let pass = FanoutPass::new(&hub.clock, Instant::now(), &hub.stats);
        hub.fan_out(&mut events, &pass);
    }
}

fn taken(subscriber: &Subscriber) -> Vec<Bytes> {
    let take = || subscriber.mailbox.borrow_mut().take();
    std::iter::from_fn(take)
        .map(|parcel| parcel.bytes)
        .collect()
}

fn text(subscriber: &Subscriber) -> String {
    String::from_utf8(taken(subscriber).concat()).unwrap()
}

/// The tail counts the bytes of its events, so it must not hold others'.
#[test]
fn a_tail_keeps_no_live_events_alive() {
    for (live_bytes, shares) in [(10_000, false), (1, true)] {
        let hub = hub();
        let client = client(&hub, &["a"]);
        let live = BusEvent::live(name("a"), event(live_bytes));
        deliver(&hub, &[live, kept("a", 5, Some(event(100)))]);
        let sent = taken(&client).remove(0).as_ptr_range();
        let mut channels = hub.channels.borrow_mut();
        let key = channels.key_of("a").unwrap();
        let tail = &channels.by_key(key).unwrap().tail;
        let wire = tail.after(EventId::ZERO).next().unwrap().wire.clone();
        let bytes = wire.unwrap().framed(Framing::Chunked);
        assert_eq!(sent.contains(&bytes.as_ptr()), shares);
    }
}

#[test]
fn a_late_gap_does_not_take_a_client_back() {
    let hub = hub();
    let one = client(&hub, &["a"]);
    let both = client(&hub, &["a", "b"]);
    let notice = GapNotice {
        reason: GapReason::Lost,
        after: None,
        oldest: None,
        id: Some(id(120)),
        complete_after: Some(id(120)),
    };
    let gap = BusEvent::gap(name("a"), notice, true);
    deliver(&hub, &[kept("b", 125, Some(event(1))), gap]);
    assert!(text(&one).contains("id: 120-0\nevent: $gap\n"));
    let told = text(&both);
    assert!(told.contains("id: 125-0\n") && told.contains("event: $gap\n"));
    assert!(!told.contains("120-0"), "{told}");
}

/// Of the same pass each client gets a gap in the form it asked for, and events are shared.
#[test]
fn a_gap_comes_as_a_comment_where_that_is_asked_for() {
    let hub = hub();
    let one = client(&hub, &["a"]);
    let commented = |names| {
        let subscriber = Subscriber::new(Framing::Plain, ControlForm::Comment, None);
        connected(&hub, names, subscriber)
    };
    let (single, both) = (commented(&["a"]), commented(&["a", "b"]));
    let chunked = Subscriber::new(Framing::Chunked, ControlForm::Comment, None);
    let chunked = connected(&hub, &["a"], chunked);
    let notice = GapNotice {
        reason: GapReason::Lost,
        after: None,
        oldest: None,
        id: Some(id(120)),
        complete_after: Some(id(120)),
    };
    let gap = BusEvent::gap(name("a"), notice, true);
    let events = [
        kept("b", 125, Some(event(1))),
        gap,
        kept("a", 130, Some(event(2))),
    ];
    deliver(&hub, &events);
    let data = r#"{"channel":"a","reason":"lost","after":null,"oldest":null}"#;
    let last = "id: 130-0\ndata: xx\n\n";
    let told = text(&one);
    assert!(told.contains(&format!("\nid: 120-0\nevent: $gap\ndata: {data}\n\n")));
    // Event by event, so without the id of one that is late.
    assert_eq!(text(&single), format!(": $gap {data}\n{last}"));
    let late = format!("id: 125-0\ndata: x\n\n: $gap {data}\n{last}");
    assert_eq!(text(&both), late);
    let told = text(&chunked);
    assert!(told.contains(&format!("\r\n: $gap {data}\nid: 120-0\n\n\r\n")));
}

#[test]
fn an_event_for_some_is_in_no_bytes_of_others() {
    let hub = hub();
    let claims = serde_json::json!({"role": "admin"});
    let session = Session::new(claims.as_object().unwrap(), None);
    let session = Arc::new(session);
    let restricted = |bytes| event(bytes).with_to(r#"{"role":"admin"}"#).unwrap();
    for names in [&["a"][..], &["a", "b"]] {
        let admin = client_with(&hub, names, Some(Arc::clone(&session)));
        let other = client(&hub, names);
        let nobody = hub.stats.events_without_audience.get();
        let batch = [
            kept("a", 5, Some(event(1))),
            kept("a", 6, Some(restricted(2))),
            BusEvent::live(name("a"), restricted(3)),
            kept("a", 7, Some(event(4))),
            kept("a", 8, Some(restricted(5))),
        ];
        deliver(&hub, &batch);
        let ids = |text: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix("id: "));
            lines.map(str::to_owned).collect()
        };
        let (all, some) = (taken(&admin), taken(&other));
        let text = |parcels: &[Bytes]| String::from_utf8(parcels.concat()).unwrap();
        assert_eq!(ids(&text(&all)), ["5-0", "6-0", "7-0", "8-0"]);
        assert!(text(&all).contains("data: xxx\n"));
        assert_eq!(ids(&text(&some)), ["5-0", "7-0"]);
        assert!(!text(&some).contains("data: xxx\n"));
        // What its cursor may name.
        let channels = hub.channels.borrow();
        assert_eq!(channels.newest_of(&other).0, id(7));
        assert_eq!(admin.newest_restricted(), id(8));
        assert_eq!(other.newest_restricted(), EventId::ZERO);
        drop(channels);
        assert_eq!(hub.stats.events_without_audience.get(), nobody);
        let to_zoe = event(1).with_to(r#"{"sub":"zoe"}"#).unwrap();
        deliver(&hub, &[BusEvent::live(name("a"), to_zoe)]);
        assert_eq!(hub.stats.events_without_audience.get(), nobody + 1);
        assert!(taken(&admin).is_empty() && taken(&other).is_empty());
        // Ids go on for the next ones.
        hub.handle(BusUpdate::Rewound(id(1)));
        hub.channels.borrow_mut().detach(&admin);
        hub.channels.borrow_mut().detach(&other);
    }
}

/// Told at the end of each pass to how many clients an event was handed.
#[derive(Debug, Default)]
struct HandedTo(Mutex<Vec<usize>>);

impl FanOutWatch for HandedTo {
    fn handed_to(&self, clients: usize) {
        self.0.lock().unwrap().push(clients);
    }
}

#[test]
fn who_may_not_have_an_event_is_not_counted_with_those_who_get_it() {
    let hub = hub();
    let claims = serde_json::json!({"role": "admin"});
    let session = Arc::new(Session::new(claims.as_object().unwrap(), None));
    let _clients = [
        client_with(&hub, &["a"], Some(Arc::clone(&session))),
        client_with(&hub, &["a", "b"], Some(session)),
        client(&hub, &["a"]),
        client(&hub, &["a", "b"]),
        client(&hub, &["a"]),
    ];
    let census = || {
        let (reply, mut loads) = mpsc::channel(1);
        hub.handle(BusUpdate::Census(reply));
        loads.try_recv().unwrap()
    };
    assert!(census().is_empty());
    let watch = Arc::new(HandedTo::default());
    let to = |audience| event(1).with_to(audience).unwrap();
    let mut batch = [
        kept("a", 5, Some(event(1))),
        kept("a", 6, Some(to(r#"{"role":"admin"}"#))),
        BusEvent::live(name("a"), to(r#"{"role":"admin"}"#)),
        kept("a", 7, Some(to(r#"{"role":"nobody"}"#))),
    ];
    for event in &mut batch {
        event.watched_by(Some(watch.clone()));
    }
    deliver(&hub, &batch);
    // Before the batch is let go of.
    assert_eq!(*watch.0.lock().unwrap(), [5, 2, 2, 0]);
    let loads = census();
    assert_eq!(loads.len(), 1);
    let load = &loads[0];
    assert_eq!((load.events, load.deliveries, load.clients), (4, 9, 5));
}

#[test]
fn an_event_that_nobody_may_have_is_no_sign_of_life() {
    let hub = hub();
    let client = client(&hub, &["a"]);
    client.last_push.set(0);
    deliver(&hub, &[kept("a", 5, None)]);
    assert_eq!((text(&client).as_str(), client.last_push.get()), ("", 0));
    deliver(&hub, &[kept("a", 6, Some(event(1)))]);
    assert_ne!(client.last_push.get(), 0);
}

/// Counted so far: deliveries, and events that were fanned out.
fn timed(hub: &Hub) -> [u64; 2] {
    [&hub.stats.delivery, &hub.stats.fanout].map(|latencies| {
        let mut total = LatencyTotal::default();
        latencies.add_to(&mut total);
        total.buckets.iter().sum::<u64>() + total.over
    })
}

/// Has the socket take all that waits.
fn write_all(hub: &Hub, subscriber: &Subscriber) {
    let now = hub.clock.read();
    let sent = |parcel: &Parcel| hub.count_sent(parcel, now);
    let mut mailbox = subscriber.mailbox.borrow_mut();
    mailbox.written(usize::MAX, sent);
}

#[test]
fn deliveries_and_rounds_are_timed_by_what_is_written() {
    let hub = hub();
    let one = client(&hub, &["a"]);
    let both = client(&hub, &["a", "b"]);
    let events = [
        kept("a", 5, Some(event(1))),
        kept("b", 6, Some(event(1))),
        BusEvent::live(name("a"), event(1)),
        // For nobody.
        kept("c", 7, Some(event(1))),
        BusEvent::live(name("a"), event(1).with_to(r#"{"sub":"zoe"}"#).unwrap()),
        kept("a", 8, None),
    ];
    deliver(&hub, &events);
    write_all(&hub, &one);
    // A pass is over with its last write.
    assert_eq!(timed(&hub), [1, 0]);
    write_all(&hub, &both);
    assert_eq!(timed(&hub), [3, 3]);
}

#[test]
fn a_client_that_is_not_ready_holds_up_no_round() {
    let hub = hub();
    let ready = client(&hub, &["a"]);
    let slow = client(&hub, &["a"]);
    deliver(&hub, &[kept("a", 5, Some(event(1)))]);
    slow.mailbox.borrow_mut().block(hub.clock.read());
    write_all(&hub, &ready);
    assert_eq!(timed(&hub), [1, 1]);
    deliver(&hub, &[kept("a", 6, Some(event(1)))]);
    write_all(&hub, &ready);
    assert_eq!(timed(&hub), [2, 2]);
    // It counts as a delivery all the same, a late one.
    write_all(&hub, &slow);
    assert_eq!(timed(&hub), [4, 2]);
    // And then it is ready again.
    deliver(&hub, &[kept("a", 7, Some(event(1)))]);
    write_all(&hub, &ready);
    assert_eq!(timed(&hub), [5, 2]);
    write_all(&hub, &slow);
    assert_eq!(timed(&hub), [6, 3]);
    // An event that is larger than the sockets' buffers is fanned out all the same.
    deliver(&hub, &[kept("a", 8, Some(event(1)))]);
    for client in [&ready, &slow] {
        client.mailbox.borrow_mut().block(hub.clock.read());
    }
    assert_eq!(timed(&hub), [6, 4]);
}

/// Clients that are behind cost a delivery no allocation.
#[test]
fn those_that_are_not_ready_share_what_they_get() {
    let hub = hub();
    let slow = [client(&hub, &["a"]), client(&hub, &["a"])];
    deliver(&hub, &[kept("a", 5, Some(event(1)))]);
    for client in &slow {
        client.mailbox.borrow_mut().block(hub.clock.read());
    }
    deliver(&hub, &[kept("a", 6, Some(event(1)))]);
    for _ in 0..2 {
        let [one, two] = slow.each_ref().map(|client| {
            let parcel = client.mailbox.borrow_mut().take();
            parcel.and_then(|parcel| parcel.origin).unwrap()
        });
        assert!(Rc::ptr_eq(&one, &two));
        assert!(one.pass().is_none());
    }
}

/// Until its mailbox is empty: what comes meanwhile waits for the client.
#[test]
fn a_client_that_is_behind_holds_up_no_round_by_taking_some() {
    let hub = hub();
    let (ready, slow) = (client(&hub, &["a"]), client(&hub, &["a"]));
    let write_some = |bytes| {
        let now = hub.clock.read();
        let sent = |parcel: &Parcel| hub.count_sent(parcel, now);
        slow.mailbox.borrow_mut().written(bytes, sent);
    };
    deliver(&hub, &[kept("a", 5, Some(event(1)))]);
    slow.mailbox.borrow_mut().block(hub.clock.read());
    write_some(1);
    deliver(&hub, &[kept("a", 6, Some(event(1)))]);
    write_all(&hub, &ready);
    assert_eq!(timed(&hub), [2, 2]);
    write_all(&hub, &slow);
    assert_eq!(timed(&hub), [4, 2]);
    assert!(!slow.mailbox.borrow().is_blocked());
}

#[test]
fn what_nobody_takes_is_not_timed() {
    let hub = hub();
    let client = client(&hub, &["a"]);
    deliver(&hub, &[kept("a", 5, Some(event(1)))]);
    client.mailbox.borrow_mut().abort(CloseReason::Client);
    assert_eq!(timed(&hub), [0, 0]);
}

/// Otherwise they would be taken for events it has had.
#[test]
fn a_client_gets_the_lower_ids_of_a_new_sequence() {
    let hub = hub();
    let client = client(&hub, &["a"]);
    client.reach(Cursor::fresh(id(900)));
    deliver(&hub, &[kept("a", 100, Some(event(1)))]);
    assert_eq!(text(&client), "");
    hub.handle(BusUpdate::Rewound(id(90)));
    let notice = GapNotice {
        reason: GapReason::Rewound,
        after: Some(id(900)),
        oldest: None,
        id: Some(id(90)),
        complete_after: Some(id(90)),
    };
    let gap = BusEvent::gap(name("a"), notice, false);
    deliver(&hub, &[gap, kept("a", 100, Some(event(1)))]);
    let told = text(&client);
    assert!(told.contains("id: 90-0\nevent: $gap\n") && told.contains("id: 100-0\n"));
    assert_eq!(hub.positions.borrow().newest(), Some(id(100)));
}
