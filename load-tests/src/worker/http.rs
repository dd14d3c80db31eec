//! The answer to a stream request: head, then the body's chunk framing taken off, then SSE.

use memchr::memchr;
use memchr::memmem;

use crate::payload::RunTag;
use crate::worker::sse::{self, Sink};

const MAX_HEAD_BYTES: usize = 16 << 10;

/// How far one feeding came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The head is not complete yet.
    AwaitingHead,
    /// Streaming; the bytes were consumed.
    Streaming,
    /// The body's orderly end.
    Ended,
}

/// Why an answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not `200`: the status, 0 where even that cannot be read.
    Status(u16),
    NotEventStream,
    Malformed,
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    UntilClose,
    ChunkSize { size: u64, in_extension: bool },
    ChunkData { remaining: usize },
    ChunkEnd,
    Ended,
}

/// One connection's reader.
#[derive(Debug)]
pub(crate) struct Response {
    state: State,
    events: sse::Parser,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            state: State::Head(Vec::new()),
            events: sse::Parser::default(),
        }
    }
}

const NEXT_CHUNK: State = State::ChunkSize {
    size: 0,
    in_extension: false,
};

impl Response {
    #[inline]
    pub(crate) fn feed(
        &mut self,
        run: RunTag,
        mut bytes: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Progress, Fault> {
        loop {
            match &mut self.state {
                State::ChunkData { remaining } => {
                    let Some((chunk, rest)) = bytes.split_at_checked(*remaining) else {
                        *remaining -= bytes.len();
                        self.events
                            .feed(run, bytes, sink)
                            .map_err(|_| Fault::Malformed)?;
                        return Ok(Progress::Streaming);
                    };
                    self.events
                        .feed(run, chunk, sink)
                        .map_err(|_| Fault::Malformed)?;
                    bytes = rest;
                    self.state = State::ChunkEnd;
                }
                State::ChunkEnd => {
                    let Some((byte, rest)) = bytes.split_first() else {
                        return Ok(Progress::Streaming);
                    };
                    bytes = rest;
                    match byte {
                        b'\r' => {}
                        b'\n' => self.state = NEXT_CHUNK,
                        _ => return Err(Fault::Malformed),
                    }
                }
                State::ChunkSize { size, in_extension } => {
                    let Some((byte, rest)) = bytes.split_first() else {
                        return Ok(Progress::Streaming);
                    };
                    bytes = rest;
                    match byte {
                        b'\n' => {
                            let size = usize::try_from(*size).map_err(|_| Fault::Malformed)?;
                            self.state = if size == 0 {
                                State::Ended
                            } else {
                                State::ChunkData { remaining: size }
                            };
                        }
                        b'\r' | b';' | b' ' => *in_extension = true,
                        _ if *in_extension => {}
                        digit => {
                            let digit = char::from(*digit).to_digit(16).ok_or(Fault::Malformed)?;
                            *size =
                                size.checked_mul(16).ok_or(Fault::Malformed)? + u64::from(digit);
                        }
                    }
                }
                State::UntilClose => {
                    self.events
                        .feed(run, bytes, sink)
                        .map_err(|_| Fault::Malformed)?;
                    return Ok(Progress::Streaming);
                }
                State::Head(head) => {
                    // The blank line may be split over two reads.
                    let from = head.len().saturating_sub(3);
                    let before = head.len();
                    head.extend_from_slice(bytes);
                    let Some(found) =
                        memmem::find(head.get(from..).unwrap_or_default(), b"\r\n\r\n")
                    else {
                        if head.len() > MAX_HEAD_BYTES {
                            return Err(Fault::Malformed);
                        }
                        return Ok(Progress::AwaitingHead);
                    };
                    let end = from + found + 4;
                    let body = body_framing(head.get(..end).unwrap_or_default())?;
                    bytes = bytes.get(end - before..).unwrap_or_default();
                    self.state = body;
                }
                State::Ended => return Ok(Progress::Ended),
            }
        }
    }
}

/// Judges a whole head; how the body is framed follows from it.
fn body_framing(head: &[u8]) -> Result<State, Fault> {
    let text = std::str::from_utf8(head).map_err(|_| Fault::Malformed)?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok());
    if status != Some(200) {
        return Err(Fault::Status(status.unwrap_or(0)));
    }
    let mut event_stream = false;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim().to_ascii_lowercase();
        event_stream |=
            name.eq_ignore_ascii_case("content-type") && value.starts_with("text/event-stream");
        chunked |= name.eq_ignore_ascii_case("transfer-encoding") && value.contains("chunked");
    }
    match (event_stream, chunked) {
        (false, _) => Err(Fault::NotEventStream),
        (true, true) => Ok(NEXT_CHUNK),
        (true, false) => Ok(State::UntilClose),
    }
}

/// The status line of an answer, for the publisher's HTTP replies.
pub(crate) fn status_of(line: &[u8]) -> Option<u16> {
    let after = line.get(memchr(b' ', line)? + 1..)?;
    std::str::from_utf8(after.get(..3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::sse::tests::{Notes, RUN, data};

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";

    fn read(answer: &str, split: usize) -> (Result<Progress, Fault>, Vec<String>) {
        let mut response = Response::default();
        let mut notes = Notes::default();
        let (one, two) = answer.as_bytes().split_at(split);
        let result = response
            .feed(RunTag::new(RUN), one, &mut notes)
            .and_then(|_| response.feed(RunTag::new(RUN), two, &mut notes));
        (result, notes.0)
    }

    #[test]
    fn chunked_at_every_split() {
        let event = format!("data: {}\n\n", data(1));
        let (left, right) = event.split_at(40);
        let answer = format!(
            "{HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n{:X};a=b\r\n{left}\r\n{:04x}\r\n{right}:\n\n\r\n0\r\n\r\n",
            event.len(),
            left.len(),
            right.len() + 3,
        );
        for split in 0..=answer.len() {
            let (result, notes) = read(&answer, split);
            assert_eq!(result, Ok(Progress::Ended), "split at {split}");
            assert_eq!(
                notes,
                ["event 3/1", "event 3/1", "heartbeat"],
                "split at {split}"
            );
        }
    }

    #[test]
    fn until_close_at_every_split() {
        let answer = format!("{HEAD}\r\ndata: {}\n\n", data(5));
        for split in 0..=answer.len() {
            let (result, notes) = read(&answer, split);
            assert_eq!(result, Ok(Progress::Streaming));
            assert_eq!(notes, ["event 3/5"]);
        }
    }

    #[test]
    fn faults() {
        let fault = |answer: &str| read(answer, 0).0;
        assert_eq!(fault("HTTP/1.1 503 Busy\r\n\r\n"), Err(Fault::Status(503)));
        assert_eq!(
            fault("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n"),
            Err(Fault::NotEventStream)
        );
        assert_eq!(
            fault(&format!("{HEAD}transfer-encoding: chunked\r\n\r\nzz\r\n")),
            Err(Fault::Malformed)
        );
        assert_eq!(fault("HTTP/1.1 200"), Ok(Progress::AwaitingHead));
    }
}
