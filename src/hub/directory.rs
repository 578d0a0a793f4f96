//! Which channels exist: name, number, epoch, home worker, and who still needs them. Shared by all workers behind one lock
//! that only control messages take; nothing on the data path does. Never knows subscribers or sockets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pattern::Pattern;
use crate::pattern::index::PatternIndex;
use crate::presence;
use crate::wire::ChannelId;

/// What never changes in a channel's life.
#[derive(Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its number.
    pub id: ChannelId,
    /// Its name.
    pub name: Box<str>,
    /// The life of its sequence; random.
    pub epoch: u32,
    /// The worker that owns its sequence.
    pub home: usize,
}

/// Why somebody holds a channel open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To publish: patterns find the channel from now on.
    Publisher,
    /// To subscribe by name.
    Subscriber,
}

/// The server has as many channels as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryFull;

/// A channel that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The channel.
    pub info: Arc<ChannelInfo>,
    /// Whether patterns have to be told: it is published to for the first time, or whoever did that is not done yet. Then
    /// [`Directory::note_announced`] follows.
    pub announce: bool,
    /// The `$presence` channel that has come into being with it, because a pattern wants it: patterns have to be told.
    pub teller: Option<Arc<ChannelInfo>>,
}

/// Patterns of subscriptions that begin with `$presence.`: what they match exists as soon as the channel that it tells of does.
#[derive(Debug, Default)]
struct Tellers {
    patterns: PatternIndex<()>,
    name_bytes_max: usize,
}

/// See the module's page.
#[derive(Debug)]
pub struct Directory {
    by_name: HashMap<Box<str>, Listed>,
    by_id: HashMap<ChannelId, Box<str>>,
    next_id: u32,
    workers: usize,
    channels_max: usize,
    tellers: Tellers,
}

#[derive(Debug)]
struct Listed {
    info: Arc<ChannelInfo>,
    published: bool,
    /// Whether every pattern that matches has joined.
    announced: bool,
    holders: usize,
    free_since: Option<Instant>,
}

impl Directory {
    /// An empty directory for that many workers and at most `channels_max` channels.
    #[must_use]
    pub fn new(workers: usize, channels_max: usize) -> Self {
        Self {
            by_name: HashMap::new(),
            by_id: HashMap::new(),
            next_id: 1,
            workers,
            channels_max,
            tellers: Tellers::default(),
        }
    }

    /// Opens a channel by its (checked) name, and makes it if need be. Each call is one hold, given back with
    /// [`Directory::release`].
    ///
    /// # Errors
    /// The channel is new and the server has no room for it.
    pub fn open(&mut self, name: &str, role: Role) -> Result<Opened, DirectoryFull> {
        let is_new = self.list(name)?;
        let Some(listed) = self.by_name.get_mut(name) else { return Err(DirectoryFull) };
        listed.holders += 1;
        listed.free_since = None;
        listed.published |= role == Role::Publisher;
        let announce = role == Role::Publisher && !listed.announced;
        let info = Arc::clone(&listed.info);
        let teller = if is_new { self.list_wanted_teller(name) } else { None };
        Ok(Opened { info, announce, teller })
    }

    /// Makes a channel, if need be, that nobody holds. Returns whether it is new.
    fn list(&mut self, name: &str) -> Result<bool, DirectoryFull> {
        if self.by_name.contains_key(name) {
            return Ok(false);
        }
        if self.by_name.len() >= self.channels_max || self.next_id == u32::MAX {
            return Err(DirectoryFull);
        }
        let id = ChannelId(self.next_id);
        self.next_id += 1;
        let home = home_of(name, self.workers);
        let info = Arc::new(ChannelInfo { id, name: name.into(), epoch: fastrand::u32(1..), home });
        self.by_id.insert(id, name.into());
        let listed = Listed { info, published: false, announced: false, holders: 0, free_since: None };
        self.by_name.insert(name.into(), listed);
        Ok(true)
    }

    /// The number of a channel.
    #[must_use]
    pub fn number_of(&self, name: &str) -> Option<ChannelId> {
        self.by_name.get(name).map(|listed| listed.info.id)
    }

