//! Settings about who connects: web pages of other origins, proxies in front, and what one client
//! may take.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use clap::Args;
use http::uri::Authority;
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::faults::Reader;
use super::values::list;

/// Who may connect, and how often.
#[derive(Args, Clone, Debug)]
pub struct ClientSettings {
    /// Origins whose pages may read and publish, exactly as browsers send them:
    /// `https://app.example.com`. Pages of the same origin are always allowed.
    /// nginx/site/origins.conf has the same list
    #[arg(long, env = "FANFARE_ALLOW_ORIGINS", value_name = "ORIGINS")]
    pub allow_origins: Option<String>,

    /// Addresses and networks of the proxies in front, such as 10.0.0.0/8. A client's address is
    /// taken from the headers of these proxies only, as nginx/nginx.conf and nginx/l4.conf send it
    #[arg(long, env = "FANFARE_TRUSTED_PROXIES", value_name = "NETWORKS")]
    pub trusted_proxies: Option<String>,

    /// Header in which trusted proxies send the client's address: x-forwarded-for or forwarded.
    /// They must set or extend it on every request. [default: x-forwarded-for]
    #[arg(long, env = "FANFARE_FORWARDED_HEADER", value_name = "HEADER")]
    pub forwarded_header: Option<String>,

    /// Address of a second data listener, for trusted proxies that send the PROXY protocol
    /// (version 1 or 2), as nginx/l4.conf does. [default: none]
    #[arg(long, env = "FANFARE_PROXY_PROTOCOL_LISTEN", value_name = "IP:PORT")]
    pub proxy_protocol_listen: Option<String>,

    /// Maximum number of open streams per client address (IPv6: per /64 network), across all
    /// replicas. [default: no limit]
    #[arg(long, env = "FANFARE_MAX_CONNECTIONS_PER_IP", value_name = "N")]
    pub max_connections_per_ip: Option<String>,

    /// Maximum number of open streams per token subject, across all replicas. [default: no limit]
    #[arg(long, env = "FANFARE_MAX_CONNECTIONS_PER_SUBJECT", value_name = "N")]
    pub max_connections_per_subject: Option<String>,

    /// Maximum rate of stream requests per client address: 10/s, 100/m or 1000/h. A burst may have
    /// as many. [default: no limit]
    #[arg(long, env = "FANFARE_CONNECT_RATE_PER_IP", value_name = "RATE")]
    pub connect_rate_per_ip: Option<String>,

    /// Maximum rate of events published over HTTP per token subject, or per address without a
    /// token, on each replica: 10/s, 100/m or 1000/h. [default: no limit]
    #[arg(long, env = "FANFARE_PUBLISH_RATE_PER_SUBJECT", value_name = "RATE")]
    pub publish_rate_per_subject: Option<String>,
}

/// Who may connect, and what one client may take.
#[derive(Clone, Debug, Default)]
pub struct ClientRules {
    /// Pages of other origins that may read and publish.
    pub allow_origins: Vec<Origin>,
    /// Who is believed about addresses.
    pub trusted_proxies: TrustedProxies,
    /// How they tell them.
    pub forwarded_header: ForwardedHeader,
    /// Where trusted proxies connect that speak the PROXY protocol.
    pub proxy_protocol_listen: Option<SocketAddr>,
    /// Open streams of one address group, on all replicas.
    pub max_connections_per_ip: Option<NonZeroUsize>,
    /// Open streams of one subject, on all replicas.
    pub max_connections_per_subject: Option<NonZeroUsize>,
    /// Requests for streams of one address group.
    pub connect_rate_per_ip: Option<Rate>,
    /// Published events of one subject or address group.
    pub publish_rate_per_subject: Option<Rate>,
}

/// An origin of web pages, as browsers write it (RFC 6454, section 6.2): lower case, without path
/// and without the scheme's default port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    header: HeaderValue,
    authority: Authority,
}

