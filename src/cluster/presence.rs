//! Who is on channels on several servers: what servers ask each other about that, and what they answer. Pure: what clients here
//! want, messages of others and instants come in; [`Act`]s go out. Never knows a broker, a hub or a clock.
//!
//! A server that wants to know asks by name, and renews its interest while somebody watches; the others say all that they know,
//! never a difference, when they are asked and when it has changed. So what is lost, late or repeated corrects itself with the
//! next message, and interest that nobody renews lapses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Answered, CHANNELS_PER_MESSAGE, Here, Message, Said};
use crate::config::PRESENCE_MEMBERS_MAX;
use crate::hub::router::AboutPresence;
use crate::pattern;
use crate::presence::Part;
use crate::wire::control::Present;
use crate::wire::relay::NodeId;

/// The longest that a `presence` waits for other servers. With a broker that answers it takes some round trips.
pub const WAIT_MAX: Duration = Duration::from_millis(500);

/// Time between two renewals of an interest: a message that was lost is made good by then.
pub const RENEWAL: Duration = Duration::from_secs(5);

/// How long others heed an interest that is not renewed: two renewals may be lost.
pub const LEASE: Duration = Duration::from_secs(15);

/// Shortest time between two messages that tell of changes of one name.
pub const CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest time between two messages of each kind: at most 20 a second ask, and 20 say who is there, however many names there are.
pub const MESSAGE_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of what one message says, about: one name with its most members of the longest names fits.
pub const SAID_BYTES_MAX: usize = 64 << 10;

/// Names that are asked about at once. Renewing so many takes 7 messages a second.
pub const INTERESTS_MAX: usize = 4_096;

/// Names of which other servers want to hear at once: several that watch other names each. About 4 MiB.
pub const LENT_MAX: usize = 16_384;

/// Connections of other servers that are known one by one, in all: some 6 MiB with users of usual length, 20 MiB with the
/// longest. Above it only counts are kept.
pub const MEMBERS_MAX: usize = 65_536;

/// Names that the hubs are asked about at once for other servers: what waits to be said stays below 8 MiB.
const ROUNDS_MAX: usize = 256;

/// Who has just come to the broker has not been told of all servers yet: each says that it is there once a second.
const NEW_FOR: Duration = Duration::from_secs(2);

/// What follows.
#[derive(Debug)]
pub enum Act {
    /// To be said to all servers.
    Say(Message),
    /// For the home of the `$presence` channel of a name.
    Tell(Arc<str>, AboutPresence),
}

/// What was not taken of other servers' messages, in names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// No name, or nothing that can be.
    pub malformed: u64,
    /// There was no room.
    pub full: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Presences {
    node: NodeId,
    name_bytes_max: usize,
    /// Since when there is a connection to the broker.
    up: Option<Instant>,
    /// What somebody here wants to know.
    interests: HashMap<Arc<str>, Interest>,
    /// Watched names that there was no room for: of the channels here, at the most.
    waiting: BTreeSet<Arc<str>>,
    /// Names that the next `who` asks about.
    who: VecDeque<Arc<str>>,
    /// `who` so far.
    whos: u64,
    /// Requests that wait, in order: the name, and the number of the request.
    deadlines: VecDeque<(Instant, Arc<str>, u64)>,
    requests: u64,
    /// Names of which their home here has to be told something.
    news: VecDeque<Arc<str>>,
    /// Connections that are known one by one.
    members: usize,
    /// Servers that are ending, until they are gone: they have said that nobody is there.
    leaving: HashSet<NodeId>,
    /// What other servers want to know.
    lent: HashMap<Arc<str>, Lent>,
    /// Names that are to be said.
    due: VecDeque<Arc<str>>,
    /// Those that it is too early for.
    later: VecDeque<Arc<str>>,
    /// Names that the hubs are being asked about, and those that are ready.
    rounds: usize,
    ready: VecDeque<(Arc<str>, Part)>,
    /// `present` so far.
    presents: u64,
    asked_at: Option<Instant>,
    said_at: Option<Instant>,
    /// This server ends: it has said that nobody is here.
    ending: bool,
    refusals: Refusals,
    acts: Vec<Act>,
}

/// What is known elsewhere of a name that somebody here asks about or watches.
#[derive(Debug)]
struct Interest {
    watched: bool,
    /// Whether the next `who` wants an answer, and does not only renew.
    ask: bool,
    /// It is in the queue for the next `who`.
    queued: bool,
    renewed: Instant,
    request: Option<Request>,
    /// How the last request came out, until its home knows: whether something is missing.
    settled: Option<bool>,
    parts: HashMap<NodeId, Heard>,
    /// It is in the queue of those whose home has to be told.
    news: bool,
    /// Held by what is on its way to the home.
    under_way: Arc<()>,
}

/// Somebody here waits for what others say.
#[derive(Debug)]
struct Request {
    number: u64,
    /// The `who` that it is in, once it is said.
    who: Option<u64>,
    /// Who has not answered.
    missing: HashSet<NodeId>,
    /// Servers may be there that are not known yet.
    partial: bool,
}

#[derive(Debug)]
struct Heard {
    /// The `present` of that server.
    number: u64,
    part: Part,
}

/// A name that other servers want to know about.
#[derive(Debug, Default)]
struct Lent {
    /// While others want to hear of changes.
    until: Option<Instant>,
    /// Who wants an answer, and by which `who`.
    asking: BTreeMap<NodeId, u64>,
    /// The same, once the home is asked.
    answering: BTreeMap<NodeId, u64>,
    /// The home is asked, or has answered and that waits to be said.
    under_way: bool,
    /// It is to be said (once more).
    wanted: bool,
    /// It is in the queue of what is to be said now.
    queued: bool,
    said_at: Option<Instant>,
}

