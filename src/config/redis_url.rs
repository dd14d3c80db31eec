//! The Redis URL, which may hold passwords.

use std::fmt;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
};

/// Where Sentinels listen unless the URL says so.
const SENTINEL_PORT: u16 = 26379;

/// A checked Redis URL. It may hold passwords, so it prints without them.
#[derive(Clone)]
pub struct RedisUrl(Box<RedisPlace>);

/// What a Redis URL leads to.
#[derive(Clone)]
pub(crate) enum RedisPlace {
    /// This server.
    Server(ConnectionInfo),
    /// The primary that Sentinels name.
    Sentinels(SentinelGroup),
}

/// Sentinels, and the primary that is asked for.
#[derive(Clone)]
pub(crate) struct SentinelGroup {
    /// Each of them once.
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// What they call the primary.
    pub(crate) name: String,
    /// How the primary is greeted; its address is what Sentinels say.
    primary: ConnectionInfo,
}

impl RedisUrl {
    /// Checks a URL: `redis://`, `rediss://`, `redis+unix://`, database 0, or
    /// `redis-sentinel://[user:password@]host[:port],…/NAME[?sentinel_user=…&sentinel_password=…]`,
    /// with `rediss-sentinel` where Sentinels and servers speak TLS.
    ///
    /// `tls`: what certificates are checked with, and shown.
    ///
    /// # Errors
    /// With the rule that is broken; the URL itself is never part of the message.
    pub fn parse(url: &str, tls: &RedisTls) -> Result<Self, String> {
        if url.contains('#') {
            // The crate takes `#insecure` for a wish not to check certificates.
            return Err("must not contain #: certificates are always checked; \
                        in a password # is written %23"
                .into());
        }
        if url.starts_with("redis-cluster://") {
            return Err("cluster URLs are not supported by this version".into());
        }
        let sentinel = [
            ("redis-sentinel://", "redis"),
            ("rediss-sentinel://", "rediss"),
        ]
        .into_iter()
        .find_map(|(prefix, scheme)| Some((scheme, url.strip_prefix(prefix)?)));
        if let Some((scheme, rest)) = sentinel {
            return SentinelGroup::parse(scheme, rest, tls)
                .map(|group| Self(Box::new(RedisPlace::Sentinels(group))));
        }
        let info = url.into_connection_info().map_err(|_| {
            "must be redis://[user:password@]host[:port], rediss://…, redis+unix:///path \
             or redis-sentinel://host[:port],…/NAME"
                .to_owned()
        })?;
        check_query(url)?;
        if info.redis_settings().db() != 0 {
            return Err("names a database other than 0: pub/sub ignores databases".into());
        }
        check_user(&info)?;
        let info = tls.apply_to(info)?;
        Ok(Self(Box::new(RedisPlace::Server(info))))
    }

    /// Where it leads, passwords included.
    pub(crate) fn place(&self) -> &RedisPlace {
        &self.0
    }

    /// The address without users and passwords, for people.
    pub fn address(&self) -> String {
        match &*self.0 {
            RedisPlace::Server(info) => info.addr().to_string(),
            RedisPlace::Sentinels(group) => {
                let addresses: Vec<_> = group
                    .sentinels
                    .iter()
                    .map(|info| info.addr().to_string())
                    .collect();
                format!("{} of the Sentinels {}", group.name, addresses.join(","))
            }
        }
    }
}

/// Refuses a query that would have no effect. Names a part of neither: it may belong to a password.
fn check_query(url: &str) -> Result<(), &'static str> {
    let Some((_, query)) = url.split_once('?') else {
        return Ok(());
    };
    if !url.contains("unix://") {
        return Err("must not have a query, which has no effect; in a password ? is written %3F");
    }
    let mut names = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
    if names.all(|name| matches!(&*name, "user" | "pass" | "db")) {
        Ok(())
    } else {
        Err("must have no other query parameters than user and pass")
    }
}

/// A user without a password would not be sent at all.
fn check_user(info: &ConnectionInfo) -> Result<(), &'static str> {
    let settings = info.redis_settings();
    if settings.username().is_some() && settings.password().is_none() {
        return Err(
            "names a user without a password: write user:password@, with any password for \
                    a user that has none",
        );
    }
    Ok(())
}

/// PEM files for connections to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Authorities that certificates are checked with, instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// The client's certificates and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisTls {
    fn apply_to(&self, info: ConnectionInfo) -> Result<ConnectionInfo, String> {
        if *self == Self::default() {
            return Ok(info);
        }
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Err(
                "must begin with rediss:// or rediss-sentinel://, because files for TLS are \
                        given (FANFARE_REDIS_CA_FILE, FANFARE_REDIS_CERT_FILE)"
                    .into(),
            );
        }
        let client = |(cert, key): &(Vec<u8>, Vec<u8>)| ClientTlsConfig {
            client_cert: cert.clone(),
            client_key: key.clone(),
        };
        let certificates = TlsCertificates {
            client_tls: self.client.as_ref().map(client),
            root_cert: self.ca.clone(),
        };
        Client::build_with_tls(info, certificates)
            .map(|client| client.get_connection_info().clone())
            .map_err(|error| format!("cannot be used with these certificates: {error}"))
    }
}

