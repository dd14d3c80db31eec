//! Phases of a run: what is published and what arrives.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{GRACE, LISTEN, Running, SAMPLE_NS, connect_result};
use crate::clock::{NANOS_PER_SECOND, as_f64, nanos, now_ns, seconds, sleep_until, whole};
use crate::measure::gateway::Counters;
use crate::publisher::Published;
use crate::report::result::{CpuResult, Latency, PhaseResult};
use crate::scenario::plan::{Load, Plan, Work};
use crate::schedule::Schedule;
use crate::worker::messages::{Command, Measured};
use crate::worker::tally::{BUCKET_NS, add_counts, latency_histogram};

impl Running<'_> {
    /// One measured phase; problems are noted, not returned.
    pub(super) fn phase(
        &mut self,
        name: &str,
        load: Load,
        churn_per_second: f64,
        away: Option<Duration>,
    ) -> Result<()> {
        let schedule = self.next_schedule(load);
        self.scheduled += schedule.count;
        self.crew.tell(&Command::Begin {
            schedule,
            churn_per_second,
        })?;
        self.progress
            .stage(name, whole(load.duration.as_secs_f64()));

        let mut publisher = self.publisher.take().context("publisher")?;
        let publishing = std::thread::Builder::new()
            .name("publisher".into())
            .spawn(move || {
                let published = publisher.publish(&schedule);
                (publisher, published)
            })?;
        sleep_until(schedule.start_ns);
        let cpu = self.plan.target.processes.cpu();
        let counted_before = self.plan.target.gateways.counters()?;
        if let Some(away) = away {
            self.come_back_after(away, &load)?;
        }
        while !publishing.is_finished() {
            self.crew.listen(LISTEN)?;
            let status = self.crew.status();
            let elapsed_ns = now_ns().saturating_sub(schedule.start_ns).max(1);
            let rate = as_f64(status.delivered) / seconds(elapsed_ns);
            self.progress.at(
                elapsed_ns / NANOS_PER_SECOND,
                format!("{rate:.0} deliveries/s"),
            );
            self.sampler.sample_every(SAMPLE_NS, status.open);
        }
        let Ok((publisher, published)) = publishing.join() else {
            bail!("the publisher panicked")
        };
        self.publisher = Some(publisher);

        let mut phase = PhaseResult {
            name: name.into(),
            seconds: load.duration.as_secs_f64(),
            offered_events_per_second: load.events_per_second,
            offered_deliveries_per_second: load.events_per_second
                * self.plan.deliveries_per_event(),
            ..PhaseResult::default()
        };
        match published {
            Ok(Published { events, lag_ns }) => {
                phase.published = events;
                phase.publish_lag = Latency::of(&lag_ns);
            }
            Err(error) => self.problems.push(format!("{name}: {error:#}")),
        }
        self.finish(&mut phase, &schedule)?;
        self.read_gateways(counted_before.as_ref(), away.is_some())?;
        if !self.plan.target.processes.is_empty()
            && let Some(phase) = self.phases.last_mut()
        {
            let cpu_now = self.plan.target.processes.cpu();
            let cpu_ns = cpu_now.since(&cpu);
            phase.cpu = Some(CpuResult::new(
                cpu_ns,
                cpu_now.load_since(&cpu),
                phase.delivered,
                phase.published,
            ));
        }
        Ok(())
    }

    /// All clients leave in the middle of things, and come back as fast as they are let.
    pub(super) fn come_back_after(&mut self, away: Duration, load: &Load) -> Result<()> {
        // Whatever is not spent away is spent a third before and two thirds after.
        self.listen_for(load.duration.saturating_sub(away) / 3)?;
        self.crew.tell(&Command::Leave)?;
        self.listen_for(away)?;
        self.crew.tell(&Command::Connect { resume: true })?;
        self.await_connected()?;
        self.connecting = connect_result(&self.crew.connected().context("connected")?);
        Ok(())
    }

    pub(super) fn listen_for(&mut self, time: Duration) -> Result<()> {
        let until_ns = now_ns() + nanos(time);
        while now_ns() < until_ns {
            self.crew.listen(LISTEN)?;
        }
        Ok(())
    }

    /// What the gateways counted during the phase that has just finished.
    pub(super) fn read_gateways(
        &mut self,
        before: Option<&Counters>,
        resuming: bool,
    ) -> Result<()> {
        let (Some(now), Some(before), Some(phase)) = (
            self.plan.target.gateways.counters()?,
            before,
            self.phases.last_mut(),
        ) else {
            return Ok(());
        };
        let counted = now.since(before);
        let problem = match (counted.history_reads(), self.plan.limits.max_history_reads) {
            (None, _) if resuming => Some("the gateway does not count its history reads".into()),
            (Some(reads), Some(most)) if reads > most => {
                Some(format!("{reads} history reads are more than {most}"))
            }
            _ => None,
        };
        self.problems
            .extend(problem.map(|problem| format!("{}: {problem}", phase.name)));
        phase.gateway = Some(counted);
        Ok(())
    }

    /// Waits for what is still on its way and takes in what the client processes counted.
    pub(super) fn finish(&mut self, phase: &mut PhaseResult, schedule: &Schedule) -> Result<()> {
        let deadline_ns = schedule.end_ns().max(now_ns()) + nanos(self.plan.limits.drain_timeout);
        self.crew.tell(&Command::Finish { deadline_ns })?;
        while self.crew.measured().is_none() {
            self.crew.listen(LISTEN)?;
            self.sampler
                .sample_every(SAMPLE_NS, self.crew.status().open);
            if now_ns() > deadline_ns + nanos(GRACE) {
                bail!("a client process did not report in time");
            }
        }
        let measured = self.crew.measured().context("measured")?;
        collect(phase, &measured, schedule);
        phase.expected = match self.plan.work {
            // Who comes and goes is owed what was due while it was there: checked client by client.
            Work::Churn { .. } | Work::Hold { .. } => {
                phase.delivered + phase.faults.lost + phase.faults.undelivered
            }
            _ => expected(self.plan, schedule),
        };
        for problem in phase.faults.named() {
            self.problems.push(format!("{}: {problem}", phase.name));
        }
        // Nobody is away for longer than a history reaches back.
        if matches!(self.plan.work, Work::Resume { .. }) && phase.gaps > 0 {
            self.problems
                .push(format!("{}: {} gaps told", phase.name, phase.gaps));
        }
        if let Some(max_p99) = self.plan.limits.max_p99
            && phase.latency.p99 > max_p99.as_secs_f64() * 1e3
        {
            self.problems.push(format!(
                "{}: p99 of {:.1} ms is above {max_p99:?}",
                phase.name, phase.latency.p99
            ));
        }
        self.phases.push(std::mem::take(phase));
        Ok(())
    }
}

