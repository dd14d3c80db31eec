//! Kept events on their way out: resuming, replaying, and what a cursor proves, on Redis and on the
//! embedded bus.
//!
//! As in `faults.rs`, every test holds what its clients saw against what was published.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::client::{Addresses, Chunks, Client, Id, Log, Plan, parse_cursor};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::{Gateway, Raw, Redis, eventually, test_within, within};
use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What a test may take as a whole.
const MINUTE: Duration = Duration::from_secs(60);

/// Between the events of a publisher under load.
const PAUSE: Duration = Duration::from_millis(2);

fn text(id: Id) -> String {
    format!("{}-{}", id.0, id.1)
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Redis,
    Embedded,
}

/// A gateway on either bus, and a publisher for it.
struct Setup {
    redis: Option<Redis>,
    gateway: Gateway,
    addresses: Addresses,
    journal: Journal,
    publisher: Publisher,
}

impl Setup {
    async fn new(bus: Bus, variables: &[(&str, &str)]) -> Self {
        let journal = Journal::default();
        let mut all = vec![("FANFARE_HEARTBEAT", "500ms"), ("FANFARE_SHARDS", "2")];
        all.extend_from_slice(variables);
        let (redis, gateway) = match bus {
            Bus::Redis => {
                let redis = Redis::start().await;
                let gateway = Gateway::behind(&redis, &all).await;
                (Some(redis), gateway)
            }
            Bus::Embedded => {
                all.push(("FANFARE_REDIS_URL", "memory:"));
                (None, Gateway::start(&all).await)
            }
        };
        let addresses = Addresses::of(&[&gateway]);
        let publisher = match &redis {
            Some(redis) => Publisher::new(&journal, "p", &redis.url()),
            None => Publisher::over_http(&journal, "p", &addresses),
        };
        Self {
            redis,
            gateway,
            addresses,
            journal,
            publisher,
        }
    }

    fn plan(&self, channels: &[&str]) -> Plan {
        Plan::new(&self.addresses, channels)
    }

    async fn open(&self, channels: &[&str]) -> Client {
        self.plan(channels).open().await
    }

    /// Publishes a last event on each channel, and holds what the clients saw against everything.
    async fn settle(&mut self, clients: &[&Client], gaps: &[&str]) {
        settle(&self.journal, &mut self.publisher, clients, gaps).await;
    }
}

const BOTH: [Bus; 2] = [Bus::Redis, Bus::Embedded];

// ------------------------------------------------------------------------------ resuming

#[tokio::test]
async fn clients_that_come_and_go_under_load_miss_nothing() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            let mut clients = Vec::new();
            for channels in [&["a"][..], &["b"], &["a", "b"], &["a", "b", "idle"]] {
                clients.push(setup.open(channels).await);
                let mut plan = setup.plan(channels);
                plan.http2 = true;
                clients.push(plan.open().await);
            }
            let load = std::mem::replace(
                &mut setup.publisher,
                Publisher::over_http(&setup.journal, "q", &setup.addresses),
            )
            .load(&["a", "b"], PAUSE);
            for round in 0..40 {
                setup.journal.grows(10).await;
                // Some only blink, one stays away for some time.
                clients[round % 8].cut();
                if round % 10 == 4 {
                    clients[4].leave().await;
                } else if round % 10 == 8 {
                    clients[4].come_back();
                }
            }
            clients[4].come_back();
            load.stop().await;
            let all: Vec<_> = clients.iter().collect();
            setup.settle(&all, &[]).await;
            for client in all {
                let streams = client.log().streams;
                assert!(streams > 3, "{bus:?}: {}", client.summary());
            }
        }
    })
    .await;
}

