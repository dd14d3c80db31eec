//! Tokens, signed as an application would.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// A secret for the gateway and its issuer. Its beginning is what tests look for in logs.
pub const SECRET: &str = "canary-7f3a-of-the-secret-that-signs-tokens";

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

/// A token of these claims, with the secret, for ten minutes unless they say otherwise.
pub fn token(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &in_force(claims), &key).unwrap()
}

/// A token with these grants.
#[allow(clippy::needless_pass_by_value, reason = "grants are written in place")]
pub fn granting(grants: Value) -> String {
    token(json!({ "sub": "alice", "fanfare": grants }))
}

fn in_force(mut claims: Value) -> Value {
    if claims.get("exp").is_none() {
        claims["exp"] = json!(now() + 600);
    }
    claims
}

/// A key pair of an issuer.
pub struct Issuer {
    private: EncodingKey,
    jwk: Value,
    kid: String,
}

impl Issuer {
    /// An Ed25519 pair with an id.
    pub fn new(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
        let private = EncodingKey::from_ed_der(pkcs8.as_ref());
        let mut jwk = Jwk::from_encoding_key(&private, Algorithm::EdDSA).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        Self {
            private,
            jwk: serde_json::to_value(jwk).unwrap(),
            kid: kid.to_owned(),
        }
    }

    /// A token of these claims, signed by the pair and naming it.
    pub fn token(&self, claims: Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        encode(&header, &in_force(claims), &self.private).unwrap()
    }

    /// The public key, as it stands in a set.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// The public key in PEM (RFC 8410, section 4).
    pub fn pem(&self) -> String {
        use base64::Engine;
        let x = self.jwk["x"].as_str().unwrap();
        let x = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(x).unwrap();
        let mut der = vec![
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        der.extend_from_slice(&x);
        pem::encode(&pem::Pem::new("PUBLIC KEY", der))
    }
}
