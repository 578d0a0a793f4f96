//! The keys that tokens are checked with: read from their file, and again when it changes. Never says what is in one.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::KeyId;
use crate::auth::keyring::{Defaults, Keyring};
use crate::config::Config;
use crate::config::file::{self, Stamp};
use crate::hub::router::ToWorker;
use crate::worker::Shared;

/// How often the file is looked at. A look, not a watch of the kernel's: mounted secrets change by a link two folders up.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// All keys of a configuration.
///
/// # Errors
/// Names the setting, the file and what is wrong.
pub(super) fn load(config: &Config) -> io::Result<Keyring> {
    let auth = &config.auth;
    let defaults = Defaults { issuer: auth.issuer.as_deref(), audience: auth.audience.as_deref() };
    let mut keys = match auth.keys_file.get() {
        Some(path) => read(path, defaults).map_err(|reason| {
            io::Error::other(format!("auth.keys_file = \"{}\": {reason}", auth.keys_file))
        })?,
        None => Keyring::default(),
    };
    if !auth.secret.is_empty() {
        keys.add_secret(auth.secret.expose(), defaults)
            .map_err(|error| io::Error::other(format!("auth.secret: {error}")))?;
    }
    Ok(keys)
}

/// The keys of a file, as a server takes them.
///
/// # Errors
/// Says what is wrong with it, or that others can read a secret in it.
pub(crate) fn read(path: &Path, defaults: Defaults<'_>) -> Result<Keyring, String> {
    let (text, mode) = file::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let keys = Keyring::parse(&text, defaults).map_err(|error| error.to_string())?;
    let writable = || {
        let reason =
            format!("others could put keys of theirs in it (mode {:03o}); chmod go-w the file", mode & 0o777);
        (mode & 0o022 != 0).then_some(reason)
    };
    match file::open_to_others(mode).filter(|_| keys.has_secret()).or_else(writable) {
        Some(reason) => Err(reason),
        None => Ok(keys),
    }
}

/// The state of the file, if one is named and there.
pub(super) fn stamp(config: &Config) -> Option<Stamp> {
    Stamp::of(config.auth.keys_file.get()?)
}

/// Takes the keys anew whenever their file has changed since `used`, and has the connections end that came with a key that is
/// gone. What is wrong with a new file is logged once, and the old keys stay until it is right. Ends at once where there is no
/// file.
pub(super) async fn watch(shared: &Arc<Shared>, mut used: Option<Stamp>) {
    if !shared.config.auth.keys_file.is_set() {
        return;
    }
    let mut complained = None;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        look.tick().await;
        let config = Arc::clone(&shared.config);
        // A file may be far away, and the acceptor waits for this task.
        let read = tokio::task::spawn_blocking(move || {
            let current = stamp(&config);
            (current != used).then(|| (current, load(&config)))
        });
        let Ok(Some((current, loaded))) = read.await else { continue };
        match loaded {
            Ok(keys) => {
                used = current;
                complained = None;
                tracing::info!(keys = keys.len(), "the keys for tokens were read again");
                pass_over(&keys);
                let hashes: Arc<[KeyId]> = keys.hashes().collect();
                shared.gate.replace_keys(keys);
                for worker in 0..shared.router.workers() {
                    shared.router.send(worker, ToWorker::Keys(Arc::clone(&hashes)));
                }
            }
            // It is tried again each time: the disk, or who may read the file, may come right without a new version.
            Err(_) if complained == Some(current) => {}
            Err(error) => {
                complained = Some(current);
                tracing::warn!(%error, "the keys for tokens stay as they were");
            }
        }
    }
}

/// Says which keys of the file are of no use here.
pub(super) fn pass_over(keys: &Keyring) {
    for (key, reason) in keys.passed_over() {
        tracing::warn!(key, reason, "a key of auth.keys_file is passed over");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::signer;

    fn name(path: &Path) -> crate::config::FilePath {
        path.to_str().expect("UTF-8").parse().expect("a path")
    }

    #[test]
    fn files_with_secrets_are_their_owners_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys.json");
        let secret = signer::new_jwks("dev", &[9; 32]);
        let public = include_str!("../../tests/keys/p256.pub.pem");
        let mut config = Config::default();
        assert!(load(&config).expect("nothing to read").is_empty());
        config.auth.keys_file = name(&path);
        let error = load(&config).expect_err("it is not there").to_string();
        assert!(error.starts_with("auth.keys_file = \"") && error.contains("cannot be read"), "{error}");
        for (text, mode, expected) in [
            (secret.as_str(), 0o600, None),
            (&secret, 0o640, Some("others can read the secret in it (mode 640); chmod 600 the file")),
            (public, 0o644, None),
            (public, 0o664, Some("others could put keys of theirs in it (mode 664); chmod go-w the file")),
            ("garbage", 0o600, Some("neither a JWK set")),
        ] {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the mode");
            match (load(&config), expected) {
                (Ok(keys), None) => assert_eq!(keys.len(), 1),
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (outcome, _) => panic!("{outcome:?}"),
            }
        }
        fs::write(&path, public).expect("written");
        config.auth.secret = "a key that nobody guesses, at all".into();
        assert_eq!(load(&config).expect("both").len(), 2);
    }
}
