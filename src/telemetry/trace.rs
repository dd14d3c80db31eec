//! Traces: spans for what is published, fanned out and admitted, sent to an OTLP collector.
//!
//! Off unless a collector is named, and then there is nothing of it but an `Option` here and
//! there. Spans wait in a bounded queue for a thread of their own that sends them; a collector
//! that is away or slow costs nothing but a counter.

mod pipeline;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt,
    TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use crate::hub::{BusEvent, FanOutWatch};
use crate::protocol::{ChannelName, EventId, TraceParent};

pub use pipeline::{LAST_SPANS, TraceConfig, TraceError, TracePipeline};

/// Makes spans.
#[derive(Clone, Debug)]
pub struct Traces(SdkTracer);

impl Traces {
    fn start(&self, span: SpanBuilder, parent: Option<TraceParent>) -> Span {
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(remote(parent)),
            None => Context::new(),
        };
        self.0.build_with_context(span, &context)
    }

    /// Begins the span of an event that is being published over HTTP.
    pub fn publish(&self, channel: &ChannelName, parent: Option<TraceParent>) -> PublishSpan {
        let span = self
            .0
            .span_builder("publish")
            .with_kind(SpanKind::Producer)
            .with_attributes(messaging("send", channel));
        PublishSpan {
            span: self.start(span, parent),
            parent,
        }
    }

    /// Begins the span of an event's fan-out on this replica, where its publisher has it traced.
    /// It ends when the last shard has handed the event to its clients.
    pub fn fan_out(&self, event: &BusEvent) -> Option<Arc<dyn FanOutWatch>> {
        let parent = event.trace_parent().filter(|parent| parent.is_sampled())?;
        let (began, began_at) = (Instant::now(), SystemTime::now());
        let mut span = self
            .0
            .span_builder("fan-out")
            .with_kind(SpanKind::Consumer)
            .with_start_time(began_at)
            .with_attributes(messaging("process", &event.channel))
            // What messaging spans are connected by, beside the parent.
            .with_links(vec![Link::with_context(remote(parent))]);
        if let (Some(attributes), Some(id)) = (&mut span.attributes, event.id()) {
            attributes.push(KeyValue::new("messaging.message.id", id.to_string()));
        }
        let span = self.start(span, Some(parent));
        span.is_recording().then(|| {
            Arc::new(FanOutSpan {
                span,
                began,
                began_at,
                took_ns: AtomicU64::new(0),
                shards: AtomicU64::new(0),
                clients: AtomicU64::new(0),
            }) as Arc<dyn FanOutWatch>
        })
    }

    /// Records how a stream was admitted, from when its request was read to now.
    pub fn admission(&self, admission: &Admission<'_>) {
        let mut attributes = vec![
            KeyValue::new("client.address", admission.client.to_string()),
            KeyValue::new("fanfare.connection", admission.connection.to_owned()),
            KeyValue::new("fanfare.outcome", admission.outcome),
            KeyValue::new(
                "fanfare.channels",
                i64::try_from(admission.channels).unwrap_or(i64::MAX),
            ),
        ];
        attributes.extend(admission.status.map(status_code));
        if let Some(subject) = admission.subject {
            attributes.push(KeyValue::new("user.id", subject.to_owned()));
        }
        let mut span = self
            .0
            .span_builder("admission")
            .with_kind(SpanKind::Server)
            .with_start_time(admission.began)
            .with_attributes(attributes);
        // A parent decides whether there is a span, and anybody can send one that says yes.
        let parent = admission.parent.filter(|_| admission.is_trusted);
        if let (None, Some(named)) = (parent, admission.parent) {
            span = span.with_links(vec![Link::with_context(remote(named))]);
        }
        let mut span = self.start(span, parent);
        if admission
            .status
            .is_some_and(|status| status.is_server_error())
        {
            span.set_status(Status::error(admission.outcome));
        }
    }
}

/// How a stream was admitted, or why not.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// When its request was read.
    pub began: SystemTime,
    /// The trace that the client says it belongs to.
    pub parent: Option<TraceParent>,
    /// The client may say so: else it is a trace of its own, which has the other for a link.
    pub is_trusted: bool,
    /// The connection's id in the log.
    pub connection: &'a str,
    /// Who asked.
    pub client: IpAddr,
    /// Whom the client proved to be.
    pub subject: Option<&'a str>,
    /// How many channels it asked for; 0 where that was not understood, or it was refused before.
    pub channels: usize,
    /// `opened`, or why not.
    pub outcome: &'static str,
    /// What it was answered; `None`: nothing, since its client did not wait.
    pub status: Option<StatusCode>,
}

