//! How Redis is logged in to: passwords and certificates, also those that change.

use std::process::Command;

use crate::support::authority::Authority;
use crate::support::sentinel::Sentinels;
use crate::support::{Gateway, Redis, certificate, eventually, free_port};

/// Where everything listens.
const ADDRESS: &str = "IP:127.0.0.1";

#[tokio::test]
async fn a_password_is_used_and_never_printed() {
    let redis = Redis::start().await;
    let _: String = redis
        .command(&["CONFIG", "SET", "requirepass", "canary-5f2e"])
        .await;
    let url = format!("redis://:canary-5f2e@127.0.0.1:{}", redis.port());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redis-url");
    std::fs::write(&file, format!("{url}\n")).unwrap();
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL_FILE", file.to_str().unwrap())]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway.post("/events/a", "allowed").await;
    assert_eq!(events.data().await, "allowed");
    // A wrong one is told without being shown.
    let wrong = url.replace("canary", "canary-wrong");
    let other = Gateway::start_unready(&[("FANFARE_REDIS_URL", &wrong)]).await;
    eventually("the reason is told", async || {
        other.admin_get("/readyz").await.1.contains("WRONGPASS")
    })
    .await;
    let seen = [gateway.log(), other.log()].concat().join("\n")
        + &other.admin_get("/readyz").await.1
        + &other.admin_get("/metrics").await.1;
    assert!(!seen.contains("canary"), "{seen}");
}

/// The authority is the system's, or the one that `SSL_CERT_FILE` names.
#[tokio::test]
async fn tls_is_spoken_and_certificates_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (key, certificate) = certificate(directory.path());
    let tls_port = free_port().to_string();
    let redis = Redis::start_with(&[
        ("--tls-port", &tls_port),
        ("--tls-cert-file", &certificate),
        ("--tls-key-file", &key),
        ("--tls-auth-clients", "no"),
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{tls_port}");
    let trusting = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("SSL_CERT_FILE", &certificate),
    ];
    let gateway = Gateway::start(&trusting).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    redis.publish("a", "sealed").await;
    assert_eq!(events.data().await, "sealed");
    gateway.post("/events/a", "both ways").await;
    assert_eq!(events.data().await, "both ways");
    let suspicious = Gateway::start_unready(&[("FANFARE_REDIS_URL", &url)]).await;
    eventually("the certificate is not trusted", async || {
        let (_, body) = suspicious.admin_get("/readyz").await;
        body.contains("certificate")
    })
    .await;
}

/// A server that asks for certificates, which is what Redis does unless told otherwise, and whose own is
/// signed by an authority that the system does not know.
#[tokio::test]
async fn tls_with_a_private_authority_and_client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let files = Authority::new(directory.path());
    let (key, cert) = files.sign("server", ADDRESS);
    let (client_key, client_cert) = files.sign("client", ADDRESS);
    let port = free_port().to_string();
    let redis = Redis::start_with(&[
        ("--tls-port", &port),
        ("--tls-cert-file", &cert),
        ("--tls-key-file", &key),
        ("--tls-ca-cert-file", &files.certificate),
        ("--tls-auth-clients", "yes"),
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{port}");
    let all = [
        ("FANFARE_REDIS_URL", url.as_str()),
        ("FANFARE_REDIS_CA_FILE", &files.certificate),
        ("FANFARE_REDIS_CERT_FILE", &client_cert),
        ("FANFARE_REDIS_KEY_FILE", &client_key),
    ];
    let gateway = Gateway::start(&all).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway.keep("/events/a", "sealed").await;
    assert_eq!(events.data().await, "sealed");
    let published = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["publish", "a", "by command"])
        .envs(all)
        .output()
        .unwrap();
    assert!(published.status.success(), "{published:?}");
    assert_eq!(events.data().await, "by command");

    let without = Gateway::start_unready(&all[..2]).await;
    eventually("it is refused without its certificate", async || {
        let (_, body) = without.admin_get("/readyz").await;
        body.contains("cannot connect to Redis")
    })
    .await;

    // The client's certificate is replaced in its files, and the next connection shows the new one.
    let (new_key, new_cert) = files.sign("renewed", ADDRESS);
    std::fs::rename(new_key, &client_key).unwrap();
    std::fs::rename(new_cert, &client_cert).unwrap();
    gateway
        .logged("read the Redis URL and its certificates again; new connections use them")
        .await;
    let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    gateway.keep("/events/a", "with the new one").await;
    assert_eq!(events.data().await, "with the new one");
}

