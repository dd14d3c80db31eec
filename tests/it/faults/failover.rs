//! Redis fails over: by hand, and by its Sentinels.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::faults::matrix::Fault;
use crate::faults::scene::Scene;
use crate::faults::{
    MINUTE, PAUSE, RECOVERY, VARIABLES, clients_of_two_channels, open, probes, refs,
};
use crate::support::client::Addresses;
use crate::support::oracle::{Journal, Publisher, settle};
use crate::support::proxy::Proxy;
use crate::support::sentinel::{NAME, Sentinels};
use crate::support::{Gateway, Redis, certificate, eventually, free_port, test_within};

/// How long a primary goes without being confirmed, where that is what matters.
const LAG_BOUND: Duration = Duration::from_secs(4);

/// What a failover by Sentinels takes with the waits of its own, on a machine that is busy.
const FAILOVER: Duration = Duration::from_secs(150);

pub(crate) async fn behind(sentinels: &Sentinels, variables: &[(&str, &str)]) -> Gateway {
    let url = sentinels.url();
    let mut all = vec![("FANFARE_REDIS_URL", url.as_str())];
    all.extend_from_slice(VARIABLES);
    all.extend_from_slice(variables);
    Gateway::start(&all).await
}

/// A replica that Sentinels find through `proxy`.
pub(crate) async fn announced_replica_of(primary: &Redis, proxy: &Proxy) -> Redis {
    let port = proxy.port().to_string();
    let replica = Redis::start_with(&[
        ("--repl-diskless-sync-delay", "0"),
        ("--replica-announce-port", &port),
    ])
    .await;
    proxy.point(&replica);
    let port = primary.port().to_string();
    let _: String = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    in_step(primary, &replica).await;
    replica
}

/// Its primary is killed, then comes back as the replica of its successor, which hands over again.
#[tokio::test]
async fn sentinels_are_followed_from_primary_to_primary() {
    let mut fault = Fault::new(
        "forced and planned Sentinel failover, first dial refused",
        RECOVERY,
    );
    test_within(FAILOVER, async {
        let mut old = primary().await;
        let proxy = Proxy::to(&old).await;
        let new = announced_replica_of(&old, &proxy).await;
        let sentinels = Sentinels::watching(&old, 3).await;
        sentinels.know_a_replica().await;
        let gateways = [behind(&sentinels, &[]).await, behind(&sentinels, &[]).await];
        let addresses = Addresses::of(&[&gateways[0], &gateways[1]]);
        let clients = clients_of_two_channels(&addresses).await;
        let journal = Journal::default();
        let load = Publisher::over_http(&journal, "p", &addresses)
            .keyed()
            .load(&["a", "b"], PAUSE);
        journal.grows(100).await;

        // Forced. The first two of the gateways' dials to the new primary are refused.
        proxy.refuse_gateways(2);
        old.kill().await;
        eventually("the loss is noticed", async || {
            !gateways[0].is_ready().await && !gateways[1].is_ready().await
        })
        .await;
        sentinels.name(proxy.port()).await;
        let over = Instant::now();
        for gateway in &gateways {
            gateway.ready().await;
        }
        fault.recovered(over);
        assert_eq!(proxy.to_refuse(), 0, "gateways were refused");
        assert_eq!(probes(&new).await, 2);
        journal.grows(100).await;

        // The old one takes itself for a primary until the Sentinels teach it better.
        old.restart().await;
        eventually("the old primary is a replica, in step", async || {
            replication(&old, "master_link_status").await == "up"
        })
        .await;
        assert_eq!(probes(&old).await, 0);
        journal.grows(50).await;
        // What the first had acknowledged and not yet handed on is lost.
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &["rewound"]).await;
        clients[3].cut();

        // Planned: nobody publishes until the successor is there, so nothing can be lost.
        sentinels.know_a_replica().await;
        in_step(&new, &old).await;
        let _: String = sentinels.command(0, &["SENTINEL", "FAILOVER", NAME]).await;
        sentinels.name(old.port()).await;
        let over = Instant::now();
        eventually("both gateways follow", async || probes(&old).await == 2).await;
        for gateway in &gateways {
            gateway.ready().await;
        }
        fault.recovered(over);
        let load = publisher.load(&["a", "b"], PAUSE);
        journal.grows(100).await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        assert_eq!(clients[0].log().streams, 1, "streams stay open");
    })
    .await;
}