impl Presences {
    /// Of a server that is connected to nobody yet, and whose names have at most so many bytes.
    #[must_use]
    pub fn new(node: NodeId, name_bytes_max: usize) -> Self {
        Self {
            node,
            name_bytes_max,
            up: None,
            interests: HashMap::new(),
            waiting: BTreeSet::new(),
            who: VecDeque::new(),
            whos: 0,
            deadlines: VecDeque::new(),
            requests: 0,
            news: VecDeque::new(),
            members: 0,
            leaving: HashSet::new(),
            lent: HashMap::new(),
            due: VecDeque::new(),
            later: VecDeque::new(),
            rounds: 0,
            ready: VecDeque::new(),
            presents: 0,
            asked_at: None,
            said_at: None,
            ending: false,
            refusals: Refusals::default(),
            acts: Vec::new(),
        }
    }

    /// Somebody here asks who is on a channel; `peers` are the other servers that are known. One request for a name at a time: its
    /// home is told when that is over.
    pub fn ask(&mut self, name: &Arc<str>, peers: impl Iterator<Item = NodeId>, now: Instant) {
        let missing: HashSet<NodeId> = peers.filter(|peer| !self.leaving.contains(peer)).collect();
        let partial = self.up.is_none_or(|since| now.saturating_duration_since(since) < NEW_FOR);
        let number = self.requests;
        self.requests += 1;
        let up = self.up.is_some();
        let Some(interest) = self.interest(name, now) else {
            let under_way = Arc::new(());
            let part = Part::nobody();
            let about =
                AboutPresence::Elsewhere { name: Arc::clone(name), part, partial: Some(true), under_way };
            self.acts.push(Act::Tell(Arc::clone(name), about));
            return;
        };
        let settled = !up || missing.is_empty();
        interest.request = Some(Request { number, who: None, missing, partial });
        if settled {
            self.settle(name);
        } else {
            interest.ask = true;
            self.deadlines.push_back((now + WAIT_MAX, Arc::clone(name), number));
            self.queue_who(name);
        }
    }

    /// Somebody here watches who is on a channel.
    pub fn watch(&mut self, name: &Arc<str>, now: Instant) {
        let Some(interest) = self.interest(name, now) else {
            self.refusals.full += 1;
            self.waiting.insert(Arc::clone(name));
            return;
        };
        interest.watched = true;
        interest.ask = true;
        self.queue_who(name);
        // It may have been told something that was for a request.
        self.queue_news(name);
    }

    /// Nobody here does any more.
    pub fn unwatch(&mut self, name: &Arc<str>) {
        self.waiting.remove(name);
        if let Some(interest) = self.interests.get_mut(name) {
            interest.watched = false;
            self.drop_unused(name);
        }
    }

    /// Who is on a channel here, as its home says after [`AboutPresence::AskForServers`].
    pub fn note_here(&mut self, name: Arc<str>, part: Part) {
        if self.lent.get(&name).is_some_and(|lent| lent.under_way) {
            self.ready.push_back((name, part));
        }
    }

    /// It is another matter now who is on a channel here.
    pub fn note_changed(&mut self, name: &Arc<str>) {
        if self.lent.get(name).is_some_and(|lent| lent.until.is_some()) {
            self.queue_due(name);
        }
    }

    /// This server ends: nobody is here any more.
    pub fn end(&mut self) {
        self.ending = true;
        if self.up.is_some() {
            self.acts.push(Act::Say(Message::Nobody {}));
        }
    }

    /// The broker is there (again): whatever was asked or said meanwhile may be lost.
    pub fn connected(&mut self, now: Instant) {
        self.up = Some(now);
        self.ask_all();
        let lent: Vec<_> = self.lent.keys().cloned().collect();
        lent.iter().for_each(|name| self.note_changed(name));
    }

    /// The broker is gone: nobody waits for it. What is known of others stays until they are given up.
    pub fn disconnected(&mut self) {
        self.up = None;
        // Whoever has asked still misses somebody.
        for name in self.requested() {
            self.settle(&name);
        }
        for (name, _) in std::mem::take(&mut self.ready) {
            self.end_round(&name);
        }
    }

    /// There is a server that was not known before: it has not heard what is wanted here.
    pub fn note_new_peer(&mut self) {
        self.ask_all();
    }

    /// Another server asks.
    pub fn heard_who(
        &mut self,
        (from, number): (NodeId, u64),
        (ask, keep): (&[Box<str>], &[Box<str>]),
        crosses: impl Fn(&str) -> bool,
        now: Instant,
    ) {
        if self.ending {
            // Whoever asks has not heard it.
            self.end();
            return;
        }
        for name in ask {
            let Some((name, lent)) = self.lend(name, &crosses) else { continue };
            lent.asking.insert(from, number);
            self.queue_due(&name);
        }
        for name in keep {
            let Some((name, lent)) = self.lend(name, &crosses) else { continue };
            let is_new = lent.until.replace(now + LEASE).is_none();
            // What was said may be lost. Others' renewals have it said often enough.
            let old = |at: Instant| now.saturating_duration_since(at) >= RENEWAL * 4 / 5;
            let restate = is_new || lent.said_at.is_none_or(old);
            if is_new {
                let about = AboutPresence::Lend { name: Arc::clone(&name), any: true };
                self.acts.push(Act::Tell(Arc::clone(&name), about));
            }
            if restate {
                self.queue_due(&name);
            }
        }
    }

    /// Another server, which is known, says who is there.
    pub fn heard_present(&mut self, from: NodeId, number: u64, channels: BTreeMap<Box<str>, Said>) {
        if self.leaving.contains(&from) {
            return;
        }
        for (name, said) in channels {
            // What others have asked for is passed over.
            let Some((name, interest)) = self.interests.get_key_value(&*name) else { continue };
            let name = Arc::clone(name);
            let before = interest.parts.get(&from);
            if before.is_some_and(|before| before.number >= number) {
                continue;
            }
            let answered = said.to.iter().find(|to| to.node == self.node).map(|to| to.number);
            let Some(mut part) = part_of(from, said, self.name_bytes_max) else {
                self.refusals.malformed += 1;
                continue;
            };
            let held = self.members - before.map_or(0, |before| known(&before.part));
            if held + known(&part) > MEMBERS_MAX {
                part.members = None;
                self.refusals.full += 1;
            }
            self.members = held + known(&part);
            let same = before.is_some_and(|before| before.part == part);
            if let Some(interest) = self.interests.get_mut(&name) {
                interest.parts.insert(from, Heard { number, part });
            }
            if !same {
                self.queue_news(&name);
            }
            if let Some(answered) = answered {
                self.note_answer(&name, from, answered);
            }
        }
    }

