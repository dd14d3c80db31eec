//! `fanfare completions` and `fanfare man`, for packagers: made from the command line's own definition.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) {
        let mut output = std::io::stdout();
        clap_complete::generate(self.shell, &mut Cli::command(), "fanfare", &mut output);
    }
}

#[derive(Debug, Args)]
pub(super) struct ManPages {
    /// A folder that exists: one page a command is written there
    folder: PathBuf,
}

impl ManPages {
    pub(super) fn run(&self) -> Result<(), Failure> {
        Ok(clap_mangen::generate_to(Cli::command(), &self.folder)?)
    }
}
