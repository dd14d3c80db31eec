//! Reads the answers to what was published, so that a refusal is noticed and no buffer fills up.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::publisher::Wire;
use crate::worker::http::status_of;

#[derive(Debug, Default)]
struct State {
    count: u64,
    error: Option<String>,
}

/// Counted by the reading thread, awaited by the publisher.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    state: Mutex<State>,
    changed: Condvar,
}

impl Replies {
    /// Reads on a thread of its own until the connection ends.
    pub(crate) fn read(connection: TcpStream, wire: &Wire) -> Result<Arc<Self>> {
        let replies = Arc::new(Self::default());
        let mine = Arc::clone(&replies);
        let over_http = matches!(wire, Wire::Post { .. });
        std::thread::Builder::new()
            .name("replies".into())
            .spawn(move || {
                let mut input = BufReader::with_capacity(64 << 10, connection);
                loop {
                    let reply = if over_http {
                        http_reply(&mut input)
                    } else {
                        redis_reply(&mut input)
                    };
                    let failed = reply.is_err();
                    // A thousand replies a wake-up are common: the publisher is told when the buffer is empty.
                    mine.count(reply, input.buffer().is_empty());
                    if failed {
                        break;
                    }
                }
            })?;
        Ok(replies)
    }

    pub(crate) fn error(&self) -> Option<String> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .error
            .clone()
    }

    pub(crate) fn await_count(&self, count: u64, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = state.count;
        let mut deadline_now = deadline;
        while state.count < count {
            if let Some(error) = &state.error {
                bail!("publishing was refused: {error}");
            }
            let patience = deadline_now.saturating_duration_since(Instant::now());
            if patience.is_zero() {
                bail!(
                    "{} of {count} published events were never answered",
                    count - state.count
                );
            }
            state = self
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            // A slow server that still answers is waited for.
            if state.count > seen {
                seen = state.count;
                deadline_now = Instant::now() + timeout;
            }
        }
        Ok(())
    }

    fn count(&self, reply: Result<()>, wake: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match reply {
            Ok(()) => state.count += 1,
            Err(error) => state.error = Some(format!("{error:#}")),
        }
        if wake || state.error.is_some() {
            self.changed.notify_all();
        }
    }
}

fn line(input: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    input.take(16 << 10).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        bail!("the connection was closed");
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn skip(input: &mut impl BufRead, bytes: u64) -> Result<()> {
    std::io::copy(&mut input.take(bytes), &mut std::io::sink())?;
    Ok(())
}

fn redis_reply(input: &mut impl BufRead) -> Result<()> {
    let line = line(input)?;
    match line.split_at_checked(1) {
        Some((":" | "+" | "_", _)) => Ok(()),
        Some(("$", length)) => match length.parse::<i64>().context("a Redis reply")? {
            -1 => Ok(()),
            length => skip(input, length.unsigned_abs() + 2),
        },
        _ => bail!("{line}"),
    }
}

fn http_reply(input: &mut impl BufRead) -> Result<()> {
    let status_line = line(input)?;
    let mut length = 0;
    let mut chunked = false;
    loop {
        let header = line(input)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("content-length")?;
        }
        chunked |= name.eq_ignore_ascii_case("transfer-encoding");
    }
    while chunked {
        let size = u64::from_str_radix(line(input)?.trim(), 16).context("a chunk's size")?;
        skip(input, size + 2)?;
        chunked = size > 0;
    }
    skip(input, length)?;
    match status_of(status_line.as_bytes()) {
        Some(200..=299) => Ok(()),
        _ => bail!("{status_line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_replies() {
        let mut input: &[u8] = b":3\r\n$5\r\n1-234\r\n$-1\r\n-ERR no\r\n";
        for _ in 0..3 {
            redis_reply(&mut input).unwrap();
        }
        assert_eq!(redis_reply(&mut input).unwrap_err().to_string(), "-ERR no");
        assert!(redis_reply(&mut input).is_err());
    }

    #[test]
    fn http_replies() {
        let mut input: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 204 No Content\r\n\r\n\
            HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n";
        for _ in 0..3 {
            http_reply(&mut input).unwrap();
        }
        assert!(
            http_reply(&mut input)
                .unwrap_err()
                .to_string()
                .contains("500")
        );
    }
}
