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

#[test]
fn every_algorithm_is_verified_by_its_own_key_and_no_other() {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let (private, secret_keys) = secret();
    let (rsa, p256, p384, ed) = (
        Signer::rsa(),
        Signer::ec(ES256),
        Signer::ec(ES384),
        Signer::ed(),
    );
    let (rsa2, ed2) = (Signer::rsa(), Signer::ed());
    let none = json!({});
    let all = [
        (&private, secret_keys, vec![HS256, HS384, HS512]),
        (
            &rsa.private,
            rsa.keys(&none),
            vec![RS256, RS384, RS512, PS256, PS384, PS512],
        ),
        (&p256.private, p256.keys(&none), vec![ES256]),
        (&p384.private, p384.keys(&none), vec![ES384]),
        (&ed.private, ed.keys(&none), vec![EdDSA]),
    ];
    let everything: Vec<Key> = all.iter().flat_map(|(_, keys, _)| keys.clone()).collect();
    for (private, keys, algorithms) in &all {
        for &algorithm in algorithms {
            let token = token(private, algorithm);
            let claims = check(&token, keys).unwrap();
            assert_eq!(claims.claims["sub"], "alice", "{algorithm:?}");
            assert!(
                check(&token, &everything).is_ok(),
                "{algorithm:?} among others"
            );
            for (_, others, other_algorithms) in &all {
                if !other_algorithms.contains(&algorithm) {
                    assert_eq!(
                        fault(&token, others),
                        TokenFault::Algorithm,
                        "{algorithm:?}"
                    );
                }
            }
        }
    }
    // Another key of the same kind.
    assert_eq!(
        fault(&token(&rsa2.private, RS256), &everything),
        TokenFault::Signature
    );
    assert_eq!(
        fault(&token(&ed2.private, EdDSA), &everything),
        TokenFault::Signature
    );
    // A signature of one algorithm under the name of another of the same key.
    let header = json!({ "alg": "PS256" });
    let mixed = sign(&header, &good_claims().to_string(), &rsa.private, RS256);
    assert_eq!(fault(&mixed, &everything), TokenFault::Signature);
}

#[test]
fn a_public_key_is_no_secret_and_none_is_no_algorithm() {
    let rsa = Signer::rsa();
    let keys = rsa.keys(&json!({}));
    let (_, mut both) = secret();
    both.extend(keys.clone());
    // The classic: signed with what everybody knows, as if it were a secret.
    let modulus = BASE64_URL_SAFE_NO_PAD
        .decode(rsa.jwk["n"].as_str().unwrap())
        .unwrap();
    let text = rsa.jwk.to_string();
    for known in [modulus.as_slice(), text.as_bytes(), b"", &[0; 64]] {
        let private = EncodingKey::from_secret(known);
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let token = token(&private, algorithm);
            assert_eq!(fault(&token, &keys), TokenFault::Algorithm);
            assert_eq!(fault(&token, &both), TokenFault::Signature);
        }
    }
    for name in [
        "none", "None", "NONE", "nOnE", "", "HS257", "RS256 ", "ES512", "Ed25519",
    ] {
        let header = encode(json!({ "alg": name }).to_string());
        let payload = encode(good_claims().to_string());
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{payload}.{signature}");
            assert_eq!(fault(&token, &both), TokenFault::Algorithm, "{name:?}");
        }
    }
    // A key that a token brings along is nobody's.
    let other = Signer::rsa();
    let header = json!({ "alg": "RS256", "jwk": other.jwk, "jku": "https://evil.example/jwks" });
    let brought = sign(
        &header,
        &good_claims().to_string(),
        &other.private,
        Algorithm::RS256,
    );
    assert_eq!(fault(&brought, &keys), TokenFault::Signature);
}

