//! The settings as text, and how they become a [`Config`].

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;

use super::access::AccessSettings;
use super::faults::{Faults, Reader};
use super::values::{duration_range, secret};
use super::{BusConfig, ClientSettings, Config, RedisUrl, traces};
use crate::hub::SlowClientPolicy;
use crate::protocol::RetryRange;
use crate::telemetry::LogFormat;

/// Descriptors kept free for everything that is no client: Redis, the admin listener, files, and
/// the connections that are told to come back later.
const DESCRIPTOR_RESERVE: usize = 256;

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

    /// File that contains the Redis URL, for a URL with a password
    #[arg(long, env = "FANFARE_REDIS_URL_FILE", value_name = "FILE")]
    pub redis_url_file: Option<String>,

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

impl Settings {
    /// Reads all settings.
    ///
    /// # Errors
    /// With every fault there is, not only the first.
    pub fn read(&self) -> Result<Config, Faults> {
        let mut reader = Reader::default();
        let listen = reader.address("LISTEN", &self.listen);
        let admin_listen = reader.address("ADMIN_LISTEN", &self.admin_listen);
        if listen == admin_listen && listen.port() != 0 {
            reader.fault("ADMIN_LISTEN", "must differ from FANFARE_LISTEN");
        }
        let clients = self.clients.read(&mut reader);
        if let Some(address) = clients.proxy_protocol_listen
            && address.port() != 0
            && (address == listen || address == admin_listen)
        {
            reader.fault(
                "PROXY_PROTOCOL_LISTEN",
                "must differ from the other listeners",
            );
        }
        let open = [Some(listen), clients.proxy_protocol_listen]
            .iter()
            .flatten()
            .all(|address| address.ip().is_loopback());
        let bus = self.read_bus(open, &mut reader);
        let access = self.access.read(open, &mut reader);
        if clients.max_connections_per_subject.is_some() && !access.has_tokens() {
            reader.fault(
                "MAX_CONNECTIONS_PER_SUBJECT",
                "needs a key that verifies tokens: without tokens there are no subjects",
            );
        }
        let prefix_is_plain = !self.prefix.is_empty()
            && self.prefix.len() <= 64
            && self.prefix.bytes().all(|byte| {
                byte.is_ascii_graphic() && !matches!(byte, b'*' | b'?' | b'[' | b']' | b'$' | b'\\')
            });
        if !prefix_is_plain {
            reader.fault(
                "PREFIX",
                "must be 1 to 64 printable ASCII characters without space, * ? [ ] \\ and $",
            );
        }
        let retry = duration_range(&self.retry).and_then(|(least, most)| {
            RetryRange::new(least, most).ok_or_else(|| {
                "must be a range from the shorter to the longer, at most a day".to_owned()
            })
        });
        let retry = reader.read("RETRY", retry);
        let slow_client = match self.slow_client.as_str() {
            "close" => SlowClientPolicy::Close,
            "latest" => SlowClientPolicy::Latest,
            _ => {
                reader.fault("SLOW_CLIENT", "must be close or latest");
                SlowClientPolicy::Close
            }
        };
        let log_format = match self.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => {
                reader.fault("LOG_FORMAT", "must be text or json");
                LogFormat::Text
            }
        };
        if self.log.parse::<EnvFilter>().is_err() {
            reader.fault(
                "LOG",
                "must be a level such as info, or directives such as fanfare=debug",
            );
        }
        let shards = match &self.shards {
            Some(text) => reader.count("SHARDS", text, (1, 1024)),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let history_ttl = reader.duration("HISTORY_TTL", &self.history_ttl, HISTORY_TTL);
        let max_replication_lag = reader.duration(
            "MAX_REPLICATION_LAG",
            &self.max_replication_lag,
            (Duration::from_millis(100), Duration::from_secs(3600)),
        );
        // Where one of them is refused already, the other is judged alone.
        if !history_ttl.is_zero() && history_ttl.as_millis() <= max_replication_lag.as_millis() {
            reader.fault(
                "HISTORY_TTL",
                "must be longer than FANFARE_MAX_REPLICATION_LAG: after a failover, nothing would be \
                 young enough to prove that none is missing",
            );
        }
        let heartbeat = reader.duration(
            "HEARTBEAT",
            &self.heartbeat,
            (Duration::from_millis(100), Duration::from_secs(3600)),
        );
        let max_connection_age = match self.max_connection_age.as_str() {
            "off" => None,
            text => {
                let within = (heartbeat * 2, MOST_CONNECTION_AGE);
                Some(reader.duration("MAX_CONNECTION_AGE", text, within))
            }
        };
        let config = Config {
            listen,
            admin_listen,
            bus,
            prefix: self.prefix.clone(),
            shards: NonZeroUsize::new(shards).unwrap_or(NonZeroUsize::MIN),
            heartbeat,
            retry,
            slow_client,
            max_connections: self.read_max_connections(&mut reader),
            max_channels_per_connection: reader.count(
                "MAX_CHANNELS_PER_CONNECTION",
                &self.max_channels_per_connection,
                (1, 1024),
            ),
            // Redis cuts subscribers off at 32 MiB of waiting output by default.
            max_event_bytes: reader.size("MAX_EVENT_BYTES", &self.max_event_bytes, (1, 16 << 20)),
            history_length: reader.count(
                "HISTORY_LENGTH",
                &self.history_length,
                // A million entries of 100 bytes are some 150 MB of one Redis key.
                (1, 1_000_000),
            ),
            history_ttl,
            max_replication_lag,
            client_buffer_bytes: reader.size(
                "CLIENT_BUFFER_BYTES",
                &self.client_buffer_bytes,
                (4096, 1 << 30),
            ),
            socket_send_buffer_bytes: reader.size(
                "SOCKET_SEND_BUFFER_BYTES",
                &self.socket_send_buffer_bytes,
                (4096, 1 << 30),
            ),
            drain_delay: reader.duration("DRAIN_DELAY", &self.drain_delay, UP_TO_AN_HOUR),
            drain_period: reader.duration("DRAIN_PERIOD", &self.drain_period, UP_TO_AN_HOUR),
            max_connection_age,
            access,
            clients,
            log: self.log.clone(),
            log_format,
            traces: traces::read(|name| std::env::var(name).ok(), &mut reader),
        };
        reader.finish(config)
    }

