//! Who a client is and what it may do: tokens, the keys that they are checked with, and the rights that they give. Pure: no
//! socket, no file, no clock.
//!
//! Tokens are JSON Web Tokens (RFC 7519), signed (RFC 7515), and checked after RFC 8725: the algorithm is the key's and never the
//! token's, and nothing that a token names is fetched.

pub mod grants;
pub mod keyring;
pub mod offered;
pub mod revocations;
pub mod seats;
pub mod signer;
pub mod token;

use std::time::Duration;

use grants::Grants;

/// What a token says about its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `sub`, as one token of a channel name: the owner of `$user.SUBJECT`.
    pub subject: Box<str>,
    /// `jti`.
    pub token_id: Option<Box<str>>,
    /// `iat`, in seconds of Unix time.
    pub issued_s: Option<u64>,
    /// `exp`, in seconds of Unix time; nothing for who has shown a certificate instead.
    pub expires_s: Option<u64>,
    /// The key that its token was checked with; nothing for who has shown a certificate instead.
    pub key: Option<KeyId>,
    /// What it may do.
    pub grants: Grants,
}

/// Tells keys apart without telling what they are: a part of their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId(u64);

/// The longest subject or token id, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Tokens count in whole seconds: a part of one counts as one.
#[must_use]
pub const fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + (duration.subsec_nanos() > 0) as u64
}

/// A subject as one token of a channel name: bytes that no such token may hold become `%XX`, and so does `%`.
#[must_use]
pub fn channel_token(subject: &str) -> Box<str> {
    use std::fmt::Write as _;
    let mut token = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-:@+=~".contains(&byte) {
            token.push(char::from(byte));
        } else {
            let _ = write!(token, "%{byte:02X}");
        }
    }
    token.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    #[test]
    fn subjects_become_one_token_and_stay_apart() {
        let rows = [
            ("alice", "alice"),
            ("alice@example.org", "alice@example%2Eorg"),
            ("auth0|5f7c", "auth0%7C5f7c"),
            ("a.b", "a%2Eb"),
            ("a%2Eb", "a%252Eb"),
            ("$sys", "%24sys"),
            ("*", "%2A"),
            (">", "%3E"),
            ("a b\n", "a%20b%0A"),
            ("\u{e9}", "%C3%A9"),
        ];
        for (subject, expected) in rows {
            let token = channel_token(subject);
            assert_eq!(&*token, expected);
            assert_eq!(pattern::check_name(&format!("$user.{token}"), 255), Ok(()), "{subject:?}");
        }
    }
}