impl Origin {
    /// Checks an origin.
    ///
    /// # Errors
    /// With the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "an origin is scheme://host or scheme://host:port as browsers send it: \
             http or https, lower case, no path, no default port, no *";
        if text == "null" {
            return Err("null is the origin of any sandboxed page");
        }
        let (scheme, rest) = text.split_once("://").ok_or(RULE)?;
        let default_port = match scheme {
            "http" => "80",
            "https" => "443",
            _ => return Err(RULE),
        };
        let authority: Authority = rest.parse().map_err(|_| RULE)?;
        let port_is_canonical = authority.port().is_none_or(|port| {
            port.as_str() != default_port && port.as_u16().to_string() == port.as_str()
        });
        let is_plain = rest
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b'*');
        // An empty port (`host:`) is in the text, and no port.
        if !is_plain
            || !port_is_canonical
            || rest.contains('@')
            || rest.ends_with(':')
            || authority.host().is_empty()
        {
            return Err(RULE);
        }
        let header = HeaderValue::from_str(text).map_err(|_| RULE)?;
        Ok(Self { header, authority })
    }

    /// As the `Origin` header has it.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The host, without port.
    pub fn host(&self) -> &str {
        self.authority.host()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.header.to_str().unwrap_or_default())
    }
}

/// The networks of proxies that are believed about addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Adds an address, or a network such as `10.0.0.0/8`.
    ///
    /// # Errors
    /// When it is neither, or everybody would be believed.
    fn add(&mut self, text: &str) -> Result<(), &'static str> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text
                .parse()
                .map_err(|_| "must be an address, or a network such as 10.0.0.0/8")?,
        };
        if network.prefix_len() == 0 {
            return Err("would have everybody believed");
        }
        self.0.push(network.trunc());
        Ok(())
    }

    /// Whether this is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.0)
    }
}

/// The header in which proxies tell a client's address. A proxy passes on what it does not know,
/// so the other header may be a client's own invention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: addresses by comma.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// Its name.
    pub fn name(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        })
    }
}

/// How often something may happen. As many as in one period may also happen at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many.
    pub count: NonZeroU32,
    /// In this time.
    pub period: Duration,
}

impl Rate {
    /// Reads `10/s`, `100/m` or `1000/h`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (count, unit) = text.split_once('/')?;
            let count: NonZeroU32 = count.parse().ok()?;
            let seconds = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            (count.get() <= 1_000_000).then_some(Self {
                count,
                period: Duration::from_secs(seconds),
            })
        };
        parse()
            .ok_or_else(|| "must be a rate such as 10/s, 100/m or 1000/h, at most a million".into())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            60 => "m",
            3600 => "h",
            _ => "s",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl ClientSettings {
    pub(super) fn read(&self, reader: &mut Reader) -> ClientRules {
        let mut allow_origins = Vec::new();
        for text in list(self.allow_origins.as_deref().unwrap_or_default()) {
            match Origin::parse(text) {
                Ok(origin) => allow_origins.push(origin),
                Err(rule) => reader.fault("ALLOW_ORIGINS", format!("has {text:?}: {rule}")),
            }
        }
        let mut trusted_proxies = TrustedProxies::default();
        for text in list(self.trusted_proxies.as_deref().unwrap_or_default()) {
            if let Err(rule) = trusted_proxies.add(text) {
                reader.fault("TRUSTED_PROXIES", format!("has {text:?}, which {rule}"));
            }
        }
        let forwarded_header = match self.forwarded_header.as_deref() {
            None | Some("x-forwarded-for") => ForwardedHeader::XForwardedFor,
            Some("forwarded") => ForwardedHeader::Forwarded,
            Some(_) => {
                reader.fault("FORWARDED_HEADER", "must be x-forwarded-for or forwarded");
                ForwardedHeader::XForwardedFor
            }
        };
        let proxy_protocol_listen = self
            .proxy_protocol_listen
            .as_deref()
            .map(|text| reader.address("PROXY_PROTOCOL_LISTEN", text));
        if self.trusted_proxies.is_none() {
            for (setting, is_set) in [
                ("FORWARDED_HEADER", self.forwarded_header.is_some()),
                ("PROXY_PROTOCOL_LISTEN", proxy_protocol_listen.is_some()),
            ] {
                if is_set {
                    reader.fault(setting, "needs FANFARE_TRUSTED_PROXIES");
                }
            }
        }
        ClientRules {
            allow_origins,
            trusted_proxies,
            forwarded_header,
            proxy_protocol_listen,
            max_connections_per_ip: most(
                "MAX_CONNECTIONS_PER_IP",
                self.max_connections_per_ip.as_deref(),
                reader,
            ),
            max_connections_per_subject: most(
                "MAX_CONNECTIONS_PER_SUBJECT",
                self.max_connections_per_subject.as_deref(),
                reader,
            ),
            connect_rate_per_ip: rate(
                "CONNECT_RATE_PER_IP",
                self.connect_rate_per_ip.as_deref(),
                reader,
            ),
            publish_rate_per_subject: rate(
                "PUBLISH_RATE_PER_SUBJECT",
                self.publish_rate_per_subject.as_deref(),
                reader,
            ),
        }
    }
}

