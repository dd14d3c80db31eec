//! The function library against a real Redis: what publishers and gateways may rely on.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Redis, eventually, within};
use bytes::Bytes;
use fanfare::library::{
    HistoryConfig, Installed, LIBRARY_VERSION, Library, LibraryError, LibrarySettings, ensure,
    is_missing, load, render,
};
use fanfare::protocol::{Event, EventId, Frame, KeptFrame, decode_frame};
use futures_util::StreamExt;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError, Value};

const LAG_MS: u64 = 60_000;

fn settings() -> LibrarySettings {
    LibrarySettings {
        prefix: "sse:".into(),
        history_length: 1000,
        history_ttl: Duration::from_secs(3600),
        max_replication_lag: Duration::from_millis(LAG_MS),
        max_event_bytes: 1 << 20,
    }
}

/// A Redis with the library, and a connection to it.
async fn with_library(settings: &LibrarySettings) -> (Redis, MultiplexedConnection) {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    ready(&mut connection, settings).await;
    (redis, connection)
}

async fn ready(
    connection: &mut MultiplexedConnection,
    settings: &LibrarySettings,
) -> HistoryConfig {
    match ensure(connection, settings).await.unwrap() {
        Library::Ready { config } => config,
        other => panic!("{other:?}"),
    }
}

async fn unavailable(connection: &mut MultiplexedConnection, settings: &LibrarySettings) -> String {
    match ensure(connection, settings).await.unwrap() {
        Library::Unavailable(reason) | Library::Impossible(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// What `fanfare_library` answers: the version and the prefixes.
async fn library(redis: &Redis) -> Vec<String> {
    redis.command(&["FCALL_RO", "fanfare_library", "0"]).await
}

async fn run<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    parts: &[&str],
) -> Result<T, RedisError> {
    let mut command = redis::cmd(parts[0]);
    command.arg(&parts[1..]);
    within(parts[0], command.query_async(connection)).await
}

/// `FCALL fanfare_publish 1 sse:<channel> <arguments>`.
async fn try_publish(
    connection: &mut MultiplexedConnection,
    channel: &str,
    arguments: &[&[u8]],
) -> Result<String, RedisError> {
    let mut command = redis::cmd("FCALL");
    command
        .arg("fanfare_publish")
        .arg(1)
        .arg(format!("sse:{channel}"))
        .arg(arguments);
    within("FCALL", command.query_async(connection)).await
}

async fn publish(
    connection: &mut MultiplexedConnection,
    channel: &str,
    arguments: &[&str],
) -> EventId {
    let arguments: Vec<_> = arguments.iter().map(|text| text.as_bytes()).collect();
    let id = try_publish(connection, channel, &arguments).await.unwrap();
    id.parse().unwrap()
}

async fn probe(connection: &mut MultiplexedConnection) -> EventId {
    let id: String = run(
        connection,
        &["FCALL", "fanfare_probe", "1", "sse:$probe.0a", "7"],
    )
    .await
    .unwrap();
    id.parse().unwrap()
}

/// The ids and frames that are stored.
async fn stored(connection: &mut MultiplexedConnection, channel: &str) -> Vec<(EventId, Bytes)> {
    let key = format!("sse:{channel}");
    let entries: Vec<(String, (String, Vec<u8>))> =
        run(connection, &["XRANGE", &key, "-", "+"]).await.unwrap();
    entries
        .into_iter()
        .map(|(id, (field, frame))| {
            assert_eq!(field, "f");
            (id.parse().unwrap(), Bytes::from(frame))
        })
        .collect()
}

fn kept(frame: &Bytes) -> KeptFrame {
    match decode_frame(frame.clone(), 1 << 20).unwrap() {
        Frame::Event(kept) => kept,
        other => panic!("{other:?}"),
    }
}

fn event(frame: &Bytes) -> Event {
    kept(frame).event.unwrap().unwrap()
}

/// The last id and the epoch.
async fn state(connection: &mut MultiplexedConnection) -> (EventId, EventId) {
    let state: String = run(connection, &["GET", "sse:$state"]).await.unwrap();
    let (last, epoch) = state.split_once(' ').unwrap();
    (last.parse().unwrap(), epoch.parse().unwrap())
}

async fn clock_ms(connection: &mut MultiplexedConnection) -> u64 {
    let (seconds, microseconds): (u64, u64) = run(connection, &["TIME"]).await.unwrap();
    seconds * 1000 + microseconds / 1000
}

#[tokio::test]
async fn subscribers_get_exactly_the_frame_that_is_stored() {
    let (redis, mut connection) = with_library(&settings()).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    subscriber.subscribe("sse:a").await.unwrap();
    let before = clock_ms(&mut connection).await;
    let first = publish(&mut connection, "a", &["hello"]).await;
    let second = publish(&mut connection, "a", &["wörld\r\n", "event", "n"]).await;
    let after = clock_ms(&mut connection).await;
    let stored = stored(&mut connection, "a").await;
    let mut messages = subscriber.on_message();
    for (id, frame) in &stored {
        let message = within("a message", messages.next()).await.unwrap();
        assert_eq!(message.get_payload_bytes(), &frame[..]);
        let kept = kept(frame);
        assert_eq!(kept.id, *id);
        // An id runs ahead of the clock, the time of publication does not.
        assert!((before..=after).contains(&kept.published_ms), "{kept:?}");
    }
    assert_eq!([stored[0].0, stored[1].0], [first, second]);
    assert_eq!(kept(&stored[0].1).prev, EventId::ZERO);
    assert_eq!(kept(&stored[1].1).prev, first);
    assert_eq!(&event(&stored[1].1).data()[..], "wörld\r\n".as_bytes());
}

#[tokio::test]
async fn every_option_arrives() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let to = r#" {"role":["a","b c\"\n"],"n":-1.5e+3,"x":{"y":null}} "#;
    let options = [
        "",
        "event",
        "pricé",
        "retry",
        "0250",
        "to",
        to,
        "history",
        "7",
        "key",
        "k",
        "traceparent",
        trace,
    ];
    publish(&mut connection, "a", &options).await;
    // No name and the empty object are as if they were not there.
    publish(&mut connection, "a", &["x", "event", "", "to", "{ }"]).await;
    let longest = "n".repeat(1024);
    publish(
        &mut connection,
        "a",
        &["x", "event", &longest, "retry", "86400000"],
    )
    .await;
    let stored = stored(&mut connection, "a").await;
    let full = kept(&stored[0].1);
    let full = full.event.unwrap().unwrap();
    assert_eq!(full.trace_parent(), trace.parse().ok());
    assert_eq!(full.name().unwrap().as_str(), "pricé");
    assert_eq!(full.retry(), Some(Duration::from_millis(250)));
    assert_eq!(
        full.audience().unwrap().as_str(),
        r#"{"role":["a","b c\"\n"],"n":-1.5e+3,"x":{"y":null}}"#
    );
    assert!(full.data().is_empty());
    let bare = event(&stored[1].1);
    assert!(bare.name().is_none() && bare.audience().is_none() && bare.retry().is_none());
    let long = event(&stored[2].1);
    assert_eq!(long.name().unwrap().as_str(), longest);
    assert_eq!(long.retry(), Some(Duration::from_secs(86400)));
}

#[tokio::test]
async fn every_fault_names_its_option_and_nothing_is_written() {
    let settings = LibrarySettings {
        max_event_bytes: 2048,
        ..settings()
    };
    let (_redis, mut connection) = with_library(&settings).await;
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    let long_name = [b'n'; 1025];
    let long_key = [b'k'; 257];
    let long_to = format!(r#"{{"a":"{}"}}"#, "x".repeat(16384));
    let deep_to = format!(r#"{{"a":{}1{}}}"#, "[".repeat(127), "]".repeat(127));
    let too_large = [b'x'; 2049];
    let mut faults: Vec<(&str, Vec<&[u8]>)> = vec![
        ("data", vec![]),
        ("data", vec![&too_large]),
        ("data", vec![b"\xff"]),
        ("event", vec![b"x", b"event"]),
        ("event", vec![b"x", b"event", b"$gap"]),
        ("event", vec![b"x", b"event", b"a\nb"]),
        ("event", vec![b"x", b"event", b"a\rb"]),
        ("event", vec![b"x", b"event", b"a\0b"]),
        ("event", vec![b"x", b"event", b"\xc3"]),
        ("event", vec![b"x", b"event", &long_name]),
        ("event", vec![b"x", b"event", b"a", b"event", b"a"]),
        ("key", vec![b"x", b"key", b""]),
        ("key", vec![b"x", b"key", &long_key]),
        ("to", vec![b"x", b"to", long_to.as_bytes()]),
        ("to", vec![b"x", b"to", deep_to.as_bytes()]),
        ("colour", vec![b"x", b"colour", b"red"]),
        ("EVENT", vec![b"x", b"EVENT", b"a"]),
        ("a??b", vec![b"x", b"a\r\nb", b"a"]),
    ];
    for text in [
        "-1",
        "1.5",
        "",
        " 1",
        "1 ",
        "86400001",
        "1e3",
        "0x10",
        "nan",
        "99999999999999999999",
    ] {
        faults.push(("retry", vec![b"x", b"retry", text.as_bytes()]));
    }
    for text in ["0", "-1", "1000001", "", "all"] {
        faults.push(("history", vec![b"x", b"history", text.as_bytes()]));
    }
    for text in [
        "",
        "x",
        "[]",
        "\"a\"",
        "{",
        "{}}",
        "{\"a\":NaN}",
        "{\"a\":0x10}",
        "{\"a\":01}",
        "{\"a\":.5}",
        "{\"a\":1.}",
        "{\"a\":1e999}",
        "{\"a\":+1}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\ud800\"}",
        "{'a':1}",
        "{\"a\":1,}",
    ] {
        faults.push(("to", vec![b"x", b"to", text.as_bytes()]));
    }
    faults.push(("to", vec![b"x", b"to", b"{\"a\":\"\xff\"}"]));
    for text in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
    ] {
        faults.push(("traceparent", vec![b"x", b"traceparent", text.as_bytes()]));
    }
    for (option, arguments) in faults {
        let error = try_publish(&mut connection, "a", &arguments)
            .await
            .unwrap_err()
            .to_string();
        let shown: Vec<_> = arguments
            .iter()
            .map(|argument| argument.escape_ascii().to_string())
            .collect();
        assert!(
            error.contains(&format!("fanfare_publish: {option}: ")),
            "{shown:?}: {error}"
        );
    }
    let too_long = format!("sse:{}", "c".repeat(201));
    for (what, keys) in [
        ("channel", vec!["1", "sse:"]),
        ("channel", vec!["1", &too_long]),
        ("channel", vec!["1", "orders"]),
        ("channel", vec!["1", ""]),
        ("channel", vec!["1", "sse:$state"]),
        ("channel", vec!["1", "sse:a b"]),
        ("channel", vec!["1", "sse:a%"]),
        ("channel", vec!["1", "sse:é"]),
        ("number of keys", vec!["0"]),
        ("number of keys", vec!["2", "sse:a", "sse:b"]),
    ] {
        let parts = [&["FCALL", "fanfare_publish"], &keys[..], &["x"]].concat();
        let error = run::<String>(&mut connection, &parts)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("fanfare_publish: {what}: ")),
            "{keys:?}: {error}"
        );
    }
    let size: i64 = run(&mut connection, &["DBSIZE"]).await.unwrap();
    assert_eq!(size, 0);
}