#[test]
fn what_is_no_token_is_malformed() {
    let (private, keys) = secret();
    let good = token(&private, Algorithm::HS256);
    let parts: Vec<_> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let header_of = |value: &str| format!("{}.{payload}.{signature}", encode(value));
    for token in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        "\0".into(),
        format!("{header}.{payload}"),
        format!("{good}."),
        format!("{good}.x"),
        format!(".{payload}.{signature}"),
        format!("{header}=.{payload}.{signature}"),
        format!(" {good}"),
        format!("{good}\n"),
        header_of("x"),
        header_of("[]"),
        header_of("null"),
        header_of("{}"),
        header_of(r#"{"alg":1}"#),
        header_of(r#"{"alg":"HS256","kid":7}"#),
        header_of(r#"{"alg":"HS256","crit":"exp"}"#),
        header_of(&format!("{}1{}", "[".repeat(1000), "]".repeat(1000))),
        format!("{}.{payload}.{signature}", encode([0xff, 0xfe])),
    ] {
        let found = fault(&token, &keys);
        assert_eq!(found, TokenFault::Malformed, "{token:?}");
    }
    // Signed as it should be, and no claims.
    let header = json!({ "alg": "HS256" });
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    for payload in [
        "",
        "x",
        "[]",
        "null",
        "7",
        "\"x\"",
        "{",
        r#"{"exp":}"#,
        &deep,
    ] {
        let token = sign(&header, payload, &private, Algorithm::HS256);
        assert_eq!(fault(&token, &keys), TokenFault::Malformed, "{payload}");
    }
}

/// Who signs could mean the other one.
#[test]
fn a_claim_stands_once() {
    let (private, keys) = secret();
    let exp = now() + 600;
    for claims in [
        format!(r#"{{"exp":{exp},"exp":{exp}}}"#),
        format!(r#"{{"exp":{exp},"sub":"a","sub":"b"}}"#),
        format!(r#"{{"exp":{exp},"role":"a","r\u006fle":"a"}}"#),
        format!(r#"{{"exp":{exp},"fanfare":{{}},"fanfare":{{"admin":true}}}}"#),
        format!(r#"{{"exp":{exp},"fanfare":{{"subscribe":[],"subscribe":["*"]}}}}"#),
    ] {
        let header = json!({ "alg": "HS256" });
        let token = sign(&header, &claims, &private, Algorithm::HS256);
        let rule = "names a claim, or a member of one, twice";
        assert_eq!(
            fault(&token, &keys),
            TokenFault::Claim(rule.into()),
            "{claims}"
        );
    }
}

#[test]
fn a_signature_is_all_of_it() {
    let (private, keys) = secret();
    let good = token(&private, Algorithm::HS256);
    let (message, signature) = good.rsplit_once('.').unwrap();
    for signature in [
        "",
        "AAAA",
        &signature[..20],
        &encode([0; 32]),
        &encode([0; 64]),
    ] {
        let token = format!("{message}.{signature}");
        assert_eq!(fault(&token, &keys), TokenFault::Signature, "{signature}");
    }
    // Other claims under the same signature.
    let (header, _) = message.split_once('.').unwrap();
    let payload = encode(json!({ "sub": "admin", "exp": now() + 600 }).to_string());
    let token = format!("{header}.{payload}.{signature}");
    assert_eq!(fault(&token, &keys), TokenFault::Signature);
}

#[test]
fn a_token_is_bounded() {
    let (private, keys) = secret();
    let sized = |bytes: usize| {
        let claims = json!({ "exp": now() + 600, "x": "x".repeat(bytes) });
        sign(
            &json!({ "alg": "HS256" }),
            &claims.to_string(),
            &private,
            Algorithm::HS256,
        )
    };
    assert!(check(&sized(MAX_TOKEN_BYTES * 3 / 4 - 256), &keys).is_ok());
    assert_eq!(fault(&sized(MAX_TOKEN_BYTES), &keys), TokenFault::TooLong);
    assert_eq!(fault(&"a".repeat(1 << 20), &keys), TokenFault::TooLong);
}

#[test]
fn critical_headers_and_encodings_are_not_understood() {
    let (private, keys) = secret();
    for member in [
        json!({ "crit": ["exp"] }),
        json!({ "crit": [] }),
        json!({ "b64": false }),
        json!({ "b64": false, "crit": ["b64"] }),
        json!({ "zip": "DEF" }),
        json!({ "enc": "A128GCM" }),
    ] {
        let mut header = member.clone();
        header["alg"] = json!("HS256");
        let token = sign(
            &header,
            &good_claims().to_string(),
            &private,
            Algorithm::HS256,
        );
        assert_eq!(fault(&token, &keys), TokenFault::Critical, "{member}");
    }
}

#[test]
fn every_claim_has_its_rule() {
    let (private, keys) = secret();
    let rules = TokenRules {
        issuers: vec!["https://id.example".into()],
        audiences: vec!["fanfare".into(), "other".into()],
    };
    let with = |members: Value| {
        let mut claims = good_claims();
        claims["iss"] = json!("https://id.example");
        claims["aud"] = json!("fanfare");
        for (name, value) in members.as_object().unwrap() {
            if *value == json!("absent") {
                claims.as_object_mut().unwrap().remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        let header = json!({ "alg": "HS256" });
        let token = sign(&header, &claims.to_string(), &private, Algorithm::HS256);
        verify(&token, keys.iter(), &rules).map(drop)
    };
    let leeway = LEEWAY.as_secs();
    for good in [
        json!({}),
        json!({ "aud": ["x", "other"] }),
        json!({ "iss": ["x", "https://id.example"] }),
        json!({ "exp": (now() + 60) as f64 + 0.5 }),
        json!({ "exp": u64::from(u32::MAX) * 2 }),
        // The clock of who signs may be a little off.
        json!({ "exp": now() - leeway + 3, "nbf": now() + leeway - 3 }),
        json!({ "nbf": 0 }),
        json!({ "sub": "absent", "fanfare": "absent" }),
        json!({ "fanfare": {} }),
        json!({ "fanfare": { "later": 1, "join": ["a"], "admin": true, "publish": ["*"] } }),
        json!({ "sub": "" , "jti": "1" }),
    ] {
        assert_eq!(with(good.clone()), Ok(()), "{good}");
    }
    let label = |members: &Value| {
        with(members.clone())
            .expect_err(&members.to_string())
            .kind()
            .label()
    };
    for (bad, expected) in [
        (json!({ "exp": "absent" }), "claim"),
        (json!({ "exp": null }), "claim"),
        (json!({ "exp": "9999999999" }), "claim"),
        (json!({ "exp": -1 }), "claim"),
        (json!({ "exp": 1e300 }), "claim"),
        (json!({ "exp": u64::MAX }), "claim"),
        (json!({ "exp": [now() + 600] }), "malformed"),
        (json!({ "exp": true }), "claim"),
        (json!({ "exp": 0 }), "expired"),
        (json!({ "exp": now() - 600 }), "expired"),
        (json!({ "exp": now() - leeway - 3 }), "expired"),
        (json!({ "nbf": now() + 600 }), "not_yet_valid"),
        (json!({ "nbf": now() + leeway + 30 }), "not_yet_valid"),
        (json!({ "nbf": "soon" }), "claim"),
        (json!({ "iss": "absent" }), "claim"),
        (json!({ "iss": "https://id.example/" }), "issuer"),
        (json!({ "iss": ["x"] }), "issuer"),
        (json!({ "iss": 1 }), "claim"),
        (json!({ "aud": "absent" }), "claim"),
        (json!({ "aud": "Fanfare" }), "audience"),
        (json!({ "aud": [] }), "audience"),
        (json!({ "aud": ["x", "y"] }), "audience"),
        (json!({ "aud": { "fanfare": 1 } }), "claim"),
        (json!({ "aud": 1 }), "claim"),
        (json!({ "sub": 1 }), "claim"),
        (json!({ "sub": null }), "claim"),
        (json!({ "jti": ["1"] }), "claim"),
        (json!({ "fanfare": "orders" }), "claim"),
        (json!({ "fanfare": null }), "claim"),
        (json!({ "fanfare": ["orders"] }), "claim"),
        (json!({ "fanfare": { "subscribe": "orders" } }), "claim"),
        (json!({ "fanfare": { "subscribe": [1] } }), "claim"),
        (json!({ "fanfare": { "subscribe": ["a*b"] } }), "claim"),
        (json!({ "fanfare": { "subscribe": [""] } }), "claim"),
        (json!({ "fanfare": { "publish": ["$config"] } }), "claim"),
        (json!({ "fanfare": { "join": ["a*"] } }), "claim"),
        (json!({ "fanfare": { "join": [["a"]] } }), "claim"),
        (json!({ "fanfare": { "admin": "true" } }), "claim"),
        (json!({ "fanfare": { "admin": 1 } }), "claim"),
    ] {
        assert_eq!(label(&bad), expected, "{bad}");
    }
}

#[test]
fn a_token_for_somebody_else_is_refused_where_no_audience_is_configured() {
    let (private, keys) = secret();
    for aud in [
        json!("other"),
        json!(["other"]),
        json!([]),
        json!(1),
        json!(null),
    ] {
        let mut claims = good_claims();
        claims["aud"] = aud.clone();
        let header = json!({ "alg": "HS256" });
        let token = sign(&header, &claims.to_string(), &private, Algorithm::HS256);
        assert_eq!(fault(&token, &keys), TokenFault::Audience, "{aud}");
    }
}

#[test]
fn a_token_ends_with_its_leeway() {
    let (private, keys) = secret();
    let exp = now() + 600;
    let claims = json!({ "exp": exp });
    let token = sign(
        &json!({ "alg": "HS256" }),
        &claims.to_string(),
        &private,
        Algorithm::HS256,
    );
    let end = UNIX_EPOCH + Duration::from_secs(exp) + LEEWAY;
    assert_eq!(check(&token, &keys).unwrap().expires_at, end);
}

#[test]
fn a_kid_chooses_among_keys_and_an_unknown_one_is_told() {
    let (one, two, bare) = (Signer::ed(), Signer::ed(), Signer::ed());
    let keys = set(&[
        one.key(&json!({ "kid": "1" })),
        two.key(&json!({ "kid": "2" })),
    ]);
    let signed = |signer: &Signer, kid: Value| {
        let header = json!({ "alg": "EdDSA", "kid": kid });
        sign(
            &header,
            &good_claims().to_string(),
            &signer.private,
            Algorithm::EdDSA,
        )
    };
    assert!(check(&signed(&one, json!("1")), &keys).is_ok());
    assert!(check(&signed(&two, json!(null)), &keys).is_ok());
    assert_eq!(
        fault(&signed(&one, json!("2")), &keys),
        TokenFault::Signature
    );
    for unknown in ["3", "", "../1", "1\0", "' or 1=1"] {
        assert_eq!(
            fault(&signed(&one, json!(unknown)), &keys),
            TokenFault::UnknownKey
        );
    }
    // A key without an id may be meant by any.
    let keys = set(&[one.key(&json!({ "kid": "1" })), bare.jwk.clone()]);
    assert!(check(&signed(&bare, json!("3")), &keys).is_ok());
    assert_eq!(
        fault(&signed(&two, json!("3")), &keys),
        TokenFault::UnknownKey
    );
}

#[test]
fn a_set_gives_the_keys_that_verify() {
    let (rsa, ed) = (Signer::rsa(), Signer::ed());
    let algorithms = |members: Value| -> Vec<Algorithm> {
        let text = json!({ "keys": [ed.jwk, rsa.key(&members)] }).to_string();
        let (keys, _) = from_jwks(text.as_bytes()).unwrap();
        keys.get(1)
            .map_or(Vec::new(), |key| key.algorithms().to_vec())
    };
    assert_eq!(algorithms(json!({})).len(), 6);
    assert_eq!(
        algorithms(json!({ "alg": "PS384", "use": "sig" })),
        [Algorithm::PS384]
    );
    assert_eq!(algorithms(json!({ "key_ops": ["verify"] })).len(), 6);
    // For something else, or of another kind than it says.
    for other in [
        json!({ "use": "enc" }),
        json!({ "key_ops": ["encrypt"] }),
        json!({ "alg": "RSA-OAEP" }),
        json!({ "alg": "HS256" }),
        json!({ "alg": "none" }),
        json!({ "n": encode([1; 128]) }),
        json!({ "n": encode([0; 256]) }),
        json!({ "n": "!" }),
        json!({ "e": "AQ" }),
        json!({ "e": "AAAB" }),
        json!({ "e": "" }),
        json!({ "e": "Ag" }),
        json!({ "kty": "oct", "k": encode(SECRET) }),
        json!({ "kty": "EC", "crv": "P-256", "x": encode([1; 32]), "y": encode([1; 32]) }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": encode([1; 31]) }),
        json!({ "kty": "AKP" }),
        json!({ "kid": 7 }),
    ] {
        assert_eq!(algorithms(other.clone()), [], "{other}");
    }
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[]}"#,
        r#"{"keys":[7]}"#,
    ] {
        assert!(from_jwks(text.as_bytes()).is_err(), "{text}");
    }
    let many = json!({ "keys": vec![&ed.jwk; 33] }).to_string();
    assert!(from_jwks(many.as_bytes()).is_err());
}

#[test]
fn a_pem_file_gives_its_public_keys_and_nothing_else() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
    let private = pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8.as_ref()));
    // RFC 8410: the algorithm, and the key as a bit string.
    let public = |bytes: &[u8]| {
        let mut der = vec![
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        der.extend_from_slice(bytes);
        pem::encode(&pem::Pem::new("PUBLIC KEY", der))
    };
    use aws_lc_rs::signature::KeyPair;
    let good = public(pair.public_key().as_ref());
    let keys = from_pem(good.as_bytes()).unwrap();
    assert!(
        check(
            &token(&EncodingKey::from_ed_der(pkcs8.as_ref()), Algorithm::EdDSA),
            &keys
        )
        .is_ok()
    );
    let both = format!(
        "# old and new\n{good}\n{}",
        public(Signer::ed().jwk_bytes().as_slice())
    );
    assert_eq!(from_pem(both.as_bytes()).unwrap().len(), 2);
    for (text, told) in [
        (String::new(), "no block"),
        ("secret".into(), "no block"),
        (private.clone(), "private"),
        (format!("{good}{private}"), "private"),
        (private.replace("PRIVATE", "EC PRIVATE"), "private"),
        (good.replace("PUBLIC KEY", "CERTIFICATE"), "certificate"),
        (good.replace("PUBLIC KEY", "X509 CRL"), "no PUBLIC KEY"),
        (good.replace("MCow", "MCox"), "neither"),
        (good[..good.len() - 30].to_owned(), "does not end"),
        (
            format!("{good}{}", &good[..good.len() - 30]),
            "does not end",
        ),
    ] {
        let fault = from_pem(text.as_bytes()).unwrap_err();
        assert!(fault.contains(told), "{told}: {fault}");
    }
}

/// What `openssl` prints.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed (make test installs it)");
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn keys_that_openssl_makes_are_read_or_refused_with_the_reason() {
    use Algorithm::{ES256, ES384, EdDSA, PS384, RS256};
    let curve = |name: &str| format!("ec_paramgen_curve:{name}");
    let bits = |bits: u32| format!("rsa_keygen_bits:{bits}");
    type Read = fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>;
    let (rsa, ec, ed): (Read, Read, Read) = (
        EncodingKey::from_rsa_pem,
        EncodingKey::from_ec_pem,
        EncodingKey::from_ed_pem,
    );
    for (kind, option, read, algorithms, told) in [
        ("RSA", bits(2048), rsa, &[RS256, PS384][..], ""),
        ("RSA", bits(1024), rsa, &[], "1024 bits"),
        ("RSA-PSS", bits(2048), rsa, &[], "neither"),
        ("EC", curve("P-256"), ec, &[ES256], ""),
        ("EC", curve("P-384"), ec, &[ES384], ""),
        ("EC", curve("P-521"), ec, &[], "neither"),
        ("EC", curve("secp256k1"), ec, &[], "no point"),
        ("ED25519", String::new(), ed, &[EdDSA], ""),
        ("ED448", String::new(), ed, &[], "neither"),
    ] {
        let mut arguments = vec!["genpkey", "-algorithm", kind];
        if !option.is_empty() {
            arguments.extend(["-pkeyopt", &option]);
        }
        let private = openssl(&arguments, b"");
        let mut public = vec![openssl(&["pkey", "-pubout"], &private)];
        if kind == "RSA" {
            // PKCS#1, as older tools write it.
            public.push(openssl(&["rsa", "-RSAPublicKey_out"], &private));
        }
        for public in public {
            let keys = from_pem(&public);
            if algorithms.is_empty() {
                let fault = keys.unwrap_err();
                assert!(fault.contains(told), "{kind} {option}: {fault}");
                continue;
            }
            let keys = keys.unwrap_or_else(|fault| panic!("{kind} {option}: {fault}"));
            for &algorithm in algorithms {
                let token = token(&read(&private).unwrap(), algorithm);
                assert!(check(&token, &keys).is_ok(), "{algorithm:?}");
            }
        }
    }
}

impl Signer {
    fn jwk_bytes(&self) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD
            .decode(self.jwk["x"].as_str().unwrap())
            .unwrap()
    }
}

#[test]
fn weak_secrets_are_refused_without_being_repeated() {
    for weak in [
        "",
        "secret",
        "0123456789abcdef0123456789abcde",
        "abcabcabcabcabcabcabcabcabcabcabcabcabc",
        "a-string-secret-at-least-256-bits-long",
        "!ChangeThisMercureHubJWTSecretKey!",
    ] {
        let fault = Key::from_secret(weak.as_bytes()).unwrap_err();
        assert!(weak.len() < 10 || !fault.contains(weak), "{fault}");
    }
    let algorithms = |bytes: usize| {
        Key::from_secret(&SECRET[..bytes])
            .unwrap()
            .algorithms()
            .len()
    };
    assert_eq!([32, 47, 48, 63, 64].map(algorithms), [1, 1, 2, 2, 3]);
    let key = Key::from_secret(SECRET).unwrap();
    assert!(!format!("{key:?}").contains("0123"));
}

fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

#[test]
fn a_rule_gives_every_subject_its_own_channels() {
    for (rule, subject, channel, allowed) in [
        ("user.{sub}", Some("42"), "user.42", true),
        ("user.{sub}", Some("42"), "user.421", false),
        ("user.{sub}", None, "user.42", false),
        ("user.{sub}", Some(""), "user.", false),
        ("user.{sub}", Some("*"), "user.42", false),
        ("user.{sub}", Some("4*"), "user.42", false),
        ("user.{sub}", Some("a b"), "user.a", false),
        ("user.{sub}", Some("{sub}"), "user.x", false),
        ("user.{sub}.*", Some("42"), "user.42.inbox", true),
        ("user.{sub}.*", Some("4"), "user.42.inbox", false),
        ("user.{sub}.*", Some("a.b"), "user.a.b.inbox", false),
        ("user.{sub}.inbox", Some("a.b"), "user.a.b.inbox", true),
        ("{sub}", Some("orders"), "orders", true),
        ("news.*", None, "news.eu", true),
        ("news.*", Some("x"), "orders", false),
    ] {
        let parsed = TokenChannels::parse(rule).unwrap();
        assert_eq!(parsed.to_string(), rule);
        let found = parsed.allows(subject, &name(channel));
        assert_eq!(found, allowed, "{rule} {subject:?} {channel}");
    }
    for rule in [
        "",
        "user.{sub}*",
        "{sub}*",
        "{sub}{sub}",
        "a*{sub}",
        "a b",
        "user.{sub",
        "$x",
        "{id}",
    ] {
        assert!(TokenChannels::parse(rule).is_err(), "{rule}");
    }
}

proptest! {
    /// Whatever a token is changed to, it is refused.
    #[test]
    fn a_changed_token_is_refused(at in any::<prop::sample::Index>(), to in "[ -~]") {
        let (private, keys) = secret();
        let good = token(&private, Algorithm::HS256);
        let at = at.index(good.len());
        let changed = format!("{}{to}{}", &good[..at], &good[at + 1..]);
        prop_assume!(changed != good);
        prop_assert!(check(&changed, &keys).is_err());
    }

    #[test]
    fn any_text_is_refused(text in ".{0,200}", parts in prop::collection::vec("[A-Za-z0-9_-]{0,60}", 0..5)) {
        let (_, keys) = secret();
        prop_assert!(check(&text, &keys).is_err());
        prop_assert!(check(&parts.join("."), &keys).is_err());
    }

    /// Any claims that are signed are read or refused, and what is granted is what they say.
    #[test]
    fn any_grants_are_read_or_refused(
        subscribe in prop::collection::vec("[a-c.*$]{0,4}", 0..4),
        channel in "[a-c.]{1,4}",
    ) {
        let claims = json!({ "fanfare": { "subscribe": subscribe } });
        let grants = Grants::read(claims.as_object().unwrap());
        let patterns: Result<Vec<_>, _> = subscribe.iter().map(|text| ChannelPattern::parse(text)).collect();
        prop_assert_eq!(grants.is_ok(), patterns.is_ok());
        if let Ok(grants) = grants {
            let allowed = subscribe.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => channel.starts_with(prefix),
                None => *pattern == channel,
            });
            prop_assert_eq!(grants.may_read(&name(&channel)), allowed);
            prop_assert!(!grants.may_publish(&name(&channel)) && !grants.admin);
        }
    }

    /// No two subjects share a channel under a rule with `{sub}`.
    #[test]
    fn subjects_share_no_channel(
        before in "[ab.]{0,3}",
        after in "([.ab-][ab.-]{0,2}[*]?)?",
        one in "[ab.*-]{1,4}",
        two in "[ab.*-]{1,4}",
        channel in "[ab.-]{1,9}",
    ) {
        prop_assume!(one != two);
        let rule = TokenChannels::parse(&format!("{before}{{sub}}{after}")).unwrap();
        let channel = name(&channel);
        prop_assert!(!(rule.allows(Some(&one), &channel) && rule.allows(Some(&two), &channel)));
    }

    #[test]
    fn any_pem_and_any_set_is_read_or_refused(text in ".{0,300}", block in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = from_pem(text.as_bytes());
        let _ = from_jwks(text.as_bytes());
        let pem = pem::encode(&pem::Pem::new("PUBLIC KEY", block));
        let _ = from_pem(pem.as_bytes());
    }
}
