//! Variables that look like settings and are none.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::Fault;

/// Every `FANFARE_…` variable that is no setting of `command`, as a fault: a mistyped
/// name must not silently mean the default.
pub fn unknown_variables<C: CommandFactory>(
    variables: impl Iterator<Item = (String, String)>,
) -> Vec<Fault> {
    let command = C::command();
    let known: BTreeSet<String> = command
        .get_arguments()
        .chain(
            command
                .get_subcommands()
                .flat_map(clap::Command::get_arguments),
        )
        .filter_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
        .collect();
    variables
        .filter(|(name, _)| name.starts_with("FANFARE_") && !known.contains(name))
        .filter(|(name, value)| !is_service_link(name, value))
        .map(|(name, _)| Fault {
            setting: name,
            rule: "is an unknown setting".into(),
        })
        .collect()
}

/// Kubernetes sets such variables for a Service that is named fanfare, or fanfare-something:
/// `FANFARE_SERVICE_HOST`, `FANFARE_SERVICE_PORT_HTTP`, and `FANFARE_PORT=tcp://…` with its parts.
fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name
            .split_once("_PORT_")
            .is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        _settings: Settings,
    }

    #[test]
    fn mistyped_variables_are_told_and_those_of_kubernetes_are_not() {
        let variables = [
            ("FANFARE_LISTEN", "127.0.0.1:80"),
            ("FANFARE_HEARTBEAD", "15s"),
            ("FANFARE_LISTEN_PORT", "80"),
            ("FANFARE_SERVICE_HOST", "10.0.0.1"),
            ("FANFARE_PORT", "tcp://10.0.0.1:80"),
            ("FANFARE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("FANFARE_ADMIN_SERVICE_PORT_HTTP", "80"),
            ("PATH", "/bin"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let faults = unknown_variables::<Command>(variables.into_iter());
        let told: Vec<_> = faults.iter().map(|fault| fault.setting.as_str()).collect();
        assert_eq!(told, ["FANFARE_HEARTBEAD", "FANFARE_LISTEN_PORT"]);
    }
}
