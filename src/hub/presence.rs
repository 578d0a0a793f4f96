//! Who is on a channel: each worker knows its own connections, and the home of `$presence.NAME` puts together what all of them
//! say, for those who ask and for those who watch. Nothing here runs for a sample; where nobody asks or watches, a subscription
//! costs an entry in a list.
//!
//! Everything goes through the workers' inboxes, also from a worker to itself: so whoever joins `$presence.NAME` has joined before the
//! first that it tells, and an answer comes after everything that it takes into account.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use slab::Slab;

use super::batch::BlockRef;
use super::directory::{ChannelInfo, DirectoryFull};
use super::membership::Member;
use super::router::{AboutPresence, PresenceAcross, PresenceAnswer, ToWorker};
use super::{ById, Hub, Refused};
use crate::clock::Now;
use crate::pattern::Pattern;
use crate::presence::{Part, Roll, teller_of, told_of};
use crate::wire::control::{AsOf, Event, Present};
use crate::wire::decode::scan_publish;
use crate::wire::proto::sample::Value;
use crate::wire::proto::{Block, Publish, Sample};
use crate::wire::{ChannelId, ConnectionId};

/// Texts of changes that travel as one block, in bytes, unless a single one is longer: a block stays whole, and has to fit the
/// smallest outbox.
const BLOCK_BYTES_MAX: usize = 4 << 10;

/// What a worker knows of who is on channels.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// Places of the members that receive a channel.
    here: ById<Vec<usize>>,
    /// Channels of which a home wants to hear.
    watched: HashMap<Arc<str>, Watched>,
    /// Those whose members have changed since it was told.
    changed: Vec<Arc<str>>,
    /// `presence` requests of connections here.
    asked: Slab<Asked>,
    /// Channels that are watched or asked about, and whose `$presence` channel has its home here.
    rolls: HashMap<Arc<str>, Watch>,
    /// Those with a count that waits for its time.
    waiting: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Watched {
    home: usize,
    changed: bool,
    /// Held by what is on its way to the home.
    under_way: Arc<()>,
}

/// A `presence` that is not answered yet. It stays until then, even if whoever asked has gone.
#[derive(Debug)]
struct Asked {
    member: usize,
    /// Its number, since places are used again.
    connection: ConnectionId,
    id: Option<u64>,
}

/// A channel's roll at the home.
#[derive(Debug)]
struct Watch {
    roll: Roll,
    /// Its `$presence` channel, if somebody receives that.
    teller: Option<Arc<ChannelInfo>>,
    /// Whether other servers want to hear of changes here.
    lent: bool,
    /// Who gets the answer when all workers have said what they were asked.
    asking: Vec<Asker>,
    /// Who has come since they were asked, and so gets the next.
    next: Vec<Asker>,
    /// Workers that have not said it yet.
    remaining: usize,
    /// Who waits for other servers first: worker and token.
    asking_elsewhere: Vec<(usize, usize)>,
    /// Who has come since those were asked.
    next_elsewhere: Vec<(usize, usize)>,
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A connection.
    Connection {
        worker: usize,
        token: usize,
        /// Whether other servers may have more than was heard.
        partial: bool,
    },
    /// Other servers, who want to know about this one.
    Servers,
}

/// Whether the channel is one that tells who is on another.
pub(super) fn tells(info: &ChannelInfo) -> bool {
    told_of(&info.name).is_some()
}

impl Hub {
    /// Has a connection told who receives a channel. The answer goes into the control lane when all workers have said what they know.
    ///
    /// # Errors
    /// It has no right to know.
    pub fn presence(&mut self, member: usize, id: Option<u64>, name: &str) -> Result<(), Refused> {
        self.check_present(member, name)?;
        let this = &self.members[member];
        this.handle.begin_request();
        let token = self.presence.asked.insert(Asked { member, connection: this.id, id });
        let home = self.router.home_of(&teller_of(name));
        self.tell_worker(home, AboutPresence::Ask { name: name.into(), worker: self.worker, token });
        Ok(())
    }

    /// A connection receives a channel from now on.
    pub(super) fn note_arrival(&mut self, member: usize, info: &ChannelInfo) {
        self.presence.here.entry(info.id).or_default().push(member);
        self.presence.note_change(&info.name);
    }

    /// A connection does not receive a channel any more.
    pub(super) fn note_departure(&mut self, member: usize, info: &ChannelInfo) {
        if let Some(here) = self.presence.here.get_mut(&info.id) {
            if let Some(position) = here.iter().position(|place| *place == member) {
                here.swap_remove(position);
            }
            if here.is_empty() {
                self.presence.here.remove(&info.id);
            }
        }
        self.presence.note_change(&info.name);
    }

