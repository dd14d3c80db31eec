//! The query parameters of a stream that have no meaning here.
//!
//! They are no error: a proxy may add its own, and an `EventSource` gives up for good on a 400. But a
//! misspelt name would be hard to find without a word about it.

use http::{HeaderName, HeaderValue};

/// The header of an answer that names them.
pub(super) const IGNORED_HEADER: HeaderName = HeaderName::from_static("fanfare-ignored");

/// The most names that the header has.
const MAX_NAMES: usize = 8;

/// What is left of a longer name, in bytes.
const MAX_NAME_BYTES: usize = 96;

/// The names of ignored parameters, each once.
#[derive(Debug, Default)]
pub(super) struct IgnoredNames(Vec<String>);

impl IgnoredNames {
    /// Notes a name. Bytes that may mean something in a header or a log are replaced.
    pub(super) fn add(&mut self, name: &str) {
        if self.0.len() >= MAX_NAMES || name.is_empty() {
            return;
        }
        let is_plain =
            |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.' | '~');
        let plain = |char| if is_plain(char) { char } else { '?' };
        let name: String = name.chars().take(MAX_NAME_BYTES).map(plain).collect();
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    /// The header's value; `None` where nothing was ignored.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        HeaderValue::try_from(self.0.join(", ")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> Option<HeaderValue> {
        let mut ignored = IgnoredNames::default();
        names.iter().for_each(|name| ignored.add(name));
        ignored.header()
    }

    #[test]
    fn a_name_is_named_once_and_cannot_break_a_header() {
        assert_eq!(header(&[]), None);
        assert_eq!(header(&[""]), None);
        assert_eq!(
            header(&["historyy", "x", "historyy"]).unwrap(),
            "historyy, x"
        );
        assert_eq!(
            header(&["a\r\nb: c", "d,e", "ü"]).unwrap(),
            "a??b??c, d?e, ?"
        );
    }

    #[test]
    fn it_is_bounded() {
        let long = "x".repeat(100_000);
        assert_eq!(header(&[&long]).unwrap().len(), MAX_NAME_BYTES);
        let many: Vec<String> = (0..1000).map(|number| format!("n{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(header(&many).unwrap(), "n0, n1, n2, n3, n4, n5, n6, n7");
    }
}
