//! Which other servers there are, and what they publish. Pure: messages and instants come in, and what has changed goes out.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::message::Message;
use crate::wire::relay::NodeId;

/// A server that was not heard of for this long is gone: ten times the interval of its `hello`.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Shortest time between two requests for one server's list: less than between two of its `hello`, so that each may bring one.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Other servers at once. More come from a fault, or from a foe on the broker.
pub const PEERS_MAX: usize = 256;

/// See the module's page.
#[derive(Debug)]
pub struct Catalogue {
    peers: HashMap<NodeId, Peer>,
    /// Who publishes a name, and with which life of its sequence.
    names: HashMap<Box<str>, Vec<(NodeId, u32)>>,
    /// Names, each counted for each server that publishes it.
    entries: usize,
    entries_max: usize,
}

#[derive(Debug)]
struct Peer {
    heard: Instant,
    /// Changes that its list here has.
    revision: u64,
    /// Whether the list here is what it was at that revision.
    listed: bool,
    asked: Option<Instant>,
    connects: u64,
    channels: BTreeMap<Box<str>, u32>,
    /// A list that is coming in parts.
    coming: Option<Coming>,
}

#[derive(Debug)]
struct Coming {
    revision: u64,
    parts: u32,
    next: u32,
    channels: BTreeMap<Box<str>, u32>,
}

/// What follows from a message, or from silence.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// A server that was not known before.
    pub new: bool,
    /// Its list is needed.
    pub ask: bool,
    /// Its streams may have lost what nothing came behind of: it was cut off from the broker.
    pub doubt: Vec<Box<str>>,
    /// Names of which it is another matter now who publishes them.
    pub changed: Vec<Box<str>>,
    /// Its list here is what it is after this many changes, since just now.
    pub followed: Option<u64>,
}

impl Catalogue {
    /// An empty one of at most so many names, each counted for each server that publishes it.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { peers: HashMap::new(), names: HashMap::new(), entries: 0, entries_max }
    }

    /// The other servers that are there.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    /// Whether that server is there.
    #[must_use]
    pub fn knows(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// The other servers that publish a name, each with the life of its sequence.
    pub fn publishers(&self, name: &str) -> impl Iterator<Item = (NodeId, u32)> + '_ {
        self.names.get(name).into_iter().flatten().map(|(node, epoch)| (*node, *epoch))
    }

    /// The lives of a name's sequences on other servers.
    pub fn streams(&self, name: &str) -> impl Iterator<Item = u32> + '_ {
        self.publishers(name).map(|(_, epoch)| epoch)
    }

    /// Whether another server publishes a name.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The names that other servers publish.
    pub fn names(&self) -> impl Iterator<Item = &str> + '_ {
        self.names.keys().map(AsRef::as_ref)
    }

    /// Another server has said something about itself. What it says of its list is taken at the next chance if it does not fit what
    /// is known.
    pub fn handle(&mut self, node: NodeId, message: Message, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.peers.contains_key(&node) {
            if self.peers.len() >= PEERS_MAX {
                return outcome;
            }
            outcome.new = true;
            self.peers.insert(node, Peer::new(now));
        }
        let Some(peer) = self.peers.get_mut(&node) else { return outcome };
        peer.heard = now;
        match message {
            Message::Hello { revision, connects, .. } => {
                peer.listed &= peer.revision == revision;
                if peer.connects != connects {
                    outcome.doubt = peer.channels.keys().cloned().collect();
                    peer.connects = connects;
                }
            }
            Message::Changed { revision, opened, closed } => {
                if peer.listed && revision == peer.revision + 1 {
                    peer.revision = revision;
                    outcome.followed = Some(revision);
                    outcome.changed = self.change(node, opened, &closed);
                } else {
                    peer.listed &= revision <= peer.revision;
                }
            }
            Message::Listing { revision, part, parts, channels } => {
                // While parts come, it is not asked for again.
                peer.asked = Some(now);
                if let Some(all) = peer.take_part(revision, part, parts, channels, self.entries_max) {
                    peer.revision = revision;
                    peer.listed = true;
                    outcome.followed = Some(revision);
                    outcome.changed = self.replace(node, all);
                }
            }
            Message::List { .. }
            | Message::Seen { .. }
            | Message::Where { .. }
            | Message::Who { .. }
            | Message::Present { .. }
            | Message::Nobody {}
            | Message::Revoke { .. } => {}
        }
        if let Some(peer) = self.peers.get_mut(&node)
            && !peer.listed
            && peer.asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK_INTERVAL)
        {
            peer.asked = Some(now);
            outcome.ask = true;
        }
        outcome
    }

    /// Forgets the servers that were not heard of for [`SILENCE_MAX`]. Returns the names that they published.
    pub fn expire(&mut self, now: Instant) -> Vec<Box<str>> {
        let silent = |peer: &Peer| now.saturating_duration_since(peer.heard) >= SILENCE_MAX;
        let gone: Vec<_> =
            self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(node, _)| *node).collect();
        let changed = gone.iter().flat_map(|node| self.replace(*node, BTreeMap::new())).collect();
        gone.iter().for_each(|node| drop(self.peers.remove(node)));
        changed
    }

    fn change(
        &mut self,
        node: NodeId,
        opened: BTreeMap<Box<str>, u32>,
        closed: &[Box<str>],
    ) -> Vec<Box<str>> {
        let mut changed = Vec::new();
        for name in closed {
            if self.close(node, name) {
                changed.push(name.clone());
            }
        }
        for (name, epoch) in opened {
            if self.open(node, &name, epoch) {
                changed.push(name);
            }
        }
        changed
    }

    fn replace(&mut self, node: NodeId, all: BTreeMap<Box<str>, u32>) -> Vec<Box<str>> {
        let Some(peer) = self.peers.get(&node) else { return Vec::new() };
        let closed: Vec<_> = peer.channels.keys().filter(|name| !all.contains_key(*name)).cloned().collect();
        self.change(node, all, &closed)
    }

    fn open(&mut self, node: NodeId, name: &str, epoch: u32) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        if peer.channels.get(name) == Some(&epoch) {
            return false;
        }
        if peer.channels.contains_key(name) {
            self.close(node, name);
        } else if self.entries >= self.entries_max {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.channels.insert(name.into(), epoch);
        }
        self.names.entry(name.into()).or_default().push((node, epoch));
        self.entries += 1;
        true
    }

    fn close(&mut self, node: NodeId, name: &str) -> bool {
        let known = self.peers.get_mut(&node).is_some_and(|peer| peer.channels.remove(name).is_some());
        if known && let Some(publishers) = self.names.get_mut(name) {
            publishers.retain(|(publisher, _)| *publisher != node);
            if publishers.is_empty() {
                self.names.remove(name);
            }
            self.entries -= 1;
        }
        known
    }
}

