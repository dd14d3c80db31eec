//! The network between hosts loses, delays, narrows and ends.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::hosts::{Host, Link, Network};
use crate::faults::matrix::Fault;
use crate::faults::{MINUTE, PAUSE, RECOVERY, VARIABLES, clients_of_two_channels, refs};
use crate::support::client::Addresses;
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::proxy::Proxy;
use crate::support::sentinel::NAME;
use crate::support::{Gateway, Redis, eventually, eventually_within, test_within};

/// What is done to a link, each for some seconds.
type Damage = fn(&Host);
const DAMAGES: [(&str, Damage); 3] = [
    ("loss", |host| host.lose(20)),
    ("1 kbit/s", |host| host.narrow(1)),
    ("a small MTU", |host| host.mtu(296)),
];

/// On the way to clients, or from Redis.
async fn bad_link(to_clients: bool, fault: &mut Fault) {
    let mut network = Network::new();
    let (redis_host, host) = (network.host(), network.host());
    let _redis = redis_host.redis(&[]).await;
    let (redis_link, client_link) = if to_clients {
        (&redis_host.good, Link::Bad)
    } else {
        (&redis_host.bad, Link::Good)
    };
    let url = format!("redis://{redis_link}:6379");
    let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
    variables.extend(VARIABLES);
    let gateway = host.gateway(client_link, &variables).await;
    let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
    let journal = Journal::default();
    let url = format!("redis://{}:6379", redis_host.good);
    let pause = Duration::from_millis(20);
    let mut publisher = Publisher::new(&journal, "p", &url);
    for (name, damage) in DAMAGES {
        let load = publisher.load(&["a", "b"], pause);
        damage(&host);
        sleep(Duration::from_secs(10)).await;
        clients[3].cut();
        sleep(Duration::from_secs(5)).await;
        host.heal();
        let over = Instant::now();
        publisher = load.stop().await;
        gateway.ready().await;
        eprintln!("after {name}");
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        fault.recovered(over);
    }
    assert!(gateway.resident_bytes() < 300 << 20, "memory is bounded");
}

#[tokio::test]
async fn a_bad_link_to_clients_costs_no_event() {
    let mut fault = Fault::new(
        "20 % loss, 1 kbit/s, MTU 296 on the way to clients",
        3 * RECOVERY,
    );
    test_within(5 * MINUTE, bad_link(true, &mut fault)).await;
}

#[tokio::test]
async fn a_bad_link_to_redis_costs_no_event() {
    let mut fault = Fault::new(
        "20 % loss, 1 kbit/s, MTU 296 on the way to Redis",
        3 * RECOVERY,
    );
    test_within(5 * MINUTE, bad_link(false, &mut fault)).await;
}

/// What is under way takes its time, to Redis and to clients.
#[tokio::test]
async fn delay_costs_no_event() {
    let mut fault = Fault::new("delay of 200 to 600 ms to Redis and to clients", RECOVERY);
    test_within(3 * MINUTE, async {
        let redis = Redis::start().await;
        let to_redis = Proxy::to(&redis).await;
        let url = to_redis.url();
        let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
        variables.extend(VARIABLES);
        let gateway = Gateway::start(&variables).await;
        let to_gateway = Proxy::to_address(gateway.data).await;
        let addresses = Addresses::at(([127, 0, 0, 1], to_gateway.port()).into());
        let clients = clients_of_two_channels(&addresses).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        let delay = Duration::from_millis(200)..Duration::from_millis(600);
        to_redis.delay(Some(delay.clone()));
        to_gateway.delay(Some(delay));
        for _ in 0..5 {
            journal.grows(500).await;
            clients[3].cut();
        }
        assert!(gateway.is_ready().await, "it is slow, not away");
        to_redis.delay(None);
        to_gateway.delay(None);
        let over = Instant::now();
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        fault.recovered(over);
        assert_eq!(gateway.metric("fanfare_redis_losses_total").await, 0.0);
    })
    .await;
}

