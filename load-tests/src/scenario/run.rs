//! Carries out a plan.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::{NANOS_PER_SECOND, as_f64, nanos, now_ns, seconds, sleep_until, whole};
use crate::measure::capacity;
use crate::measure::gateway::Counters;
use crate::measure::memory::{Sampler, growth};
use crate::publisher::{Published, Publisher};
use crate::report::progress::Progress;
use crate::report::result::{
    ConnectResult, CpuResult, Latency, MemoryResult, PhaseResult, RunResult,
};
use crate::scenario::crew::Crew;
use crate::scenario::plan::{Load, Plan, Work};
use crate::schedule::Schedule;
use crate::worker::messages::{ChannelNames, Command, Connects, Measured, Setup};
use crate::worker::tally::{BUCKET_NS, add_counts, latency_histogram};

/// Between the command to count and the first event due.
const LEAD_NS: u64 = NANOS_PER_SECOND / 5;
const LISTEN: Duration = Duration::from_millis(20);
const SAMPLE_WHILE_CONNECTING_NS: u64 = NANOS_PER_SECOND / 5;
const SAMPLE_NS: u64 = NANOS_PER_SECOND;
/// A warm-up event that somebody has not seen is followed by another.
const WARM_UP_AGAIN_NS: u64 = 2 * NANOS_PER_SECOND;
/// Memory settles after starting, connecting and leaving.
const SETTLE_NS: u64 = NANOS_PER_SECOND;
const SETTLE_AFTER_LEAVING_NS: u64 = 3 * NANOS_PER_SECOND;
/// Beyond the drain timeout, for a client process to notice and count.
const GRACE: Duration = Duration::from_secs(20);
/// Below so much of the offered rate a step of `saturate` has fallen behind.
const KEEPS_UP: f64 = 0.97;
/// 127.1.0.0: a run takes its source addresses from a random place after it.
const FIRST_SOURCE: u32 = 0x7f01_0000;
const LAST_SOURCE: u32 = 0x7ffe_0000;

/// Runs a plan to its end. An error means that it could not be carried out; a run that was carried
/// out and found something wrong is a result with problems.
pub(crate) fn run(plan: &Plan, progress: &Progress) -> Result<RunResult> {
    plan.check()?;
    let run = fastrand::u32(1..);
    let names = ChannelNames {
        stem: format!("load.{run:08x}"),
    };
    let setups = setups(plan, run, &names)?;
    if !plan.target.processes.is_empty() {
        // A server that has just started is still growing.
        sleep_until(now_ns() + SETTLE_NS);
    }
    let sampler = Sampler::new(plan.target.processes.clone());
    let mut running = Running {
        plan,
        progress,
        crew: Crew::start(&setups)?,
        sampler,
        publisher: None,
        scheduled: 0,
        connecting: ConnectResult::default(),
        phases: Vec::new(),
        problems: Vec::new(),
    };
    running.connect()?;
    let connected_bytes = running.settled_bytes();
    if !matches!(plan.work, Work::Hold { .. }) {
        let event_bytes = usize::try_from(plan.event_bytes)?;
        running.publisher = Some(Publisher::connect(
            plan.publish.clone(),
            run,
            &names,
            plan.channels,
            event_bytes,
        )?);
        running.warm_up()?;
    }
    running.work()?;
    let memory = running.leave(connected_bytes)?;
    progress.done();
    Ok(RunResult {
        scenario: plan.scenario,
        clients: plan.clients,
        channels: plan.channels,
        channels_per_client: plan.channels_per_client,
        event_bytes: plan.event_bytes,
        client_processes: u32::try_from(setups.len())?,
        connecting: running.connecting,
        phases: running.phases,
        memory,
        samples: running.sampler.samples,
        problems: running.problems,
    })
}

