//! Which tokens are taken: a table of those that must not be, and that any text ends in an answer.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::auth::keyring::Defaults;
use crate::auth::signer::Signer;

const RSA: &str = include_str!("../../../tests/keys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("../../../tests/keys/rsa.pub.pem");
const SECRET: &str = "a key that nobody guesses, at all";
const NOW: u64 = 1_800_000_000;
const RULES: Rules = Rules { leeway_s: 5, lifetime_s_max: 3_600, subject_bytes_max: 249 };

/// One secret named `k`, bound to an issuer and an audience; the same named `free` and unbound; and an RSA key.
fn keys() -> Keyring {
    let k = URL_SAFE_NO_PAD.encode(SECRET);
    let named = json!({"kty": "oct", "alg": "HS256", "kid": "k", "k": k, "iss": "issuer", "aud": "us"});
    let free = json!({"kty": "oct", "alg": "HS256", "kid": "free", "k": k});
    let mut block = pem::parse(RSA_PUBLIC).unwrap().contents().to_vec();
    let exponent = block.split_off(block.len() - 5);
    assert_eq!(exponent, [2, 3, 1, 0, 1]);
    let n = URL_SAFE_NO_PAD.encode(&block[block.len() - 256..]);
    let rsa = json!({"kty": "RSA", "kid": "rsa", "n": n, "e": "AQAB"});
    Keyring::parse(&json!({"keys": [named, free, rsa]}).to_string(), Defaults::default()).unwrap()
}

fn signer() -> Signer {
    Signer::from_secret(SECRET.as_bytes())
}

fn claims(more: &Value) -> Value {
    let mut claims = json!({"sub": "alice", "exp": NOW + 60});
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            _ => claims[name] = value.clone(),
        }
    }
    claims
}

fn header(more: &Value) -> Value {
    let mut header = json!({"alg": "HS256", "kid": "free"});
    header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    header
}

/// What a token with these differences from a sound one gets.
fn verified(header_more: &Value, claims_more: &Value) -> Result<Identity, TokenError> {
    let token = signer().sign_as(&header(header_more), &claims(claims_more)).unwrap();
    verify(&token, &keys(), &RULES, NOW)
}

#[test]
fn a_sound_token_is_an_identity() {
    let identity = verified(
        &json!({"typ": "JWT", "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/cert"}),
        &json!({"sub": "alice@example.org", "jti": "7", "iat": NOW, "nbf": NOW, "iss": "anybody", "role": ["x"],
                "tidewire": {"subscribe": ["a.>"]}}),
    )
    .expect("sound, and what it names is not fetched");
    assert_eq!(&*identity.subject, "alice@example%2Eorg");
    assert_eq!(identity.token_id.as_deref(), Some("7"));
    assert_eq!((identity.issued_s, identity.expires_s), (Some(NOW), Some(NOW + 60)));
    assert!(identity.grants.allow_name(crate::auth::grants::Right::Subscribe, "a.b"));

    let bound = json!({"iss": "issuer", "aud": ["them", "us"]});
    assert!(verified(&json!({"kid": "k"}), &bound).is_ok());
    let rsa = Signer::parse(RSA, Some("rsa")).unwrap().sign(&claims(&json!({}))).unwrap();
    assert!(verify(&rsa, &keys(), &RULES, NOW).is_ok());
    assert_eq!(
        verified(&json!({}), &json!({})).unwrap().grants,
        Grants::default(),
        "without the claim: nothing"
    );
}