    /// The connections that receive a channel, which has ended: each of them departs now.
    pub(super) fn take_present(&mut self, channel: ChannelId) -> Vec<usize> {
        self.presence.here.remove(&channel).unwrap_or_default()
    }

    /// The published channels that a pattern matches, each with a hold; a new subscription's pattern may have to bring some into being.
    pub(super) fn open_matching(
        &self,
        pattern: &Pattern,
        is_new: bool,
    ) -> Result<Vec<Arc<ChannelInfo>>, DirectoryFull> {
        let limits = &self.config.channel;
        self.router.directory(|directory| {
            if is_new && told_of(pattern.as_str()).is_some() {
                directory.want_tellers(pattern, limits.channels_max, limits.channel_name_bytes_max)?;
            }
            Ok(directory.open_matching(pattern, limits.channels_max))
        })
    }

    /// A subscription has ended, or was refused after [`Hub::open_matching`].
    pub(super) fn forget_tellers_of(&self, pattern: &Pattern) {
        if !pattern.is_literal() && told_of(pattern.as_str()).is_some() {
            self.router.directory(|directory| directory.forget_tellers(pattern));
        }
    }

    /// Somebody, or nobody any more, receives a channel that tells who is on another; its home is here.
    pub(super) fn note_watchers(&mut self, teller: &Arc<ChannelInfo>, any: bool) {
        let Some(name) = told_of(&teller.name) else { return };
        let workers = self.router.workers();
        let current = self.presence.rolls.get(name).and_then(|watch| watch.teller.as_ref());
        if current.is_some_and(|current| current.id == teller.id) == any {
            return;
        }
        let name: Arc<str> = name.into();
        if any {
            let watch = self.presence.roll_of(&name, workers);
            watch.teller = Some(Arc::clone(teller));
            watch.roll.forget_told();
            self.watch_workers(&name, true);
            self.tell_servers(&name, PresenceAcross::Watch);
        } else if let Some(watch) = self.presence.rolls.get_mut(&name) {
            watch.teller = None;
            if !watch.lent {
                self.watch_workers(&name, false);
            }
            self.presence.drop_unused(&name);
            self.tell_servers(&name, PresenceAcross::Unwatch);
        }
    }

    /// Other servers want to hear of changes here, or not any more.
    fn lend(&mut self, name: &Arc<str>, any: bool) {
        let watch = self.presence.roll_of(name, self.router.workers());
        if std::mem::replace(&mut watch.lent, any) != any && watch.teller.is_none() {
            self.watch_workers(name, any);
        }
        self.presence.drop_unused(name);
    }

    fn watch_workers(&self, name: &Arc<str>, any: bool) {
        for worker in 0..self.router.workers() {
            let (name, home) = (Arc::clone(name), self.worker);
            let about =
                if any { AboutPresence::Watch { name, home } } else { AboutPresence::Unwatch { name } };
            self.tell_worker(worker, about);
        }
    }

    /// Whether others know of the channel, too. What is each server's own has other receivers on each.
    fn tell_servers(&self, name: &Arc<str>, about: impl FnOnce(Arc<str>) -> PresenceAcross) -> bool {
        let outlet = self.router.outlet().filter(|outlet| outlet.crosses(name));
        if let Some(outlet) = outlet {
            outlet.presence(about(Arc::clone(name)));
        }
        outlet.is_some()
    }

    /// What another worker, or this one, says or wants.
    pub(super) fn handle_presence(&mut self, about: AboutPresence, now: Now) {
        match about {
            AboutPresence::Ask { name, worker, token } => {
                let elsewhere = self.router.outlet().is_some_and(|outlet| outlet.crosses(&name));
                let watch = self.presence.roll_of(&name, self.router.workers());
                if elsewhere {
                    watch.next_elsewhere.push((worker, token));
                    self.ask_servers(&name);
                } else {
                    watch.next.push(Asker::Connection { worker, token, partial: false });
                    self.ask_workers(&name);
                }
            }
            AboutPresence::AskForServers { name } => {
                self.presence.roll_of(&name, self.router.workers()).next.push(Asker::Servers);
                self.ask_workers(&name);
            }
            AboutPresence::Lend { name, any } => self.lend(&name, any),
            AboutPresence::Elsewhere { name, part, partial, under_way } => {
                drop(under_way);
                self.note_elsewhere(&name, part, partial, now);
            }
            AboutPresence::Answer { token, answer } => self.answer_presence(token, &answer),
            AboutPresence::Say { name, home } => self.say(name, home, true, None),
            AboutPresence::Watch { name, home } => {
                let under_way = Arc::new(());
                let watched = Watched { home, changed: false, under_way: Arc::clone(&under_way) };
                self.presence.watched.insert(Arc::clone(&name), watched);
                self.say(name, home, false, Some(under_way));
            }
            AboutPresence::Unwatch { name } => {
                self.presence.watched.remove(&name);
            }
            AboutPresence::Said { name, worker, part, asked, under_way } => {
                self.note_said(&name, worker, part, asked, under_way, now);
            }
        }
    }

