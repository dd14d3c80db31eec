//! The tool itself, run for real: what it calls well is well, and what is wrong it finds.
//! Correctness only: no test here looks at how fast anything was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod support;

use serde_json::json;
use support::server::{self, Fault};
use support::{axum_peer, redis, scenario, tool};

const BRIEFLY: &str =
    "--clients 50 --rate 200 --duration 500ms --publish http --publish-path /events/{channel}";

#[test]
fn every_delivery_of_a_good_server_is_counted() {
    let peer = axum_peer(None);
    let (result, well) = scenario(&format!(
        "fanout --url http://{} --server-pid {} {BRIEFLY}",
        peer.address,
        peer.pid()
    ));
    assert!(well, "{result:#}");
    let phase = &result["phases"][0];
    assert_eq!(phase["published"], 100);
    assert_eq!(phase["expected"], 5_000);
    assert_eq!(phase["delivered"], 5_000);
    assert!(phase["latency"]["p50"].as_f64().unwrap() > 0.0);
    assert!(phase["cpu"]["micros_per_delivery"].as_f64().unwrap() > 0.0);
    assert!(result["memory"]["connected"].as_u64().unwrap() > 0);
}

#[test]
fn events_published_over_redis_arrive() {
    let redis = redis();
    let peer = axum_peer(Some(&redis));
    let url = format!("--url http://{} --redis {}", peer.address, redis.address);
    let (result, well) = scenario(&format!(
        "channels {url} --clients 40 --rate 200 --duration 1s"
    ));
    assert!(well, "{result:#}");
    assert_eq!(result["channels"], 40);
    assert_eq!(result["phases"][0]["delivered"], 200);
}

#[test]
fn the_other_scenarios_run() {
    let peer = axum_peer(None);
    for words in [
        "idle",
        "storm",
        "churn --churn 50",
        "slow --slow-every 5",
        "saturate --max-steps 2 --max-p99 10s",
        "soak",
        "fanout --processes 3 --channels 7",
    ] {
        let (result, well) = scenario(&format!("{words} --url http://{} {BRIEFLY}", peer.address));
        assert!(well, "{words}: {result:#}");
    }
}

#[test]
fn several_channels_on_a_connection() {
    let address = server::start(Fault::None);
    let (result, well) = scenario(&format!(
        "multi --per-client 4 --channels 4 --url http://{address} {BRIEFLY}"
    ));
    assert!(well, "{result:#}");
    assert_eq!(result["phases"][0]["delivered"], 5_000);
}

