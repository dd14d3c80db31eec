//! What was published, what clients must have received of it, and whether they did.
//!
//! Publishers note every attempt in a [`Journal`] before they make it, and the id once they have
//! it. An event is named by the first word of its data, `<channel>/<publisher>/<number>`. So what
//! a client received can be held against what was published, whatever happened in between.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Addresses, Client, Gap, Id, Owed, Seen, key_of, parse_cursor, parse_id};
use crate::support::{DEADLINE, eventually, resident_bytes_of_gateways};

/// Between attempts to publish, while Redis is away.
const PUBLISH_AGAIN: Duration = Duration::from_millis(20);

/// How long Redis may take for an answer, on a machine that is busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a gateway may hold, whatever happens: a debug build, with ten thousand clients.
const MOST_RESIDENT_BYTES: usize = 400 << 20;

/// An attempt to publish an event.
#[derive(Clone, Debug)]
pub struct Record {
    pub channel: String,
    pub publisher: String,
    pub number: usize,
    pub begun: Instant,
    /// `None`: not acknowledged. Clients may have it or not.
    pub id: Option<Id>,
    /// Acknowledged by a primary that was lost with it.
    pub is_lost: bool,
}

impl Record {
    /// The first word of its data.
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.channel, self.publisher, self.number)
    }
}

/// Every attempt to publish.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Vec<Record>>>);

impl Journal {
    /// Everything so far.
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap().clone()
    }

    /// The ids of a channel's acknowledged events, in order.
    pub fn ids(&self, channel: &str) -> Vec<Id> {
        let mut ids: Vec<_> = self
            .records()
            .iter()
            .filter(|record| record.channel == channel)
            .filter_map(|record| record.id)
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Waits until so many more events are acknowledged.
    pub async fn grows(&self, by: usize) {
        let acknowledged = || {
            let records = self.0.lock().unwrap();
            records.iter().filter(|record| record.id.is_some()).count()
        };
        let enough = acknowledged() + by;
        eventually("more events are published", async || {
            acknowledged() >= enough
        })
        .await;
    }

    /// The events of these keys went with their primary: nobody is owed them.
    pub fn lose(&self, keys: &[String]) {
        for record in self.0.lock().unwrap().iter_mut() {
            record.is_lost |= keys.contains(&record.key());
        }
    }

    fn begin(&self, record: Record) -> usize {
        let mut records = self.0.lock().unwrap();
        records.push(record);
        records.len() - 1
    }

    fn acknowledge(&self, number: usize, id: Id) {
        self.0.lock().unwrap()[number].id = Some(id);
    }
}

#[derive(Clone)]
enum Route {
    /// `FCALL` to the Redis of this URL.
    Redis(String),
    /// `POST` to the first of these gateways.
    Gateway(Addresses),
}

/// Publishes kept events and notes them.
pub struct Publisher {
    journal: Journal,
    route: Route,
    connection: Option<MultiplexedConnection>,
    http: reqwest::Client,
    name: String,
    number: usize,
    /// Repeats an attempt that failed, with an idempotency key.
    keyed: bool,
    /// Bytes of each event, at least.
    pub event_bytes: usize,
}

impl Publisher {
    /// With `FCALL`.
    pub fn new(journal: &Journal, name: &str, redis_url: &str) -> Self {
        Self::by(journal, name, Route::Redis(redis_url.to_owned()))
    }

    /// Over HTTP.
    pub fn over_http(journal: &Journal, name: &str, gateways: &Addresses) -> Self {
        Self::by(journal, name, Route::Gateway(gateways.clone()))
    }

    fn by(journal: &Journal, name: &str, route: Route) -> Self {
        Self {
            journal: journal.clone(),
            route,
            connection: None,
            http: reqwest::Client::new(),
            name: name.to_owned(),
            number: 0,
            keyed: false,
            event_bytes: 0,
        }
    }

    /// Repeats an attempt that failed until it is acknowledged, with an idempotency key.
    #[must_use]
    pub fn keyed(mut self) -> Self {
        self.keyed = true;
        self
    }

