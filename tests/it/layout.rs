//! The folders of `src` may be believed: imports point in one direction, and files and functions are short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules of the crate. Each may import those before it, and no other.
const ORDER: [&str; 18] = [
    "protocol",
    "continuity",
    "labels",
    "tasks",
    "files",
    "warnings",
    "supervision",
    "hub",
    "telemetry",
    "auth",
    "tls",
    "config",
    "bus",
    "http",
    "fuzzing",
    "admin",
    "app",
    "cli",
];

/// The modules that may import only these.
const ONLY: [(&str, &[&str]); 7] = [
    ("protocol", &[]),
    ("continuity", &["protocol"]),
    ("labels", &[]),
    ("tasks", &[]),
    ("files", &[]),
    ("warnings", &[]),
    ("supervision", &[]),
];

#[test]
fn imports_point_down() {
    let mut arrows = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in sources(Path::new("src")) {
        let module = module_path(&file);
        let top = module[0].clone();
        let is_test = module
            .iter()
            .any(|part| part == "tests" || part.ends_with("_tests"));
        if ["lib", "main"].contains(&top.as_str()) || is_test {
            continue;
        }
        for line in program_lines(&file) {
            let place = format!("{}: {line}", file.display());
            // A path that climbs to the crate's root would be read as one inside the folder.
            if line.contains(&"super::".repeat(module.len())) || line.contains("crate::{") {
                wrong.push(format!("{place}: write crate::<module>"));
            }
            for name in crate_modules(&line).filter(|name| *name != top) {
                arrows.insert((top.clone(), name.to_owned()));
                if !may_import(&top, name) {
                    wrong.push(format!("{place}: {top} may not import {name}"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(arrows.contains(&("app".into(), "bus".into())), "{arrows:?}");
}

/// The most lines of a file, and of a function.
const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 100;

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    for folder in ["src", "load-tests/src"] {
        for file in sources(Path::new(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<_> = text.lines().collect();
            if lines.len() > MAX_FILE_LINES {
                long.push(format!("{}: {} lines", file.display(), lines.len()));
            }
            for (at, line) in lines.iter().enumerate() {
                let length = function_lines(&lines[at..]);
                if length > MAX_FUNCTION_LINES {
                    long.push(format!(
                        "{}: {} has {length} lines",
                        file.display(),
                        line.trim()
                    ));
                }
            }
        }
    }
    assert_eq!(long, Vec::<String>::new());
}

/// The lines of the function that begins with the first of `lines`, as rustfmt indents it; 0 if none
/// does.
fn function_lines(lines: &[&str]) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_function = lines[0].trim_start().starts_with("fn ") || lines[0].contains(" fn ");
    if !is_function || lines[0].trim_start().starts_with("//") {
        return 0;
    }
    let is_end = |line: &&str| line.ends_with([';', '}']) && indent(line) == indent(lines[0]);
    lines.iter().position(is_end).map_or(0, |end| end + 1)
}

fn may_import(importer: &str, imported: &str) -> bool {
    let place = |name| ORDER.iter().position(|one| *one == name);
    let only = ONLY.iter().find(|(name, _)| *name == importer);
    let is_below = place(imported)
        .zip(place(importer))
        .is_some_and(|(imported, importer)| imported < importer);
    is_below && only.is_none_or(|(_, allowed)| allowed.contains(&imported))
}

/// The file's lines that are neither comments nor tests.
fn program_lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = program.lines().map(str::trim);
    let is_code = |line: &&str| !line.starts_with("//");
    lines.filter(is_code).map(str::to_owned).collect()
}

/// The names that follow `crate::` in a line.
fn crate_modules(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "rs"));
    files
        .chain(folders.iter().flat_map(|folder| sources(folder)))
        .collect()
}

/// `src/bus/redis/mod.rs` is `[bus, redis]`.
fn module_path(file: &Path) -> Vec<String> {
    let path = file.strip_prefix("src").unwrap().with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "mod").collect()
}
