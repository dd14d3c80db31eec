//! The console: a page of the admin listener that shows the whole fleet, live.
//!
//! ```text
//! this replica: sampler ──report──┐                      ┌── feed ──► page
//!                                 ├──► fleet ──look──────┤   (Server-Sent Events)
//! other replicas ──reports────────┘   every two seconds  └── feed ──► page
//! ```
//!
//! While a page is open somewhere, its replica calls all others every two seconds, and whoever has
//! been called reports every two seconds, over the control channel of the bus. A report is one to
//! eight kilobytes, and every replica receives it. While no page is open nothing is sent, counted
//! or kept.

mod feed;
mod fleet;
mod latency;
mod page;
mod rates;
mod report;
mod sampler;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use self::fleet::Fleet;
use self::report::Report;
use crate::bus::PeerSender;

pub(super) use feed::{console_feed, console_page};
pub use sampler::Sampler;

/// How often replicas report, and pages are told.
const TICK: Duration = Duration::from_secs(2);

/// A call is good for this long: four may be lost.
const CALL: Duration = Duration::from_secs(10);

/// Pages that may be open at once on one replica.
const MOST_PAGES: usize = 32;

/// The console of one replica.
#[derive(Debug)]
pub struct Console {
    fleet: Mutex<Fleet>,
    /// What open pages show. Its receivers are the open pages.
    shown: watch::Sender<Bytes>,
    opened: Notify,
}

/// What consoles say to each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Control<'a> {
    /// Whoever hears it is to report for a while.
    Call {},
    /// See [`Report`].
    #[serde(borrow)]
    Report(&'a RawValue),
}

impl Console {
    /// A console nobody looks at yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            fleet: Mutex::default(),
            shown: watch::Sender::new(Bytes::new()),
            opened: Notify::new(),
        })
    }

    /// Reports and listens while somebody looks, for ever.
    pub async fn run(
        self: Arc<Self>,
        sampler: Sampler,
        sender: PeerSender,
        heard: mpsc::Receiver<Bytes>,
    ) {
        let (say, to_say) = watch::channel(Said::default());
        // What is sent may wait for Redis; what is shown never does.
        tokio::join!(self.look(sampler, say, heard), tell(sender, to_say));
    }

    async fn look(
        &self,
        mut sampler: Sampler,
        say: watch::Sender<Said>,
        mut heard: mpsc::Receiver<Bytes>,
    ) {
        let mut called_until = Instant::now();
        let mut reported: Option<Instant> = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_open = self.shown.receiver_count() > 0;
            let is_wanted = is_open || Instant::now() < called_until;
            tokio::select! {
                () = self.opened.notified() => {
                    if !is_open {
                        if self.with_fleet(|fleet| fleet.has_no_past()) {
                            // What was counted since the last look, some time ago, is no news.
                            sampler.report().await;
                        }
                        ticks.reset_at(soon(reported).into());
                    }
                }
                Some(message) = heard.recv() => match read(&message) {
                    Some(Heard::Call) => {
                        if !is_wanted {
                            ticks.reset_at(soon(reported).into());
                        }
                        called_until = Instant::now() + CALL;
                    }
                    Some(Heard::Report(report)) if is_open => {
                        let now = Instant::now();
                        self.with_fleet(|fleet| {
                            if report.id == sampler.id() {
                                fleet.note_echo(now);
                            } else {
                                fleet.note(*report, now);
                            }
                        });
                    }
                    _ => {}
                },
                _ = ticks.tick(), if is_wanted => {
                    let report = sampler.report().await;
                    reported = Some(Instant::now());
                    say.send_replace(Said {
                        calls: is_open,
                        report: told(&report),
                    });
                    if is_open {
                        self.show(report, sampler.bus_is_up());
                    }
                }
            }
        }
    }

    /// Tells open pages how things are.
    fn show(&self, report: Report, bus_is_up: bool) {
        let (here, now) = (report.id.clone(), Instant::now());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_ms = u64::try_from(unix.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let shown = self.with_fleet(|fleet| {
            fleet.note(report, now);
            fleet.look((&here, bus_is_up), unix_ms, now)
        });
        self.shown.send_replace(feed::event("now", &shown));
    }

    /// Opens a page's feed: what it is shown first, and how it learns of more. `None`: there are
    /// too many.
    fn watch(&self) -> Option<(Bytes, watch::Receiver<Bytes>)> {
        let (past, watch) = self.with_fleet(|fleet| {
            match self.shown.receiver_count() {
                MOST_PAGES.. => return None,
                // A page that is loaded again finds what it had; later, it is old.
                0 => fleet.forget_unless_seen_since(Instant::now().checked_sub(CALL)),
                _ => {}
            }
            Some((fleet.past(), self.shown.subscribe()))
        })?;
        self.opened.notify_one();
        Some((feed::event("past", &past), watch))
    }

    fn with_fleet<T>(&self, of: impl FnOnce(&mut Fleet) -> T) -> T {
        of(&mut self.fleet.lock())
    }
}

/// When to report to somebody new. A replica that was held up finds several calls at once: reports
/// within milliseconds would tell of no time in which anything could have happened.
fn soon(reported: Option<Instant>) -> Instant {
    let now = Instant::now();
    reported.map_or(now, |reported| now.max(reported + TICK / 2))
}

/// What is to be said to all replicas.
#[derive(Debug, Default)]
struct Said {
    /// Whoever hears it is to report too.
    calls: bool,
    report: Vec<u8>,
}

/// Says what is newest, for ever. What Redis does not take in time is old by then, and left out.
async fn tell(sender: PeerSender, mut to_say: watch::Receiver<Said>) {
    while to_say.changed().await.is_ok() {
        let (calls, report) = {
            let said = to_say.borrow_and_update();
            (said.calls, said.report.clone())
        };
        if calls {
            sender.send(call()).await;
        }
        sender.send(report).await;
    }
}

/// A message of another console, or of our own.
enum Heard {
    Call,
    Report(Box<Report>),
}

/// `None`: a message of another kind, or version.
fn read(message: &[u8]) -> Option<Heard> {
    match serde_json::from_slice(message).ok()? {
        Control::Call {} => Some(Heard::Call),
        Control::Report(report) => {
            let report = Report::decode(report.get().as_bytes())?;
            Some(Heard::Report(Box::new(report)))
        }
    }
}

fn call() -> Vec<u8> {
    serde_json::to_vec(&Control::Call {}).unwrap_or_default()
}

fn told(report: &Report) -> Vec<u8> {
    let text = report.encode();
    let report = serde_json::from_slice(&text).map(Control::Report);
    // What was encoded is JSON.
    report
        .and_then(|report| serde_json::to_vec(&report))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written_and_others_are_left_alone() {
        assert!(matches!(read(&call()), Some(Heard::Call)));
        assert!(told(&Report::new()).len() <= crate::bus::MAX_PEER_BYTES);
        let mut report = Report::new();
        report.id = "a".to_owned();
        let Some(Heard::Report(back)) = read(&told(&report)) else {
            panic!("{}", told(&report).escape_ascii());
        };
        assert_eq!(*back, report);
        for other in [
            &b"{\"revoke\":{}}"[..],
            b"{}",
            b"",
            b"\xff",
            b"{\"report\":1}",
        ] {
            assert!(read(other).is_none(), "{}", other.escape_ascii());
        }
        assert!(matches!(
            read(b"{\"call\":{\"added\":1}}"),
            Some(Heard::Call)
        ));
    }
}
