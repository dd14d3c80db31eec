//! Tells the other replicas what is counted here, and learns what they count.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Counts;
use crate::bus::{Tally, TallyReport};

/// How often replicas exchange their counts. A client that reaches its limit on one replica is
/// refused by all of them after two exchanges at the most.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// Clients of one exchange: at so many, a few hundred kilobytes each way. Where more come and go
/// in a second, the rest is told with the next exchange.
const MAX_CLIENTS: usize = 5_000;

/// Exchanges counts for ever. What is held and refused here never waits for it; while it fails,
/// each replica has its limits for itself.
pub(in crate::http) async fn share(counts: Arc<Counts>, tally: Tally) {
    let mut ticks = interval(EXCHANGE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What an earlier exchange has told is not known to be there any more.
    let mut anew = true;
    let mut is_told = false;
    loop {
        ticks.tick().await;
        let report = counts.report(anew, MAX_CLIENTS);
        let told = TallyReport {
            anew,
            counts: report
                .news
                .iter()
                .map(|(client, here)| (client.to_string(), *here))
                .collect(),
            asked: report.asked.iter().map(ToString::to_string).collect(),
            full: report.full.iter().map(ToString::to_string).collect(),
        };
        match tally.exchange(told).await {
            Ok(answer) => {
                counts.learn(&report.asked, &answer.elsewhere, answer.full);
                if is_told {
                    tracing::info!("limits hold for all replicas together again");
                    is_told = false;
                }
                // The first report makes the entry that later ones find.
                anew = answer.was_unknown && !anew;
            }
            Err(error) => {
                counts.stand_alone();
                if !is_told {
                    tracing::warn!(%error, "each replica has its limits for itself for now");
                    is_told = true;
                }
                anew = true;
            }
        }
    }
}
