//! The checks of the fuzz targets on the stable toolchain: over the seed corpora, and as property tests with a fixed seed.

use std::path::Path;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use proptest::test_runner::RngSeed;
use prost::Message as _;
use tidewire::wire::ChannelId;
use tidewire::wire::codec::{self, ChannelRef};
use tidewire::wire::decode::scan_publish;
use tidewire::wire::encode::{self, FrameHeader};
use tidewire::wire::proto::{self, sample::Value};
use tidewire::wire::relay::{self, Found};

#[path = "../fuzz/src/lib.rs"]
pub mod targets;

use targets::publish::SAMPLES_MAX;
use targets::reader::{MESSAGE_BYTES_MAX, Message, Outcome, read_in_pieces, read_naively};

/// The same cases in every run: what fails here fails on every machine.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(6_455), failure_persistence: None, ..Default::default() }
}

fn samples_of(publish: &proto::Publish) -> usize {
    publish.block.as_ref().map_or(0, |block| block.samples.len())
}

#[test]
fn seeds() {
    for (name, check) in targets::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        let mut seeds = 0;
        for entry in folder.read_dir().unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            seeds += 1;
        }
        assert!(seeds > 0, "no seeds for {name}");
    }
}

/// A message, and how it goes over the wire.
#[derive(Clone, Debug)]
struct Sent {
    message: Message,
    /// Where a data message is cut into fragments.
    cuts: Vec<Index>,
    /// Sent before each fragment but the first.
    ping_between: Option<Vec<u8>>,
    mask: [u8; 4],
}

impl Sent {
    /// Appends the frames to a stream, and what a reader has to make of them to its messages.
    fn send(&self, stream: &mut Vec<u8>, messages: &mut Vec<Message>) {
        let (opcode, payload) = match &self.message {
            Message::Text(text) => (1, text.as_bytes()),
            Message::Binary(payload) => (2, &payload[..]),
            Message::Ping(payload) => (9, &payload[..]),
            Message::Pong(payload) => (10, &payload[..]),
            Message::Close(_) => unreachable!("nothing can follow a close frame"),
        };
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        if opcode > 2 {
            cuts.clear();
        }
        cuts.sort_unstable();
        cuts.insert(0, 0);
        let mut opcode = opcode;
        for (position, &begin) in cuts.iter().enumerate() {
            if let Some(ping) = self.ping_between.as_ref().filter(|_| position > 0) {
                push_frame(stream, 0x89, self.mask, ping);
                messages.push(Message::Ping(ping.clone()));
            }
            let end = cuts.get(position + 1).copied();
            let first = if end.is_none() { 0x80 | opcode } else { opcode };
            push_frame(stream, first, self.mask, &payload[begin..end.unwrap_or(payload.len())]);
            opcode = 0;
        }
        messages.push(self.message.clone());
    }
}

fn push_frame(stream: &mut Vec<u8>, first: u8, mask: [u8; 4], payload: &[u8]) {
    stream.push(first);
    let length = u16::try_from(payload.len()).expect("the limit is far lower");
    match length.to_be_bytes() {
        [0, short @ 0..=125] => stream.push(0x80 | short),
        bytes => {
            stream.push(0x80 | 126);
            stream.extend(bytes);
        }
    }
    stream.extend(mask);
    stream.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

fn sent() -> impl Strategy<Value = Sent> {
    let control = || vec(any::<u8>(), 0..=125);
    let message = prop_oneof![
        "\\PC{0,200}".prop_map(Message::Text),
        vec(any::<u8>(), 0..=MESSAGE_BYTES_MAX).prop_map(Message::Binary),
        control().prop_map(Message::Ping),
        control().prop_map(Message::Pong),
    ];
    (message, vec(any::<Index>(), 0..4), option::of(control()), any::<[u8; 4]>())
        .prop_map(|(message, cuts, ping_between, mask)| Sent { message, cuts, ping_between, mask })
}

/// A few bytes overwritten, and perhaps the end cut off.
#[derive(Clone, Debug)]
struct Damage {
    bytes: Vec<(Index, u8)>,
    cut: Option<Index>,
}

impl Damage {
    fn apply(&self, data: &mut Vec<u8>) {
        for (at, byte) in &self.bytes {
            let at = at.index(data.len());
            data[at] = *byte;
        }
        if let Some(cut) = self.cut {
            data.truncate(cut.index(data.len()));
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    (vec((any::<Index>(), any::<u8>()), 1..4), option::weighted(0.2, any::<Index>()))
        .prop_map(|(bytes, cut)| Damage { bytes, cut })
}

fn piece_bytes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..=3_usize, 1..=20_usize, 1..=2_000_usize], 0..8)
}

