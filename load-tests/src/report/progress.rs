//! The progress bar, on standard error; silent where that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    title: String,
}

impl Progress {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            title: title.into(),
        }
    }

    /// A new stage of `length` steps.
    pub(crate) fn stage(&self, name: &str, length: u64) {
        self.bar.set_prefix(format!("{}: {name}", self.title));
        self.bar.set_message("");
        self.bar.set_length(length);
        self.bar.set_position(0);
    }

    pub(crate) fn at(&self, position: u64, message: String) {
        self.bar.set_position(position);
        self.bar.set_message(message);
    }

    pub(crate) fn done(&self) {
        self.bar.finish_and_clear();
    }
}
