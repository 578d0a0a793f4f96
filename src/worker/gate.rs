//! Who is let in: the keys of the moment and the revocations, shared by all workers. Only handshakes, `auth` messages and the
//! admin API come here.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use crate::auth::Identity;
use crate::auth::keyring::Keyring;
use crate::auth::revocations::{Revocations, RevokeError, Revoked};
use crate::auth::token::{self, Rules, TokenError};
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
}

impl Gate {
    /// Without keys: unless the server is open, nobody is let in yet.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, keys: RwLock::default(), revocations: Mutex::default() }
    }

    /// Takes other keys from now on. Who is in stays in.
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
            leeway_s: self.config.auth.leeway.as_secs(),
            lifetime_s_max: self.config.auth.token_lifetime_max.as_secs(),
            subject_bytes_max: self.config.channel.channel_name_bytes_max - "$user.".len(),
        };
        let identity = token::verify(token, &keys, &rules, unix_s(now))?;
        if self.is_revoked(&identity) { Err(Denied::Revoked) } else { Ok(identity) }
    }

    /// Whether an identity has been shut out since its token was checked.
    #[must_use]
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner).cover(identity)
    }

    /// Shuts somebody out. Returns since which second of Unix time, for the connections that are there.
    ///
    /// # Errors
    /// There is no such id, or no room.
    pub fn revoke(&self, revoked: &Revoked, now: Now) -> Result<u64, RevokeError> {
        let auth = &self.config.auth;
        let keep = auth.token_lifetime_max + 2 * auth.leeway;
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        revocations.revoke(revoked, unix_s(now), keep.as_secs() + 1)?;
        Ok(unix_s(now))
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
