//! Which keys are taken, and what they verify; rules of channels; and arbitrary input.

use super::*;

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