/// The old primary goes on as one: nothing but the Sentinels' word tells.
#[tokio::test]
async fn a_primary_that_was_replaced_and_does_not_know_it_is_left_at_once() {
    let mut fault = Fault::new("a primary replaced that goes on as one", RECOVERY);
    test_within(FAILOVER, async {
        let old = primary().await;
        let proxy = Proxy::to(&old).await;
        let new = announced_replica_of(&old, &proxy).await;
        let sentinels = Sentinels::watching(&old, 3).await;
        sentinels.know_a_replica().await;
        let gateway = behind(&sentinels, &[]).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let mut publisher = Publisher::over_http(&journal, "p", &Addresses::of(&[&gateway]));
        publisher.ids("a", 5).await;
        publisher.ids("b", 5).await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
        in_step(&old, &new).await;
        // Nobody can teach it better.
        let _: String = old
            .command(&["ACL", "SETUSER", "default", "-slaveof", "-replicaof"])
            .await;
        let _: String = sentinels.command(0, &["SENTINEL", "FAILOVER", NAME]).await;
        sentinels.name(proxy.port()).await;
        let over = Instant::now();
        eventually("the gateway follows", async || probes(&new).await == 1).await;
        gateway.ready().await;
        fault.recovered(over);
        assert_eq!(replication(&old, "role").await, "master");
        assert_eq!(probes(&old).await, 0);
        let told = gateway.log().join("\n");
        assert!(told.contains("Sentinels name another primary"), "{told}");
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
    })
    .await;
}

/// The Sentinels that a replica can still ask do not suffice to confirm its primary, which may have
/// been replaced by the others.
#[tokio::test]
async fn a_primary_that_is_not_confirmed_is_left_within_the_bound() {
    let mut fault = Fault::new("too few Sentinels confirm the primary", RECOVERY);
    test_within(FAILOVER, async {
        let redis = primary().await;
        let sentinels = Sentinels::watching(&redis, 3).await;
        let lag_bound = format!("{}s", LAG_BOUND.as_secs());
        let variables = [("FANFARE_MAX_REPLICATION_LAG", lag_bound.as_str())];
        let gateway = behind(&sentinels, &variables).await;
        let Scene {
            redis,
            gateway,
            clients,
            journal,
            load,
        } = Scene::of(redis, gateway).await;
        journal.grows(50).await;
        sentinels.signal(0, "STOP");
        // Two confirm it, again and again.
        sleep(3 * LAG_BOUND).await;
        let losses = gateway.metric("fanfare_redis_losses_total").await;
        assert_eq!(losses, 0.0, "a primary that is confirmed is kept");
        sentinels.signal(1, "STOP");
        eventually("the primary is left", async || !gateway.is_ready().await).await;
        let told = gateway.log().join("\n");
        assert!(told.contains("\"cause\":\"not_primary\""), "{told}");
        assert!(told.contains("too few Sentinels have confirmed"), "{told}");
        eventually("it is told why none is found", async || {
            let (_, reasons) = gateway.admin_get("/readyz").await;
            reasons.contains("1 of 3 Sentinels name the same primary")
        })
        .await;
        let series = "fanfare_redis_down{cause=\"sentinel\"}";
        assert_eq!(gateway.metric(series).await, 1.0);
        assert_eq!(gateway.metric("fanfare_redis_up").await, 0.0);
        assert_eq!(probes(&redis).await, 0);
        // Nor does it publish there.
        assert_eq!(gateway.post("/events/a", "x").await.0, 503);
        sentinels.signal(1, "CONT");
        let over = Instant::now();
        gateway.ready().await;
        fault.recovered(over);
        assert_eq!(gateway.metric(series).await, 0.0);
        sentinels.signal(0, "CONT");
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
    })
    .await;
}

