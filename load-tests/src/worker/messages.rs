//! What the coordinator and its client processes say to each other: one JSON value a line, over the
//! client process's standard input and output.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// The first line to a client process: everything about the connections it will hold.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) run: u32,
    /// Servers, taken in turn.
    pub(crate) servers: Vec<SocketAddr>,
    /// Where clients come back to with their cursor, taken in turn.
    pub(crate) resume_servers: Vec<SocketAddr>,
    /// The whole request, with the placeholders of [`crate::template`] and `{server}` in it.
    pub(crate) request: String,
    /// Added to the head of a resuming request: the `Last-Event-ID` line needs the cursor.
    pub(crate) keep_ids: bool,
    pub(crate) channel_names: ChannelNames,
    /// Number of this process's first client, counted over the run.
    pub(crate) first_client: u32,
    pub(crate) clients: u32,
    pub(crate) channels: u32,
    pub(crate) channels_per_client: u32,
    /// Every n-th client never reads; 0: all read.
    pub(crate) slow_every: u32,
    /// Connects under way at once.
    pub(crate) connecting: u32,
    /// `SO_RCVBUF` of every client; `None`: the kernel's choice.
    pub(crate) receive_buffer_bytes: Option<u32>,
    /// First of the loopback source addresses; `None`: the kernel's choice.
    pub(crate) first_source: Option<u32>,
}

/// Names are made, not sent: `<stem>.<number>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelNames {
    pub(crate) stem: String,
}

impl ChannelNames {
    pub(crate) fn name(&self, channel: u32) -> String {
        format!("{}.{channel}", self.stem)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Open every connection that is not open; with `resume`, carry on where each one was.
    Connect { resume: bool },
    /// A measured phase: count from here, against this schedule.
    Begin {
        schedule: Schedule,
        churn_per_second: f64,
    },
    /// Nothing more will be published: report when all has arrived, or at the deadline.
    Finish { deadline_ns: u64 },
    /// Close every connection.
    Leave,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Status(Status),
    /// Every connection asked for by `Connect` has its head.
    Connected(Connects),
    /// Answers `Finish`.
    Finished(Box<Measured>),
}

/// Sent a few times a second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) open: u32,
    /// Streams (a client's channel) that have seen an event.
    pub(crate) ready: u64,
    pub(crate) delivered: u64,
    pub(crate) connect_errors: u64,
    pub(crate) turned_away: u64,
    pub(crate) first_error: Option<String>,
}

/// How connecting went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Connects {
    pub(crate) first_connect_ns: u64,
    pub(crate) last_head_ns: u64,
    /// From `connect` to the end of the head.
    pub(crate) head_ns: Counts,
    /// Refused, reset or answered with anything but a stream; tried again.
    pub(crate) errors: u64,
    #[serde(skip)]
    pub(crate) first_error: Option<String>,
    /// Answered with a stream that closed at once ("come back later"); tried again.
    pub(crate) turned_away: u64,
    /// Resuming: when every stream had all that was due before the last one was back; 0: not yet.
    pub(crate) caught_up_ns: u64,
}

/// A histogram as pairs of value and count.
pub(crate) type Counts = Vec<(u64, u64)>;

/// What a client process saw in a phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) delivered: u64,
    pub(crate) received_bytes: u64,
    pub(crate) last_delivery_ns: u64,
    /// Publish to received; what never came counts with the time it was waited for.
    pub(crate) latency_ns: Counts,
    /// Deliveries in each [`crate::worker::tally::BUCKET_NS`] since the phase began.
    pub(crate) buckets: Vec<u64>,
    pub(crate) faults: Faults,
    pub(crate) heartbeats: u64,
    pub(crate) gaps: u64,
    pub(crate) churned: u64,
    pub(crate) slow_closed: u64,
    pub(crate) connects: Connects,
}

/// Everything that must be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// Skipped, a later one came.
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Still missing at the deadline, none after it came.
    pub(crate) undelivered: u64,
    /// Of this run, on a channel the client did not ask for.
    pub(crate) misrouted: u64,
    /// Data that is not this run's.
    pub(crate) foreign: u64,
    /// Clients the server closed.
    pub(crate) disconnected: u64,
    /// Answers whose framing is broken.
    pub(crate) malformed: u64,
}

impl Faults {
    pub(crate) fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.undelivered += other.undelivered;
        self.misrouted += other.misrouted;
        self.foreign += other.foreign;
        self.disconnected += other.disconnected;
        self.malformed += other.malformed;
    }

    /// The faults that are there, in words.
    pub(crate) fn named(&self) -> Vec<String> {
        [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.undelivered, "undelivered"),
            (self.misrouted, "on a channel not asked for"),
            (self.foreign, "with foreign data"),
            (self.disconnected, "clients disconnected by the server"),
            (self.malformed, "malformed answers"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}
