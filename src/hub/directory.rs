//! Which channels exist: name, number, epoch, home worker, and who still needs them. Shared by all workers behind one lock
//! that only control messages take; nothing on the data path does. Never knows subscribers or sockets.
//!
//! Beside the channels that are published to here stand mirrors: the streams of the same or other names that other servers
//! publish. And it keeps a list of names that other servers have to hear of.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::history::store::Life;
use crate::pattern::Pattern;
use crate::pattern::index::PatternIndex;
use crate::presence;
use crate::wire::relay::NodeId;
use crate::wire::{ChannelId, Seq};

/// Mirrors of one name: servers that publish it now, and their lives of a little while ago. More come from a fault, or from a foe on
/// the broker.
pub const MIRRORS_PER_NAME_MAX: usize = 64;

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
    /// The server that gives it its sequence, if that is another one.
    pub origin: Option<NodeId>,
    /// Of another one: the samples up to this are in the stream of this server that has gone on from there, and not in this one.
    pub floor: Seq,
    /// How it goes on, if its history is on the disk.
    pub life: Option<Box<Life>>,
}

impl ChannelInfo {
    /// Sequence of the first sample that it can get from its publishers here.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        self.life.as_ref().map_or(1, |life| life.next_seq)
    }

    /// Up to which sequence a life of a sequence is in this stream: all of its own, and what it has gone on from.
    fn reaches(&self, epoch: u32) -> Option<Seq> {
        match &self.life {
            Some(life) => life.reaches(epoch),
            None => (self.epoch == epoch).then_some(Seq::MAX),
        }
    }
}

/// Why somebody holds a channel open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To publish: patterns find the channel from now on.
    Publisher,
    /// To subscribe.
    Subscriber,
}

/// Why there is no mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMirror {
    /// It is new, and there is no room for it.
    Full,
    /// It is a life of this server's own stream, and what is wanted of it is there.
    Own,
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
    mirrors: HashMap<Box<str>, Vec<Listed>>,
    by_id: HashMap<ChannelId, Arc<ChannelInfo>>,
    next_id: u32,
    workers: usize,
    channels_max: usize,
    /// Names that are published to since lately, or not any more, if anybody wants to know.
    changed: Option<HashSet<Box<str>>>,
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

impl Listed {
    const fn new(info: Arc<ChannelInfo>) -> Self {
        Self { info, published: false, announced: false, holders: 0, free_since: None }
    }

    const fn hold(&mut self) {
        self.holders += 1;
        self.free_since = None;
    }
}

impl Directory {
    /// An empty directory for that many workers and at most `channels_max` channels.
    #[must_use]
    pub fn new(workers: usize, channels_max: usize) -> Self {
        Self {
            by_name: HashMap::new(),
            mirrors: HashMap::new(),
            by_id: HashMap::new(),
            next_id: 1,
            workers,
            channels_max,
            changed: None,
            tellers: Tellers::default(),
        }
    }

    /// From now on, names that are published to or not any more are kept for [`Directory::take_changed`].
    pub fn note_changes(&mut self) {
        self.changed.get_or_insert_default();
    }

    /// The names that are published to since the last call, or not any more, and the channels of those that are.
    pub fn take_changed(&mut self) -> Vec<(Box<str>, Option<Arc<ChannelInfo>>)> {
        let names = self.changed.as_mut().map_or_else(Vec::new, |changed| changed.drain().collect());
        names.into_iter().map(|name: Box<str>| (name.clone(), self.published_as(&name))).collect()
    }

    /// The channel of a name that is published to here.
    #[must_use]
    pub fn published_as(&self, name: &str) -> Option<Arc<ChannelInfo>> {
        self.by_name.get(name).filter(|own| own.published).map(|own| Arc::clone(&own.info))
    }

    /// Opens a channel by its (checked) name, and makes it if need be. Each call is one hold, given back with
    /// [`Directory::release`].
    ///
    /// # Errors
    /// The channel is new and the server has no room for it.
    pub fn open(&mut self, name: &str, role: Role) -> Result<Opened, DirectoryFull> {
        self.open_life(name, role, None)
    }