    /// From now on the `$presence` channels exist that a new subscription's pattern matches, of channels that are here and of those
    /// to come, as far as there is room for these. At most `limit` and one more are made at once, with names of at most
    /// `name_bytes_max` bytes. To be undone with [`Directory::forget_tellers`].
    ///
    /// # Errors
    /// The server has no room for those of the channels that are here.
    pub fn want_tellers(
        &mut self,
        pattern: &Pattern,
        limit: usize,
        name_bytes_max: usize,
    ) -> Result<(), DirectoryFull> {
        let told_of =
            presence::told_of(pattern.as_str()).and_then(|text| Pattern::parse(text, text.len()).ok());
        if let Some(told_of) = told_of {
            // Names are compared first: most of very many do not match.
            let names = self.by_name.keys().filter(|name| told_of.matches(name));
            let tellers = names.filter_map(|name| presence::valid_teller_of(name, name_bytes_max));
            let tellers: Vec<String> = tellers.take(limit.saturating_add(1)).collect();
            for teller in tellers {
                self.list_teller(&teller)?;
            }
        }
        self.tellers.name_bytes_max = name_bytes_max;
        self.tellers.patterns.insert(pattern, ());
        Ok(())
    }

    /// A subscription has ended.
    pub fn forget_tellers(&mut self, pattern: &Pattern) {
        self.tellers.patterns.remove(pattern, ());
    }

    /// Makes the `$presence` channel of a new channel, if a pattern wants it. Returns it if patterns do not know it yet.
    fn list_wanted_teller(&mut self, name: &str) -> Option<Arc<ChannelInfo>> {
        if self.tellers.patterns.is_empty() {
            return None;
        }
        let teller = presence::valid_teller_of(name, self.tellers.name_bytes_max)?;
        let mut wanted = false;
        self.tellers.patterns.matching(&teller, &mut |()| wanted = true);
        if wanted { self.list_teller(&teller).ok().flatten() } else { None }
    }

    /// Has patterns find a `$presence` channel. Returns it if they did not before.
    fn list_teller(&mut self, name: &str) -> Result<Option<Arc<ChannelInfo>>, DirectoryFull> {
        self.list(name)?;
        let listed = self.by_name.get_mut(name).filter(|listed| !listed.published);
        Ok(listed.map(|listed| {
            listed.published = true;
            Arc::clone(&listed.info)
        }))
    }

    /// Every pattern that matches the channel has joined: the next publisher need not wait for them.
    pub fn note_announced(&mut self, id: ChannelId) {
        if let Some(listed) = self.by_id.get(&id).and_then(|name| self.by_name.get_mut(name)) {
            listed.announced = true;
        }
    }

    /// The published channels that a pattern matches, at most `limit` and one more; each comes with a hold.
    pub fn open_matching(&mut self, pattern: &Pattern, limit: usize) -> Vec<Arc<ChannelInfo>> {
        let mut found = Vec::new();
        for (name, listed) in &mut self.by_name {
            if listed.published && pattern.matches(name) {
                listed.holders += 1;
                listed.free_since = None;
                found.push(Arc::clone(&listed.info));
                if found.len() > limit {
                    break;
                }
            }
        }
        found
    }

    /// One more hold on a channel that is known to be held; `false` if it is gone.
    pub fn hold(&mut self, id: ChannelId) -> bool {
        let Some(listed) = self.by_id.get(&id).and_then(|name| self.by_name.get_mut(name)) else {
            return false;
        };
        listed.holders += 1;
        listed.free_since = None;
        true
    }

    /// Gives back one hold.
    pub fn release(&mut self, id: ChannelId, now: Instant) {
        if let Some(listed) = self.by_id.get(&id).and_then(|name| self.by_name.get_mut(name)) {
            debug_assert!(listed.holders > 0, "released more often than opened");
            listed.holders = listed.holders.saturating_sub(1);
            if listed.holders == 0 {
                listed.free_since = Some(now);
            }
        }
    }

    /// Forgets the channels that nobody has held for `linger`; their homes have to forget them too.
    pub fn sweep(&mut self, linger: Duration, now: Instant) -> Vec<Arc<ChannelInfo>> {
        let mut gone = Vec::new();
        self.by_name.retain(|_, listed| {
            if listed.holders == 0 {
                // The server's own may never have been held.
                listed.free_since.get_or_insert(now);
            }
            let keep = listed.free_since.is_none_or(|since| now.saturating_duration_since(since) < linger);
            if !keep {
                gone.push(Arc::clone(&listed.info));
            }
            keep
        });
        for info in &gone {
            self.by_id.remove(&info.id);
        }
        gone
    }

