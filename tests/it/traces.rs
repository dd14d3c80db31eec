//! Traces, sent to a collector that decodes what OTLP says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::support::tokens::{SECRET, granting, token};
use crate::support::{Gateway, Raw, Redis, eventually, free_port, within};
use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// A span as it arrived.
#[derive(Clone, Debug)]
struct Seen {
    /// Of the process that sent it.
    resource: HashMap<String, String>,
    name: String,
    trace: String,
    id: String,
    parent: String,
    links: Vec<String>,
    attributes: HashMap<String, String>,
    is_error: bool,
    nanoseconds: u64,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(pairs: &[KeyValue]) -> HashMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    };
    pairs
        .iter()
        .filter_map(|pair| Some((pair.key.clone(), text(pair)?)))
        .collect()
}

impl Seen {
    fn of(span: &Span, resource: &HashMap<String, String>) -> Self {
        Self {
            resource: resource.clone(),
            name: span.name.clone(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
            attributes: attributes(&span.attributes),
            is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
            nanoseconds: span.end_time_unix_nano - span.start_time_unix_nano,
        }
    }
}

/// A collector on a port of its own.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
}

async fn export(State(collector): State<Collector>, head: HeaderMap, body: Bytes) -> &'static [u8] {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for spans in request.resource_spans {
        let resource = attributes(&spans.resource.unwrap().attributes);
        let seen = spans
            .scope_spans
            .iter()
            .flat_map(|scope| &scope.spans)
            .map(|span| Seen::of(span, &resource));
        collector.spans.lock().unwrap().extend(seen);
    }
    collector.heads.lock().unwrap().push(head);
    // An empty ExportTraceServiceResponse.
    b""
}

impl Collector {
    /// Starts it and returns its URL.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/traces", post(export))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    fn seen(&self, name: &str) -> Vec<Seen> {
        let spans = self.spans.lock().unwrap();
        spans
            .iter()
            .filter(|span| span.name == name)
            .cloned()
            .collect()
    }

    /// Waits for so many spans of a name, and returns all there are.
    async fn spans(&self, name: &str, count: usize) -> Vec<Seen> {
        eventually(&format!("{count} spans {name}"), async || {
            self.seen(name).len() >= count
        })
        .await;
        self.seen(name)
    }
}

/// The variables that send spans to a collector at once.
fn sending_to(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]
}

