//! Where spans are sent: the standard `OTEL_*` variables (OpenTelemetry specification,
//! "Environment Variable Specification" and "OTLP Exporter Configuration").
//!
//! Only what would send no span, or a password, is a fault. The library that sends spans reads the other
//! variables itself, with the defaults of the specification.

use std::num::NonZeroUsize;
use std::time::Duration;

use reqwest::Url;

use super::faults::Reader;
use crate::telemetry::TraceConfig;

/// As the specification says (`OTEL_BSP_MAX_QUEUE_SIZE`).
const QUEUE_SPANS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2047);

/// A span takes about a kilobyte.
const MAX_QUEUE_SPANS: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 20) - 1);

/// As the specification says (`OTEL_EXPORTER_OTLP_TIMEOUT`).
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the variables. `None`: traces are off, as they are unless a collector is named. A variable
/// that is empty counts as unset.
pub(super) fn read(
    variable: impl Fn(&str) -> Option<String>,
    reader: &mut Reader,
) -> Option<TraceConfig> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let of_traces_first = |end: &str| {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"]
            .map(|start| format!("{start}{end}"))
            .into_iter()
            .find_map(|name| variable(&name).map(|value| (name, value)))
    };
    let is_disabled = variable("OTEL_SDK_DISABLED");
    if is_disabled.is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").as_deref() == Some("none")
    {
        return None;
    }
    let (name, endpoint) = of_traces_first("ENDPOINT")?;
    let collector = collector(&endpoint)
        .map_err(|rule| reader.foreign_fault(&name, rule))
        .ok();
    let protocol = of_traces_first("PROTOCOL").filter(|(_, value)| value != "http/protobuf");
    if let Some((name, _)) = protocol {
        reader.foreign_fault(
            &name,
            "must be http/protobuf: the only protocol there is here",
        );
    }
    let spans = variable("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|text| text.parse().ok());
    let timeout = of_traces_first("TIMEOUT").and_then(|(_, text)| text.parse().ok());
    let mut resource = attributes(&variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
    // It takes precedence (OpenTelemetry specification, "General SDK Configuration").
    resource.extend(variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
    Some(TraceConfig {
        collector: collector?,
        queue_spans: spans.unwrap_or(QUEUE_SPANS).min(MAX_QUEUE_SPANS),
        timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
        resource,
    })
}

/// Host and port of the collector.
fn collector(endpoint: &str) -> Result<String, &'static str> {
    let no_collector = "must be the http or https URL of a collector";
    let url = Url::parse(endpoint).map_err(|_| no_collector)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or password: use OTEL_EXPORTER_OTLP_HEADERS");
    }
    match (url.scheme(), url.host_str(), url.port_or_known_default()) {
        ("http" | "https", Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(no_collector),
    }
}

/// The attributes of `name=value,…`, decoded (OpenTelemetry specification, "Resource SDK": as W3C
/// Baggage), which the library does not do. What is not an attribute is skipped.
fn attributes(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = percent_encoding::percent_decode_str(text.trim()).decode_utf8();
        text.ok().map(String::from)
    };
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.filter_map(|(name, value)| Some((decode(name)?, decode(value)?)));
    pairs.filter(|(name, _)| !name.is_empty()).collect()
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
        let faults = reader.faults().map(|fault| fault.setting.clone());
        (config, faults.collect())
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
        let config = config.unwrap();
        assert_eq!((config.collector.as_str(), faults.len()), ("c:4318", 0));
        assert_eq!(config.queue_spans.get(), 2048);
        let own = (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://own/v1/traces",
        );
        assert_eq!(read(&[ENDPOINT, own]).0.unwrap().collector, "own:443");
    }

    #[test]
    fn what_would_send_nothing_or_a_password_is_a_fault() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://u:p@c:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user@c:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ] {
            assert_eq!(read(&[ENDPOINT, (name, value)]).1, [name], "{value}");
        }
    }

    #[test]
    fn what_the_library_does_not_read_is_taken() {
        let (config, faults) = read(&[
            ENDPOINT,
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=a, service.version = 7,a%2Cb=%C3%A4%3D%20b,,=x,team=%ff,region",
            ),
            ("OTEL_SERVICE_NAME", "b"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
        ]);
        assert_eq!(faults, Vec::<String>::new());
        let config = config.unwrap();
        let expected = [
            ("service.name", "a"),
            ("service.version", "7"),
            ("a,b", "ä= b"),
            ("service.name", "b"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(config.resource, expected);
        assert_eq!(config.queue_spans.get(), 8);
        assert_eq!(config.timeout, Duration::from_millis(1500));
    }
}
