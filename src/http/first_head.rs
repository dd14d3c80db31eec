//! A bare LF in the first head of a connection, before hyper reads it.
//!
//! hyper takes a bare LF for the end of a line, as RFC 9112, section 2.2, allows. A proxy in front may
//! not, so a request with one might be another request to it: that is refused.

/// Looks at a connection's first head as it arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstHead {
    /// The head's first line has begun. Empty lines before it are skipped (RFC 9112, section 2.2).
    has_begun: bool,
    is_over: bool,
    line_is_empty: bool,
    last: u8,
    has_bare_line_feed: bool,
}

impl FirstHead {
    pub(super) fn is_over(self) -> bool {
        self.is_over
    }

    pub(super) fn has_bare_line_feed(self) -> bool {
        self.has_bare_line_feed
    }

    /// Looks at the next bytes of the connection.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.is_over {
                return;
            }
            match byte {
                b'\n' if self.has_begun => {
                    self.has_bare_line_feed |= self.last != b'\r';
                    self.is_over = self.line_is_empty;
                    self.line_is_empty = true;
                }
                b'\r' | b'\n' => {}
                _ => (self.has_begun, self.line_is_empty) = (true, false),
            }
            self.last = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_line_feed_is_found_however_the_bytes_come() {
        let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        for (bytes, expected) in [
            (get.to_owned(), (true, false)),
            (format!("\r\n\r\n{get}a\nb"), (true, false)),
            (get.replace("\r\n\r\n", "\r\n"), (false, false)),
            (get.replace("\r\n", "\n"), (true, true)),
            (get.replace("x\r\n", "x\n"), (true, true)),
            (get.replace("\r\n\r\n", "\r\n\n"), (true, true)),
            (get.replace("1.1\r\n", "1.1\n"), (true, true)),
        ] {
            for step in [1, 2, 7, 100] {
                let mut head = FirstHead::default();
                for piece in bytes.as_bytes().chunks(step) {
                    head.feed(piece);
                }
                let found = (head.is_over(), head.has_bare_line_feed());
                assert_eq!(found, expected, "{step} {bytes:?}");
            }
        }
    }
}
