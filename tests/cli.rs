//! The command line and the start: what is wrong is told, all of it, before anything starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

mod support;

use std::process::{Command, Output};

use support::{Gateway, Redis, within};

fn fanfare(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

async fn command(arguments: Vec<String>, variables: Vec<(&'static str, String)>) -> Output {
    let run = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        fanfare(&arguments, &variables)
    });
    within("the command ends", run).await.unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_wrong_configuration_is_refused_with_every_fault() {
    let output = fanfare(
        &["--heartbeat", "15"],
        &[
            ("FANFARE_LISTEN", "0.0.0.0:0"),
            ("FANFARE_RETRIES", "3"),
            ("FANFARE_MAX_EVENT_BYTES", "huge"),
        ],
    );
    assert!(!output.status.success());
    for setting in [
        "FANFARE_HEARTBEAT",
        "FANFARE_RETRIES",
        "FANFARE_MAX_EVENT_BYTES",
        "FANFARE_PUBLIC_CHANNELS",
        "FANFARE_REDIS_URL",
    ] {
        assert!(stderr(&output).contains(setting), "{}", stderr(&output));
    }
}

#[test]
fn unknown_flags_are_refused() {
    let output = fanfare(&["--heartbead", "15s"], &[]);
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("--heartbeat"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_tells_what_the_configuration_comes_to() {
    let secret = ("FANFARE_REDIS_URL", "redis://user:canary@127.0.0.1:6379");
    let output = fanfare(&["check"], &[secret]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nFANFARE_HEARTBEAT=15s\n"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    let output = fanfare(&["check"], &[("FANFARE_HEARTBEAT", "never")]);
    assert!(!output.status.success());
}

#[tokio::test]
async fn an_address_in_use_is_told_even_though_shards_share_theirs() {
    let gateway = Gateway::start(&[]).await;
    for (flag, address, setting) in [
        ("--listen", gateway.data, "FANFARE_LISTEN"),
        ("--admin-listen", gateway.admin, "FANFARE_ADMIN_LISTEN"),
    ] {
        let output = command(
            vec![flag.into(), address.to_string()],
            vec![
                ("FANFARE_SHARDS", "2".into()),
                if flag == "--listen" {
                    ("FANFARE_ADMIN_LISTEN", "127.0.0.1:0".into())
                } else {
                    ("FANFARE_LISTEN", "127.0.0.1:0".into())
                },
            ],
        )
        .await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(setting), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn publish_and_tail_speak_to_a_gateway_and_to_redis() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let url = format!("http://{}", gateway.data);
    let tail = tokio::spawn(command(
        ["tail", "a", "b", "--count", "3", "--url", &url]
            .map(str::to_owned)
            .to_vec(),
        vec![],
    ));
    support::eventually("tail has opened its stream", async || {
        gateway.metric("fanfare_subscriptions").await == 2.0
    })
    .await;
    let over_redis = ("FANFARE_REDIS_URL", redis.url());
    for (arguments, variables) in [
        (
            vec!["publish", "a", "one", "--live"],
            vec![over_redis.clone()],
        ),
        (
            vec!["publish", "b", "two\nlines", "--event", "n", "--live"],
            vec![over_redis],
        ),
        (
            vec![
                "publish",
                "a",
                "three \u{1b}[31m",
                "--url",
                &url,
                "--retry",
                "5s",
                "--live",
            ],
            vec![],
        ),
    ] {
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let output = command(arguments, variables).await;
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "a live event has no id");
    }
    let output = within("tail ends", tail).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text,
        "-\tmessage\tone\n-\tn\ttwo\\nlines\n-\tmessage\tthree \\u{1b}[31m\n"
    );
}

/// Over both ways: kept, with its id printed, once a key.
#[tokio::test]
async fn publish_keeps_and_prints_the_id() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let url = format!("http://{}", gateway.data);
    let mut ids = Vec::new();
    for (arguments, variables) in [
        (vec!["--key", "k"], vec![("FANFARE_REDIS_URL", redis.url())]),
        (vec!["--key", "k", "--url", &url], vec![]),
        (vec!["--history", "3", "--url", &url], vec![]),
    ] {
        let all = [&["publish", "a", "x"], &arguments[..]].concat();
        let output = command(all.into_iter().map(str::to_owned).collect(), variables).await;
        assert!(output.status.success(), "{}", stderr(&output));
        ids.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    for id in [&ids[0], &ids[2]] {
        assert_eq!(events.event().await.id.as_ref(), Some(id));
    }
}

#[tokio::test]
async fn publish_tells_why_it_was_refused() {
    for arguments in [
        vec!["publish", "no/channel", "x"],
        vec!["publish", "a", "x", "--event", "a\nb"],
        vec!["publish", "a", "x", "--url", "http://127.0.0.1:1"],
        vec!["publish", "a", "x", "--redis-url", "redis://127.0.0.1:1"],
        vec!["publish", "a", "x", "--live", "--key", "k"],
        vec!["publish", "a", "x", "--history", "0"],
        vec!["publish", "a", "x", "--to", "5"],
        vec!["tail", "a b"],
    ] {
        let output = command(arguments.iter().map(ToString::to_string).collect(), vec![]).await;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

/// Behind a listener that is not open, only public channels are read and nothing is published.
#[tokio::test]
async fn a_listener_with_public_channels_keeps_to_them() {
    let gateway = Gateway::start(&[("FANFARE_PUBLIC_CHANNELS", "news.*,alerts")]).await;
    gateway
        .events("/events?channel=news.eu&channel=alerts")
        .await
        .opened()
        .await;
    let (status, body) = gateway.get("/events?channel=alerts&channel=orders").await;
    assert_eq!(status, 403);
    assert!(body.contains("orders"), "{body}");
    assert_eq!(gateway.post("/events/alerts", "x").await.0, 403);
}
