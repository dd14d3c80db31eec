//! Request heads as they come, before hyper reads them.
//!
//! hyper is lenient where proxies in front may read otherwise: it takes a bare LF for the end of a
//! line, and drops `Content-Length` where `Transfer-Encoding` stands beside it. Two programs that
//! see different requests in the same bytes are what request smuggling needs (RFC 9112, section
//! 11.2), so such requests are refused. What a request is stays hyper's business: this follows the
//! framing only, from head to head.

/// Bytes of a line that are kept: the names looked for, and a length with room around it.
const KEPT_LINE_BYTES: usize = 128;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// A line ends in LF without CR.
    BareLineFeed,
    /// `Content-Length` is no number, or has a line that is far too long for one.
    Length,
    /// Both headers say where the body ends.
    LengthAndEncoding,
    /// The body before it did not keep its framing, so nobody knows where it begins.
    Unframed,
}

impl HeadFault {
    /// For the client.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::BareLineFeed => "lines end in CRLF",
            Self::Length => "Content-Length is a number (RFC 9112, section 6.2)",
            Self::LengthAndEncoding => {
                "Content-Length and Transfer-Encoding exclude each other (RFC 9112, section 6.1)"
            }
            Self::Unframed => "the body of the request before this one was not framed as it said",
        }
    }
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A line of a head; none was there yet.
    FirstLine,
    /// A further line of a head.
    HeaderLine,
    /// So many bytes of a body.
    Body(u64),
    /// A chunk's size.
    ChunkSize,
    /// So many bytes of a chunk, its line end included.
    Chunk(u64),
    /// A line behind the last chunk.
    Trailer,
    /// Unknown.
    Unframed,
}

/// Follows a connection's requests.
#[derive(Debug)]
pub(super) struct HeadScan {
    part: Part,
    /// The beginning of the line under way.
    line: Vec<u8>,
    /// The last byte of it but one.
    last: u8,
    content_length: Option<u64>,
    is_encoded: bool,
    has_bare_line_feed: bool,
    has_wrong_length: bool,
    /// Heads that are complete.
    heads: u64,
    /// The first head that is refused, counted from 1: the connection ends with it.
    fault: Option<(u64, HeadFault)>,
}

impl Default for HeadScan {
    fn default() -> Self {
        Self {
            part: Part::FirstLine,
            line: Vec::new(),
            last: 0,
            content_length: None,
            is_encoded: false,
            has_bare_line_feed: false,
            has_wrong_length: false,
            heads: 0,
            fault: None,
        }
    }
}

impl HeadScan {
    /// Why the connection's request of this number, counted from 1, is refused.
    pub(super) fn fault(&self, request: u64) -> Option<HeadFault> {
        let (first, fault) = self.fault?;
        (first <= request).then_some(fault)
    }

