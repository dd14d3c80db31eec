//! Counts of all replicas, in one hash a replica.
//!
//! `<prefix>$counts` has the replicas' names as fields, `<prefix>$counts.<name>` what one of them
//! counts. A replica refreshes its own at every exchange; one that does not any more is gone, with
//! what it counted, after [`LEASE`].

use std::time::Duration;

use redis::{Pipeline, RedisError};
use tokio::time::timeout;

use super::connect::COMMAND_DEADLINE;
use super::pool::CommandPool;
use crate::bus::{TallyAnswer, TallyReport};

/// How long the counts of a replica hold that is not heard of any more: some exchanges, so that
/// one that comes late takes nothing away.
const LEASE: Duration = Duration::from_secs(5);

/// How long the list of replicas is kept behind the last of them.
const LIST_LEASE: Duration = Duration::from_secs(60);

/// A field that every replica's hash has.
const MARKER: &str = "";

/// The exchange through Redis.
#[derive(Clone)]
pub(in crate::bus) struct RedisTally {
    pool: CommandPool,
    list: String,
    name: String,
}

impl RedisTally {
    pub(super) fn new(pool: CommandPool, prefix: &str) -> Self {
        Self {
            pool,
            list: format!("{prefix}$counts"),
            // Random: no two replicas share it.
            name: format!("{:016x}", fastrand::u64(..)),
        }
    }

    pub(in crate::bus) async fn exchange(
        &self,
        report: TallyReport,
    ) -> Result<TallyAnswer, String> {
        timeout(COMMAND_DEADLINE, self.run(report))
            .await
            .map_err(|_| "Redis does not answer in time".to_owned())?
    }

    async fn run(&self, report: TallyReport) -> Result<TallyAnswer, String> {
        let said = |error: RedisError| error.to_string();
        let mut connection = self.pool.get().await?;
        let (new_fields, replicas): (usize, Vec<String>) = self
            .telling(&report)
            .query_async(&mut *connection)
            .await
            .map_err(said)?;
        let mut answer = TallyAnswer {
            elsewhere: vec![0; report.asked.len()],
            was_unknown: new_fields > 0,
        };
        let others: Vec<_> = replicas.iter().filter(|name| **name != self.name).collect();
        if report.asked.is_empty() || others.is_empty() {
            return Ok(answer);
        }
        let mut asking = redis::pipe();
        for name in &others {
            asking
                .cmd("HMGET")
                .arg(self.key(name))
                .arg(MARKER)
                .arg(&report.asked);
        }
        // What is no number counts nothing: somebody else has written it.
        let counts: Vec<Vec<Option<String>>> =
            asking.query_async(&mut *connection).await.map_err(said)?;
        let mut gone = Vec::new();
        for (name, counts) in others.into_iter().zip(counts) {
            let mut counts = counts.into_iter();
            if counts.next().flatten().is_none() {
                gone.push(name);
            }
            for (sum, count) in answer.elsewhere.iter_mut().zip(counts) {
                let count = count.and_then(|text| text.parse().ok()).unwrap_or(0_usize);
                *sum = sum.saturating_add(count);
            }
        }
        if !gone.is_empty() {
            let mut forgetting = redis::cmd("HDEL");
            forgetting.arg(&self.list).arg(gone);
            forgetting
                .exec_async(&mut *connection)
                .await
                .map_err(said)?;
        }
        Ok(answer)
    }

    fn telling(&self, report: &TallyReport) -> Pipeline {
        let own = self.key(&self.name);
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        if report.anew {
            // Gone at once, without the right to delete.
            pipeline.pexpire(&own, 0).ignore();
        }
        pipeline.hset(&own, MARKER, 1);
        let (left, held): (Vec<_>, Vec<_>) =
            report.counts.iter().partition(|(_, count)| *count == 0);
        if !held.is_empty() {
            let telling = pipeline.cmd("HSET").arg(&own);
            for (client, count) in held {
                telling.arg(client).arg(count);
            }
            telling.ignore();
        }
        if !left.is_empty() {
            let left: Vec<_> = left.into_iter().map(|(client, _)| client).collect();
            pipeline.hdel(&own, left).ignore();
        }
        let milliseconds = |lease: Duration| i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        pipeline.pexpire(&own, milliseconds(LEASE)).ignore();
        pipeline.hset(&self.list, &self.name, 1).ignore();
        pipeline
            .pexpire(&self.list, milliseconds(LIST_LEASE))
            .ignore();
        pipeline.hkeys(&self.list);
        pipeline
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.list)
    }
}
