//! One feed of the channels `a` and `b`, told what happens and asked what follows.

use super::*;
use crate::continuity::{Issued, Link};

const LAG: Duration = Duration::from_millis(10);
const TTL_MS: u64 = 3600 * 1000;

struct World {
    feed: Feed<&'static str, Link>,
    actions: Vec<Action<&'static str, Link>>,
}

fn id(ms: u64) -> EventId {
    EventId::new(ms, 0)
}

fn link(ms: u64, prev: u64) -> Link {
    Link {
        id: id(ms),
        prev: id(prev),
    }
}

/// A complete page, whose oldest event is its first.
fn page(last: u64, from: u64, events: &[(u64, u64)]) -> Option<HistoryPage<Link>> {
    let events: Vec<_> = events.iter().map(|(ms, prev)| link(*ms, *prev)).collect();
    Some(HistoryPage {
        issued: Some(Issued {
            epoch: id(1),
            last: id(last),
        }),
        now_ms: last,
        retention: Retention::constant(Duration::from_millis(TTL_MS)),
        evictable: false,
        oldest: events.first().copied(),
        from: id(from),
        events,
        complete: true,
        ended: None,
    })
}

impl World {
    /// Both channels are subscribed, with `newest` as the newest id.
    fn new(newest: Option<u64>) -> Self {
        let settings = FeedSettings {
            lag_bound: LAG,
            max_recovery_bytes: 1 << 20,
        };
        let retention = Retention::constant(Duration::from_millis(TTL_MS));
        let mut world = Self {
            feed: Feed::new(settings, retention),
            actions: Vec::new(),
        };
        world.on(Input::Wanted("a"));
        world.on(Input::Wanted("b"));
        world.connect(newest);
        world.activate(newest);
        world
    }

    fn on(&mut self, input: Input<&'static str, Link>) {
        self.feed.on(input, &mut self.actions);
    }

    fn connect(&mut self, newest: Option<u64>) {
        self.on(Input::Connected {
            subscribed: vec!["a", "b"],
            refused: Vec::new(),
            newest: newest.map(id),
        });
    }

    fn activate(&mut self, newest: Option<u64>) {
        self.on(Input::Subscribed {
            channels: vec!["a", "b"],
            newest: newest.map(id),
        });
    }

    fn kept(&mut self, channel: &'static str, ms: u64, prev: u64) {
        self.on(Input::Kept {
            channel: Some(channel),
            event: link(ms, prev),
        });
    }

    fn probe(&mut self, ms: u64) {
        let (id, epoch) = (id(ms), id(1));
        self.on(Input::Probe { id, epoch });
    }

    fn page(&mut self, channel: &'static str, page: Option<HistoryPage<Link>>) {
        self.on(Input::Page { channel, page });
    }

    /// What follows, one word for each action.
    fn told(&mut self) -> String {
        let ms = |id: Option<EventId>| id.unwrap_or_default().ms();
        let late = |late: bool| if late { "late" } else { "" };
        let word = |action: Action<&'static str, Link>| match action {
            Action::Event {
                channel,
                event,
                late: is_late,
                ..
            } => format!("{channel}:{}{}", event.id.ms(), late(is_late)),
            Action::AsLive { channel, .. } => format!("{channel}:live"),
            Action::Gap {
                channel,
                notice,
                late: is_late,
            } => format!(
                "{channel}:{}@{}{}",
                notice.reason,
                ms(notice.id),
                late(is_late)
            ),
            Action::Read { channel, from, .. } => format!("read-{channel}-{}", from.ms()),
            Action::Active { channels, position } => {
                let mut channels = channels;
                channels.sort_unstable();
                format!("active-{}@{}", channels.join(""), ms(position))
            }
            Action::Position(position) => format!("position@{}", position.ms()),
            Action::Rewound { to, .. } => format!("rewound@{}", to.ms()),
            Action::Started { .. } => "started".into(),
            Action::NeverIssued { id, .. } => format!("never-issued-{}", id.ms()),
            Action::NewEpoch(epoch) => format!("epoch-{}", epoch.ms()),
            Action::WentBack { to, .. } => format!("went-back@{}", to.ms()),
        };
        let words: Vec<_> = self.actions.drain(..).map(word).collect();
        words.join(" ")
    }
}

#[test]
fn an_event_that_continues_is_delivered_and_moves_the_position() {
    let mut world = World::new(Some(100));
    // Clients may not be told a position before a probe.
    assert_eq!(world.told(), "started active-ab@0");
    // Read when the connection began.
    world.kept("a", 100, 0);
    world.kept("a", 110, 90);
    world.kept("a", 110, 90);
    assert_eq!(world.told(), "a:110");
    // Who was told no position is told now.
    world.probe(105);
    assert_eq!(world.told(), "active-ab@110 position@110");
    world.probe(120);
    assert_eq!(world.told(), "position@120");
    world.probe(119);
    assert_eq!(world.told(), "went-back@119");
}

