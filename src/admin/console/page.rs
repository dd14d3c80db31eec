//! The console's page, one file without outside assets.

pub(super) const PAGE: &str = include_str!("page.html");

/// The page's own script and style and nothing else, known by their hashes; it talks to its own
/// origin only, and the browser refuses to make markup of text (Trusted Types), since names of
/// channels and replicas come from outside.
pub(super) const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-z5njAS3yF57FES2RCZh0hP+e3/Dwc9TuXARUD8xni5U='; \
    style-src 'sha256-4NZC3BgbsYYUFB42avhcyznu2WXHzdVaWsJnbuLi218='; \
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
