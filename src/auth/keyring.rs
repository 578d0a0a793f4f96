//! The keys that tokens are checked with, from a JWK set (RFC 7517) or PEM. A key says by itself which algorithm it is for, and
//! from whom and for whom its tokens are. Pure: whoever calls has read the file.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::KeyId;

/// Keys at once, at the most.
pub const KEYS_MAX: usize = 100;

/// Fewest bytes of a secret for each of the algorithms HS256, HS384, HS512: as many as the hash has (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: [usize; 3] = [32, 48, 64];

/// Bytes of an RSA modulus: from 2,048 bits (RFC 7518 section 3.3) to the most that is checked.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;

/// Fewest bytes of DER that hold such a modulus and an exponent.
const RSA_DER_BYTES_MIN: usize = 270;

/// The largest RSA exponent that is checked: 33 bits.
const EXPONENT_MAX: u64 = (1 << 33) - 1;

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
    /// It is called what its issuer calls it: PEM has no place for a name.
    any_name: bool,
    algorithm: Algorithm,
    hash: KeyId,
    issuer: Option<Box<str>>,
    audience: Option<Box<str>>,
    key: DecodingKey,
}

impl Key {
    /// Tells it from other keys, whatever they are called.
    #[must_use]
    pub const fn hash(&self) -> KeyId {
        self.hash
    }

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
        let Self { id, any_name: _, algorithm, hash: _, issuer, audience, key: _ } = self;
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
    passed_over: Vec<(usize, &'static str)>,
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

/// Why one key of a file does not become one of the ring.
enum Unusable {
    /// It is for something else, or of a kind that is not known here: RFC 7517 section 5 wants that it is passed over.
    Foreign(&'static str),
    /// It is wrong. Nobody would notice that it is missing, so it spoils the file.
    Wrong(&'static str),
}

/// A key of a set as RFC 7517 writes it. Members that are not known are passed over, as that wants it.
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
struct JwkSet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl Keyring {
    /// Reads a JWK set or PEM.
    ///
    /// # Errors
    /// Says which key is wrong, and why.
    pub fn parse(text: &str, defaults: Defaults<'_>) -> Result<Self, KeyError> {
        let mut ring = Self::default();
        if text.trim_start().starts_with('{') {
            for (index, jwk) in jwks(text)?.iter().enumerate() {
                match from_jwk(jwk) {
                    Ok(key) => ring.add(index + 1, key, defaults)?,
                    Err(Unusable::Foreign(reason)) => ring.passed_over.push((index + 1, reason)),
                    Err(Unusable::Wrong(reason)) => return Err(KeyError::Key(index + 1, reason)),
                }
            }
            return if ring.keys.is_empty() { Err(KeyError::Empty) } else { Ok(ring) };
        }
        let blocks = pem::parse_many(text).map_err(|_| KeyError::Form)?;
        // Its reader ends without a word where a block has no end.
        if blocks.is_empty() || blocks.len() != text.matches("-----BEGIN").count() {
            return Err(KeyError::Form);
        }
        for (index, block) in blocks.iter().enumerate() {
            let key = from_pem(block).map_err(|reason| KeyError::Key(index + 1, reason))?;
            ring.add(index + 1, Key { any_name: true, ..key }, defaults)?;
        }
        Ok(ring)
    }

    /// Adds a key for HS256 without a name.
    ///
    /// # Errors
    /// It is too short, or there is such a key already.
    pub fn add_secret(&mut self, secret: &str, defaults: Defaults<'_>) -> Result<(), KeyError> {
        let place = self.keys.len() + 1;
        let key = from_secret(secret.as_bytes(), Algorithm::Hs256)
            .map_err(|reason| KeyError::Key(place, reason))?;
        self.add(place, key, defaults)
    }

    fn add(&mut self, place: usize, mut key: Key, defaults: Defaults<'_>) -> Result<(), KeyError> {
        if self.keys.len() == KEYS_MAX {
            return Err(KeyError::TooMany(KEYS_MAX + 1));
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

    /// The keys of the file that are for something else, by their place from 1, and why.
    #[must_use]
    pub fn passed_over(&self) -> &[(usize, &'static str)] {
        &self.passed_over
    }

    /// What tells each key from others.
    pub fn hashes(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(Key::hash)
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

    /// The key for a token with this `kid` and `alg`: the one of that name, else one without a name for the algorithm.
    #[must_use]
    pub fn find(&self, id: Option<&str>, algorithm: Option<Algorithm>) -> Option<&Key> {
        let named = |id| self.keys.iter().find(|key| key.id.as_deref() == Some(id));
        id.and_then(named).or_else(|| {
            let mut unnamed =
                self.keys.iter().filter(|key| key.id.is_none() && (key.any_name || id.is_none()));
            unnamed.find(|key| Some(key.algorithm) == algorithm)
        })
    }
}

/// The keys of a set, each as it is written.
pub(super) fn jwks(text: &str) -> Result<Vec<Jwk>, KeyError> {
    let set: JwkSet<'_> = serde_json::from_str(text).map_err(|_| KeyError::Form)?;
    if set.keys.len() > KEYS_MAX {
        return Err(KeyError::TooMany(set.keys.len()));
    }
    let read = |(index, key): (usize, &RawValue)| {
        // The reader of objects would take a list of the members' values, too.
        let object = Some(key.get()).filter(|text| text.starts_with('{'));
        let jwk = object.and_then(|text| serde_json::from_str(text).ok());
        jwk.ok_or(KeyError::Key(
            index + 1,
            "not a JWK: a member is missing, twice there or of the wrong type",
        ))
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

fn from_jwk(jwk: &Jwk) -> Result<Key, Unusable> {
    use Unusable::{Foreign, Wrong};
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err(Foreign("use is not sig"));
    }
    let operations = jwk.key_ops.as_deref();
    if operations.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err(Foreign("key_ops is without verify"));
    }
    let is_for = |algorithm: Algorithm| match &jwk.alg {
        Some(given) if given != algorithm.label() => Err(Foreign("alg is not one that is taken for its kty")),
        _ => Ok(algorithm),
    };
    let public = |member: &Option<String>, name| decoded(member.as_deref(), name).map_err(Wrong);
    let mut key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) => {
            let (secret, algorithm) = jwk.secret().map_err(Wrong)?;
            from_secret(&secret, algorithm).map_err(Wrong)?
        }
        ("RSA", _) => {
            let algorithm = is_for(Algorithm::Rs256)?;
            let (n, e) = (public(&jwk.n, "n")?, public(&jwk.e, "e")?);
            let (n, e) = (without_zeros(&n), without_zeros(&e));
            if !MODULUS_BYTES.contains(&n.len()) || n[0] < 0x80 && n.len() == *MODULUS_BYTES.start() {
                return Err(Wrong("an RSA key of less than 2048 bits, or more than 8192"));
            }
            let exponent =
                e.iter().fold(0_u64, |sum, byte| sum.saturating_mul(256).saturating_add((*byte).into()));
            if n.last().is_none_or(|byte| byte % 2 == 0)
                || exponent % 2 == 0
                || !(3..=EXPONENT_MAX).contains(&exponent)
            {
                return Err(Wrong("n and e are no RSA key"));
            }
            key_of(algorithm, &[n, e].concat(), DecodingKey::from_rsa_raw_components(n, e))
        }
        ("EC", Some("P-256")) => {
            let algorithm = is_for(Algorithm::Es256)?;
            let (x, y) = (public(&jwk.x, "x")?, public(&jwk.y, "y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err(Wrong("x and y of a P-256 key have 32 bytes each"));
            }
            let point = [&[4], &x[..], &y].concat();
            key_of(algorithm, &point, DecodingKey::from_ec_der(&point))
        }
        ("OKP", Some("Ed25519")) => {
            let algorithm = is_for(Algorithm::EdDsa)?;
            let x = public(&jwk.x, "x")?;
            if x.len() != 32 {
                return Err(Wrong("x of an Ed25519 key has 32 bytes"));
            }
            key_of(algorithm, &x, DecodingKey::from_ed_der(&x))
        }
        _ => return Err(Foreign("kty is not oct, RSA, EC with crv P-256, or OKP with crv Ed25519")),
    };
    if jwk.d.is_some() {
        return Err(Wrong("a private key; the server needs the public one alone"));
    }
    key.id = jwk.kid.as_deref().map(Into::into);
    key.issuer = jwk.iss.as_deref().map(Into::into);
    key.audience = jwk.aud.as_deref().map(Into::into);
    Ok(key)
}

/// Some write a number with zeros before it; the library that computes with it takes none.
fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
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
    Ok(key_of(algorithm, secret, DecodingKey::from_secret(secret)))
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
            return Ok(key_of(Algorithm::Es256, point, DecodingKey::from_ec_der(point)));
        }
        (_, Some(point)) if point.len() == 32 => {
            return Ok(key_of(Algorithm::EdDsa, point, DecodingKey::from_ed_der(point)));
        }
        _ => {}
    }
    if der.len() < RSA_DER_BYTES_MIN {
        return Err("neither P-256, Ed25519 nor RSA of 2048 bits or more");
    }
    DecodingKey::from_rsa_pem(pem::encode(block).as_bytes())
        .map(|key| key_of(Algorithm::Rs256, der, key))
        .map_err(|_| "neither P-256, Ed25519 nor RSA")
}

fn key_of(algorithm: Algorithm, material: &[u8], key: DecodingKey) -> Key {
    let hash = digest(&SHA256, &[algorithm.label().as_bytes(), material].concat());
    let hash = hash.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Key { id: None, any_name: false, algorithm, hash: KeyId(hash), issuer: None, audience: None, key }
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
