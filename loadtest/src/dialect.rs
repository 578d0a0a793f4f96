//! What a client says to a server, so that one engine, schedule, ledger and recorder measure Tidewire and its peers. Here
//! is the conversation of the peers: open, subscribe, publish, and samples out of the bytes that come. Tidewire's own is
//! in `control` and `data`. It keeps no time and knows no scenario.
//!
//! Peers have neither channels nor sequences nor notices of loss, so a sample carries what the books need (`dialect/sample.rs`),
//! and a publisher counts as a channel, numbered from 0. Which dialect it is is asked once for a read or a message, never
//! once for a sample.

mod deframe;
mod json;
mod mqtt;
mod nats;
mod raw;
mod sample;

use crate::data::Run;
use crate::ledger::Ledger;
use crate::measure::Recorder;
use crate::ws::{Connection, Ended, Endpoint, Opcode, SETUP_TIMEOUT, write_frame};

pub(crate) use self::json::JsonSample;
use self::mqtt::Mqtt;
use self::nats::Nats;
use self::sample::Sample;

/// The language of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dialect {
    /// `tidewire.v1`.
    #[default]
    Tidewire,
    /// WebSocket: a binary message on `/pub` goes to everyone on `/sub`.
    Raw,
    /// No handshake: the first byte says `P` or `S`, then the publisher sends frames as a server would send them.
    Bare,
    /// The NATS protocol within binary messages.
    Nats,
    /// MQTT 3.1.1, QoS 0, within binary messages.
    Mqtt,
    /// WebSocket: a text message of JSON on `/pub` goes to everyone on `/sub`.
    Json,
}

/// The subject or topic of the peers that have one: short, so that it costs little beside the sample.
const SUBJECT: &str = "t";

/// Which side of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Publisher,
    Subscriber,
}

impl Dialect {
    /// What a client asks for in the handshake.
    pub(crate) const fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::Tidewire => Some("tidewire.v1"),
            Self::Mqtt => Some("mqtt"),
            Self::Raw | Self::Bare | Self::Nats | Self::Json => None,
        }
    }

    /// Where a connection is opened that only opens: it subscribes to nothing.
    pub(crate) fn endpoint_to_open(self, endpoint: &Endpoint) -> Endpoint {
        if matches!(self, Self::Raw | Self::Json) { endpoint.with_path("/pub") } else { endpoint.clone() }
    }

    /// Connects and says what comes before the role is known.
    fn connect(
        self,
        endpoint: &Endpoint,
        role: Role,
        receive_buffer_bytes: Option<usize>,
    ) -> Result<Connection, Ended> {
        let publishes = role == Role::Publisher;
        match self {
            Self::Tidewire | Self::Nats | Self::Mqtt => {
                Connection::open(endpoint, self.subprotocol(), receive_buffer_bytes)
            }
            Self::Raw | Self::Json => {
                let endpoint = endpoint.with_path(if publishes { "/pub" } else { "/sub" });
                Connection::open(&endpoint, None, receive_buffer_bytes)
            }
            Self::Bare => {
                let mut connection = Connection::connect(endpoint, receive_buffer_bytes)?;
                connection.queue_bytes(if publishes { b"P" } else { b"S" });
                connection.flush()?;
                Ok(connection)
            }
        }
    }
}

/// How samples lie in the bytes that a peer sends.
#[derive(Debug)]
enum Format {
    /// A frame each; also the bare one's.
    Raw,
    Nats(Nats),
    Mqtt(Mqtt),
    Json,
}

/// The reading side of a conversation with a peer.
#[derive(Debug)]
pub(crate) struct Peer {
    dialect: Dialect,
    format: Format,
}

impl Peer {
    fn new(dialect: Dialect) -> Self {
        let format = match dialect {
            Dialect::Tidewire | Dialect::Raw | Dialect::Bare => Format::Raw,
            Dialect::Nats => Format::Nats(Nats::default()),
            Dialect::Mqtt => Format::Mqtt(Mqtt::default()),
            Dialect::Json => Format::Json,
        };
        Self { dialect, format }
    }

    /// Connects and subscribes; blocks until the server has confirmed, where it does.
    pub(crate) fn subscribe(
        dialect: Dialect,
        endpoint: &Endpoint,
        receive_buffer_bytes: Option<usize>,
        ledgers: &mut [(u32, Ledger)],
        buffer: &mut [u8],
    ) -> Result<(Connection, Self), Ended> {
        let mut connection = dialect.connect(endpoint, Role::Subscriber, receive_buffer_bytes)?;
        let mut peer = Self::new(dialect);
        peer.introduce(&mut connection, Role::Subscriber, ledgers, buffer)?;
        Ok((connection, peer))
    }

