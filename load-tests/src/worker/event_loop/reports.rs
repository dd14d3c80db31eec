//! What the event loop reports to the coordinator.

use anyhow::Result;

use super::EventLoop;
use crate::schedule::Schedule;
use crate::worker::check::Sequence;
use crate::worker::client::{Client, Phase};
use crate::worker::messages::{Connects, Report};
use crate::worker::send;
use crate::worker::tally::{counts, latency_histogram};

impl EventLoop {
    pub(super) fn report_connected(&mut self) -> Result<()> {
        if self.connecting_since_ns.is_some() && self.open == self.setup.clients {
            self.connecting_since_ns = None;
            send(&Report::Connected(self.connects()))?;
        }
        Ok(())
    }

    pub(super) fn connects(&self) -> Connects {
        Connects {
            head_ns: counts(&self.head_ns),
            ..self.connects.clone()
        }
    }

    /// Resuming: notes when every stream is live, that is, has what was due until the last one was back.
    pub(super) fn watch_catching_up(&mut self, now_ns: u64) {
        let Some(schedule) = self
            .schedule
            .filter(|_| self.resuming && self.connects.caught_up_ns == 0)
        else {
            return;
        };
        let back_ns = self.connects.last_head_ns;
        let caught_up = self.streams().all(|(client, channel, sequence)| {
            client.phase == Phase::Open
                && sequence.next() >= schedule.first_sequence_from(channel, back_ns)
        });
        if caught_up {
            self.connects.caught_up_ns = now_ns;
        }
    }

    /// Every stream of every client that reads.
    pub(super) fn streams(&self) -> impl Iterator<Item = (&Client, u32, &Sequence)> {
        let channels = self.setup.channels.max(1);
        self.clients
            .iter()
            .filter(|client| !client.never_reads)
            .flat_map(move |client| {
                (client.first_channel..)
                    .zip(&client.sequences)
                    .map(move |(channel, sequence)| (client, channel % channels, sequence))
            })
    }

    pub(super) fn report_finished(&mut self, now_ns: u64) -> Result<()> {
        let (Some(deadline_ns), Some(schedule)) = (self.finish_by_ns, self.schedule) else {
            return Ok(());
        };
        let all_here = self.streams().all(|(client, channel, sequence)| {
            // A client that the server has cut off gets nothing any more: no reason to wait for it.
            let cut_off = client.phase == Phase::Closed && self.to_retry.is_empty();
            cut_off || missing(&schedule, client, channel, sequence).is_empty()
        });
        if !all_here && now_ns < deadline_ns {
            return Ok(());
        }
        self.finish_by_ns = None;
        self.count_undelivered(&schedule, now_ns);
        self.count_slow_closed();
        send(&Report::Finished(Box::new(
            self.tally.measured(self.connects()),
        )))
    }

    /// What never came counts as late by all the time it was waited for: leaving it out of the
    /// latencies would flatter a server that falls behind.
    pub(super) fn count_undelivered(&mut self, schedule: &Schedule, now_ns: u64) {
        let mut undelivered = 0;
        let mut latency = std::mem::replace(&mut self.tally.latency, latency_histogram());
        for (client, channel, sequence) in self.streams() {
            for number in missing(schedule, client, channel, sequence) {
                undelivered += 1;
                let due_ns = schedule.due_ns(schedule.index(channel, number));
                latency.saturating_record(now_ns.saturating_sub(due_ns));
            }
        }
        self.tally.latency = latency;
        self.tally.faults.undelivered += undelivered;
    }

    pub(super) fn count_slow_closed(&mut self) {
        use std::io::Read;
        for client in self
            .clients
            .iter_mut()
            .filter(|client| client.never_reads && client.phase == Phase::Open)
        {
            let Some(socket) = &mut client.socket else {
                continue;
            };
            let closed = loop {
                match socket.read(&mut self.buffer) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
                }
            };
            self.tally.slow_closed += u64::from(closed);
        }
    }
}

/// The numbers that this stream is still owed.
fn missing(
    schedule: &Schedule,
    client: &Client,
    channel: u32,
    sequence: &Sequence,
) -> std::ops::RangeInclusive<u32> {
    let from = match sequence.next() {
        0 => schedule.first_sequence_from(channel, client.head_ns),
        next => next,
    };
    from..=schedule.last_sequence(channel)
}
