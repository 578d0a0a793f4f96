//! What a channel costs a second worker: one message for each frame, however many receive it there, and none for a worker
//! without receivers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tidewire::clock::{Clock, Now};
use tidewire::config::Config;
use tidewire::hub::access::Standing;
use tidewire::hub::membership::NewMember;
use tidewire::hub::router::{Router, ToWorker};
use tidewire::hub::{Hub, Published};
use tidewire::outbox::handle::OutboxHandle;
use tidewire::pattern::Pattern;
use tidewire::session::DeliveryOptions;
use tidewire::wire::control::Policy;
use tidewire::wire::decode::scan_publish;
use tidewire::wire::proto::{Block, Publish, Sample, sample::Value};
use tidewire::wire::{Codec, ConnectionId};
use tokio::sync::mpsc::Receiver;

const CHANNEL: &str = "robot.7.imu";
const FRAMES: usize = 50;

struct Workers {
    hubs: Vec<Hub>,
    inboxes: Vec<Receiver<ToWorker>>,
    now: Now,
    /// Frames that came into the inbox of each.
    frames: Vec<usize>,
}

impl Workers {
    fn new(count: usize) -> Self {
        let config = Arc::new(Config { workers: count, ..Config::default() });
        let (router, inboxes) = Router::new(count, config.channel.channels_total_max);
        let hubs = (0..count).map(|worker| Hub::new(worker, Arc::clone(&config), Arc::clone(&router)));
        Self { hubs: hubs.collect(), inboxes, now: Clock::new().now(), frames: vec![0; count] }
    }

    fn enter(&mut self, worker: usize) -> (usize, Rc<OutboxHandle>) {
        let config = Config::default();
        let handle = Rc::new(OutboxHandle::new(config.outbox, Rc::default()));
        let (id, codec) = (ConnectionId(1), Codec::Protobuf);
        let new = NewMember {
            id,
            handle: Rc::clone(&handle),
            codec,
            standing: Standing::Open { user: None },
            seat: None,
            remote: "".into(),
        };
        (self.hubs[worker].add_member(new, self.now), handle)
    }

    /// Handles messages until no worker has any.
    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for worker in 0..self.hubs.len() {
                while let Ok(message) = self.inboxes[worker].try_recv() {
                    busy = true;
                    self.frames[worker] += usize::from(matches!(message, ToWorker::Frame { .. }));
                    self.hubs[worker].handle(message, self.now);
                }
            }
        }
    }
}

#[test]
fn a_frame_crosses_to_a_worker_once() {
    for receivers in [1, 10, 200] {
        let mut workers = Workers::new(3);
        let (publisher, _) = workers.enter(0);
        let channel = workers.hubs[0].advertise(publisher, None, CHANNEL, workers.now).unwrap();
        workers.settle();
        let pattern = Pattern::parse(CHANNEL, CHANNEL.len()).unwrap();
        let delivery = DeliveryOptions {
            policy: Policy::DropOldest,
            max_delay_ms: 10,
            max_age_ms: 1_000,
            max_rate_hz: None,
        };
        // All on one worker, which is not the channel's home.
        let home = (0..3).find(|&worker| {
            let (member, _) = workers.enter(worker);
            workers.hubs[worker].subscribe(member, None, &pattern, delivery, None, workers.now).unwrap();
            // Only the home answers a join by itself.
            let alone = workers.inboxes.iter_mut().all(|inbox| inbox.is_empty());
            workers.settle();
            workers.hubs[worker].remove_member(member, workers.now);
            workers.settle();
            alone
        });
        let home = home.expect("one of them is the home");
        let other = (home + 1) % 3;
        let handles: Vec<_> = (0..receivers)
            .map(|_| {
                let (member, handle) = workers.enter(other);
                workers.hubs[other].subscribe(member, None, &pattern, delivery, None, workers.now).unwrap();
                workers.settle();
                handle
            })
            .collect();
        workers.frames.fill(0);

        let sample = Sample { source_delta_ns: 0, value: Some(Value::Number(1.0)) };
        let block = Block { source_ns: 1, received_ns: 0, samples: vec![sample] };
        let message = Publish { channel: channel.0, block: Some(block), ack: 0 }.encode_to_vec();
        let mut spans = Vec::new();
        for _ in 0..FRAMES {
            // A channel that was quiet for a window seals at once.
            workers.now = workers.now.plus(Duration::from_millis(10));
            let publish = scan_publish(&message, 10, &mut spans).unwrap();
            let now = workers.now;
            assert!(matches!(workers.hubs[0].publish(publisher, &publish, &spans, now), Published::Taken));
            workers.settle();
        }
        assert_eq!(workers.frames[other], FRAMES, "{receivers} receivers");
        assert_eq!(workers.frames.iter().sum::<usize>(), FRAMES, "{receivers} receivers");
        for handle in handles {
            let ledger = handle.outbox().borrow().ledgers().next().unwrap();
            assert_eq!(ledger.published, FRAMES as u64);
        }
    }
}
