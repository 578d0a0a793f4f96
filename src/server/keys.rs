//! The keys that tokens are checked with: read from their file, and again when it changes. Never says what is in one.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::auth::keyring::{Defaults, Keyring};
use crate::config::Config;
use crate::worker::Shared;

/// How often the file is looked at. A look, not a watch of the kernel's: mounted secrets change by a link two folders up.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What changes when a file does.
pub(super) type Version = (SystemTime, u64, u64);

/// All keys of a configuration.
///
/// # Errors
/// Names the setting, the file and what is wrong.
pub(super) fn load(config: &Config) -> io::Result<Keyring> {
    let auth = &config.auth;
    let defaults = Defaults { issuer: auth.issuer.as_deref(), audience: auth.audience.as_deref() };
    let mut keys = match auth.keys_file.get() {
        Some(path) => {
            let explain = |reason: String| {
                io::Error::other(format!(
                    "auth.keys_file = \"{}\": {reason}",
                    path.display().to_string().escape_debug()
                ))
            };
            let (text, mode) = read(path).map_err(|error| explain(format!("it cannot be read: {error}")))?;
            let keys = Keyring::parse(&text, defaults).map_err(|error| explain(error.to_string()))?;
            if keys.has_secret() && mode & 0o077 != 0 {
                let reason = format!(
                    "others can read the secret in it (mode {:03o}); chmod 600 the file",
                    mode & 0o777
                );
                return Err(explain(reason));
            }
            keys
        }
        None => Keyring::default(),
    };
    if !auth.secret.is_empty() {
        keys.add_secret(auth.secret.expose(), defaults)
            .map_err(|error| io::Error::other(format!("auth.secret: {error}")))?;
    }
    Ok(keys)
}

fn read(path: &Path) -> io::Result<(String, u32)> {
    let mut text = String::new();
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok((text, mode))
}

/// Which version of the file is there.
pub(super) fn version(config: &Config) -> Option<Version> {
    let metadata = fs::metadata(config.auth.keys_file.get()?).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Takes the keys anew whenever their file has changed since `seen`. What is wrong with a new file is logged, and the old keys
/// stay. Ends at once where there is no file.
pub(super) async fn watch(shared: &Shared, mut seen: Option<Version>) {
    if !shared.config.auth.keys_file.is_set() {
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
