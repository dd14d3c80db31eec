//! The content security policy of a page that is one file without outside assets.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Allows the page's own script and style and nothing else, by their hashes. The page connects to its own
/// origin only, and the browser refuses to make markup of text (Trusted Types), because names and events
/// may hold anything.
pub(crate) fn page_policy(page: &str) -> String {
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(page, "<script>", "</script>"),
        hash(page, "<style>", "</style>")
    )
}

/// The hash of the page's only element with these tags, as the browser takes it.
fn hash(page: &str, begin: &str, end: &str) -> String {
    let content = page
        .split_once(begin)
        .and_then(|(_, rest)| rest.split_once(end));
    let content = content.map_or("", |(content, _)| content);
    BASE64_STANDARD.encode(digest(&SHA256, content.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_and_the_style_are_named_by_their_hashes() {
        let policy = page_policy("<style>a{}</style><script>f()</script>");
        // printf 'f()' | openssl dgst -sha256 -binary | base64
        let (script, style) = (
            "GcEEE0IkDzIP5EQ6DXZaDPORqT5RTBELX8Fyzyg9yvo=",
            "X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk=",
        );
        assert!(
            policy.contains(&format!("script-src 'sha256-{script}';")),
            "{policy}"
        );
        assert!(
            policy.contains(&format!("style-src 'sha256-{style}';")),
            "{policy}"
        );
    }
}
