//! Server-Sent Events out of body bytes, as they come: any split, several events a read.
//!
//! Follows the WHATWG "interpreting an event stream" rules except that a lone CR does not end a line
//! (no server writes it). One `memchr` an event on the common path, nothing is copied unless a line
//! is split over two reads.

use memchr::memchr;

use crate::payload::{Payload, RunTag};

/// No event of a run comes near it: a server that sends a longer line is broken.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Receives what the parser finds.
pub(crate) trait Sink {
    fn event(&mut self, payload: Payload);
    /// An event with data that is not this run's.
    fn foreign(&mut self);
    /// The gateway's `$gap`: what came before it may be incomplete.
    fn gap(&mut self);
    /// A comment, or the gateway's `$cursor` after the first.
    fn heartbeat(&mut self);
    fn retry(&mut self, milliseconds: u64);
    /// The last event id, at the end of the block that held it, whether the block held data or not.
    fn id(&mut self, id: &[u8]);
}

/// A line longer than [`MAX_LINE_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong;

#[derive(Debug, Default, Clone, Copy)]
enum Data {
    #[default]
    None,
    Ours(Payload),
    Foreign,
}

/// A block's event name, as far as it matters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// None, or one that the publisher gave.
    #[default]
    Published,
    Gap,
    Cursor,
    /// Another of the gateway's own.
    Control,
}

impl Name {
    fn of(value: &[u8]) -> Self {
        match value {
            b"$gap" => Self::Gap,
            b"$cursor" => Self::Cursor,
            [b'$', ..] => Self::Control,
            _ => Self::Published,
        }
    }
}

/// One connection's parser.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    name: Name,
    data: Data,
    id: Option<Vec<u8>>,
    /// The block has a reconnection time, as the first and the last of a stream.
    has_retry: bool,
}

impl Parser {
    #[inline]
    pub(crate) fn feed(
        &mut self,
        run: RunTag,
        mut bytes: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), LineTooLong> {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            let rest = rest.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                // An event of one data line and nothing else: its two line ends stand together.
                if let (Name::Published, Data::None, None, Some(data), Some((b'\n', rest))) = (
                    self.name,
                    self.data,
                    &self.id,
                    line.strip_prefix(b"data: "),
                    rest.split_first(),
                ) && let Some(payload) = Payload::decode(run, data)
                {
                    sink.event(payload);
                    bytes = rest;
                    continue;
                }
                self.line(run, line, sink);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(run, &whole, sink);
                whole.clear();
                self.partial = whole;
            }
            bytes = rest;
        }
        if self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            return Err(LineTooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn line(&mut self, run: RunTag, line: &[u8], sink: &mut impl Sink) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.dispatch(sink);
        }
        let (field, value) = match memchr(b':', line) {
            Some(0) => return sink.heartbeat(),
            Some(colon) => {
                let (field, value) = line.split_at(colon);
                let value = value.get(1..).unwrap_or_default();
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"data" => {
                self.data = match self.data {
                    Data::None => {
                        Payload::decode(run, unquoted(value)).map_or(Data::Foreign, Data::Ours)
                    }
                    Data::Ours(_) | Data::Foreign => Data::Foreign,
                };
            }
            b"event" => self.name = Name::of(value),
            b"id" if memchr(0, value).is_none() => self.id = Some(value.to_vec()),
            b"retry" => {
                if let Some(milliseconds) = std::str::from_utf8(value)
                    .ok()
                    .and_then(|value| value.parse().ok())
                {
                    self.has_retry = true;
                    sink.retry(milliseconds);
                }
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, sink: &mut impl Sink) {
        let has_retry = std::mem::take(&mut self.has_retry);
        match (
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.data),
        ) {
            // Without data nothing is dispatched, whatever its name.
            (_, Data::None) | (Name::Control, _) => {}
            (Name::Gap, _) => sink.gap(),
            (Name::Cursor, _) if has_retry => {}
            (Name::Cursor, _) => sink.heartbeat(),
            (Name::Published, Data::Ours(payload)) => sink.event(payload),
            (Name::Published, Data::Foreign) => sink.foreign(),
        }
        if let Some(id) = self.id.take() {
            sink.id(&id);
        }
    }
}