    /// How many channels there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// FNV-1a: the same name has the same home in every life of a server with as many workers.
#[must_use]
pub fn home_of(name: &str, workers: usize) -> usize {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash % workers.max(1) as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, 255).unwrap()
    }

    #[test]
    fn a_channel_is_announced_until_all_patterns_have_joined() {
        let mut directory = Directory::new(2, 10);
        let opened = directory.open("a.b", Role::Subscriber).unwrap();
        assert!(!opened.announce);
        assert!(directory.open_matching(&pattern("a.*"), 10).is_empty(), "nobody publishes yet");
        let published = directory.open("a.b", Role::Publisher).unwrap();
        assert!(published.announce);
        assert_eq!(published.info, opened.info);
        assert!(directory.open("a.b", Role::Publisher).unwrap().announce, "the first one is not done yet");
        directory.note_announced(opened.info.id);
        assert!(!directory.open("a.b", Role::Publisher).unwrap().announce);
        assert_eq!(directory.open_matching(&pattern("a.*"), 10), [opened.info]);
    }

    #[test]
    fn a_channel_lingers_and_its_number_is_never_used_again() {
        let linger = Duration::from_secs(60);
        let start = Instant::now();
        let mut directory = Directory::new(1, 1);
        let first = directory.open("a", Role::Publisher).unwrap().info;
        assert_eq!(directory.open("b", Role::Publisher).unwrap_err(), DirectoryFull);
        assert!(directory.hold(first.id));
        directory.release(first.id, start);
        assert!(directory.sweep(linger, start + linger).is_empty(), "still held once");
        directory.release(first.id, start);
        assert!(directory.sweep(linger, start + linger / 2).is_empty());
        assert_eq!(directory.open("a", Role::Publisher).unwrap().info, first, "the same life");
        assert!(directory.sweep(linger, start + linger).is_empty(), "held again");
        directory.release(first.id, start);
        assert_eq!(directory.sweep(linger, start + linger), [Arc::clone(&first)]);
        assert!(!directory.hold(first.id));
        let second = directory.open("a", Role::Publisher).unwrap();
        assert_ne!(second.info.id, first.id);
        assert!(second.announce);
    }

    #[test]
    fn what_tells_who_is_there_exists_while_a_pattern_wants_it() {
        let (linger, start) = (Duration::from_secs(60), Instant::now());
        let mut directory = Directory::new(1, 7);
        let names = |found: Vec<Arc<ChannelInfo>>| {
            let mut names: Vec<_> = found.iter().map(|info| info.name.to_string()).collect();
            names.sort_unstable();
            names
        };
        for name in ["a.1", "a.2", "b", "$sys.a"] {
            assert!(directory.open(name, Role::Publisher).unwrap().teller.is_none(), "nobody wants it");
        }
        let wanted = pattern("$presence.a.*");
        directory.want_tellers(&wanted, 10, 255).unwrap();
        assert_eq!(names(directory.open_matching(&wanted, 10)), ["$presence.a.1", "$presence.a.2"]);
        let mut directory = Directory::new(1, 7);
        directory.want_tellers(&wanted, 10, 255).unwrap();
        // One that was subscribed by its name before there was anything to tell of.
        directory.open("$presence.a.1", Role::Subscriber).unwrap();
        assert!(directory.open_matching(&wanted, 10).is_empty());
        for (name, teller) in [("a.1", true), ("a.2", true), ("b", false), ("a.1", false)] {
            let opened = directory.open(name, Role::Subscriber).unwrap();
            assert_eq!(opened.teller.is_some(), teller, "{name}");
        }
        assert_eq!(names(directory.open_matching(&wanted, 10)), ["$presence.a.1", "$presence.a.2"]);
        // There is no room for what would tell of it, but for the channel there is.
        for name in ["c", "a.4"] {
            assert!(directory.open(name, Role::Subscriber).unwrap().teller.is_none(), "{name}");
        }
        assert_eq!(directory.len(), 7);
        directory.forget_tellers(&wanted);

        let mut directory = Directory::new(1, 7);
        directory.want_tellers(&wanted, 10, 255).unwrap();
        directory.open("a.1", Role::Subscriber).unwrap();
        directory.forget_tellers(&wanted);
        assert!(directory.open("a.2", Role::Subscriber).unwrap().teller.is_none());
        assert!(directory.sweep(linger, start).is_empty(), "patterns may still be on their way to hold it");
        assert_eq!(names(directory.sweep(linger, start + linger)), ["$presence.a.1"]);
    }

    #[test]
    fn a_home_depends_on_the_name_alone() {
        for workers in 1..9 {
            let home = home_of("robot.7.imu", workers);
            assert!(home < workers);
            assert_eq!(home, home_of("robot.7.imu", workers));
        }
    }
}
