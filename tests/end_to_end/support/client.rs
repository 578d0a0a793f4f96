//! A client of the protocol, written for the tests: it checks what holds for every connection while it reads.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use prost::Message as _;
use serde_json::{Value, json};
use tidewire::wire::proto::{Block, Frame, Publish, Sample, sample};
use tidewire::wire::{Codec, codec};

use super::{DEADLINE, Handshake, Message, Peer, Response, masked};

/// How a client connects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options<'a> {
    /// Who it says it is.
    pub(crate) user: Option<&'a str>,
    /// Its token, in the handshake.
    pub(crate) token: Option<&'a str>,
    /// Its codec.
    pub(crate) codec: Codec,
    /// Whether its kernel takes but few bytes that nobody reads.
    pub(crate) small: bool,
}

/// See the module's page.
pub(crate) struct Client {
    pub(crate) peer: Peer,
    codec: Codec,
    pub(crate) welcome: Value,
    events: VecDeque<Value>,
    frames: VecDeque<Frame>,
    /// Channels that the server has named: data of others must not come.
    known: HashSet<u64>,
    closed: Option<(Option<u16>, String)>,
    next_id: u64,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, options: &Options<'_>) -> Self {
        Self::try_connect(address, options).unwrap_or_else(|response| panic!("{response:?}"))
    }

    /// Connects, unless it is refused.
    pub(crate) fn try_connect(address: SocketAddr, options: &Options<'_>) -> Result<Self, Response> {
        let path = options.user.map_or_else(|| "/ws".to_owned(), |user| format!("/ws?user={user}"));
        let mut peer = if options.small { Peer::connect_small(address) } else { Peer::connect(address) };
        let subprotocol = options.codec.subprotocol();
        let mut handshake = Handshake::new(&path).with("Sec-WebSocket-Protocol", subprotocol);
        if let Some(token) = options.token {
            handshake = handshake.with("Authorization", &format!("Bearer {token}"));
        }
        peer.write(&handshake.bytes());
        let response = peer.response();
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-protocol"), Some(subprotocol));
        let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
        let welcome: Value = serde_json::from_str(&welcome).unwrap();
        assert_eq!((&welcome["type"], &welcome["protocol"]), (&json!("welcome"), &json!(subprotocol)));
        Ok(Self {
            peer,
            codec: options.codec,
            welcome,
            events: VecDeque::new(),
            frames: VecDeque::new(),
            known: HashSet::new(),
            closed: None,
            next_id: 1,
        })
    }

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.welcome["connection"].as_u64().unwrap()
    }

    /// Sends a text.
    pub(crate) fn text(&mut self, text: &str) {
        self.peer.write(&masked(0x81, text.as_bytes()));
    }

    /// Sends a binary message.
    pub(crate) fn binary(&mut self, payload: &[u8]) {
        self.peer.write(&masked(0x82, payload));
    }

    /// Sends a request with a new `id`, and waits for what answers it.
    pub(crate) fn request(&mut self, mut request: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        request["id"] = json!(id);
        self.text(&request.to_string());
        self.event_where(&request.to_string(), |event| event["id"] == id)
    }

    /// Subscribes; `options` beside the channel.
    pub(crate) fn subscribe(&mut self, channel: &str, options: &Value) -> Value {
        let mut request = options.clone();
        request["type"] = json!("subscribe");
        request["channel"] = json!(channel);
        let answer = self.request(request);
        assert_eq!((&answer["type"], &answer["subscription"]), (&json!("subscribed"), &json!(channel)));
        answer
    }

    pub(crate) fn unsubscribe(&mut self, channel: &str) -> Value {
        let answer = self.request(json!({"type": "unsubscribe", "channel": channel}));
        assert_eq!((&answer["type"], &answer["subscription"]), (&json!("unsubscribed"), &json!(channel)));
        answer
    }

    /// Opens a channel; its number.
    pub(crate) fn advertise(&mut self, channel: &str) -> u32 {
        let answer = self.request(json!({"type": "advertise", "channel": channel}));
        assert_eq!((&answer["type"], &answer["name"]), (&json!("advertised"), &json!(channel)));
        u32::try_from(answer["channel"].as_u64().unwrap()).unwrap()
    }

    /// Publishes numbers in one message.
    pub(crate) fn publish(&mut self, channel: u32, numbers: &[f64]) {
        let values = numbers.iter().map(|number| sample::Value::Number(*number));
        self.publish_values(channel, values, 0);
    }

    /// Publishes values in one message.
    pub(crate) fn publish_values(
        &mut self,
        channel: u32,
        values: impl IntoIterator<Item = sample::Value>,
        ack: u64,
    ) {
        self.binary(&publish(channel, values, ack).encode_to_vec());
    }

    /// Publishes values and waits for the `ack`.
    pub(crate) fn publish_acked(
        &mut self,
        channel: u32,
        values: impl IntoIterator<Item = sample::Value>,
    ) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.publish_values(channel, values, id);
        self.event_where("an ack", |event| event["type"] == "ack" && event["id"] == id)
    }

    /// The next event of this type.
    pub(crate) fn event(&mut self, kind: &str) -> Value {
        self.event_where(kind, |event| event["type"] == kind)
    }

    /// The next event that is wanted; others stay.
    pub(crate) fn event_where(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            if let Some(position) = self.events.iter().position(&wanted) {
                return self.events.remove(position).unwrap();
            }
            assert!(start.elapsed() < DEADLINE, "waited in vain for {what}; {:?}", self.events);
            assert!(self.step(), "closed with {:?} instead of {what}; {:?}", self.closed, self.events);
        }
    }

    /// The next error: its code.
    pub(crate) fn error(&mut self) -> String {
        self.event("error")["code"].as_str().unwrap().to_owned()
    }

    /// The events that have come and were not asked for.
    pub(crate) fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// The next data frame.
    pub(crate) fn frame(&mut self) -> Frame {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return frame;
            }
            assert!(start.elapsed() < DEADLINE, "waited in vain for a frame; {:?}", self.events);
            assert!(self.step(), "closed with {:?} instead of a frame", self.closed);
        }
    }

    /// The next data frame, if one has come.
    pub(crate) fn take_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Everything that the server put into the control lane before its answer has come when this returns.
    pub(crate) fn round_trip(&mut self) {
        assert_eq!(self.request(json!({"type": "ping"}))["type"], "pong");
    }

    /// Reads up to the close frame and the end: the code.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        while self.step() {}
        assert_eq!(self.peer.message(), Message::End, "after the close frame");
        self.closed.clone().unwrap().0
    }

    /// Reads a message and keeps it; `false` if it was the close frame.
    pub(crate) fn step(&mut self) -> bool {
        match self.peer.message() {
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap();
                if event["type"] == "frame" {
                    assert_eq!(self.codec, Codec::Json);
                    self.keep(codec::decode_frame_json(&text).unwrap().frame);
                } else {
                    self.note_channels(&event);
                    self.events.push_back(event);
                }
            }
            Message::Binary(message) => {
                let frame = match self.codec {
                    Codec::Protobuf => Frame::decode(&*message).unwrap(),
                    Codec::MessagePack => codec::decode_frame_msgpack(&message).unwrap(),
                    Codec::Json => panic!("binary in JSON"),
                };
                self.keep(frame);
            }
            Message::Ping(payload) => drop(self.peer.try_write(&masked(0x8A, &payload))),
            Message::Pong(_) => {}
            Message::Close(code, reason) => {
                self.closed = Some((code, reason));
                return false;
            }
            end => panic!("{end:?} without a close frame; {:?}", self.events),
        }
        true
    }

    fn keep(&mut self, frame: Frame) {
        let channel = frame.channel;
        assert!(self.known.contains(&u64::from(channel)), "data of channel {channel}, which was not named");
        let samples: usize = frame.blocks.iter().map(|block| block.samples.len()).sum();
        assert_eq!(samples, frame.count as usize);
        assert!(frame.seq_deltas.is_empty() || frame.seq_deltas.len() == samples - 1);
        self.frames.push_back(frame);
    }

    fn note_channels(&mut self, event: &Value) {
        if event["type"] == "channel" {
            self.known.insert(event["channel"].as_u64().unwrap());
        }
        if event["type"] == "subscribed" {
            let channels = event["channels"].as_array().unwrap();
            self.known.extend(channels.iter().map(|channel| channel["channel"].as_u64().unwrap()));
        }
    }
}

/// A message with these values.
fn publish(channel: u32, values: impl IntoIterator<Item = sample::Value>, ack: u64) -> Publish {
    let samples = values.into_iter().map(|value| Sample { source_delta_ns: 0, value: Some(value) }).collect();
    Publish { channel, block: Some(Block { source_ns: 0, received_ns: 0, samples }), ack }
}

/// The payload of a message with one number.
pub(crate) fn publish_message(channel: u32, value: f64) -> Vec<u8> {
    publish(channel, [sample::Value::Number(value)], 0).encode_to_vec()
}
