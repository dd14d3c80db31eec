//! Where spans are sent: the standard `OTEL_*` variables (OpenTelemetry specification,
//! "Environment Variable Specification" and "OTLP Exporter Configuration").

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use reqwest::Url;

use super::faults::Reader;
use crate::telemetry::TraceConfig;

/// As the specification says (`OTEL_BSP_MAX_QUEUE_SIZE`).
const QUEUE_SPANS: NonZeroUsize = match NonZeroUsize::new(2048) {
    Some(spans) => spans,
    None => NonZeroUsize::MIN,
};

/// As the specification says (`OTEL_EXPORTER_OTLP_TIMEOUT`).
const TIMEOUT: Duration = Duration::from_secs(10);

/// A span takes about a kilobyte.
const MOST_QUEUE_SPANS: usize = 1 << 20;

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// How a trace is handed on here; baggage is nobody's business here.
const PROPAGATORS: [&str; 2] = ["tracecontext", "baggage"];

/// Files that would be read by nobody.
const CERTIFICATES: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
];

/// An hour is more than anybody waits.
const MOST_MS: u64 = 60 * 60 * 1000;

/// Numbers that the library reads itself, and takes for unset where they are none.
const NUMBERS: [(&str, RangeInclusive<u64>, &str); 7] = [
    ("OTEL_BSP_SCHEDULE_DELAY", 1..=MOST_MS, "milliseconds"),
    ("OTEL_BSP_EXPORT_TIMEOUT", 1..=MOST_MS, "milliseconds"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", 1..=MOST_MS, "milliseconds"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        1..=MOST_MS,
        "milliseconds",
    ),
    (
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        0..=u32::MAX as u64,
        "attributes",
    ),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", 0..=u32::MAX as u64, "events"),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", 0..=u32::MAX as u64, "links"),
];

/// Reads the variables. `None`: traces are off, as they are unless a collector is named.
/// A variable that is empty counts as unset.
pub(super) fn read(
    variable: impl Fn(&str) -> Option<String>,
    reader: &mut Reader,
) -> Option<TraceConfig> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let is_off = variable("OTEL_SDK_DISABLED")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").as_deref() == Some("none");
    let of_traces_first = |traces: &'static str, general: &'static str| {
        let own = variable(traces).map(|value| (traces, value));
        own.or_else(|| variable(general).map(|value| (general, value)))
    };
    let (name, endpoint) = of_traces_first(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    .filter(|_| !is_off)?;

    let mut fault = |setting: &str, rule: &str| reader.foreign_fault(setting, rule);
    let url = Url::parse(&endpoint).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    let collector = url.and_then(|url| {
        let port = url.port_or_known_default()?;
        Some(format!("{}:{port}", url.host_str()?))
    });
    if collector.is_none() {
        fault(name, "must be the http or https URL of a collector");
    }
    let is_anonymous = |url: Url| url.username().is_empty() && url.password().is_none();
    if !Url::parse(&endpoint).is_ok_and(is_anonymous) && collector.is_some() {
        fault(
            name,
            "must not contain a user or password: use OTEL_EXPORTER_OTLP_HEADERS",
        );
    }
    let disabled = variable("OTEL_SDK_DISABLED");
    if disabled.is_some_and(|value| !value.eq_ignore_ascii_case("false")) {
        fault("OTEL_SDK_DISABLED", "must be true or false");
    }
    if let Some(propagators) = variable("OTEL_PROPAGATORS") {
        let mut names = propagators.split(',').map(str::trim);
        let has_trace_context = names.clone().any(|name| name == "tracecontext");
        if !has_trace_context || !names.all(|name| PROPAGATORS.contains(&name)) {
            fault(
                "OTEL_PROPAGATORS",
                "must be tracecontext, or tracecontext,baggage: there is no other here",
            );
        }
    }
    for name in CERTIFICATES {
        if variable(name).is_some() {
            fault(
                name,
                "is not known here: a collector's certificate is one that the machine trusts",
            );
        }
    }
    if variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp") {
        fault("OTEL_TRACES_EXPORTER", "must be otlp or none");
    }
    let protocol = of_traces_first(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    );
    if let Some((name, _)) = protocol.filter(|(_, value)| value != "http/protobuf") {
        fault(
            name,
            "must be http/protobuf: the only protocol there is here",
        );
    }
    let compression = of_traces_first(
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
    );
    if let Some((name, _)) = compression.filter(|(_, value)| value != "none") {
        fault(name, "must be none: nothing is compressed here");
    }
    let sampler = variable("OTEL_TRACES_SAMPLER");
    if let Some(sampler) = &sampler {
        if !SAMPLERS.contains(&sampler.as_str()) {
            let rule = format!("must be one of {}", SAMPLERS.join(", "));
            fault("OTEL_TRACES_SAMPLER", &rule);
        } else if sampler.ends_with("traceidratio") {
            let share = variable("OTEL_TRACES_SAMPLER_ARG");
            let share = share.and_then(|share| share.parse::<f64>().ok());
            if !share.is_some_and(|share| (0.0..=1.0).contains(&share)) {
                fault(
                    "OTEL_TRACES_SAMPLER_ARG",
                    "must be the share of traces that are recorded, from 0 to 1",
                );
            }
        }
    }
    let queue_spans = match variable("OTEL_BSP_MAX_QUEUE_SIZE") {
        None => QUEUE_SPANS,
        Some(text) => {
            let spans = text.parse().ok();
            spans
                .filter(|spans: &NonZeroUsize| spans.get() <= MOST_QUEUE_SPANS)
                .unwrap_or_else(|| {
                    let rule = format!("must be a number of spans, at most {MOST_QUEUE_SPANS}");
                    fault("OTEL_BSP_MAX_QUEUE_SIZE", &rule);
                    QUEUE_SPANS
                })
        }
    };
    for (name, range, unit) in NUMBERS {
        let number = variable(name).map(|text| text.parse::<u64>().ok());
        if number.is_some_and(|number| !number.is_some_and(|number| range.contains(&number))) {
            let (least, most) = range.into_inner();
            fault(
                name,
                &format!("must be a number of {unit}, from {least} to {most}"),
            );
        }
    }
    if let Some(text) = variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") {
        let spans: Option<usize> = text.parse().ok();
        if !spans.is_some_and(|spans| (1..=queue_spans.get()).contains(&spans)) {
            fault(
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                "must be a number of spans, at most those that may wait (OTEL_BSP_MAX_QUEUE_SIZE)",
            );
        }
    }
    for name in [
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    ] {
        if variable(name).is_some_and(|text| !pairs(&text).all(is_header)) {
            fault(name, "must be a list of headers: name=value,name=value");
        }
    }
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let attributes: Option<Vec<_>> = pairs(&attributes).map(attribute).collect();
    if attributes.is_none() {
        fault(
            "OTEL_RESOURCE_ATTRIBUTES",
            "must be a list of attributes, percent-encoded UTF-8: name=value,name=value",
        );
    }
    let timeout = of_traces_first(
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    );
    let timeout = timeout.and_then(|(_, text)| text.parse().ok());
    let mut resource = attributes.unwrap_or_default();
    // It takes precedence (OpenTelemetry specification, "General SDK Configuration").
    resource.extend(variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
    Some(TraceConfig {
        collector: collector?,
        queue_spans,
        timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
        resource,
    })
}

