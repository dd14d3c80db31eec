//! Whether Redis may evict histories to save memory: looked at from time to time, and told.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::functions::refusal;
use super::pool::CommandPool;
use crate::telemetry::BusMetrics;
use crate::warnings::Warnings;

/// How often Redis is asked. Its configuration rarely changes.
const ASK_INTERVAL: Duration = Duration::from_secs(30);

/// How soon it is asked again while it does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The source of the warning.
const WARNING: &str = "redis memory";

/// Asks Redis whether it may evict, for ever, and says so in the log, in `/readyz` and in a metric.
pub(super) async fn watch(pool: CommandPool, warnings: Warnings, metrics: BusMetrics) {
    let mut asks = interval(ASK_INTERVAL);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        asks.tick().await;
        let Some(warning) = ask(&pool).await else {
            asks.reset_after(RETRY);
            continue;
        };
        metrics.may_evict.set(i64::from(warning.is_some()));
        if warnings.set(WARNING, warning.clone()) {
            match warning {
                Some(warning) => tracing::warn!(target: "fanfare::bus", "{warning}"),
                None => tracing::info!(target: "fanfare::bus", "Redis no longer evicts histories"),
            }
        }
    }
}

/// What is wrong with Redis' memory, if anything; `None` while it does not answer.
async fn ask(pool: &CommandPool) -> Option<Option<String>> {
    let mut connection = pool.get().await.ok()?;
    let mut info = redis::cmd("INFO");
    let info = info.arg("memory");
    match info.query_async::<String>(&mut *connection).await {
        Ok(info) => Some(eviction(&info)),
        Err(error) if refusal(&error).is_some() => Some(Some(
            "whether Redis evicts is not known, because its user lacks the right +info: \
             clients of quiet channels get a $gap at each reconnect"
                .to_owned(),
        )),
        Err(_) => None,
    }
}

/// The warning that `INFO memory` gives reason for. As the function library has it: memory is limited,
/// and the policy is not `noeviction`.
fn eviction(info: &str) -> Option<String> {
    let field = |name: &str| {
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let policy = field("maxmemory_policy")?;
    if field("maxmemory") == Some("0") || policy == "noeviction" {
        return None;
    }
    Some(format!(
        "Redis may evict histories (maxmemory-policy {policy}): clients of quiet channels get a $gap at \
         each reconnect; set maxmemory-policy noeviction"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limit_with_a_policy_evicts() {
        let info = |limit: &str, policy: &str| {
            format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_human:x\r\nmaxmemory_policy:{policy}\r\n"
            )
        };
        assert_eq!(eviction(&info("0", "allkeys-lru")), None);
        assert_eq!(eviction(&info("1000", "noeviction")), None);
        let warning = eviction(&info("1000", "volatile-lru")).unwrap();
        assert!(
            warning.contains("(maxmemory-policy volatile-lru)"),
            "{warning}"
        );
    }
}
