//! Traces: spans for what is published, fanned out and admitted, sent to an OTLP collector.
//!
//! Spans are spans of `tracing` with the target [`SPANS`]; the layer of [`spans_layer`] hands them to
//! OpenTelemetry whatever the log's filter is, and the log does not write them. Off unless a collector
//! is named. Spans wait in a bounded queue for a thread of their own that sends them, so a collector
//! that is away or slow costs a counter.

mod pipeline;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use http::StatusCode;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::field::{Empty, display};
use tracing::{Level, Span, Subscriber, error_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::hub::{BusEvent, FanOutWatch};
use crate::protocol::{ChannelName, EventId, TraceParent};

pub use pipeline::{LAST_SPANS, TraceConfig, TraceError, TracePipeline};

/// The target of the spans that are sent to the collector.
pub(super) const SPANS: &str = "fanfare::trace";

/// Hands spans to `tracer`, and nothing else: neither log lines nor what `tracing` knows of the code.
pub(super) fn spans_layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // A span's parent may be set later, until the span is asked for its context.
        .with_context_activation(false)
        .with_tracer(tracer)
        .with_filter(Targets::new().with_target(SPANS, Level::ERROR))
}

/// Makes spans. It exists only where there is a pipeline that sends them.
#[derive(Clone, Copy, Debug)]
pub struct Traces(());

impl Traces {
    /// Begins the span of an event that is being published over HTTP.
    pub fn publish(self, channel: &ChannelName, parent: Option<TraceParent>) -> PublishSpan {
        let span = error_span!(
            target: SPANS,
            parent: None,
            "publish",
            otel.kind = "producer",
            messaging.system = "fanfare",
            "messaging.operation.type" = "send",
            messaging.destination.name = %channel,
            messaging.message.id = Empty,
            http.response.status_code = Empty,
        );
        if let Some(parent) = parent {
            join(&span, parent);
        }
        note_trace(&span);
        PublishSpan { span, parent }
    }

    /// Begins the span of an event's fan-out on this replica, if its publisher has it traced.
    /// It ends when the last shard has handed the event to its clients.
    pub fn fan_out(self, event: &BusEvent) -> Option<Arc<dyn FanOutWatch>> {
        let parent = event.trace_parent().filter(|parent| parent.is_sampled())?;
        let span = error_span!(
            target: SPANS,
            parent: None,
            "fan-out",
            otel.kind = "consumer",
            messaging.system = "fanfare",
            "messaging.operation.type" = "process",
            messaging.destination.name = %event.channel,
            messaging.message.id = event.id().map(display),
            fanfare.shards = Empty,
            fanfare.clients = Empty,
        );
        join(&span, parent);
        // What messaging spans are connected by, beside the parent.
        span.add_link(remote(parent));
        let is_recording = span.context().span().is_recording();
        is_recording.then(|| {
            Arc::new(FanOutSpan {
                span,
                shards: AtomicI64::new(0),
                clients: AtomicI64::new(0),
            }) as Arc<dyn FanOutWatch>
        })
    }

    /// Begins the span of a request for a stream.
    pub fn admission(self, connection: &dyn fmt::Display, client: IpAddr) -> AdmissionSpan {
        AdmissionSpan {
            span: error_span!(
                target: SPANS,
                parent: None,
                "admission",
                otel.kind = "server",
                client.address = %client,
                fanfare.connection = %connection,
                fanfare.outcome = Empty,
                fanfare.channels = Empty,
                http.response.status_code = Empty,
                user.id = Empty,
            ),
            has_joined: false,
        }
    }
}

/// The span of a request for a stream, until it is known what becomes of it.
#[derive(Debug)]
pub struct AdmissionSpan {
    span: Span,
    has_joined: bool,
}

impl AdmissionSpan {
    /// Makes the span part of the trace that the client names in `parent`, if the client is trusted:
    /// a parent decides whether the span is recorded, and anyone can send one that says yes. A client
    /// that is not trusted gets a trace of its own, with a link. Only the first call counts.
    pub fn join(&mut self, parent: Option<TraceParent>, is_trusted: bool) {
        if std::mem::replace(&mut self.has_joined, true) {
            return;
        }
        match parent {
            Some(parent) if is_trusted => join(&self.span, parent),
            Some(parent) => self.span.add_link(remote(parent)),
            None => {}
        }
        note_trace(&self.span);
    }

