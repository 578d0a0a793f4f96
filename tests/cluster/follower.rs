//! A subscriber, and the ledger of each stream that it was named.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tidewire::wire::proto::sample;

use crate::support::{Client, Options, Tally, samples, wait_for};

pub(crate) struct Follower {
    pub(crate) client: Client,
    pub(crate) answer: Value,
    pub(crate) streams: BTreeMap<u64, Stream>,
}

#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) epoch: u64,
    /// The first sequence that was to come.
    pub(crate) first: u64,
    pub(crate) values: Vec<f64>,
    pub(crate) tally: Tally,
    /// Of the gaps.
    pub(crate) reasons: Vec<String>,
    pub(crate) outcome: Option<String>,
}

impl Stream {
    /// The last sequence that came or was told not to.
    pub(crate) fn upto(&self) -> u64 {
        self.first + self.tally.accounted() - 1
    }

    pub(crate) fn cursor(&self) -> String {
        format!("{}:{}", self.epoch, self.upto())
    }
}

impl Follower {
    pub(crate) fn new(address: SocketAddr, channel: &str) -> Self {
        Self::with(address, &Options::default(), channel, &json!({}))
    }

    pub(crate) fn with(address: SocketAddr, options: &Options<'_>, channel: &str, asked: &Value) -> Self {
        let mut follower =
            Self { client: Client::connect(address, options), answer: Value::Null, streams: BTreeMap::new() };
        follower.subscribe(channel, asked);
        follower
    }

    pub(crate) fn subscribe(&mut self, channel: &str, asked: &Value) {
        self.answer = self.client.subscribe(channel, asked);
        let entries = self.answer["channels"].as_array().unwrap().clone();
        self.note_new(&entries);
        self.take();
    }

    /// Those that were named before have begun before.
    fn note_new(&mut self, entries: &[Value]) {
        for entry in entries {
            if !self.streams.contains_key(&entry["channel"].as_u64().unwrap()) {
                self.note(entry);
            }
        }
    }

    fn note(&mut self, entry: &Value) {
        let stream = self.streams.entry(entry["channel"].as_u64().unwrap()).or_default();
        stream.name = entry["name"].as_str().unwrap().to_owned();
        stream.epoch = entry["epoch"].as_u64().unwrap();
        stream.first = entry["seq"].as_u64().unwrap();
        stream.outcome = entry["replay"]["outcome"].as_str().map(ToOwned::to_owned);
    }

    /// Takes what has been read.
    fn take(&mut self) {
        for event in self.client.take_events() {
            let number = event["channel"].as_u64();
            match event["type"].as_str().unwrap() {
                "channel" => self.note(&event),
                // The answer of an inbox, which nobody has asked for.
                "subscribed" => self.note_new(event["channels"].as_array().unwrap()),
                "gap" => {
                    let stream = self.streams.get_mut(&number.unwrap()).expect("a stream that was named");
                    stream.tally.take_gap(&event);
                    stream.reasons.push(event["reason"].as_str().unwrap().to_owned());
                }
                _ => {}
            }
        }
        while let Some(frame) = self.client.take_frame() {
            let stream = self.streams.get_mut(&u64::from(frame.channel)).expect("a stream that was named");
            assert_eq!(u64::from(frame.epoch), stream.epoch);
            stream.tally.take(&frame);
            for (_, sample) in samples(&frame) {
                if let Some(sample::Value::Number(value)) = sample.value {
                    stream.values.push(value);
                }
            }
        }
    }

    /// Reads until it is so.
    pub(crate) fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        self.take();
        wait_for(what, || {
            if so(self) {
                return Some(());
            }
            assert!(self.client.step(), "closed instead of {what}");
            self.take();
            None
        });
    }

    /// The stream of this life.
    pub(crate) fn of(&self, epoch: u64) -> Option<&Stream> {
        self.streams.values().find(|stream| stream.epoch == epoch)
    }

    /// Streams of which something came. Whoever subscribes to a name has its own server's, too, which may be empty.
    pub(crate) fn filled(&self) -> usize {
        self.streams.values().filter(|stream| !stream.values.is_empty()).count()
    }

    /// Reads until the ledger of a stream is closed: every sample up to `last` came or was told not to.
    pub(crate) fn close(&mut self, epoch: u64, last: u64) -> &Stream {
        self.until("the ledger to close", |all| all.of(epoch).is_some_and(|stream| stream.upto() >= last));
        let stream = self.of(epoch).unwrap();
        stream.tally.assert_exact(stream.first, last);
        stream
    }
}

/// Publishes under one name: 1, 2, 3, .., so that a value is its own sequence.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    channel: u32,
    pub(crate) epoch: u64,
    pub(crate) last: u64,
}

impl Publisher {
    pub(crate) fn new(mut client: Client, name: &str) -> Self {
        let answer = client.request(json!({"type": "advertise", "channel": name}));
        assert_eq!(answer["type"], "advertised", "{answer}");
        let channel = u32::try_from(answer["channel"].as_u64().unwrap()).unwrap();
        Self { client, channel, epoch: answer["epoch"].as_u64().unwrap(), last: 0 }
    }

    /// So many more, in one message; returns when the server has them.
    pub(crate) fn publish(&mut self, count: u64) {
        let values = (self.last + 1..=self.last + count).map(|seq| sample::Value::Number(seq as f64));
        let ack = self.client.publish_acked(self.channel, values);
        assert_eq!(ack["type"], "ack", "{ack}");
        self.last += count;
    }
}

/// The values of a stream from one sequence to another.
pub(crate) fn numbers(first: u64, last: u64) -> Vec<f64> {
    (first..=last).map(|seq| seq as f64).collect()
}