/// What Redis takes for UTF-8 is what Rust takes for it.
#[tokio::test]
async fn data_is_utf8_in_every_language() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let mut samples: Vec<Vec<u8>> = [
        &b"\x00\x7f"[..],
        "\u{80}\u{7ff}\u{800}\u{fff}\u{1000}\u{cfff}\u{d7ff}\u{e000}\u{ffff}".as_bytes(),
        "\u{10000}\u{3ffff}\u{40000}\u{10ffff}".as_bytes(),
        "日本語 und Übung 🦀".as_bytes(),
        // Overlong, surrogates, beyond Unicode, cut off, alone.
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xfe",
        b"\x80",
        b"\xe4\xb8",
        b"\xf0\x9f\xa6",
        // What is left of two sequences is none.
        b"\xe4\xc3\xa4\xb8\xad",
        b"\xc3\xe4\xb8\xad\xa4",
        b"\xf0\xc3\xa4\x9f\xa6\x80",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    let mut random = fastrand::Rng::with_seed(1);
    let bytes = [
        0x00, 0x61, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec,
        0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff,
    ];
    for _ in 0..20_000 {
        let length = random.usize(1..6);
        samples.push((0..length).map(|_| bytes[random.usize(..24)]).collect());
    }
    for _ in 0..2000 {
        let length = random.usize(1..20);
        let text: String = (0..length).map(|_| random.char('\0'..)).collect();
        samples.push(text.into_bytes());
    }
    let mut valid = 0;
    for chunk in samples.chunks(500) {
        let mut pipeline = redis::pipe();
        for sample in chunk {
            pipeline
                .cmd("FCALL")
                .arg("fanfare_publish")
                .arg(1)
                .arg("sse:a")
                .arg(&sample[..]);
        }
        let answers: Vec<Result<String, RedisError>> = within("the answers", async {
            pipeline
                .ignore_errors()
                .query_async(&mut connection)
                .await
                .unwrap()
        })
        .await;
        for (sample, answer) in chunk.iter().zip(answers) {
            let expected = std::str::from_utf8(sample).is_ok();
            assert_eq!(answer.is_ok(), expected, "{}", sample.escape_ascii());
            valid += usize::from(expected);
        }
    }
    assert!(valid > 2000 && valid < samples.len() - 2000, "{valid}");
}

#[tokio::test]
async fn ids_increase_over_all_channels_and_probes() {
    let (redis, mut connection) = with_library(&settings()).await;
    let publisher = async |number: usize| {
        let mut connection = redis.connection().await;
        let mut ids = Vec::new();
        for round in 0..200 {
            ids.push(if (number + round).is_multiple_of(7) {
                probe(&mut connection).await
            } else {
                let channel = format!("c{}", (number + round) % 5);
                publish(&mut connection, &channel, &["x"]).await
            });
        }
        assert!(ids.is_sorted_by(|one, other| one < other));
        ids
    };
    let mut all: Vec<_> = join_all((0..8).map(publisher))
        .await
        .into_iter()
        .flatten()
        .collect();
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count, "no id is issued twice");
    for channel in 0..5 {
        let entries = stored(&mut connection, &format!("c{channel}")).await;
        let mut prev = EventId::ZERO;
        for (id, frame) in entries {
            assert_eq!(kept(&frame).prev, prev);
            prev = id;
        }
    }
}

