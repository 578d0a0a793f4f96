//! The keys that tokens are checked with: read from their file, and again when it changes. Never says what is in one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::auth::keyring::{Defaults, Keyring};
use crate::config::{Config, file};
use crate::worker::Shared;

/// How often the file is looked at. A look, not a watch of the kernel's: mounted secrets change by a link two folders up.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What changes when a file does.
pub(super) type Version = (SystemTime, u64, u64);

/// All keys of a configuration.
///
/// # Errors
/// Names the setting, the file and what is wrong.
pub(super) fn load(config: &Config) -> io::Result<Keyring> {
    let auth = &config.auth;
    let defaults = Defaults { issuer: auth.issuer.as_deref(), audience: auth.audience.as_deref() };
    let mut keys = match &auth.keys_file {
        Some(path) => read(path, defaults).map_err(|reason| {
            let path = path.display().to_string();
            io::Error::other(format!("auth.keys_file = \"{}\": {reason}", path.escape_debug()))
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
    match file::open_to_others(mode).filter(|_| keys.has_secret()) {
        Some(reason) => Err(reason),
        None => Ok(keys),
    }
}

/// Which version of the file is there.
pub(super) fn version(config: &Config) -> Option<Version> {
    let metadata = fs::metadata(config.auth.keys_file.as_ref()?).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Takes the keys anew whenever their file has changed since `seen`. What is wrong with a new file is logged, and the old keys
/// stay. Ends at once where there is no file.
pub(super) async fn watch(shared: &Shared, mut seen: Option<Version>) {
    if shared.config.auth.keys_file.is_none() {
        return;
    }
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        look.tick().await;
        // A file takes less time to read than to hand to another thread, and no connection waits for this one.
        let current = version(&shared.config);
        if current == seen {
            continue;
        }
        seen = current;
        match load(&shared.config) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the keys for tokens were read again");
                shared.gate.replace_keys(keys);
            }
            Err(error) => tracing::warn!(%error, "the keys for tokens stay as they were"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::signer;

    #[test]
    fn files_with_secrets_are_their_owners_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys.json");
        let secret = signer::new_jwks("dev", &[9; 32]);
        let public = include_str!("../../tests/keys/p256.pub.pem");
        let mut config = Config::default();
        assert!(load(&config).expect("nothing to read").is_empty());
        config.auth.keys_file = Some(path.clone());
        let error = load(&config).expect_err("it is not there").to_string();
        assert!(error.starts_with("auth.keys_file = \"") && error.contains("cannot be read"), "{error}");
        for (text, mode, expected) in [
            (secret.as_str(), 0o600, None),
            (&secret, 0o640, Some("others can read the secret in it (mode 640); chmod 600 the file")),
            (public, 0o644, None),
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
