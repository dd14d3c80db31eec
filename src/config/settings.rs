//! The settings as text.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use super::access::AccessSettings;
use super::values::secret;
use super::{ClientSettings, RedisTlsFiles, TlsSettings};

/// The settings of the gateway, as flags and environment. Times are written 500ms, 15s or 2m,
/// sizes 64KiB or 1MiB, lists with commas.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address of the data listener: streams, publishing and the demo page
    #[arg(
        long,
        env = "FANFARE_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: String,

    /// Address of the admin listener: health, metrics and the console. It has no authentication:
    /// keep it inside your network
    #[arg(
        long,
        env = "FANFARE_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9080"
    )]
    pub admin_listen: String,

    /// The TLS listener.
    #[command(flatten)]
    pub tls: TlsSettings,

    /// Source of events: redis://, rediss://, redis+unix://, redis-sentinel://HOST:PORT,…/NAME,
    /// rediss-sentinel://, or memory: for a single replica without Redis. [default: memory: on a
    /// loopback listener]
    #[arg(
        long,
        env = "FANFARE_REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        value_parser = secret
    )]
    pub redis_url: Option<SecretString>,

    /// File that contains the Redis URL, for a URL with a password. Read again when it changes
    #[arg(long, env = "FANFARE_REDIS_URL_FILE", value_name = "FILE")]
    pub redis_url_file: Option<PathBuf>,

    /// Files for TLS connections to Redis.
    #[command(flatten)]
    pub redis_tls: RedisTlsFiles,

    /// Prefix of channel names in Redis. Clients cannot read Redis channels without it
    #[arg(
        long,
        env = "FANFARE_PREFIX",
        value_name = "TEXT",
        default_value = "sse:"
    )]
    pub prefix: String,

    /// Number of threads that own connections. [default: the number of cores]
    #[arg(long, env = "FANFARE_SHARDS", value_name = "N")]
    pub shards: Option<String>,

    /// Maximum silence on a stream before a heartbeat is sent. Proxies close silent connections
    /// after 30 to 60 seconds; nginx/nginx.conf waits for three heartbeats
    #[arg(
        long,
        env = "FANFARE_HEARTBEAT",
        value_name = "TIME",
        default_value = "15s"
    )]
    pub heartbeat: String,

    /// Range of the reconnection time. Each stream draws its own, so that clients that were
    /// disconnected together do not reconnect together
    #[arg(
        long,
        env = "FANFARE_RETRY",
        value_name = "LEAST,MOST",
        default_value = "2s,6s"
    )]
    pub retry: String,

    /// Action when the buffer of a client is full: close (the client reconnects) or latest (its
    /// oldest waiting events are dropped)
    #[arg(
        long,
        env = "FANFARE_SLOW_CLIENT",
        value_name = "POLICY",
        default_value = "close"
    )]
    pub slow_client: String,

    /// Maximum number of open streams. [default: the descriptor limit minus a reserve of 256]
    #[arg(long, env = "FANFARE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<String>,

    /// Maximum number of channels per stream
    #[arg(
        long,
        env = "FANFARE_MAX_CHANNELS_PER_CONNECTION",
        value_name = "N",
        default_value = "64"
    )]
    pub max_channels_per_connection: String,

    /// Maximum size of the data of one event. Larger events are refused or dropped.
    /// client_max_body_size in nginx/nginx.conf has the same value
    #[arg(
        long,
        env = "FANFARE_MAX_EVENT_BYTES",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub max_event_bytes: String,

    /// Maximum number of kept events per channel. Clients that missed more get a $gap
    #[arg(
        long,
        env = "FANFARE_HISTORY_LENGTH",
        value_name = "N",
        default_value = "1000"
    )]
    pub history_length: String,

    /// Lifetime of a channel's history after its newest event. Clients that reconnect later get a
    /// $gap
    #[arg(
        long,
        env = "FANFARE_HISTORY_TTL",
        value_name = "TIME",
        default_value = "1h"
    )]
    pub history_ttl: String,

    /// Maximum replication lag of a Redis replica that becomes the primary. After a failover ids
    /// jump ahead by this much, so that none is used twice. FANFARE_HISTORY_TTL must be longer
    #[arg(
        long,
        env = "FANFARE_MAX_REPLICATION_LAG",
        value_name = "TIME",
        default_value = "60s"
    )]
    pub max_replication_lag: String,

    /// Maximum number of bytes that wait for a client. A client for which more would wait is slow
    #[arg(
        long,
        env = "FANFARE_CLIENT_BUFFER_BYTES",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub client_buffer_bytes: String,

    /// Size of the kernel's send buffer per connection. Its contents do not count towards
    /// FANFARE_CLIENT_BUFFER_BYTES
    #[arg(
        long,
        env = "FANFARE_SOCKET_SEND_BUFFER_BYTES",
        value_name = "SIZE",
        default_value = "128KiB"
    )]
    pub socket_send_buffer_bytes: String,

    /// On shutdown: time between "not ready" and the first closed stream, for balancers to stop
    /// sending new streams
    #[arg(
        long,
        env = "FANFARE_DRAIN_DELAY",
        value_name = "TIME",
        default_value = "5s"
    )]
    pub drain_delay: String,

    /// On shutdown: time over which the open streams are closed, evenly
    #[arg(
        long,
        env = "FANFARE_DRAIN_PERIOD",
        value_name = "TIME",
        default_value = "20s"
    )]
    pub drain_period: String,

    /// Maximum age of a stream. Each stream is closed at a random age between half of this and all
    /// of it; browsers reconnect by themselves, to the replica with the fewest streams, so
    /// replicas that were started later get their share. off, or at least two heartbeats
    #[arg(
        long,
        env = "FANFARE_MAX_CONNECTION_AGE",
        value_name = "TIME",
        default_value = "off"
    )]
    pub max_connection_age: String,

    /// Who may read and publish
    #[command(flatten)]
    pub access: AccessSettings,

    /// Who may connect, and limits per client
    #[command(flatten)]
    pub clients: ClientSettings,

    /// Log filter: error, warn, info, debug, or target=level directives
    #[arg(
        long,
        env = "FANFARE_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,

    /// Format of log lines: text or json
    #[arg(
        long,
        env = "FANFARE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: String,
}
