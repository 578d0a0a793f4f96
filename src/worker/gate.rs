//! Who is let in: the keys of the moment and the revocations, shared by all workers. Only handshakes, `auth` messages and the
//! admin API come here.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use crate::auth::grants::{Claim, Grants};
use crate::auth::keyring::Keyring;
use crate::auth::revocations::{Revocations, RevokeError, Revoked};
use crate::auth::seats::{Seat, Seats, Waiting};
use crate::auth::token::{self, Rules, TokenError};
use crate::auth::{Identity, channel_token, whole_seconds};
use crate::clock::Now;
use crate::config::Config;

/// Why a token does not let anybody in. For the log: whoever sent it learns less.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token is not sound.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is sound, and revoked.
    #[error("it has been revoked")]
    Revoked,
}

/// See the module's page.
#[derive(Debug)]
pub struct Gate {
    config: Arc<Config>,
    keys: RwLock<Arc<Keyring>>,
    revocations: Mutex<Revocations>,
    /// What a certificate gives the right to.
    certificate_rights: Grants,
    /// Connections that still have to say who they are.
    waiting: Arc<AtomicUsize>,
    seats: Seats,
}

/// What `auth.certificate_rights` means.
///
/// # Errors
/// Says what is wrong with it.
pub fn certificate_rights(config: &Config) -> Result<Grants, String> {
    let claim: Claim =
        serde_json::from_str(&config.auth.certificate_rights).map_err(|error| error.to_string())?;
    Grants::try_from(&claim).map_err(|error| error.to_string())
}

impl Gate {
    /// Without keys: unless the server is open, nobody is let in yet.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        // The server has not started with one that is wrong.
        let certificate_rights = certificate_rights(&config).unwrap_or_default();
        let (keys, revocations) = (RwLock::default(), Mutex::default());
        let (waiting, seats) = (Arc::default(), Seats::default());
        Self { config, keys, revocations, certificate_rights, waiting, seats }
    }

    /// A place for a connection that still has to say who it is: strangers may have a quarter of all places and no more.
    #[must_use]
    pub fn wait(&self) -> Option<Waiting> {
        Waiting::begin(&self.waiting, (self.config.server.connections_max / 4).max(1))
    }

    /// A place for one more connection of an identity's subject, if there is one.
    #[must_use]
    pub fn seat(&self, identity: &Identity) -> Option<Seat> {
        self.seats.take(&identity.subject, self.config.server.connections_per_subject_max)
    }

    /// Takes other keys from now on. Whoever is in by a key that is gone is to be told by the caller.
    pub fn replace_keys(&self, keys: Keyring) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Nobody's that is let in.
    pub fn admit(&self, token: &str, now: Now) -> Result<Identity, Denied> {
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let rules = Rules {
            leeway_s: whole_seconds(self.config.auth.leeway),
            lifetime_s_max: whole_seconds(self.config.auth.token_lifetime_max),
            subject_bytes_max: self.config.user_bytes_max(),
        };
        let identity = token::verify(token, &keys, &rules, unix_s(now))?;
        if self.is_shut_out(&identity) { Err(Denied::Revoked) } else { Ok(identity) }
    }

    /// Whose certificate this is, by its common name.
    ///
    /// # Errors
    /// Nobody's that is let in.
    pub fn admit_certificate(&self, name: &str) -> Result<Identity, Denied> {
        let (subject, grants) = (channel_token(name), self.certificate_rights.clone());
        if subject.len() > self.config.user_bytes_max() {
            return Err(Denied::Token(TokenError::Claim("the common name does not fit a channel name")));
        }
        let identity =
            Identity { subject, token_id: None, issued_s: None, expires_s: None, key: None, grants };
        if self.is_shut_out(&identity) { Err(Denied::Revoked) } else { Ok(identity) }
    }

    /// Whether an identity has been shut out since it was checked: it was revoked, or its key was taken away.
    #[must_use]
    pub fn is_shut_out(&self, identity: &Identity) -> bool {
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let has_key = identity.key.is_none_or(|key| keys.hashes().any(|hash| hash == key));
        !has_key || self.revocations.lock().unwrap_or_else(PoisonError::into_inner).cover(identity)
    }

    /// Shuts somebody out: whoever shows a token that was issued until the second of Unix time that is returned. That is a
    /// little in the future, since the issuer's clock may be.
    ///
    /// # Errors
    /// There is no such id, or no room.
    pub fn revoke(&self, revoked: &Revoked, now: Now) -> Result<u64, RevokeError> {
        let auth = &self.config.auth;
        let (now_s, leeway_s) = (unix_s(now), whole_seconds(auth.leeway));
        let issued_s = now_s + leeway_s;
        let until_s = issued_s + whole_seconds(auth.token_lifetime_max) + leeway_s + 1;
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        revocations.revoke(revoked, issued_s, until_s, now_s)?;
        Ok(issued_s)
    }

    /// Takes over what another server has decided: whoever shows a token that was issued until that second of Unix time is shut out.
    ///
    /// # Errors
    /// As [`Gate::revoke`].
    pub fn note_revoked(&self, revoked: &Revoked, issued_s: u64, now: Now) -> Result<(), RevokeError> {
        let auth = &self.config.auth;
        let (now_s, leeway_s) = (unix_s(now), whole_seconds(auth.leeway));
        // A clock that is far ahead, or a foe on the broker, shuts nobody out for longer than a token can live.
        let issued_s = issued_s.min(now_s + 2 * leeway_s);
        let until_s = issued_s + whole_seconds(auth.token_lifetime_max) + leeway_s + 1;
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        revocations.revoke(revoked, issued_s, until_s, now_s)
    }

    /// Who is shut out, and with tokens that were issued until which second of Unix time.
    #[must_use]
    pub fn revoked(&self) -> Vec<(Revoked, u64)> {
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner).list()
    }

    /// Whether this is the token of those who run the server. Takes as long for a wrong one as for the right one, whatever its
    /// length.
    #[must_use]
    pub fn is_admin_token(&self, given: &str) -> bool {
        let token = &self.config.admin.token;
        let [given, wanted] = [given, token.expose()].map(|text| digest(&SHA256, text.as_bytes()));
        !token.is_empty() && given.as_ref().ct_eq(wanted.as_ref()).into()
    }
}

const fn unix_s(now: Now) -> u64 {
    now.wall_ns / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_token_is_compared_whole() {
        let token = "a token that nobody guesses, at all";
        let mut config = Config::default();
        assert!(!Gate::new(Arc::new(config.clone())).is_admin_token(""), "none is set");
        config.admin.token = token.into();
        let gate = Gate::new(Arc::new(config));
        assert!(gate.is_admin_token(token));
        for wrong in ["", &token[1..], &token[..token.len() - 1], &format!("{token}x"), &token.to_uppercase()]
        {
            assert!(!gate.is_admin_token(wrong), "{wrong}");
        }
    }
}