#[tokio::test]
async fn a_probe_comes_back_on_its_own_channel() {
    let (redis, mut connection) = with_library(&settings()).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    subscriber.subscribe("sse:$probe.0a").await.unwrap();
    let first = publish(&mut connection, "a", &["x"]).await;
    let id = probe(&mut connection).await;
    assert!(id > first);
    let mut messages = subscriber.on_message();
    let message = within("the probe", messages.next()).await.unwrap();
    let payload = Bytes::copy_from_slice(message.get_payload_bytes());
    assert_eq!(
        decode_frame(payload, 1),
        Ok(Frame::Probe {
            id,
            epoch: first,
            library_version: LIBRARY_VERSION,
            number: 7
        })
    );
    assert_eq!(state(&mut connection).await, (id, first));
    for parts in [
        &["1", "sse:a", "1"][..],
        &["1", "sse:$state", "1"],
        &["1", "sse:$probe.x", "1"],
        &["1", "sse:$probe.", "1"],
        &["1", "$probe.0a", "1"],
        &["1", "sse:$probe.0a", "-1"],
        &["1", "sse:$probe.0a"],
        &["0", "1"],
    ] {
        let parts = [&["FCALL", "fanfare_probe"], parts].concat();
        let error = run::<Value>(&mut connection, &parts).await.unwrap_err();
        assert!(error.to_string().contains("fanfare_probe: "), "{error}");
    }
    assert_eq!(state(&mut connection).await.0, id);
}

#[tokio::test]
async fn ids_never_repeat_when_the_state_is_not_what_was_written() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let first = publish(&mut connection, "a", &["x"]).await;
    let now = clock_ms(&mut connection).await;
    assert!(first.ms() >= now + LAG_MS - 5000, "a first id is a jump");
    // Ids are ahead of the clock now, as after a clock step back: only the number moves.
    let second = publish(&mut connection, "a", &["x"]).await;
    assert_eq!(second, EventId::new(first.ms(), 1));
    // Somebody else has issued ids: a primary that was promoted in between.
    let future = EventId::new(now + 10 * LAG_MS, 3);
    let theirs = format!("{future} {first}");
    let () = run(&mut connection, &["SET", "sse:$state", &theirs])
        .await
        .unwrap();
    let third = publish(&mut connection, "a", &["x"]).await;
    assert_eq!(third, EventId::new(future.ms() + LAG_MS, 0));
    assert_eq!(state(&mut connection).await, (third, first));
    // An older state, from a replica that was behind: what this process knows counts too.
    let () = run(&mut connection, &["SET", "sse:$state", &theirs])
        .await
        .unwrap();
    let fourth = probe(&mut connection).await;
    assert_eq!(fourth, EventId::new(third.ms() + LAG_MS, 0));
    // No state, or nonsense: a new epoch, and still larger.
    let mut last = fourth;
    for ruin in [
        &["DEL", "sse:$state"][..],
        &["SET", "sse:$state", "nonsense"],
        &["SET", "sse:$state", "18446744073709551615-0 1-0"],
        &["SET", "sse:$state", "1-99999999999999999999 1-0"],
        &["FLUSHALL"],
        &["FLUSHDB"],
    ] {
        let _: Value = run(&mut connection, ruin).await.unwrap();
        let id = publish(&mut connection, "b", &["x"]).await;
        assert!(id.ms() >= last.ms() + LAG_MS, "{ruin:?}");
        assert_eq!(state(&mut connection).await, (id, id), "{ruin:?}");
        last = id;
    }
}

/// A history that was restored or written by hand, with ids that no state knows of.
#[tokio::test]
async fn a_history_ahead_of_the_state_is_jumped_over() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let ahead = clock_ms(&mut connection).await + 500_000;
    let by_hand = format!("{ahead}-5");
    let _: Value = run(&mut connection, &["XADD", "sse:a", &by_hand, "x", "y"])
        .await
        .unwrap();
    let id = publish(&mut connection, "a", &["x"]).await;
    assert_eq!(id, EventId::new(ahead + LAG_MS, 0));
    assert_eq!(state(&mut connection).await.0, id);
    assert!(publish(&mut connection, "b", &["x"]).await > id);
}

/// Who may publish to a channel may write to its history, too.
#[tokio::test]
async fn what_others_write_to_a_history_harms_that_channel_alone() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let first = publish(&mut connection, "a", &["x"]).await;
    let far = format!("{}-0", first.ms() + 11 * LAG_MS);
    for foreign in [
        "18446744073709551615-18446744073709551615",
        "18446744073709551615-5",
        &far,
    ] {
        let before = state(&mut connection).await;
        let _: Value = run(&mut connection, &["XADD", "sse:a", foreign, "f", "x"])
            .await
            .unwrap();
        for _ in 0..3 {
            let error = try_publish(&mut connection, "a", &[b"y", b"key", b"k"]).await;
            let error = error.unwrap_err();
            assert_eq!(error.code(), Some("WRONGTYPE"), "{error}");
            assert!(error.to_string().contains("DEL sse:a heals it"), "{error}");
        }
        // Nothing has happened.
        assert_eq!(state(&mut connection).await, before);
        let length: i64 = run(&mut connection, &["XLEN", "sse:a"]).await.unwrap();
        assert_eq!(length, 2, "{foreign}");
        let key: i64 = run(&mut connection, &["EXISTS", "sse:$key.a/k"])
            .await
            .unwrap();
        assert_eq!(key, 0);
        // Redis knows of the entry also when it is deleted.
        let _: i64 = run(&mut connection, &["XDEL", "sse:a", foreign])
            .await
            .unwrap();
        assert!(try_publish(&mut connection, "a", &[b"y"]).await.is_err());
        assert_eq!(state(&mut connection).await, before);
        // The others go on, and ids stay where they were.
        let other = publish(&mut connection, "b", &["x"]).await;
        let probed = probe(&mut connection).await;
        assert!(
            probed.since(first) < Duration::from_millis(LAG_MS),
            "{probed} {other}"
        );
        let _: i64 = run(&mut connection, &["DEL", "sse:a"]).await.unwrap();
        let healed = publish(&mut connection, "a", &["x"]).await;
        assert!(healed > probed && healed.since(first) < Duration::from_millis(LAG_MS));
    }
}

/// What the function cannot know it does not try.
#[tokio::test]
async fn a_publisher_leaves_nothing_in_the_log_of_refusals() {
    let (redis, mut connection) = with_library(&settings()).await;
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    let mut publisher = user(&redis, PUBLISHER).await;
    publish(&mut publisher, "a", &["x"]).await;
    let log: Vec<Value> = run(&mut connection, &["ACL", "LOG"]).await.unwrap();
    assert!(log.is_empty(), "{log:?}");
}

#[tokio::test]
async fn of_a_key_of_another_type_no_history_is_known() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let last = publish(&mut connection, "b", &["x"]).await;
    let () = run(&mut connection, &["SET", "sse:a", "text"])
        .await
        .unwrap();
    for arguments in [
        &["from", "5-0", "3", "10", "1000"][..],
        &["newest", "3", "10", "1000"],
    ] {
        let page = history(&mut connection, arguments).await;
        assert_eq!((page.last, page.oldest.as_str()), (last.to_string(), ""));
        assert!(page.evictable && page.complete && page.data.is_empty());
    }
}