    /// The same for a stream that may go on from the disk.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_life(&mut self, name: &str, role: Role, life: Option<Life>) -> Result<Opened, DirectoryFull> {
        let is_new = self.list(name, life)?;
        let Some(listed) = self.by_name.get_mut(name) else { return Err(DirectoryFull) };
        let changed = role == Role::Publisher && !listed.published;
        listed.published |= role == Role::Publisher;
        listed.hold();
        let announce = role == Role::Publisher && !listed.announced;
        let info = Arc::clone(&listed.info);
        if changed {
            self.note_changed(name);
        }
        let teller = if is_new { self.list_wanted_teller(name) } else { None };
        Ok(Opened { info, announce, teller })
    }

    /// Makes a channel, if need be, that nobody holds. Returns whether it is new.
    fn list(&mut self, name: &str, life: Option<Life>) -> Result<bool, DirectoryFull> {
        if self.by_name.contains_key(name) {
            return Ok(false);
        }
        let epoch = life.as_ref().map_or_else(|| fastrand::u32(1..), |life| life.epoch);
        let info = self.new_channel(name, epoch, None, life)?;
        self.by_name.insert(name.into(), Listed::new(info));
        Ok(true)
    }

    /// The mirrors of a name, at most `limit`; each comes with a hold.
    pub fn open_mirrors(&mut self, name: &str, limit: usize) -> Vec<Arc<ChannelInfo>> {
        let mirrors = self.mirrors.get_mut(name).into_iter().flatten().filter(|listed| listed.published);
        let hold = |listed: &mut Listed| {
            listed.hold();
            Arc::clone(&listed.info)
        };
        mirrors.take(limit).map(hold).collect()
    }

    /// The mirror of another server's stream, made if need be, for samples up to `upto`. Comes without a hold: it lingers until
    /// somebody holds it.
    ///
    /// The other server may have been this one, before it was started again with its history on the disk: of what was not safe there
    /// at its end, a broker may have kept more than the disk.
    ///
    /// # Errors
    /// See [`NoMirror`].
    pub fn open_mirror(
        &mut self,
        name: &str,
        epoch: u32,
        origin: NodeId,
        upto: Seq,
        stored: Option<Seq>,
        now: Instant,
    ) -> Result<Arc<ChannelInfo>, NoMirror> {
        let known = self.mirrors.get(name).map(Vec::as_slice).unwrap_or_default();
        if let Some(listed) = known.iter().find(|listed| listed.info.epoch == epoch) {
            let info = Arc::clone(&listed.info);
            // It may have ended, and goes on.
            self.set_mirror_published(info.id, true);
            return Ok(info);
        }
        let floor = self.by_name.get(name).map_or(stored, |own| own.info.reaches(epoch)).unwrap_or(0);
        // Where it begins is told before there is a sample.
        if floor > 0 && upto <= floor {
            return Err(NoMirror::Own);
        }
        if known.len() >= MIRRORS_PER_NAME_MAX {
            return Err(NoMirror::Full);
        }
        let origin = Some((origin, floor));
        let info = self.new_channel(name, epoch, origin, None).map_err(|_| NoMirror::Full)?;
        let listed = Listed { published: true, free_since: Some(now), ..Listed::new(Arc::clone(&info)) };
        self.mirrors.entry(name.into()).or_default().push(listed);
        Ok(info)
    }

    /// A stream of another server has ended: nobody finds it any more, and it goes when those have left who have it.
    pub fn end_mirror(&mut self, name: &str, epoch: u32) -> Option<Arc<ChannelInfo>> {
        let mirrors = self.mirrors.get(name)?;
        let info = mirrors.iter().map(|listed| &listed.info).find(|info| info.epoch == epoch)?;
        let info = Arc::clone(info);
        self.set_mirror_published(info.id, false);
        Some(info)
    }

    fn set_mirror_published(&mut self, id: ChannelId, published: bool) {
        if let Some(listed) = self.listed(id) {
            listed.published = published;
        }
    }

    /// Whether there is room for one more channel.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.by_id.len() < self.channels_max && self.next_id < u32::MAX
    }

    fn new_channel(
        &mut self,
        name: &str,
        epoch: u32,
        origin: Option<(NodeId, Seq)>,
        life: Option<Life>,
    ) -> Result<Arc<ChannelInfo>, DirectoryFull> {
        if !self.has_room() {
            return Err(DirectoryFull);
        }
        let id = ChannelId(self.next_id);
        self.next_id += 1;
        let home = home_of(name, self.workers);
        let (origin, floor) = origin.unzip();
        let (name, floor, life) = (name.into(), floor.unwrap_or(0), life.map(Box::new));
        let info = Arc::new(ChannelInfo { id, name, epoch, home, origin, floor, life });
        self.by_id.insert(id, Arc::clone(&info));
        Ok(info)
    }

    /// The numbers of a name: of the channel, and of its mirrors.
    #[must_use]
    pub fn numbers_of(&self, name: &str) -> Vec<ChannelId> {
        let mirrors = self.mirrors.get(name).into_iter().flatten();
        self.by_name.get(name).into_iter().chain(mirrors).map(|listed| listed.info.id).collect()
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
        self.list(name, None)?;
        let listed = self.by_name.get_mut(name).filter(|listed| !listed.published);
        Ok(listed.map(|listed| {
            listed.published = true;
            Arc::clone(&listed.info)
        }))
    }

    /// Every pattern that matches the channel has joined: the next publisher need not wait for them.
    pub fn note_announced(&mut self, id: ChannelId) {
        if let Some(listed) = self.listed(id) {
            listed.announced = true;
        }
    }

    /// The published channels that a pattern matches, mirrors among them, at most `limit` and one more; each comes with a hold.
    pub fn open_matching(&mut self, pattern: &Pattern, limit: usize) -> Vec<Arc<ChannelInfo>> {
        let mut found = Vec::new();
        let own = self.by_name.values_mut();
        for listed in own.chain(self.mirrors.values_mut().flatten()) {
            if listed.published && pattern.matches(&listed.info.name) {
                listed.hold();
                found.push(Arc::clone(&listed.info));
                if found.len() > limit {
                    break;
                }
            }
        }
        found
    }

    /// The channel of that name, if there is one; without a hold.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<ChannelInfo>> {
        self.by_name.get(name).map(|listed| Arc::clone(&listed.info))
    }

    /// One more hold on a channel; `false` if it is gone, or is a stream of another server that has ended.
    pub fn hold(&mut self, id: ChannelId) -> bool {
        let listed = self.listed(id).filter(|listed| listed.published || listed.info.origin.is_none());
        listed.map(Listed::hold).is_some()
    }

    /// Gives back one hold.
    pub fn release(&mut self, id: ChannelId, now: Instant) {
        if let Some(listed) = self.listed(id) {
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
        let mut keep = |listed: &mut Listed| {
            if listed.holders == 0 {
                // The server's own may never have been held.
                listed.free_since.get_or_insert(now);
            }
            let keep = listed.free_since.is_none_or(|since| now.saturating_duration_since(since) < linger);
            if !keep {
                gone.push(Arc::clone(&listed.info));
            }
            keep
        };
        self.by_name.retain(|_, listed| keep(listed));
        self.mirrors.retain(|_, mirrors| {
            mirrors.retain_mut(&mut keep);
            !mirrors.is_empty()
        });
        for info in &gone {
            self.by_id.remove(&info.id);
            if info.origin.is_none() {
                self.note_changed(&info.name);
            }
        }
        gone
    }

    /// How many channels there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn listed(&mut self, id: ChannelId) -> Option<&mut Listed> {
        let info = self.by_id.get(&id)?;
        match info.origin {
            None => self.by_name.get_mut(&info.name),
            Some(_) => self.mirrors.get_mut(&info.name)?.iter_mut().find(|listed| listed.info.id == id),
        }
    }

    fn note_changed(&mut self, name: &str) {
        if let Some(changed) = &mut self.changed
            && !changed.contains(name)
        {
            changed.insert(name.into());
        }
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
    use crate::history::store::{Ancestor, StreamKey};

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
    fn a_mirror_is_found_like_a_channel_and_lingers_like_one() {
        let (node, linger, start) = (NodeId(7), Duration::from_secs(60), Instant::now());
        let mut directory = Directory::new(2, 3);
        let mirror = directory.open_mirror("a.b", 5, node, 1, None, start).unwrap();
        assert_eq!(directory.len(), 1);
        assert_eq!(
            directory.open_mirror("a.b", 5, node, 1, None, start),
            Ok(Arc::clone(&mirror)),
            "the same stream"
        );
        assert_eq!(directory.len(), 1);
        assert_eq!(directory.open_matching(&pattern("a.*"), 10), [Arc::clone(&mirror)]);
        let own = directory.open("a.b", Role::Subscriber).unwrap().info;
        assert_eq!(directory.open_mirrors("a.b", 10), [Arc::clone(&mirror)]);
        assert_eq!((mirror.origin, own.home), (Some(node), mirror.home));
        assert_eq!(directory.numbers_of("a.b"), [own.id, mirror.id]);
        assert_eq!(directory.open_mirror("a.b", own.epoch, node, 1, None, start), Err(NoMirror::Own));
        assert_eq!(directory.end_mirror("a.b", 5), Some(Arc::clone(&mirror)));
        assert_eq!(directory.open_mirrors("a.b", 10), [], "nobody finds what has ended");
        assert_eq!(
            directory.open_mirror("a.b", 5, node, 1, None, start),
            Ok(Arc::clone(&mirror)),
            "it goes on"
        );
        assert_eq!(directory.len(), 2);
        directory.open_mirror("c", 5, node, 1, None, start).unwrap();
        assert_eq!(directory.open_mirror("d", 5, node, 1, None, start), Err(NoMirror::Full));
        directory.release(mirror.id, start);
        assert_eq!(directory.sweep(linger, start + linger).len(), 1, "c; the other is held still");
        directory.release(mirror.id, start);
        assert_eq!(directory.sweep(linger, start + linger), [mirror]);
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn what_a_stream_has_gone_on_from_is_no_other_stream() {
        let (node, start) = (NodeId(7), Instant::now());
        let mut directory = Directory::new(1, 10);
        let lineage = vec![Ancestor { epoch: 1, last: 100 }, Ancestor { epoch: 2, last: 250 }];
        let life = Life { key: StreamKey(0), epoch: 3, next_seq: 251, lineage };
        directory.open_life("a", Role::Subscriber, Some(life)).unwrap();
        for (epoch, upto) in [(1, 1), (1, 100), (2, 250), (3, 1), (3, 1_000)] {
            assert_eq!(
                directory.open_mirror("a", epoch, node, upto, None, start),
                Err(NoMirror::Own),
                "{epoch}"
            );
        }
        // What was not safe on the disk at the end of a life, and a life that the stream knows nothing of.
        for (epoch, upto, floor) in [(1, 101, 100), (2, 251, 250), (4, 1, 0)] {
            assert_eq!(directory.open_mirror("a", epoch, node, upto, None, start).unwrap().floor, floor);
        }
        assert_eq!(directory.open_mirror("b", 1, node, 0, None, start).unwrap().floor, 0, "another name");
        // Nobody has opened it yet, and it is on the disk.
        assert_eq!(directory.open_mirror("c", 1, node, 100, Some(100), start), Err(NoMirror::Own));
        assert_eq!(directory.open_mirror("c", 1, node, 101, Some(100), start).unwrap().floor, 100);
    }

    #[test]
    fn a_name_has_a_bounded_number_of_mirrors() {
        let mut directory = Directory::new(1, 1_000);
        for epoch in 1..=64 {
            assert!(directory.open_mirror("a", epoch, NodeId(7), 1, None, Instant::now()).is_ok());
        }
        assert_eq!(directory.open_mirror("a", 65, NodeId(7), 1, None, Instant::now()), Err(NoMirror::Full));
    }

    #[test]
    fn what_is_published_to_since_lately_is_told_once() {
        let start = Instant::now();
        let mut directory = Directory::new(1, 10);
        directory.open("a", Role::Publisher).unwrap();
        assert!(directory.take_changed().is_empty(), "nobody wants to know");
        directory.note_changes();
        let b = directory.open("b", Role::Subscriber).unwrap().info;
        directory.open_mirror("c", 5, NodeId(7), 1, None, start).unwrap();
        assert!(directory.take_changed().is_empty(), "nobody publishes it here");
        directory.open("b", Role::Publisher).unwrap();
        directory.open("b", Role::Publisher).unwrap();
        assert_eq!(directory.take_changed(), [("b".into(), Some(Arc::clone(&b)))]);
        (0..3).for_each(|_| directory.release(b.id, start));
        assert!(directory.take_changed().is_empty(), "it lingers");
        directory.sweep(Duration::ZERO, start);
        assert_eq!(directory.take_changed(), [("b".into(), None)]);
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