    /// Publishes one event and returns its key, acknowledged or not.
    pub async fn publish(&mut self, channel: &str) -> String {
        self.number += 1;
        let record = Record {
            channel: channel.to_owned(),
            publisher: self.name.clone(),
            number: self.number,
            begun: Instant::now(),
            id: None,
            is_lost: false,
        };
        let key = record.key();
        let mut data = key.clone();
        if data.len() < self.event_bytes {
            data.push(' ');
            data.extend(std::iter::repeat_n('x', self.event_bytes - data.len()));
        }
        let entry = self.journal.begin(record);
        let end = Instant::now() + DEADLINE;
        loop {
            match self.attempt(channel, &key, &data).await {
                Ok(id) => {
                    self.journal.acknowledge(entry, id);
                    break;
                }
                Err(error) => {
                    self.connection = None;
                    if !self.keyed {
                        break;
                    }
                    assert!(Instant::now() < end, "{key} is not published: {error}");
                    sleep(PUBLISH_AGAIN).await;
                }
            }
        }
        key
    }

    /// Publishes one event, which must be acknowledged, and returns its id.
    pub async fn id(&mut self, channel: &str) -> Id {
        let key = self.publish(channel).await;
        let records = self.journal.records();
        let record = records.iter().rev().find(|record| record.key() == key);
        record.unwrap().id.expect("an acknowledged event")
    }

    /// Publishes so many events, which must be acknowledged, and returns their ids.
    pub async fn ids(&mut self, channel: &str, count: usize) -> Vec<Id> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.id(channel).await);
        }
        ids
    }

    /// Publishes until an event is acknowledged, and returns its key.
    pub async fn acknowledged(&mut self, channel: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let key = self.publish(channel).await;
            let records = self.journal.records();
            if records
                .iter()
                .any(|record| record.id.is_some() && record.key() == key)
            {
                return key;
            }
            assert!(Instant::now() < end, "nothing is acknowledged on {channel}");
            sleep(PUBLISH_AGAIN).await;
        }
    }

    async fn attempt(&mut self, channel: &str, key: &str, data: &str) -> Result<Id, String> {
        match self.route.clone() {
            Route::Redis(url) => {
                if self.connection.is_none() {
                    let client = redis::Client::open(url).unwrap();
                    let config =
                        AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
                    let connection = client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await;
                    self.connection = Some(connection.map_err(|error| error.to_string())?);
                }
                let mut command = redis::cmd("FCALL");
                command.arg("fanfare_publish").arg(1);
                command.arg(format!("sse:{channel}")).arg(data);
                if self.keyed {
                    command.arg("key").arg(key);
                }
                let connection = self.connection.as_mut().unwrap();
                let id: String = command
                    .query_async(connection)
                    .await
                    .map_err(|error| error.to_string())?;
                Ok(parse_id(&id).unwrap())
            }
            Route::Gateway(gateways) => {
                let url = format!("http://{}/events/{channel}", gateways.first());
                let mut request = self.http.post(url).body(data.to_owned());
                if self.keyed {
                    request = request.header("idempotency-key", key);
                }
                let response = request.send().await.map_err(|error| error.to_string())?;
                let (status, body) = (response.status(), response.text().await);
                let body = body.map_err(|error| error.to_string())?;
                if status != 200 {
                    return Err(body);
                }
                let json: serde_json::Value = serde_json::from_str(&body).unwrap();
                let id = json["id"].as_str();
                Ok(parse_id(id.unwrap_or_else(|| panic!("no id: {body}"))).unwrap())
            }
        }
    }

    /// Publishes to these channels in turn, with a pause in between, until the load is stopped.
    pub fn load(mut self, channels: &[&str], pause: Duration) -> Load {
        let channels: Vec<String> = channels.iter().map(|name| (*name).to_owned()).collect();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                for channel in &channels {
                    self.publish(channel).await;
                    sleep(pause).await;
                }
            }
            self
        });
        Load { stop, task }
    }
}

/// A publisher that publishes.
pub struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<Publisher>,
}

impl Load {
    /// Stops it.
    pub async fn stop(self) -> Publisher {
        self.stop.send_replace(true);
        timeout(DEADLINE, self.task)
            .await
            .expect("the publisher stops")
            .unwrap()
    }
}

/// Publishes a last event on each channel, waits until every client has those of its channels,
/// and holds what the clients saw against what was published. `gaps`: the reasons that are allowed for
/// what has happened since a client was last settled.
pub async fn settle(
    journal: &Journal,
    publisher: &mut Publisher,
    clients: &[&Client],
    gaps: &[&str],
) {
    let mut channels: Vec<&String> = clients
        .iter()
        .flat_map(|client| &client.plan.channels)
        .collect();
    channels.sort_unstable();
    channels.dedup();
    let mut last = HashMap::new();
    for channel in channels {
        last.insert(channel, publisher.acknowledged(channel).await);
    }
    let all = clients.iter().map(async |client| {
        for channel in &client.plan.channels {
            client.has(&last[channel]).await;
        }
    });
    join_all(all).await;
    check(journal, clients, gaps);
    for resident in resident_bytes_of_gateways() {
        assert!(
            resident < MOST_RESIDENT_BYTES,
            "memory is bounded: {resident}"
        );
    }
}

