//! How workers reach each other: the shared directory, and one bounded inbox for each worker. Never knows what a message
//! does.
//!
//! Everything that one worker tells another goes through one queue, in order: that a receiver joined, and the frames that
//! follow, can't overtake each other. What may be many is bounded before it is sent: publishes by [`PUBLISH_CREDIT_KIB`] (a
//! publisher waits, and with it its socket), frames by [`FRAME_CREDIT_KIB`] (more are lost, counted and told). The rest is answers
//! and notices about channels that a connection holds already, so the limits of connections bound it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::batch::ClassKey;
use super::channel::ClassesFull;
use super::directory::{ChannelInfo, Directory, DirectoryFull, Opened, Role, home_of};
use crate::admission::door::Place as AddressPlace;
use crate::auth::KeyId;
use crate::auth::revocations::Revoked;
use crate::clock::Now;
use crate::durable::{Durable, Told};
use crate::history::{Begin, Size as HistorySize, Start};
use crate::metrics::WorkerMetrics;
use crate::pattern::Pattern;
use crate::peer::Peer;
use crate::presence::Part;
use crate::wire::control::{AsOf, Guarantee, KeptStream, Ledger};
use crate::wire::decode::SampleSpan;
use crate::wire::relay::{NodeId, Payload};
use crate::wire::{ChannelId, Frame, Seq};

/// Publishes on their way to one worker, in KiB: 8 MiB of samples are a tenth of a second at 80 MB/s, far more than a worker
/// that keeps up ever leaves lying.
pub const PUBLISH_CREDIT_KIB: usize = 8 << 10;

/// Frames on their way to one worker, in KiB, each at least one: at 100 frames a second and channel, a tenth of a second of 3,000
/// channels with small frames, or 32 MiB of large ones.
pub const FRAME_CREDIT_KIB: usize = 32 << 10;

/// Messages of other servers on their way to one worker, in KiB, each at least one. More are lost, which their streams' homes find.
pub const RELAY_CREDIT_KIB: usize = 32 << 10;

/// Tokens of an inbox: the two bounds above, and room for what the limits of connections bound.
const INBOX_MAX: usize = Semaphore::MAX_PERMITS >> 8;