/// The span of an event that is being published.
#[derive(Debug)]
pub struct PublishSpan {
    span: Span,
    parent: Option<TraceParent>,
}

impl PublishSpan {
    /// What the event carries: this span, or the publisher's where this one is not recorded.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        let context = self.span.span_context();
        if !context.is_sampled() {
            return self.parent;
        }
        TraceParent::new(
            u128::from_be_bytes(context.trace_id().to_bytes()),
            u64::from_be_bytes(context.span_id().to_bytes()),
            context.trace_flags().to_u8(),
        )
    }

    /// Ends it with the answer: the event's id, none for a live event, or the status of a fault.
    pub fn end(mut self, answer: Result<Option<&EventId>, StatusCode>) {
        match answer {
            Ok(id) => {
                self.span.set_attribute(status_code(StatusCode::OK));
                if let Some(id) = id {
                    let id = KeyValue::new("messaging.message.id", id.to_string());
                    self.span.set_attribute(id);
                }
            }
            Err(status) => {
                self.span.set_attribute(status_code(status));
                self.span.set_status(Status::error(status.to_string()));
            }
        }
    }
}

/// The span of one event's way through the shards.
#[derive(Debug)]
struct FanOutSpan {
    span: Span,
    began: Instant,
    began_at: SystemTime,
    /// Until the last shard had handed it out. The event itself waits for those behind it in its
    /// batch.
    took_ns: AtomicU64,
    shards: AtomicU64,
    clients: AtomicU64,
}

impl FanOutWatch for FanOutSpan {
    fn handed_to(&self, clients: usize) {
        let took_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.took_ns.fetch_max(took_ns, Ordering::Relaxed);
        self.shards.fetch_add(1, Ordering::Relaxed);
        self.clients.fetch_add(clients as u64, Ordering::Relaxed);
    }
}

impl Drop for FanOutSpan {
    fn drop(&mut self) {
        for (name, count) in [
            ("fanfare.shards", &mut self.shards),
            ("fanfare.clients", &mut self.clients),
        ] {
            let count = i64::try_from(*count.get_mut()).unwrap_or(i64::MAX);
            self.span.set_attribute(KeyValue::new(name, count));
        }
        let took = Duration::from_nanos(*self.took_ns.get_mut());
        self.span.end_with_timestamp(self.began_at + took);
    }
}

/// The attributes of OpenTelemetry's conventions for messaging spans.
fn messaging(operation: &'static str, channel: &ChannelName) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "fanfare"),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", channel.to_string()),
    ]
}

fn status_code(status: StatusCode) -> KeyValue {
    KeyValue::new(
        "http.response.status_code",
        Value::I64(i64::from(status.as_u16())),
    )
}

fn remote(parent: TraceParent) -> SpanContext {
    SpanContext::new(
        TraceId::from(parent.trace_id()),
        SpanId::from(parent.span_id()),
        TraceFlags::new(parent.flags()),
        true,
        TraceState::NONE,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};

    use super::*;
    use crate::protocol::Event;

    /// Keeps what has ended.
    #[derive(Clone, Debug, Default)]
    struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Ended {
        fn on_start(&self, _: &mut Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn a_fan_out_lasts_until_the_event_is_handed_out_however_long_its_batch_is_kept() {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(ended.clone())
            .build();
        let traces = Traces(provider.tracer("test"));
        let event = Event::new(Bytes::new(), 1)
            .unwrap()
            .with_trace_parent(TraceParent::new(1, 2, 1));
        let event = BusEvent::live("a".parse().unwrap(), event);
        let began = Instant::now();
        let watch = traces.fan_out(&event).unwrap();
        watch.handed_to(3);
        watch.handed_to(4);
        let handed = began.elapsed();
        // The batch is kept for longer.
        while began.elapsed() < handed * 2 {}
        drop(watch);
        let span = ended.0.lock().unwrap().remove(0);
        let took = span.end_time.duration_since(span.start_time).unwrap();
        assert!(
            took > Duration::ZERO && took <= handed,
            "{took:?} {handed:?}"
        );
        let count = |name: &str| {
            let found = span.attributes.iter().find(|one| one.key.as_str() == name);
            found.unwrap().value.clone()
        };
        assert_eq!(count("fanfare.shards"), Value::I64(2));
        assert_eq!(count("fanfare.clients"), Value::I64(7));
    }
}