/// With exactly the rights that the documentation names, at Redis and at its Sentinels.
#[tokio::test]
async fn the_documented_rights_suffice_behind_sentinels() {
    test_within(MINUTE, async {
        let redis = primary().await;
        let documented = include_str!("../../../docs/protocol.md")
            .lines()
            .find_map(|line| line.strip_prefix("ACL SETUSER gateway "))
            .expect("docs/protocol.md lists a gateway's rights");
        let rights = format!("{} +role", documented.replace(">password", ">p%word"));
        let mut command = vec!["ACL", "SETUSER", "gateway"];
        command.extend(rights.split_whitespace());
        let _: String = redis.command(&command).await;
        let user = "user gateway on >s&word resetchannels +sentinel|get-master-addr-by-name \
                    +subscribe &+switch-master";
        let sentinels = Sentinels::watching_with(redis.port(), 1, user).await;
        let address = format!("127.0.0.1:{}/{NAME}", sentinels.ports()[0]);
        let url = format!(
            "redis-sentinel://gateway:p%25word@{address}?sentinel_user=gateway&sentinel_password=s%26word"
        );
        let gateway = Gateway::start(&[("FANFARE_REDIS_URL", &url)]).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        gateway.keep("/events/a", "kept").await;
        assert_eq!(events.data().await, "kept");
        let refused: Vec<redis::Value> = sentinels.command(0, &["ACL", "LOG"]).await;
        let refused = format!("{refused:?}");
        for command in ["sentinel", "subscribe", "hello", "ping"] {
            assert!(!refused.contains(command), "{refused}");
        }

        let wrong = url.replace("s%26word", "canary");
        let other = Gateway::start_unready(&[("FANFARE_REDIS_URL", &wrong)]).await;
        eventually("a wrong password is told", async || {
            let (_, reasons) = other.admin_get("/readyz").await;
            assert!(!reasons.contains("canary"), "{reasons}");
            reasons.contains("WRONGPASS")
        })
        .await;
        let wrong = url.replace("p%25word", "canary");
        let other = Gateway::start_unready(&[("FANFARE_REDIS_URL", &wrong)]).await;
        eventually("a refusal is told apart", async || {
            other.metric("fanfare_redis_down{cause=\"refused\"}").await == 1.0
        })
        .await;
        let wrong = url.replace(NAME, "another");
        let other = Gateway::start_unready(&[("FANFARE_REDIS_URL", &wrong)]).await;
        eventually("an unknown name is told", async || {
            let (_, reasons) = other.admin_get("/readyz").await;
            reasons.contains("it knows no primary of this name")
        })
        .await;
    })
    .await;
}

/// Sentinels and their primary are reached over TLS, and both certificates are checked.
#[tokio::test]
async fn sentinels_and_primary_speak_tls() {
    test_within(MINUTE, async {
        let folder = tempfile::tempdir().unwrap();
        let (key, certificate) = certificate(folder.path());
        let (redis_port, sentinel_port) = (free_port(), free_port());
        let redis = Redis::start_with(&[
            ("--tls-port", &redis_port.to_string()),
            ("--tls-cert-file", &certificate),
            ("--tls-key-file", &key),
            ("--tls-auth-clients", "no"),
        ])
        .await;
        let lines = format!(
            "tls-port {sentinel_port}\ntls-cert-file {certificate}\ntls-key-file {key}\n\
             tls-ca-cert-file {certificate}\ntls-auth-clients no\ntls-replication yes"
        );
        let _sentinels = Sentinels::watching_with(redis_port, 1, &lines).await;
        let url = format!("rediss-sentinel://127.0.0.1:{sentinel_port}/{NAME}");
        let trusting = [
            ("FANFARE_REDIS_URL", url.as_str()),
            ("SSL_CERT_FILE", &certificate),
        ];
        let gateway = Gateway::start(&trusting).await;
        let mut events = gateway.events("/events/a").await.opened().await;
        redis.publish("a", "sealed").await;
        assert_eq!(events.data().await, "sealed");
        gateway.keep("/events/a", "both ways").await;
        assert_eq!(events.data().await, "both ways");
        let suspicious = Gateway::start_unready(&trusting[..1]).await;
        eventually("the certificate is not trusted", async || {
            let (_, body) = suspicious.admin_get("/readyz").await;
            body.contains("certificate")
        })
        .await;
    })
    .await;
}

/// A replica of `primary`, in step with it, that reaches it through `proxy`.
async fn replica_of(primary: &Redis, proxy: &Proxy) -> Redis {
    let replica = Redis::start().await;
    let port = proxy.port().to_string();
    let _: String = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    in_step(primary, &replica).await;
    replica
}

