//! What is wrong although the replica serves, for `/readyz`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The warnings in force: at most one from each place in the program that has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Warnings {
    /// Says what is wrong at `source` now, or that nothing is. Returns whether that is new.
    pub(crate) fn set(&self, source: &'static str, warning: Option<String>) -> bool {
        let mut all = self.0.lock();
        if all.get(source) == warning.as_ref() {
            return false;
        }
        match warning {
            Some(warning) => all.insert(source, warning),
            None => all.remove(source),
        };
        true
    }

    /// All of them, each behind its source.
    pub(crate) fn all(&self) -> Vec<String> {
        let all = self.0.lock();
        all.iter()
            .map(|(source, warning)| format!("{source}: {warning}"))
            .collect()
    }
}