    /// Looks at the next bytes of the connection.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.part != Part::Unframed {
            bytes = match self.part {
                Part::Body(left) | Part::Chunk(left) => self.pass(left, bytes),
                _ => self.line(bytes),
            };
        }
    }

    /// Passes over bytes of a body.
    fn pass<'a>(&mut self, left: u64, bytes: &'a [u8]) -> &'a [u8] {
        let (passed, rest) = usize::try_from(left)
            .ok()
            .and_then(|left| bytes.split_at_checked(left))
            .unwrap_or((bytes, &[]));
        let left = left - passed.len() as u64;
        self.part = match (self.part, left) {
            (Part::Body(_), 0) => Part::FirstLine,
            (Part::Body(_), left) => Part::Body(left),
            (_, 0) => Part::ChunkSize,
            (_, left) => Part::Chunk(left),
        };
        rest
    }

    /// Takes bytes up to the end of the line.
    fn line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = memchr::memchr(b'\n', bytes);
        let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let room = KEPT_LINE_BYTES.saturating_sub(self.line.len());
        self.line.extend(part.iter().take(room));
        self.last = part.last().copied().unwrap_or(self.last);
        if end.is_none() {
            return rest;
        }
        let mut line = std::mem::take(&mut self.line);
        let has_carriage_return = std::mem::take(&mut self.last) == b'\r';
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        self.end_line(&line, has_carriage_return);
        line.clear();
        self.line = line;
        rest.get(1..).unwrap_or_default()
    }

    fn end_line(&mut self, line: &[u8], has_carriage_return: bool) {
        match self.part {
            // Empty lines before a request are passed over (RFC 9112, section 2.2).
            Part::FirstLine if line.is_empty() => {}
            Part::FirstLine => {
                self.content_length = None;
                self.is_encoded = false;
                self.has_bare_line_feed = !has_carriage_return;
                self.has_wrong_length = false;
                self.part = Part::HeaderLine;
            }
            Part::HeaderLine => {
                self.has_bare_line_feed |= !has_carriage_return;
                if line.is_empty() {
                    self.end_head();
                } else {
                    self.header(line);
                }
            }
            Part::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
                let size = std::str::from_utf8(line)
                    .ok()
                    .and_then(|line| u64::from_str_radix(line.get(..digits.count())?, 16).ok());
                match size {
                    Some(0) => self.part = Part::Trailer,
                    Some(size) => self.part = Part::Chunk(size.saturating_add(2)),
                    None => self.lose(),
                }
                if !has_carriage_return {
                    self.lose();
                }
            }
            Part::Trailer if line.is_empty() => self.part = Part::FirstLine,
            _ => {}
        }
    }

    fn header(&mut self, line: &[u8]) {
        let Some(colon) = memchr::memchr(b':', line) else {
            return;
        };
        let (name, value) = line.split_at(colon);
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let digits = value.get(1..).unwrap_or_default().trim_ascii();
            let length = std::str::from_utf8(digits).ok();
            self.content_length = length.and_then(|text| text.parse().ok());
            if self.content_length.is_none() {
                // hyper refuses what is no number; what does not fit into a line is not believed.
                self.has_wrong_length = true;
            }
        }
    }

    fn end_head(&mut self) {
        self.heads += 1;
        if self.has_bare_line_feed {
            self.note(HeadFault::BareLineFeed);
        }
        if self.has_wrong_length {
            self.note(HeadFault::Length);
            self.part = Part::Unframed;
            return;
        }
        self.part = match (self.content_length, self.is_encoded) {
            (Some(_), true) => {
                self.note(HeadFault::LengthAndEncoding);
                Part::Unframed
            }
            (None, true) => Part::ChunkSize,
            (Some(length @ 1..), false) => Part::Body(length),
            (_, false) => Part::FirstLine,
        };
    }

    fn note(&mut self, fault: HeadFault) {
        self.fault.get_or_insert((self.heads, fault));
    }

    /// Every further request is refused.
    fn lose(&mut self) {
        self.part = Part::Unframed;
        self.fault
            .get_or_insert((self.heads + 1, HeadFault::Unframed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scanned(bytes: &str, step: usize) -> HeadScan {
        let mut scan = HeadScan::default();
        for piece in bytes.as_bytes().chunks(step) {
            scan.feed(piece);
        }
        scan
    }

    #[test]
    fn faults_are_found_however_the_bytes_come() {
        let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nContent-Length: 22\r\n\r\n\ncontent-length: 5\n\r\n\n";
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
            5;x=\"y\"\r\n\n\r\n\n\n\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n";
        let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-length : 1\r\n\
            CONTENT-LENGTH: 4\r\n\r\n";
        for (bytes, heads, fault) in [
            (get.to_owned(), 1, None),
            (["\r\n", get, "\r\n\r\n", get].concat(), 2, None),
            ([post, get, chunked, get, post].concat(), 5, None),
            (both.to_owned(), 1, Some((1, HeadFault::LengthAndEncoding))),
            (
                [get, chunked, both].concat(),
                3,
                Some((3, HeadFault::LengthAndEncoding)),
            ),
            (
                get.replace("\r\n", "\n"),
                1,
                Some((1, HeadFault::BareLineFeed)),
            ),
            (
                get.replace("x\r\n", "x\n"),
                1,
                Some((1, HeadFault::BareLineFeed)),
            ),
            (
                [get, "GET / HTTP/1.1\n", &get[16..]].concat(),
                2,
                Some((2, HeadFault::BareLineFeed)),
            ),
            (
                chunked.replace("A\r\n", "A\n"),
                1,
                Some((2, HeadFault::Unframed)),
            ),
            (
                chunked.replace("A\r\n", "xyz\r\n"),
                1,
                Some((2, HeadFault::Unframed)),
            ),
            (
                [
                    &post.replace(": 22", &format!(":{}22", " ".repeat(200))),
                    get,
                ]
                .concat(),
                1,
                Some((1, HeadFault::Length)),
            ),
            (
                get.replace("x\r", &format!("{}\r", "x".repeat(50_000))),
                1,
                None,
            ),
        ] {
            for step in [1, 2, 7, 100_000] {
                let scan = scanned(&bytes, step);
                assert_eq!(
                    (scan.heads, scan.fault),
                    (heads, fault),
                    "{step} {bytes:.200}"
                );
            }
        }
    }

    #[test]
    fn requests_before_a_fault_are_served() {
        let scan = scanned("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\n\r\n", 9);
        assert_eq!(scan.fault(1), None);
        assert_eq!(scan.fault(2), Some(HeadFault::BareLineFeed));
        assert_eq!(scan.fault(3), Some(HeadFault::BareLineFeed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_followed_alike_in_any_pieces(
            bytes in "(POST / HTTP/1.1\r?\n|content-length: [0-9]{1,3}\r\n|transfer-encoding: chunked\r\n|\r?\n|[0-9a-f]\r\n|.|x: y\r\n){0,30}",
            step in 1_usize..40,
        ) {
            let whole = scanned(&bytes, usize::MAX);
            let pieces = scanned(&bytes, step);
            prop_assert_eq!(whole.heads, pieces.heads);
            prop_assert_eq!(whole.fault, pieces.fault);
            prop_assert!(pieces.line.len() <= KEPT_LINE_BYTES);
        }
    }
}
