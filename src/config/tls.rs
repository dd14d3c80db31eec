//! The settings of the TLS listener.

use std::fmt;
use std::path::PathBuf;

use clap::Args;

use super::faults::Reader;
use super::values::list;
use crate::tls::{Protocol, TlsConfig, TlsFiles};

/// The settings of the TLS listener.
#[derive(Args, Clone, Debug)]
pub struct TlsSettings {
    /// Address of a data listener with TLS 1.2 and 1.3
    #[arg(long, env = "FANFARE_TLS_LISTEN", value_name = "IP:PORT")]
    pub tls_listen: Option<String>,

    /// PEM files with the certificate and those of its issuers. Several, with commas, in the order of
    /// FANFARE_TLS_KEY_FILE: the server name chooses, the first is the default. Read again when they
    /// change
    #[arg(long, env = "FANFARE_TLS_CERT_FILE", value_name = "FILES")]
    pub tls_cert_file: Option<String>,

    /// PEM files with the keys of FANFARE_TLS_CERT_FILE
    #[arg(long, env = "FANFARE_TLS_KEY_FILE", value_name = "FILES")]
    pub tls_key_file: Option<String>,

    /// Protocols that TLS clients can choose: h2,http/1.1 or one of them
    #[arg(
        long,
        env = "FANFARE_TLS_ALPN",
        value_name = "PROTOCOLS",
        default_value = "h2,http/1.1"
    )]
    pub tls_alpn: String,

    /// on: TLS connections begin with a PROXY protocol header (needs FANFARE_TRUSTED_PROXIES)
    #[arg(
        long,
        env = "FANFARE_TLS_PROXY_PROTOCOL",
        value_name = "on|off",
        default_value = "off"
    )]
    pub tls_proxy_protocol: String,

    /// File with keys for session tickets, shared by all replicas: one key of 64 bytes per line in
    /// base64. The first encrypts, all decrypt. Read again when it changes. [default: random keys]
    #[arg(long, env = "FANFARE_TLS_TICKET_KEYS_FILE", value_name = "FILE")]
    pub tls_ticket_keys_file: Option<PathBuf>,
}

impl TlsSettings {
    /// `None`: there is no TLS listener.
    pub(super) fn read(&self, trusts_proxies: bool, reader: &mut Reader) -> Option<TlsConfig> {
        let proxy_protocol = match self.tls_proxy_protocol.as_str() {
            "on" => true,
            "off" => false,
            _ => {
                reader.fault("TLS_PROXY_PROTOCOL", "must be on or off");
                false
            }
        };
        let protocols = self.read_protocols(reader);
        let Some(listen) = &self.tls_listen else {
            let files = [
                ("TLS_CERT_FILE", self.tls_cert_file.is_some()),
                ("TLS_KEY_FILE", self.tls_key_file.is_some()),
                ("TLS_TICKET_KEYS_FILE", self.tls_ticket_keys_file.is_some()),
                ("TLS_PROXY_PROTOCOL", proxy_protocol),
            ];
            for (setting, _) in files.into_iter().filter(|(_, is_set)| *is_set) {
                reader.fault(setting, "needs FANFARE_TLS_LISTEN");
            }
            return None;
        };
        let listen = reader.address("TLS_LISTEN", listen);
        if proxy_protocol && !trusts_proxies {
            reader.fault("TLS_PROXY_PROTOCOL", "needs FANFARE_TRUSTED_PROXIES");
        }
        let paths = |text: &Option<String>| -> Vec<PathBuf> {
            list(text.as_deref().unwrap_or_default())
                .map(PathBuf::from)
                .collect()
        };
        let (certs, keys) = (paths(&self.tls_cert_file), paths(&self.tls_key_file));
        for (setting, files) in [("TLS_CERT_FILE", &certs), ("TLS_KEY_FILE", &keys)] {
            if files.is_empty() {
                reader.fault(setting, "is required with FANFARE_TLS_LISTEN");
            }
        }
        if certs.len() != keys.len() {
            reader.fault(
                "TLS_KEY_FILE",
                format!(
                    "names {} files, and FANFARE_TLS_CERT_FILE {}: each certificate needs its key",
                    keys.len(),
                    certs.len()
                ),
            );
        }
        let files = TlsFiles {
            pairs: certs.into_iter().zip(keys).collect(),
            ticket_keys: self.tls_ticket_keys_file.clone(),
        };
        match files.load() {
            Ok(loaded) => Some(TlsConfig {
                listen,
                protocols,
                proxy_protocol,
                files,
                loaded,
            }),
            Err(fault) => {
                reader.fault(fault.setting, fault.rule);
                None
            }
        }
    }

    fn read_protocols(&self, reader: &mut Reader) -> Vec<Protocol> {
        let mut protocols = Vec::new();
        for name in list(&self.tls_alpn) {
            let known = [Protocol::Http2, Protocol::Http1];
            match known.into_iter().find(|protocol| protocol.name() == name) {
                Some(protocol) if !protocols.contains(&protocol) => protocols.push(protocol),
                _ => reader.fault("TLS_ALPN", "must be h2,http/1.1, h2 or http/1.1"),
            }
        }
        if protocols.is_empty() {
            reader.fault("TLS_ALPN", "must be h2,http/1.1, h2 or http/1.1");
        }
        protocols
    }
}

/// Writes the settings as they would stand in the environment, and whose certificates they are.
pub(super) fn write(
    config: Option<&TlsConfig>,
    mut line: impl FnMut(&str, &dyn fmt::Display) -> fmt::Result,
) -> fmt::Result {
    let Some(config) = config else {
        return Ok(());
    };
    line("TLS_LISTEN", &config.listen)?;
    for ((cert, key), pair) in config.files.pairs.iter().zip(&config.loaded.pairs) {
        let names = pair.names();
        let about = format_args!("{} for {names}, until {}", cert.display(), pair.expiry());
        line("TLS_CERT_FILE", &about)?;
        line("TLS_KEY_FILE", &key.display())?;
    }
    let protocols: Vec<_> = config.protocols.iter().map(|one| one.name()).collect();
    line("TLS_ALPN", &protocols.join(","))?;
    let proxy_protocol = if config.proxy_protocol { "on" } else { "off" };
    line("TLS_PROXY_PROTOCOL", &proxy_protocol)?;
    if let Some(path) = &config.files.ticket_keys {
        let count = config.loaded.ticket_keys.len();
        let about = format_args!("{} with {count} keys", path.display());
        line("TLS_TICKET_KEYS_FILE", &about)?;
    }
    Ok(())
}
