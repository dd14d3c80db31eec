//! Kept events while things break: connections, replicas, Redis itself.
//!
//! Every test holds what its clients saw against what was published (see `support/oracle.rs`):
//! nothing acknowledged is missing, nothing comes twice or out of order, and a `$gap` comes only
//! where the fault allows it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

#[path = "../support/client.rs"]
mod client;
#[path = "../support/oracle.rs"]
mod oracle;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/sentinel.rs"]
mod sentinel;
#[path = "../support/mod.rs"]
mod support;

mod failover;

use std::time::Duration;

use client::{Addresses, Client, Plan};
use oracle::{Journal, Publisher, settle};
use proxy::Proxy;
use support::{Gateway, Redis, eventually, test_within};

/// What a test may take as a whole.
const MINUTE: Duration = Duration::from_secs(60);

/// Between the events of a publisher under load.
const PAUSE: Duration = Duration::from_millis(2);

const VARIABLES: &[(&str, &str)] = &[
    ("FANFARE_HEARTBEAT", "500ms"),
    ("FANFARE_SHARDS", "2"),
    // No test here is about trimming, except where it says so.
    ("FANFARE_HISTORY_LENGTH", "20000"),
];

async fn open(addresses: &Addresses, channels: &[&str]) -> Client {
    Plan::new(addresses, channels).open().await
}

/// Two clients of one channel each, and some of both.
async fn clients_of_two_channels(addresses: &Addresses) -> Vec<Client> {
    let mut clients = Vec::new();
    let all: [&[&str]; 6] = [
        &["a"],
        &["b"],
        &["a", "b"],
        &["b", "a"],
        &["a", "b"],
        &["a"],
    ];
    for (number, channels) in all.into_iter().enumerate() {
        let mut plan = Plan::new(addresses, channels);
        plan.first_address = number;
        clients.push(plan.open().await);
    }
    clients
}

fn refs(clients: &[Client]) -> Vec<&Client> {
    clients.iter().collect()
}

#[tokio::test]
async fn a_subscriber_connection_killed_a_hundred_times_costs_no_event() {
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        let mut kills = 0;
        for round in 0.. {
            // Now and then the next connection goes too, before it has caught up.
            if round % 4 != 3 {
                gateway.ready().await;
            }
            kills += redis
                .command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"])
                .await;
            if kills >= 100 {
                break;
            }
            // The last three come and go meanwhile.
            clients[3 + round % 3].cut();
        }
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
        assert!(gateway.metric("fanfare_backfilled_events_total").await > 0.0);
    })
    .await;
}

