//! From a finished span to the collector.

use std::error::Error;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter as OtlpExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use parking_lot::Mutex;
use prometheus::IntCounter;

use super::Traces;
use crate::telemetry::occurrences::{SpanTooMany, SpansDropped};

/// What the last spans may take to reach the collector when the process stops.
pub const LAST_SPANS: Duration = Duration::from_secs(2);

/// How spans are sent. The rest is read from the same variables by the library that sends them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// Host and port of the collector.
    pub collector: String,
    /// Spans that may wait for it.
    pub queue_spans: NonZeroUsize,
    /// What a request to it may take.
    pub timeout: Duration,
    /// Attributes of the resource that are set; of those with the same name the last one counts.
    pub resource: Vec<(String, String)>,
}

/// Spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent (OTEL_EXPORTER_OTLP_…): {0}")]
pub enum TraceError {
    /// A variable makes no sense to the library.
    Exporter(#[from] ExporterBuildError),
    /// Nothing can be sent at all, as without certificates to trust.
    Client(#[from] reqwest::Error),
}

/// Sends spans until it is shut down.
#[derive(Debug)]
pub struct TracePipeline(SdkTracerProvider);

impl TracePipeline {
    /// Starts the thread that sends spans. What the library is to know beside `config` it reads
    /// itself from the standard variables. `dropped` counts the spans that reach no collector.
    ///
    /// # Errors
    /// When a variable makes no sense to the library, or there is nothing to send with.
    pub fn start(
        config: &TraceConfig,
        replica: &str,
        dropped: &IntCounter,
    ) -> Result<Self, TraceError> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let failure = Failure::default();
        let client = Client {
            client: blocking_client(config.timeout)?,
            failure: failure.clone(),
        };
        let exporter = CountingExporter {
            exporter: OtlpExporter::builder()
                .with_http()
                .with_http_client(client)
                .build()?,
            failure,
            collector: config.collector.clone(),
            waiting: Arc::clone(&waiting),
            dropped: dropped.clone(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(config.queue_spans.get())
            .build();
        let processor = BoundedProcessor {
            processor: BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches)
                .build(),
            most: config.queue_spans.get(),
            waiting,
            dropped: dropped.clone(),
        };
        let ours = [
            ("service.name", "fanfare"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", replica),
        ];
        let ours = ours.map(|(name, value)| KeyValue::new(name, value.to_owned()));
        let given = config.resource.iter();
        let given = given.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        // Not the library's own reading of the variables, which decodes nothing.
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes(ours)
            // What is set wins.
            .with_attributes(given);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource.build())
            .build();
        Ok(Self(provider))
    }

    /// Takes the spans of `tracing`.
    pub(in crate::telemetry) fn tracer(&self) -> SdkTracer {
        self.0.tracer("fanfare")
    }

    /// What makes spans for it.
    pub fn traces(&self) -> Traces {
        Traces(())
    }

    /// Sends what waits, if the collector takes it soon.
    pub fn shutdown(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// A client for the thread that sends spans. It is made on a thread of its own: it has a runtime,
/// which must not begin or end within another.
fn blocking_client(timeout: Duration) -> reqwest::Result<reqwest::blocking::Client> {
    std::thread::scope(|scope| {
        let build = || {
            reqwest::blocking::Client::builder()
                .timeout(timeout)
                .build()
        };
        let built = scope.spawn(build).join();
        built.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Why the last request was not answered, for the log.
#[derive(Clone, Debug, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn set(&self, error: &HttpError) {
        let mut cause: &dyn Error = error.as_ref();
        // The innermost says it: a connection was refused, a time is over, a name is unknown.
        while let Some(source) = cause.source() {
            cause = source;
        }
        *self.0.lock() = Some(cause.to_string());
    }

    fn take(&self) -> Option<String> {
        let mut failure = self.0.lock();
        failure.take()
    }
}

/// Sends requests, and keeps what the library would forget: why one was not answered.
#[derive(Debug)]
struct Client {
    client: reqwest::blocking::Client,
    failure: Failure,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.client.send_bytes(request).await;
            answer.inspect_err(|error| self.failure.set(error))
        })
    }
}

/// Counts what the library would drop without a word: a span too many.
#[derive(Debug)]
struct BoundedProcessor {
    processor: BatchSpanProcessor,
    most: usize,
    /// Spans in the queue and in the request under way.
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.most {
            self.processor.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            SpanTooMany.emit(&self.dropped);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Counts what the collector does not take.
#[derive(Debug)]
struct CountingExporter {
    exporter: OtlpExporter,
    failure: Failure,
    /// Its host and port.
    collector: String,
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let cause = self.failure.take().unwrap_or_default();
        if let Err(error) = &result {
            SpansDropped {
                spans,
                collector: &self.collector,
                error,
                cause: &cause,
            }
            .emit(&self.dropped);
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