    /// Says what has changed here, once a tick however often it has, and tells the counts whose time has come.
    pub(super) fn tick_presence(&mut self, now: Now) {
        if self.draining {
            // Everybody goes, and is told so.
            return;
        }
        for name in std::mem::take(&mut self.presence.changed) {
            let Some(watched) = self.presence.watched.get_mut(&name) else { continue };
            if !watched.changed {
                continue;
            }
            if Arc::strong_count(&watched.under_way) > 1 {
                self.presence.changed.push(name);
                continue;
            }
            let (home, under_way) = (watched.home, Arc::clone(&watched.under_way));
            self.say(name, home, false, Some(under_way));
        }
        for name in std::mem::take(&mut self.presence.waiting) {
            self.tell_watchers(&name, now);
        }
    }

    /// The one place where what is known of a channel comes together.
    fn note_said(
        &mut self,
        name: &Arc<str>,
        worker: usize,
        part: Part,
        asked: bool,
        under_way: Option<Arc<()>>,
        now: Now,
    ) {
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        let changed = watch.roll.note(worker, part);
        // What they are being answered has it.
        if changed && watch.lent && !watch.asking.contains(&Asker::Servers) {
            self.tell_servers(name, |name| PresenceAcross::Changed(name, under_way));
        }
        self.tell_watchers(name, now);
        if asked && let Some(watch) = self.presence.rolls.get_mut(name) {
            watch.remaining -= 1;
            if watch.remaining == 0 {
                self.answer_all(name);
                self.ask_workers(name);
                self.presence.drop_unused(name);
            }
        }
    }

    /// What other servers say comes here, and goes on to whoever has waited for it.
    fn note_elsewhere(&mut self, name: &Arc<str>, part: Part, partial: Option<bool>, now: Now) {
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        watch.roll.note_elsewhere(part);
        if let Some(partial) = partial {
            let asked = watch.asking_elsewhere.drain(..);
            watch.next.extend(asked.map(|(worker, token)| Asker::Connection { worker, token, partial }));
        }
        self.tell_watchers(name, now);
        self.ask_servers(name);
        self.ask_workers(name);
    }

    /// Asks other servers for those who want to know, unless they are being asked.
    fn ask_servers(&mut self, name: &Arc<str>) {
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        if !watch.asking_elsewhere.is_empty() || watch.next_elsewhere.is_empty() {
            return;
        }
        watch.asking_elsewhere = std::mem::take(&mut watch.next_elsewhere);
        self.tell_servers(name, PresenceAcross::Ask);
    }

    /// Asks all workers for those who want to know, unless they are being asked: who comes then gets the next answer, so that
    /// very many who ask at once cost no more than a few.
    fn ask_workers(&mut self, name: &Arc<str>) {
        let workers = self.router.workers();
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        if watch.remaining > 0 || watch.next.is_empty() {
            return;
        }
        watch.asking = std::mem::take(&mut watch.next);
        watch.remaining = workers;
        for worker in 0..workers {
            self.tell_worker(worker, AboutPresence::Say { name: Arc::clone(name), home: self.worker });
        }
    }

    fn answer_all(&mut self, name: &Arc<str>) {
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        let asking = std::mem::take(&mut watch.asking);
        let part = if watch.teller.is_some() { watch.roll.told() } else { watch.roll.total() };
        let here = asking.contains(&Asker::Servers).then(|| watch.roll.here()).flatten();
        let as_of = watch
            .teller
            .clone()
            .map(|teller| AsOf { epoch: teller.epoch, seq: self.next_seq_at_home(&teller) - 1 });
        if let Some(here) = here {
            self.tell_servers(name, |name| PresenceAcross::Said(name, here));
        }
        let part = part.unwrap_or_default();
        let mut answers: [Option<Arc<PresenceAnswer>>; 2] = [None, None];
        for asker in asking {
            let Asker::Connection { worker, token, partial } = asker else { continue };
            let answer = answers[usize::from(partial)].get_or_insert_with(|| {
                Arc::new(PresenceAnswer { name: Arc::clone(name), part: part.clone(), partial, as_of })
            });
            let answer = Arc::clone(answer);
            self.tell_worker(worker, AboutPresence::Answer { token, answer });
        }
    }

    fn answer_presence(&mut self, token: usize, answer: &PresenceAnswer) {
        let Some(Asked { member, connection, id }) = self.presence.asked.try_remove(token) else { return };
        // The connection may have gone, and its place may be another's by now.
        let Some(member) = self.members.get(member).filter(|member| member.id == connection) else { return };
        let PresenceAnswer { name, part: Part { count, members }, partial, as_of } = answer;
        member.handle.push_event(&Event::Presence {
            id,
            channel: name,
            count: *count,
            members: members.as_deref(),
            partial: *partial,
            as_of: *as_of,
        });
        member.handle.finish_request();
    }

