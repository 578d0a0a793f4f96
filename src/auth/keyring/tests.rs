//! Which files are taken, and what the others are told.

use serde_json::{Value, json};

use super::*;
use crate::auth::signer::{self, Signer};

pub(crate) const RSA: &str = include_str!("../../../tests/keys/rsa.pem");
pub(crate) const RSA_PUBLIC: &str = include_str!("../../../tests/keys/rsa.pub.pem");
const P256: &str = include_str!("../../../tests/keys/p256.pem");
const P256_PUBLIC: &str = include_str!("../../../tests/keys/p256.pub.pem");
const ED25519: &str = include_str!("../../../tests/keys/ed25519.pem");
const ED25519_PUBLIC: &str = include_str!("../../../tests/keys/ed25519.pub.pem");

fn parse(text: &str) -> Result<Keyring, KeyError> {
    Keyring::parse(text, Defaults::default())
}

/// The base64url of that many bytes.
fn bytes(count: usize) -> String {
    URL_SAFE_NO_PAD.encode(vec![7; count])
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// The public key of PEM as a JWK.
fn jwk(pem_text: &str) -> Value {
    let block = pem::parse(pem_text).expect("PEM");
    let der = block.contents();
    if let Some(point) = der.strip_prefix(P256_PREFIX) {
        let part = |range: &[u8]| URL_SAFE_NO_PAD.encode(range);
        return json!({"kty": "EC", "crv": "P-256", "x": part(&point[1..33]), "y": part(&point[33..])});
    }
    if let Some(point) = der.strip_prefix(ED25519_PREFIX) {
        return json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(point)});
    }
    // A modulus of 2,048 bits stands at the end, before the exponent 65537 with its tag and length.
    let (modulus, exponent) = der[..].split_at(der.len() - 5);
    assert_eq!(exponent, [2, 3, 1, 0, 1]);
    json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&modulus[modulus.len() - 256..]), "e": "AQAB"})
}

#[test]
fn every_kind_of_key_checks_what_its_private_half_has_signed() {
    let rows = [
        (RSA, RSA_PUBLIC, Algorithm::Rs256),
        (P256, P256_PUBLIC, Algorithm::Es256),
        (ED25519, ED25519_PUBLIC, Algorithm::EdDsa),
    ];
    for (private, public, algorithm) in rows {
        let token =
            Signer::parse(private, None).expect("a private key").sign(&json!({"a": 1})).expect("signs");
        let (message, signature) = token.rsplit_once('.').expect("a token");
        for text in [public.to_owned(), set(&[jwk(public)])] {
            let ring = parse(&text).expect("a public key");
            let key = ring.find(None, Some(algorithm)).expect("the key is for its algorithm");
            assert!(key.has_signed(message, signature), "{algorithm:?}");
            assert!(!key.has_signed("other", signature), "{algorithm:?}");
            assert!(!key.has_signed(message, ""), "{algorithm:?}");
            assert!(!key.has_signed(message, &signature[1..]), "{algorithm:?}");
        }
    }
    let all = [RSA_PUBLIC, P256_PUBLIC, ED25519_PUBLIC].concat();
    assert_eq!(parse(&all).expect("three keys").len(), 3);
}

#[test]
fn secrets_sign_with_each_hash() {
    for (algorithm, least) in [(Algorithm::Hs256, 32), (Algorithm::Hs384, 48), (Algorithm::Hs512, 64)] {
        let key =
            |count| set(&[json!({"kty": "oct", "alg": algorithm.label(), "kid": "a", "k": bytes(count)})]);
        assert!(matches!(parse(&key(least - 1)), Err(KeyError::Key(1, _))), "{algorithm:?}");
        let ring = parse(&key(least)).expect("long enough");
        let token = Signer::parse(&key(least), None).expect("a secret").sign(&json!({})).expect("signs");
        let (message, signature) = token.rsplit_once('.').expect("a token");
        assert!(ring.find(Some("a"), None).expect("it is named").has_signed(message, signature));
    }
    let made = signer::new_jwks("dev", &[9; 32]);
    assert_eq!(
        parse(&made).expect("a set").find(Some("dev"), None).map(Key::algorithm),
        Some(Algorithm::Hs256)
    );
}