#[tokio::test]
async fn a_restarted_redis_issues_larger_ids() {
    let mut redis =
        Redis::start_with(&[("--appendonly", "yes"), ("--appendfsync", "always")]).await;
    let mut connection = redis.connection().await;
    ready(&mut connection, &settings()).await;
    let first = publish(&mut connection, "a", &["one"]).await;
    let second = publish(&mut connection, "a", &["two", "key", "k"]).await;
    redis.kill().await;
    redis.restart().await;
    let mut connection = redis.connection().await;
    eventually("Redis has loaded what it kept", async || {
        run::<String>(&mut connection.clone(), &["PING"])
            .await
            .is_ok()
    })
    .await;
    // The library is there again by itself, as are the idempotency keys.
    assert_eq!(
        publish(&mut connection, "a", &["two", "key", "k"]).await,
        second
    );
    let third = publish(&mut connection, "a", &["three"]).await;
    assert!(third.ms() >= second.ms() + LAG_MS);
    assert_eq!(state(&mut connection).await, (third, first));
    let entries = stored(&mut connection, "a").await;
    assert_eq!(entries.len(), 3);
    assert_eq!(kept(&entries[2].1).prev, second);
}

#[tokio::test]
async fn a_promoted_replica_goes_on_with_larger_ids() {
    let (primary, mut connection) = with_library(&settings()).await;
    let replica = Redis::start().await;
    let mut promoted = replica.connection().await;
    let port = primary.port().to_string();
    let () = run(&mut promoted, &["REPLICAOF", "127.0.0.1", &port])
        .await
        .unwrap();
    let first = publish(&mut connection, "a", &["one"]).await;
    let second = publish(&mut connection, "a", &["two", "key", "k"]).await;
    eventually("the replica has it", async || {
        let state: Option<String> = replica.command(&["GET", "sse:$state"]).await;
        state == Some(format!("{second} {first}"))
    })
    .await;
    assert_eq!(
        stored(&mut promoted, "a").await,
        stored(&mut connection, "a").await
    );
    for key in ["sse:a", "sse:$key.a/k"] {
        let expires: i64 = run(&mut connection, &["PEXPIRETIME", key]).await.unwrap();
        let there: i64 = run(&mut promoted, &["PEXPIRETIME", key]).await.unwrap();
        assert_eq!(expires, there, "effects are replicated");
    }
    // A replica neither publishes nor loads, and says so.
    let error = try_publish(&mut promoted, "a", &[b"x"]).await.unwrap_err();
    assert_eq!(error.code(), Some("READONLY"));
    let settings = settings();
    let other = LibrarySettings {
        prefix: "other:".into(),
        ..settings.clone()
    };
    for settings in [&settings, &other] {
        let found = ensure(&mut promoted, settings).await.unwrap();
        assert_eq!(found, Library::Replica);
    }
    let () = run(&mut promoted, &["REPLICAOF", "NO", "ONE"])
        .await
        .unwrap();
    let third = publish(&mut promoted, "a", &["three"]).await;
    assert!(third.ms() >= second.ms() + LAG_MS, "{third} {second}");
    assert_eq!(state(&mut promoted).await, (third, first));
    // Back again: it is not this process that has written last.
    let port = replica.port().to_string();
    let () = run(&mut connection, &["REPLICAOF", "127.0.0.1", &port])
        .await
        .unwrap();
    eventually("the old primary has it", async || {
        let state: Option<String> = primary.command(&["GET", "sse:$state"]).await;
        state == Some(format!("{third} {first}"))
    })
    .await;
    let () = run(&mut connection, &["REPLICAOF", "NO", "ONE"])
        .await
        .unwrap();
    let fourth = publish(&mut connection, "a", &["four"]).await;
    assert!(fourth.ms() >= third.ms() + LAG_MS);
}

#[tokio::test]
async fn histories_are_as_long_and_live_as_long_as_they_should() {
    let settings = LibrarySettings {
        history_length: 5,
        history_ttl: Duration::from_millis(1200),
        max_replication_lag: Duration::from_millis(100),
        ..settings()
    };
    let (_redis, mut connection) = with_library(&settings).await;
    let mut last = EventId::ZERO;
    for _ in 0..300 {
        last = publish(&mut connection, "a", &["x"]).await;
    }
    let entries = stored(&mut connection, "a").await;
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[4].0, last);
    let expires: u64 = run(&mut connection, &["PEXPIRETIME", "sse:a"])
        .await
        .unwrap();
    assert_eq!(expires, last.ms() + 1200);
    publish(&mut connection, "a", &["x", "history", "2"]).await;
    assert_eq!(stored(&mut connection, "a").await.len(), 2);
    for _ in 0..20 {
        publish(&mut connection, "a", &["x", "history", "8"]).await;
    }
    assert_eq!(stored(&mut connection, "a").await.len(), 8);
    eventually("the history expires", async || {
        let exists: bool = run(&mut connection.clone(), &["EXISTS", "sse:a"])
            .await
            .unwrap();
        !exists
    })
    .await;
    publish(&mut connection, "a", &["x"]).await;
    let entries = stored(&mut connection, "a").await;
    assert_eq!(kept(&entries[0].1).prev, EventId::ZERO);
}

#[tokio::test]
async fn a_repeated_key_is_published_once() {
    let (redis, mut connection) = with_library(&settings()).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    subscriber.subscribe(&["sse:a", "sse:a:b"]).await.unwrap();
    let first = publish(&mut connection, "a", &["one", "key", "b:c"]).await;
    let state_before = state(&mut connection).await;
    for _ in 0..3 {
        assert_eq!(
            publish(&mut connection, "a", &["two", "key", "b:c"]).await,
            first
        );
    }
    assert_eq!(state(&mut connection).await, state_before);
    assert_eq!(stored(&mut connection, "a").await.len(), 1);
    // Another channel with this name and key put together alike.
    let other = publish(&mut connection, "a:b", &["three", "key", "c"]).await;
    assert!(other > first);
    let longest = "k".repeat(256);
    publish(&mut connection, "a", &["four", "key", &longest]).await;
    let mut messages = subscriber.on_message();
    for data in ["one", "three", "four"] {
        let message = within("a message", messages.next()).await.unwrap();
        let frame = Bytes::copy_from_slice(message.get_payload_bytes());
        assert_eq!(event(&frame).data(), data);
    }
    // The window is the history's lifetime.
    let ttl: u64 = run(&mut connection, &["PTTL", "sse:$key.a/b:c"])
        .await
        .unwrap();
    assert!((3_500_000..=3_600_000).contains(&ttl), "{ttl}");
    let _: Value = run(&mut connection, &["DEL", "sse:$key.a/b:c"])
        .await
        .unwrap();
    assert!(publish(&mut connection, "a", &["five", "key", "b:c"]).await > first);
}

#[tokio::test]
async fn a_key_of_another_type_is_refused_before_anything_is_written() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let () = run(&mut connection, &["SET", "sse:a", "text"])
        .await
        .unwrap();
    let error = try_publish(&mut connection, "a", &[b"x"])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"), "{error}");
    let state: Option<String> = run(&mut connection, &["GET", "sse:$state"]).await.unwrap();
    assert_eq!(state, None);
}

/// `fanfare_history`'s answer.
#[derive(Debug)]
struct Page {
    last: String,
    epoch: String,
    ttl_ms: u64,
    old_ttl_ms: u64,
    ttl_since: String,
    evictable: bool,
    oldest: String,
    oldest_prev: String,
    start: String,
    complete: bool,
    data: Vec<String>,
}