/// What one worker tells another.
#[derive(Debug)]
pub enum ToWorker {
    /// A socket to own, its peer, and its place among those of its address.
    Socket(std::net::TcpStream, Peer, AddressPlace),
    /// Samples for a channel whose home is here.
    Publish(Box<ForwardedPublish>),
    /// A frame of a channel that has receivers here.
    Frame {
        /// Its class.
        class: ClassKey,
        /// The frame.
        frame: Box<Frame>,
        /// Its part of [`FRAME_CREDIT_KIB`].
        permit: OwnedSemaphorePermit,
    },
    /// A receiver on another worker joins a class, from another class or newly.
    Join {
        /// The channel; its home is here.
        info: Arc<ChannelInfo>,
        /// The class that it leaves.
        from: Option<ClassKey>,
        /// The class that it joins.
        to: ClassKey,
        /// What it wants of the past: then it has not joined yet when the answer comes.
        start: Option<Start>,
        /// Its worker.
        worker: usize,
        /// To be given back in [`ToWorker::Joined`].
        token: usize,
    },
    /// Answer to [`ToWorker::Join`].
    Joined {
        /// Of the request.
        token: usize,
        /// Where the receiver begins.
        joined: Result<Joined, ClassesFull>,
    },
    /// A receiver on another worker wants more of the past.
    Fetch(Box<Fetch>),
    /// Answer to [`ToWorker::Fetch`].
    Fetched {
        /// Of the request.
        token: usize,
        /// What there is.
        fetched: Box<Fetched>,
    },
    /// A connection wants to know what is kept of a channel whose home is here.
    Describe {
        /// The channel.
        info: Arc<ChannelInfo>,
        /// Its worker.
        worker: usize,
        /// To be given back.
        token: usize,
    },
    /// Answer to [`ToWorker::Describe`].
    Described {
        /// Of the request.
        token: usize,
        /// What is kept.
        stream: KeptStream,
    },
    /// A receiver on another worker leaves a class.
    Leave {
        /// The channel; its home is here.
        channel: ChannelId,
        /// The class.
        class: ClassKey,
        /// Its worker.
        worker: usize,
    },
    /// A channel is advertised: patterns may match it, and its home knows its sequence.
    Announce {
        /// The channel.
        info: Arc<ChannelInfo>,
        /// Whom to tell when the patterns here have joined.
        done: Announced,
    },
    /// Answer to [`ToWorker::Announce`]: the mirror may be handed out.
    MirrorAnnounced(ChannelId),
    /// Answer to [`ToWorker::Announce`].
    Announced {
        /// Of the request.
        token: usize,
        /// Sequence of the channel's next sample, from its home.
        seq: Option<Seq>,
    },
    /// Answer to a forwarded publish that asked for it.
    Acked {
        /// What is promised of its samples.
        guarantee: Guarantee,
        /// Who published.
        publisher: Publisher,
        /// What it asked with.
        ack: u64,
        /// The channel.
        channel: ChannelId,
        /// Sequence of its first sample.
        seq: Seq,
        /// Its samples.
        count: u32,
    },
    /// What the history on the disk tells.
    Durable(Told),
    /// The newest sequence of a class, after a frame of it was lost on its way here.
    Head {
        /// The channel.
        channel: ChannelId,
        /// The class.
        class: ClassKey,
        /// Its newest sequence.
        head: Seq,
    },
    /// A frame of another server's stream, for a name whose home is here.
    Relayed(Box<Relayed>),
    /// What the broker has kept of a name, whose home is here, has been sent here.
    BacklogRead(Arc<str>),
    /// Another server has begun to watch a name, whose home is here: tell where its stream stands.
    TellHead(Arc<str>),
    /// Samples of a mirror did not come, up to this sequence.
    Missed {
        /// The channel.
        channel: ChannelId,
        /// A class with receivers here.
        class: ClassKey,
        /// Sequence of the last one.
        upto: Seq,
    },
    /// What was there for a `subscribe` has reached every worker before this one, and then whoever waits.
    Arrived(Arrival),
    /// A mirror has ended, as its home tells.
    MirrorEnded(ChannelId),
    /// A stream of another server has ended: nobody publishes it any more. The home of its name is here.
    Ended {
        /// Its name.
        name: Arc<str>,
        /// The life of its sequence.
        epoch: u32,
    },
    /// Nobody needs the channel any more; its home is here.
    Retire(Arc<ChannelInfo>),
    /// Report metrics.
    Report {
        /// Takes the copy: a fresh one would cost the worker a millisecond of page faults.
        buffer: Box<WorkerMetrics>,
        /// Takes the report.
        reply: oneshot::Sender<WorkerReport>,
    },
    /// List connections and channels.
    List(oneshot::Sender<Listing>),
    /// Somebody is shut out: with tokens that were issued until this second of Unix time.
    Revoke(Arc<Revoked>, u64),
    /// These are the keys for tokens now.
    Keys(Arc<[KeyId]>),
    /// Who is on a channel.
    Presence(AboutPresence),
    /// The server is shutting down: flush and end every connection.
    Drain,
    /// In a drain: a worker has sealed everything, and its frames are in this inbox, before this.
    Sealed,
    /// The drain took too long: cut the connections that are left.
    Cut,
    /// The worker ends.
    Stop,
}

/// A message of another server's stream, as the broker gave it.
#[derive(Debug)]
pub struct Relayed {
    /// The name that its topic stands for.
    pub name: Arc<str>,
    /// Not checked yet.
    pub payload: Bytes,
    /// Whether it is from before anybody here wanted it.
    pub backlog: bool,
    /// When it came.
    pub received: Now,
    /// Its part of [`RELAY_CREDIT_KIB`].
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Passes all workers, one after another, behind what was sent to each, and ends with whoever waits for that.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Workers that it has passed.
    pub passed: usize,
    /// Who waits.
    pub waiter: Waiter,
}

/// A `subscribe` or an `advertise` that waits for other servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Its worker.
    pub worker: usize,
    /// Its number there, never used again.
    pub wait: u64,
}

/// The way to other servers. Never waits: what it has no room for is lost, and counted there; whoever receives it finds the hole.
pub trait Outlet: std::fmt::Debug + Send + Sync {
    /// This server's own life.
    fn node(&self) -> NodeId;

    /// Whether what is published under this name is for other servers, too.
    fn crosses(&self, name: &str) -> bool;

    /// Sends a payload to the servers that want the name. In the order of the calls, for a name.
    fn publish(&self, name: &str, payload: Payload);

    /// Somebody subscribes. [`ToWorker::Arrived`] begins its way once what the pattern matches on other servers is known here and
    /// comes from now on, or cannot be had.
    fn want(&self, pattern: &Pattern, waiter: Waiter);

