//! How many streams each client has open here, and what the other replicas have yet to be told of it.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::Client;

/// How long a stream waits to be told what its client has on other replicas. Longer, and they count
/// as having nothing of it: a Redis that is slow delays streams, but does not prevent them.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often is asked before a client is refused for what it has elsewhere: a page that is loaded
/// again may be here before the replica it comes from has told that it is gone.
const LOOKS: u32 = 4;

/// The streams of each client. An entry lives as long as its client has one open here; where the
/// others were told of it, until they have been told that it is gone.
#[derive(Debug)]
pub(in crate::http) struct Counts {
    max_per_address: Option<NonZeroUsize>,
    max_per_subject: Option<NonZeroUsize>,
    table: Mutex<Table>,
    /// There is something to tell or to ask.
    stirred: Notify,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Client, Count>,
    /// Changes are for the others, too.
    is_shared: bool,
    /// The others answer.
    has_answers: bool,
    /// Whose count has changed, each once.
    news: VecDeque<Client>,
    /// Streams that wait to be told what their client has elsewhere: what comes during an exchange,
    /// which takes some seconds at the most. The gone ones among them are passed over.
    asked: VecDeque<Asked>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    here: usize,
    /// What the others were told last.
    told: usize,
    /// It is among the news.
    is_news: bool,
}

/// A question what a client has on the other replicas.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) client: Client,
    pub(super) reply: oneshot::Sender<usize>,
}

/// What the other replicas are told, and asked.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Clients, and what they have here now.
    pub(super) news: Vec<(Client, usize)>,
    /// Whose streams elsewhere are of interest. Dropped without a reply, they count as none.
    pub(super) asked: Vec<Asked>,
}

