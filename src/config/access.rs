//! Who may read and publish: the settings, and what they come to.

use std::fmt;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;
use secrecy::{ExposeSecret, SecretString};

use super::faults::Reader;
use super::values::list;
use crate::auth::{Key, KeyFile, TokenChannels, TokenRules};
use crate::protocol::ChannelPattern;

/// The settings of who may read and publish.
#[derive(Args, Clone, Debug)]
pub struct AccessSettings {
    /// Channels that clients without a token may read, exact names or prefixes ending in *.
    /// [default: all, on a loopback listener without keys; any other listener needs these, or
    /// keys]
    #[arg(long, env = "FANFARE_PUBLIC_CHANNELS", value_name = "PATTERNS")]
    pub public_channels: Option<String>,

    /// Channels that every client with a valid token may read, exact names or prefixes ending in
    /// *. {sub} is replaced by the token's subject, as in user.{sub}
    #[arg(long, env = "FANFARE_TOKEN_CHANNELS", value_name = "PATTERNS")]
    pub token_channels: Option<String>,

    /// Secret of at least 32 bytes with which tokens are signed (HS256; HS384 from 48 bytes, HS512
    /// from 64). Only as an environment variable: other users of the machine can read arguments
    #[arg(
        long,
        env = "FANFARE_JWT_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        value_parser = super::values::secret
    )]
    pub jwt_secret: Option<SecretString>,

    /// File that contains this secret. It is read again when it changes
    #[arg(long, env = "FANFARE_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<String>,

    /// PEM file with the public keys that verify tokens (RSA, EC, Ed25519). It is read again when
    /// it changes
    #[arg(long, env = "FANFARE_JWT_PUBLIC_KEY_FILE", value_name = "FILE")]
    pub jwt_public_key_file: Option<String>,

    /// URL of the token issuer's JWK set: https://…, or http:// on this machine
    #[arg(long, env = "FANFARE_JWKS_URL", value_name = "URL")]
    pub jwks_url: Option<String>,

    /// How long the last JWK set is used while fetching it fails. [default: 24h]
    #[arg(long, env = "FANFARE_JWKS_MAX_AGE", value_name = "TIME")]
    pub jwks_max_age: Option<String>,

    /// Accepted issuers of tokens (claim iss). [default: any issuer with a valid key]
    #[arg(long, env = "FANFARE_JWT_ISSUER", value_name = "ISSUERS")]
    pub jwt_issuer: Option<String>,

    /// Accepted audiences of tokens (claim aud): a token must contain one of them. [default: only
    /// tokens without aud]
    #[arg(long, env = "FANFARE_JWT_AUDIENCE", value_name = "AUDIENCES")]
    pub jwt_audience: Option<String>,
}

/// Who may read and publish over HTTP.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everybody everything: a listener on loopback without rules.
    Open,
    /// What the rules say.
    Rules(Box<AccessRules>),
}

/// Rules of who may read and publish.
#[derive(Clone, Debug)]
pub struct AccessRules {
    /// What anybody may read.
    pub public: Vec<ChannelPattern>,
    /// How tokens are verified; `None`: there are none, and nobody may publish over HTTP.
    pub tokens: Option<TokenConfig>,
}

/// How tokens are verified, and what every bearer may read.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// What a token must say.
    pub rules: TokenRules,
    /// What every bearer may read.
    pub channels: Vec<TokenChannels>,
    /// Keys that never change.
    pub fixed: Vec<Key>,
    /// Files of keys, as they were when the process started.
    pub files: Vec<(KeyFile, Vec<Key>)>,
    /// Where keys are fetched.
    pub jwks_url: Option<JwksUrl>,
    /// How long fetched keys stay in force.
    pub jwks_max_age: Duration,
}

/// How long a JWK set stays in force that cannot be fetched any more, unless set otherwise.
const JWKS_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Longer than a fetch and its repetitions take; a month without who signs tokens is for ever.
const JWKS_MAX_AGE_RANGE: (Duration, Duration) = (
    Duration::from_secs(1),
    Duration::from_secs(30 * 24 * 60 * 60),
);

/// A checked URL of a JWK set. It prints without its path and query, which may be nobody's
/// business.
#[derive(Clone, PartialEq, Eq)]
pub struct JwksUrl(reqwest::Url);