fn send_all(sent: &[Sent]) -> (Vec<u8>, Vec<Message>) {
    let (mut stream, mut messages) = (Vec::new(), Vec::new());
    for sent in sent {
        sent.send(&mut stream, &mut messages);
    }
    (stream, messages)
}

/// A publish that every decoder has to take.
fn publish() -> impl Strategy<Value = proto::Publish> {
    let value = prop_oneof![
        any::<f64>().prop_map(Value::Number),
        any::<i64>().prop_map(Value::Integer),
        vec(any::<f64>(), 0..4).prop_map(|values| Value::Vector(proto::Vector { values })),
        "\\PC{0,20}".prop_map(Value::Text),
        vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
    ];
    let sample = (prop_oneof![-9..9_i64, any::<i64>()], value)
        .prop_map(|(source_delta_ns, value)| proto::Sample { source_delta_ns, value: Some(value) });
    (any::<u32>(), any::<u64>(), any::<u64>(), vec(sample, 1..=SAMPLES_MAX)).prop_map(
        |(channel, ack, source_ns, samples)| proto::Publish {
            channel,
            block: Some(proto::Block { source_ns, received_ns: 0, samples }),
            ack,
        },
    )
}

/// The publish in each codec.
fn encode(publish: &proto::Publish) -> [Vec<u8>; 3] {
    let (mut json, mut msgpack) = (Vec::new(), Vec::new());
    codec::encode_publish_json(&ChannelRef::Id(ChannelId(publish.channel)), publish, &mut json);
    codec::encode_publish_msgpack(publish, &mut msgpack);
    [publish.encode_to_vec(), msgpack, json]
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn valid_frames_give_their_messages_however_they_are_cut(
        sent in vec(sent(), 0..8),
        pieces in piece_bytes(),
    ) {
        let (stream, messages) = send_all(&sent);
        let expected = Outcome { messages, error: None };
        prop_assert_eq!(&read_in_pieces(&stream, &[]), &expected);
        prop_assert_eq!(&read_in_pieces(&stream, &pieces), &expected);
        prop_assert_eq!(&read_naively(&stream), &expected);
    }

    #[test]
    fn damaged_frames_fail_as_in_the_naive_reader(
        sent in vec(sent(), 1..4),
        damage in damage(),
        pieces in piece_bytes(),
    ) {
        let (mut stream, _) = send_all(&sent);
        damage.apply(&mut stream);
        prop_assert_eq!(read_in_pieces(&stream, &pieces), read_naively(&stream));
    }

    /// Frames of few opcodes and lengths, so that most streams get past their first byte.
    #[test]
    fn small_frames_in_any_order_are_read_as_in_the_naive_reader(
        frames in vec(
            (
                select(&[0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A][..]),
                prop_oneof!["[a-zä€😀]{0,3}".prop_map(String::into_bytes), vec(any::<u8>(), 0..5)],
            ),
            0..12,
        ),
        cut_off in 0..4_usize,
        pieces in piece_bytes(),
    ) {
        let mut stream = Vec::new();
        for (first, payload) in frames {
            push_frame(&mut stream, first, [7, 0, 0xFF, 0x80], &payload);
        }
        stream.truncate(stream.len().saturating_sub(cut_off));
        prop_assert_eq!(read_in_pieces(&stream, &pieces), read_naively(&stream));
    }

    #[test]
    fn reader_of_any_bytes(data in vec(any::<u8>(), 0..300)) {
        targets::reader::check(&data);
    }

    /// Mostly good fields, each at most once; now and then an odd one, which may be a second one of its name.
    #[test]
    fn control(
        kind in select(&["subscribe", "unsubscribe", "advertise", "ping", "stats", "auth", "history"][..]),
        channel in option::weighted(0.6, Just(",\"channel\":\"robot.>\"")),
        good in subsequence(
            &[
                ",\"id\":1",
                ",\"policy\":\"latest\"",
                ",\"max_delay_ms\":0",
                ",\"max_rate_hz\":0.5",
                ",\"client_ns\":\"7\"",
                ",\"arrival_ns\":[1,2]",
            ][..],
            0..=2,
        ),
        odd in option::weighted(
            0.2,
            (
                select(&["id", "policy", "max_rate_hz", "client_ns", "type", "x"][..]),
                select(&["-1", "1e999", "\"a\"", "null", "[]", "{\"a\":[{}]}", "\"\\ud800\""][..]),
            ),
        ),
        damage in option::weighted(0.2, damage()),
    ) {
        let mut data = format!("{{\"type\":\"{kind}\"{}{}", channel.unwrap_or_default(), good.concat());
        if let Some((name, value)) = odd {
            data += &format!(",\"{name}\":{value}");
        }
        data.push('}');
        let mut data = data.into_bytes();
        if let Some(damage) = damage {
            damage.apply(&mut data);
        }
        targets::control::check(&data);
    }

    #[test]
    fn publishes_are_taken_in_every_codec(publish in publish()) {
        let [protobuf, msgpack, json] = encode(&publish);
        prop_assert!(scan_publish(&protobuf, SAMPLES_MAX, &mut Vec::new()).is_ok());
        prop_assert!(codec::decode_publish_msgpack(&msgpack, SAMPLES_MAX).is_ok());
        prop_assert!(codec::decode_publish_json(str::from_utf8(&json).unwrap(), SAMPLES_MAX).is_ok());
        for data in [protobuf, msgpack, json] {
            targets::publish::check(&data);
        }
    }

    #[test]
    fn damaged_publishes(publish in publish(), damage in damage()) {
        for mut data in encode(&publish) {
            damage.apply(&mut data);
            targets::publish::check(&data);
        }
    }

    #[test]
    fn publish_of_any_bytes(data in vec(any::<u8>(), 0..100)) {
        targets::publish::check(&data);
    }

    #[test]
    fn damaged_frames_of_other_servers(publishes in vec(publish(), 0..4), damage in option::of(damage())) {
        let samples: usize = publishes.iter().map(samples_of).sum();
        let header = FrameHeader {
            channel: ChannelId(0),
            epoch: 8,
            seq: 41,
            count: u32::try_from(samples).unwrap(),
            flushed_ns: 5,
        };
        let mut data = [[9].as_slice(), &9_u64.to_le_bytes(), &encode::frame_header(&header)[2..]].concat();
        for block in publishes.into_iter().filter_map(|publish| publish.block) {
            let content = proto::Block { received_ns: 0, ..block }.encode_to_vec();
            data.extend_from_slice(&encode::block_prefix(content.len()));
            data.extend_from_slice(&content);
            data.extend_from_slice(&encode::received_ns(100));
        }
        if let Some(damage) = damage {
            damage.apply(&mut data);
        } else {
            let taken = relay::scan(&data, 100, &mut Found::default());
            prop_assert!(taken.is_ok(), "{taken:?}");
        }
        targets::relayed::check(&data);
    }

    #[test]
    fn told_between_servers(
        kind in select(&["hello", "changed", "seen", "list", "listing", "where", "revoke", "who", "present", "nobody", "x"][..]),
        fields in subsequence(
            &[
                ",\"revision\":4",
                ",\"connects\":1",
                ",\"sent_ns\":18446744073709551615",
                ",\"opened\":{\"a.b\":1}",
                ",\"closed\":[\"d\"]",
                ",\"of\":\"ffffffffffffffff\"",
                ",\"part\":0",
                ",\"parts\":4294967295",
                ",\"channels\":{\"a\":7,\"a\":8}",
                ",\"names\":[\"a\",\"\"]",
                ",\"revoked\":{\"subject\":\"m\"}",
                ",\"issued_s\":9",
                ",\"number\":5",
                ",\"ask\":[\"a\"]",
                ",\"keep\":[\"a\",\"\"]",
                ",\"channels\":{\"a\":{\"count\":1,\"members\":[{\"connection\":7,\"user\":\"ada\"}],\"to\":[{\"node\":\"b\",\"number\":2}]}}",
            ][..],
            0..=16,
        ),
        damage in option::weighted(0.3, damage()),
    ) {
        let mut data = format!("{{\"node\":\"abc\",\"type\":\"{kind}\"{}}}", fields.concat()).into_bytes();
        if let Some(damage) = damage {
            damage.apply(&mut data);
        }
        targets::told::check(&data);
    }

    #[test]
    fn pattern(
        wanted in vec(select(&["a", "b", "*", "*", "$s", "a*", "", ">"][..]), 1..4),
        rest in select(&["", "", ".>"][..]),
        name in vec(select(&["a", "b", "a", "b", "$s", ""][..]), 1..5),
    ) {
        targets::pattern::check(format!("{}{rest}\n{}", wanted.join("."), name.join(".")).as_bytes());
    }

    #[test]
    fn proxy_header(
        version in prop_oneof![4 => select(&[0x20, 0x21][..]), 1 => any::<u8>()],
        kind in prop_oneof![4 => select(&[0x00, 0x11, 0x21, 0x31, 0x12][..]), 1 => any::<u8>()],
        content in vec(any::<u8>(), 0..60),
        length in option::weighted(0.3, prop_oneof![0..60_u16, 530..540_u16, any::<u16>()]),
        behind in prop_oneof![Just(0_usize), 0..600_usize],
        damage in option::weighted(0.2, damage()),
    ) {
        let length = length.unwrap_or_else(|| u16::try_from(content.len()).expect("short"));
        let mut data = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[version, kind], &length.to_be_bytes(), &content].concat();
        data.resize(data.len() + behind, 0xEE);
        if let Some(damage) = damage {
            damage.apply(&mut data);
        }
        targets::proxy::check(&data);
    }

    #[test]
    fn forwarded_for(
        hops in vec(
            select(&["203.0.113.9", "10.1.2.3", "10.0.0.1:80", "[2001:db8::1]:1", "2001:db8::1", "::ffff:10.0.0.1",
                     "[::1]", "", "unknown", "1.2.3", "[1.2.3.4]"][..]),
            0..6,
        ),
        proxies in prop_oneof![Just(0_usize), 28..36_usize],
        separators in vec(select(&[",", ", ", "\n", " ,\t"][..]), 48),
    ) {
        let hops = hops.iter().copied().chain(std::iter::repeat_n("10.9.9.9", proxies));
        let data: String = hops.zip(&separators).flat_map(|(hop, separator)| [*separator, hop]).collect();
        targets::proxy::check(data.trim_start_matches([',', ' ', '\n', '\t']).as_bytes());
    }

    #[test]
    fn proxy_of_any_text(text in "[0-9a-f.:,\\[\\] \n]{0,40}|\\PC{0,20}") {
        targets::proxy::check(text.as_bytes());
    }

    #[test]
    fn pattern_of_any_text(text in "[ab*>$.\n]{0,12}|\\PC{0,20}") {
        targets::pattern::check(text.as_bytes());
    }
}
