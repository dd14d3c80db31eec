//! Counters of `prometheus` that are split by [`Labels`].

use std::marker::PhantomData;
use std::sync::Arc;

use prometheus::{
    IntCounter, IntCounterVec, Opts, Registry, register_int_counter_vec_with_registry,
};

use crate::labels::Labels;

/// A counter split by labels, every series there from the start.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct CounterBy<L> {
    family: IntCounterVec,
    /// Each, in the order of their places: looking one up by its labels' values would cost every
    /// event.
    counters: Arc<[IntCounter]>,
    labels: PhantomData<L>,
}

impl<L: Labels> CounterBy<L> {
    /// A family that is exported with the metrics of `registry`.
    pub(in crate::telemetry) fn register(
        name: &str,
        help: &str,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let names = L::names();
        let family = register_int_counter_vec_with_registry!(name, help, &names, registry)?;
        Ok(Self::of(family))
    }

    /// A family that another one includes.
    pub(in crate::telemetry) fn unregistered(name: &str, help: &str) -> prometheus::Result<Self> {
        IntCounterVec::new(Opts::new(name, help), &L::names()).map(Self::of)
    }

    fn of(family: IntCounterVec) -> Self {
        let counter = |labels: L| family.with_label_values(&labels.values());
        Self {
            counters: L::all().into_iter().map(counter).collect(),
            family,
            labels: PhantomData,
        }
    }

    pub(in crate::telemetry) fn get(&self, labels: L) -> IntCounter {
        let counter = self.counters.get(labels.place()).cloned();
        counter.unwrap_or_else(|| self.family.with_label_values(&labels.values()))
    }
}
