//! What the replicas count together, such as the streams of a client.

use super::redis::RedisTally;

/// What a replica tells the others of its own counts, and asks of theirs.
#[derive(Clone, Debug, Default)]
pub struct TallyReport {
    /// Whatever was told before does not count any more.
    pub anew: bool,
    /// New counts; 0: none any more.
    pub counts: Vec<(String, usize)>,
    /// What is to be summed up over the others.
    pub asked: Vec<String>,
}

/// What the others count.
#[derive(Clone, Debug, Default)]
pub struct TallyAnswer {
    /// The sums of what was asked for, in that order.
    pub elsewhere: Vec<usize>,
    /// Nothing was known of this replica: what it told before is lost.
    pub was_unknown: bool,
}

/// The way to the other replicas' counts. To be used on the control runtime.
#[derive(Clone)]
pub struct Tally(pub(super) RedisTally);

impl Tally {
    /// Tells and asks.
    ///
    /// # Errors
    /// When the others cannot be reached, with the reason. They may have been told.
    pub async fn exchange(&self, report: TallyReport) -> Result<TallyAnswer, String> {
        self.0.exchange(report).await
    }
}
