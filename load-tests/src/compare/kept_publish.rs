//! The row `kept-publish`: what keeping an event costs Redis, against a plain `PUBLISH`.
//!
//! Redis has one core to itself, `redis-benchmark` the other. The two commands take turns in one run,
//! so that a machine that gets slower does so for both. Nobody subscribes: what is measured is
//! Redis's own work for a publisher. `redis-benchmark` ends at the first error that Redis answers, and
//! in the end the history says how many events were appended.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::clock::{as_f64, nanos, now_ns};
use crate::compare::rows::{Size, median};
use crate::compare::servers::PREFIX;
use crate::measure::process::ServerProcesses;
use crate::report::progress::Progress;

/// As many as `redis-benchmark` opens by default.
const CONNECTIONS: u32 = 50;
/// Requests under way on each connection, pipelined.
const PIPELINE: u32 = 16;
const EVENT_BYTES: usize = 100;
/// A turn of one command: short enough for many, long against the millisecond that is its measure.
const REQUESTS_A_TURN: u32 = 50_000;
const PIPELINED_REQUESTS_A_TURN: u32 = 100_000;
/// A rehearsal too fills a history and trims it.
const MIN_REQUESTS_A_TURN: u32 = 2_000;
const MIN_TURNS: usize = 3;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct KeptPublish {
    pub(crate) connections: u32,
    pub(crate) pipeline: u32,
    pub(crate) event_bytes: usize,
    pub(crate) one_at_a_time: Pair,
    pub(crate) pipelined: Pair,
}

/// The two commands under the same load, in turns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) publish: Pace,
    pub(crate) function: Pace,
}

