//! A disk in memory that loses power, gets full, fails and rots, for the tests. Knows no record.
//!
//! A loss of power keeps what was synced. Of what was written since, it keeps a beginning of any length with any pages of it empty;
//! a file whose name was not synced may be gone, and one that was removed may be back. A sync that fails loses what it was
//! for, for good, though the next one succeeds: that is what Linux does.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Disk;

/// What a loss of power may leave out by itself.
const PAGE: usize = 64;

#[derive(Clone, Debug, Default)]
struct SimulatedFile {
    data: Vec<u8>,
    /// What is safe: as long as what was synced, and the same but where a sync failed.
    safe: Vec<u8>,
    named: bool,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<String, SimulatedFile>,
    /// Removed, but not safely.
    removed: BTreeMap<String, SimulatedFile>,
    room: Option<usize>,
    failing_syncs: u32,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Simulated(Arc<Mutex<Platter>>);

impl Simulated {
    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets so many bytes more be written, or any number.
    pub(super) fn set_room(&self, room: Option<usize>) {
        self.lock().room = room;
    }

    /// Fails the next so many syncs and cuts.
    pub(super) fn fail_syncs(&self, syncs: u32) {
        self.lock().failing_syncs = syncs;
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().files.values().map(|file| file.data.len() as u64).sum()
    }

    /// What is written under a name.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    /// Has `change` change a file, safely.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut platter = self.lock();
        let file = platter.files.get_mut(name).expect("a file of the disk");
        change(&mut file.data);
        file.safe = file.data.clone();
    }

    /// Puts a file there, safely.
    pub(super) fn put(&self, name: &str, data: &[u8]) {
        let file = SimulatedFile { data: data.to_vec(), safe: data.to_vec(), named: true };
        self.lock().files.insert(name.to_owned(), file);
    }

    /// Takes a file away, safely.
    pub(super) fn destroy(&self, name: &str) {
        self.lock().files.remove(name);
    }

    /// Loses power; any number decides what of the rest is left.
    pub(super) fn lose_power(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut platter = self.lock();
        let removed = std::mem::take(&mut platter.removed);
        platter.files.retain(|_, file| file.named || random.bool());
        for (name, file) in removed {
            if random.bool() {
                platter.files.entry(name).or_insert(file);
            }
        }
        for file in platter.files.values_mut() {
            let mut rest = file.data.split_off(file.safe.len().min(file.data.len()));
            rest.truncate(random.usize(0..=rest.len()));
            for page in rest.chunks_mut(PAGE) {
                if random.u8(..) < 64 {
                    page.fill(0);
                }
            }
            file.safe.append(&mut rest);
            file.data = file.safe.clone();
            file.named = true;
        }
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Disk for Simulated {
    type File = String;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.lock().files.iter().map(|(name, file)| (name.clone(), file.data.len() as u64)).collect())
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let platter = self.lock();
        let data = &platter.files.get(name).ok_or_else(missing)?.data;
        Ok(data[..data.len().min(usize::try_from(most).unwrap_or(usize::MAX))].to_vec())
    }

    fn create(&mut self, name: &str) -> io::Result<String> {
        let before = self.lock().files.insert(name.to_owned(), SimulatedFile::default());
        assert!(before.is_none(), "{name} is there");
        Ok(name.to_owned())
    }

    fn write(&mut self, file: &mut String, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.lock();
        let fits = platter.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        platter.room = platter.room.map(|room| room - fits);
        let file = platter.files.get_mut(file).ok_or_else(missing)?;
        file.data.extend(&bytes[..fits]);
        if fits < bytes.len() { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    fn sync(&mut self, file: &mut String) -> io::Result<()> {
        let mut platter = self.lock();
        let fails = platter.failing_syncs > 0;
        platter.failing_syncs = platter.failing_syncs.saturating_sub(1);
        let file = platter.files.get_mut(file).ok_or_else(missing)?;
        let synced = file.safe.len();
        if fails {
            file.safe.resize(file.data.len(), 0);
            return Err(io::Error::other("the disk failed"));
        }
        file.safe.extend(&file.data[synced..]);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut platter = self.lock();
        platter.removed.clear();
        platter.files.values_mut().for_each(|file| file.named = true);
        Ok(())
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut platter = self.lock();
        if platter.failing_syncs > 0 {
            platter.failing_syncs -= 1;
            return Err(io::Error::other("the disk failed"));
        }
        let file = platter.files.get_mut(name).ok_or_else(missing)?;
        let length = usize::try_from(length).expect("a length of a file in memory");
        file.data.truncate(length);
        file.safe.truncate(length);
        let synced = file.safe.len();
        file.safe.extend(&file.data[synced..]);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut platter = self.lock();
        let file = platter.files.remove(name).ok_or_else(missing)?;
        if file.named {
            platter.removed.insert(name.to_owned(), file);
        }
        Ok(())
    }
}