/// Divides the clients among as many processes as are needed.
fn setups(plan: &Plan, run: u32, names: &ChannelNames) -> Result<Vec<Setup>> {
    let descriptor_limit = capacity::raise_descriptor_limit()?;
    let processes = capacity::processes_for(plan.clients, descriptor_limit, plan.processes)?;
    capacity::check_machine(plan.clients)?;
    if !plan.target.processes.is_empty() {
        let limit = plan.target.processes.descriptor_limit()?;
        if limit < u64::from(plan.clients) {
            bail!(
                "the server processes may open {limit} descriptors together, fewer than {} clients",
                plan.clients
            );
        }
    }
    let on_loopback = plan
        .target
        .servers
        .iter()
        .chain(&plan.target.resume_servers)
        .all(|server| server.ip().is_loopback() && server.is_ipv4());
    if !on_loopback {
        capacity::check_ports_of_one_source(plan.clients, plan.target.servers.len())?;
    }
    let mut request = format!(
        "GET {} HTTP/1.1\r\nhost: {{server}}\r\naccept: text/event-stream\r\ncache-control: no-cache\r\n",
        plan.target.path
    );
    for header in &plan.target.headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    let each = plan.clients.div_ceil(processes);
    let sources_each = each.div_ceil(capacity::CONNECTIONS_PER_SOURCE);
    let first_source = fastrand::u32(FIRST_SOURCE..LAST_SOURCE);
    let setup = |process: u32| Setup {
        run,
        servers: plan.target.servers.clone(),
        resume_servers: if plan.target.resume_servers.is_empty() {
            plan.target.servers.clone()
        } else {
            plan.target.resume_servers.clone()
        },
        request: request.clone(),
        keep_ids: matches!(plan.work, Work::Resume { .. }),
        channel_names: names.clone(),
        first_client: process * each,
        clients: each.min(plan.clients - process * each),
        channels: plan.channels,
        channels_per_client: plan.channels_per_client,
        slow_every: plan.slow_every,
        connecting: plan.limits.connecting.div_ceil(processes),
        receive_buffer_bytes: plan.limits.receive_buffer_bytes,
        first_source: on_loopback.then_some(first_source + process * sources_each),
    };
    Ok((0..processes)
        .filter(|process| process * each < plan.clients)
        .map(setup)
        .collect())
}

struct Running<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
    crew: Crew,
    sampler: Sampler,
    publisher: Option<Publisher>,
    /// Events of the run scheduled so far.
    scheduled: u64,
    connecting: ConnectResult,
    phases: Vec<PhaseResult>,
    problems: Vec<String>,
}

