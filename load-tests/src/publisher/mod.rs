//! Publishing on schedule: an open loop on a thread of its own.
//!
//! Every event carries the time it was due, not the time it was written, so a publisher or a server
//! that falls behind shows as latency instead of hiding it (no coordinated omission).

mod replies;
mod wire;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::clock::{NANOS_PER_SECOND, now_ns, sleep_until};
use crate::payload::{Payload, RunTag, WARM_UP};
use crate::schedule::Schedule;
use crate::worker::messages::ChannelNames;
use crate::worker::tally::latency_histogram;
use replies::Replies;
pub(crate) use wire::Wire;

/// Above 1,000 events a second those due within a millisecond leave together.
const TICK_NS: u64 = NANOS_PER_SECOND / 1_000;
/// A batch: what is due, at most so much, so that a late publisher does not build up memory.
const MAX_BATCH: usize = 4096;
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that stops reading must not hold the publisher for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What publishing came to.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) events: u64,
    /// From due to written.
    pub(crate) lag_ns: Histogram<u64>,
}

/// One connection, one order of events.
#[derive(Debug)]
pub(crate) struct Publisher {
    out: TcpStream,
    wire: Wire,
    replies: Arc<Replies>,
    run: RunTag,
    names: Vec<String>,
    event_bytes: usize,
    batch: Vec<u8>,
    sent: u64,
}

impl Publisher {
    pub(crate) fn connect(
        wire: Wire,
        run: u32,
        names: &ChannelNames,
        channels: u32,
        event_bytes: usize,
    ) -> Result<Self> {
        let address = wire.address();
        let out = TcpStream::connect(address)
            .with_context(|| format!("connecting to {address} to publish"))?;
        out.set_nodelay(true)?;
        out.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let replies = Replies::read(out.try_clone()?, &wire)?;
        let names = (0..channels).map(|channel| names.name(channel)).collect();
        Ok(Self {
            out,
            wire,
            replies,
            run: RunTag::new(run),
            names,
            event_bytes,
            batch: Vec::new(),
            sent: 0,
        })
    }

    /// One event on every channel that is not measured: whoever receives it is ready.
    pub(crate) fn warm_up(&mut self) -> Result<()> {
        for channel in 0..self.names.len() {
            let channel = u32::try_from(channel)?;
            self.add(Payload {
                channel,
                sequence: WARM_UP,
                intended_ns: now_ns(),
            });
            if self.batch.len() > 64 << 10 {
                self.flush()?;
            }
        }
        self.flush()?;
        self.await_replies()
    }

    /// Publishes a whole schedule; returns when the server has answered for every event.
    pub(crate) fn publish(&mut self, schedule: &Schedule) -> Result<Published> {
        let end = schedule.first + schedule.count;
        let mut next = schedule.first;
        let mut lag_ns = latency_histogram();
        let mut woken_ns = 0;
        while next < end {
            sleep_until(schedule.due_ns(next).max(woken_ns + TICK_NS));
            woken_ns = now_ns();
            let mut due = schedule.due_by(woken_ns).clamp(next + 1, end) - next;
            while due > 0 {
                let batch = due.min(MAX_BATCH as u64);
                for index in next..next + batch {
                    let (channel, sequence) = schedule.place(index);
                    let intended_ns = schedule.due_ns(index);
                    self.add(Payload {
                        channel,
                        sequence,
                        intended_ns,
                    });
                    lag_ns.saturating_record(woken_ns.saturating_sub(intended_ns));
                }
                self.flush()?;
                next += batch;
                due -= batch;
            }
        }
        self.await_replies()?;
        Ok(Published {
            events: schedule.count,
            lag_ns,
        })
    }

    fn add(&mut self, payload: Payload) {
        let mut data = Vec::with_capacity(self.event_bytes);
        payload.encode(self.run, self.event_bytes, &mut data);
        let name = usize::try_from(payload.channel)
            .ok()
            .and_then(|channel| self.names.get(channel));
        self.wire
            .encode(name.map_or("", String::as_str), &data, &mut self.batch);
        self.sent += 1;
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.batch).context("publishing")?;
        self.batch.clear();
        if let Some(error) = self.replies.error() {
            bail!("publishing was refused: {error}");
        }
        Ok(())
    }

    fn await_replies(&self) -> Result<()> {
        self.replies.await_count(self.sent, REPLY_TIMEOUT)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Ends the thread that reads the replies; an error means that it has ended already.
        let _ = self.out.shutdown(std::net::Shutdown::Both);
    }
}
