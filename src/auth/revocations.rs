//! Who is shut out although the token is sound. Pure; in memory: a restart forgets it, so short-lived tokens are what to rely on.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{ID_BYTES_MAX, Identity, channel_token};

/// Entries at once. Each is gone when every token that it can be about has expired.
pub const REVOCATIONS_MAX: usize = 10_000;

/// Who or what is revoked, as the admin API takes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Revoked {
    /// Every token of a subject that was issued until now; one that does not say when counts as old.
    #[serde(rename = "sub")]
    Subject(Box<str>),
    /// One token by its `jti`.
    #[serde(rename = "jti")]
    Token(Box<str>),
}

/// A revocation that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// No such subject or token can be.
    #[error("sub or jti has to have 1 to {ID_BYTES_MAX} bytes")]
    Id,
    /// [`REVOCATIONS_MAX`] are in force.
    #[error("{REVOCATIONS_MAX} revocations are in force; change the key instead")]
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When, in seconds of Unix time.
    at_s: u64,
    /// When it is of no use any more.
    until_s: u64,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Revocations {
    entries: HashMap<Revoked, Entry>,
}

impl Revocations {
    /// Adds one at `now_s`. `keep_s` is the longest that a token can still be valid.
    ///
    /// # Errors
    /// There is no such id, or no room.
    pub fn revoke(&mut self, revoked: &Revoked, now_s: u64, keep_s: u64) -> Result<(), RevokeError> {
        let (Revoked::Subject(id) | Revoked::Token(id)) = revoked;
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(RevokeError::Id);
        }
        let revoked = revoked.normal();
        if self.entries.len() >= REVOCATIONS_MAX && !self.entries.contains_key(&revoked) {
            self.entries.retain(|_, entry| entry.until_s > now_s);
            if self.entries.len() >= REVOCATIONS_MAX {
                return Err(RevokeError::Full);
            }
        }
        self.entries.insert(revoked, Entry { at_s: now_s, until_s: now_s.saturating_add(keep_s) });
        Ok(())
    }

    /// Whether an identity is shut out.
    #[must_use]
    pub fn cover(&self, identity: &Identity) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        let subject = self.entries.get(&Revoked::Subject(identity.subject.clone()));
        let older = |entry: &Entry| identity.issued_s.is_none_or(|issued_s| issued_s <= entry.at_s);
        let token = identity.token_id.clone().and_then(|id| self.entries.get(&Revoked::Token(id)));
        subject.is_some_and(older) || token.is_some()
    }
}

impl Revoked {
    /// Whether it shuts out an identity, if it came at `at_s`.
    #[must_use]
    pub fn is_about(&self, identity: &Identity, at_s: u64) -> bool {
        match self {
            Self::Subject(subject) => {
                *channel_token(subject) == *identity.subject
                    && identity.issued_s.is_none_or(|issued_s| issued_s <= at_s)
            }
            Self::Token(id) => identity.token_id.as_ref() == Some(id),
        }
    }

    /// Subjects as [`Identity`] has them.
    fn normal(&self) -> Self {
        match self {
            Self::Subject(subject) => Self::Subject(channel_token(subject)),
            Self::Token(id) => Self::Token(id.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::grants::Grants;

    fn identity(subject: &str, token_id: Option<&str>, issued_s: Option<u64>) -> Identity {
        let token_id = token_id.map(Into::into);
        Identity {
            subject: channel_token(subject),
            token_id,
            issued_s,
            expires_s: 200,
            grants: Grants::default(),
        }
    }

    #[test]
    fn a_subject_is_shut_out_until_it_has_a_new_token() {
        let mut revocations = Revocations::default();
        revocations.revoke(&Revoked::Subject("a.b".into()), 100, 60).unwrap();
        assert!(revocations.cover(&identity("a.b", None, None)));
        assert!(revocations.cover(&identity("a.b", Some("1"), Some(100))));
        assert!(!revocations.cover(&identity("a.b", Some("2"), Some(101))));
        assert!(!revocations.cover(&identity("a", None, None)));
    }

    #[test]
    fn one_token_is_shut_out() {
        let mut revocations = Revocations::default();
        revocations.revoke(&Revoked::Token("1".into()), 100, 60).unwrap();
        assert!(revocations.cover(&identity("a", Some("1"), Some(150))));
        assert!(!revocations.cover(&identity("a", Some("2"), Some(50))));
        assert!(!revocations.cover(&identity("1", None, None)));
    }

    #[test]
    fn what_can_be_about_no_token_makes_room() {
        let mut revocations = Revocations::default();
        let token = |n: usize| Revoked::Token(n.to_string().into());
        for n in 0..REVOCATIONS_MAX {
            revocations.revoke(&token(n), 100, 60).unwrap();
        }
        revocations.revoke(&token(1), 120, 60).unwrap();
        assert_eq!(revocations.revoke(&token(REVOCATIONS_MAX), 159, 60), Err(RevokeError::Full));
        assert_eq!(revocations.revoke(&token(REVOCATIONS_MAX), 160, 60), Ok(()));
        assert_eq!(revocations.entries.len(), 2);
        for id in ["", &"x".repeat(ID_BYTES_MAX + 1)] {
            assert_eq!(revocations.revoke(&Revoked::Subject(id.into()), 160, 60), Err(RevokeError::Id));
        }
    }
}