    fn introduce(
        &mut self,
        connection: &mut Connection,
        role: Role,
        ledgers: &mut [(u32, Ledger)],
        buffer: &mut [u8],
    ) -> Result<(), Ended> {
        let hello = match &self.format {
            Format::Raw | Format::Json => return Ok(()),
            Format::Nats(_) => nats::hello(role == Role::Subscriber),
            Format::Mqtt(_) => mqtt::connect(),
        };
        self.ask(connection, &hello, ledgers, buffer)?;
        match &mut self.format {
            Format::Mqtt(mqtt) if role == Role::Subscriber => {
                mqtt.is_ready = false;
                self.ask(connection, &mqtt::subscribe(), ledgers, buffer)
            }
            _ => Ok(()),
        }
    }

    /// Sends a request and waits for its answer.
    fn ask(
        &mut self,
        connection: &mut Connection,
        request: &[u8],
        ledgers: &mut [(u32, Ledger)],
        buffer: &mut [u8],
    ) -> Result<(), Ended> {
        connection.queue(Opcode::Binary, request.len(), |out| out.copy_from_slice(request));
        connection.flush()?;
        let deadline = std::time::Instant::now() + SETUP_TIMEOUT;
        connection.carried_bytes(|bytes, out| self.take(bytes, out, ledgers, None))?;
        while !self.is_ready() {
            if std::time::Instant::now() >= deadline {
                return Err(Ended::Unexpected("the server did not answer in time".to_owned()));
            }
            connection.read_bytes(buffer, |bytes, out| self.take(bytes, out, ledgers, None))?;
        }
        Ok(())
    }

    /// Whether the stream has no WebSocket's close.
    pub(crate) fn is_bare(&self) -> bool {
        self.dialect == Dialect::Bare
    }

    fn is_ready(&self) -> bool {
        match &self.format {
            Format::Raw | Format::Json => true,
            Format::Nats(nats) => nats.is_ready,
            Format::Mqtt(mqtt) => mqtt.is_ready,
        }
    }

    /// Takes what came in one read: how many bytes of it. `ledgers` has one for each publisher, in order. What is to be
    /// answered is appended to `out`.
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        ledgers: &mut [(u32, Ledger)],
        recorder: Option<&mut Recorder>,
    ) -> Result<usize, Ended> {
        let mut newest = None;
        let mut count = 0;
        let used;
        match recorder {
            Some(recorder) if !recorder.is_sparse() => {
                used = self.each(bytes, out, |payload| {
                    let sample = enter(payload, ledgers)?;
                    count += 1;
                    recorder.record(run(sample));
                    Ok(())
                })?;
                recorder.count(count);
            }
            recorder => {
                used = self.each(bytes, out, |payload| {
                    newest = Some(enter(payload, ledgers)?);
                    count += 1;
                    Ok(())
                })?;
                if let (Some(recorder), Some(sample)) = (recorder, newest) {
                    // All of a read arrived together: one of them stands for the others.
                    recorder.record(run(sample));
                    recorder.count(count);
                }
            }
        }
        Ok(used)
    }

    #[inline]
    fn each(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        on_sample: impl FnMut(&[u8]) -> Result<(), Ended>,
    ) -> Result<usize, Ended> {
        match &mut self.format {
            Format::Raw => raw::each(bytes, out, on_sample),
            Format::Nats(nats) => nats.each(bytes, out, on_sample),
            Format::Mqtt(mqtt) => mqtt.each(bytes, out, on_sample),
            Format::Json => json::each(bytes, out, on_sample),
        }
    }
}

/// Enters a sample into its publisher's books.
#[inline]
fn enter(payload: &[u8], ledgers: &mut [(u32, Ledger)]) -> Result<Sample, Ended> {
    let sample = Sample::read(payload).ok_or_else(|| bad_sample(payload.len()))?;
    let Some((_, ledger)) = ledgers.get_mut(sample.publisher as usize) else {
        return Err(Ended::Unexpected(format!("the server sent a sample of publisher {}", sample.publisher)));
    };
    ledger.on_frame(0, sample.seq, sample.seq, 1);
    Ok(sample)
}

#[cold]
fn bad_sample(length: usize) -> Ended {
    Ended::Unexpected(format!("the server sent a message of {length} bytes, which is not a sample"))
}

#[inline]
fn run(sample: Sample) -> Run {
    Run { source_ns: sample.source_ns, count: 1 }
}

/// The writing side of a conversation with a peer.
#[derive(Debug)]
pub(crate) struct Outgoing {
    peer: Peer,
    publisher: u32,
    samples_per_message: u32,
    /// A sample with what is around it in this dialect, but for the frame.
    unit: Vec<u8>,
    sample_at: usize,
    payload_bytes: usize,
    /// Sequence of the newest sample.
    seq: u64,
}