    fn read_bus(&self, open: bool, reader: &mut Reader) -> BusConfig {
        let named = if self.redis_url_file.is_some() {
            "REDIS_URL_FILE"
        } else {
            "REDIS_URL"
        };
        let url = match (&self.redis_url, &self.redis_url_file) {
            (Some(_), Some(_)) => {
                reader.fault(named, "and FANFARE_REDIS_URL must not both be set");
                return BusConfig::Embedded;
            }
            (Some(url), None) => Some(url.expose_secret().to_owned()),
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(url) if url.trim().is_empty() => {
                    let rule = format!("is empty: {file} must contain the Redis URL");
                    reader.fault(named, rule);
                    return BusConfig::Embedded;
                }
                Ok(url) => Some(url.trim_end().to_owned()),
                Err(error) => {
                    reader.fault(named, format!("cannot be read: {error}"));
                    return BusConfig::Embedded;
                }
            },
            (None, None) => None,
        };
        match url.as_deref() {
            Some("memory:") => BusConfig::Embedded,
            Some(url) => match RedisUrl::parse(url) {
                Ok(url) => BusConfig::Redis(url),
                Err(rule) => {
                    reader.fault(named, rule);
                    BusConfig::Embedded
                }
            },
            None => {
                if !open {
                    reader.fault(
                        "REDIS_URL",
                        "is required when FANFARE_LISTEN is not a loopback address: \
                         a Redis URL, or memory: for a single replica",
                    );
                }
                BusConfig::Embedded
            }
        }
    }

    fn read_max_connections(&self, reader: &mut Reader) -> usize {
        let descriptors = rlimit::increase_nofile_limit(u64::MAX)
            .ok()
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(1024);
        let most = descriptors.saturating_sub(DESCRIPTOR_RESERVE).max(1);
        match &self.max_connections {
            None => most,
            Some(text) => {
                let wanted = reader.count("MAX_CONNECTIONS", text, (1, usize::MAX));
                if wanted > most {
                    reader.fault(
                        "MAX_CONNECTIONS",
                        format!(
                            "must be at most {most}: the descriptor limit of {descriptors} minus \
                             {DESCRIPTOR_RESERVE}; raise it with ulimit -n or LimitNOFILE"
                        ),
                    );
                }
                wanted
            }
        }
    }
}

