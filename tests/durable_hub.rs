//! A hub whose history is on the disk: which sequences are given, what an ack promises, and which streams stay in the store. One
//! worker, a real store in a folder, no socket; time is the test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use prost::Message;
use serde_json::Value as Json;
use tidewire::clock::{Clock, Now};
use tidewire::config::Config;
use tidewire::durable::{Durable, Told};
use tidewire::hub::router::{Router, ToWorker};
use tidewire::hub::{Hub, Published};
use tidewire::outbox::Take;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::wire::decode::scan_publish;
use tidewire::wire::proto::sample::Value;
use tidewire::wire::proto::{Block, Publish, Sample};
use tidewire::wire::{ChannelId, Codec};
use tokio::sync::mpsc;

mod model;

use model::{new_member, split_message};

/// Longer than any disk takes; only a test that would fail waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sample of this size is more than an eighth of the folder (16 MiB), which is the most that the store takes.
const TOO_LARGE: usize = 3 << 20;

struct Home {
    config: Arc<Config>,
    hub: Hub,
    inbox: mpsc::Receiver<ToWorker>,
    durable: Arc<Durable>,
    told: Receiver<Told>,
    now: Now,
    member: usize,
    handle: Rc<OutboxHandle>,
    members: u64,
    events: VecDeque<Json>,
}

impl Home {
    fn open(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { workers: 1, ..Config::default() };
        config.history.commit_interval = Duration::from_millis(1);
        config.history.dir_bytes_max = 16 << 20;
        config.inbound.message_bytes_max = 4 << 20;
        change(&mut config);
        let config = Arc::new(config);
        let (sender, told) = sync_channel(10_000);
        let tell = move |_, what| sender.send(what).unwrap();
        let durable = Arc::new(Durable::open(dir, &config, Box::new(tell)).unwrap());
        let (router, mut inboxes) = Router::new(1, config.channel.channels_total_max);
        router.set_durable(Arc::clone(&durable));
        let mut hub = Hub::new(0, Arc::clone(&config), router);
        let now = Clock::new().now();
        let (new, handle) = new_member(&config, 1, Codec::Json, None);
        let member = hub.add_member(new, now);
        let inbox = inboxes.remove(0);
        Self { config, hub, inbox, durable, told, now, member, handle, members: 1, events: VecDeque::new() }
    }

    fn advertise(&mut self, name: &str) -> ChannelId {
        self.hub.advertise(self.member, None, name, self.now).unwrap()
    }

    /// Publishes one sample of a text, and asks for an ack by this number.
    fn publish(&mut self, channel: ChannelId, ack: u64, bytes: usize) {
        let sample = Sample { source_delta_ns: 0, value: Some(Value::Text("x".repeat(bytes))) };
        let block = Block { source_ns: 0, received_ns: 0, samples: vec![sample] };
        let message = Publish { channel: channel.0, block: Some(block), ack }.encode_to_vec();
        let mut spans = Vec::new();
        let scanned = scan_publish(&message, 1, &mut spans).unwrap();
        let published = self.hub.publish(self.member, &scanned, &spans, self.now);
        assert!(matches!(published, Published::Taken), "{published:?}");
    }

    /// What waits in the inbox.
    fn pump(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.hub.handle(message, self.now);
        }
    }

    /// The connection ends, all that nobody needs is forgotten but for the home, which has not heard of it, and another begins.
    fn forget_and_reconnect(&mut self) {
        self.hub.remove_member(self.member, self.now);
        self.now = self.now.plus(self.config.channel.linger + Duration::from_millis(1));
        self.hub.sweep(self.now);
        self.members += 1;
        let (new, handle) = new_member(&self.config, self.members, Codec::Json, None);
        (self.member, self.handle) = (self.hub.add_member(new, self.now), handle);
    }

    fn hear(&mut self) {
        let mut outbox = self.handle.outbox().borrow_mut();
        outbox.poll(self.now).unwrap();
        let mut stream = Vec::new();
        outbox.gather(|message| {
            stream.extend_from_slice(message);
            Take::More
        });
        outbox.advance(stream.len(), |_| {});
        drop(outbox);
        let mut rest = stream.as_slice();
        while let Some((_, payload, behind)) = split_message(rest) {
            rest = behind;
            self.events.push_back(serde_json::from_slice(payload).unwrap());
        }
    }

    /// The next ack: its number, the sequence, what it promises. The store tells meanwhile what it has.
    fn ack(&mut self) -> (u64, u64, String) {
        loop {
            self.hear();
            let position = self.events.iter().position(|event| event["type"] == "ack");
            if let Some(ack) = position.and_then(|position| self.events.remove(position)) {
                let number = |field: &str| ack[field].as_u64().unwrap();
                return (number("id"), number("seq"), ack["guarantee"].as_str().unwrap().to_owned());
            }
            let told = self.told.recv_timeout(PATIENCE).expect("an ack comes");
            self.hub.handle(ToWorker::Durable(told), self.now);
        }
    }
}

