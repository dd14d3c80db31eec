//! All replicas are stopped and started again, one after the other, behind nginx and under load: no
//! kept event is lost, clients come back spread over the drain, and see nothing but streams.
//!
//! The long ones run with `make test-faults`.

use std::path::Path;
use std::time::Duration;

use crate::support::client::{Addresses, Client, Plan};
use crate::support::nginx::{Nginx, Site};
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::tokens::{SECRET, granting};
use crate::support::{BINARY, DEADLINE, Gateway, Redis, test_within};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const REPLICAS: usize = 3;

/// Clients that connect at once: the rest waits, as they would in front of a listener's queue.
const CONNECT_TOGETHER: usize = 200;

/// Redis, replicas, nginx before them, and clients.
struct Fleet {
    redis: Redis,
    drain_period: Duration,
    replicas: Vec<Gateway>,
    nginx: Nginx,
    clients: Vec<Client>,
}

impl Fleet {
    async fn start(binary: &Path, drain_period: Duration, clients: usize) -> Self {
        let redis = Redis::start().await;
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(replica(binary, &redis, drain_period, "127.0.0.1:0").await);
        }
        let site = Site::of(&crate::support::nginx::addresses(
            &replicas.iter().collect::<Vec<_>>(),
        ));
        // All of them have one address here.
        site.edit(
            "site/public.conf",
            "streams_of_address 200",
            "streams_of_address 20000",
        );
        let nginx = site.start().await;
        let addresses = Addresses::at(nginx.site.plain);
        let mut fleet = Self {
            redis,
            drain_period,
            replicas,
            nginx,
            clients: Vec::new(),
        };
        while fleet.clients.len() < clients {
            let together = CONNECT_TOGETHER.min(clients - fleet.clients.len());
            let plan = || Plan {
                any_version: binary != Path::new(BINARY),
                ..Plan::new(&addresses, &["a", "b"])
            };
            let begun: Vec<_> = (0..together).map(|_| plan().start()).collect();
            for client in &begun {
                client
                    .until("a first block", crate::support::client::Log::is_open)
                    .await;
            }
            fleet.clients.extend(begun);
        }
        fleet
    }

    /// Stops each replica and starts one of `binary` in its place. Returns when the first stream
    /// of each ended, and when the last.
    async fn roll(&mut self, binary: &Path) -> Vec<(Instant, Instant)> {
        let mut drains = Vec::new();
        for number in 0..REPLICAS {
            let stopped = &mut self.replicas[number];
            let address = stopped.data.to_string();
            let begun = Instant::now();
            stopped.process.signal("TERM");
            assert!(
                stopped
                    .process
                    .ended_within(self.drain_period + DEADLINE)
                    .await
            );
            let ended: Vec<_> = self
                .clients
                .iter()
                .flat_map(|client| client.log().closed.clone())
                .filter(|at| *at >= begun)
                .collect();
            drains.push((*ended.iter().min().unwrap(), *ended.iter().max().unwrap()));
            self.replicas[number] = replica(binary, &self.redis, self.drain_period, &address).await;
        }
        drains
    }

    /// Streams that ended within any one second, at the most.
    #[cfg(feature = "long-tests")]
    fn most_ended_in_a_second(&self) -> usize {
        let mut all: Vec<_> = self
            .clients
            .iter()
            .flat_map(|client| client.log().closed.clone())
            .collect();
        all.sort_unstable();
        let within_a_second = |(number, at): (usize, &Instant)| {
            let end = *at + Duration::from_secs(1);
            all[number..].partition_point(|other| *other < end)
        };
        all.iter().enumerate().map(within_a_second).max().unwrap()
    }

    /// Publishes and draws tickets through nginx until it is told to stop, and counts what went well.
    fn requests(&self) -> (watch::Sender<bool>, JoinHandle<usize>) {
        let (stop, stopped) = watch::channel(false);
        let token = granting(serde_json::json!({ "publish": ["*"] }));
        let urls = [
            self.nginx.inside("/events/ordinary"),
            format!("http://{}/tickets", self.nginx.site.plain),
        ];
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut done = 0;
            let mut cut_off = 0;
            while !*stopped.borrow() {
                for url in &urls {
                    let key = format!("request-{done}");
                    loop {
                        let request = client.post(url).bearer_auth(&token).body("x");
                        let request = request.header("idempotency-key", &key);
                        let answer = request.send().await.unwrap();
                        if answer.status() == 200 {
                            break;
                        }
                        // What meets the very end of a replica is not repeated by nginx.
                        cut_off += 1;
                        let is_end = matches!(answer.status().as_u16(), 502 | 503);
                        assert!(is_end && cut_off <= REPLICAS, "{url}: {}", answer.status());
                    }
                    done += 1;
                }
                // A subject may draw ten tickets a second for long.
                sleep(Duration::from_millis(100)).await;
            }
            done
        });
        (stop, task)
    }

    /// Nothing is missing, and nginx answered streams with nothing but 200.
    async fn settle(&self, journal: &Journal, mut publisher: Publisher) {
        let all: Vec<_> = self.clients.iter().collect();
        settle(journal, &mut publisher, &all, &[]).await;
        let requests = self.nginx.requests();
        for line in requests.iter().filter(|line| !line.contains("\"POST ")) {
            let status = line.split("\" ").nth(1).unwrap();
            // 499: a client went away.
            assert!(
                status.starts_with("200 ") || status.starts_with("499 "),
                "{line}"
            );
        }
    }
}

