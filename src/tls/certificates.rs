//! Certificates with their keys, and which of them a client is shown.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate chain and its key.
pub struct Pair {
    key: Arc<CertifiedKey>,
    /// The DNS names and addresses that it is for, in lower case; `*.` begins a wildcard.
    names: Vec<String>,
    not_after: SystemTime,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pair({})", self.names())
    }
}

impl Pair {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// With whether it is the key's fault, and what is wrong.
    pub(super) fn read(chain: &[u8], key: &[u8]) -> Result<Self, (bool, String)> {
        let of_chain = |rule: String| (false, rule);
        let of_key = |rule: String| (true, rule);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| of_chain(format!("is not PEM: {error}")))?;
        let leaf = chain
            .first()
            .ok_or_else(|| of_chain("contains no certificate in PEM".to_owned()))?;
        let (names, not_after) = read_leaf(leaf).map_err(of_chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| of_key(format!("contains no private key in PEM: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|error| of_key(format!("cannot be used with its certificate: {error}")))?;
        Ok(Self {
            key: Arc::new(key),
            names,
            not_after,
        })
    }

    /// The names that it is for, for people.
    pub fn names(&self) -> String {
        self.names.join(", ")
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The same, for people.
    pub fn expiry(&self) -> impl fmt::Display {
        humantime::format_rfc3339_seconds(self.not_after)
    }

    fn is_for(&self, server_name: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            // A wildcard stands for one label (RFC 9525, section 6.3).
            Some(parent) => server_name
                .split_once('.')
                .is_some_and(|(_, rest)| rest == parent),
            None => name == server_name,
        })
    }
}

fn read_leaf(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, SystemTime), String> {
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|error| format!("contains a certificate that cannot be read: {error}"))?;
    let seconds = leaf.validity().not_after.timestamp();
    let not_after = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives
        .iter()
        .flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
        },
        _ => None,
    });
    Ok((names.collect(), not_after))
}

/// The certificates in force.
pub(super) struct Certificates(ArcSwap<Vec<Arc<Pair>>>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Certificates {
    pub(super) fn new(pairs: Vec<Arc<Pair>>) -> Self {
        Self(ArcSwap::from_pointee(pairs))
    }

    pub(super) fn replace(&self, pairs: Vec<Arc<Pair>>) {
        self.0.store(Arc::new(pairs));
    }

    fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let pairs = self.0.load();
        let named = server_name.map(str::to_ascii_lowercase);
        let named = named.and_then(|name| pairs.iter().find(|pair| pair.is_for(&name)));
        // A client that asks for another name finds out by the certificate's names.
        named
            .or_else(|| pairs.first())
            .map(|pair| Arc::clone(&pair.key))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}