#[test]
fn a_hole_and_another_history_wait_for_a_read() {
    let mut world = World::new(Some(100));
    world.kept("a", 110, 0);
    world.kept("b", 125, 0);
    world.told();
    world.kept("a", 130, 120);
    assert_eq!(world.told(), "read-a-110");
    assert!(world.feed.is_reading());
    world.page("a", page(130, 110, &[(110, 0), (120, 110), (130, 120)]));
    assert_eq!(world.told(), "a:120late a:130");
    world.kept("a", 140, 0);
    assert_eq!(world.told(), "read-a-130");
    world.page("a", None);
    assert_eq!(world.told(), "a:rewound@139 a:140");
    // What is older than everything can live has expired.
    world.feed.set_time(Duration::from_millis(TTL_MS));
    let late = 140 + TTL_MS;
    world.probe(late - 1);
    world.told();
    world.kept("a", late, 0);
    assert_eq!(world.told(), format!("a:{late}"));
}

#[test]
fn what_was_missed_is_told_in_order_and_once() {
    let mut world = World::new(Some(100));
    world.kept("a", 110, 0);
    world.on(Input::Live("b"));
    world.on(Input::Lost);
    world.told();
    world.connect(Some(150));
    let mut reads: Vec<_> = world.told().split(' ').map(str::to_owned).collect();
    reads.sort_unstable();
    assert_eq!(reads, ["read-a-110", "read-b-110"]);
    world.page("b", page(150, 110, &[(130, 0)]));
    assert_eq!(world.told(), "");
    world.page("a", page(150, 110, &[(120, 115), (140, 120)]));
    assert_eq!(
        world.told(),
        "a:lost@119 a:120 b:130 a:140 b:lost@0 started"
    );
    // It came with the subscription too.
    world.kept("a", 140, 120);
    world.kept("a", 160, 140);
    assert_eq!(world.told(), "a:160");
}

/// What is told of the new sequence must not be held against ids of the old one.
#[test]
fn ids_that_went_back_are_told_before_what_was_recovered() {
    let mut world = World::new(Some(100));
    world.kept("a", 900, 0);
    world.on(Input::Lost);
    world.told();
    world.connect(Some(130));
    world.told();
    world.page("b", page(130, 900, &[]));
    world.page("a", page(130, 900, &[]));
    let told = world.told();
    assert!(told.starts_with("rewound@130 "), "{told}");
    assert!(
        told.contains("a:rewound@130") && told.contains("b:rewound@130"),
        "{told}"
    );
    assert!(told.ends_with(" started"), "{told}");
    world.kept("a", 140, 121);
    assert_eq!(world.told(), "a:140");
}

/// A gap that is found after later events of other channels.
#[test]
fn a_gap_can_be_late() {
    let mut world = World::new(Some(100));
    world.kept("a", 110, 0);
    world.kept("b", 125, 0);
    world.kept("a", 130, 120);
    world.told();
    world.page("a", None);
    assert_eq!(world.told(), "a:lost@120late a:130");
}

/// Redis refused the channel on the connection before: nothing that happened since is known.
#[test]
fn what_was_refused_is_lost_and_not_active_before_it_is_subscribed() {
    let mut world = World::new(Some(100));
    world.on(Input::Lost);
    world.told();
    world.on(Input::Connected {
        subscribed: vec!["b"],
        refused: vec!["a"],
        newest: Some(id(110)),
    });
    world.page("b", page(110, 100, &[]));
    world.on(Input::Subscribed {
        channels: vec!["b"],
        newest: Some(id(110)),
    });
    world.probe(120);
    let told = world.told();
    assert_eq!(
        told,
        "read-b-100 started active-b@0 active-b@120 position@120"
    );
    world.on(Input::Lost);
    world.connect(Some(200));
    world.page("b", page(200, 120, &[]));
    assert_eq!(world.told(), "read-b-120 a:lost@0 started");
}

#[test]
fn without_ids_everything_is_live_and_lost_with_the_connection() {
    let mut world = World::new(None);
    world.kept("a", 110, 0);
    assert_eq!(world.told(), "started active-ab@0 a:live");
    world.on(Input::Lost);
    world.connect(Some(120));
    assert_eq!(world.told(), "a:lost@0 started");
    world.kept("a", 130, 110);
    assert_eq!(world.told(), "a:130");
    world.on(Input::Lost);
    world.connect(None);
    assert_eq!(world.told(), "a:lost@0 started");
}

#[test]
fn ids_far_ahead_are_looked_up_unless_time_has_passed() {
    let mut world = World::new(Some(100));
    world.told();
    let ahead = 100 + 60_000;
    for (issued, told) in [
        (ahead - 1, format!("never-issued-{ahead}")),
        (ahead, format!("a:{ahead}")),
    ] {
        world.kept("a", ahead, 0);
        assert_eq!(world.told(), format!("read-a-{ahead}"));
        world.page("a", page(issued, ahead, &[]));
        assert_eq!(world.told(), told);
    }
    let later = 2 * ahead;
    world.feed.set_time(Duration::from_secs(60));
    world.kept("a", later, ahead);
    assert_eq!(world.told(), format!("a:{later}"));
}
