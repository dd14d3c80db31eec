//! `fanfare completions` and `fanfare man`, for packagers: made from the command line's own definition.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "fanfare", &mut script);
        // Somebody who reads the beginning only is no reason to panic.
        Ok(std::io::stdout().write_all(&script)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct ManPages {
    /// Existing directory for the pages, one per command
    folder: PathBuf,
}

impl ManPages {
    pub(super) fn run(&self) -> Result<(), Failure> {
        Ok(clap_mangen::generate_to(Cli::command(), &self.folder)?)
    }
}
