//! The keys that tokens are verified with. Pure: what a secret, a PEM file or a JWK set comes to.
//!
//! Every key knows the algorithms it may verify, and they follow from what it is: a secret never
//! verifies what claims to be signed by a key pair, nor the other way round, and there is no key
//! for `none`. So a token's header chooses among keys, never how one of them is used.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

/// The shortest secret, in bytes: as long as the hash of HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// So many different bytes a secret has at least. One that was drawn has more, also in
/// hexadecimal; one that was typed may be a word over and over.
const MIN_DIFFERENT_BYTES: usize = 8;

/// Secrets that documentation prints: everybody knows them.
const KNOWN_SECRETS: [&str; 3] = [
    "a-string-secret-at-least-256-bits-long",
    "!ChangeThisMercureHubJWTSecretKey!",
    "!ChangeMe!ChangeMe!ChangeMe!ChangeMe!",
];

/// The smallest RSA modulus, in bits (RFC 7518, section 3.3), and the largest that aws-lc takes.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Keys of one source at the most. A token without `kid` is tried with all of them.
const MAX_KEYS: usize = 32;

/// A key, and what it may verify.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    algorithms: Box<[Algorithm]>,
    key: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {:?})", self.id, self.algorithms)
    }
}

impl Key {
    /// Its `kid`, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// What it may verify; all of one family.
    pub fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    pub(super) fn decoding_key(&self) -> &DecodingKey {
        &self.key
    }

    /// A shared secret. It verifies the algorithms whose hash is not longer than it is.
    ///
    /// # Errors
    /// With the rule it breaks, when it is weak.
    pub fn from_secret(secret: &[u8]) -> Result<Self, String> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(format!(
                "has {} bytes: a secret has at least {MIN_SECRET_BYTES} (RFC 7518, section 3.2), \
                 such as openssl rand -hex 32 makes",
                secret.len()
            ));
        }
        let mut seen = [false; 256];
        for &byte in secret {
            if let Some(seen) = seen.get_mut(usize::from(byte)) {
                *seen = true;
            }
        }
        if seen.iter().filter(|seen| **seen).count() < MIN_DIFFERENT_BYTES {
            return Err("repeats a few characters, so it can be guessed".into());
        }
        if KNOWN_SECRETS.iter().any(|known| known.as_bytes() == secret) {
            return Err("is a published example".into());
        }
        let algorithms = [
            (Algorithm::HS256, 32),
            (Algorithm::HS384, 48),
            (Algorithm::HS512, 64),
        ];
        Ok(Self {
            id: None,
            algorithms: algorithms
                .into_iter()
                .filter(|(_, hash_bytes)| secret.len() >= *hash_bytes)
                .map(|(algorithm, _)| algorithm)
                .collect(),
            key: DecodingKey::from_secret(secret),
        })
    }

    /// A public key as a JWK (RFC 7517); `None` for one that is not for signatures.
    fn from_jwk(jwk: &Jwk) -> Result<Option<Self>, String> {
        let common = &jwk.common;
        let other_use = common
            .public_key_use
            .as_ref()
            .is_some_and(|purpose| *purpose != PublicKeyUse::Signature);
        let verifies = common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if other_use || !verifies {
            return Ok(None);
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        let algorithms: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => {
                check_rsa(&key)?;
                AlgorithmFamily::Rsa.algorithms()
            }
            AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
                EllipticCurve::P256 => checked(&key, &ECDSA_P256_SHA256_FIXED, &[Algorithm::ES256]),
                EllipticCurve::P384 => checked(&key, &ECDSA_P384_SHA384_FIXED, &[Algorithm::ES384]),
                _ => Err("is on a curve that is neither P-256 nor P-384".into()),
            }?,
            AlgorithmParameters::OctetKeyPair(parameters) => match parameters.curve {
                EllipticCurve::Ed25519 => checked(&key, &ED25519, &[Algorithm::EdDSA]),
                _ => Err("is on a curve that is not Ed25519".into()),
            }?,
            // A secret that is published is none.
            AlgorithmParameters::OctetKey(_) => return Err("is a secret".into()),
            _ => return Err("is of an unknown kind".into()),
        };
        let algorithms = match common.key_algorithm {
            None => algorithms.into(),
            Some(only) => match Algorithm::try_from(only) {
                Ok(only) if algorithms.contains(&only) => [only].into(),
                _ => return Ok(None),
            },
        };
        Ok(Some(Self {
            id: common.key_id.clone(),
            algorithms,
            key,
        }))
    }
}

