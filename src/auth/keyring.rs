//! The keys that tokens are checked with, from a JWK set (RFC 7517) or PEM. A key says by itself which algorithm it is for, and
//! from whom and for whom its tokens are. Pure: whoever calls has read the file.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;

/// Keys at once, at the most.
pub const KEYS_MAX: usize = 100;

/// Fewest bytes of a secret for each of the algorithms HS256, HS384, HS512: as many as the hash has (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: [usize; 3] = [32, 48, 64];

/// Fewest bytes of an RSA modulus: 2,048 bits (RFC 7518 section 3.3).
const MODULUS_BYTES_MIN: usize = 256;

/// How a token can be signed (RFC 7518 section 3.1, RFC 8037). `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Every one.
    pub const ALL: [Self; 6] = [Self::Hs256, Self::Hs384, Self::Hs512, Self::Rs256, Self::Es256, Self::EdDsa];

    /// As tokens and keys write it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// As the library that computes it writes it.
    pub(super) const fn foreign(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Hs384 => jsonwebtoken::Algorithm::HS384,
            Self::Hs512 => jsonwebtoken::Algorithm::HS512,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// Exactly: `hs256` is not an algorithm.
impl FromStr for Algorithm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|algorithm| algorithm.label() == text).ok_or(())
    }
}

/// What holds for the keys that do not say it themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults<'a> {
    /// Who issues tokens.
    pub issuer: Option<&'a str>,
    /// Who this server is.
    pub audience: Option<&'a str>,
}

/// One key.
#[derive(Clone)]
pub struct Key {
    id: Option<Box<str>>,
    algorithm: Algorithm,
    issuer: Option<Box<str>>,
    audience: Option<Box<str>>,
    key: DecodingKey,
}

impl Key {
    /// What its tokens are signed with.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
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

    /// Whether the signature, in base64, is this key's.
    #[must_use]
    pub fn has_signed(&self, message: &str, signature: &str) -> bool {
        let algorithm = self.algorithm.foreign();
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, algorithm).unwrap_or(false)
    }
}

/// Without the key itself.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, algorithm, issuer, audience, key: _ } = self;
        f.debug_struct("Key")
            .field("id", id)
            .field("algorithm", algorithm)
            .field("issuer", issuer)
            .field("audience", audience)
            .finish_non_exhaustive()
    }
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// A file of keys that cannot be used. Never holds a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither of the two forms.
    #[error("neither a JWK set (a JSON object with keys) nor public keys as PEM")]
    Form,
    /// A key of the set, by its place from 1.
    #[error("key {0}: {1}")]
    Key(usize, &'static str),
    /// None.
    #[error("there is no key in it")]
    Empty,
    /// More than [`KEYS_MAX`].
    #[error("{0} keys; at most {KEYS_MAX}")]
    TooMany(usize),
    /// Two keys that no token could choose between.
    #[error("key {0}: an earlier key has the same kid, or neither has one and their alg is the same")]
    Ambiguous(usize),
}

/// A key of a set as RFC 7517 writes it. What is not known there is passed over, as that wants it.
#[derive(Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    k: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
    /// Who its tokens have to be from. Not of RFC 7517.
    iss: Option<String>,
    /// Whom they have to be for. Not of RFC 7517.
    aud: Option<String>,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

impl Keyring {
    /// Reads a JWK set or PEM.
    ///
    /// # Errors
    /// Says which key is wrong, and why; one wrong key spoils the file, since nobody would notice that it is missing.
    pub fn parse(text: &str, defaults: Defaults<'_>) -> Result<Self, KeyError> {
        let keys = if text.trim_start().starts_with('{') {
            jwks(text)?
                .iter()
                .enumerate()
                .map(|(index, jwk)| from_jwk(jwk).map_err(|reason| KeyError::Key(index + 1, reason)))
                .collect::<Result<Vec<_>, _>>()?
        } else {
            let blocks = pem::parse_many(text).map_err(|_| KeyError::Form)?;
            blocks
                .iter()
                .enumerate()
                .map(|(index, block)| from_pem(block).map_err(|reason| KeyError::Key(index + 1, reason)))
                .collect::<Result<_, _>>()?
        };
        let mut ring = Self::default();
        for key in keys {
            ring.add(key, defaults)?;
        }
        if ring.keys.is_empty() {
            return Err(if text.trim_start().starts_with('{') { KeyError::Empty } else { KeyError::Form });
        }
        Ok(ring)
    }