    /// Whether that server has said that it ends.
    #[must_use]
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.leaving.contains(&node)
    }

    /// Another server ends, and nobody is there any more.
    pub fn heard_nobody(&mut self, from: NodeId) {
        self.leaving.insert(from);
        self.forget(|peer| peer != from);
    }

    /// Work that is due ten times a second: whoever has waited too long is answered, and what was told lately may be told again.
    pub fn tick(&mut self, now: Instant) {
        for name in std::mem::take(&mut self.later) {
            if self.lent.get(&name).is_some_and(|lent| lent.wanted) {
                self.queue_due(&name);
            }
        }
        while let Some((deadline, ..)) = self.deadlines.front()
            && *deadline <= now
        {
            let Some((_, name, number)) = self.deadlines.pop_front() else { return };
            let request = self.interests.get(&name).and_then(|interest| interest.request.as_ref());
            if request.is_some_and(|request| request.number == number) {
                self.settle(&name);
            }
        }
    }

    /// Work that is due each second: interest is renewed, or has lapsed; and servers that are not there any more are forgotten.
    pub fn second(&mut self, is_there: impl Fn(NodeId) -> bool, now: Instant) -> Refusals {
        self.leaving.retain(|peer| is_there(*peer));
        self.forget(is_there);
        let old = |interest: &Interest| now.saturating_duration_since(interest.renewed) >= RENEWAL;
        let renew = self.interests.iter().filter(|(_, it)| it.watched && old(it));
        let renew: Vec<_> = renew.map(|(name, _)| Arc::clone(name)).collect();
        renew.iter().for_each(|name| self.queue_who(name));
        while self.interests.len() < INTERESTS_MAX
            && let Some(name) = self.waiting.pop_first()
        {
            self.watch(&name, now);
        }
        let acts = &mut self.acts;
        self.lent.retain(|name, lent| {
            if lent.until.is_some_and(|until| until <= now) {
                lent.until = None;
                let about = AboutPresence::Lend { name: Arc::clone(name), any: false };
                acts.push(Act::Tell(Arc::clone(name), about));
            }
            lent.until.is_some() || lent.under_way || !lent.asking.is_empty()
        });
        std::mem::take(&mut self.refusals)
    }

    /// What is to be done. To be called after whatever may have made that more.
    pub fn take_acts(&mut self, now: Instant) -> Vec<Act> {
        self.tell_news();
        if self.up.is_some() {
            let is_time = |last: Option<Instant>| {
                last.is_none_or(|last| now.saturating_duration_since(last) >= MESSAGE_INTERVAL)
            };
            if is_time(self.asked_at) {
                self.say_who(now);
            }
            if !self.ending {
                self.begin_rounds(now);
                if is_time(self.said_at) {
                    self.say_present(now);
                }
            }
        }
        std::mem::take(&mut self.acts)
    }

    fn interest(&mut self, name: &Arc<str>, now: Instant) -> Option<&mut Interest> {
        if self.interests.len() >= INTERESTS_MAX && !self.interests.contains_key(name) {
            return None;
        }
        Some(self.interests.entry(Arc::clone(name)).or_insert_with(|| Interest {
            watched: false,
            ask: false,
            queued: false,
            renewed: now,
            request: None,
            settled: None,
            parts: HashMap::new(),
            news: false,
            under_way: Arc::new(()),
        }))
    }

    /// Names that somebody waits for.
    fn requested(&self) -> Vec<Arc<str>> {
        let waits = self.interests.iter().filter(|(_, interest)| interest.request.is_some());
        waits.map(|(name, _)| Arc::clone(name)).collect()
    }

    fn ask_all(&mut self) {
        let watched = self.interests.iter().filter(|(_, interest)| interest.watched);
        for name in watched.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
            if let Some(interest) = self.interests.get_mut(&name) {
                interest.ask = true;
            }
            self.queue_who(&name);
        }
    }

    fn queue_who(&mut self, name: &Arc<str>) {
        // Without a connection everything is asked when there is one.
        if self.up.is_some()
            && let Some(interest) = self.interests.get_mut(name)
            && !std::mem::replace(&mut interest.queued, true)
        {
            self.who.push_back(Arc::clone(name));
        }
    }

    fn queue_news(&mut self, name: &Arc<str>) {
        if let Some(interest) = self.interests.get_mut(name)
            && !std::mem::replace(&mut interest.news, true)
        {
            self.news.push_back(Arc::clone(name));
        }
    }

    fn queue_due(&mut self, name: &Arc<str>) {
        let Some(lent) = self.lent.get_mut(name) else { return };
        lent.wanted = true;
        if !lent.under_way && !std::mem::replace(&mut lent.queued, true) {
            self.due.push_back(Arc::clone(name));
        }
    }

    fn note_answer(&mut self, name: &Arc<str>, from: NodeId, number: u64) {
        let request = self.interests.get_mut(name).and_then(|interest| interest.request.as_mut());
        let Some(request) = request else { return };
        if request.who.is_some_and(|who| who <= number) {
            request.missing.remove(&from);
            if request.missing.is_empty() {
                self.settle(name);
            }
        }
    }

    /// The request for a name is over, whoever has not answered.
    fn settle(&mut self, name: &Arc<str>) {
        let Some(interest) = self.interests.get_mut(name) else { return };
        if let Some(request) = interest.request.take() {
            interest.settled = Some(request.partial || !request.missing.is_empty());
        }
        self.queue_news(name);
    }

    /// Forgets what was heard of servers that are not there.
    fn forget(&mut self, is_there: impl Fn(NodeId) -> bool) {
        let (mut changed, mut answered) = (Vec::new(), Vec::new());
        let members = &mut self.members;
        for (name, interest) in &mut self.interests {
            let before = interest.parts.len();
            interest.parts.retain(|peer, heard| {
                let keep = is_there(*peer);
                if !keep {
                    *members -= known(&heard.part);
                }
                keep
            });
            if interest.parts.len() < before {
                changed.push(Arc::clone(name));
            }
            if let Some(request) = &mut interest.request {
                request.missing.retain(|peer| is_there(*peer));
                if request.missing.is_empty() {
                    answered.push(Arc::clone(name));
                }
            }
        }
        changed.iter().for_each(|name| self.queue_news(name));
        answered.iter().for_each(|name| self.settle(name));
    }

    fn drop_unused(&mut self, name: &Arc<str>) {
        let unused = |interest: &Interest| {
            !interest.watched && interest.request.is_none() && interest.settled.is_none()
        };
        if self.interests.get(name).is_some_and(unused)
            && let Some(interest) = self.interests.remove(name)
        {
            self.members -= interest.parts.values().map(|heard| known(&heard.part)).sum::<usize>();
        }
    }

    /// Tells homes what is known elsewhere, each again once it has taken what was told before.
    fn tell_news(&mut self) {
        for name in std::mem::take(&mut self.news) {
            let Some(interest) = self.interests.get_mut(&name) else { continue };
            if !interest.news {
                continue;
            }
            if Arc::strong_count(&interest.under_way) > 1 {
                self.news.push_back(name);
                continue;
            }
            interest.news = false;
            let about = AboutPresence::Elsewhere {
                name: Arc::clone(&name),
                part: Part::sum(interest.parts.values().map(|heard| &heard.part)),
                partial: interest.settled.take(),
                under_way: Arc::clone(&interest.under_way),
            };
            self.acts.push(Act::Tell(Arc::clone(&name), about));
            self.drop_unused(&name);
        }
    }

    fn say_who(&mut self, now: Instant) {
        let (mut ask, mut keep) = (Vec::new(), Vec::new());
        let number = self.whos + 1;
        while ask.len() + keep.len() < CHANNELS_PER_MESSAGE
            && let Some(name) = self.who.pop_front()
        {
            let Some(interest) = self.interests.get_mut(&name) else { continue };
            if !std::mem::take(&mut interest.queued) {
                continue;
            }
            if std::mem::take(&mut interest.ask) {
                ask.push((*name).into());
                if let Some(request) = &mut interest.request {
                    request.who.get_or_insert(number);
                }
            }
            if interest.watched {
                keep.push((*name).into());
                interest.renewed = now;
            }
        }
        if ask.is_empty() && keep.is_empty() {
            return;
        }
        self.whos = number;
        self.asked_at = Some(now);
        self.acts.push(Act::Say(Message::Who { number, ask, keep }));
    }

    /// The entry of a name that another server wants to know about.
    fn lend(&mut self, name: &str, crosses: impl Fn(&str) -> bool) -> Option<(Arc<str>, &mut Lent)> {
        if pattern::check_name(name, self.name_bytes_max).is_err() || !crosses(name) {
            self.refusals.malformed += 1;
            return None;
        }
        let name = match self.lent.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None if self.lent.len() >= LENT_MAX => {
                self.refusals.full += 1;
                return None;
            }
            None => Arc::from(name),
        };
        let lent = self.lent.entry(Arc::clone(&name)).or_default();
        Some((name, lent))
    }

    /// Has homes say who is there, for names whose time has come.
    fn begin_rounds(&mut self, now: Instant) {
        for _ in 0..self.due.len() {
            if self.rounds >= ROUNDS_MAX {
                return;
            }
            let Some(name) = self.due.pop_front() else { return };
            let Some(lent) = self.lent.get_mut(&name) else { continue };
            lent.queued = false;
            // It may have been forgotten and come again; the end of what is under way brings it back.
            if !lent.wanted || lent.under_way {
                continue;
            }
            let early = lent.said_at.is_some_and(|at| now.saturating_duration_since(at) < CHANGE_INTERVAL);
            if early && lent.asking.is_empty() {
                self.later.push_back(name);
                continue;
            }
            lent.wanted = false;
            lent.under_way = true;
            lent.answering = std::mem::take(&mut lent.asking);
            self.rounds += 1;
            let about = AboutPresence::AskForServers { name: Arc::clone(&name) };
            self.acts.push(Act::Tell(name, about));
        }
    }

    /// Says what homes have said, as much as one message holds.
    fn say_present(&mut self, now: Instant) {
        let mut channels = BTreeMap::new();
        let mut bytes = 0;
        while let Some((name, part)) = self.ready.front() {
            let more = said_bytes(name, part);
            if bytes + more > SAID_BYTES_MAX && !channels.is_empty() {
                break;
            }
            bytes += more;
            let Some((name, part)) = self.ready.pop_front() else { break };
            let answering = self.end_round(&name);
            if let Some(lent) = self.lent.get_mut(&name) {
                lent.said_at = Some(now);
            }
            channels.insert((*name).into(), said(part, answering));
        }
        if !channels.is_empty() {
            self.presents += 1;
            self.said_at = Some(now);
            self.acts.push(Act::Say(Message::Present { number: self.presents, channels }));
        }
    }

    /// What was asked for a name is said, or will not be. Whom it was for.
    fn end_round(&mut self, name: &Arc<str>) -> BTreeMap<NodeId, u64> {
        self.rounds -= 1;
        let Some(lent) = self.lent.get_mut(name) else { return BTreeMap::new() };
        lent.under_way = false;
        let answered = std::mem::take(&mut lent.answering);
        if lent.wanted {
            self.queue_due(name);
        }
        answered
    }
}