impl Outgoing {
    /// Connects, as publisher number `publisher`; blocks until the server has answered, where it does.
    pub(crate) fn open(
        dialect: Dialect,
        endpoint: &Endpoint,
        publisher: u32,
        samples_per_message: u32,
        payload_bytes: usize,
        buffer: &mut [u8],
    ) -> Result<(Connection, Self), Ended> {
        if payload_bytes < sample::BYTES_MIN {
            return Err(Ended::Unexpected(format!(
                "a sample of {payload_bytes} bytes has no room for what the books need; use at least {}",
                sample::BYTES_MIN
            )));
        }
        let mut connection = dialect.connect(endpoint, Role::Publisher, None)?;
        let mut peer = Peer::new(dialect);
        peer.introduce(&mut connection, Role::Publisher, &mut [], buffer)?;
        let (prefix, suffix) = match dialect {
            Dialect::Tidewire | Dialect::Raw | Dialect::Json => (Vec::new(), &b""[..]),
            Dialect::Bare => (raw::header(payload_bytes), &b""[..]),
            Dialect::Nats => (nats::publish_head(payload_bytes), &b"\r\n"[..]),
            Dialect::Mqtt => (mqtt::publish_head(payload_bytes), &b""[..]),
        };
        let sample_at = prefix.len();
        let unit = [&prefix, &*sample::padding(payload_bytes), suffix].concat();
        let outgoing = Self { peer, publisher, samples_per_message, unit, sample_at, payload_bytes, seq: 0 };
        Ok((connection, outgoing))
    }

    /// Hands the samples of a message to the connection.
    pub(crate) fn queue(&mut self, source_ns: u64, connection: &mut Connection) {
        let count = self.samples_per_message as usize;
        match self.peer.dialect {
            Dialect::Tidewire | Dialect::Raw => {
                for _ in 0..count {
                    let unit = self.next_unit(source_ns);
                    connection.queue(Opcode::Binary, unit.len(), |out| out.copy_from_slice(unit));
                }
            }
            Dialect::Json => {
                for _ in 0..count {
                    self.seq += 1;
                    let sample = Sample { source_ns, seq: self.seq, publisher: self.publisher };
                    let text = json::text(&sample, self.payload_bytes);
                    connection.queue(Opcode::Text, text.len(), |out| out.copy_from_slice(text.as_bytes()));
                }
            }
            Dialect::Bare => {
                for _ in 0..count {
                    connection.queue_bytes(self.next_unit(source_ns));
                }
            }
            Dialect::Nats | Dialect::Mqtt => {
                let length = self.unit.len();
                connection.queue(Opcode::Binary, length * count, |out| {
                    for unit in out.chunks_exact_mut(length) {
                        unit.copy_from_slice(self.next_unit(source_ns));
                    }
                });
            }
        }
    }

    fn next_unit(&mut self, source_ns: u64) -> &[u8] {
        self.seq += 1;
        let sample = Sample { source_ns, seq: self.seq, publisher: self.publisher };
        sample.write(&mut self.unit[self.sample_at..self.sample_at + self.payload_bytes]);
        &self.unit
    }

    /// Takes what came; a publisher is sent nothing but answers.
    pub(crate) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Ended> {
        self.peer.take(bytes, out, &mut [], None)
    }

    /// Sequence of the newest sample.
    pub(crate) fn head(&self) -> u64 {
        self.seq
    }
}