/// Its first block is all that it ever got.
#[tokio::test]
async fn an_idle_client_resumes_exactly_where_it_was() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[("FANFARE_HEARTBEAT", "1h")]).await;
            setup.publisher.ids("a", 3).await;
            let client = setup.open(&["a"]).await;
            let two = setup.open(&["a", "b"]).await;
            let mut http2 = setup.plan(&["a"]);
            http2.http2 = true;
            let http2 = http2.open().await;
            let newest = *setup.journal.ids("a").last().unwrap();
            for client in [&client, &two, &http2] {
                let cursor = client.leave().await;
                let (event, position) = parse_cursor(&cursor).unwrap();
                assert_eq!(event, (0, 0), "a fresh stream: {cursor}");
                assert!(position.unwrap() >= newest, "{cursor} after {newest:?}");
            }
            setup.publisher.ids("b", 2).await;
            setup.publisher.ids("a", 3).await;
            for client in [&client, &two, &http2] {
                client.come_back();
            }
            setup.settle(&[&client, &two, &http2], &[]).await;
            assert_eq!(client.log().events(), 4);
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_cut_off_in_the_middle_of_its_replay_goes_on_there() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let variables = [
                ("FANFARE_CLIENT_BUFFER_BYTES", "256KiB"),
                ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
            ];
            let mut setup = Setup::new(bus, &variables).await;
            setup.publisher.event_bytes = 4 << 10;
            let first = setup.publisher.id("a").await;
            // More than a tail holds.
            for number in 0..500 {
                let channel = if number % 3 == 0 { "b" } else { "a" };
                setup.publisher.id(channel).await;
            }
            let mut clients = Vec::new();
            for channels in [&["a"][..], &["a", "b"]] {
                let mut plan = setup.plan(channels).after(&text(first));
                plan.receive_buffer = Some(64 << 10);
                clients.push(plan.start());
            }
            let load = std::mem::replace(
                &mut setup.publisher,
                Publisher::over_http(&setup.journal, "q", &setup.addresses),
            )
            .load(&["b", "a"], PAUSE * 10);
            for part in 1..8 {
                for client in &clients {
                    client
                        .until("a part, of a stream of its own", |log| {
                            log.events() >= 45 * part && log.streams >= part
                        })
                        .await;
                    client.cut();
                }
            }
            load.stop().await;
            let all: Vec<_> = clients.iter().collect();
            setup.settle(&all, &[]).await;
            clients[0]
                .until("all cuts are over", |log| log.streams >= 8)
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn all_clients_of_all_replicas_see_one_order() {
    test_within(MINUTE, async {
        let mut setup = Setup::new(Bus::Redis, &[]).await;
        let redis = setup.redis.as_ref().unwrap();
        let other = Gateway::behind(redis, &[]).await;
        let mut clients = Vec::new();
        for gateway in [&setup.gateway, &other] {
            for channels in [&["a"][..], &["a", "b"], &["a"]] {
                clients.push(Plan::of(gateway, channels).open().await);
            }
        }
        let loads: Vec<_> = (0..8)
            .map(|number| {
                let name = format!("p{number}");
                Publisher::new(&setup.journal, &name, &redis.url())
                    .load(&["a"], Duration::from_millis(1))
            })
            .collect();
        setup.journal.grows(4000).await;
        for load in loads {
            load.stop().await;
        }
        let all: Vec<_> = clients.iter().collect();
        setup.settle(&all, &[]).await;
        // The oracle compares each with the ids; here they are compared with each other.
        let orders: BTreeSet<_> = clients
            .iter()
            .map(|client| {
                let mut keys = client.log().keys();
                keys.retain(|key| key.starts_with("a/"));
                keys
            })
            .collect();
        assert_eq!(orders.len(), 1);
    })
    .await;
}

