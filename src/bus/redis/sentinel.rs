//! Which Redis is the primary, by the word of Sentinels.
//!
//! Each Sentinel has a task that asks it every few seconds, and at once when it announces a
//! failover (`+switch-master`) or somebody looks for the primary. The primary is the server that
//! more than half of all Sentinels name: one that is cut off from the others, together with a
//! primary that was replaced, convinces nobody. ([Redis Sentinel](https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/),
//! [client guidelines](https://redis.io/docs/latest/develop/reference/sentinel-clients/))

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::{Client, ConnectionInfo, ProtocolVersion, PushInfo, RedisResult};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::connect::{CONNECT_DEADLINE, connection_config, connection_info};
use crate::config::SentinelGroup;
use crate::tasks::Tasks;

/// How often a Sentinel is asked, at the least, and how soon one that did not answer is again.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// How long somebody who looks for the primary waits for the Sentinels' answers: connecting, and
/// asking.
const FIND_DEADLINE: Duration = CONNECT_DEADLINE.saturating_add(Duration::from_secs(1));

/// Host and port of a server, as Sentinels name it.
type Address = (String, u16);

/// What a Sentinel has said.
#[derive(Clone, Debug, Default)]
struct Word {
    /// Whom it named last, and when it was asked.
    named: Option<(Address, Instant)>,
    /// Why the last question led to nothing.
    fault: Option<String>,
}

/// Sentinels that are asked. The tasks end with the last clone.
#[derive(Clone)]
pub(super) struct Sentinels {
    group: Arc<ArcSwap<SentinelGroup>>,
    words: watch::Receiver<Vec<Word>>,
    ask: Arc<watch::Sender<()>>,
    lag_bound: Duration,
}

/// Why no primary is known.
#[derive(Debug, thiserror::Error)]
#[error(
    "{agreeing} of {all} Sentinels name the same primary {name:?}, more than half have to: {reasons}"
)]
pub(super) struct NoPrimary {
    agreeing: usize,
    all: usize,
    name: String,
    reasons: String,
}

/// Why a primary is to be left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Distrust {
    #[error("Sentinels name another primary, {}:{}", .0.0, .0.1)]
    Replaced(Address),
    #[error("too few Sentinels have confirmed the primary within {0:?}, the replication-lag bound")]
    Unconfirmed(Duration),
}

impl Sentinels {
    /// Begins to ask them.
    pub(super) fn start(
        group: Arc<ArcSwap<SentinelGroup>>,
        lag_bound: Duration,
        tasks: &mut Tasks,
    ) -> Self {
        let count = group.load().sentinels.len();
        let (words_sender, words) = watch::channel(vec![Word::default(); count]);
        let words_sender = Arc::new(words_sender);
        let (ask, asked) = watch::channel(());
        for number in 0..count {
            let sentinel = Sentinel {
                number,
                group: Arc::clone(&group),
                // Several times within the bound.
                interval: ASK_INTERVAL.min(lag_bound / 4),
                words: Arc::clone(&words_sender),
                asked: asked.clone(),
            };
            tasks.spawn("the watch over a Sentinel", sentinel.run());
        }
        Self {
            group,
            words,
            ask: Arc::new(ask),
            lag_bound,
        }
    }

    /// Asks all Sentinels now. Returns how to reach the primary, and what watches over it.
    pub(super) async fn find(&self) -> Result<(ConnectionInfo, Confirmation), NoPrimary> {
        let since = Instant::now();
        let mut words = self.words.clone();
        self.ask.send_replace(());
        let found = words.wait_for(|words| majority(words).is_some_and(|(_, at)| at >= since));
        let (address, confirmed_at) = match timeout_at(since + FIND_DEADLINE, found).await {
            Ok(Ok(words)) => majority(&words).map(|(address, at)| (address.clone(), at)),
            _ => None,
        }
        .ok_or_else(|| self.no_primary(since))?;
        let info = self.group.load().primary_at(&address.0, address.1);
        let confirmation = Confirmation {
            address,
            confirmed_at,
            lag_bound: self.lag_bound,
            words,
        };
        Ok((info, confirmation))
    }