    /// Says to a home who is on a channel here.
    fn say(&mut self, name: Arc<str>, home: usize, asked: bool, under_way: Option<Arc<()>>) {
        if let Some(watched) = self.presence.watched.get_mut(&name) {
            watched.changed = false;
        }
        let part = self.part_of(&name);
        let worker = self.worker;
        self.tell_worker(home, AboutPresence::Said { name, worker, part, asked, under_way });
    }

    /// Who is on a channel here.
    fn part_of(&self, name: &str) -> Part {
        // Whoever receives several streams of the name is there once.
        let channels = self.router.directory(|directory| directory.numbers_of(name));
        let lists = channels.iter().filter_map(|channel| self.presence.here.get(channel));
        let mut here: Vec<usize> = lists.flatten().copied().collect();
        if channels.len() > 1 {
            here.sort_unstable();
            here.dedup();
        }
        Part::of(here.len(), here.iter().filter_map(|place| self.members.get(*place)).map(present))
    }

    /// The server ends, and other servers need not wait until they miss it.
    pub(super) fn tell_nobody(&self) {
        if let Some(outlet) = self.router.outlet() {
            outlet.presence(PresenceAcross::Nobody);
        }
    }

    /// Tells those who watch what has changed, as samples.
    fn tell_watchers(&mut self, name: &Arc<str>, now: Now) {
        let Some(watch) = self.presence.rolls.get_mut(name) else { return };
        let Some(teller) = watch.teller.clone() else { return };
        let mut texts = Vec::new();
        let waits = watch.roll.tell(now.at, |change| texts.extend(serde_json::to_string(change)));
        if waits && !self.presence.waiting.contains(name) {
            self.presence.waiting.push(Arc::clone(name));
        }
        let mut samples = Vec::new();
        let mut bytes = 0;
        for text in texts {
            bytes += text.len();
            samples.push(Sample { source_delta_ns: 0, value: Some(Value::Text(text)) });
            if bytes >= BLOCK_BYTES_MAX {
                self.publish_own(&teller, std::mem::take(&mut samples), now);
                bytes = 0;
            }
        }
        self.publish_own(&teller, samples, now);
    }

    /// Publishes samples of the server's own to a channel whose home is here.
    fn publish_own(&mut self, info: &Arc<ChannelInfo>, samples: Vec<Sample>, now: Now) {
        let count = samples.len();
        let block = Block { source_ns: now.wall_ns, received_ns: 0, samples };
        let message = Publish { channel: info.id.0, block: Some(block), ack: 0 }.encode_to_vec();
        let mut spans = Vec::new();
        // Without a sample it is none.
        let Ok(scanned) = scan_publish(&message, count, &mut spans) else { return };
        self.metrics.counters.presence_changes += count as u64;
        let block = BlockRef { content: scanned.block, spans: &spans, source_ns: now.wall_ns, received: now };
        self.publish_at_home(info, block, None, now);
    }

    fn tell_worker(&self, worker: usize, about: AboutPresence) {
        self.router.send(worker, ToWorker::Presence(about));
    }
}

impl Presence {
    /// If somebody wants to hear of the channel, they do with the next tick.
    fn note_change(&mut self, name: &str) {
        if self.watched.is_empty() {
            return;
        }
        let Some((name, _)) = self.watched.get_key_value(name) else { return };
        let name = Arc::clone(name);
        if let Some(watched) = self.watched.get_mut(&name)
            && !std::mem::replace(&mut watched.changed, true)
        {
            self.changed.push(name);
        }
    }

    fn roll_of(&mut self, name: &Arc<str>, workers: usize) -> &mut Watch {
        self.rolls.entry(Arc::clone(name)).or_insert_with(|| Watch {
            roll: Roll::new(workers),
            teller: None,
            lent: false,
            asking: Vec::new(),
            next: Vec::new(),
            remaining: 0,
            asking_elsewhere: Vec::new(),
            next_elsewhere: Vec::new(),
        })
    }

    /// Forgets the roll of a channel that nobody watches or asks about.
    fn drop_unused(&mut self, name: &Arc<str>) {
        let unused = |watch: &Watch| {
            let wanted = watch.teller.is_some() || watch.lent;
            !wanted && watch.remaining == 0 && watch.asking_elsewhere.is_empty()
        };
        if self.rolls.get(name).is_some_and(unused) {
            self.rolls.remove(name);
        }
    }
}

fn present(member: &Member) -> Present {
    Present { server: None, connection: member.id.0, user: member.standing.user().map(Into::into) }
}
