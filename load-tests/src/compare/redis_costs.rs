//! `redis-costs`: what an event costs Redis beside taking it, as `capacity` counts it: a push to each
//! subscriber, and what the replicas ask each other through it.
//!
//! A `redis-server` of its own on a core of its own. A push is measured as the difference between the
//! same events with subscribers and without. Redis writes to a subscriber once each time round its
//! loop: an event that comes alone is a write of its own for each, events that come together share one.
//! So they are published in both ways: one at a time, evenly spaced, each after the answer to the one
//! before; and in bursts of one write.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mio::{Events, Interest, Poll, Token};

use crate::clock::{NANOS_PER_SECOND, as_f64, nanos, now_ns, sleep_until};
use crate::compare::Folder;
use crate::compare::pinning;
use crate::compare::servers::{PREFIX, Running, start_redis};
use crate::measure::process::ServerProcesses;
use crate::publisher::Wire;
use crate::report::table::markdown;

/// More than waits for a subscriber at a time.
const READ_BYTES: usize = 256 * 1024;
/// Fields of one replica's hash that another asks for, in the second round of exchanges.
const FIELDS: usize = 10;
/// Exchanges a round, each over `--subscribers` replicas.
const EXCHANGES: u32 = 500;

#[derive(Debug, Args)]
pub(crate) struct RedisCostsArgs {
    /// Subscribers, which replicas are to Redis
    #[arg(long, default_value_t = 40)]
    subscribers: u32,
    /// Events published a second
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    rates: Vec<u32>,
    /// Events in one write of the publisher
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    bursts: Vec<u32>,
    /// How long each figure is measured
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    duration: Duration,
    /// Size of an event's data
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Core of Redis
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the publisher and the subscribers
    #[arg(long, default_value_t = 1)]
    load_core: usize,
}

/// Prints two tables.
///
/// # Errors
/// When there is no Redis, or it cannot be talked to.
pub(crate) fn run(arguments: &RedisCostsArgs) -> Result<bool> {
    let positive = |numbers: &[u32]| numbers.iter().all(|number| *number > 0);
    ensure!(
        positive(&arguments.rates) && positive(&arguments.bursts) && arguments.subscribers > 0,
        "--rates, --bursts and --subscribers begin at 1"
    );
    let folder = Folder::new("redis-costs")?;
    pinning::pin_to(&[arguments.load_core])?;
    let redis = start_redis(&folder.0, &[arguments.server_core])?;
    let mut pushes = markdown(&[
        "events/s",
        "in a burst",
        "published/s",
        "Redis, cores",
        "an event alone, µs",
        "a push, µs",
        "pushes a write",
    ]);
    for burst in &arguments.bursts {
        for rate in &arguments.rates {
            let alone = arguments.publish(&redis, *rate, *burst)?;
            let subscribers = Subscribers::start(redis.address(), arguments.subscribers)?;
            let pushing = arguments.publish(&redis, *rate, *burst)?;
            drop(subscribers);
            let subscribers = f64::from(arguments.subscribers);
            pushes.add_row([
                rate.to_string(),
                burst.to_string(),
                format!("{:.0}", pushing.per_second),
                format!("{:.2}", pushing.cores),
                format!("{:.1}", alone.micros_an_event),
                format!(
                    "{:.2}",
                    (pushing.micros_an_event - alone.micros_an_event) / subscribers
                ),
                // One write more for each burst: the answers to the publisher.
                format!(
                    "{:.1}",
                    subscribers / (pushing.writes_an_event - 1.0 / f64::from(*burst))
                ),
            ]);
        }
    }
    let mut exchange = markdown(&["fields asked of a replica", "asking one replica, µs"]);
    for fields in [0, FIELDS] {
        let micros = arguments.exchange(&redis, fields)?;
        exchange.add_row([fields.to_string(), format!("{micros:.2}")]);
    }
    writeln!(io::stdout(), "{pushes}\n\n{exchange}")?;
    Ok(true)
}

/// What events have cost Redis.
struct Cost {
    per_second: f64,
    cores: f64,
    micros_an_event: f64,
    writes_an_event: f64,
}

