//! The version that is told: with the commit, where the build is given one in `FANFARE_BUILD_REVISION`
//! (`make dist` and the Dockerfile do). Git is not asked: builds of one source are alike, and a
//! commit alone is no reason to build anew.

#![allow(clippy::print_stdout, reason = "the way a build script answers")]

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FANFARE_BUILD_REVISION");
    let version = var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match var("FANFARE_BUILD_REVISION") {
        Ok(revision) if !revision.is_empty() => format!("{version} ({revision})"),
        _ => version,
    };
    println!("cargo::rustc-env=VERSION_AND_REVISION={version}");
}
