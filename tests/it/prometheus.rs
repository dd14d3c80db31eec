//! Prometheus and Grafana: the rules and alerts, and every query of the dashboard, against a real
//! Prometheus that scrapes a real gateway at work.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{
    DEADLINE, Events, Gateway, Process, Redis, eventually_within, free_port, within,
};
use promql_parser::parser;
use serde_json::Value;

/// Beside the deadline of each step: queries look back for as long, and probes come every 5 s.
const DATA_DEADLINE: Duration = Duration::from_secs(60);

/// Between scrapes, and between evaluations of rules.
const SCRAPE_INTERVAL: &str = "200ms";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn promtool(directory: &Path, arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("promtool is installed (make test installs it)");
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}

#[test]
fn rules_are_valid_and_alerts_fire_when_they_should_and_only_then() {
    promtool(
        &deploy("prometheus"),
        &["check", "config", "prometheus.yml"],
    );
    promtool(
        &deploy("prometheus/tests"),
        &["test", "rules", "alerts.yml", "objective.yml"],
    );
}

/// A Prometheus with our configuration, scraping one gateway more often than it would.
struct Prometheus {
    _process: Process,
    _directory: tempfile::TempDir,
    url: String,
    http: reqwest::Client,
}

impl Prometheus {
    async fn start(gateway: &Gateway) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = std::fs::read_to_string(deploy("prometheus/prometheus.yml")).unwrap();
        let rules = deploy("prometheus/rules");
        for (ours, here) in [
            (
                "scrape_interval: 15s",
                format!("scrape_interval: {SCRAPE_INTERVAL}"),
            ),
            ("evaluation_interval: 15s", "evaluation_interval: 1s".into()),
            ("rules/*.yml", format!("{}/*.yml", rules.display())),
            ("127.0.0.1:9080", gateway.admin.to_string()),
        ] {
            assert!(config.contains(ours), "{ours} in {config}");
            config = config.replace(ours, &here);
        }
        let path = directory.path().join("prometheus.yml");
        std::fs::write(&path, config).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stderr(Stdio::inherit())
            .spawn()
            .expect("prometheus is installed (make test installs it)");
        let prometheus = Self {
            _process: Process(child),
            _directory: directory,
            url: format!("http://{address}"),
            http: reqwest::Client::new(),
        };
        eventually_within(DEADLINE, "Prometheus is ready", async || {
            let ready = prometheus.http.get(format!("{}/-/ready", prometheus.url));
            ready
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        prometheus
    }

    async fn api(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}/api/v1/{path}", self.url));
        let answer = within("Prometheus answers", request.send()).await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// Whether the query's answer holds a number, of a kind that is something more than zero.
    async fn has_data(&self, query: &str, zero: Zero) -> bool {
        let query = form_urlencoded::byte_serialize(query.as_bytes()).collect::<String>();
        let data = self.api(&format!("query?query={query}")).await;
        let results = data["result"].as_array().unwrap().clone();
        results.iter().any(|result| {
            let value: f64 = result["value"][1].as_str().unwrap().parse().unwrap();
            !value.is_nan() && (value > 0.0 || zero == Zero::IsData)
        })
    }

    /// The values that a variable of the dashboard may have, asked for as Grafana does.
    async fn values_of(&self, query: &str) -> Vec<String> {
        let arguments = query.strip_prefix("label_values(").unwrap();
        let (series, label) = arguments
            .strip_suffix(')')
            .unwrap()
            .rsplit_once(", ")
            .unwrap();
        parser::parse(series).unwrap();
        let series = form_urlencoded::byte_serialize(series.as_bytes()).collect::<String>();
        let path = format!("label/{label}/values?match[]={series}");
        serde_json::from_value(self.api(&path).await).unwrap()
    }
}

/// Whether zero says that all is well, or that nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zero {
    IsData,
    IsNone,
}

/// Panels of what does not happen to a gateway that is well.
const WELL_AT_ZERO: [&str; 12] = [
    "Gaps, in this range",
    "Rejections by reason",
    "Accept failures",
    "Dropped by reason",
    "Error budget burn",
    "Gaps by reason",
    "History reads and backfill",
    "Slow clients disconnected",
    "Events dropped for slow clients",
    "Connections lost and failed",
    "Refused channels",
    "Why events do not arrive",
];

fn zero_of(panel: &str) -> Zero {
    if WELL_AT_ZERO.contains(&panel) {
        Zero::IsData
    } else {
        Zero::IsNone
    }
}

