//! The client processes of a run: started, commanded, listened to, ended.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::worker::messages::{Command, Connects, Measured, Report, Setup, Status};

/// Reports come five times a second from each process; the coordinator reads far faster.
const REPORT_QUEUE: usize = 256;

#[derive(Debug)]
struct Member {
    process: Child,
    commands: ChildStdin,
    status: Status,
    connected: Option<Connects>,
    measured: Option<Measured>,
}

#[derive(Debug)]
pub(crate) struct Crew {
    members: Vec<Member>,
    reports: Receiver<(usize, Option<Report>)>,
}

impl Crew {
    /// Starts a process for each setup. They inherit this thread's CPU affinity.
    pub(crate) fn start(setups: &[Setup]) -> Result<Self> {
        let (sender, reports) = sync_channel(REPORT_QUEUE);
        let mut crew = Self {
            members: Vec::new(),
            reports,
        };
        for (number, setup) in setups.iter().enumerate() {
            let mut process = Process::new(std::env::current_exe()?)
                .arg("client-process")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting a client process")?;
            let output = process.stdout.take().context("a client process's output")?;
            let commands = process.stdin.take().context("a client process's input")?;
            let sender = sender.clone();
            std::thread::Builder::new()
                .name("reports".into())
                .spawn(move || read_reports(number, BufReader::new(output), &sender))?;
            let mut member = Member {
                process,
                commands,
                status: Status::default(),
                connected: None,
                measured: None,
            };
            write_line(&mut member.commands, setup)?;
            crew.members.push(member);
        }
        Ok(crew)
    }

    pub(crate) fn tell(&mut self, command: &Command) -> Result<()> {
        for member in &mut self.members {
            member.connected = None;
            member.measured = None;
            write_line(&mut member.commands, command)?;
        }
        Ok(())
    }

    /// Takes in the next report, waiting at most so long.
    pub(crate) fn listen(&mut self, patience: Duration) -> Result<()> {
        let (number, report) = match self.reports.recv_timeout(patience) {
            Ok(report) => report,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("every client process has ended"),
        };
        let Some(member) = self.members.get_mut(number) else {
            return Ok(());
        };
        match report {
            Some(Report::Status(status)) => member.status = status,
            Some(Report::Connected(connects)) => member.connected = Some(connects),
            Some(Report::Finished(measured)) => member.measured = Some(*measured),
            None => bail!(
                "client process {number} has ended: {}",
                member.process.wait()?
            ),
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> Status {
        self.members
            .iter()
            .fold(Status::default(), |sum, member| Status {
                open: sum.open + member.status.open,
                ready: sum.ready + member.status.ready,
                delivered: sum.delivered + member.status.delivered,
                connect_errors: sum.connect_errors + member.status.connect_errors,
                turned_away: sum.turned_away + member.status.turned_away,
                first_error: sum
                    .first_error
                    .or_else(|| member.status.first_error.clone()),
            })
    }

    /// All processes' answers to `Connect`, once all have answered.
    pub(crate) fn connected(&self) -> Option<Vec<&Connects>> {
        self.members
            .iter()
            .map(|member| member.connected.as_ref())
            .collect()
    }

    /// All processes' answers to `Finish`, once all have answered.
    pub(crate) fn measured(&self) -> Option<Vec<&Measured>> {
        self.members
            .iter()
            .map(|member| member.measured.as_ref())
            .collect()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Its own child, by its own handle; an error means that it has ended already.
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

fn write_line<T: serde::Serialize>(out: &mut ChildStdin, value: &T) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line).context("a client process is gone")
}

fn read_reports(number: usize, output: impl BufRead, sender: &SyncSender<(usize, Option<Report>)>) {
    for line in output.lines() {
        let Some(report) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            break;
        };
        if sender.send((number, Some(report))).is_err() {
            return;
        }
    }
    let _ = sender.send((number, None));
}