async fn history(connection: &mut MultiplexedConnection, arguments: &[&str]) -> Page {
    let parts = [&["FCALL_RO", "fanfare_history", "1", "sse:a"], arguments].concat();
    let answer: Vec<Value> = run(connection, &parts).await.unwrap();
    let mut values = answer.into_iter();
    let mut text = || redis::from_redis_value::<String>(values.next().unwrap()).unwrap();
    let (last, epoch) = (text(), text());
    let _now_ms: u64 = text().parse().unwrap();
    let (ttl_ms, old_ttl_ms) = (text().parse().unwrap(), text().parse().unwrap());
    let (ttl_since, evictable) = (text(), text() != "0");
    let (oldest, oldest_prev, start, complete) = (text(), text(), text(), text() == "1");
    let data = values
        .map(|frame| {
            let frame = Bytes::from(redis::from_redis_value::<Vec<u8>>(frame).unwrap());
            String::from_utf8(event(&frame).data().to_vec()).unwrap()
        })
        .collect();
    Page {
        last,
        epoch,
        ttl_ms,
        old_ttl_ms,
        ttl_since,
        evictable,
        oldest,
        oldest_prev,
        start,
        complete,
        data,
    }
}

/// `first`, `first + 1`, …: what the tests publish.
fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_history_is_read_in_pages() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let mut ids = Vec::new();
    for number in 0..300 {
        ids.push(publish(&mut connection, "a", &[&number.to_string()]).await);
    }
    let other = publish(&mut connection, "b", &["x"]).await;
    let id = |number: usize| ids[number].to_string();
    let page = history(&mut connection, &["from", "0-0", "0", "1000", "1000000"]).await;
    assert_eq!(page.last, other.to_string());
    assert_eq!(page.epoch, id(0));
    assert_eq!((page.ttl_ms, page.old_ttl_ms), (3_600_000, 3_600_000));
    assert_eq!(page.ttl_since, "0-0");
    assert!(!page.evictable && page.complete);
    assert_eq!((page.oldest, page.oldest_prev), (id(0), "0-0".to_owned()));
    assert_eq!(page.start, "0-0");
    assert_eq!(page.data, numbers(0..300));

    // From, preceding, most events  ->  start, data, complete.
    let after = ids[299].next().to_string();
    for (from, preceding, most, start, data, complete) in [
        (&id(290), "0", "100", id(290), 290..300, true),
        (&id(290), "0", "10", id(290), 290..300, true),
        (&id(290), "0", "9", id(290), 290..299, false),
        (&id(290), "0", "1", id(290), 290..291, false),
        (&id(299), "0", "1", id(299), 299..300, true),
        (&id(100), "1", "3", id(99), 99..102, false),
        (&id(100), "70", "100", id(30), 30..130, false),
        (&id(100), "100", "1000", id(0), 0..300, true),
        (&id(100), "1000", "2", id(0), 0..2, false),
        (&id(0), "5", "2", id(0), 0..2, false),
        (&"0-0".to_owned(), "5", "2", "0-0".to_owned(), 0..2, false),
        (&after, "0", "10", after.clone(), 0..0, true),
        (&after, "2", "10", id(298), 298..300, true),
    ] {
        let arguments = ["from", from, preceding, most, "1000000"];
        let page = history(&mut connection, &arguments).await;
        assert_eq!(page.start, start, "{arguments:?}");
        assert_eq!(page.data, numbers(data), "{arguments:?}");
        assert_eq!(page.complete, complete, "{arguments:?}");
        assert_eq!(page.oldest, id(0));
    }
    for (newest, most, start, data, complete) in [
        ("1", "10", 299, 299..300, true),
        ("130", "1000", 170, 170..300, true),
        ("130", "7", 170, 170..177, false),
        ("1000000", "2", 0, 0..2, false),
    ] {
        let arguments = ["newest", newest, most, "1000000"];
        let page = history(&mut connection, &arguments).await;
        assert_eq!(page.start, id(start), "{arguments:?}");
        assert_eq!(page.data, numbers(data), "{arguments:?}");
        assert_eq!(page.complete, complete, "{arguments:?}");
    }
    // Trimmed: the oldest names the one before it, which is gone.
    publish(&mut connection, "a", &["300", "history", "10"]).await;
    let page = history(&mut connection, &["newest", "100", "100", "1000000"]).await;
    assert_eq!((page.oldest, page.oldest_prev), (id(291), id(290)));
    assert_eq!(page.data, numbers(291..301));
}

#[tokio::test]
async fn a_page_holds_as_many_bytes_as_asked_for_and_at_least_two_events() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let large = "x".repeat(300_000);
    for _ in 0..20 {
        publish(&mut connection, "a", &[&large]).await;
    }
    // A header has some hundred bytes.
    for (max_bytes, events) in [
        (1, 2),
        (601_000, 2),
        (899_999, 2),
        (7 * 301_000, 7),
        (20 * 301_000, 20),
    ] {
        let max_bytes = max_bytes.to_string();
        let from = &["from", "0-0", "0", "100", &max_bytes];
        let page = history(&mut connection, from).await;
        assert_eq!(page.data.len(), events);
        assert_eq!(page.complete, events == 20);
        let page = history(&mut connection, &["newest", "3", "100", &max_bytes]).await;
        assert_eq!(page.data.len(), events.min(3));
    }
    // Fewer, if asked for: then the answer never exceeds the bytes, and may hold nothing.
    for (max_bytes, min_events, events) in [
        ("1", "0", 0),
        ("300000", "0", 0),
        ("301000", "0", 1),
        ("1", "1", 1),
        ("602000", "1", 2),
        ("1", "2", 2),
    ] {
        let from = &["from", "0-0", "0", "100", max_bytes, min_events];
        let page = history(&mut connection, from).await;
        assert_eq!(
            (page.data.len(), page.complete),
            (events, false),
            "{from:?}"
        );
    }
    // What is read before the asked for leaves room for it.
    let from = stored(&mut connection, "a").await[15].0.to_string();
    let page = history(&mut connection, &["from", &from, "1000", "100", "1204000"]).await;
    assert_eq!((page.data.len(), page.complete), (4, false));
    let from: EventId = from.parse().unwrap();
    let start: EventId = page.start.parse().unwrap();
    let ids: Vec<_> = stored(&mut connection, "a").await;
    assert_eq!((start, from), (ids[13].0, ids[15].0));
}