fn most(setting: &str, text: Option<&str>, reader: &mut Reader) -> Option<NonZeroUsize> {
    let most = reader.count(setting, text?, (1, 1_000_000));
    NonZeroUsize::new(most)
}

fn rate(setting: &str, text: Option<&str>, reader: &mut Reader) -> Option<Rate> {
    match Rate::parse(text?) {
        Ok(rate) => Some(rate),
        Err(rule) => {
            reader.fault(setting, rule);
            None
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (position, item) in items.iter().enumerate() {
        let comma = if position == 0 { "" } else { "," };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

impl fmt::Display for ClientRules {
    /// Those that are set, as they would stand in the environment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => writeln!(f, "FANFARE_{name}={value}"),
            None => Ok(()),
        };
        let origins: Vec<_> = self.allow_origins.iter().map(Origin::to_string).collect();
        let origins = origins.join(",");
        line(
            "ALLOW_ORIGINS",
            Some(&origins)
                .filter(|text| !text.is_empty())
                .map(|text| text as _),
        )?;
        if !self.trusted_proxies.is_empty() {
            line("TRUSTED_PROXIES", Some(&self.trusted_proxies))?;
            line("FORWARDED_HEADER", Some(&self.forwarded_header.name()))?;
        }
        line(
            "PROXY_PROTOCOL_LISTEN",
            self.proxy_protocol_listen.as_ref().map(|it| it as _),
        )?;
        line(
            "MAX_CONNECTIONS_PER_IP",
            self.max_connections_per_ip.as_ref().map(|it| it as _),
        )?;
        line(
            "MAX_CONNECTIONS_PER_SUBJECT",
            self.max_connections_per_subject.as_ref().map(|it| it as _),
        )?;
        line(
            "CONNECT_RATE_PER_IP",
            self.connect_rate_per_ip.as_ref().map(|it| it as _),
        )?;
        line(
            "PUBLISH_RATE_PER_SUBJECT",
            self.publish_rate_per_subject.as_ref().map(|it| it as _),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_taken_as_browsers_send_them() {
        for text in [
            "https://app.example.com",
            "http://localhost:3000",
            "https://example.com:8443",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
        ] {
            let origin = Origin::parse(text).unwrap();
            assert_eq!(origin.header(), text);
        }
        assert_eq!(
            Origin::parse("http://localhost:3000").unwrap().host(),
            "localhost"
        );
        for text in [
            "",
            "*",
            "null",
            "example.com",
            "https://*.example.com",
            "https://",
            "https://example.com/",
            "https://example.com/app",
            "https://Example.com",
            "HTTPS://example.com",
            "https://example.com:443",
            "http://example.com:80",
            "http://example.com:",
            "http://example.com:08080",
            "https://me@example.com",
            "file:///tmp",
            "https://exämple.com",
            "https://a.com https://b.com",
        ] {
            assert!(Origin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let mut proxies = TrustedProxies::default();
        for text in ["10.1.2.3/8", "192.0.2.7", "fd00::/8"] {
            proxies.add(text).unwrap();
        }
        for (address, trusted) in [
            ("10.200.0.1", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd12::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(
                proxies.contains(address.parse().unwrap()),
                trusted,
                "{address}"
            );
        }
        assert_eq!(proxies.to_string(), "10.0.0.0/8,192.0.2.7/32,fd00::/8");
        for text in ["", "proxy.internal", "10.0.0.0/33", "0.0.0.0/0", "::/0"] {
            assert!(TrustedProxies::default().add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_have_a_unit() {
        for text in ["10/s", "100/m", "1000/h"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "10",
            "0/s",
            "-1/s",
            "10/d",
            "1.5/s",
            "10 / s",
            "1000001/s",
        ] {
            assert!(Rate::parse(text).is_err(), "{text}");
        }
    }
}
