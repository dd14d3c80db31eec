//! What is wrong with a token.

use super::*;

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