#[test]
fn what_must_not_be_taken_is_not() {
    use TokenError as E;
    let no = json!({});
    let kid = |id: &str| json!({ "kid": id });
    let rows: &[(Value, Value, E)] = &[
        (json!({"alg": "none"}), no.clone(), E::Algorithm),
        (json!({"alg": "nOnE"}), no.clone(), E::Algorithm),
        (json!({"alg": "hs256"}), no.clone(), E::Algorithm),
        (json!({"alg": "HS512"}), no.clone(), E::Algorithm),
        (json!({"kid": null}), no.clone(), E::UnknownKey),
        (json!({"alg": "none", "kid": "k"}), no.clone(), E::Algorithm),
        (json!({"alg": "HS512", "kid": "k"}), no.clone(), E::Algorithm),
        (json!({"alg": "HS256", "kid": "rsa"}), no.clone(), E::Algorithm),
        (json!({"alg": "RS256", "kid": "k"}), no.clone(), E::Algorithm),
        (json!({"alg": 1}), no.clone(), E::Claim("the header")),
        (kid("unknown"), no.clone(), E::UnknownKey),
        (kid("../../etc/passwd"), no.clone(), E::UnknownKey),
        (kid(""), no.clone(), E::UnknownKey),
        (json!({"kid": 7}), no.clone(), E::Claim("the header")),
        (json!({"crit": ["exp"]}), no.clone(), E::Critical),
        (json!({"crit": []}), no.clone(), E::Critical),
        (json!({"crit": null}), no.clone(), E::Critical),
        (json!({"b64": false}), no.clone(), E::Critical),
        (no.clone(), json!({"exp": NOW - 5}), E::Expired),
        (no.clone(), json!({"exp": 0}), E::Expired),
        (no.clone(), json!({"exp": null}), E::Claim("the claims")),
        (no.clone(), json!({"exp": "never"}), E::Claim("the claims")),
        (no.clone(), json!({"exp": 1e300}), E::Claim("the claims")),
        (no.clone(), json!({"exp": 1_800_000_060.5}), E::Claim("the claims")),
        (no.clone(), json!({"exp": -1}), E::Claim("the claims")),
        (no.clone(), json!({"exp": NOW + 3_600 + 6}), E::Lifetime),
        (no.clone(), json!({"exp": 13_569_465_600_u64}), E::Lifetime),
        (no.clone(), json!({"exp": u64::MAX}), E::Lifetime),
        (no.clone(), json!({"nbf": NOW + 6}), E::NotYet),
        (no.clone(), json!({"iat": NOW + 6}), E::NotYet),
        (no.clone(), json!({"nbf": "1800000000"}), E::Claim("the claims")),
        (no.clone(), json!({"sub": null}), E::Claim("the claims")),
        (no.clone(), json!({"sub": 7}), E::Claim("the claims")),
        (no.clone(), json!({"aud": "us"}), E::Audience),
        (kid("k"), json!({"iss": "issuer"}), E::Audience),
        (kid("k"), json!({"iss": "issuer", "aud": "them"}), E::Audience),
        (kid("k"), json!({"iss": "issuer", "aud": []}), E::Audience),
        (kid("k"), json!({"iss": "other", "aud": "us"}), E::Issuer),
        (kid("k"), json!({"aud": "us"}), E::Issuer),
        (
            no.clone(),
            json!({"tidewire": {"subscribe": ["a..b"]}}),
            E::Grants(GrantsError::Pattern(crate::pattern::PatternError::EmptyToken { at: 2 })),
        ),
        (no.clone(), json!({"tidewire": {"subscribes": []}}), E::Claim("the claims")),
    ];
    for (header, claims, expected) in rows {
        assert_eq!(verified(header, claims).as_ref(), Err(expected), "{header} {claims}");
    }
    for sub in [String::new(), "x".repeat(129), ".".repeat(84)] {
        assert!(matches!(verified(&no, &json!({ "sub": sub })), Err(E::Claim(_))), "{sub}");
    }
    for jti in [String::new(), "x".repeat(129)] {
        assert!(matches!(verified(&no, &json!({ "jti": jti })), Err(E::Claim(_))), "{jti}");
    }
}

#[test]
fn a_key_of_pem_is_called_what_its_issuer_calls_it() {
    let mut keys = Keyring::parse(RSA_PUBLIC, Defaults::default()).unwrap();
    keys.add_secret(SECRET, Defaults::default()).unwrap();
    let rsa = |id| Signer::parse(RSA, id).unwrap().sign(&claims(&json!({}))).unwrap();
    for token in [rsa(None), rsa(Some("any"))] {
        assert!(verify(&token, &keys, &RULES, NOW).is_ok());
    }
    let hs =
        |kid: &Value| signer().sign_as(&json!({"alg": "HS256", "kid": kid}), &claims(&json!({}))).unwrap();
    assert!(verify(&hs(&Value::Null), &keys, &RULES, NOW).is_ok());
    assert_eq!(
        verify(&hs(&json!("any")), &keys, &RULES, NOW),
        Err(TokenError::UnknownKey),
        "a secret has no issuer"
    );
}