/// No FIN, no RST: their host is gone.
#[tokio::test]
async fn clients_that_vanish_are_reaped() {
    // A heartbeat, and the kernel's patience with what is not acknowledged.
    let bound = Duration::from_secs(45);
    let mut fault = Fault::new("200 clients vanish without FIN", bound);
    test_within(3 * MINUTE, async {
        let mut network = Network::new();
        let host = network.host();
        let _redis = host.redis(&[]).await;
        let mut variables = vec![("FANFARE_REDIS_URL", "redis://127.0.0.1:6379")];
        variables.extend(VARIABLES);
        let gateway = host.gateway(Link::Bad, &variables).await;
        let before = gateway.descriptors();
        let addresses = Addresses::of(&[&gateway]);
        let mut clients = Vec::new();
        for _ in 0..200 {
            clients.push(crate::faults::open(&addresses, &["a"]).await);
        }
        host.lose(100);
        let over = Instant::now();
        drop(clients);
        eventually_within(bound, "all are reaped", async || {
            gateway.metric("fanfare_connections").await == 0.0
        })
        .await;
        fault.recovered(over);
        eventually("the descriptors are back", async || {
            gateway.descriptors() <= before + 8
        })
        .await;
    })
    .await;
}

/// On one side the primary, a gateway and one Sentinel; on the other a replica, a gateway and two
/// Sentinels, who make it the primary. Events are published on both sides.
#[tokio::test]
async fn a_primary_partitioned_with_a_gateway_is_left() {
    let mut fault = Fault::new(
        "the primary partitioned together with one replica",
        2 * RECOVERY,
    );
    test_within(5 * MINUTE, async {
        let mut network = Network::new();
        let (old, new) = (network.host(), network.host());
        let announce = |address| ["--replica-announce-ip", address];
        let _old_redis = old.redis(&announce(&old.bad)).await;
        let replica_of = [&announce(&new.bad)[..], &["--replicaof", &old.bad, "6379"]].concat();
        let _new_redis = new.redis(&replica_of).await;
        eventually("the replica is in step", async || {
            let info: String = new
                .try_command(6379, &["INFO", "replication"])
                .await
                .unwrap();
            info.contains("master_link_status:up")
        })
        .await;
        let _sentinels = [
            old.sentinel(26379, &old.bad),
            new.sentinel(26379, &old.bad),
            new.sentinel(26380, &old.bad),
        ];
        eventually("the Sentinels agree", async || {
            let quorum = ["SENTINEL", "CKQUORUM", NAME];
            for (host, port) in [(&old, 26379), (&new, 26379), (&new, 26380)] {
                if host.try_command::<String>(port, &quorum).await.is_err() {
                    return false;
                }
            }
            true
        })
        .await;
        let url = format!(
            "redis-sentinel://{}:26379,{}:26379,{}:26380/{NAME}",
            old.bad, new.bad, new.bad
        );
        let mut variables = vec![
            ("FANFARE_REDIS_URL", url.as_str()),
            ("FANFARE_MAX_REPLICATION_LAG", "6s"),
        ];
        variables.extend(VARIABLES);
        let gateways = [
            old.gateway(Link::Good, &variables).await,
            new.gateway(Link::Good, &variables).await,
        ];
        let addresses = Addresses::of(&[&gateways[0], &gateways[1]]);
        let clients = clients_of_two_channels(&addresses).await;
        let journal = Journal::default();
        let url = |address| format!("redis://{address}:6379");
        let mut publisher = Publisher::new(&journal, "p", &url(&old.good));
        for _ in 0..20 {
            publisher.id("a").await;
            publisher.id("b").await;
        }
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;

        old.isolate(true);
        new.isolate(true);
        // Whatever the old primary acknowledges from here on is lost.
        let mut lost = Vec::new();
        let end = Instant::now() + Duration::from_secs(60);
        while gateways[0].is_ready().await {
            assert!(Instant::now() < end, "the old primary is left");
            lost.push(publisher.publish("a").await);
            sleep(PAUSE).await;
        }
        journal.lose(&lost);
        let told = gateways[0].log().join("\n");
        assert!(told.contains("\"cause\":\"not_primary\""), "{told}");
        let promoted = async || -> bool {
            let role: Vec<redis::Value> = new.try_command(6379, &["ROLE"]).await.unwrap();
            redis::from_redis_value::<String>(role[0].clone()).unwrap() == "master"
        };
        eventually_within(2 * RECOVERY, "the other is promoted", promoted).await;
        gateways[1].ready().await;
        let mut publisher = Publisher::new(&journal, "q", &url(&new.good));
        for _ in 0..20 {
            publisher.acknowledged("a").await;
            publisher.acknowledged("b").await;
        }
        assert!(!gateways[0].is_ready().await, "it has nobody to go to");

        old.isolate(false);
        new.isolate(false);
        let over = Instant::now();
        eventually_within(2 * RECOVERY, "the gateway finds the new one", async || {
            gateways[0].is_ready().await
        })
        .await;
        settle(
            &journal,
            &mut publisher,
            &refs(&clients),
            &["rewound", "lost"],
        )
        .await;
        fault.recovered(over);
    })
    .await;
}
