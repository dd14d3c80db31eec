//! Replicas are killed, stopped, and run out of descriptors.

use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use crate::faults::matrix::Fault;
use crate::faults::scene::Scene;
use crate::faults::{MINUTE, PAUSE, RECOVERY, VARIABLES, clients_of_two_channels, refs};
use crate::support::client::{Addresses, Plan};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::{Gateway, Redis, eventually, test_within};

#[tokio::test]
async fn clients_go_on_at_another_replica_when_theirs_is_killed() {
    let mut fault = Fault::new("replicas killed -9 under full load", RECOVERY);
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
            let over = Instant::now();
            journal.grows(100).await;
            *gateway = Gateway::behind(&redis, VARIABLES).await;
            addresses.replace(round % 2, gateway);
            // Half of those who are there come to the new one, which knows nothing yet.
            for client in &clients[6..] {
                client.cut();
            }
            for client in &clients[..6] {
                client.until("it is back", |log| log.is_open()).await;
            }
            fault.recovered(over);
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

/// Those who are there go on; those who come have to wait, and find room once there is some.
#[tokio::test]
async fn a_replica_out_of_descriptors_serves_those_it_has() {
    let mut fault = Fault::new("a replica out of descriptors", RECOVERY);
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let addresses = Addresses::of(&[&gateway]);
        let clients = clients_of_two_channels(&addresses).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        journal.grows(50).await;
        let limit = |limit: usize| {
            let set = Command::new("prlimit")
                .arg(format!("--nofile={limit}:4096"))
                .args(["--pid", &gateway.process.0.id().to_string()])
                .status()
                .expect("prlimit is installed (util-linux)");
            assert!(set.success());
        };
        limit(gateway.descriptors() + 4);
        let late: Vec<_> = (0..20)
            .map(|_| Plan::new(&addresses, &["a"]).start())
            .collect();
        journal.grows(300).await;
        let waiting = late.iter().filter(|client| !client.log().is_open()).count();
        assert!(waiting >= 10, "{waiting} wait");
        limit(4096);
        let over = Instant::now();
        for client in &late {
            client.until("it is let in", |log| log.is_open()).await;
        }
        fault.recovered(over);
        let mut publisher = load.stop().await;
        let mut all = refs(&clients);
        all.extend(refs(&late));
        settle(&journal, &mut publisher, &all, &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
        drop(late);
        eventually("the descriptors are back", async || {
            gateway.metric("fanfare_connections").await == 6.0
        })
        .await;
    })
    .await;
}

/// A replica that was stopped has missed everything since, and tells nobody that it has not.
#[tokio::test]
async fn a_replica_that_was_stopped_has_its_clients_back() {
    let mut fault = Fault::new("a replica stopped for 8 s", RECOVERY);
    test_within(MINUTE, async {
        let Scene {
            redis: _redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::start().await;
        journal.grows(50).await;
        gateway.process.signal("STOP");
        tokio::time::sleep(Duration::from_secs(8)).await;
        gateway.process.signal("CONT");
        let over = Instant::now();
        gateway.ready().await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        fault.recovered(over);
    })
    .await;
}
