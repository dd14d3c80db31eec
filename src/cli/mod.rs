//! The command line: `fanfare` serves; its subcommands publish, read, check and load.

mod functions;
mod health;
mod nginx;
mod pages;
mod publish;
mod tail;
mod token;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::app::App;
use crate::config::{Config, Faults, Settings, exposed_secrets, unknown_variables};
use crate::telemetry::log_panics;

/// A multi-node Server-Sent Events gateway behind Redis pub/sub.
#[derive(Debug, Parser)]
#[command(
    version = env!("VERSION_AND_REVISION"),
    args_conflicts_with_subcommands = true,
    after_help = "Traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT. OpenTelemetry's other variables \
                  (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …) hold as well."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish one event, through Redis when FANFARE_REDIS_URL or --redis-url is given, else over HTTP
    Publish(Box<publish::Publish>),
    /// Print the events of channels as they arrive, one line each
    Tail(tail::Tail),
    /// Validate the configuration, print the effective values, and exit
    Check(Box<Check>),
    /// Manage the Redis functions that publish kept events
    #[command(subcommand)]
    Functions(functions::Functions),
    /// Health check: exit with 0 if the gateway on this machine is ready for streams
    Health(health::Health),
    /// Print a completion script for a shell
    Completions(pages::Completions),
    /// Write the manual pages
    Man(pages::ManPages),
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    settings: Settings,
    /// An nginx configuration, with all that it includes, that has to agree with the gateway's
    #[arg(long, value_name = "FILE")]
    nginx: Option<PathBuf>,
}

/// Why a command failed, for people.
type Failure = Box<dyn std::error::Error>;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // rustls has no default of its own; a second install has no effect.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run() {
        Ok(code) => code,
        Err(failure) => {
            say_last(format!("fanfare: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes why the command failed. A pipe that is not read holds its end up for a moment only.
fn say_last(words: String) {
    let (written, is_written) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{words}");
        let _ = written.send(());
    });
    let _ = is_written.recv_timeout(Duration::from_secs(1));
}

fn run() -> Result<ExitCode, Failure> {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches)?;
    let exposed = exposed_secrets(&matches);
    if !exposed.is_empty() {
        return Err(Faults(exposed).into());
    }
    let arguments = matches.subcommand().map_or(&matches, |(_, own)| own);
    let ran = match cli.command {
        None => serve(&cli.settings),
        Some(Command::Publish(command)) => command.run(arguments),
        Some(Command::Tail(command)) => return command.run(),
        Some(Command::Check(command)) => check(&command),
        Some(Command::Functions(command)) => command.run(),
        Some(Command::Health(command)) => command.run(),
        Some(Command::Completions(command)) => command.run(),
        Some(Command::Man(command)) => command.run(),
    };
    ran.map(|()| ExitCode::SUCCESS)
}

fn serve(settings: &Settings) -> Result<(), Failure> {
    let config = configuration(settings)?;
    log_panics();
    Ok(App::bind(config)?.run()?)
}

fn check(command: &Check) -> Result<(), Failure> {
    let config = configuration(&command.settings)?;
    if let Some(file) = &command.nginx {
        let faults = nginx::faults(file, &config);
        if !faults.is_empty() {
            return Err(Faults(faults).into());
        }
    }
    writeln!(std::io::stdout(), "{config}the configuration is valid")?;
    if let Some(file) = &command.nginx {
        writeln!(
            std::io::stdout(),
            "{} agrees with it; whether nginx can read it is told by nginx -t",
            file.display()
        )?;
    }
    if let Some(warning) = config.warning() {
        writeln!(std::io::stderr(), "fanfare: {warning}")?;
    }
    Ok(())
}

/// Reads the settings; unknown variables and broken rules are reported together.
fn configuration(settings: &Settings) -> Result<Config, Faults> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    });
    let mut faults = unknown_variables::<Cli>(variables);
    match settings.read() {
        Ok(config) if faults.is_empty() => Ok(config),
        Ok(_) => Err(Faults(faults)),
        Err(Faults(more)) => {
            faults.extend(more);
            Err(Faults(faults))
        }
    }
}

/// A path of a gateway.
fn gateway_url(gateway: &str, path: &str) -> Result<reqwest::Url, Failure> {
    let url = format!("{}{path}", gateway.trim_end_matches('/'));
    reqwest::Url::parse(&url).map_err(|fault| format!("{gateway} is no URL: {fault}").into())
}

/// What an error says, and what is behind it: `error sending request` alone helps nobody.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if std::ptr::eq(innermost, error) {
        error.to_string()
    } else {
        format!("{error}: {innermost}")
    }
}

/// A client for requests to `url`. Certificates of authorities are needed for https alone: a system
/// without them (a bare Debian) is no reason to fail.
fn client(url: &str) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder();
    if url.starts_with("http://") {
        builder.tls_certs_only([])
    } else {
        builder
    }
}

/// A runtime for a command that makes a few requests.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