/// A gateway with clients that come back, and publishers.
async fn work(gateway: &Gateway) {
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(gateway.events("/events/a").await.opened().await);
    }
    streams.push(
        gateway
            .events("/events?channel=a&channel=b")
            .await
            .opened()
            .await,
    );
    loop {
        let id = gateway.keep("/events/a", "kept").await;
        gateway.post("/events/b?keep=false", "live").await;
        for stream in &mut streams {
            while stream.data().await != "kept" {}
        }
        let url = gateway.url(&format!("/events/a?last_event_id={id}"));
        drop(Events::open(&url).await.opened().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_query_and_rule_has_data_from_a_gateway_at_work() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[("FANFARE_SHARDS", "2")]).await;
    let prometheus = Prometheus::start(&gateway).await;
    let waiting: BTreeMap<String, String> = dashboard_queries()
        .into_iter()
        .map(|(panel, query)| (interpolated(&query), panel))
        .collect();
    let waiting = RefCell::new(waiting);
    let check = async {
        eventually_within(DATA_DEADLINE, "every query returns data", async || {
            let mut without = BTreeMap::new();
            for (query, panel) in waiting.take() {
                if !prometheus.has_data(&query, zero_of(&panel)).await {
                    without.insert(query, panel);
                }
            }
            // So that a failure says which.
            println!("without data: {without:#?}");
            let all_have = without.is_empty();
            waiting.replace(without);
            all_have
        })
        .await;
        variables_and_annotations_are_answered(&prometheus).await;
        rules_are_healthy(&prometheus).await;
    };
    tokio::select! {
        () = check => {}
        () = work(&gateway) => unreachable!("it goes on for ever"),
    }
}

/// What Grafana asks beside the panels' queries.
async fn variables_and_annotations_are_answered(prometheus: &Prometheus) {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let mut asked = 0;
    for variable in variables.filter(|variable| variable["type"] == "query") {
        let query = interpolated(variable["query"]["query"].as_str().unwrap());
        let values = prometheus.values_of(&query).await;
        assert_eq!(values.len(), 1, "{query}: {values:?}");
        asked += 1;
    }
    assert_eq!(asked, 3);
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    assert_eq!(annotations.len(), 1);
    for annotation in annotations {
        let query = interpolated(annotation["expr"].as_str().unwrap());
        // Nothing was started anew; without the condition there are the replicas.
        assert!(!prometheus.has_data(&query, Zero::IsData).await, "{query}");
        let all = query.strip_suffix(" > 0").unwrap();
        assert!(prometheus.has_data(all, Zero::IsData).await, "{all}");
    }
}

/// Every rule is evaluated without an error, nothing fires, and every alert says what to do.
async fn rules_are_healthy(prometheus: &Prometheus) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rules = async || {
        let groups = prometheus.api("rules").await["groups"].clone();
        let groups = groups.as_array().unwrap().clone();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone());
        rules.collect::<Vec<_>>()
    };
    eventually_within(DATA_DEADLINE, "every rule is evaluated", async || {
        rules().await.iter().all(|rule| rule["health"] != "unknown")
    })
    .await;
    let mut alerts = 0;
    for rule in rules().await {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        parser::parse(rule["query"].as_str().unwrap()).unwrap();
        if rule["type"] == "recording" {
            // None of the deliveries is late.
            let zero = if name.contains("late") {
                Zero::IsData
            } else {
                Zero::IsNone
            };
            assert!(prometheus.has_data(name, zero).await, "{name}");
            continue;
        }
        alerts += 1;
        assert_ne!(rule["state"], "firing", "{rule}");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{rule}");
        let anchor = format!("docs/alerts.md#{}", name.to_lowercase());
        assert_eq!(
            rule["annotations"]["runbook_url"],
            anchor.as_str(),
            "{rule}"
        );
        let heading = format!("\n### {name}\n");
        assert!(page.contains(&heading), "no runbook for {name}");
    }
    let runbooks = page.matches("\n### Fanfare").count();
    assert_eq!(runbooks, alerts, "a runbook without its alert");
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(deploy("grafana/dashboards/fanfare.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

/// Every query of the dashboard, and which panel asks it.
fn dashboard_queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let targets = panels(&dashboard).flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(move |target| {
            (
                title.to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            )
        })
    });
    targets.collect()
}

/// A query as Grafana sends it, with every replica chosen.
fn interpolated(query: &str) -> String {
    let mut query = query.to_owned();
    for (variable, value) in [
        ("$__rate_interval", "2s"),
        ("$__range", "1m"),
        ("$cluster", ".*"),
        ("$namespace", ".*"),
        ("$replica", ".*"),
    ] {
        query = query.replace(variable, value);
    }
    assert!(!query.contains('$'), "an unknown variable in {query}");
    query
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "fanfare");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "cluster", "namespace", "replica"]);

    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
    }
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        let kind = panel["type"].as_str().unwrap();
        assert!(["timeseries", "stat", "heatmap"].contains(&kind), "{title}");
        let description = panel["description"].as_str().unwrap();
        assert!(description.len() > 60, "{title} does not say what it means");
        let says_when = ["Worry", "worry", "objective"]
            .iter()
            .any(|word| description.contains(word));
        assert!(says_when, "{title} does not say when to worry");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let references: BTreeSet<_> = targets.iter().map(|t| t["refId"].as_str()).collect();
        assert_eq!(references.len(), targets.len(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let annotations =
        annotations.map(|one| ("annotation", one["expr"].as_str().unwrap().to_owned()));
    let queries = dashboard_queries();
    let queries = queries
        .iter()
        .map(|(title, query)| (title.as_str(), query.clone()));
    for (title, query) in queries.chain(annotations) {
        for variable in ["$cluster", "$namespace", "$replica"] {
            assert!(
                query.contains(variable),
                "{title} shows every {variable}: {query}"
            );
        }
        if let Err(error) = parser::parse(&interpolated(&query)) {
            panic!("{title}: {error} in {query}");
        }
    }
}
