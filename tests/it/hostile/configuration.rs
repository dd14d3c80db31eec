//! Every setting wrong once, on its own: the start is refused, and the setting named.

use std::collections::BTreeSet;
use std::process::{Command, Output};

/// Settings that take any text: wrong only together with others.
const ANY_TEXT: [&str; 2] = ["FANFARE_JWT_ISSUER", "FANFARE_JWT_AUDIENCE"];

fn fanfare(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// The settings that `--help` names: so none can be forgotten here.
fn settings() -> BTreeSet<String> {
    let help = fanfare(&["check", "--help"], &[]);
    let help = String::from_utf8(help.stdout).unwrap();
    help.split("[env:")
        .skip(1)
        .filter_map(|rest| rest.trim_start().split(['=', ']']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_setting_is_refused_when_it_is_wrong() {
    let settings = settings();
    assert!(settings.len() > 25, "{settings:?}");
    for setting in &settings {
        let output = fanfare(&["check"], &[(setting, "=*?[\u{1}wrong\u{7f}")]);
        let told = String::from_utf8_lossy(&output.stderr);
        // Alone, they say that something else is missing.
        let is_told = told.contains(setting.trim_end_matches("_FILE"))
            || ANY_TEXT.contains(&setting.as_str());
        assert!(!output.status.success() && is_told, "{setting}: {told}");
    }
    let output = fanfare(&["check"], &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn settings_that_are_none_are_refused() {
    for (arguments, variables, part) in [
        (
            &["check"][..],
            &[("FANFARE_HEARTBEAD", "15s")][..],
            "FANFARE_HEARTBEAD",
        ),
        (&["check", "--heartbead=15s"], &[], "--heartbead"),
        (&["check", "--heartbeat"], &[], "--heartbeat"),
        (&["chekc"], &[], "chekc"),
    ] {
        let output = fanfare(arguments, variables);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(part),
            "{arguments:?}: {told}"
        );
    }
}