impl Counts {
    pub(in crate::http) fn new(
        max_per_address: Option<NonZeroUsize>,
        max_per_subject: Option<NonZeroUsize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            max_per_address,
            max_per_subject,
            table: Mutex::default(),
            stirred: Notify::new(),
        })
    }

    /// Whether nobody is counted.
    pub(in crate::http) fn is_off(&self) -> bool {
        self.max_per_address.is_none() && self.max_per_subject.is_none()
    }

    fn most(&self, client: &Client) -> Option<NonZeroUsize> {
        match client {
            Client::Address(_) => self.max_per_address,
            Client::Subject(_) => self.max_per_subject,
            Client::Others => None,
        }
    }

    /// One stream more of `client`, or `None` where it has all it may have on all replicas
    /// together. A client without a limit is not counted.
    pub(in crate::http) async fn hold_among_all(
        self: &Arc<Self>,
        client: Client,
    ) -> Option<Option<Hold>> {
        let mut looks = 0;
        loop {
            let elsewhere = self.elsewhere(&client).await;
            looks += 1;
            match self.hold(client.clone(), elsewhere) {
                None if elsewhere > 0 && looks < LOOKS => {}
                held => return held,
            }
        }
    }

    /// What `client` has on other replicas, as far as that matters and can be known.
    async fn elsewhere(&self, client: &Client) -> usize {
        let Some(most) = self.most(client) else {
            return 0;
        };
        let answer = {
            let mut table = self.lock();
            let here = table.clients.get(client).map_or(0, |count| count.here);
            if !table.has_answers || here >= most.get() {
                return 0;
            }
            let (reply, answer) = oneshot::channel();
            let client = client.clone();
            table.asked.push_back(Asked { client, reply });
            answer
        };
        self.stirred.notify_one();
        let answer = timeout(PATIENCE, answer).await;
        answer.ok().and_then(Result::ok).unwrap_or(0)
    }

    /// One stream more of `client`, which has so many elsewhere, or `None` where it has all it may
    /// have. A client without a limit is not counted.
    pub(in crate::http) fn hold(
        self: &Arc<Self>,
        client: Client,
        elsewhere: usize,
    ) -> Option<Option<Hold>> {
        let Some(most) = self.most(&client) else {
            return Some(None);
        };
        let mut table = self.lock();
        let here = table.clients.get(&client).map_or(0, |count| count.here);
        if here.saturating_add(elsewhere) >= most.get() {
            return None;
        }
        if table.change(&client, |count| count.here += 1) {
            self.stirred.notify_one();
        }
        Some(Some(Hold(Box::new((Arc::clone(self), client)))))
    }

    fn release(&self, client: &Client) {
        let less = |count: &mut Count| count.here = count.here.saturating_sub(1);
        if self.lock().change(client, less) {
            self.stirred.notify_one();
        }
    }

    /// Waits until there is something to tell or to ask.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// What to tell and to ask now, of so many clients each at the most; the rest is for the next
    /// time. `everything`: nobody knows anything of this replica.
    pub(super) fn report(&self, everything: bool, most: usize) -> Report {
        let mut table = self.lock();
        if everything {
            table.tell_everything();
        }
        let mut report = Report::default();
        while report.news.len() < most
            && let Some(client) = table.news.pop_front()
        {
            let Some(count) = table.clients.get_mut(&client) else {
                continue;
            };
            let (here, told) = (count.here, count.told);
            (count.told, count.is_news) = (here, false);
            if here == 0 {
                table.clients.remove(&client);
            }
            if here != told {
                report.news.push((client, here));
            }
        }
        while report.asked.len() < most
            && let Some(asked) = table.asked.pop_front()
        {
            if !asked.reply.is_closed() {
                report.asked.push(asked);
            }
        }
        if !table.news.is_empty() || !table.asked.is_empty() {
            self.stirred.notify_one();
        }
        table.shrink();
        report
    }

    /// The others answer: from now on they are asked.
    pub(super) fn be_among_others(&self) {
        self.lock().has_answers = true;
    }

    /// The others cannot be asked: only what is here counts until they can again.
    pub(super) fn stand_alone(&self) {
        let mut table = self.lock();
        (table.is_shared, table.has_answers) = (false, false);
        (table.news, table.asked) = Default::default();
        table.clients.retain(|_, count| {
            (count.told, count.is_news) = (0, false);
            count.here > 0
        });
        table.shrink();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

impl Table {
    /// Changes a client's count. Returns whether the others are to be told of it.
    fn change(&mut self, client: &Client, change: impl FnOnce(&mut Count)) -> bool {
        let count = self.clients.entry(client.clone()).or_default();
        change(count);
        if !self.is_shared {
            if count.here == 0 {
                self.clients.remove(client);
            }
            return false;
        }
        let is_new = !std::mem::replace(&mut count.is_news, true);
        if is_new {
            self.news.push_back(client.clone());
        }
        is_new
    }

    /// All there is becomes news, and whatever changes from now on.
    fn tell_everything(&mut self) {
        self.is_shared = true;
        self.news.clear();
        self.clients.retain(|client, count| {
            (count.told, count.is_news) = (0, count.here > 0);
            if count.is_news {
                self.news.push_back(client.clone());
            }
            count.is_news
        });
    }

    /// Gives memory back after a crowd has left.
    fn shrink(&mut self) {
        if self.clients.len() * 4 < self.clients.capacity() {
            self.clients.shrink_to(self.clients.len() * 2);
        }
        if self.news.is_empty() {
            self.news = VecDeque::new();
        }
        if self.asked.is_empty() {
            self.asked = VecDeque::new();
        }
    }
}

/// One stream of a client, until dropped.
#[derive(Debug)]
pub(in crate::http) struct Hold(Box<(Arc<Counts>, Client)>);

impl Drop for Hold {
    fn drop(&mut self) {
        let (counts, client) = &*self.0;
        counts.release(client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client_address::ClientAddress;
    use futures_util::FutureExt;

    fn counts(per_address: usize) -> Arc<Counts> {
        Counts::new(NonZeroUsize::new(per_address), NonZeroUsize::new(1))
    }

    fn client(address: &str) -> Client {
        Client::of(ClientAddress(address.parse().unwrap()), None)
    }

    fn held(counts: &Arc<Counts>, client: &Client) -> Option<Hold> {
        counts.hold(client.clone(), 0).map(Option::unwrap)
    }

    fn known(counts: &Counts) -> usize {
        counts.lock().clients.len()
    }

    /// Counts that the others know, and that know the others.
    fn shared(per_address: usize) -> Arc<Counts> {
        let counts = counts(per_address);
        counts.report(true, 10);
        counts.be_among_others();
        counts
    }

    fn news(counts: &Counts) -> Vec<(Client, usize)> {
        counts.report(false, 10).news
    }

    #[test]
    fn a_client_has_as_many_streams_as_it_may_and_gets_places_back() {
        let counts = counts(2);
        let one = client("192.0.2.1");
        let first = held(&counts, &one).unwrap();
        let _second = held(&counts, &one).unwrap();
        assert!(held(&counts, &one).is_none());
        let _other = held(&counts, &client("192.0.2.2")).unwrap();
        drop(first);
        let _third = held(&counts, &one).unwrap();
        assert!(held(&counts, &one).is_none());
        let subject = Client::Subject("me".into());
        let _session = held(&counts, &subject).unwrap();
        assert!(held(&counts, &subject).is_none());
    }

    #[tokio::test]
    async fn without_a_limit_nobody_is_counted() {
        let counts = Counts::new(None, None);
        assert!(counts.is_off());
        assert!(matches!(counts.hold(client("192.0.2.1"), 7), Some(None)));
        counts.report(true, 10);
        counts.be_among_others();
        let held = counts.hold_among_all(client("192.0.2.1")).now_or_never();
        assert!(matches!(held, Some(Some(None))));
        assert_eq!(known(&counts), 0);
    }

    /// Opens a stream of a client that is told to have so many elsewhere, as often as it asks.
    async fn opened(counts: &Arc<Counts>, client: &Client, elsewhere: &[usize]) -> Option<Hold> {
        let opening = counts.hold_among_all(client.clone());
        let others = async {
            for elsewhere in elsewhere {
                counts.stirred().await;
                for asked in counts.report(false, 10).asked {
                    assert_eq!(asked.client, *client);
                    asked.reply.send(*elsewhere).unwrap();
                }
            }
        };
        let (held, ()) = tokio::join!(opening, others);
        held.map(Option::unwrap)
    }

    #[tokio::test]
    async fn streams_elsewhere_count() {
        let counts = shared(3);
        let one = client("192.0.2.1");
        let first = opened(&counts, &one, &[1]).await.unwrap();
        assert_eq!(news(&counts), [(one.clone(), 1)]);
        let _second = opened(&counts, &one, &[1]).await.unwrap();
        news(&counts);
        // It is looked again before it is refused.
        assert!(opened(&counts, &one, &[1; LOOKS as usize]).await.is_none());
        let _third = opened(&counts, &one, &[1, 1, 0]).await.unwrap();
        news(&counts);
        // Who has everything here need not ask.
        let refused = counts.hold_among_all(one.clone()).now_or_never();
        assert!(matches!(refused, Some(None)));
        drop(first);
        assert_eq!(news(&counts), [(one, 2)]);
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_counts_as_none() {
        let counts = shared(1);
        let one = client("192.0.2.1");
        let opening = counts.hold_among_all(one.clone());
        let others = async {
            counts.stirred().await;
            drop(counts.report(false, 10));
        };
        let (held, ()) = tokio::join!(opening, others);
        assert!(held.is_some());
    }

    #[test]
    fn who_is_gone_is_told_and_forgotten() {
        let counts = shared(2);
        let one = client("192.0.2.1");
        let hold = held(&counts, &one);
        news(&counts);
        drop(hold);
        assert_eq!(known(&counts), 1, "the others still count it");
        assert_eq!(news(&counts), [(one.clone(), 0)]);
        assert_eq!(known(&counts), 0);
        // Who has come and gone meanwhile is no news.
        for _ in 0..3 {
            drop(held(&counts, &one));
        }
        assert_eq!(counts.lock().news.len(), 1);
        assert_eq!(news(&counts), []);
        assert_eq!(known(&counts), 0);
    }

    #[test]
    fn a_report_is_bounded_and_the_rest_comes_next() {
        let counts = shared(2);
        let hold = |number| held(&counts, &client(&format!("192.0.2.{number}"))).unwrap();
        let holds: Vec<_> = (0..25).map(hold).collect();
        let sizes = |anew: [bool; 4]| anew.map(|anew| counts.report(anew, 10).news.len());
        assert_eq!(sizes([false; 4]), [10, 10, 5, 0]);
        assert_eq!(sizes([true, false, false, false]), [10, 10, 5, 0]);
        drop(holds);
        assert_eq!(sizes([false; 4]), [10, 10, 5, 0]);
        assert_eq!(known(&counts), 0);
    }

    #[test]
    fn alone_a_replica_counts_for_itself() {
        let counts = shared(2);
        let one = client("192.0.2.1");
        let hold = held(&counts, &one).unwrap();
        news(&counts);
        counts.stand_alone();
        let second = counts.hold_among_all(one.clone()).now_or_never();
        let second = second.unwrap().unwrap();
        assert!(held(&counts, &one).is_none());
        drop(second);
        assert_eq!(news(&counts), []);
        // What has changed meanwhile is told as soon as there are others again.
        let report = counts.report(true, 10);
        assert_eq!(report.news, [(one, 1)]);
        counts.stand_alone();
        drop(hold);
        assert_eq!(known(&counts), 0);
    }
}