/// A crowd whose gateway was restarted: reads are by channel, not by client.
#[tokio::test]
async fn ten_thousand_clients_resume_at_once() {
    const EVENTS: usize = 60;
    test_within(MINUTE, async {
        // Where descriptors are few, as many as there are.
        let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let clients = 10_000.min(usize::try_from(descriptors).unwrap() - 1000);
        let variables = [("FANFARE_SHARDS", "1"), ("FANFARE_HEARTBEAT", "1h")];
        let mut setup = Setup::new(Bus::Redis, &variables).await;
        let ids = setup.publisher.ids("a", EVENTS).await;
        let redis = setup.redis.as_ref().unwrap();
        setup.gateway.process.signal("KILL");
        let gateway = Gateway::behind(redis, &variables).await;
        let mut open: Vec<TcpStream> = Vec::new();
        for _ in 0..clients {
            open.push(TcpStream::connect(gateway.data).await.unwrap());
        }
        let events: Vec<String> = ids
            .iter()
            .zip(1..)
            .map(|(id, number)| format!("id: {}\ndata: a/p/{number}\n\n", text(*id)))
            .collect();
        let resume = async |number: usize, socket: &mut TcpStream| {
            let at = number % (EVENTS - 10);
            let request = format!(
                "GET /events/a HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {}\r\n\r\n",
                text(ids[at])
            );
            tokio::io::AsyncWriteExt::write_all(socket, request.as_bytes())
                .await
                .unwrap();
            let expected = events[at + 1..].concat();
            let body = read_body(socket, &events[EVENTS - 1]).await;
            let (first, rest) = body.split_once("\n\n").unwrap();
            assert!(
                first.ends_with(&format!("\nid: {}\ndata: {{}}", text(ids[at]))),
                "{first}"
            );
            assert_eq!(rest, expected);
        };
        let all = open
            .iter_mut()
            .enumerate()
            .map(|(number, socket)| resume(number, socket));
        join_all(all).await;
        let last = setup.publisher.id("a").await;
        let last = format!("id: {}\n", text(last));
        let live = open.iter_mut().map(async |socket| {
            let body = read_body(socket, &last).await;
            assert!(body.starts_with(&last), "{body}");
        });
        join_all(live).await;
        let reads = gateway.metric("fanfare_history_reads_total").await;
        assert!((1.0..=3.0).contains(&reads), "{reads} reads for {clients}");
        println!("{clients} clients, {reads} reads");
    })
    .await;
}

/// Reads up to and with the event that contains `end`, without chunks and head.
async fn read_body(socket: &mut TcpStream, end: &str) -> String {
    let mut chunks = Chunks::default();
    let (mut bytes, mut body) = (Vec::with_capacity(8 << 10), Vec::new());
    let mut in_head = None;
    within("a part of a stream", async {
        loop {
            let count = socket.read_buf(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "closed: {}", String::from_utf8_lossy(&body));
            if *in_head.get_or_insert_with(|| bytes.starts_with(b"HTTP/")) {
                let Some(at) = memchr::memmem::find(&bytes, b"\r\n\r\n") else {
                    continue;
                };
                bytes.drain(..at + 4);
                in_head = Some(false);
            }
            chunks.push(&bytes, &mut body);
            bytes.clear();
            let ends = memchr::memmem::find(&body, end.as_bytes()).is_some();
            if ends && body.ends_with(b"\n\n") {
                return String::from_utf8(body).unwrap();
            }
        }
    })
    .await
}

// --------------------------------------------------------------------------- new streams

#[tokio::test]
async fn a_new_stream_begins_with_the_newest_events() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            let mut a = setup.publisher.ids("a", 6).await;
            let b = setup.publisher.ids("b", 3).await;
            a.extend(setup.publisher.ids("a", 4).await);
            let open = async |channels: &[&str], query: &str, cursor: &str| {
                let mut plan = setup.plan(channels).after(cursor);
                query.clone_into(&mut plan.query);
                plan.open().await
            };
            let none = open(&["a"], "&history=0", "").await;
            let one = open(&["a"], "&history=1", "").await;
            let four = open(&["a"], "&history=4", "").await;
            let more = open(&["a"], "&history=1000000", "").await;
            let both = open(&["b", "a"], "&history=5", "").await;
            let empty = open(&["nothing"], "&history=5", "").await;
            let after = open(&["a"], "&history=5", &text(a[8])).await;
            let clients = [&none, &one, &four, &more, &both, &empty, &after];
            setup.settle(&clients, &[]).await;
            let keys = |client: &Client| {
                let mut keys = client.log().keys();
                // The last event of the settlement.
                keys.retain(|key| key.rsplit('/').next().unwrap().parse::<usize>().unwrap() <= 13);
                keys
            };
            // Numbers go on from channel to channel: a has 1..=6 and 10..=13, b has 7..=9.
            let of = |channel: &str, numbers: std::ops::RangeInclusive<usize>| -> Vec<String> {
                numbers
                    .map(|number| format!("{channel}/p/{number}"))
                    .collect()
            };
            assert_eq!(keys(&none), [""; 0], "{bus:?}");
            assert_eq!(keys(&one), of("a", 13..=13), "{bus:?}");
            assert_eq!(keys(&four), of("a", 10..=13), "{bus:?}");
            let all = [of("a", 1..=6), of("a", 10..=13)].concat();
            assert_eq!(keys(&more), all, "{bus:?}");
            let merged = [of("a", 6..=6), of("b", 7..=9), of("a", 10..=13)].concat();
            assert_eq!(keys(&both), merged, "{bus:?}");
            assert_eq!(keys(&empty), [""; 0], "{bus:?}");
            assert_eq!(keys(&after), of("a", 13..=13), "{bus:?}");
            assert_eq!(b.len(), 3);
        }
    })
    .await;
}