    fn no_primary(&self, since: Instant) -> NoPrimary {
        let group = self.group.load();
        let words = self.words.borrow();
        let mut reasons = Vec::new();
        let mut named: Vec<&Address> = Vec::new();
        for (info, word) in group.sentinels.iter().zip(words.iter()) {
            reasons.push(match (&word.fault, &word.named) {
                (Some(fault), _) => format!("{}: {fault}", info.addr()),
                (None, Some((address, at))) if *at >= since => {
                    named.push(address);
                    format!("{} names {}:{}", info.addr(), address.0, address.1)
                }
                _ => format!("{} does not answer", info.addr()),
            });
        }
        let count = |address: &Address| named.iter().filter(|other| **other == address).count();
        NoPrimary {
            agreeing: named
                .iter()
                .map(|address| count(address))
                .max()
                .unwrap_or(0),
            all: words.len(),
            name: group.name.clone(),
            reasons: reasons.join(", "),
        }
    }
}

/// Whom more than half of all Sentinels name, and when the last of the least number that this
/// takes was asked.
fn majority(words: &[Word]) -> Option<(&Address, Instant)> {
    let enough = words.len() / 2;
    words.iter().find_map(|word| {
        let (address, _) = word.named.as_ref()?;
        let mut asked: Vec<Instant> = words
            .iter()
            .filter_map(|word| word.named.as_ref())
            .filter(|(other, _)| other == address)
            .map(|(_, at)| *at)
            .collect();
        asked.sort_unstable_by(|one, two| two.cmp(one));
        asked.get(enough).map(|at| (address, *at))
    })
}

/// Watches over a primary that is connected to.
pub(super) struct Confirmation {
    address: Address,
    /// When the Sentinels were asked that named it last.
    confirmed_at: Instant,
    lag_bound: Duration,
    words: watch::Receiver<Vec<Word>>,
}

impl Confirmation {
    /// Looks at what the Sentinels say.
    ///
    /// # Errors
    /// When the primary is to be left: it was replaced, or could have been for as long as the
    /// lag bound.
    pub(super) fn check(&mut self, now: Instant) -> Result<(), Distrust> {
        // Whether they are new or not: whoever waits in [`Self::stirs`] has taken note of them.
        if let Some((address, at)) = majority(&self.words.borrow_and_update()) {
            if *address != self.address {
                return Err(Distrust::Replaced(address.clone()));
            }
            self.confirmed_at = self.confirmed_at.max(at);
        }
        if now.saturating_duration_since(self.confirmed_at) >= self.lag_bound {
            return Err(Distrust::Unconfirmed(self.lag_bound));
        }
        Ok(())
    }

    /// Waits until it is worth looking again.
    pub(super) async fn stirs(&mut self) {
        tokio::select! {
            // Where nobody asks any more, nobody confirms.
            Ok(()) = self.words.changed() => {}
            () = sleep_until(self.confirmed_at + self.lag_bound) => {}
        }
    }
}

/// One Sentinel.
struct Sentinel {
    /// Its place in the group.
    number: usize,
    group: Arc<ArcSwap<SentinelGroup>>,
    interval: Duration,
    words: Arc<watch::Sender<Vec<Word>>>,
    asked: watch::Receiver<()>,
}

impl Sentinel {
    /// Asks it until nobody wants to know any more.
    async fn run(mut self) {
        let words = Arc::clone(&self.words);
        tokio::select! {
            () = words.closed() => {}
            () = self.ask_for_ever() => {}
        }
    }

    async fn ask_for_ever(&mut self) {
        loop {
            if let Err(error) = self.converse().await {
                self.note(|word| word.fault = Some(error.to_string()));
            }
            tokio::select! {
                () = sleep(self.interval) => {}
                _ = self.asked.changed() => {}
            }
        }
    }

