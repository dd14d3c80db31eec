//! From the text of a token to verified claims. Knows nothing of HTTP.

use std::fmt;
use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::grants::Grants;
use super::keys::Key;
use crate::protocol::{UniqueObject, is_repetition};
use crate::telemetry::TokenFaultKind;

/// The longest token, in bytes. Heads have twice as much, and cookies a quarter; nginx/nginx.conf takes
/// headers that hold it.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far the clock of who signs tokens may be from this one's.
pub(super) const LEEWAY: Duration = crate::protocol::TOKEN_LEEWAY;

/// What a token must say beside being signed and not expired.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// `iss` is one of these; empty: whatever it is.
    pub issuers: Vec<String>,
    /// `aud` has one of these; empty: there must be none, since a token for somebody else is not
    /// for this gateway (RFC 7519, section 4.1.3).
    pub audiences: Vec<String>,
}

impl TokenRules {
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !self.issuers.is_empty() {
            validation.set_issuer(&self.issuers);
            required.push("iss");
        }
        if !self.audiences.is_empty() {
            validation.set_audience(&self.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// It is longer than [`MAX_TOKEN_BYTES`].
    TooLong,
    /// It is not three parts of base64url with JSON in the first two.
    Malformed,
    /// Its header says something that must be understood and is not (RFC 7515, section 4.1.11).
    Critical,
    /// No key here is for its algorithm; so also `none`.
    Algorithm,
    /// No key has its `kid`.
    UnknownKey,
    /// It was not signed by a key of these.
    Signature,
    /// It has expired.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is for somebody else.
    Audience,
    /// It is of somebody else.
    Issuer,
    /// It, or its subject, was revoked.
    Revoked,
    /// A claim is missing or breaks the rule told.
    Claim(String),
}

impl TokenFault {
    /// What it is called in metrics and logs.
    pub fn kind(&self) -> TokenFaultKind {
        match self {
            Self::TooLong => TokenFaultKind::TooLong,
            Self::Malformed => TokenFaultKind::Malformed,
            Self::Critical => TokenFaultKind::Critical,
            Self::Algorithm => TokenFaultKind::Algorithm,
            Self::UnknownKey => TokenFaultKind::UnknownKey,
            Self::Signature => TokenFaultKind::Signature,
            Self::Expired => TokenFaultKind::Expired,
            Self::NotYetValid => TokenFaultKind::NotYetValid,
            Self::Audience => TokenFaultKind::Audience,
            Self::Issuer => TokenFaultKind::Issuer,
            Self::Revoked => TokenFaultKind::Revoked,
            Self::Claim(_) => TokenFaultKind::Claim,
        }
    }
}

impl fmt::Display for TokenFault {
    /// The end of a sentence about the token. Nothing of the token is in it but names of claims.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "has more than {MAX_TOKEN_BYTES} bytes"),
            Self::Malformed => f.write_str("is no JSON Web Token"),
            Self::Critical => f.write_str("has a critical header that is not understood"),
            Self::Algorithm => f.write_str("is signed with an algorithm that no key here is for"),
            Self::UnknownKey => f.write_str("is signed with a key (kid) that is not known here"),
            Self::Signature => f.write_str("has a wrong signature"),
            Self::Expired => f.write_str("has expired"),
            Self::NotYetValid => f.write_str("is not valid yet (nbf)"),
            Self::Audience => f.write_str("is for another audience (aud)"),
            Self::Issuer => f.write_str("is of another issuer (iss)"),
            Self::Revoked => f.write_str("was revoked"),
            Self::Claim(rule) => f.write_str(rule),
        }
    }
}

/// What a verified token says. It exists only of claims that keep every rule.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedClaims {
    /// All claims.
    pub claims: Map<String, Value>,
    /// What its bearer may do.
    pub grants: Grants,
    /// When it ends: `exp`, and the leeway.
    pub expires_at: SystemTime,
}

impl VerifiedClaims {
    /// Reads the claims of a token whose signature holds.
    ///
    /// # Errors
    /// When one breaks a rule, or their time is over.
    pub fn read(claims: Map<String, Value>) -> Result<Self, TokenFault> {
        let broken = |rule: &str| Err(TokenFault::Claim(rule.to_owned()));
        for (name, rule) in [
            ("sub", "has a claim sub that is no text"),
            ("jti", "has a claim jti that is no text"),
        ] {
            if claims.get(name).is_some_and(|value| !value.is_string()) {
                return broken(rule);
            }
        }
        let Some(expires_at) = claims.get("exp").and_then(numeric_date) else {
            return broken("has a claim exp that is no time");
        };
        let Some(expires_at) = expires_at.checked_add(LEEWAY) else {
            return broken("has a claim exp that is no time");
        };
        if expires_at <= SystemTime::now() {
            return Err(TokenFault::Expired);
        }
        let grants = Grants::read(&claims).map_err(TokenFault::Claim)?;
        Ok(Self {
            claims,
            grants,
            expires_at,
        })
    }
}

