use super::*;
use proptest::prelude::*;

const LIMIT: usize = 64;

fn decoded(payload: &str) -> Result<Event, EnvelopeFault> {
    decode(Bytes::copy_from_slice(payload.as_bytes()), LIMIT)
}

fn data_of(payload: &str) -> String {
    String::from_utf8(decoded(payload).unwrap().data().to_vec()).unwrap()
}

#[test]
fn an_object_whose_only_member_is_sse_is_an_envelope() {
    let event =
        decoded(r#" { "sse" : {"event":"price","retry":5000,"data":{"sym": "a b", "p": 1.50}} } "#)
            .unwrap();
    assert_eq!(event.name().unwrap().as_str(), "price");
    assert_eq!(event.retry(), Some(Duration::from_secs(5)));
    assert_eq!(&event.data()[..], br#"{"sym":"a b","p":1.50}"#);
}

#[test]
fn anything_else_is_data_whatever_it_looks_like() {
    for payload in [
        "hello",
        "",
        "{}",
        r#"{"data":"x"}"#,
        r#"{"sse":{"data":"x"},"other":1}"#,
        r#"{"other":1,"sse":{"data":"x"}}"#,
        r#"{"sse":{"data":"x"}"#,
        r#"[{"sse":{"data":"x"}}]"#,
        r#"{"sse":{"data":"x"}} tail"#,
    ] {
        assert_eq!(data_of(payload), payload);
    }
}

#[test]
fn data_that_is_not_a_string_is_compact_json_with_its_digits() {
    for (data, expected) in [
        (r#""text \" \n""#, "text \" \n"),
        (
            "1.10000000000000000000000001",
            "1.10000000000000000000000001",
        ),
        ("12345678901234567890123", "12345678901234567890123"),
        ("[ 1 , \"a \\\" b\" ]", r#"[1,"a \" b"]"#),
        ("null", "null"),
        ("true", "true"),
        ("1E5", "1E5"),
    ] {
        assert_eq!(
            data_of(&format!(r#"{{"sse":{{"data":{data}}}}}"#)),
            expected
        );
    }
}

#[test]
fn broken_envelopes_are_told_apart() {
    for payload in [
        r#"{"sse":{}}"#,
        r#"{"sse":5}"#,
        r#"{"sse":{"data":"x","id":"1-1"}}"#,
        r#"{"sse":{"data":"x","data":"y"}}"#,
        r#"{"sse":{"data":"x"},"sse":{"data":"y"}}"#,
        r#"{"sse":{"data":"x","retry":-1}}"#,
        r#"{"sse":{"data":"x","retry":1.5}}"#,
        r#"{"sse":{"data":"x","event":7}}"#,
        r#"{"sse":{"data":"\ud800"}}"#,
    ] {
        assert!(
            matches!(decoded(payload), Err(EnvelopeFault::Broken(_))),
            "{payload}"
        );
    }
    for to in ["\"me\"", "null", "[]"] {
        assert_eq!(
            decoded(&format!(r#"{{"sse":{{"data":"x","to":{to}}}}}"#)),
            Err(AudienceFault::NotAnObject.into())
        );
    }
    for (payload, fault) in [
        (
            r#"{"sse":{"data":"x","event":"a\nb"}}"#,
            EventFault::NameBreaksLine,
        ),
        (
            r#"{"sse":{"data":"x","event":"$gap"}}"#,
            EventFault::NameReserved,
        ),
        (
            r#"{"sse":{"data":"x","retry":86400001}}"#,
            EventFault::RetryTooLong,
        ),
    ] {
        assert_eq!(decoded(payload), Err(fault.into()), "{payload}");
    }
}

/// What is told of a fault stands in the log.
#[test]
fn faults_hold_nothing_of_the_payload_and_no_line_end() {
    for payload in [
        r#"{"sse":"the-payload"}"#,
        r#"{"sse":["the-payload"]}"#,
        r#"{"sse":{"data":"x","retry":"the-payload"}}"#,
        r#"{"sse":{"data":"x","event":{"a":"the-payload"}}}"#,
        r#"{"sse":{"data":"x","traceparent":["the-payload"]}}"#,
        r#"{"sse":{"data":"x","to":"the-payload"}}"#,
        r#"{"sse":{"data":"the-payload\ud800"}}"#,
        r#"{"sse":{"data":"the-payload","data":"the-payload"}}"#,
        r#"{"sse":{"event":"the-payload"}}"#,
    ] {
        let told = decoded(payload).unwrap_err().to_string();
        assert!(!told.contains("the-payload"), "{told}");
    }
    let name = r#"x\n2026-01-01 ERROR forged\u001b[31m\u2028\u0000 \"é"#;
    let payload = format!(r#"{{"sse":{{"data":"x","{name}":1}}}}"#);
    let told = decoded(&payload).unwrap_err().to_string();
    assert!(
        told.contains("member \"x\\n2026-01-01 ERROR forged\\u{1b}[31m"),
        "{told}"
    );
    assert!(
        told.chars().all(|c| c == '…' || (' '..='~').contains(&c)),
        "{told}"
    );
    let payload = format!(r#"{{"sse":{{"data":"x","{}":1}}}}"#, "é".repeat(1000));
    let told = decoded(&payload).unwrap_err().to_string();
    assert!(told.len() < 400 && told.contains('…'), "{told}");
}

#[test]
fn the_limit_counts_the_data_not_its_spelling() {
    let escaped = r"\u0041".repeat(LIMIT);
    assert_eq!(
        data_of(&format!(r#"{{"sse":{{"data":"{escaped}"}}}}"#)),
        "A".repeat(LIMIT)
    );
    let over = "x".repeat(LIMIT + 1);
    let too_large = Err(EventFault::TooLarge { limit: LIMIT }.into());
    assert_eq!(
        decoded(&format!(r#"{{"sse":{{"data":"{over}"}}}}"#)),
        too_large
    );
    assert_eq!(decoded(&over), too_large);
    let giant = " ".repeat(100_000);
    assert_eq!(
        decoded(&format!(r#"{{"sse":{giant}{{"data":"x"}}}}"#)),
        too_large
    );
    assert_eq!(
        decode(Bytes::from_static(b"{\"sse\":\xff}"), LIMIT),
        Err(EventFault::NotUtf8.into())
    );
}

#[test]
fn an_audience_is_kept_and_the_empty_one_is_none() {
    let event = decoded(r#"{"sse":{"data":"x","to":{ "role" : "a b" }}}"#).unwrap();
    let audience = event.audience().unwrap();
    assert_eq!(audience.as_str(), r#"{"role":"a b"}"#);
    let event = decoded(r#"{"sse":{"data":"x","to":{}}}"#).unwrap();
    assert_eq!(event.audience(), None);
}

#[test]
fn a_trace_context_is_kept_and_one_that_cannot_be_read_is_none() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let event = |trace| {
        decoded(&format!(
            r#"{{"sse":{{"data":"x","traceparent":"{trace}"}}}}"#
        ))
    };
    assert_eq!(event(trace).unwrap().trace_parent(), trace.parse().ok());
    assert_eq!(event("junk").unwrap().trace_parent(), None);
    assert!(decoded(r#"{"sse":{"data":"x","traceparent":1}}"#).is_err());
}

#[test]
fn deep_nesting_is_data_or_broken_but_never_a_crash() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let payload = Bytes::from(format!(r#"{{"sse":{{"data":{deep}}}}}"#));
    assert!(decode(payload, 1 << 20).is_ok());
    let to = Bytes::from(format!(r#"{{"sse":{{"data":1,"to":{deep}}}}}"#));
    assert!(decode(to, 1 << 20).is_err());
}

proptest! {
    #[test]
    fn every_event_comes_back_as_it_was_written(
        data in "(\\PC|[\r\n]|\\{\"sse\":|\\}){0,40}",
        name in proptest::option::of("[a-z é\"\\\\]{1,12}"),
        retry in proptest::option::of(0u64..86_400_000),
        audience in any::<bool>(),
        (trace, span, flags) in any::<(u128, u64, u8)>(),
    ) {
        let mut event = Event::new(Bytes::from(data), 1 << 20)
            .unwrap()
            .with_trace_parent(crate::protocol::TraceParent::new(trace, span, flags));
        if let Some(name) = &name {
            event = event.with_name(name).unwrap();
        }
        if let Some(retry) = retry {
            event = event.with_retry(Duration::from_millis(retry)).unwrap();
        }
        if audience {
            event = event.with_to(r#"{"role":"admin"}"#).unwrap();
        }
        let payload = Bytes::from(encode(&event));
        prop_assert_eq!(decode(payload, 1 << 20), Ok(event));
    }

    #[test]
    fn no_bytes_make_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(Bytes::from(payload), LIMIT);
    }

    #[test]
    fn no_json_after_the_marker_makes_it_panic(tail in "\\PC{0,60}") {
        let _ = decoded(&format!(r#"{{"sse":{tail}"#));
    }
}
