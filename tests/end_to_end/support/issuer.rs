//! Makes the tokens of the tests.

use std::time::SystemTime;

use serde_json::{Value, json};
use tidewire::auth::signer::Signer;
use tidewire::config::Config;

/// What [`token`] signs with.
pub(crate) const SECRET: &str = "a key that nobody guesses, at all";

/// Has a server take the tokens of [`token`].
pub(crate) fn trust(config: &mut Config) {
    config.auth.secret = SECRET.into();
}

/// Seconds of Unix time.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A token of `sub` for a minute, with these claims beside or instead.
pub(crate) fn token(sub: &str, more: &Value) -> String {
    token_as(&json!({"alg": "HS256"}), sub, more)
}

/// The same with any header.
pub(crate) fn token_as(header: &Value, sub: &str, more: &Value) -> String {
    let mut claims = json!({"sub": sub, "exp": now_s() + 60});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Signer::from_secret(SECRET.as_bytes()).sign_as(header, &claims).unwrap()
}

/// A token with these rights.
pub(crate) fn with_rights(sub: &str, rights: &Value) -> String {
    token(sub, &json!({ "tidewire": rights }))
}