#[test]
fn keys_bind_issuer_and_audience_before_the_settings_do() {
    let oct = |id: &str, more: Value| {
        let mut key = json!({"kty": "oct", "alg": "HS256", "kid": id, "k": bytes(32)});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let text = set(&[oct("own", json!({"iss": "i", "aud": "a"})), oct("none", json!({}))]);
    let ring = Keyring::parse(&text, Defaults { issuer: Some("di"), audience: Some("da") }).unwrap();
    let bound = |id| ring.find(Some(id), None).map(|key| (key.issuer(), key.audience()));
    assert_eq!(bound("own"), Some((Some("i"), Some("a"))));
    assert_eq!(bound("none"), Some((Some("di"), Some("da"))));
}

#[test]
fn keys_for_something_else_are_passed_over() {
    let with = |key: &Value, more: Value| {
        let mut key = key.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let (rsa, p256) = (jwk(RSA_PUBLIC), jwk(P256_PUBLIC));
    let foreign = [
        with(&rsa, json!({"use": "enc", "alg": "RSA-OAEP"})),
        with(&rsa, json!({"alg": "RS512"})),
        with(&rsa, json!({"key_ops": ["sign"]})),
        json!({"kty": "EC", "crv": "P-384", "alg": "ES384", "x": bytes(48), "y": bytes(48)}),
        json!({"kty": "AKP", "alg": "ML-DSA-44"}),
    ];
    let ring = parse(&set(&[&foreign[..], std::slice::from_ref(&p256)].concat())).expect("one is of use");
    assert_eq!((ring.len(), ring.passed_over().len()), (1, foreign.len()));
    assert!(matches!(parse(&set(&foreign)), Err(KeyError::Empty)));

    // As some write numbers: with a zero before them.
    let n = URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap();
    let padded = with(&rsa, json!({"n": URL_SAFE_NO_PAD.encode([&[0], &n[..]].concat()), "e": "AAEAAQ"}));
    let ring = parse(&set(&[padded])).expect("the same number");
    let token = Signer::parse(RSA, None).unwrap().sign(&json!({})).unwrap();
    let (message, signature) = token.rsplit_once('.').unwrap();
    assert!(ring.find(None, Some(Algorithm::Rs256)).unwrap().has_signed(message, signature));
    assert_eq!(ring.hashes().collect::<Vec<_>>(), parse(&set(&[rsa])).unwrap().hashes().collect::<Vec<_>>());
}

#[test]
fn wrong_files_are_told_which_key_and_why() {
    let oct = json!({"kty": "oct", "alg": "HS256", "k": bytes(32)});
    let with = |key: &Value, more: Value| {
        let mut key = key.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let (rsa, p256, ed) = (jwk(RSA_PUBLIC), jwk(P256_PUBLIC), jwk(ED25519_PUBLIC));
    let rows: &[(String, &str)] = &[
        (String::new(), "neither"),
        ("{".into(), "neither"),
        ("{\"keys\": {}}".into(), "neither"),
        ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n".into(), "neither"),
        (set(&[]), "there is no key"),
        (set(&[json!(1)]), "key 1: not a JWK"),
        (set(&[oct.clone(), json!({"kty": "oct", "k": 1})]), "key 2: not a JWK"),
        (set(&[json!({"kty": "oct", "k": bytes(32)})]), "key 1: alg of a secret"),
        (set(&[with(&oct, json!({"alg": "none"}))]), "key 1: alg of a secret"),
        (set(&[with(&oct, json!({"alg": "RS256"}))]), "key 1: alg of a secret"),
        (set(&[with(&oct, json!({"k": bytes(31)}))]), "key 1: a secret shorter"),
        (set(&[with(&oct, json!({"k": "+"}))]), "key 1: k is missing"),
        (set(&[with(&rsa, json!({"d": "AQ"}))]), "key 1: a private key"),
        (set(&[with(&rsa, json!({"n": bytes(255)}))]), "key 1: an RSA key of less"),
        (set(&[with(&p256, json!({"x": bytes(31)}))]), "key 1: x and y"),
        (set(&[with(&ed, json!({"x": bytes(33)}))]), "key 1: x of an Ed25519"),
        (set(&[json!({"kty": "oct2"})]), "there is no key"),
        (set(&[with(&rsa, json!({"n": bytes(1025)}))]), "key 1: an RSA key of less"),
        (set(&[with(&rsa, json!({"e": "Ag"}))]), "key 1: n and e"),
        (set(&[with(&rsa, json!({"e": "AQ"}))]), "key 1: n and e"),
        (set(&[with(&rsa, json!({"e": bytes(9)}))]), "key 1: n and e"),
        (set(&[json!(["oct", "a", "HS256"])]), "key 1: not a JWK"),
        (
            format!(
                "{{\"keys\":[{{\"kty\":\"oct\",\"alg\":\"HS256\",\"k\":\"{0}\",\"k\":\"{0}\"}}]}}",
                bytes(32)
            ),
            "key 1: not a JWK",
        ),
        (P256_PUBLIC.to_owned() + &RSA_PUBLIC[..RSA_PUBLIC.len() - 30], "neither"),
        (set(&[oct.clone(), oct.clone()]), "key 2: an earlier key"),
        (set(&[with(&oct, json!({"kid": "a"})), with(&rsa, json!({"kid": "a"}))]), "key 2: an earlier key"),
        (set(&vec![oct; KEYS_MAX + 1]), "101 keys; at most 100"),
        (RSA.into(), "key 1: a private key"),
        ([P256_PUBLIC, RSA].concat(), "key 2: a private key"),
        ([P256_PUBLIC, P256_PUBLIC].concat(), "key 2: an earlier key"),
        (include_str!("../../../tests/keys/p384.pub.pem").into(), "key 1: neither"),
        (include_str!("../../../tests/keys/rsa1024.pub.pem").into(), "key 1: neither"),
        (P256_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE"), "key 1: not a PUBLIC KEY"),
    ];
    for (text, expected) in rows {
        let error = parse(text).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}, not {expected}");
    }
}

#[test]
fn no_key_is_shown() {
    let secret = "a key that nobody guesses, at all";
    let mut ring = parse(&signer::new_jwks("dev", &[9; 32])).unwrap();
    ring.add_secret(secret, Defaults::default()).unwrap();
    let shown = format!("{ring:?} {:?}", Signer::from_secret(secret.as_bytes()));
    assert!(!shown.contains("nobody") && !shown.contains(&bytes(1)[..1].repeat(4)), "{shown}");
    assert!(shown.contains("dev"));
}