#[tokio::test]
async fn the_newest_events_are_followed_by_the_live_ones_without_a_seam() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            let load = std::mem::replace(
                &mut setup.publisher,
                Publisher::over_http(&setup.journal, "q", &setup.addresses),
            )
            .load(&["a", "b"], Duration::ZERO);
            let mut clients = Vec::new();
            for number in 0..24 {
                setup.journal.grows(20).await;
                let query = ["&history=1", "&history=30", "&history=5000"][number % 3];
                let channels: &[&str] = if number % 2 == 0 { &["a"] } else { &["a", "b"] };
                let mut plan = setup.plan(channels).query(query);
                plan.http2 = number % 4 == 3;
                clients.push(plan.open().await);
            }
            load.stop().await;
            for client in &mut clients {
                if client.plan.channels.len() == 1 {
                    client.plan.owed =
                        crate::support::client::Owed::After(just_before_the_first(client).await);
                }
            }
            let all: Vec<_> = clients.iter().collect();
            setup.settle(&all, &[]).await;
        }
    })
    .await;
}

/// The id below the first that a client of one channel got: from there on nothing may be missing.
async fn just_before_the_first(client: &Client) -> Id {
    client.until("an event", |log| log.events() > 0).await;
    let first = client.log().seen.iter().find_map(|seen| match seen {
        crate::support::client::Seen::Event { id, .. } => *id,
        _ => None,
    });
    match first.unwrap() {
        (ms, 0) => (ms - 1, u64::MAX),
        (ms, n) => (ms, n - 1),
    }
}

/// Most clients forget an id without data, and what takes every `data` for its own forgets no id.
#[tokio::test]
async fn cursors_come_as_events_and_where_that_is_asked_for_without_data() {
    test_within(MINUTE, async {
        let variables = [
            ("FANFARE_HEARTBEAT", "100ms"),
            ("FANFARE_MAX_REPLICATION_LAG", "200ms"),
            ("FANFARE_HISTORY_TTL", "1m"),
        ];
        let mut setup = Setup::new(Bus::Redis, &variables).await;
        let busy = setup.open(&["busy"]).await;
        let mut streams = Vec::new();
        // What today's pages ask for means nothing.
        for (query, before, after) in [
            ("", "event: $cursor\nid: ", "\ndata: {}\n\n"),
            ("?cursor=event", "event: $cursor\nid: ", "\ndata: {}\n\n"),
            (
                "?control=event&cursor=",
                "event: $cursor\nid: ",
                "\ndata: {}\n\n",
            ),
            ("?control=comment", "id: ", "\n\n"),
        ] {
            let path = format!("/events/a{query}");
            let mut raw = Raw::get(setup.gateway.data, &path).await;
            let first = raw.until("\n\n\r\n").await;
            let (_, block) = first.rsplit_once("\r\nretry: ").unwrap();
            let id = block
                .split_once('\n')
                .and_then(|(_, rest)| rest.strip_prefix(before))
                .and_then(|rest| rest.strip_suffix(&format!("{after}\r\n")));
            let id = id.unwrap_or_else(|| panic!("{first}"));
            let (event, position) = parse_cursor(id).unwrap();
            assert_eq!(event, (0, 0), "{first}");
            assert!(position.is_some(), "{first}");
            streams.push((raw, before, after, position));
        }
        // The cursor of an idle stream moves with what is published elsewhere.
        let load = std::mem::replace(
            &mut setup.publisher,
            Publisher::new(&setup.journal, "q", &setup.redis.as_ref().unwrap().url()),
        )
        .load(&["busy"], PAUSE);
        for (raw, before, after, position) in &mut streams {
            let moved = raw.until(&format!("\r\n{before}")).await;
            let id = raw.until(after).await;
            let (event, later) = parse_cursor(id.strip_suffix(*after).unwrap()).unwrap();
            assert_eq!(event, (0, 0), "{moved}{id}");
            assert!(later > *position, "{moved}{id} after {position:?}");
        }
        load.stop().await;
        setup.settle(&[&busy], &[]).await;
    })
    .await;
}