#[tokio::test]
async fn clients_go_on_at_another_replica_when_theirs_is_killed() {
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let mut gateways = [
            Gateway::behind(&redis, VARIABLES).await,
            Gateway::behind(&redis, VARIABLES).await,
        ];
        let addresses = Addresses::of(&[&gateways[0], &gateways[1]]);
        let mut clients = clients_of_two_channels(&addresses).await;
        clients.extend(clients_of_two_channels(&addresses).await);
        let journal = Journal::default();
        // As fast as they can: resuming races with what is under way to the replica.
        let loads = ["p", "q", "r"].map(|name| {
            Publisher::new(&journal, name, &redis.url()).load(&["a", "b"], Duration::ZERO)
        });
        for round in 0..8 {
            journal.grows(300).await;
            let gateway = &mut gateways[round % 2];
            gateway.process.signal("KILL");
            gateway.process.ended().await;
            journal.grows(100).await;
            *gateway = Gateway::behind(&redis, VARIABLES).await;
            addresses.replace(round % 2, gateway);
            // Half of those who are there come to the new one, which knows nothing yet.
            for client in &clients[6..] {
                client.cut();
            }
        }
        let [load, others @ ..] = loads;
        for other in others {
            other.stop().await;
        }
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        for client in &clients {
            assert!(client.log().streams >= 8, "{}", client.summary());
        }
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_persists_every_event_is_killed_without_a_gap() {
    test_within(MINUTE, async {
        let options = [("--appendonly", "yes"), ("--appendfsync", "always")];
        let mut redis = Redis::start_with(&options).await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let away = open(&Addresses::of(&[&gateway]), &["a", "b"]).await;
        let journal = Journal::default();
        let mut load = Publisher::new(&journal, "p", &redis.url())
            .keyed()
            .load(&["a", "b"], PAUSE);
        for round in 0..4 {
            journal.grows(150).await;
            away.leave().await;
            redis.kill().await;
            clients[3].cut();
            redis.restart().await;
            gateway.ready().await;
            journal.grows(50).await;
            away.come_back();
            if round % 2 == 1 {
                // What comes back finds nothing new to be told of.
                let publisher = load.stop().await;
                clients[4].cut();
                load = publisher.load(&["a", "b"], PAUSE);
            }
        }
        let mut publisher = load.stop().await;
        let mut all = refs(&clients);
        all.push(&away);
        settle(&journal, &mut publisher, &all, &[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_forgets_everything_is_told_to_every_client() {
    test_within(MINUTE, async {
        let mut redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let other = Gateway::behind(&redis, VARIABLES).await;
        let addresses = Addresses::of(&[&gateway, &other]);
        let clients = clients_of_two_channels(&addresses).await;
        let early = open(&addresses, &["a", "b"]).await;
        let late = open(&addresses, &["a", "b"]).await;
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        for _ in 0..2 {
            for channel in ["a", "b"] {
                publisher.ids(channel, 20).await;
            }
            let mut all = refs(&clients);
            let leaves = early.log().is_open();
            if leaves {
                all.extend([&early, &late]);
            }
            settle(&journal, &mut publisher, &all, &[]).await;
            early.leave().await;
            late.leave().await;
        }
        redis.kill().await;
        redis.restart().await;
        gateway.ready().await;
        other.ready().await;
        // One comes back to an empty Redis, one when there are new events.
        early.come_back();
        early
            .until("a gap of both", |log| log.gaps.len() >= 2)
            .await;
        for channel in ["a", "b"] {
            publisher.acknowledged(channel).await;
        }
        late.come_back();
        let mut all = refs(&clients);
        all.extend([&early, &late]);
        settle(&journal, &mut publisher, &all, &["rewound"]).await;
        for client in all {
            for channel in &client.plan.channels {
                let log = client.log();
                let count = log
                    .gaps
                    .iter()
                    .filter(|gap| gap.channel == *channel)
                    .count();
                assert_eq!(count, 1, "one gap of {channel}: {:?}", log.gaps);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn flushall_is_told_to_those_who_are_there_and_those_who_come_back() {
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let addresses = Addresses::of(&[&gateway]);
        let there = open(&addresses, &["a"]).await;
        let both = open(&addresses, &["a", "b"]).await;
        let back_at_once = open(&addresses, &["a"]).await;
        let back_later = open(&addresses, &["a", "b"]).await;
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        publisher.ids("a", 5).await;
        publisher.ids("b", 5).await;
        let all = [&there, &both, &back_at_once, &back_later];
        settle(&journal, &mut publisher, &all, &[]).await;
        back_at_once.leave().await;
        back_later.leave().await;
        let _: String = redis.command(&["FLUSHALL"]).await;
        back_at_once.come_back();
        back_at_once.until("it is back", client::Log::is_open).await;
        publisher.ids("a", 3).await;
        publisher.ids("b", 3).await;
        // By a replica that has seen nothing of it.
        let fresh = Gateway::behind(&redis, VARIABLES).await;
        addresses.replace(0, &fresh);
        back_later.come_back();
        settle(&journal, &mut publisher, &all, &["rewound"]).await;
        assert_eq!(there.log().reasons(), [("a", "rewound")]);
        // On a shard that knew nothing of the channel it was told at once, and with the others again.
        assert!(!back_at_once.log().gaps.is_empty());
        for client in [&both, &back_later] {
            let gaps = client.log().gaps.len();
            assert_eq!(gaps, 2, "{}", client.summary());
        }
    })
    .await;
}

/// Histories expire and `$state` does not, so a `volatile` policy takes the histories alone.
#[tokio::test]
async fn an_evicted_history_proves_nothing() {
    test_within(MINUTE, async {
        let redis = Redis::start_with(&[
            ("--maxmemory", "1gb"),
            ("--maxmemory-policy", "volatile-ttl"),
        ])
        .await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let addresses = Addresses::of(&[&gateway]);
        let had_events = open(&addresses, &["a"]).await;
        let had_none = open(&addresses, &["quiet"]).await;
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        publisher.ids("a", 5).await;
        settle(&journal, &mut publisher, &[&had_events], &[]).await;
        had_events.leave().await;
        had_none.leave().await;
        publisher.ids("a", 5).await;
        let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1kb"]).await;
        eventually("the history is evicted", async || {
            // Refused, but it makes room first.
            let mut connection = redis.connection().await;
            let _ = redis::cmd("SET")
                .arg(&["unrelated", "x"])
                .exec_async(&mut connection)
                .await;
            redis.command::<i64>(&["EXISTS", "sse:a"]).await == 0
        })
        .await;
        let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
        // By a replica that has seen nothing of it.
        let fresh = Gateway::behind(&redis, VARIABLES).await;
        addresses.replace(0, &fresh);
        had_events.come_back();
        had_none.come_back();
        for client in [&had_events, &had_none] {
            client.until("a gap", |log| !log.gaps.is_empty()).await;
        }
        let all = [&had_events, &had_none];
        settle(&journal, &mut publisher, &all, &["expired"]).await;
        assert_eq!(had_events.log().reasons(), [("a", "expired")]);
        assert_eq!(had_none.log().reasons(), [("quiet", "expired")]);
    })
    .await;
}

/// Neither side closes the connection: only a probe that stays out tells.
#[tokio::test]
async fn a_connection_that_falls_silent_costs_no_event() {
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let proxy = Proxy::to(&redis).await;
        let url = proxy.url();
        let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
        variables.extend(VARIABLES);
        let gateway = Gateway::start(&variables).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        journal.grows(100).await;
        proxy.stall(true);
        clients[3].cut();
        eventually("the silence is noticed", async || !gateway.is_ready().await).await;
        proxy.refuse();
        proxy.stall(false);
        journal.grows(50).await;
        proxy.point(&redis);
        gateway.ready().await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
    })
    .await;
}

/// More than a history holds was published meanwhile, on many channels in turn: the gap of one
/// lies between events of the others.
#[tokio::test]
async fn what_is_trimmed_while_redis_is_away_is_told_in_its_place() {
    const CHANNELS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let proxy = Proxy::to(&redis).await;
        let url = proxy.url();
        let variables = [
            ("FANFARE_REDIS_URL", url.as_str()),
            ("FANFARE_HISTORY_LENGTH", "10"),
            ("FANFARE_SHARDS", "2"),
        ];
        let gateway = Gateway::start(&variables).await;
        let addresses = Addresses::of(&[&gateway]);
        let all = open(&addresses, &CHANNELS).await;
        let some = open(&addresses, &CHANNELS[2..6]).await;
        let one = open(&addresses, &CHANNELS[..1]).await;
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        for _ in 0..3 {
            settle(&journal, &mut publisher, &[&all, &some, &one], &["lost"]).await;
            proxy.refuse();
            eventually("the loss is noticed", async || !gateway.is_ready().await).await;
            for _ in 0..15 {
                for channel in CHANNELS {
                    publisher.id(channel).await;
                }
            }
            proxy.point(&redis);
            gateway.ready().await;
        }
        settle(&journal, &mut publisher, &[&all, &some, &one], &["lost"]).await;
        for client in [&all, &some, &one] {
            let gaps = client.log().gaps.len();
            assert_eq!(gaps, client.plan.channels.len() * 3, "{}", client.summary());
        }
    })
    .await;
}
