//! Tells the other replicas what is counted here, and asks what they count.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Counts;
use crate::bus::{Tally, TallyReport};

/// How often replicas tell each other that they are there.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// How long what is to be told and asked is gathered: a crowd that comes costs twenty exchanges a
/// second, and a stream of a limited client opens so much later.
const GATHER: Duration = Duration::from_millis(50);

/// Clients of one exchange: at so many, a few hundred kilobytes each way. The rest comes with the
/// next one.
const MAX_CLIENTS: usize = 5_000;

/// Exchanges counts for ever. While it fails, each replica has its limits for itself, and no stream
/// waits for it.
pub(in crate::http) async fn share(counts: Arc<Counts>, tally: Tally) {
    let mut ticks = interval(EXCHANGE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What an earlier exchange has told is not known to be there any more.
    let mut anew = true;
    let mut is_told = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = counts.stirred() => sleep(GATHER).await,
        }
        let report = counts.report(anew, MAX_CLIENTS);
        let told = TallyReport {
            anew,
            counts: report
                .news
                .iter()
                .map(|(client, here)| (client.to_string(), *here))
                .collect(),
            asked: report
                .asked
                .iter()
                .map(|asked| asked.client.to_string())
                .collect(),
        };
        match tally.exchange(told).await {
            Ok(answer) => {
                for (asked, elsewhere) in report.asked.into_iter().zip(answer.elsewhere) {
                    // Whose client has gone meanwhile does not mind.
                    let _ = asked.reply.send(elsewhere);
                }
                counts.be_among_others();
                if is_told {
                    tracing::info!("per-client limits apply across all replicas again");
                    is_told = false;
                }
                // The first report makes the entry that later ones find.
                anew = answer.was_unknown && !anew;
            }
            Err(error) => {
                counts.stand_alone();
                if !is_told {
                    tracing::warn!(%error, "cannot reach Redis: per-client limits apply per replica until it is back");
                    is_told = true;
                }
                anew = true;
            }
        }
    }
}
