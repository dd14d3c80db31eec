//! `GET /`: the demo page, one file without outside assets.

use axum::response::{Html, IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};

const PAGE: &str = include_str!("demo.html");

/// The page's own script and style and nothing else, known by their hashes; it talks to its own
/// origin only, and the browser refuses to make markup of text (Trusted Types), since events hold
/// what anybody may publish.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-gwoWBvhzm5PWgpntWn2KuXVcphrIE+/9kxK8V//Q7g4='; \
    style-src 'sha256-iYB29F8LKHyUZr5UyfKtpt4gvr4/9mYcF6eUxwkeuhM='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The demo page.
pub(super) async fn page() -> Response {
    (
        [
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, POLICY),
        ],
        Html(PAGE),
    )
        .into_response()
}

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