impl JwksUrl {
    /// Checks a URL: HTTPS, or HTTP to this machine. Whoever can change the answer on its way
    /// decides who may read.
    ///
    /// # Errors
    /// With the rule that is broken; the URL itself is never part of the message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rule = "must be https://host/path, or http:// to a loopback address";
        let url: reqwest::Url = text.parse().map_err(|_| rule.to_owned())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not contain a user or password".into());
        }
        let host = url.host_str().unwrap_or_default();
        let is_local = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        match url.scheme() {
            "https" if !host.is_empty() => Ok(Self(url)),
            "http" if is_local => Ok(Self(url)),
            _ => Err(rule.into()),
        }
    }

    /// The URL.
    pub fn url(&self) -> &reqwest::Url {
        &self.0
    }
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/…", self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwksUrl({self})")
    }
}

impl Access {
    /// Whether there are tokens to tell who somebody is.
    pub(super) fn has_tokens(&self) -> bool {
        matches!(self, Self::Rules(rules) if rules.tokens.is_some())
    }

    /// Writes every setting as it would stand in the environment, secrets left out.
    pub(super) fn write(
        &self,
        line: &mut dyn FnMut(&str, &dyn fmt::Display) -> fmt::Result,
    ) -> fmt::Result {
        let rules = match self {
            Self::Open => return line("PUBLIC_CHANNELS", &"* (and anybody may publish)"),
            Self::Rules(rules) => rules,
        };
        line("PUBLIC_CHANNELS", &joined(&rules.public))?;
        let Some(tokens) = &rules.tokens else {
            return Ok(());
        };
        line("TOKEN_CHANNELS", &joined(&tokens.channels))?;
        for key in &tokens.fixed {
            line("JWT_SECRET", &format_args!("… ({})", algorithms(key)))?;
        }
        for (file, keys) in &tokens.files {
            let keys: Vec<_> = keys.iter().map(algorithms).collect();
            let name = match file {
                KeyFile::Secret(_) => "JWT_SECRET_FILE",
                KeyFile::PublicKeys(_) => "JWT_PUBLIC_KEY_FILE",
            };
            let path = file.path().display();
            line(name, &format_args!("{path} ({})", keys.join("; ")))?;
        }
        if let Some(url) = &tokens.jwks_url {
            line("JWKS_URL", url)?;
            line("JWKS_MAX_AGE", &format_duration(tokens.jwks_max_age))?;
        }
        line("JWT_ISSUER", &tokens.rules.issuers.join(","))?;
        line("JWT_AUDIENCE", &tokens.rules.audiences.join(","))
    }
}

fn joined<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

fn algorithms(key: &Key) -> String {
    let names: Vec<_> = key
        .algorithms()
        .iter()
        .map(|algorithm| format!("{algorithm:?}"))
        .collect();
    names.join(" ")
}

impl AccessSettings {
    /// Reads who may read and publish. `loopback`: only this machine can connect.
    pub(super) fn read(&self, loopback: bool, reader: &mut Reader) -> Access {
        let public = self.read_public(reader);
        let tokens = self.read_tokens(reader);
        if public.is_none() && tokens.is_none() {
            if !loopback && !self.names_a_key() {
                reader.fault(
                    "PUBLIC_CHANNELS",
                    "or a key (FANFARE_JWT_SECRET_FILE, FANFARE_JWT_PUBLIC_KEY_FILE, \
                     FANFARE_JWKS_URL) is required when FANFARE_LISTEN is not a loopback \
                     address: who may read",
                );
            }
            return Access::Open;
        }
        Access::Rules(Box::new(AccessRules {
            public: public.unwrap_or_default(),
            tokens,
        }))
    }

    fn names_a_key(&self) -> bool {
        self.jwt_secret.is_some()
            || self.jwt_secret_file.is_some()
            || self.jwt_public_key_file.is_some()
            || self.jwks_url.is_some()
    }

