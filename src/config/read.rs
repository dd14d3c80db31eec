//! How settings become a [`Config`].

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::faults::{Faults, Reader};
use super::redis_source::{RedisSource, SourceFault};
use super::values::duration_range;
use super::{BusConfig, Config, Settings, traces};
use crate::hub::SlowClientPolicy;
use crate::protocol::RetryRange;
use crate::telemetry::LogFormat;

/// Descriptors kept free for everything that is no client: Redis, the admin listener, files, and
/// the connections that are told to come back later.
const DESCRIPTOR_RESERVE: usize = 256;

impl Settings {
    /// Reads all settings.
    ///
    /// # Errors
    /// With every fault there is, not only the first.
    pub fn read(&self) -> Result<Config, Faults> {
        let mut reader = Reader::default();
        let clients = self.clients.read(&mut reader);
        let (listen, admin_listen) =
            self.read_listeners(clients.proxy_protocol_listen, &mut reader);
        let trusts_proxies = self.clients.trusted_proxies.is_some();
        let tls = self.tls.read(trusts_proxies, &mut reader);
        let tls_listen = tls.as_ref().map(|tls| tls.listen);
        if tls_listen.is_some_and(|address| {
            let others = [
                Some(listen),
                Some(admin_listen),
                clients.proxy_protocol_listen,
            ];
            address.port() != 0 && others.contains(&Some(address))
        }) {
            reader.fault("TLS_LISTEN", "must differ from the other listeners");
        }
        let open = [Some(listen), clients.proxy_protocol_listen, tls_listen]
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
        let (history_ttl, max_replication_lag) = self.read_history_times(&mut reader);
        let (heartbeat, max_connection_age) = self.read_stream_times(&mut reader);
        let shards = match &self.shards {
            Some(text) => reader.count("SHARDS", text, (1, 1024)),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let (slow_client, log_format) = self.read_choices(&mut reader);
        let config = Config {
            listen,
            tls,
            admin_listen,
            bus,
            prefix: self.read_prefix(&mut reader),
            shards: NonZeroUsize::new(shards).unwrap_or(NonZeroUsize::MIN),
            heartbeat,
            retry: self.read_retry(&mut reader),
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

    /// The data listener and the admin listener.
    fn read_listeners(
        &self,
        proxied: Option<SocketAddr>,
        reader: &mut Reader,
    ) -> (SocketAddr, SocketAddr) {
        let listen = reader.address("LISTEN", &self.listen);
        let admin_listen = reader.address("ADMIN_LISTEN", &self.admin_listen);
        if listen == admin_listen && listen.port() != 0 {
            reader.fault("ADMIN_LISTEN", "must differ from FANFARE_LISTEN");
        }
        if proxied.is_some_and(|address| {
            address.port() != 0 && (address == listen || address == admin_listen)
        }) {
            reader.fault(
                "PROXY_PROTOCOL_LISTEN",
                "must differ from the other listeners",
            );
        }
        (listen, admin_listen)
    }

    fn read_prefix(&self, reader: &mut Reader) -> String {
        let is_plain = |byte: u8| {
            byte.is_ascii_graphic() && !matches!(byte, b'*' | b'?' | b'[' | b']' | b'$' | b'\\')
        };
        if !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(is_plain) {
            reader.fault(
                "PREFIX",
                "must be 1 to 64 printable ASCII characters without space, * ? [ ] \\ and $",
            );
        }
        self.prefix.clone()
    }

    fn read_retry(&self, reader: &mut Reader) -> RetryRange {
        let retry = duration_range(&self.retry).and_then(|(least, most)| {
            RetryRange::new(least, most).ok_or_else(|| {
                "must be a range from the shorter to the longer, at most a day".to_owned()
            })
        });
        reader.read("RETRY", retry)
    }

    /// What happens to slow clients, and how the log looks.
    fn read_choices(&self, reader: &mut Reader) -> (SlowClientPolicy, LogFormat) {
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
        (slow_client, log_format)
    }

    /// How long histories live, and how far a Redis replica may be behind.
    fn read_history_times(&self, reader: &mut Reader) -> (Duration, Duration) {
        let history_ttl = reader.duration("HISTORY_TTL", &self.history_ttl, HISTORY_TTL);
        let max_replication_lag = reader.duration(
            "MAX_REPLICATION_LAG",
            &self.max_replication_lag,
            UP_TO_AN_HOUR_FROM_100_MS,
        );
        // If one of them is a fault already, the other is judged alone.
        if !history_ttl.is_zero() && history_ttl.as_millis() <= max_replication_lag.as_millis() {
            reader.fault(
                "HISTORY_TTL",
                "must be longer than FANFARE_MAX_REPLICATION_LAG: after a failover, nothing would be \
                 young enough to prove that none is missing",
            );
        }
        (history_ttl, max_replication_lag)
    }

    /// The heartbeat, and how old a stream may get.
    fn read_stream_times(&self, reader: &mut Reader) -> (Duration, Option<Duration>) {
        let heartbeat = reader.duration("HEARTBEAT", &self.heartbeat, UP_TO_AN_HOUR_FROM_100_MS);
        let max_connection_age = match self.max_connection_age.as_str() {
            "off" => None,
            text => {
                let within = (heartbeat * 2, MOST_CONNECTION_AGE);
                Some(reader.duration("MAX_CONNECTION_AGE", text, within))
            }
        };
        (heartbeat, max_connection_age)
    }

    fn read_bus(&self, open: bool, reader: &mut Reader) -> BusConfig {
        let tls = self.redis_tls.clone();
        let source = match (&self.redis_url, &self.redis_url_file) {
            (Some(_), Some(_)) => {
                reader.fault(
                    "REDIS_URL_FILE",
                    "and FANFARE_REDIS_URL must not both be set",
                );
                return BusConfig::Embedded;
            }
            (Some(url), None) => RedisSource::given(url.clone(), tls),
            (None, Some(file)) => RedisSource::file(file.clone(), tls),
            (None, None) => {
                if !open {
                    reader.fault(
                        "REDIS_URL",
                        "is required when FANFARE_LISTEN is not a loopback address: \
                         a Redis URL, or memory: for a single replica",
                    );
                }
                if let Some(SourceFault { setting, rule }) = tls.without_redis() {
                    reader.fault(setting, rule);
                }
                return BusConfig::Embedded;
            }
        };
        match source.read() {
            Ok(Some(url)) => BusConfig::Redis(url, source),
            Ok(None) => BusConfig::Embedded,
            Err(SourceFault { setting, rule }) => {
                reader.fault(setting, rule);
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

const UP_TO_AN_HOUR_FROM_100_MS: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(3600));

const UP_TO_AN_HOUR: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));

#[cfg(test)]
mod tests;
