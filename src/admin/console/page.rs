//! The console's page, one file without outside assets.
//!
//! Its charts are drawn by some hundred lines of its own, as SVG, and by no library. The well-kept
//! small one, uPlot (1.6), would get along with the policy, but it draws on a canvas: colours had
//! to be read back from the style, and all drawn anew when the scheme changes between light and
//! dark; bars that are stacked were ours to write; and what is drawn could be read neither by a
//! screen reader nor by the tests. Its 51 KB would treble the page and spare few of those lines.

pub(super) const PAGE: &str = include_str!("page.html");

/// The page's own script and style and nothing else, known by their hashes; it talks to its own
/// origin only, and the browser refuses to make markup of text (Trusted Types), since names of
/// channels and replicas come from outside.
pub(super) const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-pys8gArOK1x0KcLtvHrVDuorMERQU+oWT+dPjxbtiVo='; \
    style-src 'sha256-lEUSltRcJrAWwxb9L0iBYS267JHmcm2Gg2xquoTcbXw='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    #[test]
    fn the_policy_allows_exactly_the_page_s_script_and_style() {
        for element in ["script", "style"] {
            let parts: Vec<_> = PAGE.split(&format!("<{element}>")).collect();
            assert_eq!(parts.len(), 2, "one <{element}>, without attributes");
            let (content, _) = parts[1].split_once(&format!("</{element}>")).unwrap();
            let hash = BASE64_STANDARD.encode(digest(&SHA256, content.as_bytes()));
            let source = format!("{element}-src 'sha256-{hash}';");
            assert!(POLICY.contains(&source), "the policy needs {source}");
        }
    }
}