/// Deliveries that a schedule owes to all reading clients.
fn expected(plan: &Plan, schedule: &Schedule) -> u64 {
    let before = Schedule {
        count: 0,
        ..*schedule
    };
    let events =
        |channel| u64::from(schedule.last_sequence(channel) - before.last_sequence(channel));
    let mut sum = 0;
    for client in 0..plan.clients {
        if plan.slow_every > 0 && client % plan.slow_every == 0 {
            continue;
        }
        let first =
            u64::from(client) * u64::from(plan.channels_per_client) % u64::from(plan.channels);
        for offset in 0..u64::from(plan.channels_per_client) {
            sum += events(u32::try_from((first + offset) % u64::from(plan.channels)).unwrap_or(0));
        }
    }
    sum
}

fn collect(phase: &mut PhaseResult, measured: &[&Measured], schedule: &Schedule) {
    let mut latency = latency_histogram();
    let mut buckets: Vec<u64> = Vec::new();
    let mut caught_up_seconds: f64 = 0.0;
    for measured in measured {
        add_counts(&mut latency, &measured.latency_ns);
        if buckets.len() < measured.buckets.len() {
            buckets.resize(measured.buckets.len(), 0);
        }
        for (sum, bucket) in buckets.iter_mut().zip(&measured.buckets) {
            *sum += bucket;
        }
        phase.delivered += measured.delivered;
        phase.received_bytes += measured.received_bytes;
        phase.heartbeats += measured.heartbeats;
        phase.gaps += measured.gaps;
        phase.churned += measured.churned;
        phase.slow_closed += measured.slow_closed;
        phase.faults.add(measured.faults);
        let connects = &measured.connects;
        caught_up_seconds = caught_up_seconds.max(seconds(
            connects
                .caught_up_ns
                .saturating_sub(connects.first_connect_ns),
        ));
    }
    phase.latency = Latency::of(&latency);
    phase.caught_up_seconds = (caught_up_seconds > 0.0).then_some(caught_up_seconds);
    let a_second = as_f64(NANOS_PER_SECOND / BUCKET_NS);
    phase.throughput = buckets
        .iter()
        .map(|count| as_f64(*count) * a_second)
        .collect();
    let offered_ns = schedule.end_ns() - schedule.start_ns;
    let while_offered = usize::try_from(offered_ns.div_ceil(BUCKET_NS)).unwrap_or(usize::MAX);
    let delivered: u64 = buckets.iter().take(while_offered).sum();
    phase.delivered_per_second = as_f64(delivered) / seconds(offered_ns.max(1));
}
