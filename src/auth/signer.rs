//! Makes tokens and keys, for development and for the client commands' tests: an issuer of its own is what a deployment has.
//! Pure; the randomness is given.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use super::keyring::{Algorithm, Jwk, KeyError, jwks};

/// Signs tokens with one key.
pub struct Signer {
    id: Option<Box<str>>,
    algorithm: Algorithm,
    issuer: Option<Box<str>>,
    audience: Option<Box<str>>,
    key: EncodingKey,
}

impl Signer {
    /// Reads a private key as PEM, or takes from a JWK set the secret with this `kid`, or its first.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str, id: Option<&str>) -> Result<Self, KeyError> {
        if text.trim_start().starts_with('{') {
            return Self::from_jwks(text, id);
        }
        const WRONG: KeyError = KeyError::Key(1, "not a private key of RSA, P-256 or Ed25519 (PKCS #8)");
        let block = pem::parse(text).map_err(|_| KeyError::Form)?;
        // The reader of RSA keys would take a public one, and fail when it signs.
        if !block.tag().ends_with("PRIVATE KEY") {
            return Err(WRONG);
        }
        let text = pem::encode(&block);
        let key = text.as_bytes();
        // Each reads its own kind and no other.
        let (algorithm, key) = EncodingKey::from_ed_pem(key)
            .map(|key| (Algorithm::EdDsa, key))
            .or_else(|_| EncodingKey::from_ec_pem(key).map(|key| (Algorithm::Es256, key)))
            .or_else(|_| EncodingKey::from_rsa_pem(key).map(|key| (Algorithm::Rs256, key)))
            .map_err(|_| WRONG)?;
        Ok(Self { id: id.map(Into::into), algorithm, issuer: None, audience: None, key })
    }

    fn from_jwks(text: &str, id: Option<&str>) -> Result<Self, KeyError> {
        let keys = jwks(text)?;
        let wanted = |jwk: &&Jwk| id.is_none() || jwk.id() == id;
        let (place, jwk) =
            keys.iter().enumerate().find(|(_, jwk)| wanted(jwk) && jwk.secret().is_ok()).ok_or(
                KeyError::Key(1, "no key of the set that is asked for is a secret (kty oct) to sign with"),
            )?;
        let (secret, algorithm) = jwk.secret().map_err(|reason| KeyError::Key(place + 1, reason))?;
        Ok(Self {
            id: jwk.id().map(Into::into),
            algorithm,
            issuer: jwk.issuer().map(Into::into),
            audience: jwk.audience().map(Into::into),
            key: EncodingKey::from_secret(&secret),
        })
    }

    /// With a secret for HS256.
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> Self {
        let key = EncodingKey::from_secret(secret);
        Self { id: None, algorithm: Algorithm::Hs256, issuer: None, audience: None, key }
    }

    /// Who its tokens have to be from.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// Whom its tokens have to be for.
    #[must_use]
    pub fn audience(&self) -> Option<&str> {
        self.audience.as_deref()
    }

    /// The token of these claims.
    ///
    /// # Errors
    /// The key cannot sign after all.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let mut header = json!({ "alg": self.algorithm.label(), "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = json!(id);
        }
        self.sign_as(&header, claims)
    }

    /// The same with any header, for tests of what a server refuses.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> Result<String, KeyError> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm.foreign())
                .map_err(|_| KeyError::Key(1, "it does not sign: a key of another kind, or damaged"))?;
        Ok(format!("{message}.{signature}"))
    }
}

/// Without the key itself.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, algorithm, .. } = self;
        f.debug_struct("Signer").field("id", id).field("algorithm", algorithm).finish_non_exhaustive()
    }
}

/// A JWK set with one new secret for HS256, made of random bytes.
#[must_use]
pub fn new_jwks(id: &str, secret: &[u8; 32]) -> String {
    let key =
        json!({ "kty": "oct", "kid": id, "alg": "HS256", "use": "sig", "k": URL_SAFE_NO_PAD.encode(secret) });
    format!("{:#}\n", json!({ "keys": [key] }))
}

/// The two readable parts of a token, without its signature; nothing is checked.
///
/// # Errors
/// It is no JWT.
pub fn parts(token: &str) -> Result<[Value; 2], &'static str> {
    let mut parts = token.split('.');
    let mut next = || {
        let part = parts.next().ok_or("a token has three parts with dots between")?;
        let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| "a part of the token is not base64url")?;
        serde_json::from_slice(&json).map_err(|_| "a part of the token is not JSON")
    };
    let both = [next()?, next()?];
    if parts.count() == 1 { Ok(both) } else { Err("a token has three parts with dots between") }
}