    /// One connection, to its end.
    async fn converse(&mut self) -> RedisResult<()> {
        let stirred = Arc::new(Notify::new());
        let sender = {
            let stirred = Arc::clone(&stirred);
            // An announcement, or the end of the connection, which the next question finds.
            move |_: PushInfo| {
                stirred.notify_one();
                Ok::<(), std::convert::Infallible>(())
            }
        };
        // As it is to be greeted now: passwords may have changed.
        let group = self.group.load_full();
        let Some(info) = group.sentinels.get(self.number) else {
            return Ok(());
        };
        let client = Client::open(connection_info(info, ProtocolVersion::RESP3))?;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(
                &connection_config().set_push_sender(sender),
            )
            .await?;
        connection.subscribe("+switch-master").await?;
        loop {
            self.asked.mark_unchanged();
            let at = Instant::now();
            let named: Option<Address> = redis::cmd("SENTINEL")
                .arg(&["get-master-addr-by-name", &group.name])
                .query_async(&mut connection)
                .await?;
            self.note(|word| {
                word.fault = match named {
                    Some(_) => None,
                    None => Some("it knows no primary of this name".into()),
                };
                word.named = named.map(|address| (address, at));
            });
            tokio::select! {
                () = sleep(self.interval) => {}
                () = stirred.notified() => {}
                _ = self.asked.changed() => {}
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Word)) {
        self.words.send_modify(|words| {
            if let Some(word) = words.get_mut(self.number) {
                change(word);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG: Duration = Duration::from_secs(60);

    fn words(now: Instant, named: &[Option<(&str, u64)>]) -> Vec<Word> {
        let word = |named: &Option<(&str, u64)>| Word {
            named: named
                .map(|(host, after)| ((host.to_owned(), 6379), now + Duration::from_secs(after))),
            fault: None,
        };
        named.iter().map(word).collect()
    }

    fn named(now: Instant, all: &[Option<(&str, u64)>]) -> Option<(String, u64)> {
        let words = words(now, all);
        let (address, at) = majority(&words)?;
        Some((address.0.clone(), at.duration_since(now).as_secs()))
    }

    #[test]
    fn more_than_half_of_all_have_to_agree() {
        let now = Instant::now();
        let is = |host: &str, after| Some((host.to_owned(), after));
        assert_eq!(named(now, &[Some(("a", 1))]), is("a", 1));
        assert_eq!(named(now, &[Some(("a", 1)), None]), None);
        assert_eq!(
            named(now, &[None, Some(("a", 3)), Some(("a", 2))]),
            is("a", 2)
        );
        let split = [Some(("a", 9)), Some(("b", 1)), Some(("b", 2))];
        assert_eq!(named(now, &split), is("b", 1));
        let torn = [
            Some(("a", 1)),
            Some(("a", 1)),
            Some(("b", 1)),
            Some(("b", 1)),
        ];
        assert_eq!(named(now, &torn), None);
        // The one that was not heard of for long does not count where two others were.
        let all = [Some(("a", 0)), Some(("a", 7)), Some(("a", 8))];
        assert_eq!(named(now, &all), is("a", 7));
    }

    fn watched(now: Instant, words: Vec<Word>) -> (watch::Sender<Vec<Word>>, Confirmation) {
        let (sender, receiver) = watch::channel(words);
        let confirmation = Confirmation {
            address: ("a".into(), 6379),
            confirmed_at: now,
            lag_bound: LAG,
            words: receiver,
        };
        (sender, confirmation)
    }

    #[test]
    fn a_primary_that_is_not_confirmed_any_more_is_left_within_the_bound() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let first = words(now, &[Some(("a", 0)), Some(("a", 0)), None]);
        let (sender, mut confirmation) = watched(now, first);
        assert!(confirmation.check(at(59)).is_ok());
        // One alone confirms nothing, however often it is asked.
        sender.send_replace(words(now, &[Some(("a", 50)), Some(("a", 10)), None]));
        assert!(confirmation.check(at(69)).is_ok());
        let left = confirmation.check(at(70));
        assert!(matches!(left, Err(Distrust::Unconfirmed(LAG))), "{left:?}");
    }

    #[test]
    fn a_primary_that_was_replaced_is_left_at_once() {
        let now = Instant::now();
        let (sender, mut confirmation) = watched(now, words(now, &[Some(("a", 0)); 3]));
        let split = [Some(("a", 1)), Some(("b", 1)), Some(("a", 0))];
        sender.send_replace(words(now, &split));
        assert!(confirmation.check(now).is_ok());
        let agreed = [Some(("a", 1)), Some(("b", 1)), Some(("b", 1))];
        sender.send_replace(words(now, &agreed));
        let left = confirmation.check(now);
        assert!(matches!(left, Err(Distrust::Replaced((host, _))) if host == "b"));
    }

    /// As a session does it.
    #[tokio::test]
    async fn what_stirs_is_looked_at() {
        let now = Instant::now();
        let (sender, mut confirmation) = watched(now, words(now, &[Some(("a", 0)); 3]));
        for seconds in [40, 80, 120] {
            sender.send_replace(words(now, &[Some(("a", seconds)); 3]));
            confirmation.stirs().await;
            let at = now + Duration::from_secs(seconds + 30);
            assert!(confirmation.check(at).is_ok(), "after {seconds} s");
        }
        sender.send_replace(words(now, &[Some(("b", 121)); 3]));
        confirmation.stirs().await;
        let left = confirmation.check(now);
        assert!(matches!(left, Err(Distrust::Replaced((host, _))) if host == "b"));
        // Nobody says anything any more: the bound stirs.
        drop(sender);
        (confirmation.confirmed_at, confirmation.lag_bound) = (now, Duration::from_millis(1));
        confirmation.stirs().await;
        assert!(now.elapsed() >= confirmation.lag_bound);
    }
}