/// A field of `INFO replication`.
/// Empty while the server is being made a primary or a replica: it closes all connections then.
async fn replication(redis: &Redis, field: &str) -> String {
    let info: redis::RedisResult<String> = redis.try_command(&["INFO", "replication"]).await;
    info.unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap_or_default()
        .to_owned()
}

/// Waits until the replica has everything that the primary has.
async fn in_step(primary: &Redis, replica: &Redis) {
    eventually("the replica is in step", async || {
        let offset = replication(primary, "master_repl_offset").await;
        replication(replica, "master_link_status").await == "up"
            && replication(replica, "slave_repl_offset").await == offset
    })
    .await;
}

pub(crate) async fn primary() -> Redis {
    Redis::start_with(&[("--repl-diskless-sync-delay", "0")]).await
}

#[tokio::test]
async fn a_planned_failover_costs_no_event() {
    let mut fault = Fault::new("planned failover without Sentinels", RECOVERY);
    test_within(MINUTE, async {
        let old = primary().await;
        let link = Proxy::to(&old).await;
        let new = replica_of(&old, &link).await;
        let proxy = Proxy::to(&old).await;
        let url = proxy.url();
        let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
        variables.extend(VARIABLES);
        let gateway = Gateway::start(&variables).await;
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &url)
            .keyed()
            .load(&["a", "b"], PAUSE);
        journal.grows(200).await;
        // It must be reachable where it announces itself.
        let port = new.port().to_string();
        let _: String = new
            .command(&["REPLICAOF", "127.0.0.1", &old.port().to_string()])
            .await;
        in_step_under_load(&old, &new).await;
        let _: String = old
            .command(&["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "10000"])
            .await;
        eventually("the failover is over", async || {
            replication(&new, "role").await == "master"
        })
        .await;
        // What is connected stays so: to a primary that is none any more.
        proxy.point(&new);
        let over = Instant::now();
        journal.grows(200).await;
        clients[3].cut();
        eventually("the gateway leaves the demoted primary", async || {
            let name = "sse:$probe.*";
            let at = async |redis: &Redis| -> usize {
                redis
                    .command::<Vec<String>>(&["PUBSUB", "CHANNELS", name])
                    .await
                    .len()
            };
            at(&old).await == 0 && at(&new).await == 1
        })
        .await;
        gateway.ready().await;
        fault.recovered(over);
        journal.grows(100).await;
        let mut publisher = load.stop().await;
        settle(&journal, &mut publisher, &refs(&clients), &[]).await;
    })
    .await;
}

/// Such a replica says nothing but that (`replica-serve-stale-data no`), and still takes `PUBLISH`.
#[tokio::test]
async fn a_replica_that_has_lost_its_primary_is_left() {
    test_within(MINUTE, async {
        let redis = primary().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        let set = ["CONFIG", "SET", "replica-serve-stale-data", "no"];
        let _: String = redis.command(&set).await;
        let dead = free_port().to_string();
        let _: String = redis.command(&["REPLICAOF", "127.0.0.1", &dead]).await;
        eventually("it is told", async || {
            gateway
                .metric("fanfare_redis_down{cause=\"not_primary\"}")
                .await
                == 1.0
        })
        .await;
        assert!(!gateway.is_ready().await);
        let (_, reasons) = gateway.admin_get("/readyz").await;
        assert!(reasons.contains("Redis is a replica"), "{reasons}");
        let _: String = redis.command(&["REPLICAOF", "NO", "ONE"]).await;
        gateway.ready().await;
    })
    .await;
}

/// Waits until the replica follows; it is never quite there while events come.
async fn in_step_under_load(primary: &Redis, replica: &Redis) {
    eventually("the replica follows", async || {
        replication(replica, "master_link_status").await == "up"
            && replication(primary, "slave0")
                .await
                .contains("state=online")
    })
    .await;
}

/// A tail of events is acknowledged and delivered, and lost with its primary.
#[tokio::test]
async fn a_failover_that_loses_its_tail_is_told_to_those_past_it() {
    let mut fault = Fault::new("failover that loses acknowledged events", RECOVERY);
    test_within(MINUTE, async {
        let mut old = primary().await;
        let link = Proxy::to(&old).await;
        let new = replica_of(&old, &link).await;
        let proxy = Proxy::to(&old).await;
        let url = proxy.url();
        let mut variables = vec![("FANFARE_REDIS_URL", url.as_str())];
        variables.extend(VARIABLES);
        let gateway = Gateway::start(&variables).await;
        let addresses = Addresses::of(&[&gateway]);
        let there = open(&addresses, &["tail"]).await;
        let both = open(&addresses, &["tail", "calm"]).await;
        let calm = open(&addresses, &["calm"]).await;
        let back_at_once = open(&addresses, &["tail"]).await;
        let back_later = open(&addresses, &["tail"]).await;
        let left_before = open(&addresses, &["tail"]).await;
        let all = [
            &there,
            &both,
            &calm,
            &back_at_once,
            &back_later,
            &left_before,
        ];
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &url);
        publisher.ids("calm", 5).await;
        publisher.ids("tail", 5).await;
        settle(&journal, &mut publisher, &all, &[]).await;
        in_step(&old, &new).await;
        left_before.leave().await;
        link.stall(true);
        let mut lost = Vec::new();
        for _ in 0..7 {
            lost.push(publisher.publish("tail").await);
        }
        for client in [&there, &both, &back_at_once, &back_later] {
            client.has(lost.last().unwrap()).await;
        }
        back_at_once.leave().await;
        back_later.leave().await;
        journal.lose(&lost);

        old.kill().await;
        let _: String = new.command(&["REPLICAOF", "NO", "ONE"]).await;
        // It never got them: the proxy held them back.
        let retained: usize = new.command(&["XLEN", "sse:tail"]).await;
        assert_eq!(retained, 6);
        proxy.point(&new);
        proxy.cut();
        let over = Instant::now();
        gateway.ready().await;
        fault.recovered(over);
        back_at_once.come_back();
        back_at_once
            .until("a gap", |log| !log.gaps.is_empty())
            .await;
        // New ids pass the cursors of those who are away.
        publisher.acknowledged("tail").await;
        publisher.ids("tail", 5).await;
        back_later.come_back();
        left_before.come_back();
        settle(&journal, &mut publisher, &all, &["rewound"]).await;
        for client in [&there, &both, &back_at_once, &back_later] {
            let log = client.log();
            assert_eq!(log.reasons(), [("tail", "rewound")], "{:?}", log.gaps);
        }
        for client in [&calm, &left_before] {
            assert!(client.log().gaps.is_empty(), "{}", client.summary());
        }
    })
    .await;
}

