//! Every setting: its name, default, unit and reason, and the rules it must keep.
//!
//! Settings come as text, from flags or the environment under the same names, and become a
//! [`Config`] only when all of them are right. All faults are reported at once.

mod access;
mod clients;
mod environment;
mod exposed;
mod faults;
mod read;
mod redis_source;
mod redis_url;
mod settings;
mod tls;
mod traces;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use humantime::format_duration;

use crate::hub::{HubSettings, SlowClientPolicy};
use crate::protocol::RetryRange;
use crate::telemetry::{LogFormat, TraceConfig};
use crate::tls::TlsConfig;

pub use access::{Access, AccessRules, JwksUrl};
pub use clients::{ClientRules, ClientSettings, ForwardedHeader, Origin, Rate};
pub use environment::unknown_variables;
pub use exposed::exposed_secrets;
pub use faults::{Fault, Faults};
pub(crate) use redis_source::SourceFault;
pub use redis_source::{RedisSource, RedisTlsFiles};
pub use redis_url::RedisUrl;
pub(crate) use redis_url::{RedisPlace, SentinelGroup};
pub use settings::Settings;
pub use tls::TlsSettings;
pub use values::secret;

/// What the recent kept events of all channels may take, in all shards together: most clients
/// that come back find what they missed there.
const TAIL_BYTES: usize = 64 << 20;

/// How often a replica's position moves by itself, when nothing is published: its probes.
const POSITION_STEP: Duration = Duration::from_secs(5);

/// Where events come from.
#[derive(Clone, Debug)]
pub enum BusConfig {
    /// From this process.
    Embedded,
    /// From Redis, whose URL and certificates are read from there.
    Redis(RedisUrl, RedisSource),
}

/// A configuration that keeps every rule.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where clients connect over TLS.
    pub tls: Option<TlsConfig>,
    /// Where health, metrics and the console are served.
    pub admin_listen: SocketAddr,
    /// Where events come from.
    pub bus: BusConfig,
    /// What stands before a channel's name in Redis.
    pub prefix: String,
    /// Threads that own connections.
    pub shards: NonZeroUsize,
    /// The longest silence on a stream.
    pub heartbeat: Duration,
    /// Reconnection times are drawn from here.
    pub retry: RetryRange,
    /// What happens to a client that does not keep up.
    pub slow_client: SlowClientPolicy,
    /// Open streams at the most, in all shards.
    pub max_connections: usize,
    /// Channels of one stream at the most.
    pub max_channels_per_connection: usize,
    /// Data of one event at the most.
    pub max_event_bytes: usize,
    /// Kept events of one channel at the most.
    pub history_length: usize,
    /// How long a channel's history lives after its newest event.
    pub history_ttl: Duration,
    /// How far a Redis replica may be behind when it takes over. Shorter than `history_ttl`.
    pub max_replication_lag: Duration,
    /// Bytes that wait for one client at the most, one event more than that excepted.
    pub client_buffer_bytes: usize,
    /// The kernel's send buffer of each connection.
    pub socket_send_buffer_bytes: usize,
    /// From "not ready" to the first stream closed, so that a balancer sees it.
    pub drain_delay: Duration,
    /// Over this time streams are closed.
    pub drain_period: Duration,
    /// No stream gets older than this. At least two heartbeats.
    pub max_connection_age: Option<Duration>,
    /// Who may read and publish.
    pub access: Access,
    /// Who may connect, and what one client may take.
    pub clients: ClientRules,
    /// Which log lines are written.
    pub log: String,
    /// How they look.
    pub log_format: LogFormat,
    /// Where spans are sent; `None`: there are none.
    pub traces: Option<TraceConfig>,
}

impl fmt::Display for Config {
    /// Every setting as it would stand in the environment, secrets left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "FANFARE_{name}={value}");
        line("LISTEN", &self.listen)?;
        tls::write(self.tls.as_ref(), &mut line)?;
        line("ADMIN_LISTEN", &self.admin_listen)?;
        match &self.bus {
            BusConfig::Embedded => line("REDIS_URL", &"memory:")?,
            BusConfig::Redis(url, _) => line("REDIS_URL", &format_args!("… at {}", url.address()))?,
        }
        line("PREFIX", &self.prefix)?;
        self.access.write(&mut line)?;
        line("SHARDS", &self.shards)?;
        line("HEARTBEAT", &format_duration(self.heartbeat))?;
        line("RETRY", &self.retry)?;
        line("SLOW_CLIENT", &self.slow_client)?;
        line("CLIENT_BUFFER_BYTES", &self.client_buffer_bytes)?;
        line("SOCKET_SEND_BUFFER_BYTES", &self.socket_send_buffer_bytes)?;
        line("MAX_EVENT_BYTES", &self.max_event_bytes)?;
        line("HISTORY_LENGTH", &self.history_length)?;
        line("HISTORY_TTL", &format_duration(self.history_ttl))?;
        line(
            "MAX_REPLICATION_LAG",
            &format_duration(self.max_replication_lag),
        )?;
        line("MAX_CONNECTIONS", &self.max_connections)?;
        line(
            "MAX_CHANNELS_PER_CONNECTION",
            &self.max_channels_per_connection,
        )?;
        line("DRAIN_DELAY", &format_duration(self.drain_delay))?;
        line("DRAIN_PERIOD", &format_duration(self.drain_period))?;
        match self.max_connection_age {
            Some(age) => line("MAX_CONNECTION_AGE", &format_duration(age))?,
            None => line("MAX_CONNECTION_AGE", &"off")?,
        }
        line("LOG", &self.log)?;
        line("LOG_FORMAT", &self.log_format)?;
        write!(f, "{}", self.clients)?;
        match &self.traces {
            Some(traces) => writeln!(f, "traces go to {}", traces.collector),
            None => writeln!(f, "traces are off (OTEL_EXPORTER_OTLP_ENDPOINT)"),
        }
    }
}

impl Config {
    /// What can be used, but hardly can be meant.
    pub fn warning(&self) -> Option<String> {
        let age = self.max_replication_lag + POSITION_STEP + self.heartbeat;
        (self.history_ttl <= age).then(|| {
            format!(
                "FANFARE_HISTORY_TTL is {}, and the cursor of a quiet client may be {} old before \
                 it is told a newer one: it gets a $gap whenever it comes back. Longer than \
                 FANFARE_MAX_REPLICATION_LAG, FANFARE_HEARTBEAT and 5s together it would not",
                format_duration(self.history_ttl),
                format_duration(age)
            )
        })
    }

    /// What the hub needs to know.
    pub fn hub_settings(&self) -> HubSettings {
        HubSettings {
            heartbeat: self.heartbeat,
            retry: self.retry,
            client_buffer_bytes: self.client_buffer_bytes,
            slow_client: self.slow_client,
            lag_bound: self.max_replication_lag,
            tail_bytes: TAIL_BYTES / self.shards,
            max_connection_age: self.max_connection_age,
        }
    }
}
