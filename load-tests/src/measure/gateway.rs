//! What gateways count themselves: their `/metrics`, read before and after.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::worker::http::status_of;

/// Whatever begins with one of these is read: what resuming costs and how it ended.
const COUNTERS: [&str; 4] = [
    HISTORY_READS,
    "fanfare_resumes_total",
    "fanfare_gaps_total",
    "fanfare_backfilled_events_total",
];
const HISTORY_READS: &str = "fanfare_history_reads_total";
/// A page of a few ten kilobytes, from a server that may have ten thousand clients to look after.
const PATIENCE: Duration = Duration::from_secs(10);

/// The admin listeners of the gateways under test; none for other servers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gateways(Vec<SocketAddr>);

/// Counters of all gateways together, by series: `name{label="value"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Gateways {
    pub(crate) fn new(admin: Vec<SocketAddr>) -> Self {
        Self(admin)
    }

    /// `None` without gateways.
    pub(crate) fn counters(&self) -> Result<Option<Counters>> {
        let mut counters = Counters::default();
        for admin in &self.0 {
            let page =
                metrics(*admin).with_context(|| format!("reading http://{admin}/metrics"))?;
            counters.add(&page);
        }
        Ok((!self.0.is_empty()).then_some(counters))
    }
}

impl Counters {
    fn add(&mut self, page: &str) {
        let series = page
            .lines()
            .filter_map(|line| line.trim_end().rsplit_once(' '))
            .filter(|(series, _)| {
                let name = series.split_once('{').map_or(*series, |(name, _)| name);
                COUNTERS.contains(&name)
            });
        for (series, value) in series {
            *self.0.entry(series.to_owned()).or_default() += value.parse().unwrap_or(0);
        }
    }

    /// What was counted since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let count = |(series, now): (&String, &u64)| {
            let before = earlier.0.get(series).copied().unwrap_or(0);
            (series.clone(), now.saturating_sub(before))
        };
        Self(self.0.iter().map(count).collect())
    }

    /// Times that Redis was asked for a channel's history; `None` where that is not counted.
    pub(crate) fn history_reads(&self) -> Option<u64> {
        self.0.get(HISTORY_READS).copied()
    }

    /// The series that moved, and by how much.
    pub(crate) fn moved(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(series, count)| (series.as_str(), *count))
    }
}

fn metrics(admin: SocketAddr) -> Result<String> {
    let mut connection = TcpStream::connect_timeout(&admin, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    // In HTTP/1.0 the answer ends with the connection, and comes in no chunks.
    write!(connection, "GET /metrics HTTP/1.0\r\nhost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let status = status_of(answer.lines().next().unwrap_or_default().as_bytes());
    ensure!(
        status == Some(200),
        "answered with status {}",
        status.unwrap_or(0)
    );
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_several_gateways_are_added_and_compared() {
        let mut before = Counters::default();
        before.add("fanfare_history_reads_total 5\n");
        let mut after = Counters::default();
        for page in [
            "HTTP/1.0 200 OK\r\n\r\n# TYPE fanfare_history_reads_total counter\nfanfare_history_reads_total 6\n\
             fanfare_resumes_total{outcome=\"complete\",source=\"tail\"} 70\nfanfare_connections 9\n",
            "fanfare_history_reads_total 2\nfanfare_gaps_total{reason=\"lost\"} 0\n",
        ] {
            after.add(page);
        }
        let counted = after.since(&before);
        assert_eq!(counted.history_reads(), Some(3));
        assert_eq!(
            counted.moved().collect::<Vec<_>>(),
            [
                ("fanfare_history_reads_total", 3),
                (
                    "fanfare_resumes_total{outcome=\"complete\",source=\"tail\"}",
                    70
                ),
            ]
        );
        assert_eq!(Counters::default().history_reads(), None);
    }
}