/// Publishes over HTTP with a trace context; the answer must be 200.
async fn post_traced(gateway: &Gateway, path: &str, traceparent: &str) {
    thread_local!(static CLIENT: reqwest::Client = reqwest::Client::new());
    let request = CLIENT
        .with(Clone::clone)
        .post(gateway.url(path))
        .header("traceparent", traceparent)
        .body("hello");
    let answer = within("the gateway answers", request.send()).await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// Stops a gateway; what waits is sent before it ends.
async fn stop(mut gateway: Gateway) {
    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
}

#[tokio::test]
async fn a_publish_and_its_fan_out_on_every_replica_are_one_trace() {
    let (collector, url) = Collector::start().await;
    let redis = Redis::start().await;
    let variables = sending_to(&url);
    let one = Gateway::behind(&redis, &variables).await;
    let two = Gateway::behind(&redis, &variables).await;
    let mut streams = Vec::new();
    for gateway in [&one, &one, &one, &two] {
        streams.push(gateway.events("/events/orders").await.opened().await);
    }
    // Each connection's admission is a span of a trace of its own.
    let admissions = collector.spans("admission", 4).await;
    assert_eq!(admissions.len(), 4);
    for admission in &admissions {
        assert_eq!(admission.parent, "");
        assert_eq!(admission.attributes["fanfare.outcome"], "opened");
        assert_eq!(admission.attributes["fanfare.channels"], "1");
        assert_eq!(admission.attributes["client.address"], "127.0.0.1");
        assert_eq!(admission.attributes["http.response.status_code"], "200");
    }

    for (path, has_id) in [
        ("/events/orders", true),
        ("/events/orders?keep=false", false),
    ] {
        collector.spans.lock().unwrap().clear();
        post_traced(&one, path, &traceparent("01")).await;
        for stream in &mut streams {
            assert_eq!(stream.data().await, "hello");
        }
        let published = collector.spans("publish", 1).await;
        let fan_outs = collector.spans("fan-out", 2).await;
        assert_eq!((published.len(), fan_outs.len()), (1, 2), "{fan_outs:?}");
        let publish = &published[0];
        assert_eq!((&*publish.trace, &*publish.parent), (TRACE, SPAN));
        assert_eq!(publish.attributes["messaging.destination.name"], "orders");
        assert_eq!(
            publish.attributes.contains_key("messaging.message.id"),
            has_id
        );
        assert_eq!(publish.resource["service.name"], "fanfare");
        for fan_out in &fan_outs {
            assert_eq!((&*fan_out.trace, &fan_out.parent), (TRACE, &publish.id));
            assert_eq!(fan_out.links, std::slice::from_ref(&publish.id));
            assert_eq!(
                fan_out.attributes.get("messaging.message.id"),
                publish.attributes.get("messaging.message.id")
            );
            assert!(fan_out.nanoseconds > 0);
        }
        // One a replica, however many clients it has.
        let clients = |fan_out: &Seen| fan_out.attributes["fanfare.clients"].clone();
        let mut counts: Vec<_> = fan_outs.iter().map(clients).collect();
        counts.sort();
        assert_eq!(counts, ["1", "3"]);
        let replica = |span: &Seen| span.resource["service.instance.id"].clone();
        assert_ne!(replica(&fan_outs[0]), replica(&fan_outs[1]));
    }
    assert_eq!(one.metric("fanfare_traces_dropped_total").await, 0.0);
}

#[tokio::test]
async fn services_that_publish_through_redis_are_traced_where_they_say_so() {
    let (collector, url) = Collector::start().await;
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &sending_to(&url)).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    let sampled = traceparent("01");
    let unsampled = traceparent("00");
    redis.keep("a", "kept", &["traceparent", &sampled]).await;
    let envelope =
        |parent: &str| format!(r#"{{"sse":{{"data":"live","traceparent":"{parent}"}}}}"#);
    redis.publish("a", envelope(&sampled)).await;
    // None of these is.
    redis.keep("a", "kept", &["traceparent", &unsampled]).await;
    redis.keep("a", "kept", &[]).await;
    redis.publish("a", envelope(&unsampled)).await;
    redis.publish("a", envelope("junk")).await;
    redis.publish("a", "live").await;
    for data in ["kept", "live", "kept", "kept", "live", "live", "live"] {
        assert_eq!(stream.data().await, data);
    }
    drop(stream);
    stop(gateway).await;
    let fan_outs = collector.seen("fan-out");
    assert_eq!(fan_outs.len(), 2, "{fan_outs:?}");
    for fan_out in &fan_outs {
        assert_eq!((&*fan_out.trace, &*fan_out.parent), (TRACE, SPAN));
    }
    assert_eq!(collector.seen("publish").len(), 0);
}

#[tokio::test]
async fn the_standard_variables_are_obeyed() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.extend([
        ("OTEL_SERVICE_NAME", "gateway-eu"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20xyz"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
    ]);
    let gateway = Gateway::start(&variables).await;
    // The publisher decides; where nobody has, the sampler does.
    post_traced(&gateway, "/events/a", &traceparent("01")).await;
    post_traced(&gateway, "/events/a", &traceparent("00")).await;
    gateway.post("/events/a", "x").await;
    let mut traced = crate::support::Events::of(
        reqwest::Client::new()
            .get(gateway.url("/events/a"))
            .header("traceparent", traceparent("01"))
            .send()
            .await
            .unwrap(),
    );
    traced.block().await.unwrap();
    let untraced = gateway.events("/events/a").await.opened().await;
    assert_eq!(gateway.get("/events/").await.0, 400);
    drop((traced, untraced));
    stop(gateway).await;
    let names: Vec<_> = collector
        .spans
        .lock()
        .unwrap()
        .iter()
        .map(|span| span.name.clone())
        .collect();
    assert_eq!(names, ["publish", "admission"]);
    for span in collector.spans.lock().unwrap().iter() {
        assert_eq!((&*span.trace, &*span.parent), (TRACE, SPAN));
        assert_eq!(span.resource["service.name"], "gateway-eu");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
    let heads = collector.heads.lock().unwrap();
    assert!(
        heads
            .iter()
            .all(|head| head["authorization"] == "Bearer xyz")
    );
}

#[tokio::test]
async fn what_is_refused_is_traced_too() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.push(("FANFARE_MAX_CONNECTIONS", "1"));
    let gateway = Gateway::start(&variables).await;
    let open = gateway.events("/events/a").await.opened().await;
    assert_eq!(gateway.get("/events/b").await.0, 200);
    assert_eq!(gateway.get("/events/a?history=x").await.0, 400);
    assert_eq!(gateway.post("/events/a?event=$gap", "x").await.0, 400);
    let outcomes: Vec<_> = collector
        .spans("admission", 3)
        .await
        .iter()
        .map(|span| span.attributes["fanfare.outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["opened", "limit", "refused"]);
    let published = collector.spans("publish", 1).await;
    assert!(published[0].is_error);
    assert_eq!(published[0].attributes["http.response.status_code"], "400");
    // What may not be published, or cannot be read, is none.
    assert_eq!(gateway.post("/events/a?unknown=1", "x").await.0, 400);
    assert_eq!(gateway.post("/events/$a", "x").await.0, 400);
    drop(open);
    stop(gateway).await;
    assert_eq!(collector.seen("publish").len(), 1);
}

/// Whatever becomes of a request for a stream, there is one span of it.
#[tokio::test]
async fn early_refusals_and_clients_that_hang_up_are_traced_too() {
    let (collector, url) = Collector::start().await;
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &sending_to(&url)).await;
    let ask = async |headers: &str| {
        let request = format!("GET /events/a HTTP/1.1\r\n{headers}\r\n");
        Raw::send(gateway.data, &request).await
    };
    for (headers, status) in [
        ("host: localhost\r\norigin: https://evil.example\r\n", "403"),
        ("host: evil.example\r\n", "421"),
        ("", "400"),
        ("host: localhost\r\ncontent-length: 1\r\n\r\nx", "400"),
    ] {
        collector.spans.lock().unwrap().clear();
        let answer = ask(headers).await.until("\r\n\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        let admission = collector.spans("admission", 1).await.remove(0);
        assert_eq!(admission.attributes["fanfare.outcome"], "refused");
        assert_eq!(admission.attributes["http.response.status_code"], status);
    }
    redis.kill().await;
    eventually("the gateway has noticed", async || {
        !gateway.is_ready().await
    })
    .await;
    collector.spans.lock().unwrap().clear();
    let waits = ask("host: localhost\r\n").await;
    eventually("it waits for its channel", async || {
        gateway.metric("fanfare_channels").await == 1.0
    })
    .await;
    drop(waits);
    let gone = collector.spans("admission", 1).await.remove(0);
    assert_eq!(gone.attributes["fanfare.outcome"], "gone");
    assert_eq!(gone.attributes["fanfare.channels"], "1");
    assert!(!gone.attributes.contains_key("http.response.status_code"));
    let _waits = ask("host: localhost\r\n").await.until("retry: ").await;
    let outcomes = collector.spans("admission", 2).await;
    assert_eq!(outcomes[1].attributes["fanfare.outcome"], "bus_unavailable");
}

/// Else anybody could fill the queue of spans, whatever share of them is to be recorded.
#[tokio::test]
async fn who_shows_no_token_does_not_decide_what_is_recorded() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.extend([
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_PUBLIC_CHANNELS", "news"),
    ]);
    let gateway = Gateway::start(&variables).await;
    let token = granting(json!({ "subscribe": ["news"] }));
    for authorization in [None, Some(format!("Bearer {token}"))] {
        let mut request = reqwest::Client::new()
            .get(gateway.url("/events/news"))
            .header("traceparent", traceparent("01"));
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        let answer = within("the gateway answers", request.send()).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    stop(gateway).await;
    let admissions = collector.seen("admission");
    assert_eq!(admissions.len(), 1, "{admissions:?}");
    assert_eq!(admissions[0].attributes["user.id"], "alice");
    assert_eq!(admissions[0].trace, TRACE);
}

/// Who has shown a token, and asks for what it may not have, is known all the same.
#[tokio::test]
async fn a_token_holder_s_refusal_is_part_of_the_trace_it_names() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.push(("FANFARE_JWT_SECRET", SECRET));
    let gateway = Gateway::start(&variables).await;
    let request = reqwest::Client::new()
        .get(gateway.url("/events/news?channel=forbidden"))
        .header("traceparent", traceparent("01"))
        .bearer_auth(granting(json!({ "subscribe": ["news"] })));
    let answer = within("the gateway answers", request.send()).await.unwrap();
    assert_eq!(answer.status(), 403);
    let admission = collector.spans("admission", 1).await.remove(0);
    assert_eq!((&*admission.trace, &*admission.parent), (TRACE, SPAN));
    for (name, value) in [
        ("user.id", "alice"),
        ("fanfare.channels", "2"),
        ("fanfare.outcome", "refused"),
        ("http.response.status_code", "403"),
    ] {
        assert_eq!(admission.attributes[name], value);
    }
}

#[tokio::test]
async fn what_is_set_of_the_resource_wins() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.push((
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.instance.id=pod-7,service.version=2026-01,service.name=x,team=caf%C3%A9%2Cbar",
    ));
    variables.push(("OTEL_SERVICE_NAME", "gateway-eu"));
    let gateway = Gateway::start(&variables).await;
    drop(gateway.events("/events/a").await.opened().await);
    let admission = collector.spans("admission", 1).await.remove(0);
    for (name, value) in [
        ("service.instance.id", "pod-7"),
        ("service.version", "2026-01"),
        ("service.name", "gateway-eu"),
        ("team", "café,bar"),
        ("telemetry.sdk.language", "rust"),
    ] {
        assert_eq!(admission.resource[name], value);
    }
}

/// An event's fan-out is over when its clients have it, not when all have that waited behind it;
/// and who may not have it is no client of it.
#[tokio::test]
async fn a_fan_out_counts_those_who_get_the_event() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.extend([
        ("FANFARE_JWT_SECRET", SECRET),
        ("FANFARE_PUBLIC_CHANNELS", "news"),
        ("FANFARE_SHARDS", "1"),
    ]);
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &variables).await;
    let admin = token(json!({ "sub": "zoe", "role": "admin", "fanfare": {} }));
    let request = reqwest::Client::new()
        .get(gateway.url("/events/news"))
        .bearer_auth(admin);
    let mut zoe = crate::support::Events::of(request.send().await.unwrap());
    zoe.block().await.unwrap();
    let _others = [
        gateway.events("/events/news").await.opened().await,
        gateway.events("/events/news").await.opened().await,
    ];
    let parent = traceparent("01");
    let to = r#"{"role":"admin"}"#;
    redis
        .keep("news", "x", &["to", to, "traceparent", &parent])
        .await;
    assert_eq!(zoe.data().await, "x");
    let fan_out = collector.spans("fan-out", 1).await.remove(0);
    assert_eq!(fan_out.attributes["fanfare.clients"], "1");
}

