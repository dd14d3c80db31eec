//! Which address a client has: that of its connection, or what a trusted proxy says.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderValue};

use crate::config::{ClientRules, ForwardedHeader};

/// Proxies that a request may have passed: what stands further left is not looked at.
const MAX_HOPS: usize = 32;

/// The address of whoever has asked. Left with every request for the handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientAddress(pub(super) IpAddr);

impl ClientAddress {
    /// The client of a request that came from `peer`. The header is read from the right, where the
    /// nearest proxy wrote, for as long as a trusted proxy vouches for what stands there; the rest
    /// may be the client's own invention.
    pub(super) fn of(peer: IpAddr, headers: &HeaderMap, rules: &ClientRules) -> Self {
        let mut client = peer.to_canonical();
        let values = headers.get_all(rules.forwarded_header.name());
        for hop in hops(values.iter(), rules.forwarded_header).take(MAX_HOPS) {
            if !rules.trusted_proxies.contains(client) {
                break;
            }
            // One that hides its client (RFC 7239, section 6) stands for it.
            let Some(address) = hop else { break };
            client = address.to_canonical();
        }
        Self(client)
    }

    /// What is counted as one client. Of IPv6 a subscriber is given a /64 at least (RFC 6177), and
    /// may take any of its addresses.
    pub(super) fn group(self) -> AddressGroup {
        AddressGroup(match self.0.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
                address.to_bits() & !u128::from(u64::MAX),
            )),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// An IPv4 address, or the first of an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AddressGroup(IpAddr);

impl std::fmt::Display for AddressGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The hops that a header's lines tell, from the right; `None`: one that cannot be read.
fn hops<'a>(
    values: impl DoubleEndedIterator<Item = &'a HeaderValue>,
    header: ForwardedHeader,
) -> impl Iterator<Item = Option<IpAddr>> {
    values
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
        // Bytes that are no text spoil what the client wrote, not what a proxy added.
        .map(|element| std::str::from_utf8(element).unwrap_or_default())
        .map(move |element| match header {
            ForwardedHeader::XForwardedFor => node(element),
            ForwardedHeader::Forwarded => forwarded_for(element).and_then(node),
        })
}

/// The `for` parameter of an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let unquoted = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| unquoted.unwrap_or(value))
    })
}

/// An address as proxies write it: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:4711`.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']');
    text.parse()
        .or_else(|_| {
            bracketed()
                .unwrap_or_default()
                .parse::<Ipv6Addr>()
                .map(IpAddr::V6)
        })
        .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    fn rules(header: &str) -> ClientRules {
        let flags = [
            "fanfare",
            "--trusted-proxies=10.0.0.0/8,fd00::/8",
            "--forwarded-header",
            header,
        ];
        Command::parse_from(flags).settings.read().unwrap().clients
    }

    fn client(peer: &str, header: &str, lines: &[&str]) -> String {
        let rules = rules(header);
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            headers.append(rules.forwarded_header.name(), value);
        }
        let ClientAddress(address) = ClientAddress::of(peer.parse().unwrap(), &headers, &rules);
        address.to_string()
    }

    #[test]
    fn the_rightmost_address_that_no_trusted_proxy_has_is_the_client() {
        for (peer, lines, expected) in [
            // Nobody else is believed.
            ("192.0.2.9", &["1.1.1.1"][..], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            // What stands left of the client is its own invention.
            ("10.0.0.1", &["1.1.1.1, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1", "192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            ("::ffff:10.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1"),
            ("fd00::1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            // What cannot be read ends the chain at who said so.
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, , 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["\u{80}"], "10.0.0.1"),
            ("10.0.0.1", &["\u{80}, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1; drop table"], "10.0.0.1"),
        ] {
            let found = client(peer, "x-forwarded-for", lines);
            assert_eq!(found, expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        for (lines, expected) in [
            (
                &["for=192.0.2.60;proto=http;by=203.0.113.43"][..],
                "192.0.2.60",
            ),
            (
                &["proto=https;For=\"[2001:db8:cafe::17]:4711\""],
                "2001:db8:cafe::17",
            ),
            (&["for=192.0.2.43, for=198.51.100.17"], "198.51.100.17"),
            (&["for=\"evil, for=198.51.100.17"], "198.51.100.17"),
            (&["for=192.0.2.43, for=unknown"], "10.0.0.1"),
            (&["for=_hidden"], "10.0.0.1"),
            (&["by=203.0.113.43"], "10.0.0.1"),
        ] {
            assert_eq!(
                client("10.0.0.1", "forwarded", lines),
                expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn a_long_chain_ends() {
        let line = "10.0.0.2,".repeat(100_000) + "10.0.0.2";
        assert_eq!(client("10.0.0.1", "x-forwarded-for", &[&line]), "10.0.0.2");
    }

    #[test]
    fn ipv6_is_grouped_by_64_and_ipv4_is_not() {
        let group = |text: &str| ClientAddress(text.parse().unwrap()).group();
        assert_eq!(group("2001:db8:1:2::1"), group("2001:db8:1:2:ffff::9"));
        assert_ne!(group("2001:db8:1:2::1"), group("2001:db8:1:3::1"));
        assert_eq!(group("::ffff:192.0.2.1"), group("192.0.2.1"));
        assert_ne!(group("::ffff:192.0.2.1"), group("::ffff:192.0.2.2"));
    }
}
