//! One client on its way to the live events.

use super::*;
use crate::continuity::{Issued, Link, Retention};

const LAG: Duration = Duration::from_secs(60);

fn id(ms: u64) -> EventId {
    EventId::new(ms, 0)
}

fn link(ms: u64, prev: u64) -> Link {
    Link {
        id: id(ms),
        prev: id(prev),
    }
}

/// A page of a history that begins at 100, cut unless it is complete.
fn page(from: EventId, events: Vec<Link>, complete: bool) -> HistoryPage<Link> {
    HistoryPage {
        issued: Some(Issued {
            epoch: id(1),
            last: id(900),
        }),
        now_ms: 900,
        retention: Retention::constant(LAG * 2),
        evictable: false,
        oldest: Some(link(100, 0)),
        from,
        events,
        complete,
        ended: None,
    }
}

/// A page cut before the position would be read again and again.
#[test]
fn a_page_that_ends_before_the_position_is_not_read_twice() {
    let tail = Tail::default();
    let step = |replay: &mut Replay, page: Option<&HistoryPage<Link>>| {
        let view = View {
            tail: &tail,
            page,
            fresh: true,
        };
        replay.step(&[view], Some(id(800)), 1000, |_| true)
    };
    let cursor: Cursor = "100-0.500-0".parse().unwrap();
    let mut replay = Replay::resume(cursor, 1, LAG);
    let Step::Read(reads) = step(&mut replay, None) else {
        panic!("nothing is known yet");
    };
    assert_eq!(reads, [(0, id(100))]);
    let cut = page(id(100), vec![link(100, 0), link(200, 100)], false);
    let Step::Send(part) = step(&mut replay, Some(&cut)) else {
        panic!("the same would be read again");
    };
    assert!(part.gaps.is_empty() && part.events.is_empty() && !part.live);
    assert_eq!(part.cursor, cursor);
    let Step::Read(reads) = step(&mut replay, None) else {
        panic!("what follows is not known yet");
    };
    assert_eq!(reads, [(0, id(500).next())]);
    for (prev, reason) in [(200, None), (550, Some(GapReason::Expired))] {
        let mut replay = replay.clone();
        let rest = page(id(500).next(), vec![link(600, prev)], true);
        let Step::Send(part) = step(&mut replay, Some(&rest)) else {
            panic!("everything is known");
        };
        assert_eq!(part.events, [link(600, prev)]);
        assert_eq!(part.gaps.first().map(|gap| gap.reason), reason);
    }
}
