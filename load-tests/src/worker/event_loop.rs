//! The loop of a client process: connects, reads, churns, and answers the coordinator.

mod reports;

use std::net::Ipv4Addr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;

use crate::clock::{NANOS_PER_SECOND, as_f64, now_ns, seconds};
use crate::measure::capacity::CONNECTIONS_PER_SOURCE;
use crate::payload::RunTag;
use crate::schedule::Schedule;
use crate::template;
use crate::worker::check::Sequence;
use crate::worker::client::{Client, Outcome, Phase, Shared, Why};
use crate::worker::messages::{Command, Connects, Report, Setup, Status};
use crate::worker::tally::{Tally, latency_histogram};
use crate::worker::{next_command, send};

/// Half of an L2 cache: what is read is parsed while it is still near.
const READ_BUFFER_BYTES: usize = 256 << 10;
const EVENTS_AT_ONCE: usize = 4096;
const STATUS_EVERY_NS: u64 = NANOS_PER_SECOND / 5;
/// How finely timed work (churn, retries, the end of a phase) is looked at.
const TICK: Duration = Duration::from_millis(5);
const IDLE_TICK: Duration = Duration::from_millis(100);
/// Before a connect that failed is tried again.
const RETRY_AFTER_ERROR_NS: u64 = NANOS_PER_SECOND / 2;
/// "Come back later" is a stream that ends right after its head.
const TURNED_AWAY_WITHIN_NS: u64 = NANOS_PER_SECOND;

pub(crate) struct EventLoop {
    setup: Setup,
    run: RunTag,
    poll: Poll,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    tally: Tally,
    schedule: Option<Schedule>,
    /// When the coordinator wants to know, at the latest.
    finish_by_ns: Option<u64>,
    churn_per_second: f64,

    to_connect: VecDeque<u32>,
    /// Turned away or failed: (when to try again, client).
    to_retry: Vec<(u64, u32)>,
    under_way: u32,
    open: u32,
    /// A `Connect` that has not been answered yet.
    connecting_since_ns: Option<u64>,
    connects: Connects,
    head_ns: Histogram<u64>,
    resuming: bool,
    /// Hit their fairness bound: no new edge will tell of what is left.
    unread: Vec<u32>,
}

impl EventLoop {
    pub(crate) fn new(setup: Setup, poll: Poll) -> Self {
        let streams = usize::try_from(setup.channels_per_client).unwrap_or(1);
        let clients = (0..setup.clients)
            .map(|number| {
                let client = setup.first_client + number;
                let first_channel = u64::from(client) * u64::from(setup.channels_per_client)
                    % u64::from(setup.channels.max(1));
                Client {
                    sequences: std::iter::repeat_with(Sequence::default)
                        .take(streams)
                        .collect(),
                    first_channel: u32::try_from(first_channel).unwrap_or(0),
                    never_reads: setup.slow_every > 0 && client.is_multiple_of(setup.slow_every),
                    ..Client::default()
                }
            })
            .collect();
        Self {
            run: RunTag::new(setup.run),
            setup,
            poll,
            clients,
            buffer: vec![0; READ_BUFFER_BYTES],
            tally: Tally::new(),
            schedule: None,
            finish_by_ns: None,
            churn_per_second: 0.0,
            to_connect: VecDeque::new(),
            to_retry: Vec::new(),
            under_way: 0,
            open: 0,
            connecting_since_ns: None,
            connects: Connects::default(),
            head_ns: latency_histogram(),
            resuming: false,
            unread: Vec::new(),
        }
    }

