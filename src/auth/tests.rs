//! Tokens against keys: every algorithm, and everything that is wrong with one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::grants::{Grants, TokenChannels};
use super::keys::{Key, from_jwks, from_pem};
use super::token::{LEEWAY, MAX_TOKEN_BYTES, TokenFault, TokenRules, VerifiedClaims, verify};
use crate::protocol::{ChannelName, ChannelPattern};

mod keys;
mod tokens;

const SECRET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

/// A private key, and the public one as a JWK.
struct Signer {
    private: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(private: EncodingKey, algorithm: Algorithm) -> Self {
        let mut jwk = Jwk::from_encoding_key(&private, algorithm).unwrap();
        jwk.common.key_algorithm = None;
        let jwk = serde_json::to_value(jwk).unwrap();
        Self { private, jwk }
    }

    fn rsa() -> Self {
        let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
        // PKCS#1 is what PKCS#8 wraps.
        let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8.as_ref()));
        let private = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        Self::new(private, Algorithm::RS256)
    }

    fn ec(algorithm: Algorithm) -> Self {
        let curve = match algorithm {
            Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &aws_lc_rs::rand::SystemRandom::new());
        Self::new(EncodingKey::from_ec_der(pkcs8.unwrap().as_ref()), algorithm)
    }

    fn ed() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
        let private = EncodingKey::from_ed_der(pkcs8.as_ref());
        Self::new(private, Algorithm::EdDSA)
    }

    /// The public key in a set, with further members.
    fn key(&self, members: &Value) -> Value {
        let mut jwk = self.jwk.clone();
        for (name, value) in members.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    fn keys(&self, members: &Value) -> Vec<Key> {
        set(&[self.key(members)])
    }
}

fn set(keys: &[Value]) -> Vec<Key> {
    let text = json!({ "keys": keys }).to_string();
    from_jwks(text.as_bytes()).unwrap().0
}

fn secret() -> (EncodingKey, Vec<Key>) {
    (
        EncodingKey::from_secret(SECRET),
        vec![Key::from_secret(SECRET).unwrap()],
    )
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of these parts, signed for `algorithm` whatever its header says.
fn sign(header: &Value, payload: &str, private: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", encode(header.to_string()), encode(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), private, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

fn good_claims() -> Value {
    json!({ "sub": "alice", "exp": now() + 600, "fanfare": { "subscribe": ["orders"] } })
}

fn token(private: &EncodingKey, algorithm: Algorithm) -> String {
    let header = json!({ "alg": format!("{algorithm:?}"), "typ": "JWT" });
    sign(&header, &good_claims().to_string(), private, algorithm)
}

fn check(token: &str, keys: &[Key]) -> Result<VerifiedClaims, TokenFault> {
    verify(token, keys.iter(), &TokenRules::default())
}

fn fault(token: &str, keys: &[Key]) -> TokenFault {
    check(token, keys).expect_err("it is refused")
}