    /// A name is published to since now: the directory says which. [`ToWorker::Arrived`] begins its way once every other server
    /// that wants it gets it, or cannot be waited for any longer.
    fn tell_opened(&self, waiter: Waiter);

    /// A name is published to since now, or not any more: the directory says which.
    fn note_changed(&self);

    /// Tells the other servers that somebody is shut out, with tokens that were issued until this second of Unix time.
    fn tell_revoked(&self, revoked: &Revoked, issued_s: u64);

    /// A subscription has ended, one for each [`Outlet::want`] that began one.
    fn unwant(&self, pattern: &Pattern);

    /// Asks or tells the other servers who is on channels.
    fn presence(&self, across: PresenceAcross);
}

/// Where a receiver begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is in its class: with this sample.
    Live(Seq),
    /// It has to catch up first.
    Past(Begin),
}

/// A receiver wants more of the past of a channel.
#[derive(Debug)]
pub struct Fetch {
    /// The channel.
    pub info: Arc<ChannelInfo>,
    /// How it wants its frames: the class that it joins at the end.
    pub class: ClassKey,
    /// The first sample that it has not got.
    pub from: Seq,
    /// Bytes that it has room for, about.
    pub bytes: usize,
    /// Frames that it has room for.
    pub frames: usize,
    /// When its rate allows the next sample, by the times of the past.
    pub allowed: Option<Instant>,
    /// Whether it has got nothing yet.
    pub first: bool,
    /// Its worker.
    pub worker: usize,
    /// To be given back.
    pub token: usize,
}

/// A part of the past.
#[derive(Debug)]
pub struct Fetched {
    /// In the order of the sequence.
    pub pieces: Vec<Piece>,
    /// The first sample behind it. What is before it and in no frame was left out by the class.
    pub next: Seq,
    /// As in [`Fetch`], for the next one.
    pub allowed: Option<Instant>,
    /// That was all: the receiver has joined its class, with the sample `next`, or could not.
    pub joined: Option<Result<(), ClassesFull>>,
}

/// A piece of the past.
#[derive(Debug)]
pub enum Piece {
    /// Samples.
    Frame(Frame),
    /// Everything up to this sequence is not kept any more.
    Gone(Seq),
}

/// What workers tell each other about who is on a channel. It is put together at the home of the `$presence` channel of its name.
#[derive(Debug)]
pub enum AboutPresence {
    /// To the home: a connection wants to know.
    Ask {
        /// The channel.
        name: Arc<str>,
        /// Its worker.
        worker: usize,
        /// To be given back in [`AboutPresence::Answer`].
        token: usize,
    },
    /// To the home: other servers want to know ([`PresenceAcross::Said`]).
    AskForServers {
        /// The channel.
        name: Arc<str>,
    },
    /// To the home: other servers want to hear of changes here ([`PresenceAcross::Changed`]), or not any more.
    Lend {
        /// The channel.
        name: Arc<str>,
        /// Whether they do.
        any: bool,
    },
    /// To the home: who is on the channel on other servers.
    Elsewhere {
        /// The channel.
        name: Arc<str>,
        /// All of them together.
        part: Part,
        /// The answer to [`PresenceAcross::Ask`], if it is one: whether something is missing.
        partial: Option<bool>,
        /// Goes when the home has taken it.
        under_way: Arc<()>,
    },
    /// Answer to [`AboutPresence::Ask`].
    Answer {
        /// Of the request.
        token: usize,
        /// One for all who have asked meanwhile.
        answer: Arc<PresenceAnswer>,
    },
    /// From the home: say it once.
    Say {
        /// The channel.
        name: Arc<str>,
        /// The home.
        home: usize,
    },
    /// From the home: say it now, and whenever it has changed.
    Watch {
        /// The channel.
        name: Arc<str>,
        /// The home.
        home: usize,
    },
    /// From the home: nobody wants to know any more.
    Unwatch {
        /// The channel.
        name: Arc<str>,
    },
    /// To the home: who is on the channel here.
    Said {
        /// The channel.
        name: Arc<str>,
        /// The worker that says it.
        worker: usize,
        /// What it says.
        part: Part,
        /// Whether it was asked to by [`AboutPresence::Say`].
        asked: bool,
        /// Goes when the home has taken it: the worker says no more before that, so that nothing piles up.
        under_way: Option<Arc<()>>,
    },
}