    /// Adds a key for HS256 without a name.
    ///
    /// # Errors
    /// It is too short, or there is such a key already.
    pub fn add_secret(&mut self, secret: &str, defaults: Defaults<'_>) -> Result<(), KeyError> {
        let key = from_secret(secret.as_bytes(), Algorithm::Hs256)
            .map_err(|reason| KeyError::Key(self.keys.len() + 1, reason))?;
        self.add(key, defaults)
    }

    fn add(&mut self, mut key: Key, defaults: Defaults<'_>) -> Result<(), KeyError> {
        let place = self.keys.len() + 1;
        if place > KEYS_MAX {
            return Err(KeyError::TooMany(place));
        }
        let same = |other: &Key| other.id == key.id && (key.id.is_some() || other.algorithm == key.algorithm);
        if self.keys.iter().any(same) {
            return Err(KeyError::Ambiguous(place));
        }
        key.issuer = key.issuer.or_else(|| defaults.issuer.map(Into::into));
        key.audience = key.audience.or_else(|| defaults.audience.map(Into::into));
        self.keys.push(key);
        Ok(())
    }

    /// Number of keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether one of them is a secret, which whoever can read it can sign with.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        use Algorithm::{Hs256, Hs384, Hs512};
        self.keys.iter().any(|key| matches!(key.algorithm, Hs256 | Hs384 | Hs512))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key with this `kid`.
    #[must_use]
    pub fn named(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.id.as_deref() == Some(id))
    }

    /// The key without a `kid` for this algorithm.
    #[must_use]
    pub fn unnamed(&self, algorithm: Algorithm) -> Option<&Key> {
        self.keys.iter().find(|key| key.id.is_none() && key.algorithm == algorithm)
    }
}

/// The keys of a set, each as it is written.
pub(super) fn jwks(text: &str) -> Result<Vec<Jwk>, KeyError> {
    let set: JwkSet = serde_json::from_str(text).map_err(|_| KeyError::Form)?;
    if set.keys.len() > KEYS_MAX {
        return Err(KeyError::TooMany(set.keys.len()));
    }
    let read = |(index, key)| {
        serde_json::from_value(key)
            .map_err(|_| KeyError::Key(index + 1, "not a JWK: a member is missing or of the wrong type"))
    };
    set.keys.into_iter().enumerate().map(read).collect()
}

impl Jwk {
    /// Its name.
    pub(super) fn id(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Who its tokens have to be from.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.iss.as_deref()
    }

    /// Whom they have to be for.
    pub(super) fn audience(&self) -> Option<&str> {
        self.aud.as_deref()
    }

    /// The secret and its algorithm, of a key that has one.
    pub(super) fn secret(&self) -> Result<(Vec<u8>, Algorithm), &'static str> {
        let Some(Ok(algorithm @ (Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512))) =
            self.alg.as_deref().map(str::parse)
        else {
            return Err("alg of a secret (kty oct) has to be HS256, HS384 or HS512");
        };
        Ok((decoded(self.k.as_deref(), "k")?, algorithm))
    }
}

