//! Carries out a plan.

mod phases;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::{NANOS_PER_SECOND, as_f64, nanos, now_ns, seconds, sleep_until, whole};
use crate::measure::capacity;
use crate::measure::memory::{Sampler, growth};
use crate::publisher::Publisher;
use crate::report::progress::Progress;
use crate::report::result::{
    ConnectResult, CpuResult, Latency, MemoryResult, PhaseResult, RunResult,
};
use crate::scenario::crew::Crew;
use crate::scenario::plan::{Load, Plan, Work};
use crate::schedule::Schedule;
use crate::worker::messages::{ChannelNames, Command, Connects, Setup};
use crate::worker::tally::{add_counts, latency_histogram};

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
