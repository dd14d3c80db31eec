//! A client process: thousands of connections in one thread.
//!
//! Commands come in on standard input, reports go out on standard output ([`messages`]). One edge-triggered
//! epoll, one read buffer for all connections; a connection keeps only the beginning of a line that
//! a read has split. Bytes go [`http`] → [`sse`] → [`check`] → [`tally`].

pub(crate) mod check;
mod client;
mod event_loop;
pub(crate) mod http;
pub(crate) mod messages;
pub(crate) mod sse;
pub(crate) mod tally;

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};
use mio::{Poll, Token, Waker};

use crate::measure::capacity;
use event_loop::EventLoop;
use messages::{Command, Report, Setup};

/// Commands come one at a time, each after a report: a few are room enough.
const COMMAND_QUEUE: usize = 16;

/// Runs until the coordinator closes standard input.
pub(crate) fn run() -> Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let setup = lines.next().context("the coordinator said nothing")??;
    let setup: Setup = serde_json::from_str(&setup).context("setup")?;
    drop(lines);

    capacity::raise_descriptor_limit()?;
    let poll = Poll::new()?;
    let commands_token = Token(usize::try_from(setup.clients)?);
    let waker = Arc::new(Waker::new(poll.registry(), commands_token)?);
    let (sender, commands) = sync_channel(COMMAND_QUEUE);
    std::thread::Builder::new()
        .name("commands".into())
        .spawn(move || read_commands(&sender, &waker))?;
    EventLoop::new(setup, poll).run(&commands)
}

fn read_commands(sender: &SyncSender<Command>, waker: &Waker) {
    for line in std::io::stdin().lock().lines() {
        let Some(command) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            break;
        };
        if sender.send(command).is_err() || waker.wake().is_err() {
            break;
        }
    }
}

/// The next command, if there is one; an error when the coordinator is gone.
fn next_command(commands: &Receiver<Command>) -> Result<Option<Command>> {
    use std::sync::mpsc::TryRecvError;
    match commands.try_recv() {
        Ok(command) => Ok(Some(command)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Disconnected) => anyhow::bail!("the coordinator is gone"),
    }
}

fn send(report: &Report) -> Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush().context("the coordinator is gone")
}
