//! `fanfare functions print|load`.

use std::io::Write;

use clap::Subcommand;
use humantime::format_duration;

use super::{Failure, configuration, runtime};
use crate::bus::library::{self, Installed, LIBRARY_VERSION, LibrarySettings};
use crate::config::{BusConfig, Settings};

#[derive(Debug, Subcommand)]
pub(super) enum Functions {
    /// Print the library, for redis-cli -x FUNCTION LOAD REPLACE. It serves the prefix of these
    /// settings only: publishers with other prefixes fail until one of their gateways loads it
    /// again. `functions load` keeps all prefixes
    Print(Box<Settings>),
    /// Load the library unless Redis has a newer one, and store the history length and TTLs of
    /// these settings in Redis, for all publishers and gateways with this prefix
    Load(Box<Settings>),
}

impl Functions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Print(settings) => print(settings),
            Self::Load(settings) => load(settings),
        }
    }
}

fn print(settings: &Settings) -> Result<(), Failure> {
    let settings = LibrarySettings::from(&configuration(settings)?);
    let source = library::render(&settings, std::slice::from_ref(&settings.prefix));
    std::io::stdout().write_all(source.as_bytes())?;
    Ok(())
}

fn load(settings: &Settings) -> Result<(), Failure> {
    let config = configuration(settings)?;
    let BusConfig::Redis(url, _) = &config.bus else {
        return Err("FANFARE_REDIS_URL says where the functions are to be loaded".into());
    };
    let settings = LibrarySettings::from(&config);
    let (installed, written) = runtime()?.block_on(library::load_once(url, &settings))?;
    let version = LIBRARY_VERSION;
    let did = match installed {
        Installed::Loaded => format!("version {version} of the library is loaded"),
        Installed::Replaced => format!("version {version} of the library has replaced another"),
        Installed::Present => format!("version {version} of the library was there already"),
        Installed::Newer { version } => {
            format!("version {version} of the library, a newer one, is there and stays")
        }
    };
    writeln!(
        std::io::stdout(),
        "{did}\n{}$config is written: {} events, {} after the newest, replication lag {}, {} bytes an event",
        settings.prefix,
        written.length,
        format_duration(written.ttl),
        format_duration(written.max_replication_lag),
        written.max_event_bytes,
    )?;
    Ok(())
}
