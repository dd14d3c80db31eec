//! Where the Redis URL and what belongs to it are read from, at the start and later.

use std::path::PathBuf;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::redis_url::{RedisTls, RedisUrl};
use crate::files::{self, Content};

/// Files for TLS connections to Redis.
#[derive(Args, Clone, Debug, Default)]
pub struct RedisTlsFiles {
    /// PEM file with the certificate authorities that sign Redis' certificate, instead of the system's
    #[arg(long, env = "FANFARE_REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<PathBuf>,

    /// PEM file with the client certificate that Redis asks for, and those of its issuers
    #[arg(long, env = "FANFARE_REDIS_CERT_FILE", value_name = "FILE")]
    pub redis_cert_file: Option<PathBuf>,

    /// PEM file with the key of FANFARE_REDIS_CERT_FILE
    #[arg(long, env = "FANFARE_REDIS_KEY_FILE", value_name = "FILE")]
    pub redis_key_file: Option<PathBuf>,
}

/// Where the Redis URL and its certificates come from.
#[derive(Clone, Debug)]
pub struct RedisSource {
    url: UrlSource,
    tls: RedisTlsFiles,
}

#[derive(Clone, Debug)]
enum UrlSource {
    Given(SecretString),
    File(PathBuf),
}

/// A setting, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SourceFault {
    /// Without `FANFARE_`.
    pub(crate) setting: &'static str,
    pub(crate) rule: String,
}

impl RedisSource {
    /// A URL that is given, with these files.
    pub(crate) fn given(url: SecretString, tls: RedisTlsFiles) -> Self {
        Self {
            url: UrlSource::Given(url),
            tls,
        }
    }

    /// A file with a URL, and these files.
    pub(crate) fn file(path: PathBuf, tls: RedisTlsFiles) -> Self {
        Self {
            url: UrlSource::File(path),
            tls,
        }
    }

    /// The setting of the URL.
    fn setting(&self) -> &'static str {
        match &self.url {
            UrlSource::Given(_) => "REDIS_URL",
            UrlSource::File(_) => "REDIS_URL_FILE",
        }
    }

    /// The files that it is read from, each with its content now.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Content)> {
        let url = match &self.url {
            UrlSource::Given(_) => None,
            UrlSource::File(path) => Some(path),
        };
        let RedisTlsFiles {
            redis_ca_file: ca,
            redis_cert_file: cert,
            redis_key_file: key,
        } = &self.tls;
        let all = [url, ca.as_ref(), cert.as_ref(), key.as_ref()];
        let all = all.into_iter().flatten();
        all.map(|path| (path.clone(), files::read(path))).collect()
    }

    /// Reads the URL and its files. `None`: the embedded bus is asked for.
    ///
    /// # Errors
    /// With the setting that is wrong, and never with a part of a password.
    pub(crate) fn read(&self) -> Result<Option<RedisUrl>, SourceFault> {
        let setting = self.setting();
        let fault = |rule| SourceFault { setting, rule };
        let url = match &self.url {
            UrlSource::Given(url) => url.expose_secret().to_owned(),
            UrlSource::File(path) => {
                let content = files::read(path).map_err(fault)?;
                let url = String::from_utf8(content);
                let url = url.map_err(|_| fault("must contain UTF-8 text".to_owned()))?;
                url.trim_end().to_owned()
            }
        };
        if url.trim().is_empty() {
            return Err(fault("is empty: it must contain the Redis URL".to_owned()));
        }
        if url == "memory:" {
            return self.tls.without_redis().map_or(Ok(None), Err);
        }
        let tls = self.tls.read()?;
        RedisUrl::parse(&url, &tls).map(Some).map_err(fault)
    }
}

impl RedisTlsFiles {
    /// A file that has no effect, because there is no connection to Redis.
    pub(crate) fn without_redis(&self) -> Option<SourceFault> {
        let files = [
            ("REDIS_CA_FILE", &self.redis_ca_file),
            ("REDIS_CERT_FILE", &self.redis_cert_file),
            ("REDIS_KEY_FILE", &self.redis_key_file),
        ];
        let set = files.into_iter().find(|(_, path)| path.is_some());
        set.map(|(setting, _)| SourceFault {
            setting,
            rule: "needs a Redis URL that begins with rediss:// or rediss-sentinel://".to_owned(),
        })
    }

    fn read(&self) -> Result<RedisTls, SourceFault> {
        let read = |setting, label: &str, path: &Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            let content = files::read(path).and_then(|content| {
                let blocks = pem::parse_many(&content).unwrap_or_default();
                if blocks.iter().any(|block| block.tag().ends_with(label)) {
                    Ok(content)
                } else {
                    Err(format!("contains no {label} in PEM"))
                }
            });
            content
                .map(Some)
                .map_err(|rule| SourceFault { setting, rule })
        };
        let ca = read("REDIS_CA_FILE", "CERTIFICATE", &self.redis_ca_file)?;
        let cert = read("REDIS_CERT_FILE", "CERTIFICATE", &self.redis_cert_file)?;
        let key = read("REDIS_KEY_FILE", "PRIVATE KEY", &self.redis_key_file)?;
        let alone = |setting, other| SourceFault {
            setting,
            rule: format!("needs {other}: a certificate and its key belong together"),
        };
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(alone("REDIS_CERT_FILE", "FANFARE_REDIS_KEY_FILE")),
            (None, Some(_)) => return Err(alone("REDIS_KEY_FILE", "FANFARE_REDIS_CERT_FILE")),
        };
        Ok(RedisTls { ca, client })
    }
}
