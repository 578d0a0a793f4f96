//! Files that an operator names: read up to a bound, with a look at who else can read them. Never says what is in one.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The largest file that is read, in bytes: many times what any configuration or set of keys takes, and an end for
/// `/dev/zero`.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a text of at most [`FILE_BYTES_MAX`] bytes; with the mode of its file.
///
/// # Errors
/// It cannot be read, is longer, or is no UTF-8.
pub fn read(path: &Path) -> io::Result<(String, u32)> {
    let mut text = String::new();
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok((text, mode))
}

/// What is wrong with a file of this mode for a secret, with the remedy; nothing if its owner alone can use it.
#[must_use]
pub fn open_to_others(mode: u32) -> Option<String> {
    (mode & 0o077 != 0)
        .then(|| format!("others can read the secret in it (mode {:03o}); chmod 600 the file", mode & 0o777))
}
