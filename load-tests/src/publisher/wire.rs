//! How one publish looks on the wire: Redis `PUBLISH`, the gateway's Redis function, or HTTP POST.

use std::net::SocketAddr;

use crate::template;

#[derive(Clone, Debug)]
pub(crate) enum Wire {
    /// `PUBLISH <prefix><channel> <data>`
    Publish { redis: SocketAddr, prefix: String },
    /// `FCALL fanfare_publish 1 <prefix><channel> <data>`: a kept event.
    Function { redis: SocketAddr, prefix: String },
    /// `POST <path>`, the data as the body, requests pipelined on one connection.
    Post { server: SocketAddr, path: String },
}

impl Wire {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Publish { redis, .. } | Self::Function { redis, .. } => *redis,
            Self::Post { server, .. } => *server,
        }
    }

    pub(crate) fn encode(&self, channel: &str, data: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Publish { prefix, .. } => command(
                out,
                &[b"PUBLISH", format!("{prefix}{channel}").as_bytes(), data],
            ),
            Self::Function { prefix, .. } => {
                let key = format!("{prefix}{channel}");
                command(
                    out,
                    &[b"FCALL", b"fanfare_publish", b"1", key.as_bytes(), data],
                );
            }
            Self::Post { server, path } => {
                let path = template::fill(path, &[channel.to_owned()]);
                let head = format!(
                    "POST {path} HTTP/1.1\r\nhost: {server}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
                    data.len()
                );
                out.extend_from_slice(head.as_bytes());
                out.extend_from_slice(data);
            }
        }
    }
}

/// A Redis command: an array of bulk strings.
fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_on_the_wire() {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let encoded = |wire: Wire| {
            let mut out = Vec::new();
            wire.encode("a.1", b"hi", &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            encoded(Wire::Publish {
                redis: address,
                prefix: "sse:".into()
            }),
            "*3\r\n$7\r\nPUBLISH\r\n$7\r\nsse:a.1\r\n$2\r\nhi\r\n"
        );
        assert_eq!(
            encoded(Wire::Function {
                redis: address,
                prefix: "sse:".into()
            }),
            "*5\r\n$5\r\nFCALL\r\n$15\r\nfanfare_publish\r\n$1\r\n1\r\n$7\r\nsse:a.1\r\n$2\r\nhi\r\n"
        );
        assert!(
            encoded(Wire::Post {
                server: address,
                path: "/pub/{channel}".into()
            })
            .starts_with("POST /pub/a.1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\n")
        );
    }
}
