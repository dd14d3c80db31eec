//! Whom a request is addressed to.

use std::net::IpAddr;

use axum::body::Body;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::HOST;
use http::uri::Authority;
use http::{Request, StatusCode, Version};

use super::error::Problem;

/// The host a request names, port included; `None` where it names none, as HTTP/1.0 may.
///
/// # Errors
/// When there is none in HTTP/1.1, when there are several, and when it is none (RFC 9112, section
/// 3.2; RFC 9113, section 8.3.1).
pub(super) fn of<B>(request: &Request<B>) -> Result<Option<Authority>, Problem> {
    let mut lines = request.headers().get_all(HOST).into_iter();
    let (line, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(refused("is given twice"));
    }
    if line.is_none() && request.version() == Version::HTTP_11 {
        return Err(refused("is required in HTTP/1.1"));
    }
    let header = line
        .filter(|line| !line.is_empty())
        .map(|line| Authority::try_from(line.as_bytes()))
        .transpose()
        .map_err(|_| refused("must be a host and perhaps a port"))?;
    let target = request.uri().authority().cloned();
    let named = match (target, header) {
        (Some(target), Some(header))
            if target != header && request.version() >= Version::HTTP_2 =>
        {
            return Err(refused("differs from :authority"));
        }
        // An absolute target is what counts (RFC 9112, section 3.2.2).
        (target, header) => target.or(header),
    };
    if named
        .as_ref()
        .is_some_and(|named| named.as_str().contains('@'))
    {
        return Err(refused("must not contain a user"));
    }
    Ok(named)
}

fn refused(rule: &str) -> Problem {
    Problem::field("host", rule)
}

/// Whether a name can only be meant for this machine. A page of a foreign site can have its own
/// name lead to this machine (DNS rebinding) and is then of the same origin, so a listener that
/// is open because it is local must know its name. An address cannot be had to lead elsewhere.
pub(super) fn is_local(authority: &Authority) -> bool {
    let host = authority.host().trim_end_matches('.');
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = |name: &str| host.eq_ignore_ascii_case(name);
    is_name("localhost")
        || host
            .len()
            .checked_sub(".localhost".len())
            .and_then(|at| host.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(".localhost"))
        || bare.parse::<IpAddr>().is_ok()
}

/// The refusal of a request to a listener of this machine that is addressed to somebody else.
pub(super) fn not_here(host: &Authority) -> Problem {
    Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        format!(
            "{host} is not this machine: a listener without access rules answers only to localhost and addresses \
             only, so that no foreign page can use it"
        ),
    )
}

/// For a listener that is open because it is local, in front of its routes.
pub async fn only_this_machine(request: Request<Body>, next: Next) -> Response {
    match of(&request) {
        Ok(Some(host)) if !is_local(&host) => not_here(&host).into_response(),
        Ok(_) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(version: Version, target: &str, lines: &[&str]) -> Result<Option<String>, ()> {
        let mut request = Request::builder().version(version).uri(target);
        for line in lines {
            request = request.header(HOST, *line);
        }
        of(&request.body(()).unwrap())
            .map(|host| host.map(|host| host.to_string()))
            .map_err(drop)
    }

    #[test]
    fn exactly_one_host_is_named() {
        const ONE: Version = Version::HTTP_11;
        const TWO: Version = Version::HTTP_2;
        for (version, target, lines, expected) in [
            (ONE, "/", &["a:80"][..], Ok(Some("a:80"))),
            (ONE, "/", &[], Err(())),
            (ONE, "/", &[""], Ok(None)),
            (ONE, "/", &["a", "a"], Err(())),
            (ONE, "/", &["a", "b"], Err(())),
            (ONE, "/", &["a b"], Err(())),
            (ONE, "/", &["me@a"], Err(())),
            (ONE, "/", &["a/b"], Err(())),
            (ONE, "http://b/", &["a"], Ok(Some("b"))),
            (ONE, "http://b/", &[], Err(())),
            (Version::HTTP_10, "/", &[], Ok(None)),
            (TWO, "http://b/", &[], Ok(Some("b"))),
            (TWO, "http://b/", &["b"], Ok(Some("b"))),
            (TWO, "http://b/", &["a"], Err(())),
        ] {
            let expected = expected.map(|host| host.map(str::to_owned));
            assert_eq!(host(version, target, lines), expected, "{target} {lines:?}");
        }
    }

    #[test]
    fn local_names_are_those_that_dns_cannot_have_lead_elsewhere() {
        for (name, local) in [
            ("localhost", true),
            ("LocalHost:8080", true),
            ("app.localhost:8080", true),
            ("localhost.", true),
            ("127.0.0.1:8080", true),
            ("[::1]:8080", true),
            ("192.0.2.1", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("evillocalhost", false),
            ("127.0.0.1.evil.example", false),
            ("gateway", false),
        ] {
            let authority: Authority = name.parse().unwrap();
            assert_eq!(is_local(&authority), local, "{name}");
        }
    }
}
