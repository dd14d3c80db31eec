//! Where a request's token comes from: the `Authorization` header, a ticket, or the cookie.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};

/// The cookie that may hold a token.
const COOKIE_NAME: &str = "fanfare";

/// The cookies of a request that are tried. A browser sends one for each domain and path that has set
/// it; each may cost the check of a signature.
const MAX_COOKIES: usize = 4;

/// A request has two credentials of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is given twice")]
pub(crate) struct GivenTwice(&'static str);

/// What a request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// Tokens, of which the first valid one counts: the one of the header, or one or more of the cookie.
    Tokens(Vec<&'a str>),
    /// The parameter `ticket`.
    Ticket(&'a str),
}

/// The credential of a request: what was sent on purpose wins over what a browser sends by itself.
///
/// A browser sends the cookie twice if a page of another path or of the parent domain has set it, too.
/// The page can neither see nor prevent that, so no such request is refused for it.
///
/// # Errors
/// When there are two `Authorization` headers: whose request it is must not depend on the reader.
pub(crate) fn credential<'a>(
    headers: &'a HeaderMap,
    ticket: Option<&'a str>,
) -> Result<Option<Credential<'a>>, GivenTwice> {
    let mut bearers = headers.get_all(AUTHORIZATION).iter();
    if let Some(value) = bearers.next() {
        if bearers.next().is_some() {
            return Err(GivenTwice("the Authorization header"));
        }
        // Any other scheme is meant for somebody else, a proxy with a password perhaps.
        if let Some(token) = value.to_str().ok().and_then(bearer) {
            return Ok(Some(Credential::Tokens(vec![token])));
        }
    }
    if let Some(ticket) = ticket {
        return Ok(Some(Credential::Ticket(ticket)));
    }
    let cookies: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| name.trim() == COOKIE_NAME)
        .map(|(_, value)| value.trim())
        .filter(|token| !token.is_empty())
        .take(MAX_COOKIES)
        .collect();
    Ok((!cookies.is_empty()).then_some(Credential::Tokens(cookies)))
}

/// The token of `Bearer <token>` (RFC 6750, section 2.1); schemes are written in any case
/// (RFC 9110, section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_is_sent_on_purpose_wins() {
        let cookie = ("cookie", "a=b; fanfare=c.c.c; d=e");
        let header = ("authorization", "bEARER h.h.h");
        for (pairs, ticket, expected) in [
            (vec![], None, None),
            (vec![cookie], None, Some(Credential::Tokens(vec!["c.c.c"]))),
            (vec![cookie], Some("t"), Some(Credential::Ticket("t"))),
            (
                vec![cookie, header],
                Some("t"),
                Some(Credential::Tokens(vec!["h.h.h"])),
            ),
            // HTTP/2 may split cookies (RFC 9113, section 8.2.3).
            (
                vec![("cookie", "a=b"), ("cookie", "fanfare=x")],
                None,
                Some(Credential::Tokens(vec!["x"])),
            ),
            (
                vec![("authorization", "Basic YTpi"), cookie],
                None,
                Some(Credential::Tokens(vec!["c.c.c"])),
            ),
            (vec![("authorization", "Bearer")], None, None),
            // One of this path and one of the parent domain; the more specific one comes first.
            (
                vec![
                    ("cookie", "fanfare=a; x=y; fanfare="),
                    ("cookie", "fanfare=b"),
                ],
                None,
                Some(Credential::Tokens(vec!["a", "b"])),
            ),
            (
                vec![(
                    "cookie",
                    "fanfare=a; fanfare=b; fanfare=c; fanfare=d; fanfare=e",
                )],
                None,
                Some(Credential::Tokens(vec!["a", "b", "c", "d"])),
            ),
            (vec![("cookie", "fanfare=")], None, None),
            (vec![("cookie", "xfanfare=y; fanfarex=y")], None, None),
        ] {
            let headers = headers(&pairs);
            assert_eq!(credential(&headers, ticket).unwrap(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn two_headers_are_refused() {
        for pairs in [
            vec![("authorization", "Bearer a"), ("authorization", "Bearer b")],
            vec![("authorization", "Basic a"), ("authorization", "Bearer b")],
        ] {
            assert!(credential(&headers(&pairs), None).is_err(), "{pairs:?}");
        }
    }
}
