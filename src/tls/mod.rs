//! What the TLS listener shows and accepts: certificates, keys of session tickets, protocols.
//!
//! Its files are read again when they change. New handshakes use what they say then; connections that
//! are open do not notice.

mod certificates;
mod tickets;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;

use self::certificates::Certificates;
use self::tickets::Tickets;
use crate::files::{self, Content, FileWatch};
use crate::tasks::Tasks;
use crate::telemetry::TlsMetrics;
use crate::warnings::Warnings;

pub use self::certificates::Pair;
pub use self::tickets::TicketKey;

/// The source of the warning about files that cannot be used.
const WARNING: &str = "tls";

/// The TLS listener's settings, with what its files held at the start.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The protocols that are offered, the preferred one first.
    pub protocols: Vec<Protocol>,
    /// Connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Where certificates and keys are read from.
    pub files: TlsFiles,
    /// What they held.
    pub loaded: Loaded,
}

/// A protocol that a client can choose (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
}

impl Protocol {
    /// Its name in the IANA registry of ALPN protocol ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http2 => "h2",
            Self::Http1 => "http/1.1",
        }
    }
}

/// The files of the TLS listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Each certificate chain with its key; at least one.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// Keys of session tickets, shared by all replicas.
    pub ticket_keys: Option<PathBuf>,
}

/// What the files hold.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The certificates: server names choose, the first is the default.
    pub pairs: Vec<Arc<Pair>>,
    /// The first encrypts, all decrypt.
    pub ticket_keys: Vec<TicketKey>,
}

/// A file that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The setting, without `FANFARE_`.
    pub setting: &'static str,
    /// What is wrong.
    pub rule: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FANFARE_{} {}", self.setting, self.rule)
    }
}

impl TlsFiles {
    /// Reads all of them.
    ///
    /// # Errors
    /// With the first that cannot be used.
    pub fn load(&self) -> Result<Loaded, FileFault> {
        let mut pairs = Vec::new();
        for (cert, key) in &self.pairs {
            let read = |setting, path: &PathBuf| {
                files::read(path).map_err(|rule| FileFault {
                    setting,
                    rule: format!("{} {rule}", path.display()),
                })
            };
            let (chain, private) = (read("TLS_CERT_FILE", cert)?, read("TLS_KEY_FILE", key)?);
            let pair = Pair::read(&chain, &private).map_err(|(is_of_key, rule)| {
                let (setting, path) = if is_of_key {
                    ("TLS_KEY_FILE", key)
                } else {
                    ("TLS_CERT_FILE", cert)
                };
                FileFault {
                    setting,
                    rule: format!("{} {rule}", path.display()),
                }
            })?;
            pairs.push(Arc::new(pair));
        }
        let ticket_keys = match &self.ticket_keys {
            None => Vec::new(),
            Some(path) => files::read(path)
                .and_then(|content| tickets::read_keys(&content))
                .map_err(|rule| FileFault {
                    setting: "TLS_TICKET_KEYS_FILE",
                    rule,
                })?,
        };
        Ok(Loaded { pairs, ticket_keys })
    }

    fn contents(&self) -> Vec<(PathBuf, Content)> {
        let pairs = self.pairs.iter().flat_map(|(cert, key)| [cert, key]);
        let all = pairs.chain(&self.ticket_keys);
        all.map(|path| (path.clone(), files::read(path))).collect()
    }
}

/// Makes the server side of handshakes.
pub struct TlsServer {
    /// For each new connection.
    pub config: Arc<ServerConfig>,
    /// Handshakes, counted.
    pub metrics: TlsMetrics,
    /// Connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsServer")
    }
}

/// Why no server can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The provider of ciphers lacks something.
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// Files cannot be watched.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TlsServer {
    /// Serves with what `config` holds, and with what its files say later.
    ///
    /// # Errors
    /// When files cannot be watched.
    pub fn start(
        config: &TlsConfig,
        metrics: TlsMetrics,
        warnings: &Warnings,
        tasks: &mut Tasks,
    ) -> Result<Arc<Self>, TlsError> {
        let certificates = Arc::new(Certificates::new(config.loaded.pairs.clone()));
        let mut server =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_cert_resolver(Arc::clone(&certificates) as _);
        let protocols = config.protocols.iter();
        server.alpn_protocols = protocols.map(|one| one.name().into()).collect();
        // Tickets serve instead: a store would be of this replica alone, and take memory per client.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let tickets = match &config.files.ticket_keys {
            // Random ones, changed every few hours.
            None => {
                server.ticketer = aws_lc_rs::Ticketer::new()?;
                None
            }
            Some(_) => {
                let tickets = Arc::new(Tickets::new(config.loaded.ticket_keys.clone()));
                server.ticketer = Arc::clone(&tickets) as _;
                Some(tickets)
            }
        };
        metrics.note_expiry(first_expiry(&config.loaded.pairs));
        let watch = Watch {
            files: config.files.clone(),
            certificates,
            tickets,
            metrics: metrics.clone(),
            warnings: warnings.clone(),
        };
        let files = tasks.enter(|| FileWatch::new(config.files.contents()))?;
        tasks.spawn("the watch over TLS files", watch.run(files));
        Ok(Arc::new(Self {
            config: Arc::new(server),
            metrics,
            proxy_protocol: config.proxy_protocol,
        }))
    }
}

fn first_expiry(pairs: &[Arc<Pair>]) -> Option<SystemTime> {
    pairs.iter().map(|pair| pair.not_after()).min()
}

struct Watch {
    files: TlsFiles,
    certificates: Arc<Certificates>,
    tickets: Option<Arc<Tickets>>,
    metrics: TlsMetrics,
    warnings: Warnings,
}

impl Watch {
    async fn run(self, mut files: FileWatch) {
        loop {
            files.changed().await;
            let fault = match self.files.load() {
                Ok(Loaded { pairs, ticket_keys }) => {
                    for pair in &pairs {
                        tracing::info!(names = %pair.names(), expires = %pair.expiry(), "read the TLS certificate again");
                    }
                    self.metrics.note_expiry(first_expiry(&pairs));
                    self.certificates.replace(pairs);
                    if let Some(tickets) = &self.tickets {
                        tickets.replace(ticket_keys);
                    }
                    None
                }
                Err(fault) => {
                    tracing::warn!(%fault, "changed TLS files cannot be used; keeping the previous ones");
                    Some(format!("{fault}; keeping the previous ones"))
                }
            };
            self.warnings.set(WARNING, fault);
        }
    }
}
