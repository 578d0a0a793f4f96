//! Files that an operator names: read up to a bound, with a look at who else can read them. Never says what is in one.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// The largest file that is read, in bytes: many times what any configuration or set of keys takes, four times the bundle with
/// every public CA, and an end for `/dev/zero`.
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

/// What tells one state of a file from another, without reading it: also a link that points elsewhere, and permissions that
/// were mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Device, number and bytes.
    file: (u64, u64, u64),
    /// Seconds and nanoseconds of the last change of the bytes, and of all else.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The state of the file now; nothing where there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino(), metadata.len()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