// ------------------------------------------------------------------------------- cursors

/// `$gap`s of a stream begun with `cursor`, and the keys of the events before the next live one.
async fn resumed(
    setup: &mut Setup,
    channels: &[&str],
    cursor: &str,
) -> (Vec<(String, String)>, Vec<String>) {
    let client = setup.plan(channels).after(cursor).start();
    client
        .until("a first block", |log| !log.seen.is_empty())
        .await;
    let last = setup.publisher.publish(channels[0]).await;
    client.has(&last).await;
    let log = client.log();
    let reasons = log
        .reasons()
        .into_iter()
        .map(|(channel, reason)| (channel.to_owned(), reason.to_owned()))
        .collect();
    let mut keys = log.keys();
    keys.pop();
    (reasons, keys)
}

#[tokio::test]
async fn what_is_no_cursor_is_told_as_such_and_never_reaches_redis() {
    test_within(MINUTE, async {
        let mut setup = Setup::new(Bus::Redis, &[("FANFARE_SHARDS", "1")]).await;
        let redis = setup.redis.as_ref().unwrap();
        let mut monitor = Raw::send(
            ([127, 0, 0, 1], redis.port()).into(),
            "*1\r\n$7\r\nMONITOR\r\n",
        )
        .await;
        monitor.until("+OK\r\n").await;
        let newest = *setup.publisher.ids("a", 5).await.last().unwrap();
        let long = format!("1-1{}", "9".repeat(10 << 10));
        let two_dots = format!("{0}.{0}.{0}", text(newest));
        let backwards = format!("{}.1-1", text(newest));
        for cursor in [
            "canary",
            "canary-1",
            "1-canary",
            "*canary%0a",
            "canary\u{1f980}",
            "\"canary\":{}",
            "$",
            "-",
            "1-",
            "-1",
            "+1-1",
            "1_1-1",
            "01-1",
            "1-1.canary",
            "1-1.",
            ".1-1",
            "18446744073709551616-0",
            &long,
            &two_dots,
            &backwards,
        ] {
            let (reasons, events) = resumed(&mut setup, &["a"], cursor).await;
            assert_eq!(
                reasons,
                [("a".to_owned(), "unknown_id".to_owned())],
                "{cursor:.80}"
            );
            assert!(events.is_empty(), "{cursor:.80}: {events:?}");
        }
        // As a first connection sends it, percent-encoded.
        let path = "/events/a?last_event_id=canary%0d%0aFLUSHALL%0d%0a";
        let mut raw = Raw::get(setup.gateway.data, path).await;
        raw.until("unknown_id").await;
        setup.publisher.id("a").await;
        let end = "end-of-monitor";
        let redis = setup.redis.as_ref().unwrap();
        let _: String = redis.command(&["ECHO", end]).await;
        let seen = monitor.until(end).await;
        for word in [
            "canary",
            "FLUSHALL",
            &"9".repeat(30),
            "1_1",
            &two_dots,
            &backwards,
        ] {
            assert!(!seen.contains(word), "{word:.80} reached Redis");
        }
        assert!(seen.contains("fanfare_publish"), "{seen:.400}");
    })
    .await;
}

