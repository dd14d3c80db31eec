use std::rc::Rc;

use super::*;
use crate::hub::fanout::outgoing::Origin;
use crate::protocol::{ChannelName, EventId};
use proptest::prelude::*;

fn parcel(bytes: &[u8]) -> Parcel {
    Parcel {
        bytes: Bytes::copy_from_slice(bytes),
        events: 1,
        origin: None,
    }
}

fn rules(limit: usize, policy: SlowClientPolicy) -> PushRules {
    PushRules {
        limit,
        policy,
        framing: Framing::Plain,
        control: ControlForm::Event,
    }
}

/// A parcel of one kept event.
fn kept(channel: &str, id: u64) -> Parcel {
    let span = KeptSpan {
        channel: ChannelName::parse(channel).unwrap(),
        after: Some(EventId::new(id - 1, 0)),
        last: Some(EventId::new(id, 0)),
    };
    let origin = Origin::new(None, Some(Loss::Kept(span)));
    Parcel {
        origin: Some(Rc::new(origin)),
        ..parcel(format!("{channel}{id};").as_bytes())
    }
}

#[test]
fn latest_tells_once_for_each_channel_what_was_skipped() {
    let mut mailbox = Mailbox::default();
    let rules = rules(
        4 * PLACE + 4 * size_of::<Origin>(),
        SlowClientPolicy::Latest,
    );
    let mut gaps_told = 0;
    for id in 2..30 {
        let channel = if id % 2 == 0 { "a" } else { "b" };
        if let Pushed::Dropped { gaps, .. } = mailbox.push(kept(channel, id), rules) {
            gaps_told += gaps;
        }
    }
    let text = String::from_utf8(contents(&mut mailbox)).unwrap();
    assert_eq!(gaps_told, 2);
    assert_eq!(text.matches("$gap").count(), 2, "{text}");
    // In front of what is left, from the first that was skipped on.
    let last_skipped = text
        .split("id: ")
        .nth(1)
        .unwrap()
        .split('-')
        .next()
        .unwrap();
    let last_skipped: u64 = last_skipped.parse().unwrap();
    let rest = text.rsplit_once("\n\n").unwrap().1;
    let first_left: u64 = rest[1..rest.find(';').unwrap()].parse().unwrap();
    assert_eq!(last_skipped + 1, first_left, "{text}");
    assert!(text.contains(r#"{"channel":"a","reason":"slow","after":"1-0","oldest":null}"#));
    assert!(text.contains(r#"{"channel":"b","reason":"slow","after":"2-0","oldest":null}"#));
    assert!(rest.ends_with("b29;"), "{text}");
}

/// Notes a write, and returns how many events it completed.
fn written(mailbox: &mut Mailbox, bytes: usize) -> u64 {
    let mut events = 0;
    mailbox.written(bytes, |parcel| events += u64::from(parcel.events));
    events
}

fn poll(mailbox: &mut Mailbox) -> MailboxState {
    mailbox.poll(&Context::from_waker(Waker::noop()))
}

fn contents(mailbox: &mut Mailbox) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(parcel) = mailbox.take() {
        out.extend_from_slice(&parcel.bytes);
    }
    out
}

const PLACE: usize = size_of::<Parcel>();

#[test]
fn an_empty_mailbox_takes_any_one_event_and_then_closes() {
    let mut mailbox = Mailbox::default();
    let big = vec![0; 1000];
    let close = SlowClientPolicy::Close;
    assert_eq!(mailbox.push(parcel(&big), rules(10, close)), Pushed::Queued);
    let dropped = Pushed::Dropped { events: 2, gaps: 0 };
    assert_eq!(mailbox.push(parcel(b"x"), rules(10, close)), dropped);
    assert_eq!(poll(&mut mailbox), MailboxState::Abort);
    assert_eq!(mailbox.end_reason(), Some(CloseReason::SlowClient));
    assert!(mailbox.is_empty());
    assert_eq!(mailbox.push(parcel(b"x"), rules(10, close)), Pushed::Ended);
}

#[test]
fn events_without_data_fill_it_too() {
    let mut mailbox = Mailbox::default();
    let mut taken = 0;
    while mailbox.push(parcel(b""), rules(100 * PLACE, SlowClientPolicy::Close)) == Pushed::Queued {
        taken += 1;
    }
    assert_eq!(taken, 100);
}

#[test]
fn latest_drops_the_oldest_but_never_a_half_written_one() {
    let mut mailbox = Mailbox::default();
    let latest = SlowClientPolicy::Latest;
    let limit = 2 * PLACE + 8;
    for text in [b"aaaa", b"bbbb", b"cccc"] {
        mailbox.push(parcel(text), rules(limit, latest));
    }
    // "aaaa" made room for "cccc".
    assert_eq!(written(&mut mailbox, 1), 0);
    let pushed = mailbox.push(parcel(b"dddd"), rules(limit - 1, latest));
    assert_eq!(pushed, Pushed::Dropped { events: 1, gaps: 0 });
    assert_eq!(contents(&mut mailbox), b"bbbdddd");
}

#[test]
fn latest_never_drops_the_head_of_the_response() {
    let mut mailbox = Mailbox::default();
    mailbox.open(Bytes::from_static(b"HTTP/1.1 200 OK"));
    for _ in 0..9 {
        mailbox.push(parcel(b"x"), rules(10, SlowClientPolicy::Latest));
    }
    assert_eq!(contents(&mut mailbox), b"HTTP/1.1 200 OKx");
}

#[test]
fn latest_never_drops_the_end_of_a_channel() {
    let mut mailbox = Mailbox::default();
    let end = || Parcel {
        origin: Some(Rc::new(Origin::new(None, Some(Loss::Never)))),
        ..parcel(b"end.")
    };
    mailbox.queue(parcel(b"one."));
    mailbox.queue(end());
    mailbox.queue(parcel(b"two."));
    mailbox.queue(end());
    let latest = rules(2 * PLACE, SlowClientPolicy::Latest);
    let dropped = Pushed::Dropped { events: 2, gaps: 0 };
    assert_eq!(mailbox.push(parcel(b"new."), latest), dropped);
    assert_eq!(contents(&mut mailbox), b"end.end.new.");
}

#[test]
fn an_orderly_end_comes_after_what_waits() {
    let mut mailbox = Mailbox::default();
    mailbox.queue(parcel(b"last"));
    mailbox.end(CloseReason::Drain);
    assert_eq!(poll(&mut mailbox), MailboxState::Ready);
    assert_eq!(written(&mut mailbox, 4), 1);
    assert_eq!(poll(&mut mailbox), MailboxState::Ended);
}

proptest! {
    #[test]
    fn bytes_leave_in_order_however_they_are_cut(
        texts in proptest::collection::vec("[a-z]{1,9}", 1..20),
        cuts in proptest::collection::vec(0usize..12, 1..60),
    ) {
        let mut mailbox = Mailbox::default();
        for text in &texts {
            mailbox.push(parcel(text.as_bytes()), rules(usize::MAX, SlowClientPolicy::Close));
        }
        let (mut out, mut events) = (Vec::new(), 0);
        for cut in cuts.into_iter().chain(std::iter::repeat_n(7, 200)) {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = mailbox.gather(&mut slices);
            let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
            let written = cut.min(all.len());
            out.extend_from_slice(&all[..written]);
            events += self::written(&mut mailbox, written);
        }
        prop_assert_eq!(out, texts.concat().into_bytes());
        prop_assert_eq!(events, texts.len() as u64);
        prop_assert_eq!(mailbox.waiting_bytes, 0);
        prop_assert_eq!(mailbox.parcels.capacity(), 0);
    }

    #[test]
    fn latest_never_holds_more_than_the_limit_and_one_parcel(
        pushes in proptest::collection::vec((1usize..40, 0usize..30), 1..80),
    ) {
        const LIMIT: usize = 50 + PLACE;
        let mut mailbox = Mailbox::default();
        for (length, written) in pushes {
            let pushed = mailbox.push(parcel(&vec![b'x'; length]), rules(LIMIT, SlowClientPolicy::Latest));
            prop_assert_ne!(pushed, Pushed::Ended);
            let held: usize = mailbox.parcels.iter().map(Parcel::cost_bytes).sum();
            prop_assert_eq!(held, mailbox.waiting_bytes);
            prop_assert!(held < LIMIT + PLACE + 40);
            let bytes: usize = mailbox.parcels.iter().map(|parcel| parcel.bytes.len()).sum();
            self::written(&mut mailbox, written.min(bytes));
        }
    }
}