async fn replica(binary: &Path, redis: &Redis, drain_period: Duration, address: &str) -> Gateway {
    let url = redis.url();
    let drain_period = format!("{}ms", drain_period.as_millis());
    let variables = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("FANFARE_LISTEN", address),
        ("FANFARE_DRAIN_PERIOD", &drain_period),
        ("FANFARE_HISTORY_LENGTH", "100000"),
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_PUBLIC_CHANNELS", "*"),
    ];
    let gateway = Gateway::start_binary(binary, &variables).await;
    gateway.ready().await;
    gateway
}

async fn rolling_restart(clients: usize, drain_period: Duration, pause: Duration) -> Fleet {
    let mut fleet = Fleet::start(Path::new(BINARY), drain_period, clients).await;
    let journal = Journal::default();
    let load = Publisher::new(&journal, "p", &fleet.redis.url()).load(&["a", "b"], pause);
    let (stop, requests) = fleet.requests();
    let drains = fleet.roll(Path::new(BINARY)).await;
    stop.send_replace(true);
    assert!(requests.await.unwrap() > 20);
    fleet.settle(&journal, load.stop().await).await;
    for (first, last) in drains {
        let took = last - first;
        assert!(took >= drain_period / 2, "{took:?} of {drain_period:?}");
    }
    for client in &fleet.clients {
        assert!(client.log().streams <= 1 + REPLICAS, "{}", client.summary());
    }
    fleet
}

#[tokio::test]
async fn a_rolling_restart_loses_nothing_and_spreads_clients() {
    test_within(Duration::from_secs(90), async {
        let drain_period = Duration::from_secs(3);
        rolling_restart(150, drain_period, Duration::from_millis(10)).await;
    })
    .await;
}

/// What takes minutes.
#[cfg(feature = "long-tests")]
mod long {
    use std::path::Path;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::{Fleet, rolling_restart};
    use crate::support::oracle::{Journal, Publisher};
    use crate::support::release::previous_release;
    use crate::support::{BINARY, test_within};

    #[tokio::test]
    async fn a_rolling_restart_under_ten_thousand_clients() {
        test_within(Duration::from_secs(600), async {
            let drain_period = Duration::from_secs(20);
            let clients = 10_000;
            let fleet = rolling_restart(clients, drain_period, Duration::from_millis(500)).await;
            // A replica has at most all clients, and closes them evenly: three times that for a
            // machine that is busy.
            let even = clients / 20;
            let most = fleet.most_ended_in_a_second();
            assert!(most <= 3 * even, "{most} of {clients} in a second");
        })
        .await;
    }

    #[tokio::test]
    async fn a_rollout_and_a_rollback_across_versions_lose_nothing() {
        let previous = previous_release();
        test_within(Duration::from_secs(180), async {
            let drain_period = Duration::from_secs(2);
            let mut fleet = Fleet::start(&previous, drain_period, 60).await;
            let journal = Journal::default();
            let load = Publisher::new(&journal, "p", &fleet.redis.url())
                .load(&["a", "b"], Duration::from_millis(5));
            // Old and new ones serve side by side meanwhile, and clients go back and forth.
            for binary in [Path::new(BINARY), &previous, Path::new(BINARY)] {
                fleet.roll(binary).await;
                for client in fleet.clients.iter().step_by(3) {
                    client.cut();
                }
                sleep(Duration::from_millis(200)).await;
            }
            fleet.settle(&journal, load.stop().await).await;
        })
        .await;
    }
}
