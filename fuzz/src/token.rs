//! Tokens: a text that nobody has signed is refused, and what is signed is taken only where header and claims are sound.

use std::sync::LazyLock;

use serde_json::Value;
use tidewire::auth::keyring::{Defaults, Keyring};
use tidewire::auth::signer::Signer;
use tidewire::auth::token::{Rules, verify};
use tidewire::pattern;

const SECRET: &str = "a key that nobody guesses, at all";
const NOW_S: u64 = 1_800_000_000;
const RULES: Rules = Rules { leeway_s: 5, lifetime_s_max: 3_600, subject_bytes_max: 249 };

static KEYS: LazyLock<Keyring> = LazyLock::new(|| {
    let mut keys = Keyring::default();
    keys.add_secret(SECRET, Defaults::default()).expect("long enough");
    keys
});

/// The first line is a header, the rest claims, both JSON; the whole is a token, too.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(verify(text, &KEYS, &RULES, NOW_S).is_err(), "nobody has signed it");
    let (header, claims) = text.split_once('\n').unwrap_or((r#"{"alg":"HS256"}"#, text));
    let [Ok(header), Ok(claims)] = [header, claims].map(serde_json::from_str::<Value>) else { return };
    let token = Signer::from_secret(SECRET.as_bytes()).sign_as(&header, &claims).expect("a secret signs");
    let Ok(identity) = verify(&token, &KEYS, &RULES, NOW_S) else { return };
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none(), "{header}");
    let expires_s = identity.expires_s.expect("a token has an end");
    assert_eq!(claims["exp"], expires_s);
    assert!((NOW_S - 4..=NOW_S + 3_605).contains(&expires_s), "{claims}");
    let inbox = format!("$user.{}", identity.subject);
    assert!(pattern::check_name(&inbox, 255).is_ok() && !identity.subject.contains('.'), "{inbox}");
    assert!(claims["sub"].as_str().is_some_and(|sub| !sub.is_empty() && sub.len() <= 128), "{claims}");
}
