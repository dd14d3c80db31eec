//! The fault matrix: what was done, how soon it was over, and whether all held.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

/// A fault that a test makes, and says when it is over. When the test ends, it is a row of the table in
/// the file that `FAULT_TABLE` names.
pub(crate) struct Fault {
    name: &'static str,
    bound: Duration,
    began: Instant,
    longest: Option<Duration>,
}

impl Fault {
    /// `bound`: how soon after it is over everything has to be as before.
    pub(crate) fn new(name: &'static str, bound: Duration) -> Self {
        Self {
            name,
            bound,
            began: Instant::now(),
            longest: None,
        }
    }

    /// Everything is as before; the fault was over at `over`.
    pub(crate) fn recovered(&mut self, over: Instant) {
        let took = over.elapsed();
        assert!(took <= self.bound, "{}: over after {took:?}", self.name);
        self.longest = self.longest.max(Some(took));
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let result = match (std::thread::panicking(), self.longest) {
            (true, _) => "**failed**".to_owned(),
            (false, Some(took)) => format!("held; as before after {:.1} s", took.as_secs_f64()),
            (false, None) => panic!("{}: nobody saw that it is over", self.name),
        };
        let row = format!(
            "| {} | {} s | {result} | {:.0} s |\n",
            self.name,
            self.bound.as_secs(),
            self.began.elapsed().as_secs_f64()
        );
        let Some(file) = std::env::var_os("FAULT_TABLE") else {
            return;
        };
        let mut options = std::fs::OpenOptions::new();
        let written = options
            .create(true)
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(row.as_bytes()));
        if let Err(error) = written {
            eprintln!("the table of faults is not written: {error}");
        }
    }
}
