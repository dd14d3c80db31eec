//! The signals that an operator sends.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that stop a process, and SIGHUP, which does not.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one that stops the process, and returns its name.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.quit.recv() => return "SIGQUIT",
                // Each watch over files listens for itself. A closed terminal sends it, too.
                Some(()) = self.hangup.recv() => tracing::info!("SIGHUP: reading keys, certificates and the Redis URL again"),
            }
        }
    }
}