fn promised(ack: u64, seq: u64, guarantee: &str) -> (u64, u64, String) {
    (ack, seq, guarantee.to_owned())
}

#[test]
fn what_the_store_refuses_is_never_told_as_durable() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = Home::open(dir.path(), |_| {});
    let channel = home.advertise("a");
    // Sealed at once, being large.
    home.publish(channel, 1, TOO_LARGE);
    home.publish(channel, 2, 10);
    assert_eq!(home.ack(), promised(1, 1, "accepted"));
    home.now = home.now.plus(home.config.batch.window);
    home.hub.poll_due(home.now);
    assert_eq!(home.ack(), promised(2, 2, "durable"));
}

#[test]
fn who_waits_for_the_disk_is_answered_before_a_drain_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = Home::open(dir.path(), |config| config.history.commit_interval = PATIENCE);
    let channel = home.advertise("a");
    home.publish(channel, 1, 10);
    home.hub.handle(ToWorker::Drain, home.now);
    home.publish(channel, 2, 10);
    assert_eq!(home.ack(), promised(1, 1, "accepted"));
    // What came behind is not taken, and so not acknowledged.
    home.hear();
    assert!(home.events.iter().all(|event| event["type"] != "ack"), "{:?}", home.events);
    assert_eq!(home.hub.metrics().counters.samples_after_drain, 1);
}

#[test]
fn a_name_that_is_opened_again_before_its_home_forgot_it_uses_no_sequence_twice() {
    for pumped_first in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        // What is in a batch is still in it when the name is forgotten.
        let mut home = Home::open(dir.path(), |config| {
            config.batch.window = Duration::from_secs(10);
            config.channel.linger = Duration::from_secs(1);
        });
        let channel = home.advertise("a");
        home.publish(channel, 0, 10);
        home.publish(channel, 0, 10);
        home.forget_and_reconnect();
        let again = home.advertise("a");
        assert_ne!(again, channel);
        if pumped_first {
            home.pump();
        }
        home.publish(again, 3, 10);
        home.pump();
        home.publish(again, 4, 10);
        home.now = home.now.plus(Duration::from_secs(10));
        home.hub.poll_due(home.now);
        assert_eq!(home.ack(), promised(3, 3, "durable"), "{pumped_first}");
        assert_eq!(home.ack(), promised(4, 4, "durable"), "{pumped_first}");
        assert_eq!(home.hub.metrics().counters.history_frames_refused, 0);
    }
}

#[test]
fn a_stream_that_nobody_published_to_is_forgotten_like_any() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = Home::open(dir.path(), |_| {});
    home.advertise("a");
    assert!(home.durable.is_in_use("a"));
    home.forget_and_reconnect();
    home.pump();
    assert!(!home.durable.is_in_use("a"));
    // There is no room for a second one, which is not asked for then.
    let mut home = Home::open(tempfile::tempdir().unwrap().path(), |config| {
        config.channel.channels_total_max = 1;
    });
    home.advertise("a");
    assert!(home.hub.advertise(home.member, None, "b", home.now).is_err());
    assert!(!home.durable.is_in_use("b"));
}

#[test]
fn what_was_read_back_is_forgotten_if_nobody_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = Home::open(dir.path(), |_| {});
    for name in ["a", "b"] {
        let channel = home.advertise(name);
        home.publish(channel, 1, 10);
        assert_eq!(home.ack(), promised(1, 1, "durable"));
    }
    home.durable.close();
    drop(home);
    let mut home = Home::open(dir.path(), |_| {});
    home.advertise("b");
    home.hub.sweep(home.now);
    assert!(home.durable.is_in_use("a") && home.durable.is_in_use("b"));
    home.now = home.now.plus(home.config.channel.linger + Duration::from_secs(1));
    home.hub.sweep(home.now);
    assert!(!home.durable.is_in_use("a") && home.durable.is_in_use("b"));
    // Nothing is used twice all the same.
    for (name, ack) in [("a", 2), ("b", 3)] {
        let channel = home.advertise(name);
        home.publish(channel, ack, 10);
        assert_eq!(home.ack(), promised(ack, 2, "durable"));
    }
}

#[test]
fn an_advertisement_tells_where_a_stream_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = Home::open(dir.path(), |_| {});
    let channel = home.advertise("a");
    home.publish(channel, 1, 10);
    assert_eq!(home.ack(), promised(1, 1, "durable"));
    home.durable.close();
    drop(home);
    let mut home = Home::open(dir.path(), |_| {});
    home.advertise("a");
    home.hear();
    let told = home.events.pop_front().unwrap();
    assert_eq!((&told["type"], &told["seq"]), (&"advertised".into(), &2.into()), "{told}");
}