#[tokio::test]
async fn a_cursor_of_the_future_or_of_before_the_beginning_is_not_proven() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            let ids = setup.publisher.ids("a", 4).await;
            let (ms, n) = ids[3];
            for cursor in [
                text((ms + 3_600_000, n)),
                text((u64::MAX, u64::MAX)),
                format!("{}.{}", text(ids[3]), text((ms + 3_600_000, 0))),
            ] {
                let (reasons, events) = resumed(&mut setup, &["a"], &cursor).await;
                let expected = [("a".to_owned(), "unknown_id".to_owned())];
                assert_eq!(reasons, expected, "{bus:?}: {cursor}");
                assert!(events.is_empty(), "{bus:?}: {cursor}: {events:?}");
            }
            for cursor in ["0-1", "1-0", "0-0.5-0"] {
                let before = setup.journal.ids("a").len();
                let (reasons, events) = resumed(&mut setup, &["a"], cursor).await;
                let expected = [("a".to_owned(), "rewound".to_owned())];
                assert_eq!(reasons, expected, "{bus:?}: {cursor}");
                assert_eq!(events.len(), before, "what is retained follows: {events:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_cursor_of_another_redis_is_never_proven() {
    test_within(MINUTE, async {
        // Ids follow the clock closely, so that those of both mix.
        let variables = [("FANFARE_MAX_REPLICATION_LAG", "100ms")];
        let mut one = Setup::new(Bus::Redis, &variables).await;
        let mut two = Setup::new(Bus::Redis, &variables).await;
        one.publisher.id("a").await;
        let foreign = two.publisher.ids("a", 20).await;
        while one.publisher.id("a").await <= *foreign.last().unwrap() {}
        // One that lies between ids of the first, and is none of them.
        let own = one.journal.ids("a");
        let foreign = foreign.into_iter().rev().find(|id| !own.contains(id));
        let foreign = foreign.expect("one that only the second has issued");
        assert!(own[0] < foreign);
        let (reasons, _) = resumed(&mut one, &["a"], &text(foreign)).await;
        assert_eq!(reasons, [("a".to_owned(), "rewound".to_owned())]);
        // On the other side it is one of its own.
        let (reasons, events) = resumed(&mut two, &["a"], &text(foreign)).await;
        assert!(reasons.is_empty(), "{reasons:?}");
        assert!(!events.contains(&"a/p/1".to_owned()), "{events:?}");
    })
    .await;
}

#[tokio::test]
async fn the_header_wins_and_an_empty_one_is_none() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            let ids = setup.publisher.ids("a", 5).await;
            let path = format!("/events/a?last_event_id={}", text(ids[0]));
            for (header, first) in [
                (String::new(), 2),
                ("last-event-id: \r\n".to_owned(), 2),
                (format!("last-event-id: {}\r\n", text(ids[3])), 5),
                (format!("Last-Event-ID: {}\r\n", text(ids[2])), 4),
            ] {
                let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\n");
                let mut raw = Raw::send(setup.gateway.data, &request).await;
                raw.until("\ndata: a/p/").await;
                let data = raw.until("\n").await;
                assert_eq!(data, format!("{first}\n"), "{bus:?}: {header}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_cursor_of_any_of_its_channels_proves_a_stream() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let mut setup = Setup::new(bus, &[]).await;
            setup.publisher.ids("a", 3).await;
            let b = setup.publisher.id("b").await;
            setup.publisher.ids("a", 2).await;
            setup.publisher.id("b").await;
            // By a gateway that has seen nothing, and by one that has.
            for _ in 0..2 {
                let (reasons, events) = resumed(&mut setup, &["a", "b"], &text(b)).await;
                assert!(reasons.is_empty(), "{bus:?}: {reasons:?}");
                let a = events.iter().filter(|key| key.starts_with("a/")).count();
                assert!(a >= 2 && events.len() > a, "{bus:?}: {events:?}");
            }
            // Of a channel that it does not have: nobody can say.
            let (reasons, _) = resumed(&mut setup, &["a"], &text(b)).await;
            assert_eq!(reasons.len(), 1, "{bus:?}: {reasons:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn trimming_what_a_client_has_had_takes_nothing_from_it() {
    test_within(MINUTE, async {
        for bus in BOTH {
            let variables = [("FANFARE_HISTORY_LENGTH", "3"), ("FANFARE_SHARDS", "1")];
            let mut setup = Setup::new(bus, &variables).await;
            let ids = setup.publisher.ids("a", 10).await;
            // Retained are the last three; the one before them is known as their predecessor.
            for (at, complete) in [(9, true), (7, true), (6, true), (5, false), (0, false)] {
                let client = setup.plan(&["a"]).after(&text(ids[at])).open().await;
                client
                    .until("the newest", |log| log.has("a/p/10") || at == 9)
                    .await;
                let log = client.log();
                let gaps = log.reasons();
                if complete {
                    assert!(gaps.is_empty(), "{bus:?}, {at}: {gaps:?}");
                } else {
                    assert_eq!(gaps, [("a", "expired")], "{bus:?}, {at}");
                    assert_eq!(log.gaps[0].after, Some(ids[at]));
                    assert_eq!(log.gaps[0].oldest, Some(ids[7]));
                    assert_eq!(log.keys(), ["a/p/8", "a/p/9", "a/p/10"], "{bus:?}");
                }
            }
        }
    })
    .await;
}

/// The cursor of an idle client stays young, so that even an expired history proves something.
#[tokio::test]
async fn an_idle_client_outlives_the_history_of_its_channel() {
    test_within(MINUTE, async {
        let variables = [
            ("FANFARE_HEARTBEAT", "100ms"),
            ("FANFARE_MAX_REPLICATION_LAG", "200ms"),
            ("FANFARE_HISTORY_TTL", "3s"),
            // Between probes, positions move with the events of the shard's own channels.
            ("FANFARE_SHARDS", "1"),
        ];
        let mut setup = Setup::new(Bus::Redis, &variables).await;
        let idle = setup.open(&["a"]).await;
        let fresh = setup.open(&["never"]).await;
        let busy = setup.open(&["busy"]).await;
        let event = setup.publisher.id("a").await;
        let redis_url = setup.redis.as_ref().unwrap().url();
        let load = Publisher::new(&setup.journal, "q", &redis_url)
            .load(&["busy"], Duration::from_millis(10));
        let redis = setup.redis.as_ref().unwrap();
        eventually("the history expires", async || {
            redis.command::<i64>(&["EXISTS", "sse:a"]).await == 0
        })
        .await;
        setup.journal.grows(10).await;
        let cursor = idle.leave().await;
        let fresh_cursor = fresh.leave().await;
        let (had, position) = parse_cursor(&cursor).unwrap();
        assert_eq!(had, event, "{cursor}");
        assert!(position.is_some(), "{cursor}");
        // By a replica that has seen nothing of it.
        let other = Gateway::behind(redis, &variables).await;
        setup.addresses.replace(0, &other);
        idle.come_back();
        fresh.come_back();
        for client in [&idle, &fresh] {
            client
                .until("it is back", |log| log.streams == 2 && log.is_open())
                .await;
        }
        let old = setup.plan(&["a"]).after(&text(event)).open().await;
        old.until("a gap", |log| !log.gaps.is_empty()).await;
        load.stop().await;
        assert_eq!(old.log().reasons(), [("a", "expired")]);
        setup.settle(&[&idle, &fresh, &busy], &[]).await;
        assert!(fresh_cursor.starts_with("0-0."), "{fresh_cursor}");
    })
    .await;
}

// -------------------------------------------------------------------------- slow clients

/// Big events, a short history, and a client that takes its time.
#[tokio::test]
async fn a_history_trimmed_under_a_slow_replay_is_told() {
    test_within(MINUTE, async {
        let variables = [
            ("FANFARE_HISTORY_LENGTH", "100"),
            ("FANFARE_CLIENT_BUFFER_BYTES", "64KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ];
        let mut setup = Setup::new(Bus::Redis, &variables).await;
        setup.publisher.event_bytes = 16 << 10;
        let ids = setup.publisher.ids("a", 90).await;
        let mut clients = Vec::new();
        for channels in [&["a"][..], &["a", "b"]] {
            let mut plan = setup.plan(channels).after(&text(ids[0]));
            plan.receive_buffer = Some(32 << 10);
            let client = plan.open().await;
            client.pause(true);
            clients.push(client);
        }
        setup.publisher.ids("a", 250).await;
        for client in &clients {
            let had = client.log().events();
            assert!(had < 60, "it has everything already: {had}");
            client.pause(false);
        }
        let all: Vec<_> = clients.iter().collect();
        // Where the replay was, only a knew. What follows of b cannot be proven either.
        setup.settle(&all, &["expired", "rewound"]).await;
        for client in &clients {
            let log = client.log();
            let of_a: Vec<_> = log.gaps.iter().filter(|gap| gap.channel == "a").collect();
            assert!(!of_a.is_empty(), "{} events", log.events());
            assert!(of_a.iter().all(|gap| gap.reason == "expired"), "{of_a:?}");
            assert_eq!(log.streams, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn with_latest_a_slow_client_is_told_what_it_missed() {
    test_within(MINUTE, async {
        let variables = [
            ("FANFARE_SLOW_CLIENT", "latest"),
            ("FANFARE_CLIENT_BUFFER_BYTES", "64KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ];
        for bus in BOTH {
            let mut setup = Setup::new(bus, &variables).await;
            setup.publisher.event_bytes = 8 << 10;
            let healthy = setup.open(&["a", "b"]).await;
            let mut slow = Vec::new();
            for channels in [&["a"][..], &["a", "b"]] {
                let mut plan = setup.plan(channels);
                plan.receive_buffer = Some(32 << 10);
                let client = plan.open().await;
                client.pause(true);
                slow.push(client);
            }
            for _ in 0..100 {
                for channel in ["a", "b"] {
                    let key = setup.publisher.publish(channel).await;
                    healthy.has(&key).await;
                }
            }
            for client in &slow {
                client.pause(false);
            }
            setup.settle(&[&healthy], &[]).await;
            let all: Vec<_> = slow.iter().collect();
            setup.settle(&all, &["slow"]).await;
            for client in &slow {
                let log: std::sync::MutexGuard<'_, Log> = client.log();
                let told: BTreeSet<_> = log.gaps.iter().map(|gap| &gap.channel).collect();
                assert_eq!(told.len(), client.plan.channels.len(), "{:?}", log.gaps);
                assert_eq!(log.streams, 1);
            }
            // Cut off now, it resumes after what it was told of.
            for client in &slow {
                client.cut();
            }
            setup.settle(&all, &["slow"]).await;
        }
    })
    .await;
}

// ---------------------------------------------------------------------- the embedded bus

/// Its histories end with the process.
#[tokio::test]
async fn a_restarted_embedded_bus_proves_nothing_of_before() {
    test_within(MINUTE, async {
        let mut setup = Setup::new(Bus::Embedded, &[]).await;
        let had = setup.open(&["a"]).await;
        let fresh = setup.open(&["a", "b"]).await;
        setup.publisher.ids("a", 5).await;
        setup.settle(&[&had, &fresh], &[]).await;
        setup.gateway.process.signal("KILL");
        setup.gateway.process.ended().await;
        let again = Gateway::start(&[("FANFARE_REDIS_URL", "memory:")]).await;
        setup.addresses.replace(0, &again);
        for client in [&had, &fresh] {
            client.until("a gap", |log| !log.gaps.is_empty()).await;
        }
        setup
            .settle(&[&had, &fresh], &["rewound", "unknown_id"])
            .await;
        assert_eq!(had.log().gaps.len(), 1);
        assert_eq!(fresh.log().gaps.len(), 2);
    })
    .await;
}
