//! Metric families made at the moment of a scrape, of what is counted elsewhere.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::hub::{LATENCY_BOUNDS_US, LatencyTotal};
use crate::labels::Labels;

/// A counter without labels.
pub(super) fn counter(name: &str, help: &str, value: f64) -> MetricFamily {
    family(
        name,
        help,
        MetricType::COUNTER,
        vec![counted(value, vec![])],
    )
}

/// A gauge without labels.
pub(super) fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    gauges(name, help, [(vec![], value)])
}

/// A gauge with labels.
pub(super) fn gauges(
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<LabelPair>, f64)>,
) -> MetricFamily {
    let metric = |(labels, value)| {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(labels);
        metric.set_gauge(gauge);
        metric
    };
    let metrics = values.into_iter().map(metric).collect();
    family(name, help, MetricType::GAUGE, metrics)
}

/// A counter with labels.
pub(super) fn counters(
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<LabelPair>, f64)>,
) -> MetricFamily {
    let metrics = values
        .into_iter()
        .map(|(labels, value)| counted(value, labels))
        .collect();
    family(name, help, MetricType::COUNTER, metrics)
}

/// A counter split by all values of `L`.
pub(super) fn counters_by<L: Labels>(
    name: &str,
    help: &str,
    value: impl Fn(L) -> u64,
) -> MetricFamily {
    let values = L::all().into_iter().map(|labels| {
        let pairs = L::names().into_iter().zip(labels.values());
        let pairs = pairs.map(|(name, value)| label(name, value)).collect();
        (pairs, float(value(labels)))
    });
    counters(name, help, values)
}

/// A histogram of [`LatencyTotal`].
pub(super) fn latencies(name: &str, help: &str, total: &LatencyTotal) -> MetricFamily {
    const MICROSECONDS: f64 = 1e6;
    let mut count = 0;
    let buckets = LATENCY_BOUNDS_US.iter().zip(total.buckets);
    let buckets = buckets.map(|(bound, counted)| {
        count += counted;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(float(*bound) / MICROSECONDS);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count + total.over);
    histogram.set_sample_sum(float(total.sum_us) / MICROSECONDS);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}

/// A label.
pub(super) fn label(name: &str, value: impl Into<String>) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.into());
    pair
}

/// A count as Prometheus has it: exact up to 2^53.
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

fn counted(value: f64, labels: Vec<LabelPair>) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