impl Pair {
    pub(crate) fn ratio(&self) -> f64 {
        self.function.per_second / self.publish.per_second
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Pace {
    /// The median of the turns.
    pub(crate) per_second: f64,
    /// CPU of Redis, cores: well below 1, it was the client that was measured.
    pub(crate) redis_load: f64,
    /// CPU of Redis a request.
    pub(crate) redis_micros: f64,
    pub(crate) turns: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publish {
    Live,
    Kept,
}

/// Measures a Redis that has the function library.
pub(crate) fn measure(
    redis: SocketAddr,
    process: ServerProcesses,
    size: Size,
    progress: &Progress,
) -> Result<KeptPublish> {
    let bench = RedisBenchmark {
        redis,
        process,
        key: format!("{PREFIX}load.kept"),
        data: "x".repeat(EVENT_BYTES),
    };
    let requests = |full: u32| (full / size.shrink).max(MIN_REQUESTS_A_TURN);
    // The history is full, and is trimmed from the first measured event on.
    let warm_up = requests(REQUESTS_A_TURN) / 2;
    for publish in [Publish::Live, Publish::Kept] {
        bench.turn(publish, 1, warm_up)?;
    }
    progress.stage("a request at a time", 0);
    let half = size.duration / 2;
    let (one_at_a_time, kept) = bench.pair(1, requests(REQUESTS_A_TURN), half)?;
    progress.stage("pipelined", 0);
    let (pipelined, kept_pipelined) =
        bench.pair(PIPELINE, requests(PIPELINED_REQUESTS_A_TURN), half)?;
    progress.done();
    let asked_for = u64::from(warm_up) + kept + kept_pipelined;
    let appended = bench.appended()?;
    ensure!(
        appended >= asked_for,
        "{appended} of {asked_for} kept events were appended to the history"
    );
    Ok(KeptPublish {
        connections: CONNECTIONS,
        pipeline: PIPELINE,
        event_bytes: EVENT_BYTES,
        one_at_a_time,
        pipelined,
    })
}

struct RedisBenchmark {
    redis: SocketAddr,
    process: ServerProcesses,
    key: String,
    data: String,
}

impl RedisBenchmark {
    /// Both commands in turns for `time`; also the number of events that were to be kept.
    fn pair(&self, pipeline: u32, requests: u32, time: Duration) -> Result<(Pair, u64)> {
        let mut pair = Pair {
            publish: Pace::default(),
            function: Pace::default(),
        };
        let mut kept = 0;
        let until_ns = now_ns() + nanos(time);
        while pair.function.turns.len() < MIN_TURNS || now_ns() < until_ns {
            for (publish, pace) in [
                (Publish::Live, &mut pair.publish),
                (Publish::Kept, &mut pair.function),
            ] {
                let before = self.process.cpu();
                pace.turns.push(self.turn(publish, pipeline, requests)?);
                let cpu = self.process.cpu();
                // The busiest turn: around it the client starts and ends, and Redis waits.
                pace.redis_load = pace.redis_load.max(cpu.load_since(&before));
                pace.redis_micros += as_f64(cpu.since(&before)) / 1e3;
            }
            kept += u64::from(requests);
        }
        for pace in [&mut pair.publish, &mut pair.function] {
            pace.per_second = median(&pace.turns).context("no turn")?;
            pace.redis_micros /= as_f64(kept);
        }
        Ok((pair, kept))
    }

    /// Requests a second.
    fn turn(&self, publish: Publish, pipeline: u32, requests: u32) -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command
            .args(["-h", &self.redis.ip().to_string()])
            .args(["-p", &self.redis.port().to_string()])
            .args(["-c", &CONNECTIONS.to_string()])
            .args(["-P", &pipeline.to_string()])
            .args(["-n", &requests.to_string(), "--csv"]);
        match publish {
            Publish::Live => command.args(["PUBLISH", &self.key, &self.data]),
            Publish::Kept => command.args(["FCALL", "fanfare_publish", "1", &self.key, &self.data]),
        };
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("redis-benchmark (apt-get install redis-tools)")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "redis-benchmark, {publish:?}: {}",
            error.trim()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        requests_per_second(&text).with_context(|| format!("redis-benchmark has said: {text}"))
    }

    /// Events ever appended to the history.
    fn appended(&self) -> Result<u64> {
        let mut connection = redis::Client::open(format!("redis://{}", self.redis))?
            .get_connection()
            .context("asking Redis for the history")?;
        let information: Vec<redis::Value> = redis::cmd("XINFO")
            .arg("STREAM")
            .arg(&self.key)
            .query(&mut connection)
            .context("the history")?;
        let mut information = information.into_iter();
        while let (Some(name), Some(value)) = (information.next(), information.next()) {
            if redis::from_redis_value::<String>(name)? == "entries-added" {
                return Ok(redis::from_redis_value(value)?);
            }
        }
        anyhow::bail!("XINFO STREAM names no entries-added: Redis 7 is needed")
    }
}

/// The second column of the last line: a header goes before it, and the first column is the command.
fn requests_per_second(csv: &str) -> Option<f64> {
    const COLUMNS_FROM_THE_END: usize = 7;
    let last = csv.trim_end().lines().last()?;
    let column = last.rsplit(',').nth(COLUMNS_FROM_THE_END - 1)?;
    column
        .trim_matches('"')
        .parse()
        .ok()
        .filter(|per_second: &f64| per_second.is_finite() && *per_second > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_read_whatever_the_command_holds() {
        let header = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"";
        let line = "\"PUBLISH a,b \"c\"\",\"606060.62\",\"1.091\",\"0.176\",\"0.711\",\"3.183\",\"4.335\",\"4.519\"";
        assert_eq!(
            requests_per_second(&format!("{header}\n{line}\n")),
            Some(606_060.62)
        );
        assert_eq!(requests_per_second(header), None);
        assert_eq!(requests_per_second(""), None);
    }

    #[test]
    fn the_ratio_is_of_the_medians() {
        let pace = |per_second| Pace {
            per_second,
            ..Pace::default()
        };
        let pair = Pair {
            publish: pace(80e3),
            function: pace(60e3),
        };
        assert!((pair.ratio() - 0.75).abs() < 1e-9);
    }
}
