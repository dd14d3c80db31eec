//! The PROXY protocol (versions 1 and 2), by which a proxy tells a connection's address.
//!
//! Spoken on a listener of its own, and believed of trusted proxies only: on the ordinary listener
//! anybody could say anything.

use std::io;
use std::net::IpAddr;

use ppp::{PartialResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A header at the most: addresses, and what some proxies add of TLS. The longest of version 1 has
/// 107 bytes.
const MAX_HEADER_BYTES: usize = 4096;

/// What stands before a connection's own bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProxyHeader {
    /// The client's address; `None` where the proxy speaks for itself, as for a health check.
    pub(super) client: Option<IpAddr>,
    /// What was read behind it.
    pub(super) rest: Vec<u8>,
}

/// Reads a header.
///
/// # Errors
/// When the connection ends or fails, and when there is none: `InvalidData`.
pub(super) async fn read_header(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<ProxyHeader> {
    let mut read = Vec::with_capacity(1024);
    loop {
        if socket.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((client, length)) = parse(&read)? {
            let rest = read.split_off(length.min(read.len()));
            return Ok(ProxyHeader { client, rest });
        }
        if read.len() > MAX_HEADER_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// The client, and the header's length; `None`: more is to come.
fn parse(read: &[u8]) -> io::Result<Option<(Option<IpAddr>, usize)>> {
    let is_binary = read.first() != Some(&b'P');
    if is_binary {
        match v2::Header::try_from(read) {
            Ok(header) => {
                let client = match (header.command, header.addresses) {
                    (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Some(ip.source_address.into()),
                    (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Some(ip.source_address.into()),
                    _ => None,
                };
                Ok(Some((client, header.header.len())))
            }
            Err(error) if error.is_incomplete() => Ok(None),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    } else {
        // Its end is looked for here: what follows need not be text.
        let Some(end) = memchr::memmem::find(read, b"\r\n") else {
            let too_long = read.len() > MAX_V1_BYTES;
            return if too_long {
                Err(io::ErrorKind::InvalidData.into())
            } else {
                Ok(None)
            };
        };
        let (line, _) = read.split_at(end + 2);
        match v1::Header::try_from(line) {
            Ok(header) => {
                let client = match header.addresses {
                    v1::Addresses::Tcp4(ip) => Some(ip.source_address.into()),
                    v1::Addresses::Tcp6(ip) => Some(ip.source_address.into()),
                    v1::Addresses::Unknown => None,
                };
                Ok(Some((client, line.len())))
            }
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The longest header of version 1 (section 2.1 of its specification).
const MAX_V1_BYTES: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn read(mut bytes: &[u8]) -> io::Result<(Option<String>, Vec<u8>)> {
        let ProxyHeader { client, mut rest } = read_header(&mut bytes).await?;
        rest.extend_from_slice(bytes);
        Ok((client.map(|address| address.to_string()), rest))
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend_from_slice(&[0x20 | command, family]);
        header.extend_from_slice(&u16::try_from(addresses.len()).unwrap().to_be_bytes());
        header.extend_from_slice(addresses);
        header
    }

    #[tokio::test]
    async fn both_versions_tell_the_client_and_leave_the_rest() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0, 80, 1, 187];
        let mut v6 = [0; 36];
        v6[0] = 0x20;
        v6[1] = 0x01;
        v6[15] = 1;
        let with_tlv = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (header, client) in [
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n".to_vec(),
                Some("192.0.2.1"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 fd00::1 4711 80\r\n".to_vec(),
                Some("2001:db8::1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever it says\r\n".to_vec(), None),
            (binary(1, 0x11, &v4), Some("192.0.2.1")),
            (binary(1, 0x11, &with_tlv), Some("192.0.2.1")),
            (binary(1, 0x21, &v6), Some("2001::1")),
            (binary(0, 0x11, &v4), None),
            (binary(1, 0x00, &[]), None),
            (binary(1, 0x31, &[0; 216]), None),
        ] {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n\xff"].concat();
            let expected = (
                client.map(str::to_owned),
                b"GET / HTTP/1.1\r\n\xff".to_vec(),
            );
            assert_eq!(read(&bytes).await.unwrap(), expected, "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let endless = [binary(1, 0x11, &[]), vec![0; 10]].concat();
        let mut too_large = binary(1, 0x11, &[0; 12]);
        too_large[14..16].copy_from_slice(&[0xff, 0xff]);
        too_large.resize(6000, 0);
        for bytes in [
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"PROXY TCP4 999.0.2.1 10.0.0.1 4711 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 fd00::1 4711 80\r\n".to_vec(),
            b"PROXY\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
            b"\r\n\r\n\0\r\nQUIT\nXXXXXX".to_vec(),
            binary(2, 0x11, &[0; 12]),
            endless,
            too_large,
        ] {
            let error = read(&bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        for bytes in ["", "PROX", "PROXY TCP4 192.0.2.1", "\r\n\r\n\0"] {
            let error = read(bytes.as_bytes()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), text in any::<bool>()) {
            let prefix: &[u8] = if text { b"PROXY " } else { b"\r\n\r\n\0\r\nQUIT\n" };
            let _ = parse(&[prefix, &bytes[..]].concat());
            let _ = parse(&bytes);
        }
    }
}
