//! Reading single values: durations, sizes, lists, ranges.

use std::time::Duration;

use bytesize::ByteSize;
use secrecy::SecretString;

/// `500ms`, `15s`, `2m`, `0s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "must be a duration such as 500ms, 15s or 2m".to_owned())
}

/// `2s,6s`.
pub(super) fn duration_range(text: &str) -> Result<(Duration, Duration), String> {
    let (least, most) = text
        .split_once(',')
        .ok_or("must be two durations such as 2s,6s")?;
    Ok((duration(least.trim())?, duration(most.trim())?))
}

/// `64KiB`, `1MiB`, `4096`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| "must be a size such as 4096, 64KiB or 1MiB".to_owned())?;
    usize::try_from(size.as_u64()).map_err(|_| "is too large for this machine".to_owned())
}

/// `a,b,c`; empty items are left out.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// Reads an argument that is printed nowhere.
///
/// # Errors
/// None; clap takes only parsers that may fail.
pub fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_as_documented() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(
            duration_range("2s, 6s"),
            Ok((Duration::from_secs(2), Duration::from_secs(6)))
        );
        assert_eq!(list("a, b,,c").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn a_number_without_a_unit_is_no_duration() {
        assert!(duration("15").is_err());
        assert!(duration("").is_err());
        assert!(duration("-1s").is_err());
        assert!(duration_range("2s").is_err());
        assert!(size("lots").is_err());
    }
}