/// What this server asks and tells others about who is on a channel.
#[derive(Debug)]
pub enum PresenceAcross {
    /// Somebody here asks: once for each [`AboutPresence::Elsewhere`] that answers it.
    Ask(Arc<str>),
    /// Somebody here watches the channel.
    Watch(Arc<str>),
    /// Nobody here does any more.
    Unwatch(Arc<str>),
    /// Who is on the channel here.
    Said(Arc<str>, Part),
    /// It is another matter now who is on the channel here. The worker that has said so says no more before this is taken.
    Changed(Arc<str>, Option<Arc<()>>),
    /// This server ends: everybody goes.
    Nobody,
}

/// Who is on a channel, for those who have asked.
#[derive(Debug)]
pub struct PresenceAnswer {
    /// The channel.
    pub name: Arc<str>,
    /// Who is on it.
    pub part: Part,
    /// Whether other servers may have more.
    pub partial: bool,
    /// Where its `$presence` channel stood then, if somebody watches.
    pub as_of: Option<AsOf>,
}

/// Whom to tell that an announcement has reached a worker's patterns.
#[derive(Debug)]
pub enum Announced {
    /// The home of a mirror, whose frames wait for it.
    Mirror {
        /// The home.
        home: usize,
        /// The mirror.
        channel: ChannelId,
    },
    /// A connection of that worker waits.
    Worker {
        /// The worker.
        worker: usize,
        /// To be given back.
        token: usize,
    },
    /// A task waits.
    Task(oneshot::Sender<()>),
}

/// A connection, as other workers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// Its worker.
    pub worker: usize,
    /// Its place there.
    pub member: usize,
    /// Its number, since places are used again.
    pub connection: u64,
}

/// A publisher's message on its way to the channel's home: checked, and copied once.
#[derive(Debug)]
pub struct ForwardedPublish {
    /// The channel.
    pub info: Arc<ChannelInfo>,
    /// Content of the `Block`.
    pub content: Bytes,
    /// Its samples.
    pub spans: Box<[SampleSpan]>,
    /// Base of their source times.
    pub source_ns: u64,
    /// When it was read.
    pub received: Now,
    /// Who wants to know the sequence, and the number of the request.
    pub ack: Option<(Publisher, u64)>,
    /// Its part of [`PUBLISH_CREDIT_KIB`], given back when it was handled.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What a worker reports for the metrics.
#[derive(Debug)]
pub struct WorkerReport {
    /// Counters and distributions.
    pub metrics: Box<WorkerMetrics>,
    /// Subscriptions (names and patterns).
    pub subscriptions: usize,
    /// Frames that wait in outboxes.
    pub outbox_frames: usize,
    /// Bytes that wait in outboxes.
    pub outbox_bytes: usize,
    /// Bytes of the frames in outboxes, each counted once, and of control messages.
    pub memory_bytes: usize,
    /// What the history takes.
    pub history: HistorySize,
    /// By how much flush windows are widened, in parts of [`STEPS`](super::overload::STEPS).
    pub widening: u32,
}

/// What a worker lists for people.
#[derive(Debug, Default)]
pub struct Listing {
    /// Its connections.
    pub connections: Vec<ConnectionRow>,
    /// The channels whose home it is.
    pub channels: Vec<ChannelRow>,
}

/// A row of `/api/connections`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ConnectionRow {
    /// Number of the connection.
    pub connection: u64,
    /// Its worker.
    pub worker: usize,
    /// Address of the peer.
    pub remote: String,
    /// The owner of `$user.ID`: who its token says, or who it says itself where there are no keys.
    pub user: Option<String>,
    /// Its subprotocol.
    pub protocol: &'static str,
    /// Milliseconds since the upgrade.
    pub age_ms: u64,
    /// Subscriptions (names and patterns).
    pub subscriptions: usize,
    /// Channels opened for publishing.
    pub advertised: usize,
    /// Frames that wait.
    pub outbox_frames: usize,
    /// Bytes that wait.
    pub outbox_bytes: usize,
    /// Age of the oldest frame that waits, in milliseconds.
    pub lag_ms: u64,
    /// Samples delivered.
    pub delivered: u64,
    /// Samples lost to overflow or age.
    pub dropped: u64,
    /// Samples left out by policy or rate limit.
    pub conflated: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Ledger of each channel.
    pub channels: Vec<Ledger>,
}