/// Servers that send data as JSON turn the run's text into a JSON string.
fn unquoted(data: &[u8]) -> &[u8] {
    data.strip_prefix(b"\"")
        .and_then(|data| data.strip_suffix(b"\""))
        .unwrap_or(data)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes down what it is told.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(crate) struct Notes(pub(crate) Vec<String>);

    impl Sink for Notes {
        fn event(&mut self, payload: Payload) {
            self.0
                .push(format!("event {}/{}", payload.channel, payload.sequence));
        }
        fn foreign(&mut self) {
            self.0.push("foreign".into());
        }
        fn gap(&mut self) {
            self.0.push("gap".into());
        }
        fn heartbeat(&mut self) {
            self.0.push("heartbeat".into());
        }
        fn retry(&mut self, milliseconds: u64) {
            self.0.push(format!("retry {milliseconds}"));
        }
        fn id(&mut self, id: &[u8]) {
            self.0.push(format!("id {}", String::from_utf8_lossy(id)));
        }
    }

    pub(crate) const RUN: u32 = 77;

    pub(crate) fn data(sequence: u32) -> String {
        let mut data = Vec::new();
        Payload {
            channel: 3,
            sequence,
            intended_ns: 9,
        }
        .encode(RunTag::new(RUN), 100, &mut data);
        String::from_utf8(data).unwrap()
    }

    #[test]
    fn every_split_of_a_stream_reads_the_same() {
        let (one, two, three, four) = (data(1), data(2), data(3), data(4));
        let stream = format!(
            "retry: 2500\nevent: $cursor\nid: 0-0.7\ndata: {{}}\n\n:\ndata: {one}\n\ndata: {two}\n\n:\nid: 5-0\n\n\
             event: price\nid: 6-0\ndata: {three}\n\ndata: {one}\ndata: {one}\n\ndata: hello\r\n\r\n\
             event: $gap\nid: 7-0\ndata: {{}}\n\ndata: {{}}\nevent: $gap\n\nevent: $gap\n\n\
             event: $cursor\nid: 7-0.9\ndata: {{}}\n\nid: 8\0-0\nid: 8-0.9\n\n\
             data:\"{four}\"\n\nevent: $gap\nid: 9-0\ndata: {one}"
        );
        let expected = [
            "retry 2500",
            "id 0-0.7",
            "heartbeat",
            "event 3/1",
            "event 3/2",
            "heartbeat",
            "id 5-0",
            "event 3/3",
            "id 6-0",
            "foreign",
            "foreign",
            "gap",
            "id 7-0",
            "gap",
            "heartbeat",
            "id 7-0.9",
            "id 8-0.9",
            "event 3/4",
        ];
        let bytes = stream.as_bytes();
        for at in 0..bytes.len() {
            let mut notes = Notes::default();
            let mut parser = Parser::default();
            parser
                .feed(RunTag::new(RUN), &bytes[..at], &mut notes)
                .unwrap();
            parser
                .feed(RunTag::new(RUN), &bytes[at..], &mut notes)
                .unwrap();
            assert_eq!(notes.0, expected, "split at {at}");
        }
        let mut notes = Notes::default();
        let mut parser = Parser::default();
        for byte in bytes {
            parser.feed(RunTag::new(RUN), &[*byte], &mut notes).unwrap();
        }
        assert_eq!(notes.0, expected, "byte by byte");
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let mut notes = Notes::default();
        let half = vec![b'x'; MAX_LINE_BYTES / 2 + 1];
        assert_eq!(parser.feed(RunTag::new(RUN), &half, &mut notes), Ok(()));
        assert_eq!(
            parser.feed(RunTag::new(RUN), &half, &mut notes),
            Err(LineTooLong)
        );
    }
}