/// Appends an answer within a binary message.
fn reply(out: &mut Vec<u8>, bytes: &[u8]) {
    write_frame(out, Opcode::Binary, bytes.len(), fastrand::u32(..), |frame| frame.copy_from_slice(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame as a server sends it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = raw::header(payload.len());
        bytes[0] = first;
        bytes.extend(payload);
        bytes
    }

    /// What a server of the dialect sends for these samples, some of them together in a message, with its other talk.
    fn wire(dialect: Dialect, samples: &[Sample], payload_bytes: usize, together: usize) -> Vec<u8> {
        let payload = |sample: &Sample| {
            let mut bytes = sample::padding(payload_bytes).into_vec();
            sample.write(&mut bytes);
            bytes
        };
        let mut bytes = Vec::new();
        for group in samples.chunks(together) {
            bytes.extend(frame(0x89, b"ping"));
            match dialect {
                Dialect::Nats => {
                    let mut text = b"PING\r\n".to_vec();
                    for sample in group {
                        text.extend(format!("MSG t 1 {payload_bytes}\r\n").bytes());
                        text.extend(payload(sample));
                        text.extend(b"\r\n");
                    }
                    // In two fragments, as the RFC lets a server do.
                    let (head, tail) = text.split_at(text.len() / 3);
                    bytes.extend(frame(0x02, head));
                    bytes.extend(frame(0x80, tail));
                }
                Dialect::Mqtt => {
                    let mut packets = vec![0xd0, 0];
                    for sample in group {
                        packets.extend(mqtt::publish_head(payload_bytes));
                        packets.extend(payload(sample));
                    }
                    bytes.extend(frame(0x82, &packets));
                }
                Dialect::Json => group.iter().for_each(|sample| {
                    bytes.extend(frame(0x81, json::text(sample, payload_bytes).as_bytes()));
                }),
                _ => group.iter().for_each(|sample| bytes.extend(frame(0x82, &payload(sample)))),
            }
        }
        bytes
    }

    /// Feeds the parts as a connection would; the samples that came out, and what was left over.
    fn feed<'a>(
        dialect: Dialect,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Vec<Sample>, usize), Ended> {
        let mut peer = Peer::new(dialect);
        let (mut carry, mut got, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            carry.extend_from_slice(part);
            let used = peer.each(&carry, &mut out, |payload| {
                got.push(Sample::read(payload).ok_or_else(|| bad_sample(payload.len()))?);
                Ok(())
            })?;
            carry.drain(..used);
        }
        Ok((got, carry.len()))
    }

    const PEERS: [Dialect; 5] = [Dialect::Raw, Dialect::Bare, Dialect::Nats, Dialect::Mqtt, Dialect::Json];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Split anywhere, the same samples come out of every dialect.
        #[test]
        fn splits_do_not_matter(
            seqs in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u32>()), 1..40),
            payload_bytes in sample::BYTES_MIN..300,
            together in 1usize..9,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        ) {
            let samples: Vec<Sample> =
                seqs.into_iter().map(|(source_ns, seq, publisher)| Sample { source_ns, seq, publisher }).collect();
            for dialect in PEERS {
                let bytes = wire(dialect, &samples, payload_bytes, together);
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                cuts.extend([0, bytes.len()]);
                cuts.sort_unstable();
                let (got, left) = feed(dialect, cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]])).unwrap();
                prop_assert_eq!((&got, left), (&samples, 0), "{:?}", dialect);
                // One byte at a time as well.
                let (got, _) = feed(dialect, bytes.chunks(1)).unwrap();
                prop_assert_eq!(&got, &samples, "{:?}", dialect);
            }
        }

        /// Any bytes are taken or refused, whatever the cuts, and what is held stays bounded.
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400), part in 1usize..50) {
            for dialect in PEERS {
                let _ = feed(dialect, bytes.chunks(part));
                // The same within a well-formed message, so that the inner parser meets it too.
                let _ = feed(dialect, frame(0x82, &bytes).chunks(part));
            }
        }
    }

    #[test]
    fn garbage_is_an_error() {
        let cases: [(Dialect, &[u8]); 8] = [
            (Dialect::Raw, &[0x82, 3, 1, 2, 3]),
            (Dialect::Bare, &[0xff, 0, 0, 0, 0]),
            (Dialect::Nats, b"HELLO\r\n"),
            (Dialect::Nats, b"MSG t 1 x\r\n"),
            (Dialect::Nats, b"MSG t 1 999999999\r\n"),
            (Dialect::Nats, b"-ERR 'Unknown Protocol Operation'\r\n"),
            (Dialect::Mqtt, &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (Dialect::Mqtt, &[0x20, 2, 0, 5]),
        ];
        for (dialect, bytes) in cases {
            let bytes = if matches!(dialect, Dialect::Nats | Dialect::Mqtt) {
                frame(0x82, bytes)
            } else {
                bytes.to_vec()
            };
            assert!(feed(dialect, [bytes.as_slice()]).is_err(), "{dialect:?} {bytes:x?}");
        }
        // A line that does not end.
        let endless = frame(0x82, &[b'a'; 60_000]);
        assert!(feed(Dialect::Nats, [endless.as_slice(); 4]).is_err());
    }

    #[test]
    fn samples_go_into_the_books_of_their_publisher() {
        let samples =
            [(1, 0), (1, 1), (2, 1), (4, 1)].map(|(seq, publisher)| Sample { source_ns: 9, seq, publisher });
        for dialect in PEERS {
            let bytes = wire(dialect, &samples, 128, 2);
            let mut ledgers = [0, 1].map(|publisher| (publisher, Ledger::without_notices(false)));
            let mut out = Vec::new();
            let used = Peer::new(dialect).take(&bytes, &mut out, &mut ledgers, None).unwrap();
            assert_eq!(used, bytes.len(), "{dialect:?}");
            assert!(!out.is_empty(), "pings are answered");
            let [one, two] = ledgers.map(|(_, ledger)| ledger.close(4));
            assert_eq!((one.received, two.received, two.unannounced), (1, 3, 1), "{dialect:?}");
            let error = Peer::new(dialect).take(&bytes, &mut out, &mut [], None).unwrap_err();
            assert!(error.to_string().contains("publisher 0"), "{dialect:?}: {error}");
        }
    }
}