#[tokio::test]
async fn a_history_that_is_not_there_or_not_ours_is_read_too() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    for arguments in [
        &["from", "5-0", "0", "10", "1000"][..],
        &["from", "5-0", "3", "10", "1000"],
        &["newest", "3", "10", "1000"],
    ] {
        let page = history(&mut connection, arguments).await;
        assert_eq!((page.last.as_str(), page.epoch.as_str()), ("", ""));
        assert_eq!((page.oldest.as_str(), page.oldest_prev.as_str()), ("", ""));
        assert_eq!(page.ttl_ms, 3_600_000);
        let start = if arguments[0] == "from" { "5-0" } else { "0-0" };
        assert_eq!(page.start, start);
        assert!(page.complete && page.data.is_empty());
    }
    // Nothing of this writes.
    let size: i64 = run(&mut connection, &["DBSIZE"]).await.unwrap();
    assert_eq!(size, 0);
    // Entries of others are left out, wherever they stand.
    for id in ["1-0", "2-0"] {
        let _: Value = run(&mut connection, &["XADD", "sse:a", id, "x", "y"])
            .await
            .unwrap();
    }
    let first = publish(&mut connection, "a", &["0"]).await;
    publish(&mut connection, "a", &["1"]).await;
    let _: Value = run(
        &mut connection,
        &["XADD", "sse:a", "9999999999999-0", "x", "y"],
    )
    .await
    .unwrap();
    let page = history(&mut connection, &["newest", "2", "2", "1000"]).await;
    assert_eq!(page.oldest, first.to_string());
    assert_eq!(page.oldest_prev, "2-0");
    assert_eq!(page.start, first.to_string());
    assert_eq!(page.data, ["0", "1"]);
    assert!(page.complete);
    for arguments in [
        &[][..],
        &["from"],
        &["from", "x", "0", "1", "1"],
        &["from", "0-0", "-1", "1", "1"],
        &["from", "0-0", "0", "0", "1"],
        &["from", "0-0", "0", "1", "0"],
        &["from", "0-0", "0", "1", "1", "3"],
        &["from", "0-0", "0", "1", "1", "x"],
        &["from", "0-0", "0", "1", "1", "1", "1"],
        &["newest", "0", "1", "1"],
        &["newest", "1", "1"],
        &["oldest", "1", "1", "1"],
    ] {
        let parts = [&["FCALL_RO", "fanfare_history", "1", "sse:a"], arguments].concat();
        let error = run::<Value>(&mut connection, &parts).await.unwrap_err();
        assert!(error.to_string().contains("fanfare_history: "), "{error}");
    }
    let parts = [
        "FCALL_RO",
        "fanfare_history",
        "1",
        "b",
        "newest",
        "1",
        "1",
        "1",
    ];
    let error = run::<Value>(&mut connection, &parts).await.unwrap_err();
    assert!(
        error.to_string().contains("fanfare_history: channel: "),
        "{error}"
    );
}

#[tokio::test]
async fn it_is_told_whether_redis_may_evict_histories() {
    let (_redis, mut connection) = with_library(&settings()).await;
    for (limit, policy, evictable) in [
        ("0", "allkeys-lru", false),
        ("100mb", "noeviction", false),
        ("100mb", "allkeys-lru", true),
        ("100mb", "volatile-ttl", true),
    ] {
        let parts = [
            "CONFIG",
            "SET",
            "maxmemory",
            limit,
            "maxmemory-policy",
            policy,
        ];
        let () = run(&mut connection, &parts).await.unwrap();
        let page = history(&mut connection, &["newest", "1", "1", "1"]).await;
        assert_eq!(page.evictable, evictable, "{limit} {policy}");
    }
}

fn version_line(version: u64) -> String {
    format!("local VERSION = {version}\n")
}

#[tokio::test]
async fn the_library_is_loaded_and_upgraded_and_never_downgraded() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let settings = settings();
    let prefixes = ["sse:".to_owned()];
    let versioned = |version: u64, prefixes: &[String]| {
        render(&settings, prefixes).replace(&version_line(LIBRARY_VERSION), &version_line(version))
    };
    let version = &*LIBRARY_VERSION.to_string();
    let (installed, config) = load(&mut connection, &settings).await.unwrap();
    assert_eq!(installed, Installed::Loaded);
    assert_eq!(config.differs_from(&settings), None);
    assert_eq!(library(&redis).await, [version, "sse:"]);
    // There already: nothing is replaced, so no ids are jumped over.
    let first = publish(&mut connection, "a", &["x"]).await;
    let (installed, _) = load(&mut connection, &settings).await.unwrap();
    assert_eq!(installed, Installed::Present);
    assert_eq!(publish(&mut connection, "a", &["x"]).await.ms(), first.ms());
    // Another prefix joins, and an upgrade keeps both.
    let other = LibrarySettings {
        prefix: "app:".into(),
        ..settings.clone()
    };
    let (installed, _) = load(&mut connection, &other).await.unwrap();
    assert_eq!(installed, Installed::Replaced);
    assert_eq!(library(&redis).await, [version, "app:", "sse:"]);
    let old = versioned(
        LIBRARY_VERSION - 1,
        &["app:".to_owned(), "third:".to_owned()],
    );
    let _: String = run(&mut connection, &["FUNCTION", "LOAD", "REPLACE", &old])
        .await
        .unwrap();
    ready(&mut connection, &settings).await;
    assert_eq!(library(&redis).await, [version, "sse:", "app:", "third:"]);
    // Both go on by themselves, in sequences of their own.
    let id: String = run(
        &mut connection,
        &["FCALL", "fanfare_publish", "1", "app:a", "x"],
    )
    .await
    .unwrap();
    let state: String = run(&mut connection, &["GET", "app:$state"]).await.unwrap();
    assert_eq!(state, format!("{id} {id}"));
    // One prefix within another would mix their channels.
    for prefix in ["sse:eu:", "ss"] {
        let nested = LibrarySettings {
            prefix: prefix.into(),
            ..settings.clone()
        };
        let reason = unavailable(&mut connection, &nested).await;
        assert!(reason.contains("sse:"), "{reason}");
    }
    // A newer one stays.
    let newer = versioned(LIBRARY_VERSION + 1, &prefixes);
    let _: String = run(&mut connection, &["FUNCTION", "LOAD", "REPLACE", &newer])
        .await
        .unwrap();
    let (installed, _) = load(&mut connection, &settings).await.unwrap();
    let newer = LIBRARY_VERSION + 1;
    assert_eq!(installed, Installed::Newer { version: newer });
    ready(&mut connection, &settings).await;
    let reason = unavailable(&mut connection, &other).await;
    assert!(
        reason.contains("newer") && reason.contains("app:"),
        "{reason}"
    );
    assert_eq!(library(&redis).await, [&*newer.to_string(), "sse:"]);
    // So does one that is not ours.
    let foreign = "#!lua name=fanfare\nredis.register_function('f', function() return 1 end)";
    let _: String = run(&mut connection, &["FUNCTION", "LOAD", "REPLACE", foreign])
        .await
        .unwrap();
    let reason = unavailable(&mut connection, &settings).await;
    assert!(reason.contains("not ours"), "{reason}");
    let _: i64 = run(&mut connection, &["FCALL", "f", "0"]).await.unwrap();
}

