//! Who is shut out although the token is sound. Pure; in memory: a restart forgets it, so short-lived tokens are what to rely on.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{ID_BYTES_MAX, Identity, channel_token};

/// Entries at once. Each is gone when every token that it can be about has expired.
pub const REVOCATIONS_MAX: usize = 10_000;

/// Who or what is revoked, as the admin API takes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Revoked {
    /// Every token of a subject that was issued until now; one that does not say when counts as old. As the token has it, or
    /// as lists of the server show it.
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
    #[error("sub or jti has to have 1 to 384 bytes")]
    Id,
    /// [`REVOCATIONS_MAX`] are in force.
    #[error("{REVOCATIONS_MAX} revocations are in force; take the key away instead")]
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Tokens that were issued until then are shut out, in seconds of Unix time.
    until_issued_s: u64,
    /// When it is of no use any more.
    until_s: u64,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Revocations {
    entries: HashMap<Revoked, Entry>,
}

impl Revocations {
    /// Adds one, about tokens that were issued until `issued_s`; forgets it at `until_s`. It is `now_s`.
    ///
    /// # Errors
    /// There is no such id, or no room.
    pub fn revoke(
        &mut self,
        revoked: &Revoked,
        issued_s: u64,
        until_s: u64,
        now_s: u64,
    ) -> Result<(), RevokeError> {
        let (Revoked::Subject(id) | Revoked::Token(id)) = revoked;
        if id.is_empty() || id.len() > 3 * ID_BYTES_MAX {
            return Err(RevokeError::Id);
        }
        let forms = revoked.forms();
        let new = forms.iter().filter(|form| !self.entries.contains_key(form)).count();
        if self.entries.len() + new > REVOCATIONS_MAX {
            self.entries.retain(|_, entry| entry.until_s > now_s);
            if self.entries.len() + new > REVOCATIONS_MAX {
                return Err(RevokeError::Full);
            }
        }
        for form in forms {
            let entry = self.entries.entry(form).or_insert(Entry { until_issued_s: 0, until_s: 0 });
            // A clock that was set back takes nothing back.
            entry.until_issued_s = entry.until_issued_s.max(issued_s);
            entry.until_s = entry.until_s.max(until_s);
        }
        Ok(())
    }

    /// All of them, each with the second that it counts until.
    #[must_use]
    pub fn list(&self) -> Vec<(Revoked, u64)> {
        self.entries.iter().map(|(revoked, entry)| (revoked.clone(), entry.until_issued_s)).collect()
    }

    /// Whether an identity is shut out.
    #[must_use]
    pub fn cover(&self, identity: &Identity) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        let find = |revoked: Revoked| {
            self.entries.get(&revoked).is_some_and(|entry| revoked.is_about(identity, entry.until_issued_s))
        };
        find(Revoked::Subject(identity.subject.clone()))
            || identity.token_id.clone().is_some_and(|id| find(Revoked::Token(id)))
    }
}

impl Revoked {
    /// Whether it shuts out an identity, if it is about tokens that were issued until `issued_s`.
    #[must_use]
    pub fn is_about(&self, identity: &Identity, issued_s: u64) -> bool {
        match self {
            Self::Subject(subject) => {
                (**subject == *identity.subject || *channel_token(subject) == *identity.subject)
                    && identity.issued_s.is_none_or(|issued| issued <= issued_s)
            }
            Self::Token(id) => identity.token_id.as_ref() == Some(id),
        }
    }

    /// As identities have it: a subject may have been given as it is, or as it is shown.
    fn forms(&self) -> Vec<Self> {
        match self {
            Self::Subject(subject) => {
                let shown = channel_token(subject);
                let as_given = Some(subject.clone()).filter(|subject| *subject != shown);
                std::iter::once(shown).chain(as_given).map(Self::Subject).collect()
            }
            Self::Token(id) => vec![Self::Token(id.clone())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::grants::Grants;

    fn identity(subject: &str, token_id: Option<&str>, issued_s: Option<u64>) -> Identity {
        let token_id = token_id.map(Into::into);
        let subject = channel_token(subject);
        Identity { subject, token_id, issued_s, expires_s: Some(200), key: None, grants: Grants::default() }
    }

    #[test]
    fn a_subject_is_shut_out_until_it_has_a_new_token() {
        for given in ["a.b", "a%2Eb"] {
            let mut revocations = Revocations::default();
            revocations.revoke(&Revoked::Subject(given.into()), 100, 160, 95).unwrap();
            assert!(revocations.cover(&identity("a.b", None, None)));
            assert!(revocations.cover(&identity("a.b", Some("1"), Some(100))));
            assert!(!revocations.cover(&identity("a.b", Some("2"), Some(101))));
            assert!(!revocations.cover(&identity("a", None, None)));
            revocations.revoke(&Revoked::Subject(given.into()), 50, 110, 45).unwrap();
            assert!(revocations.cover(&identity("a.b", Some("1"), Some(100))), "the clock was set back");
        }
    }

    #[test]
    fn one_token_is_shut_out() {
        let mut revocations = Revocations::default();
        revocations.revoke(&Revoked::Token("1".into()), 100, 160, 100).unwrap();
        assert!(revocations.cover(&identity("a", Some("1"), Some(150))));
        assert!(!revocations.cover(&identity("a", Some("2"), Some(50))));
        assert!(!revocations.cover(&identity("1", None, None)));
    }

    #[test]
    fn what_can_be_about_no_token_makes_room() {
        let mut revocations = Revocations::default();
        let token = |n: usize| Revoked::Token(n.to_string().into());
        for n in 0..REVOCATIONS_MAX {
            revocations.revoke(&token(n), 100, 160, 100).unwrap();
        }
        revocations.revoke(&token(1), 120, 180, 120).unwrap();
        assert_eq!(revocations.revoke(&token(REVOCATIONS_MAX), 159, 219, 159), Err(RevokeError::Full));
        assert_eq!(revocations.revoke(&token(REVOCATIONS_MAX), 160, 220, 160), Ok(()));
        assert_eq!(revocations.entries.len(), 2);
        for id in ["", &"x".repeat(3 * ID_BYTES_MAX + 1)] {
            assert_eq!(revocations.revoke(&Revoked::Subject(id.into()), 160, 220, 160), Err(RevokeError::Id));
        }
    }
}