impl Running<'_> {
    fn connect(&mut self) -> Result<()> {
        let cpu = self.plan.target.processes.cpu();
        self.crew.tell(&Command::Connect { resume: false })?;
        self.progress
            .stage("connecting", u64::from(self.plan.clients));
        self.await_connected()?;
        let connects = self.crew.connected().context("connected")?;
        let mut result = connect_result(&connects);
        if !self.plan.target.processes.is_empty() {
            let cpu_ns = self.plan.target.processes.cpu().since(&cpu);
            result.cpu_micros_per_connection =
                Some(as_f64(cpu_ns) / 1e3 / f64::from(self.plan.clients));
        }
        self.connecting = result;
        Ok(())
    }

    fn await_connected(&mut self) -> Result<()> {
        let deadline_ns = now_ns() + nanos(self.plan.limits.connect_timeout);
        while self.crew.connected().is_none() {
            self.crew.listen(LISTEN)?;
            let status = self.crew.status();
            self.progress.at(u64::from(status.open), String::new());
            self.sampler
                .sample_every(SAMPLE_WHILE_CONNECTING_NS, status.open);
            if now_ns() > deadline_ns {
                bail!(
                    "{} of {} clients connected within {:?} ({} errors{}, {} turned away)",
                    status.open,
                    self.plan.clients,
                    self.plan.limits.connect_timeout,
                    status.connect_errors,
                    status
                        .first_error
                        .map_or(String::new(), |error| format!(", such as: {error}")),
                    status.turned_away
                );
            }
        }
        Ok(())
    }

    /// Memory with all clients there and nothing going on.
    fn settled_bytes(&mut self) -> u64 {
        if !self.plan.target.processes.is_empty() {
            sleep_until(now_ns() + SETTLE_NS);
        }
        self.sampler
            .sample(self.plan.clients)
            .map_or(0, |sample| sample.proportional_bytes)
    }

    /// Publishes until every stream has seen an event: only then can loss be told from a late start.
    fn warm_up(&mut self) -> Result<()> {
        let streams = self.plan.streams();
        self.progress.stage("warming up", streams);
        let deadline_ns = now_ns() + nanos(self.plan.limits.connect_timeout);
        let mut again_ns = 0;
        while self.crew.status().ready < streams {
            if now_ns() >= again_ns {
                self.publisher.as_mut().context("publisher")?.warm_up()?;
                again_ns = now_ns() + WARM_UP_AGAIN_NS;
            }
            self.crew.listen(LISTEN)?;
            let ready = self.crew.status().ready;
            self.progress.at(ready, String::new());
            if now_ns() > deadline_ns {
                bail!(
                    "{} of {streams} streams never saw an event: is what is published what is read?",
                    streams - ready
                );
            }
        }
        Ok(())
    }

    fn work(&mut self) -> Result<()> {
        match self.plan.work {
            Work::Hold { duration } => self.hold(duration),
            Work::Steady {
                load,
                memory_must_be_flat,
            } => {
                let first_sample = self.sampler.samples.len();
                self.phase("steady", load, 0.0, None)?;
                let samples = self.sampler.samples.get(first_sample..).unwrap_or_default();
                self.problems
                    .extend(growth(samples).filter(|_| memory_must_be_flat));
                Ok(())
            }
            Work::Churn { load, per_second } => self.phase("churn", load, per_second, None),
            Work::Storm { load } => self.phase("after the storm", load, 0.0, None),
            Work::Resume { load, away } => self.phase("resume", load, 0.0, Some(away)),
            Work::Steps {
                first,
                factor,
                max_steps,
            } => self.steps(first, factor, max_steps),
        }
    }

    fn hold(&mut self, duration: Duration) -> Result<()> {
        self.progress.stage("holding", duration.as_secs());
        let schedule = self.next_schedule(Load {
            events_per_second: 1.0,
            duration: Duration::ZERO,
        });
        self.crew.tell(&Command::Begin {
            schedule,
            churn_per_second: 0.0,
        })?;
        let cpu = self.plan.target.processes.cpu();
        let start_ns = now_ns();
        while now_ns() < start_ns + nanos(duration) {
            self.crew.listen(LISTEN)?;
            self.progress
                .at(whole(seconds(now_ns() - start_ns)), String::new());
            self.sampler
                .sample_every(SAMPLE_NS, self.crew.status().open);
        }
        let cpu_now = self.plan.target.processes.cpu();
        let mut phase = PhaseResult {
            name: "hold".into(),
            seconds: duration.as_secs_f64(),
            ..PhaseResult::default()
        };
        if !self.plan.target.processes.is_empty() {
            phase.cpu = Some(CpuResult::new(
                cpu_now.since(&cpu),
                cpu_now.load_since(&cpu),
                0,
                0,
            ));
        }
        self.finish(&mut phase, &schedule)
    }

    /// One measured phase; problems are noted, not returned.
    fn phase(
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
    fn come_back_after(&mut self, away: Duration, load: &Load) -> Result<()> {
        // Whatever is not spent away is spent a third before and two thirds after.
        self.listen_for(load.duration.saturating_sub(away) / 3)?;
        self.crew.tell(&Command::Leave)?;
        self.listen_for(away)?;
        self.crew.tell(&Command::Connect { resume: true })?;
        self.await_connected()?;
        self.connecting = connect_result(&self.crew.connected().context("connected")?);
        Ok(())
    }

    fn listen_for(&mut self, time: Duration) -> Result<()> {
        let until_ns = now_ns() + nanos(time);
        while now_ns() < until_ns {
            self.crew.listen(LISTEN)?;
        }
        Ok(())
    }

    /// What the gateways counted during the phase that has just finished.
    fn read_gateways(&mut self, before: Option<&Counters>, resuming: bool) -> Result<()> {
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
    fn finish(&mut self, phase: &mut PhaseResult, schedule: &Schedule) -> Result<()> {
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

    /// Raises the rate until something gives; the step that broke is shown, but is no failure.
    fn steps(&mut self, first: Load, factor: f64, max_steps: u32) -> Result<()> {
        let mut load = first;
        for step in 1..=max_steps {
            self.phase(&format!("step {step}"), load, 0.0, None)?;
            let kept_up = self.phases.last().is_some_and(|phase| {
                phase.delivered_per_second >= KEEPS_UP * phase.offered_deliveries_per_second
            });
            if !kept_up || !self.problems.is_empty() {
                break;
            }
            load.events_per_second *= factor;
        }
        // The first step has to hold; wrong data is never excused by load.
        let broken_data = self.phases.iter().any(|phase| {
            let faults = &phase.faults;
            faults.duplicated
                + faults.reordered
                + faults.misrouted
                + faults.foreign
                + faults.malformed
                > 0
        });
        if self.phases.len() > 1 && !broken_data {
            self.problems.clear();
        }
        Ok(())
    }

    fn next_schedule(&self, load: Load) -> Schedule {
        Schedule {
            start_ns: now_ns() + LEAD_NS,
            events_per_second: load.events_per_second,
            first: self.scheduled,
            count: whole(load.events_per_second * load.duration.as_secs_f64()),
            channels: self.plan.channels,
        }
    }

    /// Everybody leaves; memory should too.
    fn leave(&mut self, connected_bytes: u64) -> Result<Option<MemoryResult>> {
        self.publisher = None;
        self.sampler.sample(self.plan.clients);
        let before = self
            .sampler
            .samples
            .first()
            .map(|sample| sample.proportional_bytes);
        let peak = self.sampler.peak_bytes();
        self.crew.tell(&Command::Leave)?;
        let (Some(before), Some(peak)) = (before, peak) else {
            return Ok(None);
        };
        let gone_ns = now_ns();
        let settle_ns = if self.plan.watches_memory() {
            SETTLE_AFTER_LEAVING_NS
        } else {
            SETTLE_NS
        };
        self.progress.stage("leaving", settle_ns / NANOS_PER_SECOND);
        while now_ns() < gone_ns + settle_ns {
            self.crew.listen(LISTEN)?;
            self.sampler
                .sample_every(SAMPLE_NS / 2, self.crew.status().open);
        }
        let Some(after) = self.sampler.sample(self.crew.status().open) else {
            bail!("the server has ended")
        };
        Ok(Some(MemoryResult {
            before,
            connected: connected_bytes,
            bytes_per_connection: as_f64(connected_bytes.saturating_sub(before))
                / f64::from(self.plan.clients),
            peak,
            after_leaving: after.proportional_bytes,
        }))
    }
}

fn connect_result(connects: &[&Connects]) -> ConnectResult {
    let mut head = latency_histogram();
    connects
        .iter()
        .for_each(|connects| add_counts(&mut head, &connects.head_ns));
    let first_ns = connects
        .iter()
        .map(|connects| connects.first_connect_ns)
        .min()
        .unwrap_or(0);
    let last_ns = connects
        .iter()
        .map(|connects| connects.last_head_ns)
        .max()
        .unwrap_or(0);
    ConnectResult {
        seconds: seconds(last_ns.saturating_sub(first_ns)),
        head: Latency::of(&head),
        errors: connects.iter().map(|connects| connects.errors).sum(),
        turned_away: connects.iter().map(|connects| connects.turned_away).sum(),
        cpu_micros_per_connection: None,
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