/// Redis has no bound of its own; a month of silence is enough for any client to come back.
const HISTORY_TTL: (Duration, Duration) = (
    Duration::from_secs(1),
    Duration::from_secs(30 * 24 * 60 * 60),
);

/// Beyond this it is as good as off.
const MOST_CONNECTION_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const UP_TO_AN_HOUR: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Access;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    fn read(flags: &[&str]) -> Result<Config, Faults> {
        Command::parse_from([&["fanfare"], flags].concat())
            .settings
            .read()
    }

    fn faults(flags: &[&str]) -> Vec<String> {
        let Faults(faults) = read(flags).unwrap_err();
        faults.into_iter().map(|fault| fault.setting).collect()
    }

    #[test]
    fn the_defaults_are_an_open_gateway_on_loopback() {
        let config = read(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9080");
        assert!(matches!(config.bus, BusConfig::Embedded));
        assert!(matches!(config.access, Access::Open));
        assert_eq!(config.heartbeat, Duration::from_secs(15));
        assert_eq!(config.max_event_bytes, 1 << 20);
        assert_eq!(config.history_length, 1000);
        assert_eq!(config.history_ttl, Duration::from_secs(3600));
        assert_eq!(config.max_replication_lag, Duration::from_secs(60));
    }

    #[test]
    fn another_listener_is_told_who_may_read_and_where_its_bus_is() {
        let outside = ["--listen", "0.0.0.0:8080"];
        assert_eq!(
            faults(&outside),
            ["FANFARE_REDIS_URL", "FANFARE_PUBLIC_CHANNELS"]
        );
        let told = [
            &outside[..],
            &[
                "--redis-url",
                "memory:",
                "--public-channels",
                "news.*,alerts",
            ],
        ]
        .concat();
        let Access::Rules(rules) = read(&told).unwrap().access else {
            panic!("it is open");
        };
        let public: Vec<_> = rules.public.iter().map(ToString::to_string).collect();
        assert_eq!(public, ["news.*", "alerts"]);
        assert!(rules.tokens.is_none());
    }

    /// Every setting wrong once; all are reported together.
    #[test]
    fn all_faults_are_listed() {
        let found = faults(&[
            "--listen=nowhere",
            "--admin-listen=9080",
            "--redis-url=http://x",
            "--prefix=a*",
            "--shards=0",
            "--heartbeat=15",
            "--retry=6s,2s",
            "--slow-client=wait",
            "--max-connections=0",
            "--max-channels-per-connection=many",
            "--max-event-bytes=1TiB",
            "--history-length=0",
            "--history-ttl=31d",
            "--max-replication-lag=0s",
            "--client-buffer-bytes=1",
            "--socket-send-buffer-bytes=",
            "--drain-delay=2d",
            "--drain-period=-1s",
            "--max-connection-age=never",
            "--public-channels=$all,",
            "--allow-origins=https://*.example.com",
            "--trusted-proxies=everybody",
            "--forwarded-header=via",
            "--proxy-protocol-listen=8443",
            "--max-connections-per-ip=0",
            "--max-connections-per-subject=few",
            "--connect-rate-per-ip=10",
            "--publish-rate-per-subject=1/d",
            "--token-channels=user.{sub}*",
            "--jwt-secret=short",
            "--jwt-secret-file=/nowhere",
            "--jwt-public-key-file=/dev/null",
            "--jwks-url=http://id.example/keys",
            "--jwks-max-age=0s",
            "--jwt-issuer=,",
            "--jwt-audience=",
            "--log=a=b=c",
            "--log-format=xml",
        ]);
        let settings: BTreeSet<_> = found.iter().collect();
        assert_eq!(settings.len(), 38, "{found:?}");
    }

    #[test]
    fn keys_say_who_may_read() {
        let secret = "--jwt-secret=0123456789abcdefghijklmnopqrstuv";
        let outside = ["--listen=0.0.0.0:8080", "--redis-url=memory:", secret];
        let config = read(&outside).unwrap();
        let printed = format!("{config}{config:?}");
        assert!(
            printed.contains("FANFARE_JWT_SECRET=… (HS256)"),
            "{printed}"
        );
        assert!(!printed.contains("0123"), "{printed}");
        let Access::Rules(rules) = config.access else {
            panic!("it is open");
        };
        assert!(rules.public.is_empty() && rules.tokens.is_some());
        // Loopback is not open either, once there is a key.
        assert!(matches!(read(&[secret]).unwrap().access, Access::Rules(_)));
    }

    #[test]
    fn settings_do_not_print_secrets() {
        let command = Command::parse_from([
            "fanfare",
            "--jwt-secret=canary-canary-canary-canary-canary",
            "--redis-url=redis://user:canary@127.0.0.1",
        ]);
        let printed = format!("{:?}", command.settings);
        assert!(!printed.contains("canary"), "{printed}");
    }

    #[test]
    fn what_needs_a_key_is_a_fault_without_one() {
        let found = faults(&[
            "--token-channels=a",
            "--jwt-issuer=me",
            "--jwt-audience=me",
            "--jwks-max-age=1h",
        ]);
        let expected = [
            "TOKEN_CHANNELS",
            "JWT_ISSUER",
            "JWT_AUDIENCE",
            "JWKS_MAX_AGE",
        ];
        assert_eq!(found, expected.map(|name| format!("FANFARE_{name}")));
        for url in [
            "http://10.0.0.1/jwks",
            "https://user:canary@id.example/jwks",
            "ftp://127.0.0.1/jwks",
            "file:///etc/jwks",
            "jwks",
        ] {
            let Faults(told) = read(&[&format!("--jwks-url={url}")]).unwrap_err();
            assert_eq!(told[0].setting, "FANFARE_JWKS_URL");
            assert!(!told[0].rule.contains("canary"), "{}", told[0].rule);
        }
        for url in [
            "https://id.example/jwks?x=1",
            "http://127.0.0.1:1/jwks",
            "http://[::1]/jwks",
        ] {
            assert!(read(&[&format!("--jwks-url={url}")]).is_ok(), "{url}");
        }
    }

    #[test]
    fn contradictions_are_faults() {
        assert_eq!(
            faults(&[
                "--jwt-secret=0123456789abcdefghijklmnopqrstuv",
                "--jwt-secret-file=/dev/null"
            ]),
            ["FANFARE_JWT_SECRET_FILE", "FANFARE_JWT_SECRET_FILE"]
        );
        assert_eq!(
            faults(&["--listen=127.0.0.1:9080"]),
            ["FANFARE_ADMIN_LISTEN"]
        );
        assert_eq!(
            faults(&["--redis-url=memory:", "--redis-url-file=/dev/null"]),
            ["FANFARE_REDIS_URL_FILE"]
        );
        // Where the text stands that is wrong.
        for file in ["/dev/null", "/proc/version"] {
            let flag = format!("--redis-url-file={file}");
            assert_eq!(faults(&[&flag]), ["FANFARE_REDIS_URL_FILE"]);
        }
        assert_eq!(
            faults(&["--history-ttl=30s", "--max-replication-lag=30s"]),
            ["FANFARE_HISTORY_TTL"]
        );
        assert_eq!(
            faults(&["--proxy-protocol-listen=127.0.0.1:8443"]),
            ["FANFARE_PROXY_PROTOCOL_LISTEN"]
        );
        assert_eq!(
            faults(&["--forwarded-header=forwarded"]),
            ["FANFARE_FORWARDED_HEADER"]
        );
        assert_eq!(
            faults(&["--max-connections-per-subject=5"]),
            ["FANFARE_MAX_CONNECTIONS_PER_SUBJECT"]
        );
        let proxied = ["--trusted-proxies=10.0.0.1", "--proxy-protocol-listen"];
        assert_eq!(
            faults(&[&proxied[..], &["127.0.0.1:8080"]].concat()),
            ["FANFARE_PROXY_PROTOCOL_LISTEN"]
        );
        // A listener for proxies is a data listener.
        assert_eq!(
            faults(&[&proxied[..], &["0.0.0.0:8443"]].concat()),
            ["FANFARE_REDIS_URL", "FANFARE_PUBLIC_CHANNELS"]
        );
        let Faults(told) = read(&["--history-ttl=59s"]).unwrap_err();
        assert!(told[0].rule.contains("FANFARE_MAX_REPLICATION_LAG"));
        assert_eq!(
            faults(&["--heartbeat=15s", "--max-connection-age=29s"]),
            ["FANFARE_MAX_CONNECTION_AGE"]
        );
        assert_eq!(
            faults(&["--max-connections=99999999"]),
            ["FANFARE_MAX_CONNECTIONS"]
        );
    }
}
