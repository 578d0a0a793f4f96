//! What holds while the broker fails. In each: local fan-out goes on, memory is bounded, the servers find back by themselves and
//! restore what their clients want, what was lost is told to the sample, and `/readyz` says so meanwhile.

use serde_json::json;
use tidewire::broker::Kind;

use crate::follower::{Follower, Publisher, numbers};
use crate::rig::{Node, Rig, program};
use crate::servers::{Options, Program, Server};
use crate::support::wait_for;

/// Most that a server may have resident here: code and buffers, without the 16 MiB that may wait for a broker twice over.
const MEMORY_MAX: u64 = 256 << 20;

/// Two servers with a publisher and a subscriber on one, and a subscriber on the other.
struct Stage {
    one: Node,
    other: Node,
    here: Follower,
    there: Follower,
    publisher: Publisher,
}

impl Stage {
    /// Of servers that may not reach the broker.
    fn of(one: Node, other: Node) -> Self {
        let [here, there] = [&one, &other].map(|node| Follower::new(node.address(), "t.x"));
        let publisher = Publisher::new(one.client(), "t.x");
        Self { one, other, here, there, publisher }
    }

    fn start(rig: &Rig) -> Self {
        let mut stage = Self::of(rig.node(), rig.node());
        stage.publisher.publish(10);
        assert_eq!(stage.there.close(stage.publisher.epoch, 10).values, numbers(1, 10));
        stage
    }

    /// Local subscribers get everything, whatever the broker does.
    fn publish_locally(&mut self, messages: u64, each: u64) {
        for _ in 0..messages {
            self.publisher.publish(each);
            // It reads all the while, so that it is never a slow one.
            self.here.close(self.publisher.epoch, self.publisher.last);
        }
        let stream = self.here.close(self.publisher.epoch, self.publisher.last);
        assert_eq!((stream.tally.lost(), stream.first), (0, 1), "local fan-out goes on");
    }

    /// The fault is over: everything works, and the ledger of the other server's subscriber closes. What it came to.
    fn recover(mut self) -> String {
        self.one.wait_until_ready();
        self.other.wait_until_ready();
        self.publish_locally(1, 10);
        let (epoch, last) = (self.publisher.epoch, self.publisher.last);
        let stream = self.there.close(epoch, last);
        let (got, lost, first) = (stream.values.len(), stream.tally.lost(), stream.first);
        assert_eq!(stream.values.last(), Some(&(last as f64)), "the newest comes");
        assert!(stream.reasons.iter().all(|reason| reason == "broker"), "{:?}", stream.reasons);
        // What is wanted from now on, too.
        self.there.subscribe("t.new", &json!({}));
        let mut publisher = Publisher::new(self.one.client(), "t.new");
        publisher.publish(5);
        assert_eq!(self.there.close(publisher.epoch, 5).values, numbers(1, 5));
        for node in [&self.one, &self.other] {
            let memory = node.process.memory("VmRSS");
            assert!(memory < MEMORY_MAX, "{memory} bytes");
        }
        assert_eq!(got as u64 + lost, last + 1 - first);
        let from = if first == 1 { String::new() } else { format!(", the stream seen from {first} on") };
        format!("{got} came + {lost} told, {last} published{from}")
    }
}

pub(crate) fn absent_at_the_start(kind: &'static Kind) -> String {
    let rig = Rig::over(kind, Server::absent(program(kind), Options::default()));
    let mut rig = rig;
    let mut stage = Stage::of(rig.node_with("", ""), rig.node_with("", ""));
    let why = stage.one.wait_until_unready();
    assert!(why.contains("broker"), "{why}");
    stage.publish_locally(5, 10);
    rig.broker.restart();
    format!("{why:?}; {}", stage.recover())
}

pub(crate) fn killed_and_started_again(kind: &'static Kind) -> String {
    let mut rig = Rig::start(kind);
    let mut stage = Stage::start(&rig);
    rig.broker.kill();
    let why = stage.one.wait_until_unready();
    stage.other.wait_until_unready();
    stage.publish_locally(50, 10);
    rig.broker.restart();
    format!("{why:?}; {}", stage.recover())
}

pub(crate) fn stopped_for_a_while(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let mut stage = Stage::start(&rig);
    rig.broker.suspend();
    stage.publish_locally(20, 10);
    let why = stage.one.wait_until_unready();
    stage.other.wait_until_unready();
    stage.publish_locally(20, 10);
    rig.broker.resume();
    format!("{why:?}; {}", stage.recover())
}

pub(crate) fn wrong_password(kind: &'static Kind) -> String {
    const WRONG: &str = "a-password-nobody-may-read";
    let options = Options { password: Some("the-right-one"), ..Options::default() };
    let rig = Rig::over(kind, Server::start(program(kind), options));
    let [wrong, right] = [("wrong", WRONG), ("right", "the-right-one")]
        .map(|(name, text)| format!("password_file = {:?}", rig.secret_file(name, text)));
    let [one, other] = [rig.node_with("", &wrong), rig.node_with("", &right)];
    other.wait_until_ready();
    let why = wait_for("the refusal", || one.unready().filter(|why| !why.contains("not connected yet")));
    let mut stage = Stage::of(one, other);
    stage.publish_locally(5, 10);
    for said in [&why, &stage.one.log(), &stage.other.log()] {
        assert!(!said.contains(WRONG) && !said.contains("the-right-one"), "{said}");
    }
    format!("{why:?}; local subscribers got all")
}