/// Connections that are known one by one.
fn known(part: &Part) -> usize {
    part.members.as_ref().map_or(0, Vec::len)
}

/// What another server says, if it can be.
fn part_of(from: NodeId, said: Said, user_bytes_max: usize) -> Option<Part> {
    let count = usize::try_from(said.count).ok()?;
    let Some(members) = said.members else { return Some(Part { count, members: None }) };
    if members.len() != count || count > PRESENCE_MEMBERS_MAX {
        return None;
    }
    let sound = |user: &str| !user.contains('.') && pattern::check_name(user, user_bytes_max).is_ok();
    if !members.iter().all(|here| here.user.as_deref().is_none_or(sound)) {
        return None;
    }
    let present = |here: Here| Present { server: Some(from), connection: here.connection, user: here.user };
    let part = Part::of(count, members.into_iter().map(present));
    let twice = part.members.iter().flatten().zip(part.members.iter().flatten().skip(1));
    twice.into_iter().all(|(a, b)| a.connection != b.connection).then_some(part)
}

fn said(part: Part, answering: BTreeMap<NodeId, u64>) -> Said {
    let here = |who: Present| Here { connection: who.connection, user: who.user };
    Said {
        count: u32::try_from(part.count).unwrap_or(u32::MAX),
        members: part.members.map(|members| members.into_iter().map(here).collect()),
        to: answering.into_iter().map(|(node, number)| Answered { node, number }).collect(),
    }
}

