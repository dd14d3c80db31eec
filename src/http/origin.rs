//! Which web pages may ask: those of this host itself, and those of allowed origins.
//!
//! A browser sends a user's cookies, and reaches what listens on the user's machine, for whatever
//! page asks it to. So what a page of a foreign site asks is refused before anything happens, and
//! not only kept from being read. Programs that are no browsers send none of these headers.

use std::time::Duration;

use axum::body::Body;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName, ORIGIN, RETRY_AFTER};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::answer::{BUSY_HEADER, END_HEADER};
use super::error::Problem;
use super::host;
use super::ignored::IGNORED_HEADER;
use crate::config::Origin;

/// How long a browser may remember the answer to a preflight: Chromium takes no longer time.
const PREFLIGHT_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// What a page may set beside the headers that need no preflight.
const REQUEST_HEADERS: [HeaderName; 8] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    CACHE_CONTROL,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    // Some libraries set it on every request.
    HeaderName::from_static("x-requested-with"),
    HeaderName::from_static(BUSY_HEADER),
];

/// Refuses what a page of a foreign site asks.
///
/// # Errors
/// With 403, unless the page is of `host`, or of an allowed origin.
pub(super) fn check(
    headers: &HeaderMap,
    host: Option<&Authority>,
    allowed: &[Origin],
) -> Result<(), Problem> {
    if is_own_or_allowed(headers, host, allowed) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "pages of this origin are not allowed (FANFARE_ALLOW_ORIGINS)",
    ))
}

/// For a listener that no other page may ask, in front of its routes. A person may be led to what
/// is no stream (by a link on another site, to a tab of its own): the other site sees nothing of it.
pub async fn only_own_pages(request: Request<Body>, next: Next) -> Response {
    let headers = request.headers();
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|said| said == value);
    let leads_here = request.method() == Method::GET
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
        && !request.uri().path().ends_with("/feed");
    // One that is malformed names none.
    let host = host::of(&request).ok().flatten();
    if leads_here || is_own_or_allowed(headers, host.as_ref(), &[]) {
        return next.run(request).await;
    }
    let refused = Problem::new(
        StatusCode::FORBIDDEN,
        "pages of other sites are not allowed",
    );
    refused.into_response()
}

fn is_own_or_allowed(headers: &HeaderMap, host: Option<&Authority>, allowed: &[Origin]) -> bool {
    let mut origins = headers.get_all(ORIGIN).into_iter();
    let (origin, second) = (origins.next(), origins.next());
    let is_allowed = origin.is_some_and(|origin| allowed.iter().any(|one| one.header() == origin));
    if is_allowed && second.is_none() {
        return true;
    }
    // Browsers say themselves where a request comes from, and no page can change it (W3C Fetch
    // Metadata). Older ones send `Origin` at least with whatever may change something.
    let is_own = match headers.get("sec-fetch-site") {
        Some(site) => site == "same-origin" || site == "none",
        None => origin.is_none_or(|origin| {
            let authority = host.map(Authority::as_str).unwrap_or_default();
            let page = origin.to_str().unwrap_or_default();
            page.split_once("://")
                .is_some_and(|(_, page)| page.eq_ignore_ascii_case(authority))
        }),
    };
    is_own && second.is_none()
}

/// Lets browsers show answers to pages of these origins, with credentials (WHATWG Fetch, section
/// 3.3).
pub(super) fn cors(allowed: &[Origin]) -> CorsLayer {
    let origins = allowed.iter().map(|origin| origin.header().clone());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers(REQUEST_HEADERS)
        .expose_headers([
            RETRY_AFTER,
            IGNORED_HEADER,
            HeaderName::from_static(END_HEADER),
        ])
        .max_age(PREFLIGHT_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_host_and_of_allowed_origins_may_ask() {
        let allowed = ["https://app.example.com", "http://localhost:3000"]
            .map(|origin| Origin::parse(origin).unwrap());
        let host: Authority = "sse.example.com".parse().unwrap();
        for (site, origins, may) in [
            // No browser.
            (None, &[][..], true),
            // This host's own page, behind a proxy that speaks TLS too.
            (None, &["https://sse.example.com"], true),
            (Some("same-origin"), &["https://sse.example.com"], true),
            (Some("same-origin"), &[], true),
            // A proxy that gives another host.
            (Some("same-origin"), &["https://outside.example.com"], true),
            // Typed into the address bar.
            (Some("none"), &[], true),
            (Some("cross-site"), &["https://app.example.com"], true),
            (Some("same-site"), &["https://app.example.com"], true),
            (None, &["http://localhost:3000"], true),
            (Some("same-site"), &["https://other.example.com"], false),
            (Some("cross-site"), &["https://evil.example"], false),
            (Some("cross-site"), &[], false),
            (Some("unheard-of"), &[], false),
            (None, &["https://evil.example"], false),
            (None, &["null"], false),
            (None, &[""], false),
            (Some("cross-site"), &["null"], false),
            // Look-alikes.
            (None, &["https://app.example.com.evil.example"], false),
            (None, &["https://evilapp.example.com"], false),
            (None, &["http://app.example.com"], false),
            (None, &["https://app.example.com:8443"], false),
            (None, &["https://app.example.com/"], false),
            (None, &["HTTPS://APP.EXAMPLE.COM"], false),
            (None, &["http://localhost:30000"], false),
            (None, &["https://sse.example.com.evil.example"], false),
            (
                None,
                &["https://app.example.com", "https://evil.example"],
                false,
            ),
            (
                None,
                &["https://sse.example.com", "https://evil.example"],
                false,
            ),
        ] {
            let mut headers = HeaderMap::new();
            for origin in origins {
                headers.append(ORIGIN, origin.parse().unwrap());
            }
            if let Some(site) = site {
                headers.insert("sec-fetch-site", site.parse().unwrap());
            }
            let found = check(&headers, Some(&host), &allowed).is_ok();
            assert_eq!(found, may, "{site:?} {origins:?}");
        }
    }
}