/// The gateway's user of Redis, with a new password that replaces the one before.
async fn set_password(redis: &Redis, passwords: &str) {
    let mut command = vec!["ACL", "SETUSER", "gateway", "on", "~*", "&*", "+@all"];
    command.extend(passwords.split_whitespace());
    let _: String = redis.command(&command).await;
}

async fn a_rotated_password_is_picked_up(redis: &Redis, url: impl Fn(&str) -> String) {
    set_password(redis, ">first-5f2e").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redis-url");
    std::fs::write(&file, url("first-5f2e")).unwrap();
    let gateway = Gateway::start(&[("FANFARE_REDIS_URL_FILE", file.to_str().unwrap())]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    gateway.keep("/events/a", "before").await;
    assert_eq!(events.data().await, "before");

    // What cannot be used changes nothing, and is told.
    let elsewhere = "redis://gateway:first-5f2e@127.0.0.1:1";
    for (content, rule) in [
        ("", "FANFARE_REDIS_URL_FILE is empty"),
        (elsewhere, "FANFARE_REDIS_URL_FILE names other servers"),
    ] {
        std::fs::write(&file, content).unwrap();
        eventually("the fault is told", async || {
            let (status, body) = gateway.admin_get("/readyz").await;
            status == 200 && body.contains(rule)
        })
        .await;
        gateway.keep("/events/a", "still").await;
        assert_eq!(events.data().await, "still");
    }

    // As Kubernetes changes a secret: behind a symbolic link. Then the old password is withdrawn.
    set_password(redis, ">second-5f2e").await;
    let new = directory.path().join("new");
    std::fs::write(&new, format!("{}\n", url("second-5f2e"))).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&new, &link).unwrap();
    std::fs::rename(&link, &file).unwrap();
    eventually("the new one is read", async || {
        !gateway.admin_get("/readyz").await.1.contains("warnings")
    })
    .await;
    set_password(redis, "<first-5f2e").await;
    let _: i64 = redis.command(&["CLIENT", "KILL", "USER", "gateway"]).await;
    eventually("the loss is noticed", async || {
        gateway.metric("fanfare_redis_losses_total").await >= 1.0
    })
    .await;
    gateway.ready().await;
    let id = gateway.keep("/events/a", "after").await;
    let event = events.event().await;
    assert_eq!(event.data.as_deref(), Some("after"));
    assert_eq!(event.id, Some(id));
    let seen = gateway.log().join("\n") + &gateway.admin_get("/readyz").await.1;
    assert!(!seen.contains("5f2e"), "{seen}");
}

#[tokio::test]
async fn a_rotated_password_of_a_server_is_picked_up() {
    let redis = Redis::start().await;
    let port = redis.port();
    let url = |password: &str| format!("redis://gateway:{password}@127.0.0.1:{port}");
    a_rotated_password_is_picked_up(&redis, url).await;
}

#[tokio::test]
async fn a_rotated_password_behind_sentinels_is_picked_up() {
    let redis = Redis::start().await;
    let sentinels = Sentinels::watching(&redis, 1).await;
    let url = |password: &str| {
        let user = format!("redis-sentinel://gateway:{password}@");
        sentinels.url().replace("redis-sentinel://", &user)
    };
    a_rotated_password_is_picked_up(&redis, url).await;
}