#[test]
fn a_server_with_ids_is_resumed_without_loss() {
    let address = server::start(Fault::None);
    let words = format!(
        "resume --away 200ms --url http://{address} --admin-url http://{address} {BRIEFLY}"
    );
    let (result, well) = scenario(&words);
    assert!(well, "{result:#}");
    let phase = &result["phases"][0];
    assert_eq!(phase["delivered"], 5_000);
    assert_eq!(phase["gaps"], 0);
    assert!(phase["caught_up_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(phase["gateway"]["fanfare_history_reads_total"], 50);

    let (result, well) = scenario(&format!("{words} --max-history-reads 49"));
    assert!(!well);
    let problems = [json!("resume: 50 history reads are more than 49")];
    assert_eq!(result["problems"], json!(problems));
}

#[test]
fn clients_come_back_to_another_server() {
    let (there, elsewhere) = (server::start(Fault::None), server::start(Fault::None));
    let (result, well) = scenario(&format!(
        "resume --away 200ms --url http://{there} --resume-url http://{elsewhere} {BRIEFLY}"
    ));
    // The other one has no events: nobody gets any more.
    assert!(!well);
    let phase = &result["phases"][0];
    assert!(phase["faults"]["undelivered"].as_u64().unwrap() > 0);
    assert_eq!(phase["caught_up_seconds"], json!(null));
}

#[test]
fn a_gap_told_without_a_loss_is_found() {
    let address = server::start(Fault::TellsOfAGap);
    let (result, well) = scenario(&format!(
        "resume --away 200ms --url http://{address} {BRIEFLY}"
    ));
    assert!(!well);
    assert_eq!(result["phases"][0]["delivered"], 5_000);
    assert_eq!(result["problems"], json!(["resume: 50 gaps told"]));
}

#[test]
fn counters_that_cannot_be_read_are_an_error() {
    let address = server::start(Fault::None);
    let output = tool(&format!(
        "resume --url http://{address} --admin-url http://127.0.0.1:1 {BRIEFLY} --away 100ms"
    ));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("http://127.0.0.1:1/metrics"),
        "{output:?}"
    );
}

/// Which counters a fault must raise, and no others.
fn found(fault: Fault, options: &str) -> Vec<(String, u64)> {
    let address = server::start(fault);
    let (result, well) = scenario(&format!(
        "fanout --url http://{address} {BRIEFLY} {options}"
    ));
    assert!(!well, "{fault:?} was not noticed: {result:#}");
    let faults = result["phases"][0]["faults"].as_object().unwrap();
    let raised = faults
        .iter()
        .map(|(name, count)| (name.clone(), count.as_u64().unwrap()));
    raised.filter(|(_, count)| *count > 0).collect()
}

fn counts(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

#[test]
fn a_lost_event_is_found() {
    assert_eq!(found(Fault::Loses, ""), counts(&[("lost", 50)]));
}

#[test]
fn a_duplicate_is_found() {
    assert_eq!(found(Fault::Duplicates, ""), counts(&[("duplicated", 50)]));
}

#[test]
fn a_reordering_is_found() {
    assert_eq!(found(Fault::Reorders, ""), counts(&[("reordered", 50)]));
}

#[test]
fn altered_data_is_found() {
    assert_eq!(
        found(Fault::Alters, ""),
        counts(&[("foreign", 50), ("lost", 50)])
    );
}

#[test]
fn a_cut_connection_is_found() {
    let faults = found(Fault::Disconnects, "");
    assert_eq!(faults[0], ("disconnected".to_owned(), 1));
    assert_eq!(faults[1].0, "undelivered");
}

#[test]
fn a_forgotten_client_is_found() {
    // The first event is warm-up, the server's number 30 is the 30th measured: 71 never come.
    assert_eq!(
        found(Fault::ForgetsAClient, ""),
        counts(&[("undelivered", 71)])
    );
}

#[test]
fn an_event_on_the_wrong_channel_is_found() {
    // This server sends everything to everybody.
    assert_eq!(
        found(Fault::None, "--channels 2"),
        counts(&[("misrouted", 2_500)])[..].to_vec()
    );
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason() {
    let output = tool("idle --clients 5000000 --processes 1 --url http://127.0.0.1:1");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--processes"),
        "{output:?}"
    );
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let output = tool("idle --clients 3 --connect-timeout 1s --url http://127.0.0.1:1");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("0 of 3 clients connected"),
        "{output:?}"
    );
}

#[test]
fn a_report_has_its_plots() {
    let peer = axum_peer(None);
    let folder = std::env::temp_dir().join(format!("fanfare-load-report-{}", std::process::id()));
    let words = format!(
        "fanout --url http://{} {BRIEFLY} --report {}",
        peer.address,
        folder.display()
    );
    let output = tool(&format!("{words} --server-pid {}", peer.pid()));
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("passed"));
    let page = std::fs::read_to_string(folder.join("index.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 4);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_comparison_runs_and_names_what_is_missing() {
    let output = tool(
        "compare --peers floor,axum,fanfare --fanfare target/no-such-folder/fanfare --rows latency \
         --runs 1 --shrink 50 --duration 500ms --server-core 0 --load-core 0",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text.contains("MISSING: Fanfare: no target/no-such-folder/fanfare. Install: cargo build"),
        "{text}"
    );
    assert!(text.contains("publish → received"), "{text}");
}

#[test]
fn what_only_fanfare_can_do_needs_fanfare() {
    let output = tool("compare --peers axum --rows resume --runs 1 --server-core 0 --load-core 0");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("measures Fanfare alone"),
        "{output:?}"
    );
}

#[test]
fn what_an_event_costs_redis_is_measured_with_and_without_shared_writes() {
    // Both on one core: a machine may have no other.
    let output = tool(
        "redis-costs --subscribers 3 --rates 200 --bursts 1,20 --duration 300ms --server-core 0 --load-core 0",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let pushes_a_write = text
        .lines()
        .filter(|line| line.starts_with("| 200 "))
        .map(|line| line.trim_end_matches('|').rsplit('|').next().unwrap())
        .map(|cell| cell.trim().parse::<f64>().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(pushes_a_write.len(), 2, "{text}");
    assert!(pushes_a_write[0] < 1.5, "{text}");
    assert!(pushes_a_write[1] > 5.0, "{text}");
}
