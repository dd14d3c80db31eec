//! How many streams each client has open, here and elsewhere.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Client;

/// The streams of each client. An entry lives as long as its client has one open here; where the
/// others were told of it, until they know that it is gone.
#[derive(Debug)]
pub(in crate::http) struct Counts {
    max_per_address: Option<NonZeroUsize>,
    max_per_subject: Option<NonZeroUsize>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Client, Count>,
    /// Who has all there is by what the other replicas say, as they write it: at most what each of
    /// them tells in an exchange.
    full_elsewhere: HashSet<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    here: usize,
    /// What the other replicas had when they were asked last.
    elsewhere: usize,
    /// What the others were told last.
    told: usize,
    /// It was refused for what others have: worth asking them again.
    is_refused: bool,
}

impl Count {
    /// The others do not know yet what is here.
    fn is_news(&self) -> bool {
        self.here != self.told
    }

    /// It says nothing that is not so without it. Clients that come and go between two exchanges
    /// take no room.
    fn is_nothing(&self) -> bool {
        self.here == 0 && self.told == 0 && self.elsewhere == 0
    }
}

/// What the other replicas are told, and asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Clients, and what they have here now.
    pub(super) news: Vec<(Client, usize)>,
    /// Clients whose streams elsewhere are of interest.
    pub(super) asked: Vec<Client>,
    /// Clients that have streams here and, with those elsewhere, all they may have.
    pub(super) full: Vec<Client>,
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
        })
    }

    /// Whether nobody is counted.
    pub(in crate::http) fn is_off(&self) -> bool {
        self.max_per_address.is_none() && self.max_per_subject.is_none()
    }

    /// One stream more of `client`, or `None` where it has all it may have. A client without a
    /// limit is not counted.
    pub(in crate::http) fn hold(self: &Arc<Self>, client: Client) -> Option<Option<Hold>> {
        let Some(most) = self.most(&client) else {
            return Some(None);
        };
        let mut table = self.lock();
        if !table.full_elsewhere.is_empty() && table.full_elsewhere.contains(&client.to_string()) {
            return None;
        }
        let count = table.clients.entry(client.clone()).or_default();
        if count.here + count.elsewhere >= most.get() {
            count.is_refused = true;
            return None;
        }
        count.here += 1;
        Some(Some(Hold(Box::new((Arc::clone(self), client)))))
    }

    fn most(&self, client: &Client) -> Option<NonZeroUsize> {
        match client {
            Client::Address(_) => self.max_per_address,
            Client::Subject(_) => self.max_per_subject,
            Client::Others => None,
        }
    }

    fn release(&self, client: &Client) {
        let mut table = self.lock();
        if let Some(count) = table.clients.get_mut(client) {
            count.here = count.here.saturating_sub(1);
            if count.is_nothing() {
                table.clients.remove(client);
            }
        }
    }

    /// What to tell and to ask now, of so many clients at the most; the rest is for the next time.
    /// `everything`: nobody knows anything of this replica.
    pub(super) fn report(&self, everything: bool, most: usize) -> Report {
        let mut table = self.lock();
        let mut report = Report::default();
        for (client, count) in &mut table.clients {
            if everything {
                count.told = 0;
            }
            let is_full = count.here > 0
                && self
                    .most(client)
                    .is_some_and(|most| count.here + count.elsewhere >= most.get());
            if is_full && report.full.len() < most {
                report.full.push(client.clone());
            }
            if report.news.len().max(report.asked.len()) >= most {
                continue;
            }
            let is_news = count.is_news();
            count.told = count.here;
            let is_refused = std::mem::take(&mut count.is_refused);
            if is_news {
                report.news.push((client.clone(), count.here));
            }
            // Who is full is refused by all: what is known of it has to be of now.
            if (is_news && count.here > 0) || is_refused || is_full {
                report.asked.push(client.clone());
            }
        }
        report
    }

    /// Takes what the others have of the clients that were asked for, and forgets who is of no
    /// interest any more.
    pub(super) fn learn(&self, asked: &[Client], elsewhere: &[usize], full: HashSet<String>) {
        let mut table = self.lock();
        table.full_elsewhere = full;
        for (client, elsewhere) in asked.iter().zip(elsewhere) {
            if let Some(count) = table.clients.get_mut(client) {
                count.elsewhere = *elsewhere;
            }
        }
        let is_full = |client: &Client, count: &Count| {
            let most = self.most(client);
            most.is_some_and(|most| count.elsewhere >= most.get())
        };
        let asked_now: HashSet<_> = asked.iter().collect();
        table.clients.retain(|client, count| {
            count.here > 0
                || count.is_news()
                || count.is_refused
                || (asked_now.contains(client) && is_full(client, count))
        });
        table.shrink();
    }

    /// The others cannot be asked: only what is here counts until they can again.
    pub(super) fn stand_alone(&self) {
        let mut table = self.lock();
        table.full_elsewhere = HashSet::new();
        table.clients.retain(|_, count| {
            (count.elsewhere, count.told) = (0, 0);
            count.here > 0
        });
        table.shrink();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn shrink(&mut self) {
        if self.clients.len() * 4 < self.clients.capacity() {
            self.clients.shrink_to(self.clients.len() * 2);
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

    fn counts(per_address: usize) -> Arc<Counts> {
        Counts::new(NonZeroUsize::new(per_address), NonZeroUsize::new(1))
    }

    fn client(address: &str) -> Client {
        Client::of(ClientAddress(address.parse().unwrap()), None)
    }

    fn held(counts: &Arc<Counts>, client: &Client) -> Option<Hold> {
        counts.hold(client.clone()).map(Option::unwrap)
    }

    fn known(counts: &Counts) -> usize {
        counts.lock().clients.len()
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

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let counts = Counts::new(None, None);
        assert!(counts.is_off());
        assert!(matches!(counts.hold(client("192.0.2.1")), Some(None)));
        assert_eq!(known(&counts), 0);
    }

    #[test]
    fn streams_elsewhere_count_once_they_are_known() {
        let counts = counts(3);
        let one = client("192.0.2.1");
        let mut holds = vec![held(&counts, &one).unwrap()];
        let report = counts.report(false, 10);
        assert_eq!(report.news, [(one.clone(), 1)]);
        assert_eq!(report.asked, std::slice::from_ref(&one));
        counts.learn(&report.asked, &[1], HashSet::new());
        holds.push(held(&counts, &one).unwrap());
        assert!(held(&counts, &one).is_none());
        // It is asked for again because it was refused, and because it has changed.
        let report = counts.report(false, 10);
        assert_eq!((report.news.len(), report.asked.len()), (1, 1));
        counts.learn(&report.asked, &[0], HashSet::new());
        holds.push(held(&counts, &one).unwrap());
        // It has all there is now, which the others are to know; nothing else is said twice.
        counts.report(false, 10);
        let report = counts.report(false, 10);
        assert_eq!((report.news.len(), report.asked.len()), (0, 1));
        assert_eq!(report.full, [one]);
    }

    #[test]
    fn a_client_that_has_all_elsewhere_is_refused_here_until_that_changes() {
        let counts = counts(2);
        let one = client("192.0.2.1");
        let hold = held(&counts, &one).unwrap();
        let report = counts.report(false, 10);
        counts.learn(&report.asked, &[2], HashSet::new());
        drop(hold);
        assert!(held(&counts, &one).is_none());
        for _ in 0..3 {
            let report = counts.report(false, 10);
            assert_eq!(report.asked, std::slice::from_ref(&one));
            counts.learn(&report.asked, &[2], HashSet::new());
            assert!(held(&counts, &one).is_none());
        }
        let report = counts.report(false, 10);
        counts.learn(&report.asked, &[1], HashSet::new());
        assert!(held(&counts, &one).is_some());
    }

    #[test]
    fn who_is_gone_is_told_and_forgotten() {
        let counts = counts(2);
        drop(held(&counts, &client("192.0.2.1")));
        assert_eq!(known(&counts), 0, "nobody was told");
        let hold = held(&counts, &client("192.0.2.1"));
        counts.report(false, 10);
        counts.learn(&[], &[], HashSet::new());
        drop(hold);
        assert_eq!(known(&counts), 1, "the others still count it");
        let report = counts.report(false, 10);
        assert_eq!(report.news, [(client("192.0.2.1"), 0)]);
        assert!(report.asked.is_empty());
        counts.learn(&[], &[], HashSet::new());
        assert_eq!(known(&counts), 0);
    }

    #[test]
    fn who_comes_and_goes_between_two_exchanges_takes_no_room() {
        let counts = counts(2);
        counts.report(false, 10);
        for number in 0..100 {
            drop(held(&counts, &client(&format!("192.0.2.{number}"))));
        }
        assert_eq!(known(&counts), 0);
        assert_eq!(counts.report(false, 10), Report::default());
    }

    #[test]
    fn a_report_is_bounded_and_the_rest_comes_next() {
        let counts = counts(2);
        let holds: Vec<_> = (0..25)
            .map(|number| held(&counts, &client(&format!("192.0.2.{number}"))))
            .collect();
        let sizes: Vec<_> = (0..4)
            .map(|_| counts.report(false, 10).news.len())
            .collect();
        assert_eq!(sizes, [10, 10, 5, 0]);
        let sizes: Vec<_> = [true, false, false, false]
            .map(|anew| counts.report(anew, 10).news.len())
            .into();
        assert_eq!(sizes, [10, 10, 5, 0]);
        drop(holds);
    }

    #[test]
    fn alone_a_replica_counts_for_itself() {
        let counts = counts(2);
        let one = client("192.0.2.1");
        let hold = held(&counts, &one).unwrap();
        let report = counts.report(false, 10);
        counts.learn(&report.asked, &[5], HashSet::new());
        assert!(held(&counts, &one).is_none());
        counts.stand_alone();
        let second = held(&counts, &one).unwrap();
        assert!(held(&counts, &one).is_none());
        drop((hold, second));
        assert_eq!(known(&counts), 0);
    }

    #[test]
    fn who_is_full_elsewhere_is_refused_where_it_has_nothing() {
        let counts = counts(2);
        let one = client("192.0.2.1");
        assert!(held(&counts, &one).is_some());
        counts.learn(&[], &[], HashSet::from([one.to_string()]));
        assert!(held(&counts, &one).is_none());
        assert!(held(&counts, &client("192.0.2.2")).is_some());
        assert_eq!(known(&counts), 0);
        counts.learn(&[], &[], HashSet::new());
        assert!(held(&counts, &one).is_some());
        counts.learn(&[], &[], HashSet::from([one.to_string()]));
        counts.stand_alone();
        assert!(held(&counts, &one).is_some());
    }
}
