//! A token: from its text to an identity, or the reason why not. Nothing of it is believed before its signature is checked, but
//! for what chooses the key. Pure; the time is given.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::grants::{Claim, Grants, GrantsError};
use super::keyring::{Algorithm, Key, Keyring};
use super::{ID_BYTES_MAX, Identity, channel_token};

/// The longest token, in bytes. It fits a request head beside what else is there.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// What a token is checked against, beside its key.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// By how much clocks may differ, in seconds.
    pub leeway_s: u64,
    /// How far `exp` may be away, in seconds.
    pub lifetime_s_max: u64,
    /// The longest subject as a token of a channel name, in bytes.
    pub subject_bytes_max: usize,
}

/// Why a token is refused. For the log of the server: whoever sent it learns only that it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over [`TOKEN_BYTES_MAX`].
    #[error("it is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not three parts in base64 without padding, the first two of them JSON objects.
    #[error("it is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// `crit` or `b64` in its header.
    #[error("its header demands what is not understood here (crit or b64)")]
    Critical,
    /// No key of that `kid`, and none without a name for its `alg`.
    #[error("no key has its kid")]
    UnknownKey,
    /// `alg` is not the key's.
    #[error("its alg is not its key's")]
    Algorithm,
    /// Not signed by the key, or changed since.
    #[error("its signature is wrong")]
    Signature,
    /// A claim is missing or of the wrong type.
    #[error("a claim is missing or wrong: {0}")]
    Claim(&'static str),
    /// `nbf` or `iat` is in the future.
    #[error("it is not valid yet")]
    NotYet,
    /// `exp` has passed.
    #[error("it has expired")]
    Expired,
    /// `exp` is too far away.
    #[error("it is valid for longer than auth.token_lifetime_max")]
    Lifetime,
    /// `iss` is not the key's.
    #[error("its iss is not its key's")]
    Issuer,
    /// It is for somebody else.
    #[error("its aud is not this server")]
    Audience,
    /// What it allows is not understood.
    #[error("its claim tidewire is wrong: {0}")]
    Grants(GrantsError),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// There in any form, even `null`.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
    #[serde(default, deserialize_with = "present")]
    b64: bool,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// RFC 7519 section 4.1. Instants are whole seconds: what is not a number, or no whole one, is refused.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    nbf: Option<u64>,
    iat: Option<u64>,
    iss: Option<String>,
    aud: Option<Audience>,
    jti: Option<String>,
    #[serde(default)]
    tidewire: Claim,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, who: &str) -> bool {
        match self {
            Self::One(one) => one == who,
            Self::Many(many) => many.iter().any(|one| one == who),
        }
    }
}

/// Checks a token at `now_s`, in seconds of Unix time.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify(token: &str, keys: &Keyring, rules: &Rules, now_s: u64) -> Result<Identity, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed("no dot"))?;
    let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed("one dot"))?;
    let header: Header = object(header, "the header")?;
    if header.crit || header.b64 {
        return Err(TokenError::Critical);
    }
    let algorithm: Option<Algorithm> = header.alg.parse().ok();
    let key = keys.find(header.kid.as_deref(), algorithm).ok_or(TokenError::UnknownKey)?;
    if algorithm != Some(key.algorithm()) {
        return Err(TokenError::Algorithm);
    }
    if !key.has_signed(message, signature) {
        return Err(TokenError::Signature);
    }
    let claims: Claims = object(claims, "the claims")?;
    check(&claims, key, rules, now_s)?;
    let Claims { sub, exp, iat, jti, tidewire, .. } = claims;
    Ok(Identity {
        subject: channel_token(&sub),
        token_id: jti.map(Into::into),
        issued_s: iat,
        expires_s: Some(exp),
        key: Some(key.hash()),
        grants: Grants::try_from(&tidewire).map_err(TokenError::Grants)?,
    })
}

fn check(claims: &Claims, key: &Key, rules: &Rules, now_s: u64) -> Result<(), TokenError> {
    let soon_s = now_s.saturating_add(rules.leeway_s);
    if claims.exp.saturating_add(rules.leeway_s) <= now_s {
        return Err(TokenError::Expired);
    }
    if claims.exp > soon_s.saturating_add(rules.lifetime_s_max) {
        return Err(TokenError::Lifetime);
    }
    if [claims.nbf, claims.iat].into_iter().flatten().any(|since| since > soon_s) {
        return Err(TokenError::NotYet);
    }
    if key.issuer().is_some_and(|issuer| claims.iss.as_deref() != Some(issuer)) {
        return Err(TokenError::Issuer);
    }
    // RFC 7519 section 4.1.3: a token that is for somebody is for nobody else.
    let meant = match (&claims.aud, key.audience()) {
        (None, None) => true,
        (Some(audience), Some(who)) => audience.has(who),
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !meant {
        return Err(TokenError::Audience);
    }
    let subject_bytes = channel_token(&claims.sub).len();
    if claims.sub.is_empty() || claims.sub.len() > ID_BYTES_MAX || subject_bytes > rules.subject_bytes_max {
        return Err(TokenError::Claim("sub has to have 1 to 128 bytes, and fit a channel name"));
    }
    if claims.jti.as_ref().is_some_and(|id| id.is_empty() || id.len() > ID_BYTES_MAX) {
        return Err(TokenError::Claim("jti has to have 1 to 128 bytes"));
    }
    Ok(())
}

/// A part of the token, as the JSON object that it is.
fn object<T: for<'de> Deserialize<'de>>(part: &str, what: &'static str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("a part is not base64url"))?;
    // The reader of objects would take a list of the fields' values, too.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(TokenError::Malformed("a part is not a JSON object"));
    }
    serde_json::from_slice(&json).map_err(|_| TokenError::Claim(what))
}

#[cfg(test)]
mod tests;
