//! What happens to nginx, and to clients behind it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::faults::matrix::Fault;
use crate::faults::{MINUTE, PAUSE, RECOVERY, VARIABLES, refs};
use crate::support::client::{Addresses, Client, Plan};
use crate::support::nginx::{Nginx, Site, addresses};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::{Gateway, Redis, eventually, test_within};

/// Clients of `a` and `b` behind nginx.
async fn clients(nginx: &Nginx) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..6 {
        let plan = Plan::new(&Addresses::at(nginx.site.plain), &["a", "b"]);
        clients.push(plan.open().await);
    }
    clients
}

#[tokio::test]
async fn nginx_reloaded_and_killed_and_a_replica_black_holed_cost_no_event() {
    let mut fault = Fault::new(
        "nginx reloaded, killed, one of two replicas black-holed",
        RECOVERY,
    );
    test_within(2 * MINUTE, async {
        let redis = Redis::start().await;
        let gateways = [
            Gateway::behind(&redis, VARIABLES).await,
            Gateway::behind(&redis, VARIABLES).await,
        ];
        let site = Site::of(&addresses(&[&gateways[0], &gateways[1]]));
        site.silence(Duration::from_secs(3));
        let mut nginx = site.start().await;
        let clients = clients(&nginx).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        let all_go_on = async || {
            let streams = |client: &Client| client.log().streams;
            let before: Vec<_> = clients.iter().map(streams).collect();
            (before, journal.ids("a").last().copied())
        };
        journal.grows(50).await;

        nginx.signal("HUP");
        let over = Instant::now();
        journal.grows(50).await;
        fault.recovered(over);
        for client in &clients {
            assert_eq!(client.log().streams, 1, "a reload closes no stream");
        }
        // New ones come through the new workers.
        clients[3].cut();

        let (before, _) = all_go_on().await;
        nginx.kill().await;
        sleep(Duration::from_millis(500)).await;
        nginx.restart().await;
        let over = Instant::now();
        for (client, before) in clients.iter().zip(before) {
            client
                .until("it is back", |log| log.streams > before && log.is_open())
                .await;
        }
        fault.recovered(over);

        // It takes connections, and says nothing any more.
        let at_first: f64 = gateways[0].metric("fanfare_connections").await;
        assert!(at_first > 0.0, "some are there");
        gateways[0].process.signal("STOP");
        let over = Instant::now();
        eventually("all are at the other", async || {
            gateways[1].metric("fanfare_connections").await == 6.0
        })
        .await;
        fault.recovered(over);
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        gateways[0].process.signal("CONT");
    })
    .await;
}

/// nginx reads no more from the replica than the client takes, so the replica notices.
#[tokio::test]
async fn a_client_stopped_behind_nginx_holds_up_nobody() {
    let mut fault = Fault::new("a client stopped behind nginx", RECOVERY);
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let mut variables = vec![
            ("FANFARE_CLIENT_BUFFER_BYTES", "64KiB"),
            ("FANFARE_SOCKET_SEND_BUFFER_BYTES", "16KiB"),
        ];
        variables.extend(VARIABLES);
        let gateway = Gateway::behind(&redis, &variables).await;
        let nginx = Nginx::before(&[&gateway]).await;
        let clients = clients(&nginx).await;
        let mut plan = Plan::new(&Addresses::at(nginx.site.plain), &["a", "b"]);
        plan.receive_buffer = Some(4096);
        let stopped = plan.open().await;
        stopped.pause(true);
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &redis.url());
        publisher.event_bytes = 20_000;
        let load = publisher.load(&["a", "b"], PAUSE);
        let series = "fanfare_connections_closed_total{reason=\"slow_client\"}";
        eventually("the replica cuts it off", async || {
            gateway.metric(series).await >= 1.0
        })
        .await;
        let resident = gateway.resident_bytes();
        assert!(resident < 300 << 20, "memory is bounded: {resident}");
        let mut publisher = load.stop().await;
        stopped.pause(false);
        let over = Instant::now();
        let mut all = refs(&clients);
        all.push(&stopped);
        settle(&journal, &mut publisher, &all, &[]).await;
        fault.recovered(over);
    })
    .await;
}