/// A row of `/api/channels`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ChannelRow {
    /// Its number.
    pub channel: u32,
    /// Its name.
    pub name: String,
    /// The life of its sequence.
    pub epoch: u32,
    /// Its home worker.
    pub worker: usize,
    /// Samples published.
    pub published: u64,
    /// Milliseconds since the last publish.
    pub idle_ms: Option<u64>,
    /// Receivers.
    pub receivers: u64,
    /// Delivery classes in use.
    pub classes: usize,
}

/// See the module's page.
#[derive(Debug)]
pub struct Router {
    directory: Mutex<Directory>,
    links: Vec<WorkerLink>,
    /// The way to other servers, if there is one.
    outlet: OnceLock<Arc<dyn Outlet>>,
    /// The history on the disk, if there is one.
    durable: OnceLock<Arc<Durable>>,
}

/// The way to one worker.
#[derive(Debug)]
struct WorkerLink {
    inbox: mpsc::Sender<ToWorker>,
    publish_credit: Arc<Semaphore>,
    frame_credit: Arc<Semaphore>,
    relay_credit: Arc<Semaphore>,
    connections: AtomicUsize,
}

impl Router {
    /// The router of that many workers, and the inboxes to hand to them.
    #[must_use]
    pub fn new(workers: usize, channels_max: usize) -> (Arc<Self>, Vec<mpsc::Receiver<ToWorker>>) {
        let (links, inboxes) = (0..workers.max(1))
            .map(|_| {
                let (inbox, receiver) = mpsc::channel(INBOX_MAX);
                let link = WorkerLink {
                    inbox,
                    publish_credit: Arc::new(Semaphore::new(PUBLISH_CREDIT_KIB)),
                    frame_credit: Arc::new(Semaphore::new(FRAME_CREDIT_KIB)),
                    relay_credit: Arc::new(Semaphore::new(RELAY_CREDIT_KIB)),
                    connections: AtomicUsize::new(0),
                };
                (link, receiver)
            })
            .unzip();
        let directory = Mutex::new(Directory::new(workers.max(1), channels_max));
        (Arc::new(Self { directory, links, outlet: OnceLock::new(), durable: OnceLock::new() }), inboxes)
    }

    /// From now on there are other servers; once, before anybody connects.
    pub fn set_outlet(&self, outlet: Arc<dyn Outlet>) {
        let first = self.outlet.set(outlet).is_ok();
        debug_assert!(first, "a server has one outlet");
    }

    /// From now on there is a history on the disk; once, before anybody connects.
    pub fn set_durable(&self, durable: Arc<Durable>) {
        let first = self.durable.set(durable).is_ok();
        debug_assert!(first, "a server has one history");
    }

    /// The history on the disk.
    #[must_use]
    pub fn durable(&self) -> Option<&Arc<Durable>> {
        self.durable.get()
    }

    /// The way to other servers.
    #[must_use]
    pub fn outlet(&self) -> Option<&dyn Outlet> {
        self.outlet.get().map(AsRef::as_ref)
    }

    /// Sends a frame of another server to the home of its name; `false` if too many are on their way.
    #[must_use]
    pub fn send_relayed(&self, mut relayed: Box<Relayed>) -> bool {
        let home = self.home_of(&relayed.name);
        let Some(link) = self.links.get(home) else { return false };
        let credit = credit(relayed.payload.len(), RELAY_CREDIT_KIB);
        let Ok(permit) = Arc::clone(&link.relay_credit).try_acquire_many_owned(credit) else { return false };
        relayed.permit = Some(permit);
        self.send(home, ToWorker::Relayed(relayed));
        true
    }

    /// Tells the other servers that there is something new in the directory.
    pub fn note_changed(&self) {
        if let Some(outlet) = self.outlet() {
            outlet.note_changed();
        }
    }

    /// Sends an arrival on its way, or further.
    pub fn pass_on(&self, arrival: Arrival) {
        let next = if arrival.passed < self.workers() { arrival.passed } else { arrival.waiter.worker };
        self.send(next, ToWorker::Arrived(arrival));
    }