#[test]
fn clocks_may_differ_a_little() {
    for (claims, sound) in [
        (json!({"exp": NOW - 4}), true),
        (json!({"exp": NOW - 5}), false),
        (json!({"nbf": NOW + 5}), true),
        (json!({"exp": NOW + 3_605}), true),
    ] {
        assert_eq!(verified(&json!({}), &claims).is_ok(), sound, "{claims}");
    }
}

#[test]
fn forged_and_damaged_tokens_are_refused() {
    let good = signer().sign_as(&header(&json!({})), &claims(&json!({}))).unwrap();
    let [head, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let alone = part(r#"{"alg":"none","kid":"free"}"#);
    // Signed with the public key as if it were a secret.
    let confused = Signer::from_secret(RSA_PUBLIC.as_bytes());
    let more = claims(&json!({"sub": "mallory"})).to_string();
    let twice = part(r#"{"sub":"a","exp":1800000060,"sub":"b"}"#);
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let rows = [
        confused.sign_as(&json!({"alg": "HS256", "kid": "rsa"}), &claims(&json!({}))).unwrap(),
        confused.sign_as(&json!({"alg": "RS256", "kid": "rsa"}), &claims(&json!({}))).unwrap(),
        Signer::from_secret(b"another key that nobody guesses!!")
            .sign_as(&header(&json!({})), &claims(&json!({})))
            .unwrap(),
        format!("{alone}.{body}."),
        format!("{alone}.{body}.{signature}"),
        format!("{head}.{}.{signature}", part(&more)),
        format!("{head}.{body}."),
        format!("{head}.{body}.{flipped}{}", &signature[1..]),
        format!("{head}.{body}.{}", &signature[..signature.len() - 1]),
        format!("{good}="),
        format!("{good}.{signature}"),
        format!(" {good}"),
        format!("{head}.{body}"),
        format!("{head}..{signature}"),
        format!(".{body}.{signature}"),
        "..".into(),
        String::new(),
        format!("{}.{body}.{signature}", part("[\"HS256\"]")),
        good.replace('.', ".."),
        good.clone() + &"A".repeat(TOKEN_BYTES_MAX),
        "A".repeat(1 << 20),
    ];
    for token in rows {
        assert!(verify(&token, &keys(), &RULES, NOW).is_err(), "{token}");
    }
    let signed = |body: &str| {
        let message = format!("{head}.{body}");
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes()),
            jsonwebtoken::Algorithm::HS256,
        );
        format!("{message}.{}", signature.unwrap())
    };
    assert!(verify(&signed(body), &keys(), &RULES, NOW).is_ok(), "the row below differs in its body alone");
    assert_eq!(verify(&signed(&twice), &keys(), &RULES, NOW), Err(TokenError::Claim("the claims")));
    let deep = part(&format!("{}{}", "[".repeat(3_000), "]".repeat(3_000)));
    assert!(verify(&signed(&deep), &keys(), &RULES, NOW).is_err());
}

proptest! {
    /// Any text ends in an answer, and a token that is changed anywhere is refused.
    #[test]
    fn any_text_is_answered(text in "[A-Za-z0-9_.-]{0,200}", at in any::<prop::sample::Index>(), byte in "[A-Za-z0-9_-]") {
        let keys = keys();
        prop_assert!(verify(&text, &keys, &RULES, NOW).is_err());
        let good = signer().sign_as(&header(&json!({})), &claims(&json!({}))).unwrap();
        prop_assert!(verify(&good, &keys, &RULES, NOW).is_ok());
        let at = at.index(good.len());
        let changed = format!("{}{byte}{}", &good[..at], &good[at + 1..]);
        if changed != good {
            prop_assert!(verify(&changed, &keys, &RULES, NOW).is_err(), "{changed}");
        }
    }
}
