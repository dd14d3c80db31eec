//! The gateway of the last release, built out of this repository's history.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Version 0.1.0. It moves on with each release.
const LAST_RELEASE: &str = "c9f605b9105d8d9222b6e643e7ae4d8ea6d499c4";

/// Builds the last release, or `PREVIOUS_VERSION`, and returns its program.
pub fn previous_release() -> PathBuf {
    // Tests run side by side, and each build unpacks the source again.
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let revision = std::env::var("PREVIOUS_VERSION").unwrap_or_else(|_| LAST_RELEASE.to_owned());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = tempfile::tempdir().unwrap();
    let mut archive = Command::new("git")
        .args(["archive", &revision])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let unpacked = Command::new("tar")
        // As new, so that cargo does not take another version's program for this one's.
        .args(["-x", "-m"])
        .arg("-C")
        .arg(source.path())
        .stdin(archive.stdout.take().unwrap())
        .status()
        .unwrap();
    assert!(
        archive.wait().unwrap().success() && unpacked.success(),
        "{revision} is not in this repository's history: fetch all of it"
    );
    // In a folder of its own that stays, so that it is built once.
    let target = root.join("target/previous");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--package", "fanfare"])
        .arg("--manifest-path")
        .arg(source.path().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    target.join("debug/fanfare")
}