/// A NumericDate (RFC 7519, section 2), rounded down to a second.
fn numeric_date(value: &Value) -> Option<SystemTime> {
    let seconds = value.as_u64().or_else(|| {
        let seconds = value.as_f64().filter(|s| s.is_finite() && *s >= 0.0)?;
        // Beyond it a date is no date any more, and the conversion is exact below.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and within the bound"
        )]
        (seconds < 1e15).then_some(seconds as u64)
    })?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Verifies a token with those of `keys` that its header allows.
///
/// # Errors
/// With the first rule it breaks. [`TokenFault::UnknownKey`] says that it names a key that is not
/// among `keys`, and no other has signed it.
pub(super) fn verify<'a>(
    token: &str,
    keys: impl Iterator<Item = &'a Key> + Clone,
    rules: &TokenRules,
) -> Result<VerifiedClaims, TokenFault> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenFault::TooLong);
    }
    let header = read_header(token)?;
    let named = header.kid.as_deref();
    let is_known = named.is_none_or(|kid| keys.clone().any(|key| key.id() == Some(kid)));
    // A key without an id may have signed anything; so may any key a token that names none.
    let may_be = |key: &&Key| match (named, key.id()) {
        (Some(kid), Some(id)) => kid == id,
        _ => true,
    };
    let mut fault = TokenFault::Algorithm;
    let validation = rules.validation(header.alg);
    for key in keys
        .filter(may_be)
        .filter(|key| key.algorithms().contains(&header.alg))
    {
        match decode::<UniqueObject>(token, key.decoding_key(), &validation) {
            Ok(decoded) => {
                let UniqueObject(claims) = decoded.claims;
                check_audience(&claims, rules)?;
                return VerifiedClaims::read(claims);
            }
            Err(error) => match error.into_kind() {
                ErrorKind::InvalidSignature => fault = TokenFault::Signature,
                kind => return Err(claims_fault(kind)),
            },
        }
    }
    Err(if is_known {
        fault
    } else {
        TokenFault::UnknownKey
    })
}

/// Reads a token's header.
///
/// # Errors
/// When it is none, or one that must be understood and is not.
pub(crate) fn read_header(token: &str) -> Result<Header, TokenFault> {
    let header = decode_header(token).map_err(|error| match error.kind() {
        // `none`, and whatever else there is no verifier for.
        ErrorKind::Json(error) if error.to_string().starts_with("unknown variant") => {
            TokenFault::Algorithm
        }
        _ => TokenFault::Malformed,
    })?;
    // None of them can be understood (RFC 7515, section 4.1.11), so neither can an encoding of the
    // payload (RFC 7797) or a compression.
    let is_plain = header.crit.is_none()
        && header.enc.is_none()
        && header.zip.is_none()
        && !header.extras.inner().contains_key("b64");
    if is_plain {
        Ok(header)
    } else {
        Err(TokenFault::Critical)
    }
}

/// The library takes an `aud` that it cannot read for none.
fn check_audience(claims: &Map<String, Value>, rules: &TokenRules) -> Result<(), TokenFault> {
    match claims.get("aud") {
        Some(_) if rules.audiences.is_empty() => Err(TokenFault::Audience),
        _ => Ok(()),
    }
}

/// What the library found wrong once the signature was right.
fn claims_fault(kind: ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::ExpiredSignature => TokenFault::Expired,
        ErrorKind::ImmatureSignature => TokenFault::NotYetValid,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::MissingRequiredClaim(name) => {
            TokenFault::Claim(format!("has no claim {name} that can be read"))
        }
        ErrorKind::InvalidClaimFormat(name) => {
            TokenFault::Claim(format!("has a claim {name} that cannot be read"))
        }
        ErrorKind::InvalidAlgorithm => TokenFault::Algorithm,
        ErrorKind::Json(error) if is_repetition(&error) => {
            TokenFault::Claim("names a claim, or a member of one, twice".into())
        }
        _ => TokenFault::Malformed,
    }
}