    /// Number of workers.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.links.len()
    }

    /// Works on the directory under its lock; `work` must be short and must not reach the router again.
    pub fn directory<T>(&self, work: impl FnOnce(&mut Directory) -> T) -> T {
        // A panic inside leaves the directory consistent enough to go on: each step is one map operation.
        work(&mut self.directory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The worker that is, or would be, the home of the channel of this name.
    #[must_use]
    pub fn home_of(&self, name: &str) -> usize {
        home_of(name, self.workers())
    }

    /// Opens a channel as [`Directory::open`] does, and has every worker's patterns find the `$presence` channel that may come with
    /// it. Nobody waits for that.
    ///
    /// # Errors
    /// The channel is new and the server has no room for it.
    pub fn open(&self, name: &str, role: Role) -> Result<Opened, DirectoryFull> {
        // Asked before the directory's lock is taken, and only for a channel that is new: what is asked for goes on until it is retired.
        let will_be_new = |directory: &mut Directory| directory.find(name).is_none() && directory.has_room();
        let life =
            self.durable().filter(|_| self.directory(will_be_new)).and_then(|durable| durable.life_of(name));
        let opened = self.directory(|directory| directory.open_life(name, role, life))?;
        if let Some(teller) = &opened.teller {
            for worker in 0..self.workers() {
                let done = Announced::Task(oneshot::channel().0);
                self.send(worker, ToWorker::Announce { info: Arc::clone(teller), done });
            }
        }
        Ok(opened)
    }

    /// Sends what is bounded elsewhere. A worker that has ended takes nothing any more.
    pub fn send(&self, worker: usize, message: ToWorker) {
        if let Some(link) = self.links.get(worker) {
            let full = matches!(link.inbox.try_send(message), Err(mpsc::error::TrySendError::Full(_)));
            debug_assert!(!full, "an inbox has room for everything that is bounded before it is sent");
        }
    }

    /// Sends a frame; `false` if too many are on their way.
    #[must_use]
    pub fn send_frame(&self, worker: usize, class: ClassKey, frame: &Frame) -> bool {
        let Some(link) = self.links.get(worker) else { return false };
        let credit = credit(frame.bytes.len(), FRAME_CREDIT_KIB);
        let Ok(permit) = Arc::clone(&link.frame_credit).try_acquire_many_owned(credit) else { return false };
        self.send(worker, ToWorker::Frame { class, frame: Box::new(frame.clone()), permit });
        true
    }

    /// Sends a publish if there is credit; gives it back otherwise.
    ///
    /// # Errors
    /// The message, if the inbox has too much.
    pub fn try_publish(&self, mut publish: Box<ForwardedPublish>) -> Result<(), Box<ForwardedPublish>> {
        let Some(link) = self.links.get(publish.info.home) else { return Ok(()) };
        match Arc::clone(&link.publish_credit)
            .try_acquire_many_owned(credit(publish.content.len(), PUBLISH_CREDIT_KIB))
        {
            Ok(permit) => {
                publish.permit = Some(permit);
                self.send(publish.info.home, ToWorker::Publish(publish));
                Ok(())
            }
            Err(_) => Err(publish),
        }
    }

    /// Sends a publish as soon as there is credit: the publisher waits, and its socket fills.
    pub async fn publish(&self, mut publish: Box<ForwardedPublish>) {
        let Some(link) = self.links.get(publish.info.home) else { return };
        let credit = credit(publish.content.len(), PUBLISH_CREDIT_KIB);
        publish.permit = Arc::clone(&link.publish_credit).acquire_many_owned(credit).await.ok();
        self.send(publish.info.home, ToWorker::Publish(publish));
    }

    /// Opens a channel for publishing on behalf of the server itself; when it returns, all patterns have joined.
    ///
    /// # Errors
    /// The server has no room for the channel.
    pub async fn advertise(&self, name: &str) -> Result<Arc<ChannelInfo>, DirectoryFull> {
        let opened = self.open(name, Role::Publisher)?;
        if opened.announce {
            for worker in 0..self.workers() {
                let (done, wait) = oneshot::channel();
                let info = Arc::clone(&opened.info);
                self.send(worker, ToWorker::Announce { info, done: Announced::Task(done) });
                // A worker that has ended has no patterns.
                let _ = wait.await;
            }
            self.directory(|directory| directory.note_announced(opened.info.id));
            self.note_changed();
        }
        Ok(opened.info)
    }

    /// The worker with the fewest connections, which now has one more.
    pub fn place_connection(&self) -> usize {
        let load = |link: &WorkerLink| link.connections.load(Ordering::Relaxed);
        let worker = (0..self.links.len()).min_by_key(|&worker| load(&self.links[worker])).unwrap_or(0);
        self.links[worker].connections.fetch_add(1, Ordering::Relaxed);
        worker
    }

    /// A connection of that worker has ended.
    pub fn forget_connection(&self, worker: usize) {
        if let Some(link) = self.links.get(worker) {
            link.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn credit(bytes: usize, most_kib: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10).clamp(1, most_kib)).unwrap_or(u32::MAX)
}
