//! How histories are kept: as a gateway wants it, and as Redis says.

use std::time::Duration;

use crate::config::Config;
use crate::protocol::EventId;

/// What a gateway wants of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibrarySettings {
    /// What stands before a channel's name in Redis.
    pub prefix: String,
    /// Kept events of one channel at the most.
    pub history_length: usize,
    /// How long a channel's history lives after its newest event.
    pub history_ttl: Duration,
    /// How far a Redis replica may be behind when it takes over.
    pub max_replication_lag: Duration,
    /// Data of one event at the most.
    pub max_event_bytes: usize,
}

impl From<&Config> for LibrarySettings {
    fn from(config: &Config) -> Self {
        Self {
            prefix: config.prefix.clone(),
            history_length: config.history_length,
            history_ttl: config.history_ttl,
            max_replication_lag: config.max_replication_lag,
            max_event_bytes: config.max_event_bytes,
        }
    }
}

/// What `<prefix>$config` says, for all publishers and gateways of the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Kept events of one channel at the most.
    pub length: u64,
    /// How long a channel's history lives after its newest event.
    pub ttl: Duration,
    /// What the TTL was before it was raised.
    pub old_ttl: Duration,
    /// The newest id when the TTL was raised: positions before it are judged by `old_ttl`.
    /// [`EventId::ZERO`] when it never was.
    pub ttl_since: EventId,
    /// The lag bound.
    pub max_replication_lag: Duration,
    /// Data of one event at the most.
    pub max_event_bytes: u64,
}

impl HistoryConfig {
    /// In what Redis differs from `settings`, for people; `None` where it does not.
    pub fn differs_from(&self, settings: &LibrarySettings) -> Option<String> {
        let ms = |time: Duration| format!("{}ms", time.as_millis());
        let pairs = [
            (
                "HISTORY_LENGTH",
                self.length.to_string(),
                settings.history_length.to_string(),
            ),
            ("HISTORY_TTL", ms(self.ttl), ms(settings.history_ttl)),
            (
                "MAX_REPLICATION_LAG",
                ms(self.max_replication_lag),
                ms(settings.max_replication_lag),
            ),
            (
                "MAX_EVENT_BYTES",
                self.max_event_bytes.to_string(),
                settings.max_event_bytes.to_string(),
            ),
        ];
        let differences: Vec<_> = pairs
            .into_iter()
            .filter(|(_, found, wanted)| found != wanted)
            .map(|(name, found, wanted)| {
                format!("FANFARE_{name} is {wanted} here and {found} in Redis")
            })
            .collect();
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LibrarySettings {
        LibrarySettings {
            prefix: "sse:".into(),
            history_length: 1000,
            history_ttl: Duration::from_secs(3600),
            max_replication_lag: Duration::from_secs(60),
            max_event_bytes: 1 << 20,
        }
    }

    #[test]
    fn a_difference_names_the_setting_and_both_values() {
        let mut found = HistoryConfig {
            length: 1000,
            ttl: Duration::from_secs(3600),
            old_ttl: Duration::from_secs(60),
            ttl_since: EventId::new(1, 0),
            max_replication_lag: Duration::from_secs(60),
            max_event_bytes: 1 << 20,
        };
        assert_eq!(found.differs_from(&settings()), None);
        found.length = 10;
        found.ttl = Duration::from_secs(7200);
        assert_eq!(
            found.differs_from(&settings()).unwrap(),
            "FANFARE_HISTORY_LENGTH is 1000 here and 10 in Redis, \
             FANFARE_HISTORY_TTL is 3600000ms here and 7200000ms in Redis"
        );
    }
}