    /// Runs until the coordinator is gone, which is the way to end it.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS_AT_ONCE);
        let mut last_status_ns = 0;
        loop {
            match self.poll.poll(&mut events, Some(self.patience())) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                _ => {}
            }
            for event in &events {
                self.on_event(event);
            }
            for client in std::mem::take(&mut self.unread) {
                self.read(client, false);
            }
            while let Some(command) = next_command(commands)? {
                self.obey(&command);
            }
            let now_ns = now_ns();
            self.retry(now_ns);
            self.churn(now_ns);
            self.connect_more();
            self.report_connected()?;
            self.watch_catching_up(now_ns);
            self.report_finished(now_ns)?;
            if now_ns >= last_status_ns + STATUS_EVERY_NS {
                last_status_ns = now_ns;
                send(&Report::Status(self.status()))?;
            }
        }
    }

    fn patience(&self) -> Duration {
        if !self.unread.is_empty()
            || (!self.to_connect.is_empty() && self.under_way < self.setup.connecting)
        {
            Duration::ZERO
        } else if self.finish_by_ns.is_some()
            || self.churn_per_second > 0.0
            || !self.to_retry.is_empty()
            || (self.resuming && self.connects.caught_up_ns == 0)
        {
            TICK
        } else {
            IDLE_TICK
        }
    }

    fn status(&self) -> Status {
        Status {
            open: self.open,
            ready: self.tally.ready,
            delivered: self.tally.delivered,
            connect_errors: self.connects.errors,
            turned_away: self.connects.turned_away,
            first_error: self.connects.first_error.clone(),
        }
    }

    fn obey(&mut self, command: &Command) {
        match command {
            Command::Connect { resume } => {
                self.connects = Connects {
                    first_connect_ns: now_ns(),
                    ..Connects::default()
                };
                self.head_ns.reset();
                self.connecting_since_ns = Some(self.connects.first_connect_ns);
                self.resuming = *resume;
                self.to_connect.extend(0..self.setup.clients);
                // A resuming stream keeps its place and is judged from there; a new one starts afresh.
                if !resume {
                    self.clients
                        .iter_mut()
                        .flat_map(|client| &mut client.sequences)
                        .for_each(Sequence::restart);
                    self.tally.ready = 0;
                }
            }
            Command::Begin {
                schedule,
                churn_per_second,
            } => {
                self.schedule = Some(*schedule);
                self.churn_per_second = *churn_per_second;
                self.tally.begin_phase(schedule.start_ns);
            }
            Command::Finish { deadline_ns } => {
                self.churn_per_second = 0.0;
                self.finish_by_ns = Some(*deadline_ns);
            }
            Command::Leave => {
                self.to_connect.clear();
                self.to_retry.clear();
                for client in &mut self.clients {
                    client.close();
                }
                (self.open, self.under_way) = (0, 0);
            }
        }
    }

    fn on_event(&mut self, event: &Event) {
        let Ok(number) = u32::try_from(event.token().0) else {
            return;
        };
        let Some(client) = client(&mut self.clients, number) else {
            return;
        };
        match client.phase {
            Phase::Closed => {}
            Phase::Connecting if event.is_error() => {
                let error = client
                    .socket
                    .as_ref()
                    .and_then(|socket| socket.take_error().ok().flatten());
                let why = error.map_or_else(
                    || "the connection failed".to_owned(),
                    |error| error.to_string(),
                );
                self.closed(number, Why::Refused(why));
            }
            Phase::Connecting => self.request(number),
            Phase::AwaitingHead | Phase::Open => {
                if event.is_readable() || event.is_error() || event.is_read_closed() {
                    self.read(number, event.is_read_closed() || event.is_error());
                }
            }
        }
    }

    fn read(&mut self, number: u32, hung_up: bool) {
        let Some(client) = client(&mut self.clients, number) else {
            return;
        };
        let before = client.phase;
        if client.never_reads && before == Phase::Open {
            return;
        }
        let mut shared = Shared {
            run: self.run,
            channels: self.setup.channels,
            keep_ids: self.setup.keep_ids,
            schedule: self.schedule.as_ref(),
            tally: &mut self.tally,
            buffer: &mut self.buffer,
            clock: now_ns,
        };
        let outcome = client.read(&mut shared, hung_up);
        if before == Phase::AwaitingHead && client.phase == Phase::Open {
            self.under_way = self.under_way.saturating_sub(1);
            self.open += 1;
            self.connects.last_head_ns = client.head_ns;
            self.head_ns
                .saturating_record(client.head_ns - client.connect_ns);
        }
        match outcome {
            Outcome::Drained => {}
            Outcome::More => self.unread.push(number),
            Outcome::Closed(why) => self.closed(number, why),
        }
    }

    fn connect_more(&mut self) {
        while self.under_way < self.setup.connecting
            && let Some(number) = self.to_connect.pop_front()
        {
            self.connect(number);
        }
    }

    fn connect(&mut self, number: u32) {
        let servers = if self.resuming {
            &self.setup.resume_servers
        } else {
            &self.setup.servers
        };
        let place = usize::try_from(self.setup.first_client + number).unwrap_or(0);
        let Some(server) = servers.get(place % servers.len().max(1)).copied() else {
            return;
        };
        let source = self
            .setup
            .first_source
            .map(|first| Ipv4Addr::from_bits(first + number / CONNECTIONS_PER_SOURCE));
        let receive_buffer_bytes = self.setup.receive_buffer_bytes;
        let Some(client) = client(&mut self.clients, number) else {
            return;
        };
        let connected = client
            .connect(server, source, receive_buffer_bytes, now_ns())
            .and_then(|socket| {
                let token = Token(usize::try_from(number).unwrap_or(usize::MAX));
                self.poll.registry().register(
                    socket,
                    token,
                    Interest::READABLE | Interest::WRITABLE,
                )
            });
        self.under_way += 1;
        // The request follows when the socket is writable: a storm is all handshakes first, the way
        // they arrive from many machines.
        if let Err(error) = connected {
            self.closed(number, Why::Refused(error.to_string()));
        }
    }

    fn request(&mut self, number: u32) {
        let Some(client) = client(&mut self.clients, number) else {
            return;
        };
        let Some(server) = client
            .socket
            .as_ref()
            .and_then(|socket| socket.peer_addr().ok())
        else {
            // Not connected yet: the socket becomes writable when it is.
            return;
        };
        let names: Vec<String> = (0..self.setup.channels_per_client)
            .map(|offset| {
                self.setup
                    .channel_names
                    .name((client.first_channel + offset) % self.setup.channels.max(1))
            })
            .collect();
        let mut request =
            template::fill(&self.setup.request, &names).replace("{server}", &server.to_string());
        if self.resuming && !client.last_id.is_empty() {
            request.push_str("last-event-id: ");
            request.push_str(&String::from_utf8_lossy(&client.last_id));
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        if let Err(error) = client.request(request.as_bytes()) {
            self.closed(number, Why::Refused(error.to_string()));
        }
    }

    /// A connection ended that should not have: try again, or count it.
    fn closed(&mut self, number: u32, why: Why) {
        let Some(client) = client(&mut self.clients, number) else {
            return;
        };
        let was_open = client.phase == Phase::Open;
        let turned_away = was_open
            && !client.saw_event
            && client.retry_ms > 0
            && now_ns() < client.head_ns + TURNED_AWAY_WITHIN_NS;
        let retry_after_ns = client.retry_ms * 1_000_000;
        client.close();
        if was_open {
            self.open = self.open.saturating_sub(1);
        } else {
            self.under_way = self.under_way.saturating_sub(1);
        }
        match why {
            Why::Malformed => self.tally.faults.malformed += 1,
            Why::Server if turned_away => {
                self.connects.turned_away += 1;
                self.to_retry.push((now_ns() + retry_after_ns, number));
            }
            Why::Server if was_open => self.tally.faults.disconnected += 1,
            Why::Server => {
                self.connect_failed(number, "closed before the head was complete".into());
            }
            Why::Refused(reason) => self.connect_failed(number, reason),
        }
    }

    fn connect_failed(&mut self, number: u32, reason: String) {
        self.connects.errors += 1;
        self.connects.first_error.get_or_insert(reason);
        self.to_retry
            .push((now_ns() + RETRY_AFTER_ERROR_NS, number));
    }

    fn retry(&mut self, now_ns: u64) {
        let to_connect = &mut self.to_connect;
        self.to_retry.retain(|(due_ns, number)| {
            let due = *due_ns <= now_ns;
            if due {
                to_connect.push_back(*number);
            }
            !due
        });
    }

    /// Closes and reopens clients at random, so many a second, while the phase lasts.
    fn churn(&mut self, now_ns: u64) {
        let Some(schedule) = self.schedule.filter(|schedule| now_ns > schedule.start_ns) else {
            return;
        };
        let due =
            seconds(now_ns.min(schedule.end_ns()) - schedule.start_ns) * self.churn_per_second;
        while as_f64(self.tally.churned) < due.floor() && self.under_way < self.setup.connecting {
            self.tally.churned += 1;
            let number = fastrand::u32(0..self.setup.clients.max(1));
            let Some(client) = client(&mut self.clients, number) else {
                return;
            };
            if client.phase != Phase::Open || client.never_reads {
                continue;
            }
            client.close();
            let were_ready = client
                .sequences
                .iter()
                .filter(|sequence| sequence.next() > 0)
                .count();
            client.sequences.iter_mut().for_each(Sequence::restart);
            self.tally.ready = self
                .tally
                .ready
                .saturating_sub(u64::try_from(were_ready).unwrap_or(0));
            self.open = self.open.saturating_sub(1);
            self.connect(number);
        }
    }
}

fn client(clients: &mut [Client], number: u32) -> Option<&mut Client> {
    clients.get_mut(usize::try_from(number).ok()?)
}