fn check_rsa(key: &DecodingKey) -> Result<(), String> {
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
        return Err("is no RSA key".into());
    };
    let modulus = without_leading_zeros(n);
    let unused = modulus.first().map_or(0, |byte| byte.leading_zeros());
    let bits = (modulus.len() * 8).saturating_sub(unused as usize);
    if !RSA_BITS.contains(&bits) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(format!(
            "is an RSA key of {bits} bits, not of {least} to {most}"
        ));
    }
    // 65537 is what everybody uses; with 1 everything would be its own signature.
    let exponent = without_leading_zeros(e);
    let is_odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if !is_odd || exponent == [1] {
        return Err("has an RSA exponent that signs nothing".into());
    }
    Ok(())
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// `algorithms`, when `key` is a point of the curve.
fn checked<'a>(
    key: &DecodingKey,
    curve: &'static dyn VerificationAlgorithm,
    algorithms: &'a [Algorithm],
) -> Result<&'a [Algorithm], String> {
    let point = key.try_get_as_bytes().map_err(|error| error.to_string())?;
    match ParsedPublicKey::new(curve, point) {
        Ok(_) => Ok(algorithms),
        Err(_) => Err("is no point of its curve".into()),
    }
}

/// The public keys of a PEM file: one or more blocks `PUBLIC KEY` (RFC 7468, section 13) or
/// `RSA PUBLIC KEY`, so that the old and the new key can stand side by side.
///
/// # Errors
/// With what is wrong, of the first block that cannot be used.
pub(super) fn from_pem(text: &[u8]) -> Result<Vec<Key>, String> {
    let blocks = pem::parse_many(text).map_err(|_| "is no PEM file".to_owned())?;
    let begun = memchr::memmem::find_iter(text, b"-----BEGIN ").count();
    if begun > blocks.len() {
        return Err("holds a block that does not end".into());
    }
    if blocks.is_empty() {
        return Err("holds no block -----BEGIN PUBLIC KEY-----".into());
    }
    if blocks.len() > MAX_KEYS {
        return Err(format!("holds more than {MAX_KEYS} keys"));
    }
    blocks.iter().map(from_pem_block).collect()
}

fn from_pem_block(block: &pem::Pem) -> Result<Key, String> {
    match block.tag() {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => {}
        "CERTIFICATE" => {
            return Err(
                "holds a certificate: openssl x509 -pubkey -noout prints its public key".into(),
            );
        }
        tag if tag.contains("PRIVATE") => {
            return Err(
                "holds a private key, which does not belong here: openssl pkey -pubout prints \
                 the public one"
                    .into(),
            );
        }
        _ => return Err("holds a block that is no PUBLIC KEY".into()),
    }
    let text = pem::encode(block);
    let key = DecodingKey::from_rsa_pem(text.as_bytes())
        .or_else(|_| DecodingKey::from_ec_pem(text.as_bytes()))
        .or_else(|_| DecodingKey::from_ed_pem(text.as_bytes()))
        .map_err(|_| "holds a key that is neither RSA, EC nor Ed25519".to_owned())?;
    // From here on it is like any other.
    let jwk = Jwk::from_decoding_key(&key, None)
        .map_err(|_| "holds a key that is neither RSA, P-256, P-384 nor Ed25519".to_owned())?;
    match Key::from_jwk(&jwk) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err("holds a key that is not for signatures".into()),
        Err(fault) => Err(format!("holds a key that {fault}")),
    }
}

/// The keys of a JWK set that verify signatures, and why others were left out: a set may hold keys
/// of kinds that are not understood (RFC 7517, section 5).
///
/// # Errors
/// When it is no JWK set, too large, or holds no key that can be used.
pub(super) fn from_jwks(text: &[u8]) -> Result<(Vec<Key>, Vec<String>), String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let Set { keys: found } =
        serde_json::from_slice(text).map_err(|_| "is no JWK set: {\"keys\":[…]}".to_owned())?;
    if found.len() > MAX_KEYS {
        return Err(format!("holds more than {MAX_KEYS} keys"));
    }
    let mut keys = Vec::new();
    let mut left_out = Vec::new();
    for (number, key) in found.into_iter().enumerate() {
        let read = serde_json::from_value::<Jwk>(key).map_err(|_| "is no JWK".to_owned());
        match read.and_then(|jwk| Key::from_jwk(&jwk)) {
            Ok(Some(key)) => keys.push(key),
            Ok(None) => {}
            Err(fault) => left_out.push(format!("key {number} {fault}")),
        }
    }
    if keys.is_empty() {
        let why = left_out.join(", ");
        return Err(format!("holds no key that verifies signatures ({why})"));
    }
    Ok((keys, left_out))
}
