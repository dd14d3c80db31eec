//! Frames as the library writes them, and damaged ones.

use super::*;
use crate::protocol::AudienceFault;
use proptest::prelude::*;

const LIMIT: usize = 64;

/// What the library writes, in Rust: the oracle of the tests.
fn encode(id: EventId, prev: EventId, published_ms: u64, event: &Event) -> Vec<u8> {
    let name = event.name().map_or("", |name| name.as_str());
    let to = event.audience().map_or("", |audience| audience.as_str());
    let traceparent = event
        .trace_parent()
        .map_or(String::new(), |parent| parent.to_string());
    let retry = event
        .retry()
        .map_or("-".to_owned(), |retry| retry.as_millis().to_string());
    let mut out = vec![MARK, VERSION, b'e'];
    let header = format!(
        "{id} {prev} {published_ms} {retry} {} {} {}\n{name}{to}{traceparent}",
        name.len(),
        to.len(),
        traceparent.len()
    );
    out.extend(header.as_bytes());
    out.extend(event.data());
    out
}

fn decoded(frame: &[u8]) -> Result<Frame, FrameFault> {
    decode_frame(Bytes::copy_from_slice(frame), LIMIT)
}

fn kept(frame: &[u8]) -> KeptFrame {
    match decoded(frame).unwrap() {
        Frame::Event(kept) => kept,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_revocation() {
    let frame = decoded(b"\xff1r1771234567901 later\nsub:alice:\n");
    let expected = Revocation {
        until_ms: 1_771_234_567_901,
        revoked: "sub:alice:\n".parse().unwrap(),
    };
    assert_eq!(frame, Ok(Frame::Revocation(expected)));
    for broken in [
        &b"\xff1r\nsub:a"[..],
        b"\xff1rx\nsub:a",
        b"\xff1r5\nalice",
        b"\xff1r5\nsub:\xff",
        b"\xff1r5\n",
    ] {
        assert_eq!(decoded(broken), Err(FrameFault::Header), "{broken:?}");
    }
}

#[test]
fn an_event_without_fields() {
    let frame = b"\xff1e5-1 0-0 4 - 0 0 0\nhello\nworld";
    assert!(is_frame(frame));
    let kept = kept(frame);
    assert_eq!((kept.id, kept.prev), (EventId::new(5, 1), EventId::ZERO));
    assert_eq!(kept.published_ms, 4);
    let event = kept.event.unwrap().unwrap();
    assert_eq!(kept.end, None);
    assert_eq!(event.trace_parent(), None);
    assert_eq!(&event.data()[..], b"hello\nworld");
    assert!(event.name().is_none() && event.retry().is_none() && event.audience().is_none());
}

#[test]
fn an_event_with_every_field() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let frame = format!("5-1 4-0 4 250 5 12 55\nprice{{\"role\":\"a\"}}{trace}{{}}");
    let frame = [&b"\xff1e"[..], frame.as_bytes()].concat();
    let event = kept(&frame).event.unwrap().unwrap();
    assert_eq!(event.trace_parent(), trace.parse().ok());
    assert_eq!(event.name().unwrap().as_str(), "price");
    assert_eq!(event.retry(), Some(Duration::from_millis(250)));
    assert_eq!(event.audience().unwrap().as_str(), r#"{"role":"a"}"#);
    assert_eq!(&event.data()[..], b"{}");
}

#[test]
fn a_trace_context_that_cannot_be_read_is_none() {
    let event = kept(b"\xff1e5-1 4-0 4 - 0 0 5\ntracehello")
        .event
        .unwrap()
        .unwrap();
    assert_eq!(event.trace_parent(), None);
    assert_eq!(&event.data()[..], b"hello");
}

#[test]
fn the_end_of_a_channel() {
    for (state, end) in [
        ("end:done;", Some(EndReason::Done)),
        ("end:error;", Some(EndReason::Error)),
        ("end:stopped;", Some(EndReason::Stopped)),
        ("end:lost;", Some(EndReason::Lost)),
        ("end:riddle;", Some(EndReason::Error)),
        ("length:5000,end:done;", Some(EndReason::Done)),
        ("end:done; 5-1", Some(EndReason::Done)),
        ("length:5000;", None),
        ("end:done", None),
        ("-", None),
        ("- 5-1", None),
        ("", None),
    ] {
        let frame = |data: &str| format!("5-1 4-0 4 - 4 0 0 {state}\nlast{data}");
        let frame = |data: &str| kept(&[b"\xff1e", frame(data).as_bytes()].concat());
        let event = frame("x").event.unwrap().unwrap();
        assert_eq!(
            (frame("x").end, &event.data()[..]),
            (end, &b"x"[..]),
            "{state}"
        );
        // An end without data is no event.
        assert_eq!(frame("").event.unwrap().is_none(), end.is_some(), "{state}");
    }
}

#[test]
fn a_probe() {
    assert_eq!(
        decoded(b"\xff1p5-1 4-0 7\n42"),
        Ok(Frame::Probe {
            id: EventId::new(5, 1),
            epoch: EventId::new(4, 0),
            library_version: 7,
            number: 42,
        })
    );
}

#[test]
fn what_a_later_version_adds_to_a_header_is_ignored() {
    let plain = kept(b"\xff1e5-1 4-0 4 - 1 0 0\nnx");
    assert_eq!(kept(b"\xff1e5-1 4-0 4 - 1 0 0 9 more\nnx"), plain);
    assert!(decoded(b"\xff1p5-1 4-0 7 more\n42").is_ok());
}

#[test]
fn an_event_that_breaks_a_rule_keeps_its_place() {
    for (rest, fault) in [
        (&b"- 0 0 0\n\xff"[..], EventFault::NotUtf8),
        (b"- 1 0 0\n\xff", EventFault::NotUtf8),
        (b"- 4 0 0\n$gap", EventFault::NameReserved),
        (b"- 3 0 0\na\nb", EventFault::NameBreaksLine),
        (b"86400001 0 0 0\n", EventFault::RetryTooLong),
        (
            b"- 0 0 0\n01234567890123456789012345678901234567890123456789012345678901234",
            EventFault::TooLarge { limit: LIMIT },
        ),
    ] {
        let kept = kept(&[b"\xff1e5-1 4-0 4 ", rest].concat());
        assert_eq!(
            (kept.id, kept.prev),
            (EventId::new(5, 1), EventId::new(4, 0))
        );
        assert_eq!(kept.event, Err(fault.into()));
    }
    let kept = kept(b"\xff1e5-1 4-0 4 - 0 2 0\n[]");
    assert_eq!(kept.event, Err(AudienceFault::NotAnObject.into()));
}

#[test]
fn other_versions_and_kinds_and_broken_headers_are_told_apart() {
    for (frame, fault) in [
        (&b""[..], FrameFault::Header),
        (b"hello", FrameFault::Header),
        (b"\xff", FrameFault::Header),
        (b"\xff1", FrameFault::Header),
        (b"\xff2e5-1 4-0 4 - 0 0 0\n", FrameFault::Version),
        (b"\xff1x5-1 4-0 4 - 0 0 0\n", FrameFault::Kind),
        (b"\xff1e5-1 4-0 4 - 0 0 0", FrameFault::Header),
        (b"\xff1e5-1 4-0 4 - 0 0\n", FrameFault::Header),
        (b"\xff1e5-1 4-0 4 - 1 0 0\n", FrameFault::Header),
        (
            b"\xff1e5-1 4-0 4 - 0 0 18446744073709551615\n",
            FrameFault::Header,
        ),
        (b"\xff1e5-1 4-0 4 - -1 0 0\n", FrameFault::Header),
        (b"\xff1e5-1 4-0 4 x 0 0 0\n", FrameFault::Header),
        (b"\xff1e5-1 4-0 04 - 0 0 0\n", FrameFault::Header),
        (b"\xff1e5-1 5-1 4 - 0 0 0\n", FrameFault::Header),
        (b"\xff1e5 4-0 4 - 0 0 0\n", FrameFault::Header),
        (b"\xff1p5-1 6-0 1\n1", FrameFault::Header),
        (b"\xff1p5-1 4-0 1\n", FrameFault::Header),
        (b"\xff1p5-1 4-0\n1", FrameFault::Header),
    ] {
        assert_eq!(decoded(frame), Err(fault), "{}", frame.escape_ascii());
    }
    let endless = [&b"\xff1e5-1 4-0 4 - 0 0 0"[..], &[b' '; 2000], b"\n"].concat();
    assert_eq!(decoded(&endless), Err(FrameFault::Header));
}

fn arbitrary_event() -> impl Strategy<Value = Event> {
    (
        "(\\PC|[\r\n\0]){0,10}",
        "[a-z é]{0,12}",
        proptest::option::of(0u64..86_400_001),
        any::<bool>(),
        any::<(u128, u64, u8)>(),
    )
        .prop_map(|(data, name, retry, restricted, (trace, span, flags))| {
            let mut event = Event::new(Bytes::from(data), LIMIT).unwrap();
            event = event.with_name(&name).unwrap();
            if let Some(retry) = retry {
                event = event.with_retry(Duration::from_millis(retry)).unwrap();
            }
            if restricted {
                event = event.with_to(r#"{"role":"admin"}"#).unwrap();
            }
            event.with_trace_parent(TraceParent::new(trace, span, flags))
        })
}

proptest! {
    #[test]
    fn every_event_comes_back_as_it_was_written(
        event in arbitrary_event(),
        (ms, n) in (1u64.., any::<u64>()),
        published_ms: u64,
    ) {
        let (id, prev) = (EventId::new(ms, n), EventId::new(ms - 1, n));
        let frame = Bytes::from(encode(id, prev, published_ms, &event));
        let Ok(Frame::Event(kept)) = decode_frame(frame.clone(), LIMIT) else {
            panic!("{frame:?}");
        };
        prop_assert_eq!((kept.id, kept.prev, kept.published_ms), (id, prev, published_ms));
        let kept = kept.event.unwrap().unwrap();
        // Nothing is copied.
        let end = frame.as_ptr_range().end;
        prop_assert!(kept.data().is_empty() || kept.data().as_ptr_range().end == end);
        prop_assert_eq!(kept, event);
    }

    #[test]
    fn no_bytes_make_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decoded(&payload);
    }

    #[test]
    fn no_header_makes_it_panic(
        kind in "[epr]",
        header in "[0-9 -]{0,60}",
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let _ = decoded(&[b"\xff1", kind.as_bytes(), header.as_bytes(), b"\n", &body].concat());
    }

    #[test]
    fn no_damage_makes_it_panic(
        event in arbitrary_event(),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        length in any::<usize>(),
    ) {
        let mut frame = encode(EventId::new(5, 1), EventId::ZERO, 4, &event);
        for (at, byte) in damage {
            let at = at % frame.len();
            frame[at] = byte;
        }
        let _ = decoded(&frame);
        frame.truncate(length % frame.len());
        let _ = decoded(&frame);
    }
}