impl SentinelGroup {
    /// Reads what follows `redis-sentinel://`.
    fn parse(scheme: &str, rest: &str, tls: &RedisTls) -> Result<Self, String> {
        let shape = || {
            "must be redis-sentinel://[user:password@]host[:port],…/NAME\
             [?sentinel_user=…&sentinel_password=…]"
                .to_owned()
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (rest, name) = rest.split_once('/').ok_or_else(shape)?;
        // As Sentinel itself has it.
        let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || !name.chars().all(is_of_a_name) {
            return Err(
                "ends with the primary's name after a /, of letters, digits, . - and _; \
                 there is no database after it"
                    .into(),
            );
        }
        let (user, hosts) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (mut sentinel_user, mut sentinel_password) = (None, None);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "sentinel_user" => sentinel_user = Some(value),
                "sentinel_password" => sentinel_password = Some(value),
                _ => return Err(shape()),
            }
        }
        let mut sentinels: Vec<ConnectionInfo> = Vec::new();
        for host in hosts.split(',') {
            let mut url =
                redis::parse_redis_url(&format!("{scheme}://{host}")).ok_or_else(shape)?;
            if url.port().is_none() {
                url.set_port(Some(SENTINEL_PORT)).map_err(|()| shape())?;
            }
            let info = url.into_connection_info().map_err(|_| shape())?;
            let mut settings = info.redis_settings().clone();
            if let Some(user) = &sentinel_user {
                settings = settings.set_username(user);
            }
            if let Some(password) = &sentinel_password {
                settings = settings.set_password(password);
            }
            if sentinels.iter().any(|other| other.addr() == info.addr()) {
                return Err("names a Sentinel twice: more than half of them must agree".into());
            }
            let info = info.set_redis_settings(settings);
            check_user(&info)?;
            sentinels.push(tls.apply_to(info)?);
        }
        let primary = format!("{scheme}://{user}@nobody")
            .into_connection_info()
            .map_err(|_| shape())?;
        check_user(&primary)?;
        let primary = tls.apply_to(primary)?;
        Ok(Self {
            sentinels,
            name: name.to_owned(),
            primary,
        })
    }

    /// Whether both name the same Sentinels and primary, whatever their users and passwords.
    pub(crate) fn has_servers_of(&self, other: &Self) -> bool {
        let addresses = |group: &Self| -> Vec<_> {
            let sentinels = group.sentinels.iter();
            sentinels.map(|info| info.addr().clone()).collect()
        };
        self.name == other.name && addresses(self) == addresses(other)
    }

    /// How to connect to the primary at this address.
    pub(crate) fn primary_at(&self, host: &str, port: u16) -> ConnectionInfo {
        let host = host.to_owned();
        let address = match self.primary.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.primary.clone().set_addr(address)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisUrl, String> {
        RedisUrl::parse(url, &RedisTls::default())
    }

    #[test]
    fn urls_of_the_documented_kinds_are_taken() {
        for url in [
            "redis://127.0.0.1",
            "redis://user:secret@redis.internal:6380/0",
            "rediss://redis.internal",
            "redis+unix:///run/redis.sock",
            "redis+unix:///run/redis.sock?user=a&pass=secret",
            "redis-sentinel://a/main",
            "rediss-sentinel://user:secret@a:1,[::1]:2,c/main-1.x_y",
            "redis-sentinel://a:1/main?sentinel_password=secret",
        ] {
            assert!(parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn others_are_refused_without_repeating_a_password() {
        for url in [
            "",
            "127.0.0.1:6379",
            "http://127.0.0.1",
            "redis://user:secret@127.0.0.1/1",
            "redis://user:secret@127.0.0.1:x",
            "redis-cluster://secret@a:1",
            "redis://secret@a",
            "redis-sentinel://a/main?sentinel_user=secret",
            "rediss://:secret@a#insecure",
            "rediss-sentinel://:secret@a/main#insecure",
            "redis://:secret@a?db=1",
            "redis://:secret@a/0?protocol=2",
            "rediss://:secret@a?ssl_cert_reqs=none",
            "redis+unix:///run/redis.sock?pass=secret&db=1",
            "redis+unix:///run/redis.sock?pass=secret&protocol=resp3",
            "redis-sentinel://:secret@a:1,b:2",
            "redis-sentinel://:secret@a:1,b:2/",
            "redis-sentinel://:secret@a:1,b:2/main/0",
            "redis-sentinel://:secret@a:1,,b:2/main",
            "redis-sentinel://:secret@a:1,b:x/main",
            "redis-sentinel://:secret@a,a:26379/main",
            "redis-sentinel://a:1/main?password=secret",
        ] {
            let fault = parse(url).unwrap_err();
            assert!(!fault.contains("secret"), "{fault}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let url = parse("redis://user:secret@127.0.0.1:6379").unwrap();
        assert_eq!(format!("{url:?}"), "RedisUrl(127.0.0.1:6379)");
        let url = parse(
            "redis-sentinel://user:secret@a:1,b/main?sentinel_user=s&sentinel_password=secret",
        )
        .unwrap();
        let text = "RedisUrl(main of the Sentinels a:1,b:26379)";
        assert_eq!(format!("{url:?}"), text);
    }

    #[test]
    fn sentinels_and_servers_have_users_of_their_own() {
        let url = "rediss-sentinel://u:p%40%2F@a,b:7/main?sentinel_user=s&sentinel_password=q%26";
        let RedisPlace::Sentinels(group) = *parse(url).unwrap().0 else {
            panic!("a group");
        };
        let login = |info: &ConnectionInfo| {
            let settings = info.redis_settings();
            (
                info.addr().to_string(),
                settings.username().map(str::to_owned),
                settings.password().map(str::to_owned),
            )
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            group.sentinels.iter().map(login).collect::<Vec<_>>(),
            [
                ("a:26379".to_owned(), some("s"), some("q&")),
                ("b:7".to_owned(), some("s"), some("q&")),
            ]
        );
        let primary = group.primary_at("::1", 6379);
        assert!(matches!(primary.addr(), ConnectionAddr::TcpTls { host, .. } if host == "::1"));
        let (_, user, password) = login(&primary);
        assert_eq!((user, password), (some("u"), some("p@/")));
    }
}