impl Peer {
    const fn new(now: Instant) -> Self {
        Self {
            heard: now,
            revision: 0,
            listed: false,
            asked: None,
            connects: 0,
            channels: BTreeMap::new(),
            coming: None,
        }
    }

    /// One more part of its list; the last brings the whole.
    fn take_part(
        &mut self,
        revision: u64,
        part: u32,
        parts: u32,
        channels: BTreeMap<Box<str>, u32>,
        entries_max: usize,
    ) -> Option<BTreeMap<Box<str>, u32>> {
        if part == 0 {
            self.coming = Some(Coming { revision, parts, next: 0, channels: BTreeMap::new() });
        }
        let coming = self.coming.as_mut()?;
        let follows = (coming.revision, coming.parts, coming.next) == (revision, parts, part);
        if !follows || coming.channels.len() + channels.len() > entries_max {
            // A part is lost, or it is no list: another is asked for.
            self.coming = None;
            return None;
        }
        coming.channels.extend(channels);
        coming.next += 1;
        if coming.next < parts {
            return None;
        }
        self.coming.take().map(|coming| coming.channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn hello(revision: u64, connects: u64) -> Message {
        Message::Hello { revision, connects, sent_ns: 0 }
    }

    fn channels(names: &[(&str, u32)]) -> BTreeMap<Box<str>, u32> {
        names.iter().map(|(name, epoch)| ((*name).into(), *epoch)).collect()
    }

    fn texts(names: &[Box<str>]) -> Vec<&str> {
        names.iter().map(AsRef::as_ref).collect()
    }

    fn listing(revision: u64, part: u32, parts: u32, names: &[(&str, u32)]) -> Message {
        Message::Listing { revision, part, parts, channels: channels(names) }
    }

    fn changed(revision: u64, opened: &[(&str, u32)], closed: &[&str]) -> Message {
        let closed = closed.iter().map(|name| (*name).into()).collect();
        Message::Changed { revision, opened: channels(opened), closed }
    }

    #[test]
    fn a_new_server_is_asked_for_its_list_and_followed_from_there() {
        let start = Instant::now();
        let mut catalogue = Catalogue::new(100);
        let outcome = catalogue.handle(A, hello(5, 1), start);
        assert!(outcome.new && outcome.ask);
        assert!(!catalogue.handle(A, hello(5, 1), start).ask, "it was asked just now");
        assert!(catalogue.handle(A, hello(5, 1), start + ASK_INTERVAL).ask, "the answer may be lost");
        assert!(catalogue.handle(A, listing(5, 0, 2, &[("a", 1)]), start).changed.is_empty());
        let outcome = catalogue.handle(A, listing(5, 1, 2, &[("b", 2)]), start);
        assert_eq!(texts(&outcome.changed), ["a", "b"]);
        let outcome = catalogue.handle(A, changed(6, &[("c", 3), ("b", 9)], &["a"]), start);
        assert_eq!((texts(&outcome.changed), outcome.followed), (vec!["a", "b", "c"], Some(6)));
        assert!(!catalogue.lists("a"));
        assert_eq!(catalogue.streams("b").collect::<Vec<_>>(), [9]);
        assert!(!catalogue.handle(A, hello(6, 1), start + ASK_INTERVAL * 2).ask);
    }

    #[test]
    fn a_lost_message_is_noticed_and_healed_by_a_list() {
        let start = Instant::now();
        let mut catalogue = Catalogue::new(100);
        catalogue.handle(A, hello(0, 1), start);
        catalogue.handle(A, listing(0, 0, 1, &[]), start);
        let later = start + ASK_INTERVAL;
        let outcome = catalogue.handle(A, changed(2, &[("b", 2)], &[]), later);
        assert_eq!(outcome, Outcome { ask: true, ..Outcome::default() }, "the first change is missing");
        catalogue.handle(A, listing(2, 0, 2, &[("a", 1)]), later);
        assert!(catalogue.handle(A, listing(2, 2, 2, &[]), later).changed.is_empty(), "a part is missing");
        let last = later + ASK_INTERVAL;
        assert!(catalogue.handle(A, hello(2, 1), last).ask);
        let outcome = catalogue.handle(A, listing(2, 0, 1, &[("a", 1), ("b", 2)]), last);
        assert_eq!(outcome.changed.len(), 2);
    }

    #[test]
    fn a_list_whose_last_part_is_lost_is_asked_for_again() {
        let start = Instant::now();
        let mut catalogue = Catalogue::new(100);
        assert!(catalogue.handle(A, hello(2, 1), start).ask);
        assert!(!catalogue.handle(A, listing(2, 0, 2, &[("a", 1)]), start).ask, "it is coming");
        assert!(catalogue.handle(A, hello(2, 1), start + ASK_INTERVAL).ask);
        // What came of the first list is not mixed with the second.
        catalogue.handle(A, listing(2, 0, 2, &[("b", 2)]), start + ASK_INTERVAL);
        let outcome = catalogue.handle(A, listing(2, 1, 2, &[("c", 3)]), start + ASK_INTERVAL);
        assert_eq!((texts(&outcome.changed), outcome.followed), (vec!["b", "c"], Some(2)));
    }

    #[test]
    fn a_server_that_was_cut_off_leaves_doubts() {
        let start = Instant::now();
        let mut catalogue = Catalogue::new(100);
        catalogue.handle(A, hello(0, 1), start);
        catalogue.handle(A, listing(0, 0, 1, &[("a", 1)]), start);
        assert!(catalogue.handle(A, hello(0, 1), start).doubt.is_empty());
        assert_eq!(texts(&catalogue.handle(A, hello(0, 2), start).doubt), ["a"]);
    }

    #[test]
    fn a_silent_server_is_gone_with_what_only_it_publishes() {
        let start = Instant::now();
        let mut catalogue = Catalogue::new(100);
        catalogue.handle(A, listing(0, 0, 1, &[("a", 1), ("both", 2)]), start);
        let later = start + SILENCE_MAX / 2;
        catalogue.handle(B, listing(0, 0, 1, &[("both", 3)]), later);
        assert_eq!(catalogue.streams("both").collect::<Vec<_>>(), [2, 3]);
        assert!(catalogue.expire(later).is_empty());
        assert_eq!(texts(&catalogue.expire(start + SILENCE_MAX)), ["a", "both"]);
        assert_eq!((catalogue.nodes().count(), catalogue.streams("both").collect::<Vec<_>>()), (1, vec![3]));
        assert!(!catalogue.lists("a"));
    }

    #[test]
    fn nobody_can_fill_it() {
        let now = Instant::now();
        let mut catalogue = Catalogue::new(3);
        let names = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
        assert!(
            catalogue.handle(A, listing(0, 0, 1, &names), now).changed.is_empty(),
            "more than there may be"
        );
        catalogue.handle(A, listing(0, 0, 1, &names[..2]), now);
        catalogue.handle(B, listing(0, 0, 1, &names[..3]), now);
        assert_eq!(catalogue.entries, 3);
        for node in 10..1_000 {
            catalogue.handle(NodeId(node), hello(0, 1), now);
        }
        assert_eq!(catalogue.nodes().count(), PEERS_MAX);
    }
}
