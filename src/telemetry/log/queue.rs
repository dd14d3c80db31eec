//! The queue between the program and the log: whatever reads standard error, or does not, holds
//! nothing up.

use std::sync::mpsc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::{MissedTickBehavior, interval};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that may wait. Few are longer than 1 KiB, so they are some 4 MiB at most; what is longer is
/// bounded by the largest head of a request.
const MAX_WAITING_LINES: usize = 4096;

/// How often dropped lines are counted.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the end of the process waits for lines to be written.
const MAX_FLUSH: Duration = Duration::from_secs(2);

/// The queue's ends that are not the program's lines.
#[derive(Debug)]
pub(super) struct LogQueue {
    writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl LogQueue {
    /// Starts the thread that writes to standard error, and returns what lines are given to.
    pub(super) fn start() -> (NonBlocking, Self) {
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MAX_WAITING_LINES)
            .thread_name("log");
        let (lines, writer) = builder.finish(std::io::stderr());
        let dropped = lines.error_counter();
        (lines, Self { writer, dropped })
    }

    pub(super) fn dropped(&self) -> Dropped {
        Dropped {
            counter: self.dropped.clone(),
            counted: 0,
            told: 0,
        }
    }

    /// Waits until what is in the queue is written, or [`MAX_FLUSH`].
    pub(super) fn finish(self) {
        // In a thread, because with a full queue it writes a complaint to standard output, which may
        // be the same pipe that is not read.
        let (written, is_written) = mpsc::channel();
        let flush = move || {
            drop(self.writer);
            let _ = written.send(());
        };
        if std::thread::Builder::new().spawn(flush).is_ok() {
            let _ = is_written.recv_timeout(MAX_FLUSH);
        }
    }
}

/// Lines that found the queue full.
#[derive(Debug)]
pub(super) struct Dropped {
    counter: ErrorCounter,
    /// So many of them are in the metric…
    counted: usize,
    /// …and so many were logged as dropped.
    told: usize,
}

impl Dropped {
    /// Counts dropped lines in `metric`, and logs how many they were once the log takes lines again.
    pub(super) async fn run(mut self, metric: IntCounter) {
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweeps.tick().await;
            self.sweep(&metric);
        }
    }

    fn sweep(&mut self, metric: &IntCounter) {
        let dropped = self.counter.dropped_lines();
        metric.inc_by((dropped - self.counted) as u64);
        self.counted = dropped;
        if dropped == self.told {
            return;
        }
        let lines = dropped - self.told;
        tracing::warn!(
            target: super::TARGET,
            lines,
            "log lines dropped: standard error was not read fast enough"
        );
        // Unless this line was dropped too.
        if self.counter.dropped_lines() == dropped {
            self.told = dropped;
        }
    }
}
