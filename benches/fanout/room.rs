//! A worker's hub with a room full of subscribers of one channel, each with its real outbox, and the worker's real writer.
//! No socket: what the writer writes goes nowhere. Shared by benches/fanout.rs and tests/allocations.rs.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use prost::Message as _;
use tidewire::clock::Now;
use tidewire::config::Config;
use tidewire::hub::Published;
use tidewire::hub::access::Standing;
use tidewire::hub::membership::NewMember;
use tidewire::hub::router::Router;
use tidewire::keepalive::Keepalive;
use tidewire::outbound;
use tidewire::outbox::Take;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::pattern::Pattern;
use tidewire::session::DeliveryOptions;
use tidewire::wire::control::Policy;
use tidewire::wire::decode::{SampleSpan, scan_publish};
use tidewire::wire::proto::{Block, Publish, Sample, sample::Value};
use tidewire::wire::{ChannelId, Codec, ConnectionId};
use tidewire::worker::{Shared, Watched, Worker};
use tokio::io::sink;

const CHANNEL: &str = "robot.7.imu";
const SAMPLE_BYTES: usize = 128;

/// How the outboxes are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Gather, copy and advance, as the writer does, without its clock, its histograms and its write.
    Core,
    /// The worker's writer itself.
    Writer,
}

impl Drain {
    pub(crate) const ALL: [Self; 2] = [Self::Core, Self::Writer];
}

/// See the file's page.
pub(crate) struct Room {
    worker: Rc<Worker>,
    publisher: usize,
    message: Vec<u8>,
    spans: Vec<SampleSpan>,
    now: Now,
    watched: Vec<Rc<Watched>>,
    writer: Pin<Box<dyn Future<Output = ()>>>,
    buffer: Vec<u8>,
}

impl Room {
    /// A room of that many subscribers, and a publisher whose messages hold that many samples. Warm: every queue has the
    /// capacity that it needs.
    pub(crate) fn new(subscribers: usize, samples: usize) -> Self {
        let config = Arc::new(Config::default());
        let (router, _) = Router::new(1, config.channel.channels_total_max);
        let worker = Rc::new(Worker::new(0, Arc::new(Shared::new(Arc::clone(&config), router))));
        let now = worker.now();
        let delivery = DeliveryOptions {
            policy: Policy::DropOldest,
            max_delay_ms: u32::try_from(config.batch.window.as_millis()).expect("a short time"),
            max_age_ms: u32::try_from(config.outbox.max_age.as_millis()).expect("a short time"),
            max_rate_hz: None,
        };
        let pattern = Pattern::parse(CHANNEL, CHANNEL.len()).expect("a valid name");
        let join = |_| {
            let watched = enter(&worker, now);
            let member = watched.member.expect("a member");
            worker
                .hub
                .borrow_mut()
                .subscribe(member, None, &pattern, delivery, None, now)
                .expect("within the limits");
            watched
        };
        let watched: Vec<_> = (0..subscribers).map(join).collect();
        let publisher = enter(&worker, now).member.expect("a member");
        let channel =
            worker.hub.borrow_mut().advertise(publisher, None, CHANNEL, now).expect("within the limits");
        let writing = Rc::clone(&worker);
        let mut room = Self {
            writer: Box::pin(async move { outbound::run_writer(&writing).await }),
            publisher,
            message: message(channel, samples),
            spans: Vec::new(),
            now,
            watched,
            buffer: Vec::new(),
            worker,
        };
        for _ in 0..4 {
            Drain::ALL.into_iter().for_each(|drain| room.round(drain));
        }
        room
    }

    /// Samples times subscribers of a round.
    pub(crate) fn deliveries(&self) -> u64 {
        (self.spans.len() * self.watched.len()) as u64
    }

    /// One publish, which becomes one frame, which comes out of every outbox.
    pub(crate) fn round(&mut self, drain: Drain) {
        // A channel that was quiet for a window seals at once. Far more than that, so that the clock, which the writer reads,
        // stays behind even below a profiler: no frame grows old.
        self.now = self.now.plus(Duration::from_millis(100));
        let limit = self.worker.config().inbound.message_samples_max;
        let publish = scan_publish(&self.message, limit, &mut self.spans).expect("a valid message");
        let published = self.worker.hub.borrow_mut().publish(self.publisher, &publish, &self.spans, self.now);
        assert!(matches!(published, Published::Taken));
        match drain {
            Drain::Core => self.drain_core(),
            Drain::Writer => self.run_writer(),
        }
    }

    fn drain_core(&mut self) {
        let buffer = &mut self.buffer;
        while let Some(place) = self.worker.ready().pop() {
            self.worker.with_watched(place, |watched| {
                let mut outbox = watched.handle.outbox().borrow_mut();
                buffer.clear();
                outbox.gather(|message| {
                    buffer.extend_from_slice(message);
                    Take::More
                });
                outbox.advance(black_box(&*buffer).len(), |frame| {
                    black_box(frame);
                });
                watched.handle.set_idle();
            });
        }
        self.check();
    }

    fn run_writer(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while !self.worker.ready().is_empty() {
            assert!(self.writer.as_mut().poll(&mut cx).is_pending(), "the writer goes on");
        }
        self.check();
    }

    fn check(&self) {
        let empty = |watched: &Rc<Watched>| !watched.handle.outbox().borrow().has_output();
        assert!(self.watched.iter().all(empty), "all of it was taken");
    }
}

/// Takes a connection into the hub.
fn enter(worker: &Worker, now: Now) -> Rc<Watched> {
    let config = worker.config();
    let handle = Rc::new(OutboxHandle::new(config.outbox.clone(), Rc::clone(worker.ready())));
    let new = NewMember {
        id: ConnectionId(1),
        handle: Rc::clone(&handle),
        codec: Codec::Protobuf,
        standing: Standing::Open { user: None },
        seat: None,
        remote: "".into(),
    };
    let member = worker.hub.borrow_mut().add_member(new, now);
    let keepalive = RefCell::new(Keepalive::new(config, now.at, 0.0));
    let io = Rc::new(RefCell::new(sink()));
    let watched =
        Rc::new(Watched { handle, keepalive, member: Some(member), io, unflushed: Cell::new(false) });
    worker.watch(Rc::clone(&watched));
    watched
}

fn message(channel: ChannelId, samples: usize) -> Vec<u8> {
    let sample = |index| Sample {
        source_delta_ns: i64::try_from(index).expect("small") * 1_000_000,
        value: Some(Value::Bytes(vec![0x55; SAMPLE_BYTES])),
    };
    let samples = (0..samples).map(sample).collect();
    let block = Block { source_ns: 1_763_864_091_123_456_789, received_ns: 0, samples };
    Publish { channel: channel.0, block: Some(block), ack: 0 }.encode_to_vec()
}