    fn read_public(&self, reader: &mut Reader) -> Option<Vec<ChannelPattern>> {
        let text = self.public_channels.as_ref()?;
        let patterns = read_list(reader, "PUBLIC_CHANNELS", text, |pattern| {
            ChannelPattern::parse(pattern).map_err(|rule| rule.to_string())
        });
        if list(text).next().is_none() {
            reader.fault("PUBLIC_CHANNELS", "contains no channel");
        }
        Some(patterns)
    }

    fn read_tokens(&self, reader: &mut Reader) -> Option<TokenConfig> {
        let channels = self.token_channels.as_ref().map_or(Vec::new(), |text| {
            read_list(reader, "TOKEN_CHANNELS", text, TokenChannels::parse)
        });
        let max_age = self.jwks_max_age.as_ref().map_or(JWKS_MAX_AGE, |text| {
            reader.duration("JWKS_MAX_AGE", text, JWKS_MAX_AGE_RANGE)
        });
        let issuers = read_names(reader, "JWT_ISSUER", self.jwt_issuer.as_deref());
        let audiences = read_names(reader, "JWT_AUDIENCE", self.jwt_audience.as_deref());
        let fixed = self.read_secret(reader);
        let files = self.read_files(reader);
        let jwks_url = self.jwks_url.as_ref().and_then(|url| {
            JwksUrl::parse(url)
                .map_err(|rule| reader.fault("JWKS_URL", rule))
                .ok()
        });
        if !self.names_a_key() {
            for (setting, is_set) in [
                ("TOKEN_CHANNELS", self.token_channels.is_some()),
                ("JWT_ISSUER", self.jwt_issuer.is_some()),
                ("JWT_AUDIENCE", self.jwt_audience.is_some()),
            ] {
                if is_set {
                    reader.fault(
                        setting,
                        "has no effect without a key: FANFARE_JWT_SECRET_FILE, \
                         FANFARE_JWT_PUBLIC_KEY_FILE or FANFARE_JWKS_URL",
                    );
                }
            }
        }
        if self.jwks_max_age.is_some() && self.jwks_url.is_none() {
            reader.fault("JWKS_MAX_AGE", "has no effect without FANFARE_JWKS_URL");
        }
        self.names_a_key().then_some(TokenConfig {
            rules: TokenRules { issuers, audiences },
            channels,
            fixed,
            files,
            jwks_url,
            jwks_max_age: max_age,
        })
    }

    fn read_secret(&self, reader: &mut Reader) -> Vec<Key> {
        let Some(secret) = &self.jwt_secret else {
            return Vec::new();
        };
        if self.jwt_secret_file.is_some() {
            reader.fault(
                "JWT_SECRET_FILE",
                "and FANFARE_JWT_SECRET must not both be set",
            );
        }
        let key = Key::from_secret(secret.expose_secret().as_bytes());
        key.map_err(|rule| reader.fault("JWT_SECRET", rule))
            .ok()
            .into_iter()
            .collect()
    }

    fn read_files(&self, reader: &mut Reader) -> Vec<(KeyFile, Vec<Key>)> {
        let secret = self.jwt_secret_file.as_ref();
        let public = self.jwt_public_key_file.as_ref();
        let files = [
            secret.map(|path| ("JWT_SECRET_FILE", KeyFile::Secret(path.into()))),
            public.map(|path| ("JWT_PUBLIC_KEY_FILE", KeyFile::PublicKeys(path.into()))),
        ];
        let mut read = Vec::new();
        for (setting, file) in files.into_iter().flatten() {
            match file.read() {
                Ok(keys) => read.push((file, keys)),
                Err(rule) => reader.fault(setting, rule),
            }
        }
        read
    }
}

/// The items of a list; each that breaks a rule is a fault of its own.
fn read_list<T>(
    reader: &mut Reader,
    setting: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut items = Vec::new();
    for item in list(text) {
        match parse(item) {
            Ok(item) => items.push(item),
            Err(rule) => reader.fault(setting, format!("has {item:?}: {rule}")),
        }
    }
    items
}

/// A list that is left out is empty; one that is given names somebody.
fn read_names(reader: &mut Reader, setting: &str, text: Option<&str>) -> Vec<String> {
    let Some(text) = text else { return Vec::new() };
    let names: Vec<_> = list(text).map(str::to_owned).collect();
    if names.is_empty() {
        reader.fault(setting, "is empty");
    }
    names
}
