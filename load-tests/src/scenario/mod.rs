//! A run from beginning to end: plan → clients → warm-up → measured phases → verdict.

mod crew;
pub(crate) mod plan;
mod run;

pub(crate) use run::run;
