//! Secrets that were given as arguments, which everybody on the machine can read.

use clap::ArgMatches;
use clap::parser::ValueSource;
use secrecy::{ExposeSecret, SecretString};

use super::Fault;

/// Every argument that is a secret, or holds one: `ps` shows it to everybody on the machine.
pub fn exposed_secrets(matches: &ArgMatches) -> Vec<Fault> {
    let given = |id: &str| -> Option<&SecretString> {
        let is_known = matches.try_contains_id(id).unwrap_or_default();
        if is_known && matches.value_source(id) == Some(ValueSource::CommandLine) {
            matches.get_one(id)
        } else {
            None
        }
    };
    let mut faults = Vec::new();
    for (id, setting) in [
        ("jwt_secret", "FANFARE_JWT_SECRET"),
        ("token", "FANFARE_TOKEN"),
    ] {
        if given(id).is_some() {
            faults.push(exposed(setting));
        }
    }
    if given("redis_url").is_some_and(|url| holds_password(url.expose_secret())) {
        faults.push(exposed("FANFARE_REDIS_URL"));
    }
    if let Some((_, command)) = matches.subcommand() {
        faults.extend(exposed_secrets(command));
    }
    faults
}

fn exposed(setting: &str) -> Fault {
    Fault {
        setting: setting.to_owned(),
        rule: format!(
            "is a secret, and other users of the machine can read arguments: set the variable, or \
             {setting}_FILE"
        ),
    }
}

/// Whether a URL has more than an address: what it is, is not told apart.
fn holds_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    authority.contains('@') || path.contains("pass=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use clap::{Args, Command};

    fn exposed_in(arguments: &[&str]) -> Vec<String> {
        let command = Settings::augment_args(Command::new("fanfare"));
        let command = command.subcommand(Settings::augment_args(Command::new("check")));
        let matches = command.get_matches_from([&["fanfare"], arguments].concat());
        let faults = exposed_secrets(&matches);
        faults.into_iter().map(|fault| fault.setting).collect()
    }

    #[test]
    fn secrets_among_arguments_are_told() {
        let secret = "--jwt-secret=0123456789abcdefghijklmnopqrstuv";
        let url = "--redis-url=redis://user:canary@127.0.0.1";
        assert_eq!(exposed_in(&[secret]), ["FANFARE_JWT_SECRET"]);
        assert_eq!(exposed_in(&["check", url]), ["FANFARE_REDIS_URL"]);
        let socket = "--redis-url=redis+unix:///run/redis.sock?pass=canary";
        assert_eq!(exposed_in(&[socket]), ["FANFARE_REDIS_URL"]);
        assert!(exposed_in(&["--redis-url=redis://127.0.0.1:6379/0"]).is_empty());
        assert!(exposed_in(&["--jwt-secret-file=/run/secret"]).is_empty());
    }
}