impl RedisCostsArgs {
    fn publish(&self, redis: &Running, rate: u32, burst: u32) -> Result<Cost> {
        let wire = Wire::Publish {
            redis: redis.address(),
            prefix: PREFIX.into(),
        };
        let mut command = Vec::new();
        for _ in 0..burst {
            wire.encode("costs", &vec![b'x'; self.bytes], &mut command);
        }
        let mut publisher = connect(redis.address())?;
        let processes = redis.processes()?;
        let mut writes = Writes::of(redis.address())?;
        let pause_ns = NANOS_PER_SECOND * u64::from(burst) / u64::from(rate);
        let (start_ns, cpu, written) = (now_ns(), processes.cpu(), writes.so_far()?);
        let until_ns = start_ns + nanos(self.duration);
        let mut due_ns = start_ns;
        let mut events = 0_u64;
        while due_ns < until_ns && now_ns() < until_ns {
            sleep_until(due_ns);
            publisher.write_all(&command)?;
            answers(&mut publisher, burst)?;
            events += u64::from(burst);
            due_ns += pause_ns;
        }
        let spent = processes.cpu();
        let events = as_f64(events);
        Ok(Cost {
            per_second: events * as_f64(NANOS_PER_SECOND) / as_f64(now_ns() - start_ns),
            cores: spent.load_since(&cpu),
            micros_an_event: as_f64(spent.since(&cpu)) / 1e3 / events,
            writes_an_event: as_f64(writes.so_far()? - written) / events,
        })
    }

    /// Microseconds of Redis for one replica that another asks of, as `src/bus/redis/tally.rs` does:
    /// one pipeline, a command a replica.
    fn exchange(&self, redis: &Running, fields: usize) -> Result<f64> {
        let asked: Vec<_> = (0..fields).map(|field| format!("s:user-{field}")).collect();
        let keys: Vec<_> = (0..self.subscribers)
            .map(|replica| format!("{PREFIX}$counts.{replica:016x}"))
            .collect();
        let mut connection =
            redis::Client::open(format!("redis://{}", redis.address()))?.get_connection()?;
        let mut telling = redis::pipe();
        let mut asking = redis::pipe();
        for key in &keys {
            telling.hset(key, "", 1).ignore();
            for field in &asked {
                telling.hset(key, field, 1).ignore();
            }
            asking.cmd("HMGET").arg(key).arg("").arg(&asked).ignore();
        }
        telling.exec(&mut connection)?;
        let processes: ServerProcesses = redis.processes()?;
        let before = processes.cpu();
        for _ in 0..EXCHANGES {
            asking.exec(&mut connection)?;
        }
        let asked = f64::from(EXCHANGES) * f64::from(self.subscribers);
        Ok(as_f64(processes.cpu().since(&before)) / 1e3 / asked)
    }
}

/// Redis' own count of its writes to sockets.
struct Writes(redis::Connection);

impl Writes {
    fn of(redis: SocketAddr) -> Result<Self> {
        let client = redis::Client::open(format!("redis://{redis}"))?;
        Ok(Self(client.get_connection()?))
    }

    fn so_far(&mut self) -> Result<u64> {
        let text: String = redis::cmd("INFO").arg("stats").query(&mut self.0)?;
        let writes = text
            .lines()
            .find_map(|line| line.strip_prefix("total_writes_processed:"));
        writes
            .and_then(|writes| writes.trim().parse().ok())
            .context("INFO names no total_writes_processed: Redis 7 is needed")
    }
}

fn connect(redis: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(redis).context("connecting to Redis")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Waits for so many one-line answers.
fn answers(stream: &mut TcpStream, mut left: u32) -> Result<()> {
    let mut buffer = [0; 4096];
    while left > 0 {
        let length = stream.read(&mut buffer).context("Redis' answer")?;
        ensure!(length > 0, "Redis has closed the connection");
        let lines = buffer.iter().take(length).filter(|byte| **byte == b'\n');
        left = left.saturating_sub(u32::try_from(lines.count())?);
    }
    Ok(())
}

/// Connections that take what Redis pushes, on a thread; until dropped.
struct Subscribers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Subscribers {
    fn start(redis: SocketAddr, count: u32) -> Result<Self> {
        let mut poll = Poll::new()?;
        let mut streams = Vec::new();
        let mut command = String::new();
        let channel = format!("{PREFIX}costs");
        write!(
            command,
            "*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{channel}\r\n",
            channel.len()
        )?;
        for number in 0..count {
            let mut stream = connect(redis)?;
            stream.write_all(command.as_bytes())?;
            // `subscribe`, the channel, a number: six lines.
            answers(&mut stream, 6)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            let token = Token(usize::try_from(number)?);
            poll.registry()
                .register(&mut stream, token, Interest::READABLE)?;
            streams.push(stream);
        }
        let stop = Arc::new(AtomicBool::default());
        let is_stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(streams.len());
            let mut buffer = vec![0; READ_BYTES];
            while !is_stopped.load(Ordering::Relaxed) {
                poll.poll(&mut events, Some(Duration::from_millis(100)))?;
                for event in &events {
                    let Some(stream) = streams.get_mut(event.token().0) else {
                        continue;
                    };
                    while matches!(stream.read(&mut buffer), Ok(length) if length > 0) {}
                }
            }
            Ok(())
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