pub(crate) fn full(kind: &'static Kind) -> String {
    let options = Options { small: true, ..Options::default() };
    let rig = Rig::over(kind, Server::start(program(kind), options));
    let (one, other) = if rig.keeps() && program(kind) == Program::JetStream {
        // The stream that is made has to fit into the store.
        let small = "keep_total_bytes = 1048576";
        (rig.node_with("", small), rig.node_with("", small))
    } else {
        (rig.node_with("", ""), rig.node_with("", ""))
    };
    one.wait_until_ready();
    other.wait_until_ready();
    let mut stage = Stage::of(one, other);
    if program(kind) == Program::Redis {
        // In ever smaller pieces: what a request holds while it is refused counts, too.
        for size in [1 << 20, 64 << 10, 4 << 10, 64] {
            let filler = vec![b'x'; size];
            let taken = (0..1_000).take_while(|number| {
                let key = format!("filler.{size}.{number}");
                rig.broker.redis_try_command(&[b"SET", key.as_bytes(), &filler]).starts_with('+')
            });
            assert!(taken.count() < 1_000, "it is full");
        }
    }
    let refuses = rig.kind.scheme == "redis-streams";
    // Where nothing is refused, more than there is room for: the oldest goes, and whoever is there has had it.
    for _ in 0..if refuses { 20 } else { 200 } {
        stage.publish_locally(1, 1_000);
        if !refuses {
            let stream = stage.there.close(stage.publisher.epoch, stage.publisher.last);
            assert_eq!(stream.tally.lost(), 0);
        }
    }
    let last = stage.publisher.last;
    if !refuses {
        assert!(last > 100_000);
        return format!("never: {}", stage.recover());
    }
    let log =
        wait_for("the refusal", || Some(stage.one.log()).filter(|log| log.contains("the broker is full")));
    assert!(log.contains("messages are lost"), "{log}");
    rig.broker.redis_command(&[b"FLUSHALL"]);
    // Where the stream stands is told in silence, too.
    let epoch = stage.publisher.epoch;
    stage.publisher.publish(1);
    let lost = stage.there.close(epoch, stage.publisher.last).tally.lost();
    assert!(lost > 0, "what was refused is told");
    stage.recover()
}

pub(crate) fn foreign_messages(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let mut stage = Stage::start(&rig);
    let huge = vec![0x41; 512 << 10];
    let payloads: [&[u8]; 5] = [b"\xff\0\x93junk", b"{\"value\":1}", b"", &huge, b"\x09\0\0\0\0\0\0\0\0"];
    for payload in payloads {
        rig.publish_as_stranger("c.t.x", true, payload);
        rig.publish_as_stranger("nodes", false, payload);
    }
    // A flood of lives under one name.
    for epoch in 1..=200_u32 {
        rig.publish_as_stranger("c.t.x", true, &relay(7, epoch, 1));
    }
    // What this server itself might have sent.
    let log = stage.other.log();
    let own = log.split("node=").nth(1).and_then(|rest| rest.get(..16)).expect("it says who it is");
    let own = u64::from_str_radix(own, 16).unwrap();
    rig.publish_as_stranger("c.t.x", true, &relay(own, 300, 1));
    wait_for("its own", || (stage.other.refused("own") > 0.0).then_some(()));
    let refused = stage.other.refused("full");
    assert!(refused > 0.0, "a name has only so many streams");
    stage.publish_locally(5, 10);
    let malformed = stage.other.refused("malformed");
    assert!(malformed >= 4.0, "{malformed}");
    let on_nodes = || stage.other.metric("tidewire_node_messages_refused_total") == 5.0;
    wait_for("what was no message of a server", || on_nodes().then_some(()));
    let outcome = stage.recover();
    format!("counted: {malformed} malformed, {refused} of 200 lives too many; {outcome}")
}

/// Where a stream stands, as a server would say.
fn relay(node: u64, epoch: u32, seq: u8) -> Vec<u8> {
    let mut bytes = vec![0x09];
    bytes.extend(node.to_le_bytes());
    bytes.push(0x15);
    bytes.extend(epoch.to_le_bytes());
    bytes.extend([0x18, seq, 0x29]);
    bytes.extend(1_u64.to_le_bytes());
    bytes
}

pub(crate) fn an_older_history(kind: &'static Kind) -> String {
    let mut rig = Rig::start(kind);
    let mut stage = Stage::start(&rig);
    stage.publish_locally(5, 10);
    rig.broker.kill();
    stage.one.wait_until_unready();
    stage.other.wait_until_unready();
    // What it kept is gone.
    drop(std::fs::remove_dir_all(rig.broker.dir.path().join("store")));
    rig.broker.restart();
    stage.recover()
}