#[tokio::test]
async fn nothing_is_sent_where_traces_are_off() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.push(("OTEL_SDK_DISABLED", "true"));
    let gateway = Gateway::start(&variables).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    post_traced(&gateway, "/events/a", &traceparent("01")).await;
    stream.data().await;
    drop(stream);
    stop(gateway).await;
    assert_eq!(collector.heads.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_counter() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let mut variables = sending_to(&url);
    variables.push(("OTEL_BSP_MAX_QUEUE_SIZE", "8"));
    let gateway = Gateway::start(&variables).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    for number in 0..100 {
        post_traced(&gateway, "/events/a", &traceparent("01")).await;
        assert_eq!(stream.data().await, "hello", "{number}");
    }
    // A publish and a fan-out each, and one admission.
    eventually("every span is counted as dropped", async || {
        gateway.metric("fanfare_traces_dropped_total").await == 201.0
    })
    .await;
    assert!(gateway.is_ready().await);
    let collector = url.trim_start_matches("http://");
    is_told(&gateway, &["Connection refused", collector]).await;
}

/// Waits until the log says that failed to export spans, and all of this with it.
async fn is_told(gateway: &Gateway, parts: &[&str]) {
    eventually(&format!("{parts:?} is in the log"), async || {
        gateway.log().iter().any(|line| {
            line.contains("failed to export spans") && parts.iter().all(|part| line.contains(part))
        })
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_nothing() {
    // Accepts, and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut variables = sending_to(&url);
    variables.push(("OTEL_BSP_MAX_QUEUE_SIZE", "8"));
    variables.push(("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"));
    let gateway = Gateway::start(&variables).await;
    let mut stream = gateway.events("/events/a").await.opened().await;
    for _ in 0..100 {
        post_traced(&gateway, "/events/a", &traceparent("01")).await;
        stream.data().await;
    }
    assert!(gateway.metric("fanfare_traces_dropped_total").await > 0.0);
    is_told(&gateway, &["timed out"]).await;
    drop(stream);
    stop(gateway).await;
}

/// A line of the log leads to the trace, and what the log leaves out is traced all the same.
#[tokio::test]
async fn log_lines_of_a_request_name_its_trace() {
    let (collector, url) = Collector::start().await;
    let mut variables = sending_to(&url);
    variables.extend([
        ("FANFARE_MAX_CONNECTIONS", "1"),
        // Nothing of the requests but warnings, and where it listens.
        ("FANFARE_LOG", "warn,fanfare::app=info"),
    ]);
    let mut redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &variables).await;
    let named = format!(r#""trace_id":"{TRACE}""#);
    let is_in_the_log = async |text: &str| {
        eventually(&format!("{text:?} is in the log"), async || {
            let mut lines = gateway.log().into_iter();
            lines.any(|line| line.contains(text) && line.contains(&named))
        })
        .await;
    };
    let _open = gateway.events("/events/a").await.opened().await;
    let client = reqwest::Client::new();
    let refused = client.get(gateway.url("/events/a"));
    let refused = refused.header("traceparent", traceparent("01")).send();
    within("the gateway answers", refused).await.unwrap();
    is_in_the_log("FANFARE_MAX_CONNECTIONS").await;

    redis.kill().await;
    let failed = client.post(gateway.url("/events/a")).body("x");
    let failed = failed.header("traceparent", traceparent("01")).send();
    let answer = within("the gateway answers", failed).await.unwrap();
    assert_eq!(answer.status(), 503);
    is_in_the_log("was not published").await;

    let admissions = collector.spans("admission", 2).await;
    assert_eq!(admissions[0].attributes["fanfare.outcome"], "opened");
    // A trace of its own, which no line of this log belongs to.
    assert_ne!(admissions[0].trace, TRACE);
    let publish = collector.spans("publish", 1).await.remove(0);
    assert_eq!((&*publish.trace, publish.is_error), (TRACE, true));
}