#[tokio::test]
async fn many_gateways_that_start_together_agree() {
    let redis = Redis::start().await;
    for round in 0..10 {
        let starts = (0..12).map(|number| {
            let redis = &redis;
            async move {
                let settings = LibrarySettings {
                    prefix: format!("p{}:", number % 4),
                    ..settings()
                };
                ready(&mut redis.connection().await, &settings).await
            }
        });
        join_all(starts).await;
        let mut known = library(&redis).await;
        known.sort();
        let version = &*LIBRARY_VERSION.to_string();
        assert_eq!(
            known,
            [version, "p0:", "p1:", "p2:", "p3:"],
            "round {round}"
        );
        let () = run(&mut redis.connection().await, &["FUNCTION", "FLUSH"])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_library_that_is_gone_is_told_apart() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let calls = [
        &["FCALL", "fanfare_publish", "1", "new:a", "x"][..],
        &["FCALL", "fanfare_probe", "1", "new:$probe.0a", "1"],
        &["FCALL_RO", "fanfare_config", "1", "new:$config"],
        &[
            "FCALL_RO",
            "fanfare_history",
            "1",
            "new:a",
            "newest",
            "1",
            "1",
            "1",
        ],
    ];
    for call in calls {
        let error = run::<Value>(&mut connection, call).await.unwrap_err();
        assert!(is_missing(&error), "{error}");
    }
    let error = try_publish(&mut connection, "a", &[b"\xff"]).await;
    assert!(!is_missing(&error.unwrap_err()));
    let () = run(&mut connection, &["FUNCTION", "FLUSH"]).await.unwrap();
    for call in calls {
        let error = run::<Value>(&mut connection, call).await.unwrap_err();
        assert!(is_missing(&error), "{error}");
    }
}

#[tokio::test]
async fn what_redis_cannot_or_may_not_do_is_a_reason_and_a_lost_connection_an_error() {
    let mut include = tempfile::NamedTempFile::new().unwrap();
    writeln!(include, "rename-command FCALL_RO \"\"").unwrap();
    let include = include.path().to_str().unwrap();
    let old = Redis::start_with(&[("--include", include)]).await;
    let reason = unavailable(&mut old.connection().await, &settings()).await;
    assert!(reason.contains("Redis 7"), "{reason}");
    let full = Redis::start_with(&[("--maxmemory", "1")]).await;
    let reason = unavailable(&mut full.connection().await, &settings()).await;
    assert!(reason.contains("OOM"), "{reason}");
    let mut gone = Redis::start().await;
    let mut connection = gone.connection().await;
    gone.kill().await;
    let lost = within("an error", ensure(&mut connection, &settings())).await;
    assert!(lost.is_err(), "{lost:?}");
}

#[tokio::test]
async fn the_configuration_lives_in_redis() {
    let (_redis, mut connection) = with_library(&settings()).await;
    // Whoever comes later takes what is there, and learns that it differs.
    let other = LibrarySettings {
        history_length: 10,
        history_ttl: Duration::from_secs(7200),
        ..settings()
    };
    let config = ready(&mut connection, &other).await;
    assert_eq!(config.differs_from(&settings()), None);
    let difference = config.differs_from(&other).unwrap();
    assert!(difference.contains("FANFARE_HISTORY_LENGTH is 10 here and 1000 in Redis"));
    let first = publish(&mut connection, "a", &["x"]).await;
    let expires = async |connection: &mut MultiplexedConnection| -> u64 {
        run(connection, &["PEXPIRETIME", "sse:a"]).await.unwrap()
    };
    assert_eq!(expires(&mut connection).await, first.ms() + 3_600_000);
    // Raised: from when on is noted, and it is in force at once.
    let (_, config) = load(&mut connection, &other).await.unwrap();
    assert_eq!(config.ttl, Duration::from_secs(7200));
    assert_eq!(config.old_ttl, Duration::from_secs(3600));
    assert_eq!(config.ttl_since, first);
    // Also where another channel's event was the first under it.
    publish(&mut connection, "b", &["x"]).await;
    let second = publish(&mut connection, "a", &["x"]).await;
    assert_eq!(second.ms(), first.ms(), "ids run ahead of the clock");
    assert_eq!(expires(&mut connection).await, second.ms() + 7_200_000);
    let page = history(&mut connection, &["newest", "1", "1", "1"]).await;
    assert_eq!((page.ttl_ms, page.old_ttl_ms), (7_200_000, 3_600_000));
    assert_eq!(page.ttl_since, first.to_string());
    // Raised again: what is older than both is still judged by the shortest.
    let longer = LibrarySettings {
        history_ttl: Duration::from_secs(9000),
        ..other.clone()
    };
    let (_, config) = load(&mut connection, &longer).await.unwrap();
    assert_eq!(config.old_ttl, Duration::from_secs(3600));
    assert_eq!(config.ttl_since, second);
    // Lowered below: nothing is judged by more than what holds now.
    let shorter = LibrarySettings {
        history_ttl: Duration::from_secs(600),
        ..other
    };
    let (_, config) = load(&mut connection, &shorter).await.unwrap();
    assert_eq!(config.ttl, Duration::from_secs(600));
    assert_eq!(config.old_ttl, Duration::from_secs(600));
    assert_eq!(config.ttl_since, second);
    let (_, config) = load(&mut connection, &settings()).await.unwrap();
    assert_eq!(config.old_ttl, Duration::from_secs(600));
    // Once nothing as old can be complete, a rise starts afresh.
    let late = EventId::new(second.ms() + 3_600_000, 0);
    let () = run(
        &mut connection,
        &["SET", "sse:$state", &format!("{late} {first}")],
    )
    .await
    .unwrap();
    let (_, config) = load(&mut connection, &longer).await.unwrap();
    assert_eq!(config.old_ttl, Duration::from_secs(3600));
    assert_eq!(config.ttl_since, late);
}

#[tokio::test]
async fn a_configuration_made_by_hand_is_taken_where_it_makes_sense() {
    let (_redis, mut connection) = with_library(&settings()).await;
    publish(&mut connection, "a", &["x"]).await;
    let set = ["HSET", "sse:$config", "length", "3", "ttl_ms", "soon"];
    let _: Value = run(&mut connection, &set).await.unwrap();
    // It is read again after a second.
    eventually("the length is taken over", async || {
        let connection = &mut connection.clone();
        publish(connection, "a", &["x"]).await;
        publish(connection, "a", &["x"]).await;
        publish(connection, "a", &["x"]).await;
        publish(connection, "a", &["x"]).await;
        stored(connection, "a").await.len() == 3
    })
    .await;
    let config = ready(&mut connection, &settings()).await;
    assert_eq!(config.length, 3);
    assert_eq!(config.ttl, Duration::from_secs(3600));
    // A TTL within the lag bound proves nothing.
    let set = ["HSET", "sse:$config", "ttl_ms", "60000", "lag_ms", "60000"];
    let _: Value = run(&mut connection, &set).await.unwrap();
    let config = ready(&mut connection, &settings()).await;
    assert_eq!(config.ttl, Duration::from_secs(3600));
    assert_eq!(config.max_replication_lag, Duration::from_secs(60));
    // Something else under its name: the defaults, and events go on.
    let () = run(&mut connection, &["SET", "sse:$config", "x"])
        .await
        .unwrap();
    let () = run(&mut connection, &["DEL", "sse:$state"]).await.unwrap();
    publish(&mut connection, "a", &["x"]).await;
    let config = ready(&mut connection, &settings()).await;
    assert_eq!(config.differs_from(&settings()), None);
    // Gone: written again by the next who jumps or reads it.
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    publish(&mut connection, "a", &["x"]).await;
    let length: String = run(&mut connection, &["HGET", "sse:$config", "length"])
        .await
        .unwrap();
    assert_eq!(length, "1000");
}

async fn user(redis: &Redis, rules: &str) -> MultiplexedConnection {
    let mut command = vec!["ACL", "SETUSER", "user", "reset", "on", ">pass"];
    command.extend(rules.split_whitespace());
    let _: String = redis.command(&command).await;
    let url = format!("redis://user:pass@127.0.0.1:{}", redis.port());
    let client = redis::Client::open(url).unwrap();
    within("connecting", client.get_multiplexed_async_connection())
        .await
        .unwrap()
}

/// The rights of a service that publishes to the channel `a` and to nothing else.
const PUBLISHER: &str = "+fcall +time +get +set +hmget +xrevrange +xadd +pexpireat +publish \
                         ~sse:a ~sse:$state %R~sse:$config ~sse:$key.a/* &sse:a";

/// The rights of a gateway, loading the library, publishing and revoking for its clients included.
const GATEWAY: &str = "+fcall +fcall_ro +function|load +multi +exec +time +get +set +hmget +hset +xrevrange \
                       +xrange +xadd +zrange +zremrangebyscore +zcard +zscore +zadd \
                       +pexpireat +publish +subscribe +unsubscribe +ping +info \
                       ~sse:* &sse:*";

#[tokio::test]
async fn a_publisher_needs_only_these_rights() {
    let (redis, mut connection) = with_library(&settings()).await;
    let mut publisher = user(&redis, PUBLISHER).await;
    let first = publish(&mut publisher, "a", &["x", "key", "k", "event", "n"]).await;
    assert_eq!(
        publish(&mut publisher, "a", &["x", "key", "k"]).await,
        first
    );
    publish(&mut publisher, "a", &["x"]).await;
    // Even when there is no configuration, which it may not write.
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    publish(&mut publisher, "a", &["x"]).await;
    let error = try_publish(&mut publisher, "b", &[b"x"]).await.unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    // Without the channel nothing is stored that nobody is told of.
    let before = state(&mut connection).await;
    let rules = PUBLISHER.replace("&sse:a", "&sse:b");
    let mut publisher = user(&redis, &rules).await;
    let error = try_publish(&mut publisher, "a", &[b"x"]).await.unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    assert!(error.to_string().contains("PUBLISH"), "{error}");
    assert_eq!(state(&mut connection).await, before);
    assert_eq!(stored(&mut connection, "a").await.len(), 1);
    // None of these can be left out.
    for right in PUBLISHER.split_whitespace() {
        let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
        let mut publisher = user(&redis, &PUBLISHER.replace(right, "")).await;
        let refused = try_publish(&mut publisher, "a", &[b"x", b"key", b"k"]).await;
        let error = refused.expect_err(right).to_string();
        // How Redis says it of a function, and how 7.0 and later ones do of a command within it.
        let forbidden = ["NoPerm", "The user executing the script", "ACL failure"];
        assert!(
            forbidden.iter().any(|text| error.contains(text)),
            "{right}: {error}"
        );
        // Nothing is stored that nobody is told of.
        let length: i64 = run(&mut connection, &["EXISTS", "sse:a"]).await.unwrap();
        assert_eq!(length, 0, "{right}");
    }
    // Who tries again and again does not drive the ids away from the clock.
    let () = run(&mut connection, &["FLUSHALL"]).await.unwrap();
    let first = publish(&mut connection, "b", &["x"]).await;
    let mut publisher = user(&redis, &PUBLISHER.replace("+xadd", "")).await;
    for _ in 0..5 {
        let refused = try_publish(&mut publisher, "a", &[b"x"]).await;
        assert!(refused.is_err());
    }
    let next = publish(&mut connection, "b", &["x"]).await;
    assert!(next.since(first) < Duration::from_millis(LAG_MS), "{next}");
}

/// A primary that was just promoted has no replicas yet.
#[tokio::test]
async fn the_library_is_ready_where_redis_takes_no_writes_now() {
    let (_redis, mut connection) = with_library(&settings()).await;
    let before = ready(&mut connection, &settings()).await;
    for (setting, refused, usual) in [("min-replicas-to-write", "1", "0"), ("maxmemory", "1", "0")]
    {
        let set = ["CONFIG", "SET", setting, refused];
        let () = run(&mut connection, &set).await.unwrap();
        let error = try_publish(&mut connection, "a", &[b"x"]).await;
        assert!(error.is_err(), "{setting}");
        assert_eq!(ready(&mut connection, &settings()).await, before);
        let set = ["CONFIG", "SET", setting, usual];
        let () = run(&mut connection, &set).await.unwrap();
    }
}

#[tokio::test]
async fn a_gateway_needs_only_these_rights() {
    let redis = Redis::start().await;
    let settings = settings();
    // Without the right to load, it says so.
    let mut gateway = user(&redis, &GATEWAY.replace("+function|load", "")).await;
    let reason = unavailable(&mut gateway, &settings).await;
    assert!(reason.contains("lacks the right"), "{reason}");
    let old = render(&settings, &["sse:".to_owned()])
        .replace(&version_line(LIBRARY_VERSION), &version_line(0));
    let _: String = redis.command(&["FUNCTION", "LOAD", &old]).await;
    let reason = unavailable(&mut gateway, &settings).await;
    assert!(reason.contains("lacks the right"), "{reason}");
    let mut gateway = user(&redis, GATEWAY).await;
    ready(&mut gateway, &settings).await;
    load(&mut gateway, &settings).await.unwrap();
    probe(&mut gateway).await;
    publish(&mut gateway, "a", &["0", "key", "k"]).await;
    let page = history(&mut gateway, &["from", "0-0", "0", "10", "1000"]).await;
    assert_eq!(page.data, ["0"]);
    assert!(!page.evictable);
    // Loaded by somebody else, the right to load is not needed. One that cannot see whether
    // histories are evicted takes it that they are.
    let rules = GATEWAY.replace("+function|load", "").replace("+info", "");
    let mut gateway = user(&redis, &rules).await;
    ready(&mut gateway, &settings).await;
    let page = history(&mut gateway, &["newest", "1", "10", "1000"]).await;
    assert!(page.evictable);
    let mut gateway = user(&redis, &GATEWAY.replace("+fcall_ro", "")).await;
    let reason = unavailable(&mut gateway, &settings).await;
    assert!(reason.contains("lacks the right"), "{reason}");
    let mut gateway = user(&redis, &GATEWAY.replace("+hmget", "")).await;
    let reason = unavailable(&mut gateway, &settings).await;
    assert!(reason.contains("lacks the right"), "{reason}");
    let Err(LibraryError::Unavailable(_)) = load(&mut gateway, &settings).await else {
        panic!("not allowed");
    };
}

async fn fanfare(arguments: &[&str], variables: &[(&str, &str)]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(arguments).envs(variables.iter().copied());
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = within("the command ends", run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn the_command_prints_what_redis_cli_loads() {
    let redis = Redis::start().await;
    let variables = [("FANFARE_PREFIX", "it's:"), ("FANFARE_HISTORY_LENGTH", "7")];
    let (success, source, _) = fanfare(&["functions", "print"], &variables).await;
    assert!(success);
    let mut client = Command::new("redis-cli")
        .args(["-p", &redis.port().to_string()])
        .args(["-x", "FUNCTION", "LOAD", "REPLACE"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(source.as_bytes()).unwrap();
    drop(input);
    assert!(client.wait().unwrap().success());
    let _: String = redis
        .command(&["FCALL", "fanfare_publish", "1", "it's:a", "x"])
        .await;
    let length: String = redis.command(&["HGET", "it's:$config", "length"]).await;
    assert_eq!(length, "7");
}

#[tokio::test]
async fn the_command_loads_and_tells_what_it_did() {
    let redis = Redis::start().await;
    let url = redis.url();
    let variables = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("FANFARE_HISTORY_TTL", "2h"),
    ];
    for expected in ["is loaded", "was there already"] {
        let (success, out, err) = fanfare(&["functions", "load"], &variables).await;
        assert!(success, "{err}");
        assert!(out.contains(expected), "{out}");
        assert!(
            out.contains("sse:$config is written: 1000 events, 2h"),
            "{out}"
        );
    }
    for (arguments, variables, expected) in [
        (vec!["functions", "load"], vec![], "FANFARE_REDIS_URL"),
        (
            vec!["functions", "print"],
            vec![("FANFARE_HISTORY_LENGHT", "7")],
            "FANFARE_HISTORY_LENGHT",
        ),
        (
            vec!["functions", "load", "--redis-url", "redis://127.0.0.1:1"],
            vec![],
            "refused",
        ),
    ] {
        let (success, _, err) = fanfare(&arguments, &variables).await;
        assert!(!success && err.contains(expected), "{err}");
    }
}