fn from_jwk(jwk: &Jwk) -> Result<Key, &'static str> {
    if jwk.d.is_some() {
        return Err("a private key; the server needs the public one alone");
    }
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err("use is not sig");
    }
    if jwk
        .key_ops
        .as_ref()
        .is_some_and(|operations| !operations.iter().any(|operation| operation == "verify"))
    {
        return Err("key_ops is without verify");
    }
    let only = |algorithm: Algorithm, otherwise: &'static str| match &jwk.alg {
        Some(given) if given != algorithm.label() => Err(otherwise),
        _ => Ok(algorithm),
    };
    let mut key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) => {
            let (secret, algorithm) = jwk.secret()?;
            from_secret(&secret, algorithm)?
        }
        ("RSA", _) => {
            let algorithm = only(Algorithm::Rs256, "alg of an RSA key has to be RS256")?;
            let (n, e) = (decoded(jwk.n.as_deref(), "n")?, decoded(jwk.e.as_deref(), "e")?);
            if n.iter().skip_while(|byte| **byte == 0).count() < MODULUS_BYTES_MIN {
                return Err("an RSA key of less than 2048 bits");
            }
            key_of(algorithm, DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", Some("P-256")) => {
            let algorithm = only(Algorithm::Es256, "alg of a P-256 key has to be ES256")?;
            let (x, y) = (decoded(jwk.x.as_deref(), "x")?, decoded(jwk.y.as_deref(), "y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("x and y of a P-256 key have 32 bytes each");
            }
            key_of(algorithm, DecodingKey::from_ec_der(&[&[4], &x[..], &y].concat()))
        }
        ("OKP", Some("Ed25519")) => {
            let algorithm = only(Algorithm::EdDsa, "alg of an Ed25519 key has to be EdDSA")?;
            let x = decoded(jwk.x.as_deref(), "x")?;
            if x.len() != 32 {
                return Err("x of an Ed25519 key has 32 bytes");
            }
            key_of(algorithm, DecodingKey::from_ed_der(&x))
        }
        _ => return Err("kty has to be oct, RSA, EC with crv P-256, or OKP with crv Ed25519"),
    };
    key.id = jwk.kid.as_deref().map(Into::into);
    key.issuer = jwk.iss.as_deref().map(Into::into);
    key.audience = jwk.aud.as_deref().map(Into::into);
    Ok(key)
}

fn from_secret(secret: &[u8], algorithm: Algorithm) -> Result<Key, &'static str> {
    let least = match algorithm {
        Algorithm::Hs384 => SECRET_BYTES_MIN[1],
        Algorithm::Hs512 => SECRET_BYTES_MIN[2],
        _ => SECRET_BYTES_MIN[0],
    };
    if secret.len() < least {
        return Err("a secret shorter than its hash: 32 bytes for HS256, 48 for HS384, 64 for HS512");
    }
    Ok(key_of(algorithm, DecodingKey::from_secret(secret)))
}

/// What `SubjectPublicKeyInfo` (RFC 5480, RFC 8410) begins with before the point of a P-256 or Ed25519 key.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn from_pem(block: &pem::Pem) -> Result<Key, &'static str> {
    let der = block.contents();
    match block.tag() {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => {}
        tag if tag.contains("PRIVATE") => return Err("a private key; the server needs the public one alone"),
        _ => return Err("not a PUBLIC KEY; of a certificate, give the public key"),
    }
    match (der.strip_prefix(P256_PREFIX), der.strip_prefix(ED25519_PREFIX)) {
        (Some(point), _) if point.len() == 65 && point[0] == 4 => {
            return Ok(key_of(Algorithm::Es256, DecodingKey::from_ec_der(point)));
        }
        (_, Some(point)) if point.len() == 32 => {
            return Ok(key_of(Algorithm::EdDsa, DecodingKey::from_ed_der(point)));
        }
        _ => {}
    }
    if der.len() < MODULUS_BYTES_MIN {
        return Err("neither P-256, Ed25519 nor RSA of 2048 bits or more");
    }
    DecodingKey::from_rsa_pem(pem::encode(block).as_bytes())
        .map(|key| key_of(Algorithm::Rs256, key))
        .map_err(|_| "neither P-256, Ed25519 nor RSA")
}

const fn key_of(algorithm: Algorithm, key: DecodingKey) -> Key {
    Key { id: None, algorithm, issuer: None, audience: None, key }
}

fn decoded(member: Option<&str>, name: &'static str) -> Result<Vec<u8>, &'static str> {
    let missing = match name {
        "k" => "k is missing or not base64url",
        "n" => "n is missing or not base64url",
        "e" => "e is missing or not base64url",
        "x" => "x is missing or not base64url",
        _ => "y is missing or not base64url",
    };
    let member = member.ok_or(missing)?;
    URL_SAFE_NO_PAD.decode(member).ok().filter(|bytes| !bytes.is_empty()).ok_or(missing)
}

#[cfg(test)]
mod tests;