/// About what it takes in a message: names and users, and what stands between them.
fn said_bytes(name: &str, part: &Part) -> usize {
    const ENTRY_BYTES: usize = 48;
    let members = part.members.iter().flatten();
    let member = |who: &Present| ENTRY_BYTES + who.user.as_ref().map_or(0, |user| user.len());
    ENTRY_BYTES + name.len() + members.map(member).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 2] = ["a", "b.c"];

    /// A server, with what its hubs would know and be told.
    struct Server {
        node: NodeId,
        core: Presences,
        here: HashMap<&'static str, BTreeSet<u64>>,
        lent: BTreeSet<Arc<str>>,
        watched: BTreeSet<&'static str>,
        told: HashMap<Arc<str>, Part>,
        /// What was there when it asked, and what has come or gone since.
        asked: HashMap<&'static str, (BTreeSet<Who>, BTreeSet<Who>)>,
        answers: Vec<bool>,
        inbox: VecDeque<(NodeId, Message)>,
        up: bool,
        alive: bool,
        /// Whom it takes to be there.
        peers: Vec<NodeId>,
    }

    type Who = (NodeId, u64);

    struct World {
        servers: Vec<Server>,
        now: Instant,
        /// What becomes of messages, in turn; then all is well.
        fates: VecDeque<Fate>,
        messages: usize,
    }

    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Lost,
        Twice,
        Overtakes,
    }

    fn here(server: &Server, name: &str) -> Part {
        let members = server.here.get(name).cloned().unwrap_or_default();
        let present = |connection| Present { server: None, connection, user: Some("ada".into()) };
        Part::of(members.len(), members.into_iter().map(present))
    }

    fn whos(part: &Part) -> BTreeSet<Who> {
        let members = part.members.as_ref().expect("they are few");
        members.iter().map(|who| (who.server.expect("it is elsewhere"), who.connection)).collect()
    }

    impl World {
        fn new(servers: u64) -> Self {
            let server = |node| Server {
                node: NodeId(node),
                core: Presences::new(NodeId(node), 255),
                here: HashMap::new(),
                lent: BTreeSet::new(),
                watched: BTreeSet::new(),
                told: HashMap::new(),
                asked: HashMap::new(),
                answers: Vec::new(),
                inbox: VecDeque::new(),
                up: true,
                alive: true,
                peers: (1..=servers).map(NodeId).filter(|peer| *peer != NodeId(node)).collect(),
            };
            let mut world = Self {
                servers: (1..=servers).map(server).collect(),
                now: Instant::now(),
                fates: VecDeque::new(),
                messages: 0,
            };
            for server in &mut world.servers {
                server.core.connected(world.now);
            }
            world.pass(NEW_FOR.as_secs() * 1_000);
            world
        }

        fn elsewhere(&self, index: usize, name: &str) -> BTreeSet<Who> {
            let others = self.servers.iter().enumerate().filter(|(other, it)| *other != index && it.alive);
            let of = |it: &Server| {
                let here = it.here.get(name).cloned().unwrap_or_default();
                here.into_iter().map(|connection| (it.node, connection)).collect::<Vec<_>>()
            };
            others.flat_map(|(_, it)| of(it)).collect()
        }

        fn flip(&mut self, index: usize, name: &'static str, connection: u64) {
            let server = &mut self.servers[index];
            let here = server.here.entry(name).or_default();
            if !here.remove(&connection) {
                here.insert(connection);
            }
            if server.lent.contains(name) {
                server.core.note_changed(&name.into());
            }
            let who = (server.node, connection);
            self.note_flipped(name, who);
        }

        fn note_flipped(&mut self, name: &str, who: Who) {
            for asked in self.servers.iter_mut().filter_map(|server| server.asked.get_mut(name)) {
                asked.1.insert(who);
            }
        }

        fn ask(&mut self, index: usize, name: &'static str) {
            if self.servers[index].asked.contains_key(name) {
                return;
            }
            let there = self.elsewhere(index, name);
            let server = &mut self.servers[index];
            server.asked.insert(name, (there, BTreeSet::new()));
            server.core.ask(&name.into(), server.peers.iter().copied(), self.now);
            self.act(index);
        }

        fn watch(&mut self, index: usize, name: &'static str, any: bool) {
            let server = &mut self.servers[index];
            if any && server.watched.insert(name) {
                server.core.watch(&name.into(), self.now);
            } else if !any && server.watched.remove(name) {
                server.core.unwatch(&name.into());
                server.told.remove(name);
            }
            self.act(index);
        }

        fn act(&mut self, index: usize) {
            loop {
                let server = &mut self.servers[index];
                let acts = server.core.take_acts(self.now);
                if acts.is_empty() {
                    return;
                }
                for act in acts {
                    match act {
                        Act::Say(message) => self.say(index, &message),
                        Act::Tell(name, about) => self.servers[index].take(&name, about),
                    }
                }
            }
        }

        fn say(&mut self, from: usize, message: &Message) {
            self.messages += 1;
            let node = self.servers[from].node;
            if !self.servers[from].up {
                return;
            }
            for index in 0..self.servers.len() {
                if index == from {
                    continue;
                }
                let fate = self.fates.pop_front();
                let inbox = &mut self.servers[index].inbox;
                match fate {
                    Some(Fate::Lost) => {}
                    Some(Fate::Overtakes) => inbox.push_front((node, message.clone())),
                    Some(Fate::Twice) => inbox.extend([(node, message.clone()), (node, message.clone())]),
                    None => inbox.push_back((node, message.clone())),
                }
            }
        }

        fn deliver(&mut self, index: usize) -> bool {
            let server = &mut self.servers[index];
            let Some((from, message)) = server.inbox.pop_front() else { return false };
            if !server.up || !server.alive {
                return true;
            }
            match message {
                Message::Who { number, ask, keep } => {
                    server.core.heard_who((from, number), (&ask, &keep), |_| true, self.now);
                }
                Message::Present { number, channels } => server.core.heard_present(from, number, channels),
                Message::Nobody {} => server.core.heard_nobody(from),
                other => panic!("{other:?}"),
            }
            self.act(index);
            true
        }

        /// Time goes on, and all messages come in it.
        fn pass(&mut self, ms: u64) {
            for step in 1..=ms / 100 {
                self.now += Duration::from_millis(100);
                for index in 0..self.servers.len() {
                    while self.deliver(index) {}
                    let alive: Vec<_> = self.servers.iter().filter(|it| it.alive).map(|it| it.node).collect();
                    let server = &mut self.servers[index];
                    if !server.alive {
                        continue;
                    }
                    server.core.tick(self.now);
                    if step % 10 == 0 {
                        server.peers.retain(|peer| alive.contains(peer));
                        server.core.second(|node| server.peers.contains(&node), self.now);
                    }
                    self.act(index);
                }
            }
        }

        fn kill(&mut self, index: usize) {
            self.servers[index].alive = false;
            for name in NAMES {
                for connection in self.servers[index].here.remove(name).unwrap_or_default() {
                    self.note_flipped(name, (self.servers[index].node, connection));
                }
            }
        }
    }

    impl Server {
        fn take(&mut self, name: &Arc<str>, about: AboutPresence) {
            match about {
                AboutPresence::AskForServers { name } => {
                    let part = here(self, &name);
                    self.core.note_here(name, part);
                }
                AboutPresence::Lend { name, any: true } => assert!(self.lent.insert(name)),
                AboutPresence::Lend { name, any: false } => assert!(self.lent.remove(&name)),
                AboutPresence::Elsewhere { part, partial, .. } => {
                    if self.watched.contains(&**name) {
                        self.told.insert(Arc::clone(name), part.clone());
                    }
                    if let Some(partial) = partial {
                        let (there, flipped) = self.asked.remove(&**name).expect("it has asked");
                        self.answers.push(partial);
                        if !partial {
                            let found = whos(&part);
                            let wrong: Vec<_> = there.symmetric_difference(&found).collect();
                            assert!(
                                wrong.iter().all(|who| flipped.contains(who)),
                                "{name}: {found:?} is said to be all; it was {there:?}, and {flipped:?} changed"
                            );
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Flip { server: usize, name: usize, connection: u64 },
        Watch { server: usize, name: usize, any: bool },
        Ask { server: usize, name: usize },
        Deliver { server: usize },
        Pass { ms: u64 },
        Break { up: bool, server: usize },
        Fates(Vec<Fate>),
        Kill { server: usize },
        End { server: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let server = || 0..3_usize;
        let name = || 0..NAMES.len();
        let fate = prop_oneof![Just(Fate::Lost), Just(Fate::Twice), Just(Fate::Overtakes)];
        prop_oneof![
            8 => (server(), name(), 1..5_u64)
                .prop_map(|(server, name, connection)| Step::Flip { server, name, connection }),
            4 => (server(), name(), any::<bool>())
                .prop_map(|(server, name, any)| Step::Watch { server, name, any }),
            6 => (server(), name()).prop_map(|(server, name)| Step::Ask { server, name }),
            10 => server().prop_map(|server| Step::Deliver { server }),
            6 => prop_oneof![Just(100), Just(300), Just(1_000), Just(20_000)].prop_map(|ms| Step::Pass { ms }),
            2 => (any::<bool>(), server()).prop_map(|(up, server)| Step::Break { up, server }),
            2 => prop::collection::vec(fate, 1..6).prop_map(Step::Fates),
            1 => server().prop_map(|server| Step::Kill { server }),
            1 => server().prop_map(|server| Step::End { server }),
        ]
    }

    fn take_step(world: &mut World, step: Step) {
        match step {
            Step::Flip { server, name, connection } if world.servers[server].alive => {
                world.flip(server, NAMES[name], connection);
                world.act(server);
            }
            Step::Watch { server, name, any } if world.servers[server].alive => {
                world.watch(server, NAMES[name], any);
            }
            Step::Ask { server, name } if world.servers[server].alive => world.ask(server, NAMES[name]),
            Step::Deliver { server } => drop(world.deliver(server)),
            Step::Pass { ms } => world.pass(ms),
            Step::Break { up, server } if world.servers[server].alive && world.servers[server].up != up => {
                world.servers[server].up = up;
                if up {
                    world.servers[server].core.connected(world.now);
                } else {
                    world.servers[server].core.disconnected();
                }
                world.act(server);
            }
            Step::Fates(fates) => world.fates.extend(fates),
            // One has to be left.
            Step::Kill { server } if server > 0 => world.kill(server),
            Step::End { server } if server > 0 && world.servers[server].alive => {
                world.servers[server].core.end();
                world.act(server);
                world.kill(server);
            }
            _ => {}
        }
    }

    proptest! {
        /// Whatever is lost, late or repeated: who is said to be all is all, and who watches knows it in the end.
        #[test]
        fn what_is_told_as_all_is_all(steps in prop::collection::vec(step(), 1..80)) {
            let mut world = World::new(3);
            for step in steps {
                take_step(&mut world, step);
            }
            world.fates.clear();
            for server in 0..3 {
                take_step(&mut world, Step::Break { up: true, server });
            }
            world.pass(15_000);
            for index in (0..3).filter(|index| world.servers[*index].alive).collect::<Vec<_>>() {
                for name in NAMES {
                    if world.servers[index].watched.contains(name) {
                        let told = world.servers[index].told.get(name).expect("it is told at once");
                        prop_assert_eq!(whos(told), world.elsewhere(index, name), "{}", name);
                    }
                    prop_assert!(world.servers[index].asked.is_empty(), "a request without an answer");
                    world.ask(index, name);
                    world.pass(300);
                    prop_assert_eq!(world.servers[index].answers.pop(), Some(false));
                    prop_assert!(world.servers[index].asked.is_empty());
                }
                for name in NAMES {
                    world.watch(index, name, false);
                }
            }
            world.pass(LEASE.as_secs() * 1_000 + 2_000);
            let messages = world.messages;
            for server in world.servers.iter().filter(|server| server.alive) {
                let core = &server.core;
                prop_assert!(core.interests.is_empty() && core.lent.is_empty() && server.lent.is_empty());
                prop_assert_eq!((core.members, core.rounds), (0, 0));
            }
            world.pass(10_000);
            prop_assert_eq!(world.messages, messages, "nobody wants to know anything");
        }
    }

    /// Those of three servers: the first watches `a`, and the messages are counted from now on.
    fn watched() -> World {
        let mut world = World::new(3);
        world.watch(0, "a", true);
        world.pass(1_000);
        assert_eq!(world.servers[0].told["a"], Part::nobody());
        world.messages = 0;
        world
    }

    #[test]
    fn changes_are_told_once_a_second_and_interest_is_renewed() {
        let mut world = watched();
        for connection in 1..=20 {
            world.flip(1, "a", connection);
            world.pass(100);
        }
        // 2 s: 20 changes of one server, and at most one renewal, which both answer.
        assert!((2..=6).contains(&world.messages), "{} messages", world.messages);
        world.pass(1_000);
        assert_eq!(whos(&world.servers[0].told["a"]).len(), 20);
        world.messages = 0;
        world.pass(20_000);
        assert!((4 + 7..=4 * 3).contains(&world.messages), "four renewals, and two who say it again");
    }

    #[test]
    fn a_watched_name_costs_what_one_does_however_many_watch_it() {
        let mut world = watched();
        world.watch(1, "a", true);
        world.watch(2, "a", true);
        world.pass(1_000);
        world.messages = 0;
        world.pass(20_000);
        assert!(
            world.messages <= 4 * 3 + 5 * 3,
            "{} messages: who is there is said once for all",
            world.messages
        );
    }

    #[test]
    fn a_crowd_is_a_count() {
        let mut world = watched();
        for connection in 1..=PRESENCE_MEMBERS_MAX as u64 + 1 {
            world.flip(1, "a", connection);
        }
        world.act(1);
        world.pass(1_000);
        let count = PRESENCE_MEMBERS_MAX + 1;
        assert_eq!(world.servers[0].told["a"], Part { count, members: None });
        assert_eq!(world.servers[0].core.members, 0);
    }

    #[test]
    fn who_does_not_answer_is_waited_for_half_a_second() {
        let mut world = World::new(3);
        world.servers[2].up = false;
        world.flip(1, "a", 7);
        world.ask(0, "a");
        world.pass(400);
        assert!(world.servers[0].answers.is_empty());
        world.pass(100);
        assert_eq!(world.servers[0].answers, [true], "the third may have more");
        // With nobody to wait for, and without a broker, at once.
        let mut world = World::new(1);
        world.ask(0, "a");
        assert_eq!(world.servers[0].answers, [false]);
        world.servers[0].core.disconnected();
        world.ask(0, "a");
        world.servers[0].core.connected(world.now);
        world.ask(0, "a");
        assert_eq!(
            world.servers[0].answers,
            [false, true, true],
            "there may be servers that are not known yet"
        );
    }

    #[test]
    fn who_is_gone_is_nowhere_and_who_ends_says_so() {
        let mut world = watched();
        for index in [1, 2] {
            world.flip(index, "a", 7);
        }
        world.pass(1_200);
        assert_eq!(whos(&world.servers[0].told["a"]).len(), 2);
        world.kill(1);
        world.pass(1_000);
        assert_eq!(whos(&world.servers[0].told["a"]), BTreeSet::from([(NodeId(3), 7)]));
        world.servers[2].core.end();
        world.servers[2].here.clear();
        world.act(2);
        world.deliver(0);
        assert_eq!(world.servers[0].told["a"], Part::nobody());
        world.ask(0, "a");
        assert_eq!(world.servers[0].answers, [false], "it is not waited for");
        // One that has not heard it asks, and is told.
        world.servers[0].core.leaving.clear();
        world.ask(0, "a");
        world.pass(200);
        assert_eq!(world.servers[0].answers, [false, false]);
    }

    /// A server that watches `a`, and knows another.
    fn watcher() -> (Presences, Instant) {
        let now = Instant::now();
        let mut core = Presences::new(NodeId(1), 255);
        core.connected(now);
        core.watch(&"a".into(), now);
        drop(core.take_acts(now));
        (core, now)
    }

    fn told(core: &mut Presences, now: Instant) -> Option<Part> {
        let parts = core.take_acts(now).into_iter().filter_map(|act| match act {
            Act::Tell(_, AboutPresence::Elsewhere { part, .. }) => Some(part),
            _ => None,
        });
        parts.last()
    }

    type Members<'a> = Option<&'a [(u64, Option<&'a str>)]>;

    fn said_of(count: u32, members: Members<'_>) -> BTreeMap<Box<str>, Said> {
        let here = |(connection, user): &(u64, Option<&str>)| Here {
            connection: *connection,
            user: user.map(Into::into),
        };
        let members = members.map(|members| members.iter().map(here).collect());
        BTreeMap::from([("a".into(), Said { count, members, to: Vec::new() })])
    }

    #[test]
    fn what_cannot_be_is_refused_and_counted() {
        let long = "x".repeat(256);
        let many: Vec<_> = (0..101).map(|connection| (connection, None)).collect();
        let rows: [(&str, u32, Members<'_>, bool); 9] = [
            ("nobody", 0, Some(&[]), true),
            ("a count", 7_000, None, true),
            ("two", 2, Some(&[(1, Some("ada")), (2, None)]), true),
            ("few", 2, Some(&[(1, None)]), false),
            ("twice", 2, Some(&[(1, None), (1, Some("ada"))]), false),
            ("a dot", 1, Some(&[(1, Some("a.b"))]), false),
            ("no name", 1, Some(&[(1, Some("\n"))]), false),
            ("long", 1, Some(&[(1, Some(&long))]), false),
            ("a crowd one by one", 101, Some(&many), false),
        ];
        for (what, count, members, sound) in rows {
            let (mut core, now) = watcher();
            core.heard_present(NodeId(2), 1, said_of(5, None));
            assert!(told(&mut core, now).is_some(), "{what}");
            core.heard_present(NodeId(2), 2, said_of(count, members));
            assert_eq!(told(&mut core, now).is_some(), sound, "{what}");
            let refusals = core.second(|_| true, now);
            assert_eq!(refusals, Refusals { malformed: u64::from(!sound), full: 0 }, "{what}");
        }
        let (mut core, now) = watcher();
        let names: Vec<Box<str>> = ["", "a.*", "own", "ok", &long].map(Into::into).into();
        core.heard_who((NodeId(2), 1), (&names, &names), |name| name != "own", now);
        assert_eq!(core.second(|_| true, now).malformed, 8);
        assert_eq!(core.lent.len(), 1);
    }

    #[test]
    fn what_is_old_or_repeated_changes_nothing() {
        let (mut core, now) = watcher();
        core.heard_present(NodeId(2), 5, said_of(1, Some(&[(1, None)])));
        assert_eq!(told(&mut core, now).map(|part| part.count), Some(1));
        for number in [5, 4] {
            core.heard_present(NodeId(2), number, said_of(0, Some(&[])));
            assert_eq!(told(&mut core, now), None);
        }
        let mut others = said_of(1, None);
        others.insert("nobody.asked".into(), Said { count: 1, members: None, to: Vec::new() });
        core.heard_present(NodeId(2), 6, others);
        assert_eq!((core.interests.len(), core.members), (1, 0));
    }

    #[test]
    fn nobody_can_fill_it() {
        let (mut core, now) = watcher();
        // Members of others.
        let members: Vec<_> = (0..100).map(|connection| (connection, None)).collect();
        for node in 2..1_000 {
            core.heard_present(NodeId(node), 1, said_of(100, Some(&members)));
        }
        assert!(core.members <= MEMBERS_MAX && core.members > MEMBERS_MAX - 100);
        assert_eq!(core.second(|_| true, now).full, 998 - MEMBERS_MAX as u64 / 100);
        core.second(|node| node.0 < 10, now);
        assert_eq!(core.members, 800);
        // What others want to know.
        for chunk in 0..200 {
            let names: Vec<Box<str>> = (0..128).map(|n| format!("n.{chunk}.{n}").into()).collect();
            core.heard_who((NodeId(2), chunk), (&names, &names), |_| true, now);
        }
        assert_eq!(core.lent.len(), LENT_MAX);
        let acts = core.take_acts(now);
        let asked = |act: &&Act| matches!(act, Act::Tell(_, AboutPresence::AskForServers { .. }));
        assert_eq!(acts.iter().filter(asked).count(), ROUNDS_MAX);
        // And one's own.
        for n in 0..2 * INTERESTS_MAX {
            core.watch(&format!("w.{n}").into(), now);
        }
        assert_eq!(core.interests.len(), INTERESTS_MAX);
        core.ask(&"one.more".into(), [NodeId(2)].into_iter(), now);
        let refused =
            |act: &Act| matches!(act, Act::Tell(_, AboutPresence::Elsewhere { partial: Some(true), .. }));
        assert!(core.take_acts(now).iter().any(refused), "whoever asks is told at once that it is not all");
        // Whoever watches is made good when there is room.
        let late = core.waiting.first().expect("they wait").clone();
        let watched = core.interests.keys().find(|name| core.interests[*name].watched).expect("many").clone();
        core.unwatch(&watched);
        core.second(|_| true, now);
        assert!(core.interests[&late].watched && !core.waiting.contains(&late));
    }

    #[test]
    fn messages_are_few_and_small_whatever_there_is_to_say() {
        let (mut core, mut now) = watcher();
        let start = now;
        let name = |n: usize| Arc::from(format!("{}.{n}", "n".repeat(240)));
        let names: Vec<Arc<str>> = (0..2_000).map(name).collect();
        let asked: Vec<Box<str>> = names.iter().map(|name| (**name).into()).collect();
        core.heard_who((NodeId(2), 9), (&asked, &[]), |_| true, now);
        names.iter().for_each(|name| core.watch(name, now));
        let user: Box<str> = "u".repeat(249).into();
        let present = |connection| Present { server: None, connection, user: Some(user.clone()) };
        let part = Part::of(PRESENCE_MEMBERS_MAX, (0..PRESENCE_MEMBERS_MAX as u64).map(present));
        let (mut said, mut messages) = (0, 0);
        while said < names.len() {
            for act in core.take_acts(now) {
                match act {
                    Act::Tell(_, AboutPresence::AskForServers { name }) => {
                        core.note_here(name, part.clone());
                    }
                    Act::Tell(..) => {}
                    Act::Say(message) => {
                        messages += 1;
                        if let Message::Present { channels, .. } = &message {
                            said += channels.len();
                            assert!(channels.values().all(|said| said.to[0].number == 9));
                        }
                        let bytes =
                            super::super::message::Envelope { node: NodeId(1), message }.encode().len();
                        assert!(bytes <= SAID_BYTES_MAX + SAID_BYTES_MAX / 4, "{bytes} bytes");
                    }
                }
            }
            now += MESSAGE_INTERVAL / 2;
        }
        let intervals = (now - start).as_millis() / MESSAGE_INTERVAL.as_millis() + 1;
        assert!(messages <= 2 * intervals, "{messages} messages in {:?}", now - start);
    }
}