/// The pairs of `name=value,…`, as the library reads them; without a name where one is none.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or_default();
        (name.trim(), value.trim())
    })
}

/// An attribute of the resource, decoded (OpenTelemetry specification, "Resource SDK": as W3C
/// Baggage). `None`: it has no name, or is no text.
fn attribute((name, value): (&str, &str)) -> Option<(String, String)> {
    let decode = |text| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        text.ok().map(std::borrow::Cow::into_owned)
    };
    let name = decode(name).filter(|name| !name.is_empty())?;
    Some((name, decode(value)?))
}

fn is_header((name, value): (&str, &str)) -> bool {
    let value = percent_encoding::percent_decode_str(value).decode_utf8();
    let is_value = value.is_ok_and(|value| HeaderValue::from_str(&value).is_ok());
    is_value && HeaderName::try_from(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Option<TraceConfig>, Vec<String>) {
        let mut reader = Reader::default();
        let variable = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let config = super::read(variable, &mut reader);
        (
            config,
            reader.faults().map(|fault| fault.setting.clone()).collect(),
        )
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");

    #[test]
    fn traces_are_off_unless_a_collector_is_named() {
        for variables in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "x")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(read(variables), (None, Vec::new()), "{variables:?}");
        }
        let (config, faults) = read(&[ENDPOINT]);
        assert_eq!(
            (config.unwrap().collector.as_str(), faults.len()),
            ("c:4318", 0)
        );
        let own = (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://own/v1/traces",
        );
        assert_eq!(read(&[ENDPOINT, own]).0.unwrap().collector, "own:443");
    }

    #[test]
    fn all_faults_are_listed() {
        let (_, faults) = read(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c:4318"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "-1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10.5"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer x"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b%0ac=d"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a,region"),
        ]);
        assert_eq!(
            faults,
            [
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "OTEL_TRACES_EXPORTER",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                "OTEL_EXPORTER_OTLP_COMPRESSION",
                "OTEL_TRACES_SAMPLER_ARG",
                "OTEL_BSP_MAX_QUEUE_SIZE",
                "OTEL_BSP_SCHEDULE_DELAY",
                "OTEL_BSP_EXPORT_TIMEOUT",
                "OTEL_EXPORTER_OTLP_TIMEOUT",
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
                "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                "OTEL_EXPORTER_OTLP_HEADERS",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "OTEL_RESOURCE_ATTRIBUTES",
            ]
        );
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_PROPAGATORS", "tracecontext,b3"),
            ("OTEL_PROPAGATORS", "none"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nope.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/nope.pem"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "http://user:secret@c:4318",
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user@c:4318"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=%ff"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=a"),
        ] {
            let (_, faults) = read(&[ENDPOINT, (name, value)]);
            assert_eq!(faults, [name], "{value}");
        }
    }

    #[test]
    fn what_makes_sense_is_taken() {
        let (config, faults) = read(&[
            ENDPOINT,
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20x, a=b=c ,",
            ),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=a, service.version = 7,a%2Cb=%C3%A4%3D%20b",
            ),
            ("OTEL_PROPAGATORS", "baggage, tracecontext"),
            ("OTEL_SDK_DISABLED", "False"),
            ("OTEL_SERVICE_NAME", "b"),
        ]);
        assert_eq!(faults, Vec::<String>::new());
        let config = config.unwrap();
        let of = |name: &str| {
            let given = config.resource.iter().rfind(|(other, _)| other == name);
            given.map(|(_, value)| value.as_str())
        };
        assert_eq!(of("service.name"), Some("b"));
        assert_eq!(of("service.version"), Some("7"));
        assert_eq!(of("a,b"), Some("ä= b"));
        assert_eq!(of("service.instance.id"), None);
        assert_eq!(config.timeout, TIMEOUT);
        let own = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
        ];
        let timeout = read(&own).0.unwrap().timeout;
        assert_eq!(timeout, Duration::from_millis(1500));
    }
}
