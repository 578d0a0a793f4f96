//! The files of a store: what it asks of a disk, and a folder that gives it. Knows no record; the tests have a disk of their own
//! that loses power.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a store asks of a disk.
pub(super) trait Disk: Send + 'static {
    /// A file that is written.
    type File: Send;

    /// The names of all files with their lengths, in no order.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// The first `most` bytes of a file.
    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>>;

    /// Makes a file that is not there.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;

    /// Writes at the end. After an error nobody knows how much of it was written.
    fn write(&mut self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Returns when all that was written is safe from a loss of power. After an error nobody knows what is safe, and asking
    /// again would not tell.
    fn sync(&mut self, file: &mut Self::File) -> io::Result<()>;

    /// Returns when the names of files are safe as well.
    fn sync_names(&mut self) -> io::Result<()>;

    /// Makes a file shorter, and safe.
    fn cut(&mut self, name: &str, length: u64) -> io::Result<()>;

    /// Takes a file away. It may be back after a loss of power.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// Whether an error says that there is no room, now.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The file that says whose the folder is.
const LOCK: &str = "lock";

/// A folder of the file system, held for this process alone. Files that the store did not make are not looked at.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    names: File,
    /// The lock ends with the file, also when the process is killed.
    _lock: File,
}

impl Folder {
    /// Takes a folder, and makes it if it is not there. Nobody but its owner can read what it makes.
    ///
    /// # Errors
    /// Says in words why it cannot be had.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| format!("the folder cannot be made: {error}"))?;
        let names = File::open(path).map_err(|error| format!("the folder cannot be opened: {error}"))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(|error| format!("the folder cannot be written to: {error}"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                "another process uses the folder; give each server its own".to_owned()
            }
            TryLockError::Error(error) => format!("the folder cannot be locked: {error}"),
        })?;
        Ok(Self { path: path.to_owned(), names, _lock: lock })
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_file()) {
                files.push((name, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.join(name))
    }

    fn write(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&mut self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.names.sync_all()
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }
}