/// Holds what the clients saw against what was published.
pub fn check(journal: &Journal, clients: &[&Client], gaps: &[&str]) {
    let mut oracle = Oracle::new(journal);
    for (number, client) in clients.iter().enumerate() {
        oracle.client(number, client, gaps);
    }
    oracle.publishers();
    assert!(
        oracle.faults.is_empty(),
        "{} faults, the first: {:#?}",
        oracle.faults.len(),
        &oracle.faults[..oracle.faults.len().min(12)]
    );
}

struct Oracle {
    records: HashMap<String, Record>,
    /// The ids of acknowledged events, and of the others as far as clients were told.
    ids: HashMap<String, Id>,
    faults: Vec<String>,
}

impl Oracle {
    fn new(journal: &Journal) -> Self {
        let records: HashMap<_, _> = journal
            .records()
            .into_iter()
            .map(|record| (record.key(), record))
            .collect();
        let ids = records
            .iter()
            .filter_map(|(key, record)| Some((key.clone(), record.id?)))
            .collect();
        Self {
            records,
            ids,
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// Ids are unique, and those of each publisher grow in the order in which it published.
    fn publishers(&mut self) {
        let mut by_publisher: BTreeMap<(&str, &str), Vec<(usize, Id)>> = BTreeMap::new();
        let mut owners: HashMap<Id, &String> = HashMap::new();
        let mut faults = Vec::new();
        for (key, id) in &self.ids {
            let record = &self.records[key];
            by_publisher
                .entry((&record.channel, &record.publisher))
                .or_default()
                .push((record.number, *id));
            if let Some(other) = owners.insert(*id, key) {
                faults.push(format!("{key} and {other} have the same id {id:?}"));
            }
        }
        for (publisher, mut published) in by_publisher {
            published.sort_unstable();
            if !published.is_sorted_by(|one, two| one.1 < two.1) {
                faults.push(format!("ids of {publisher:?} do not grow"));
            }
        }
        self.faults.extend(faults);
    }

    fn client(&mut self, number: usize, client: &Client, gaps: &[&str]) {
        let mut log = client.log();
        let who = format!("client {number} of {:?}", client.plan.channels);
        self.streams(&who, &log.seen);
        for gap in &log.gaps[log.judged_gaps..] {
            if !gaps.contains(&gap.reason.as_str()) {
                self.fault(format!("{who}: {gap:?}"));
            }
            if !client.plan.channels.contains(&gap.channel) {
                self.fault(format!(
                    "{who}: a gap of a channel it does not have: {gap:?}"
                ));
            }
        }
        for seen in &log.seen {
            if let Seen::Event { data, .. } = seen {
                let channel = self.records.get(key_of(data)).map(|record| &record.channel);
                match channel {
                    None => self.fault(format!("{who}: never published: {}", key_of(data))),
                    Some(channel) if !client.plan.channels.contains(channel) => {
                        self.fault(format!("{who}: of another channel: {}", key_of(data)));
                    }
                    Some(_) => {}
                }
            }
        }
        let since = match client.plan.owed {
            Owed::SinceOpened => Since::Opened(log.opened),
            Owed::After(id) => Since::After(id),
        };
        for channel in &client.plan.channels {
            self.channel(&who, channel, &log.seen, since);
        }
        log.judged_gaps = log.gaps.len();
    }

    /// On each stream ids only grow, and those of events strictly.
    fn streams(&mut self, who: &str, seen: &[Seen]) {
        let mut newest: Id = (0, 0);
        let mut told_gap = false;
        let mut sent = String::new();
        for (at, seen) in seen.iter().enumerate() {
            let context = || format!("{who}, entry {at} after {newest:?}: {seen:?}");
            match seen {
                Seen::Opened(cursor) => {
                    (newest, told_gap) = ((0, 0), false);
                    sent.clone_from(cursor);
                }
                Seen::Cursor(text) => match parse_cursor(text) {
                    Some((event, position)) => {
                        let is_first = newest == (0, 0) && !told_gap;
                        if is_first && !sent.is_empty() && parse_cursor(&sent).is_some() {
                            // A resumed stream gets its own proven cursor back.
                            if *text != sent {
                                self.faults.push(format!("{} for {sent}", context()));
                            }
                        }
                        if position.unwrap_or(event) < newest {
                            self.faults.push(format!("{} goes back", context()));
                        }
                        newest = newest.max(event).max(position.unwrap_or(event));
                    }
                    None => self.faults.push(format!("{} is no cursor", context())),
                },
                Seen::Event { id: Some(id), .. } => {
                    if *id <= newest {
                        self.faults.push(format!("{} does not grow", context()));
                    }
                    newest = newest.max(*id);
                }
                Seen::Gap { id, .. } => {
                    told_gap = true;
                    if id.is_some_and(|id| id < newest) {
                        self.faults.push(format!("{} goes back", context()));
                    }
                    newest = newest.max(id.unwrap_or_default());
                }
                Seen::Event { id: None, .. } | Seen::Nothing | Seen::Closed => {}
            }
        }
    }

    /// Of one channel: everything owed once, in order, or a gap in its place.
    fn channel(&mut self, who: &str, channel: &str, seen: &[Seen], since: Since) {
        let mut received: Vec<Id> = Vec::new();
        // Between which received ids a gap was told.
        let mut gaps: Vec<(Id, &Gap)> = Vec::new();
        for seen in seen {
            match seen {
                Seen::Event { id, data } => {
                    let key = key_of(data);
                    if self.records.get(key).map(|record| record.channel.as_str()) != Some(channel)
                    {
                        continue;
                    }
                    let known = match (self.ids.get(key), id) {
                        (Some(known), _) => *known,
                        (None, Some(id)) => *self.ids.entry(key.to_owned()).or_insert(*id),
                        (None, None) => {
                            self.fault(format!("{who}: {key} has no id, and was no late one"));
                            continue;
                        }
                    };
                    if id.is_some_and(|id| id != known) {
                        self.fault(format!("{who}: {key} has {id:?} and {known:?}"));
                    }
                    if received.last().is_some_and(|last| known <= *last) {
                        let last = received.last();
                        self.fault(format!("{who}: {key} ({known:?}) after {last:?}"));
                    }
                    received.push(known);
                }
                Seen::Gap { gap, .. } if gap.channel == channel => {
                    gaps.push((received.last().copied().unwrap_or_default(), gap));
                }
                _ => {}
            }
        }
        // Where the order is at fault, that is told already.
        received.sort_unstable();
        let mut missing: Vec<_> = self
            .records
            .values()
            .filter(|record| record.channel == channel && !record.is_lost)
            .filter_map(|record| Some((record.id?, record)))
            .filter(|(id, record)| match since {
                Since::Opened(opened) => opened.is_some_and(|opened| record.begun > opened),
                Since::After(after) => *id > after,
            })
            .filter(|(id, _)| received.binary_search(id).is_err())
            .filter(|(id, _)| {
                // A gap stands for what is missing between its neighbours.
                !gaps.iter().any(|(before, _)| {
                    let next = received.iter().find(|received| *received > before);
                    before < id && next.is_none_or(|next| id < next)
                })
            })
            .map(|(id, record)| {
                let place = around(seen, id);
                format!("{} ({id:?}), where it saw {place}", record.key())
            })
            .collect();
        missing.sort_unstable();
        if !missing.is_empty() {
            let shown = &missing[..missing.len().min(2)];
            let text = format!(
                "{who}: {} of {channel} missing: {shown:?}; received {}, gaps {gaps:?}",
                missing.len(),
                received.len()
            );
            self.fault(text);
        }
    }
}

/// What a client saw where an event of this id is missing.
fn around(seen: &[Seen], id: Id) -> String {
    let is_after = |seen: &Seen| matches!(seen, Seen::Event { id: Some(other), .. } if *other > id);
    let at = seen.iter().position(is_after).unwrap_or(seen.len());
    let shown = at.saturating_sub(8)..seen.len().min(at + 4);
    let shown: Vec<_> = seen[shown]
        .iter()
        .map(|seen| match seen {
            Seen::Event { id, data } => format!("{} {id:?}", key_of(data)),
            other => format!("{other:?}"),
        })
        .collect();
    shown.join(", ")
}

#[derive(Clone, Copy)]
enum Since {
    Opened(Option<Instant>),
    After(Id),
}