    /// Ends the span with what has become of the request.
    pub fn end(self, admission: &Admission<'_>) {
        let Self { span, .. } = self;
        span.record("fanfare.outcome", admission.outcome);
        span.record("fanfare.channels", signed(admission.channels));
        if let Some(subject) = admission.subject {
            span.record("user.id", subject);
        }
        if let Some(status) = admission.status {
            span.record("http.response.status_code", i64::from(status.as_u16()));
            if status.is_server_error() {
                span.set_status(Status::error(admission.outcome));
            }
        }
    }
}

/// What has become of a request for a stream.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// The subject of the client's token.
    pub subject: Option<&'a str>,
    /// How many channels it names; 0 if that was not understood, or it was refused before.
    pub channels: usize,
    /// `opened`, or why not.
    pub outcome: &'static str,
    /// The status of the answer; `None` if the client did not wait for one.
    pub status: Option<StatusCode>,
}

/// The span of an event that is being published.
#[derive(Debug)]
pub struct PublishSpan {
    span: Span,
    parent: Option<TraceParent>,
}

impl PublishSpan {
    /// What the event carries: this span, or the publisher's if this one is not recorded.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        let context = self.span.context();
        let context = context.span().span_context().clone();
        if !context.is_sampled() {
            return self.parent;
        }
        TraceParent::new(
            u128::from_be_bytes(context.trace_id().to_bytes()),
            u64::from_be_bytes(context.span_id().to_bytes()),
            context.trace_flags().to_u8(),
        )
    }

    /// Ends the span with the answer: the event's id, `None` for a live event, or the status of a
    /// fault.
    pub fn end(self, answer: Result<Option<&EventId>, StatusCode>) {
        let span = self.span;
        let status = answer.err().unwrap_or(StatusCode::OK);
        span.record("http.response.status_code", i64::from(status.as_u16()));
        match answer {
            Ok(id) => {
                span.record("messaging.message.id", id.map(display));
            }
            Err(status) => span.set_status(Status::error(status.to_string())),
        }
    }
}

/// The span of one event's way through the shards.
#[derive(Debug)]
struct FanOutSpan {
    span: Span,
    shards: AtomicI64,
    clients: AtomicI64,
}

impl FanOutWatch for FanOutSpan {
    fn handed_to(&self, clients: usize) {
        self.shards.fetch_add(1, Ordering::Relaxed);
        self.clients.fetch_add(signed(clients), Ordering::Relaxed);
        // A span ends when it was last left, however long the event's batch is kept afterwards.
        self.span.in_scope(|| {});
    }
}

impl Drop for FanOutSpan {
    fn drop(&mut self) {
        self.span.record("fanfare.shards", *self.shards.get_mut());
        self.span.record("fanfare.clients", *self.clients.get_mut());
    }
}

/// Makes `span`, whose context nobody has asked for yet, part of the trace of `parent`.
fn join(span: &Span, parent: TraceParent) {
    let context = Context::new().with_remote_span_context(remote(parent));
    // It cannot fail: the layer is there, and the span has not started.
    let _ = span.set_parent(context);
}

/// Writes the trace of `span` into the log lines of the request that is being answered, if the
/// collector gets it. The span's parent is settled by this.
fn note_trace(span: &Span) {
    let context = span.context();
    let context = context.span().span_context().clone();
    if context.is_sampled() {
        Span::current().record("trace_id", display(context.trace_id()));
    }
}

/// OpenTelemetry's integers are signed.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use opentelemetry::Value;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
    use tracing_subscriber::layer::SubscriberExt;

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
        let subscriber = tracing_subscriber::registry().with(spans_layer(provider.tracer("test")));
        let _guard = tracing::subscriber::set_default(subscriber);
        let traces = Traces(());
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