/// The same by a replica that has seen nothing of the old primary.
#[tokio::test]
async fn a_lost_tail_is_found_by_a_replica_that_never_saw_it() {
    test_within(MINUTE, async {
        let mut old = primary().await;
        let link = Proxy::to(&old).await;
        let new = replica_of(&old, &link).await;
        let gateway = Gateway::behind(&old, VARIABLES).await;
        let addresses = Addresses::of(&[&gateway]);
        let past = open(&addresses, &["tail"]).await;
        let past_with_two = open(&addresses, &["tail", "calm"]).await;
        let before = open(&addresses, &["tail"]).await;
        let all = [&past, &past_with_two, &before];
        let journal = Journal::default();
        let mut publisher = Publisher::new(&journal, "p", &old.url());
        publisher.ids("tail", 5).await;
        settle(&journal, &mut publisher, &all, &[]).await;
        in_step(&old, &new).await;
        before.leave().await;
        link.stall(true);
        let lost = vec![publisher.publish("tail").await];
        for client in [&past, &past_with_two] {
            client.has(&lost[0]).await;
            client.leave().await;
        }
        journal.lose(&lost);
        old.kill().await;
        let _: String = new.command(&["REPLICAOF", "NO", "ONE"]).await;
        let fresh = Gateway::behind(&new, VARIABLES).await;
        addresses.replace(0, &fresh);
        let mut publisher = Publisher::new(&journal, "q", &new.url());
        publisher.ids("tail", 3).await;
        for client in all {
            client.come_back();
        }
        settle(&journal, &mut publisher, &all, &["rewound"]).await;
        assert_eq!(past.log().reasons(), [("tail", "rewound")]);
        // Which of its channels the lost event was of, nobody knows any more.
        let reasons = past_with_two.log().reasons().len();
        assert_eq!(reasons, 2, "{}", past_with_two.summary());
        assert!(before.log().gaps.is_empty(), "{}", before.summary());
    })
    .await;
}
