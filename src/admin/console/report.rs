//! What a replica tells of itself, to consoles on any replica.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The only version so far. What a later one adds is ignored, and what it leaves out is empty: so
/// replicas of neighbouring versions stand in one console.
const VERSION: u32 = 1;

/// The largest report: twenty channels of the longest names, and some numbers.
pub(super) const MAX_BYTES: usize = 8 * 1024;

/// Counts are totals since the start of the process: a report that is lost takes nothing away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) v: u32,
    /// Of this process, random.
    pub(super) id: String,
    /// What operators call it.
    pub(super) name: String,
    pub(super) version: String,
    pub(super) uptime_ms: u64,
    pub(super) ready: bool,
    /// Why not.
    pub(super) reasons: Vec<String>,
    pub(super) connections: u64,
    pub(super) max_connections: u64,
    pub(super) opened: u64,
    pub(super) closed: u64,
    /// Clients cut off because they did not keep up.
    pub(super) slow: u64,
    pub(super) live: u64,
    pub(super) kept: u64,
    pub(super) delivered: u64,
    pub(super) sent_bytes: u64,
    /// Gaps told, by reason.
    pub(super) gaps: BTreeMap<String, u64>,
    /// Deliveries of kept events by how long they took: the upper bound in microseconds, and how
    /// many were below it and above the one before.
    pub(super) latency: BTreeMap<u64, u64>,
    /// The newest probe's way through Redis and back.
    pub(super) bus_lag_us: Option<u64>,
    pub(super) cpu_ms: u64,
    pub(super) memory_bytes: u64,
    /// What the channels below carried in this time.
    pub(super) channels_ms: u64,
    pub(super) channels: Vec<Channel>,
}

/// One of the busiest channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) clients: u64,
    pub(super) events: u64,
    pub(super) deliveries: u64,
}

impl Report {
    /// An empty report of this version.
    pub(super) fn new() -> Self {
        Self {
            v: VERSION,
            ..Self::default()
        }
    }

    /// As it travels: without the least busy channels, where it would be too large.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut report = self.clone();
        loop {
            // Texts and numbers: serialising them cannot fail.
            let text = serde_json::to_vec(&report).unwrap_or_default();
            if text.len() <= MAX_BYTES || report.channels.pop().is_none() {
                return text;
            }
        }
    }

    /// Reads a report. `None`: it is too large, of another version, or none at all.
    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let report: Self = serde_json::from_slice(text).ok()?;
        (report.v == VERSION && !report.id.is_empty()).then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(channels: usize) -> Report {
        Report {
            id: "1".to_owned(),
            gaps: BTreeMap::from([("lost".to_owned(), 3)]),
            latency: BTreeMap::from([(100, 1), (u64::MAX, 2)]),
            channels: (0..channels)
                .map(|number| Channel {
                    name: format!("{number:0>200}"),
                    clients: u64::MAX,
                    events: u64::MAX,
                    deliveries: u64::MAX,
                })
                .collect(),
            ..Report::new()
        }
    }

    #[test]
    fn it_comes_back_as_it_was_written_and_fits() {
        let small = report(3);
        assert_eq!(Report::decode(&small.encode()), Some(small));
        let text = report(1000).encode();
        let back = Report::decode(&text).unwrap();
        assert!(text.len() <= MAX_BYTES && back.channels.len() >= 20);
    }

    #[test]
    fn what_a_neighbour_adds_or_leaves_out_is_no_fault_and_another_version_is() {
        let text = br#"{"v":1,"id":"a","connections":3,"added":{"x":1}}"#;
        assert_eq!(Report::decode(text).unwrap().connections, 3);
        for bad in [
            &br#"{"v":2,"id":"a"}"#[..],
            br#"{"v":1}"#,
            br#"{"v":1,"id":"a","connections":-1}"#,
            b"",
            &[b' '; MAX_BYTES + 1],
        ] {
            assert_eq!(Report::decode(bad), None, "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Report::decode(&text);
        }
    }
}
