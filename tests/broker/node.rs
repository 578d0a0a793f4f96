//! One node's side of a broker, and what a case is given.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tidewire::broker::{Broker, BrokerSettings, Event, Events, Keep, Kind, Lost, Outgoing, Topic};
use tokio::time::timeout;

use crate::servers::{Options, Program, Server};

/// Only a failure waits for so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long the broker may be silent, in these tests.
pub(crate) const SILENCE: Duration = Duration::from_millis(2_000);

/// What a case is given.
pub(crate) struct Rig {
    pub(crate) kind: &'static Kind,
    pub(crate) program: Program,
}

impl Rig {
    pub(crate) const fn new(kind: &'static Kind, program: Program) -> Self {
        Self { kind, program }
    }

    pub(crate) const fn keeps(&self) -> bool {
        self.kind.capabilities.keeps
    }

    pub(crate) fn server(&self) -> Server {
        Server::start(self.program, Options::default())
    }

    pub(crate) fn settings(&self, port: u16) -> BrokerSettings {
        let mut settings = BrokerSettings::new(&format!("{}://127.0.0.1:{port}", self.kind.scheme));
        settings.timeout = SILENCE;
        settings.keep_total_bytes = 256 << 20;
        settings
    }

    pub(crate) async fn node(&self, port: u16) -> Node {
        let mut node = Node::start(self.settings(port));
        node.up().await;
        node
    }
}

pub(crate) fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

/// A number as a payload, behind which there may be more.
pub(crate) fn numbered(number: u64, bytes: usize) -> Bytes {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(bytes.max(8), 0);
    payload.into()
}

pub(crate) fn number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload[..8].try_into().unwrap())
}

/// A broker's handle and its events.
pub(crate) struct Node {
    pub(crate) broker: Broker,
    pub(crate) events: Events,
}

impl Node {
    pub(crate) fn start(settings: BrokerSettings) -> Self {
        let (broker, events) = Broker::start(settings).unwrap();
        Self { broker, events }
    }

    pub(crate) async fn next(&mut self) -> Event {
        match timeout(DEADLINE, self.events.recv()).await {
            Ok(event) => event.expect("the broker runs"),
            Err(_) => panic!("no event in time: {:?}", self.broker.counters()),
        }
    }

    /// The first event that `wanted` takes; the others are gone.
    pub(crate) async fn until<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            let event = self.next().await;
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    pub(crate) async fn up(&mut self) {
        self.until(|event| (event == Event::Up).then_some(())).await;
    }

    pub(crate) async fn down(&mut self) -> String {
        self.until(|event| if let Event::Down { why } = event { Some(why) } else { None }).await
    }

    /// Waits for a loss that is not of the other side of things.
    pub(crate) async fn lost(&mut self, mut wanted: impl FnMut(&Lost) -> bool) -> Lost {
        self.until(|event| if let Event::Lost(lost) = event { Some(lost).filter(&mut wanted) } else { None })
            .await
    }

    /// Subscribes, and waits for the backlog.
    pub(crate) async fn subscribe(&mut self, name: &str, keep: Keep) -> Vec<Bytes> {
        assert!(self.broker.subscribe(topic(name), keep));
        self.subscribed(name).await
    }

    pub(crate) async fn subscribed(&mut self, name: &str) -> Vec<Bytes> {
        self.until(|event| match event {
            Event::Subscribed { topic, backlog } if &*topic == name => Some(backlog),
            Event::Refused { topic, why } => panic!("{topic}: {why}"),
            _ => None,
        })
        .await
    }

    pub(crate) fn publish(&self, name: &str, keep: Keep, body: Bytes) {
        self.broker.publish(Outgoing { topic: topic(name), keep, head: Bytes::new(), body });
    }

    /// Waits until the broker has confirmed so many messages.
    pub(crate) async fn published(&self, messages: u64) {
        self.counted(|node| node.broker.counters().published_messages >= messages).await;
    }

    /// Waits for what has no event.
    pub(crate) async fn counted(&self, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, waiting)
            .await
            .unwrap_or_else(|_| panic!("not in time: {:?}", self.broker.counters()));
    }

    /// Messages of one topic up to the one with that number, and what was told as lost of it or of all meanwhile.
    pub(crate) async fn numbers_until(&mut self, name: &str, last: u64) -> (Vec<u64>, Vec<Lost>) {
        let (mut numbers, mut losses) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Event::Message { topic, payload } if &*topic == name => {
                    numbers.push(number(&payload));
                    if numbers.last() == Some(&last) {
                        return (numbers, losses);
                    }
                }
                Event::Lost(lost) => losses.push(lost),
                Event::Refused { topic, why } => panic!("{topic}: {why}"),
                _ => {}
            }
        }
    }
}

/// Whether these are the numbers from `first` to `last`, each once.
pub(crate) fn assert_run(numbers: &[u64], first: u64, last: u64) {
    let expected: Vec<u64> = (first..=last).collect();
    assert_same(numbers, &expected);
}

pub(crate) fn assert_same<T: PartialEq + Debug>(left: &[T], right: &[T]) {
    let same = left.iter().zip(right).take_while(|(left, right)| left == right).count();
    assert!(
        left.len() == right.len() && same == left.len(),
        "{} entries against {}; after the first {same}: {:?} and {:?}",
        left.len(),
        right.len(),
        left.get(same),
        right.get(same),
    );
}

/// A file that only its owner can read.
pub(crate) fn secret_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
