//! Redis is killed, stopped, forgets, refuses, and its connections break.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::faults::matrix::Fault;
use crate::faults::scene::Scene;
use crate::faults::{MINUTE, PAUSE, RECOVERY, VARIABLES, clients_of_two_channels, open, refs};
use crate::support::client::Addresses;
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::proxy::Proxy;
use crate::support::{Gateway, Redis, eventually, test_within};

#[tokio::test]
async fn a_subscriber_connection_killed_a_hundred_times_costs_no_event() {
    let mut fault = Fault::new("pub/sub connection killed a hundred times", RECOVERY);
    test_within(MINUTE, async {
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::start().await;
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
        let over = Instant::now();
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        gateway.ready().await;
        fault.recovered(over);
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
        assert!(gateway.metric("fanfare_backfilled_events_total").await > 0.0);
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_persists_every_event_is_killed_without_a_gap() {
    let mut fault = Fault::new("Redis killed -9 four times, AOF always", RECOVERY);
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
            let over = Instant::now();
            gateway.ready().await;
            journal.grows(50).await;
            fault.recovered(over);
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
    let mut fault = Fault::new("Redis killed -9, without its data", RECOVERY);
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
        let over = Instant::now();
        gateway.ready().await;
        other.ready().await;
        fault.recovered(over);
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
        back_at_once
            .until("it is back", crate::support::client::Log::is_open)
            .await;
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
    let mut fault = Fault::new("a connection to Redis that falls silent", RECOVERY);
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let proxy = Proxy::to(&redis).await;
        let url = proxy.url();
        let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
        variables.extend(VARIABLES);
        let gateway = Gateway::start(&variables).await;
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::of(redis, gateway).await;
        journal.grows(100).await;
        proxy.stall(true);
        clients[3].cut();
        eventually("the silence is noticed", async || !gateway.is_ready().await).await;
        proxy.refuse();
        proxy.stall(false);
        journal.grows(50).await;
        proxy.point(&redis);
        let over = Instant::now();
        gateway.ready().await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        fault.recovered(over);
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

/// It answers nothing, and closes nothing.
#[tokio::test]
async fn a_redis_that_is_stopped_costs_no_event() {
    let mut fault = Fault::new("Redis stopped for 5 s, and CLIENT PAUSE for 9 s", RECOVERY);
    test_within(MINUTE, async {
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::start().await;
        journal.grows(100).await;
        redis.signal("STOP");
        sleep(Duration::from_secs(5)).await;
        redis.signal("CONT");
        let over = Instant::now();
        gateway.ready().await;
        journal.grows(50).await;
        fault.recovered(over);
        clients[3].cut();
        let _: String = redis.command(&["CLIENT", "PAUSE", "9000", "ALL"]).await;
        let over = Instant::now() + Duration::from_secs(9);
        eventually("the silence is noticed", async || !gateway.is_ready().await).await;
        let series = "fanfare_redis_down{cause=\"silent\"}";
        eventually("it is told", async || {
            gateway.metric(series).await == 1.0 || gateway.is_ready().await
        })
        .await;
        gateway.ready().await;
        journal.grows(50).await;
        fault.recovered(over);
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
    })
    .await;
}

/// It takes no events while it has no replica to hand them to.
#[tokio::test]
async fn a_redis_that_takes_no_writes_costs_no_event() {
    let mut fault = Fault::new("min-replicas-to-write refuses", RECOVERY);
    test_within(MINUTE, async {
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::start().await;
        journal.grows(100).await;
        let set = async |value: &str| {
            let command = ["CONFIG", "SET", "min-replicas-to-write", value];
            let _: String = redis.command(&command).await;
        };
        set("1").await;
        eventually("it is told", async || {
            gateway.metric("fanfare_redis_keeps_events").await == 0.0
        })
        .await;
        assert!(gateway.is_ready().await, "live events go on");
        clients[3].cut();
        set("0").await;
        let over = Instant::now();
        journal.grows(50).await;
        eventually("it is told", async || {
            gateway.metric("fanfare_redis_keeps_events").await == 1.0
        })
        .await;
        fault.recovered(over);
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
        assert_eq!(gateway.metric("fanfare_redis_losses_total").await, 0.0);
    })
    .await;
}

/// Redis drops a subscriber that does not read (`client-output-buffer-limit`); what it missed is in
/// the histories.
#[tokio::test]
async fn a_subscriber_that_redis_drops_for_its_slowness_is_backfilled() {
    let mut fault = Fault::new("Redis kills a slow subscriber (output buffer)", RECOVERY);
    test_within(MINUTE, async {
        let redis =
            Redis::start_with(&[("--client-output-buffer-limit", "pubsub 4mb 4mb 1")]).await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        publisher.event_bytes = 50_000;
        publisher.ids("a", 5).await;
        gateway.process.signal("STOP");
        // What the kernel holds between the two is a few megabytes; the limit must leave room for
        // pages of histories, which come over the same connection.
        for _ in 0..40 {
            publisher.ids("a", 10).await;
            if crate::faults::probes(&redis).await == 0 {
                break;
            }
        }
        assert_eq!(crate::faults::probes(&redis).await, 0, "Redis drops it");
        publisher.ids("b", 5).await;
        gateway.process.signal("CONT");
        let over = Instant::now();
        eventually("the subscription is back", async || {
            crate::faults::probes(&redis).await == 1 && gateway.is_ready().await
        })
        .await;
        fault.recovered(over);
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert!(gateway.metric("fanfare_backfilled_events_total").await > 0.0);
        assert!(gateway.resident_bytes() < 300 << 20, "memory is bounded");
    })
    .await;
}
