//! The scan against tables of good and bad messages, and against prost.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::encode_varint;

use super::*;
use crate::wire::proto;
use crate::wire::proto::sample::Value;

const SAMPLES_MAX: usize = 16;

fn scan(message: &[u8]) -> Result<(ScannedPublish<'_>, Vec<SampleSpan>), DecodeError> {
    let mut spans = vec![SampleSpan { start: 1, end: 2, source_delta_ns: 3 }];
    scan_publish(message, SAMPLES_MAX, &mut spans).map(|publish| (publish, spans))
}

fn sample(source_delta_ns: i64, value: Value) -> proto::Sample {
    proto::Sample { source_delta_ns, value: Some(value) }
}

fn publish(samples: Vec<proto::Sample>) -> proto::Publish {
    proto::Publish {
        channel: 3,
        block: Some(proto::Block { source_ns: 1_763_864_091_123_456_789, received_ns: 0, samples }),
        ack: 9,
    }
}

fn vector(values: &[f64]) -> Value {
    Value::Vector(proto::Vector { values: values.to_vec() })
}

/// A field of a kind that has a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// A publish of one sample with this content.
fn around(sample: &[u8]) -> Vec<u8> {
    field(2, &field(3, sample))
}

/// What the scan says must be what prost reads. Models are compared by their encodings, since NaN is not equal to itself.
fn assert_same_model(message: &[u8], scanned: &ScannedPublish<'_>, spans: &[SampleSpan]) {
    let model = proto::Publish::decode(message).expect("the scan took what prost refuses");
    let block = model.block.expect("the scan took a publish without a block");
    assert_eq!((model.channel, model.ack), (scanned.channel.0, scanned.ack));
    assert_eq!(block.source_ns, scanned.source_ns);
    assert_eq!(block.received_ns, 0);

    let mut relayed = scanned.block.to_vec();
    relayed.extend_from_slice(&crate::wire::encode::received_ns(77));
    let relayed = proto::Block::decode(relayed.as_slice()).expect("the relayed content is a block");
    let expected = proto::Block { received_ns: 77, ..block.clone() };
    assert_eq!(relayed.encode_to_vec(), expected.encode_to_vec());

    assert_eq!(block.samples.len(), spans.len());
    for (expected, span) in block.samples.iter().zip(spans) {
        let bytes = &scanned.block[span.start as usize..span.end as usize];
        let alone = proto::Block::decode(bytes).expect("a span is a whole field");
        let [sample] = alone.samples.as_slice() else { panic!("a span is one sample") };
        assert!(sample.value.is_some());
        assert_eq!(sample.encode_to_vec(), expected.encode_to_vec());
        assert_eq!(sample.source_delta_ns, span.source_delta_ns);
    }
}

/// Whether prost may take a message that the scan refuses so: the stricter rules of the module's documentation.
fn is_stricter_than_prost(error: DecodeError) -> bool {
    match error {
        DecodeError::ChannelTooBig { .. }
        | DecodeError::SecondBlock { .. }
        | DecodeError::ReceivedNs { .. }
        | DecodeError::NoSamples
        | DecodeError::TooManySamples { .. }
        | DecodeError::NoValue { .. }
        | DecodeError::WireType { field: Field::Unknown, found: 3, .. } => true,
        DecodeError::Truncated { .. }
        | DecodeError::WireType { .. }
        | DecodeError::Varint { .. }
        | DecodeError::Key { .. }
        | DecodeError::BadUtf8 { .. }
        | DecodeError::VectorLength { .. }
        | DecodeError::TooLong => false,
    }
}

/// Holds one message against prost and tells whether the scan took it.
fn differential(message: &[u8]) -> bool {
    match scan(message) {
        Ok((scanned, spans)) => {
            assert_same_model(message, &scanned, &spans);
            true
        }
        Err(error) => {
            if !is_stricter_than_prost(error) {
                assert!(proto::Publish::decode(message).is_err(), "prost takes it, the scan says: {error}");
            }
            false
        }
    }
}

#[test]
fn every_value_is_taken_as_it_is() {
    let nan = f64::from_bits(0x7ff8_dead_beef_0001);
    let values = [
        Value::Number(21.5),
        Value::Number(nan),
        Value::Number(f64::INFINITY),
        Value::Number(-0.0),
        Value::Integer(0),
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        vector(&[]),
        vector(&[nan, f64::NEG_INFINITY, -0.0, 1.0, 2.0, 3.0]),
        Value::Text(String::new()),
        Value::Text("Füße \u{0} 🦀".to_owned()),
        Value::Bytes(Vec::new()),
        Value::Bytes(vec![0xFF; 70_000]),
    ];
    let deltas = [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN];
    for value in &values {
        for delta in deltas {
            let message = publish(vec![sample(delta, value.clone()), sample(0, Value::Number(1.0))]);
            let message = message.encode_to_vec();
            let (scanned, spans) = scan(&message).expect("valid");
            assert_eq!(spans[0].source_delta_ns, delta);
            assert_same_model(&message, &scanned, &spans);
        }
    }
}

#[test]
fn any_instant_is_taken() {
    for source_ns in [0, 1, u64::MAX] {
        let mut message = publish(vec![sample(0, Value::Number(1.0))]);
        message.block.as_mut().unwrap().source_ns = source_ns;
        assert_eq!(scan(&message.encode_to_vec()).unwrap().0.source_ns, source_ns);
    }
}

#[test]
fn exactly_the_limit_is_taken() {
    let of = |count| publish(vec![sample(0, Value::Integer(1)); count]).encode_to_vec();
    assert_eq!(scan(&of(SAMPLES_MAX)).unwrap().1.len(), SAMPLES_MAX);
    assert!(matches!(scan(&of(SAMPLES_MAX + 1)), Err(DecodeError::TooManySamples { samples_max: 16, .. })));
}

#[test]
fn fields_in_any_order_and_unknown_ones_are_taken() {
    let block = publish(vec![sample(-5, Value::Number(2.0))]).block.unwrap().encode_to_vec();
    let unknown = [
        vec![0x20, 0x96, 0x01],                      // 4: varint
        vec![0x29, 1, 2, 3, 4, 5, 6, 7, 8],          // 5: 64 bits
        field(6, b"later"),                          // 6: length-delimited
        vec![0x3D, 1, 2, 3, 4],                      // 7: 32 bits
        vec![0xF8, 0xFF, 0xFF, 0xFF, 0x0F, 0x01],    // 536870911, the last number there is: varint
        vec![0xA0, 0x80, 0x80, 0x80, 0x80, 0x00, 7], // 4, with a key longer than it needs to be
    ]
    .concat();
    // Two channels and two acks: the last one counts.
    let message =
        [&[0x18, 1][..], &unknown, &field(2, &block), &[0x08, 9, 0x08, 8, 0x18, 2], &unknown].concat();
    let (scanned, spans) = scan(&message).unwrap();
    assert_eq!((scanned.channel, scanned.ack), (ChannelId(8), 2));
    assert_same_model(&message, &scanned, &spans);
}

#[test]
fn the_last_value_of_a_sample_counts() {
    let content = [&field(5, b"text")[..], &[0x18, 4], &field(4, &field(1, &[0; 8])), &[0x08, 3]].concat();
    let message = around(&content);
    let (scanned, spans) = scan(&message).unwrap();
    assert_eq!(spans[0].source_delta_ns, -2);
    assert_same_model(&message, &scanned, &spans);
}

#[test]
fn vectors_are_taken_packed_and_one_by_one() {
    let one = [0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F];
    for content in [vec![], one.to_vec(), one.repeat(3), [&field(1, &[0; 16])[..], &one].concat()] {
        let message = around(&field(4, &content));
        let (scanned, spans) = scan(&message).unwrap();
        assert_same_model(&message, &scanned, &spans);
    }
}

#[test]
fn wrong_messages_are_refused_by_name() {
    let number = [0x11, 0, 0, 0, 0, 0, 0, 0, 0];
    let good = around(&number);
    let after = |bytes: &[u8]| [&good[..], bytes].concat();
    let at = 13; // where what comes after the good message begins
    assert_eq!(good.len(), at as usize);
    let table: Vec<(&str, Vec<u8>, DecodeError)> = vec![
        ("empty", vec![], DecodeError::NoSamples),
        ("no block", vec![0x08, 1], DecodeError::NoSamples),
        ("empty block", field(2, &[]), DecodeError::NoSamples),
        ("empty sample", around(&[]), DecodeError::NoValue { at: 2 }),
        ("sample without a value", around(&[0x08, 1]), DecodeError::NoValue { at: 2 }),
        ("sample of unknown fields", around(&field(9, b"x")), DecodeError::NoValue { at: 2 }),
        ("second block", after(&good), DecodeError::SecondBlock { at }),
        ("received_ns", field(2, &[0x11, 0, 0, 0, 0, 0, 0, 0, 0]), DecodeError::ReceivedNs { at: 2 }),
        (
            "channel of 33 bits",
            after(&[0x08, 0x80, 0x80, 0x80, 0x80, 0x10]),
            DecodeError::ChannelTooBig { at },
        ),
        ("half a varint", after(&[0x08, 0x80]), DecodeError::Truncated { field: Field::Channel, at: at + 1 }),
        ("key without a value", after(&[0x18]), DecodeError::Truncated { field: Field::Ack, at: at + 1 }),
        ("half a key", after(&[0x98]), DecodeError::Truncated { field: Field::Key, at }),
        (
            "varint of 11 bytes",
            after(&[0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
            DecodeError::Varint { field: Field::Ack, at: at + 1 },
        ),
        (
            "varint of 65 bits",
            after(&[0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02]),
            DecodeError::Varint { field: Field::Ack, at: at + 1 },
        ),
        ("field number 0", after(&[0x00, 0x00]), DecodeError::Key { at }),
        ("field number above 2^29 - 1", after(&[0xF8, 0xFF, 0xFF, 0xFF, 0x1F, 0]), DecodeError::Key { at }),
        ("group", after(&[0x4B, 0x4C]), DecodeError::WireType { field: Field::Unknown, at, found: 3 }),
        ("end of a group", after(&[0x4C]), DecodeError::WireType { field: Field::Unknown, at, found: 4 }),
        ("wire type 6", after(&[0x4E]), DecodeError::WireType { field: Field::Unknown, at, found: 6 }),
        ("wire type 7", after(&[0x4F]), DecodeError::WireType { field: Field::Unknown, at, found: 7 }),
        (
            "channel as bytes",
            after(&field(1, b"a")),
            DecodeError::WireType { field: Field::Channel, at, found: 2 },
        ),
        ("block as a varint", vec![0x10, 1], DecodeError::WireType { field: Field::Block, at: 0, found: 0 }),
        (
            "sample as a group",
            field(2, &[0x1B]),
            DecodeError::WireType { field: Field::Samples, at: 2, found: 3 },
        ),
        (
            "number as 32 bits",
            around(&[0x15, 0, 0, 0, 0]),
            DecodeError::WireType { field: Field::Number, at: 4, found: 5 },
        ),
        (
            "vector values as varints",
            around(&field(4, &[0x08, 1])),
            DecodeError::WireType { field: Field::Values, at: 6, found: 0 },
        ),
        (
            "length past the end",
            field(2, &[0x1A, 9, 0]),
            DecodeError::Truncated { field: Field::Samples, at: 3 },
        ),
        (
            "length of 2^64 - 1",
            vec![0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            DecodeError::Truncated { field: Field::Block, at: 1 },
        ),
        (
            "sample that ends within its number",
            after_sample_end(&number[..8]),
            DecodeError::Truncated { field: Field::Number, at: 5 },
        ),
        ("text of bytes", around(&field(5, &[0xFF])), DecodeError::BadUtf8 { at: 4 }),
        ("text with half a character", around(&field(5, &[b'a', 0xC3])), DecodeError::BadUtf8 { at: 4 }),
        (
            "vector of seven bytes",
            around(&field(4, &field(1, &[0; 7]))),
            DecodeError::VectorLength { at: 6, bytes: 7 },
        ),
    ];
    for (name, message, expected) in table {
        assert_eq!(scan(&message).map(|_| ()), Err(expected), "{name}");
        differential(&message);
        let text = expected.to_string();
        assert!(text.contains("; "), "{name}: no remedy in {text:?}");
    }
}

/// A publish whose sample is cut off, although bytes follow in the message.
fn after_sample_end(sample: &[u8]) -> Vec<u8> {
    [&around(sample)[..], &[0x18, 1]].concat()
}

#[test]
fn every_prefix_of_a_message_is_refused_or_a_message() {
    let samples = vec![sample(-1, Value::Text("ä".repeat(100))), sample(1, vector(&[1.0; 20]))];
    let message = publish(samples).encode_to_vec();
    assert!(differential(&message));
    for end in 0..message.len() {
        differential(&message[..end]);
    }
}

#[test]
fn tiny_samples_cost_no_more_than_the_limit() {
    let mut spans = Vec::new();
    let many = field(2, &[0x1A, 2, 0x18, 0].repeat(1 << 20));
    let result = scan_publish(&many, SAMPLES_MAX, &mut spans);
    assert!(matches!(result, Err(DecodeError::TooManySamples { .. })));
    assert!(spans.capacity() <= 2 * SAMPLES_MAX);
}

#[test]
fn a_warm_scan_does_not_allocate() {
    let message = publish(vec![sample(7, Value::Bytes(vec![1; 128])); SAMPLES_MAX]).encode_to_vec();
    let mut spans = Vec::with_capacity(SAMPLES_MAX);
    let allocations = allocation_counter::measure(|| {
        scan_publish(&message, SAMPLES_MAX, &mut spans).unwrap();
    });
    assert_eq!(allocations.count_total, 0);
    assert_eq!(spans.len(), SAMPLES_MAX);
}

#[test]
fn an_error_is_small() {
    assert!(size_of::<DecodeError>() <= 16);
    assert!(size_of::<SampleSpan>() <= 16);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(|bits| Value::Number(f64::from_bits(bits))),
        any::<i64>().prop_map(Value::Integer),
        vec(any::<f64>(), 0..4).prop_map(|values| vector(&values)),
        ".{0,8}".prop_map(Value::Text),
        vec(any::<u8>(), 0..160).prop_map(Value::Bytes),
    ]
}

fn any_publish() -> impl Strategy<Value = proto::Publish> {
    let samples = vec((any::<i64>(), any_value()).prop_map(|(delta, value)| sample(delta, value)), 1..6);
    (any::<u32>(), any::<u64>(), any::<u64>(), samples).prop_map(|(channel, ack, source_ns, samples)| {
        proto::Publish { channel, ack, block: Some(proto::Block { source_ns, received_ns: 0, samples }) }
    })
}

/// A small change to a message, with a place that is taken modulo its length.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    Cut(usize),
    Repeat(usize, usize),
    Append(Vec<u8>),
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<usize>();
    prop_oneof![
        (at, 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        (at, any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (at, any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        at.prop_map(Mutation::Remove),
        at.prop_map(Mutation::Cut),
        (at, 1..24_usize).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        vec(any::<u8>(), 1..12).prop_map(Mutation::Append),
    ]
}

fn mutate(message: &mut Vec<u8>, mutation: Mutation) {
    let length = message.len().max(1);
    match mutation {
        Mutation::Append(bytes) => message.extend_from_slice(&bytes),
        _ if message.is_empty() => {}
        Mutation::Insert(at, byte) => message.insert(at % length, byte),
        Mutation::Flip(at, bits) => message[at % length] ^= bits,
        Mutation::Set(at, byte) => message[at % length] = byte,
        Mutation::Remove(at) => drop(message.remove(at % length)),
        Mutation::Cut(at) => message.truncate(at % length),
        Mutation::Repeat(at, count) => {
            let start = at % length;
            let part = message[start..(start + count).min(length)].to_vec();
            message.splice(start..start, part);
        }
    }
}

/// A message built field by field: mostly the right fields in the right encoding, in any order, repeated and left out as
/// it comes, with varints of any length, and now and then something else. Reaches what no encoder would write.
fn any_fields() -> impl Strategy<Value = Vec<u8>> {
    let doubles = prop_oneof![
        4 => vec(any::<[u8; 8]>(), 0..4).prop_map(|values| field(1, &values.concat())),
        2 => any::<[u8; 8]>().prop_map(|value| [&[0x09][..], &value].concat()),
        1 => any_field(),
    ];
    let of_sample = prop_oneof![
        3 => any_varint().prop_map(|value| [&[0x08][..], &value].concat()),
        2 => any::<[u8; 8]>().prop_map(|value| [&[0x11][..], &value].concat()),
        2 => any_varint().prop_map(|value| [&[0x18][..], &value].concat()),
        2 => vec(doubles, 0..4).prop_map(|fields| field(4, &fields.concat())),
        2 => ".{0,6}".prop_map(|text| field(5, text.as_bytes())),
        2 => vec(any::<u8>(), 0..20).prop_map(|bytes| field(6, &bytes)),
        1 => any_field(),
    ];
    let of_block = prop_oneof![
        12 => vec(of_sample, 1..5).prop_map(|fields| field(3, &fields.concat())),
        4 => any::<[u8; 8]>().prop_map(|value| [&[0x09][..], &value].concat()),
        1 => any_field(),
    ];
    let of_publish = prop_oneof![
        6 => any_varint().prop_map(|value| [&[0x18][..], &value].concat()),
        4 => Just(vec![0x08, 5]),
        1 => any_field(),
    ];
    let block = vec(of_block, 1..5).prop_map(|fields| field(2, &fields.concat()));
    (vec(of_publish.clone(), 0..3), block, vec(of_publish, 0..3))
        .prop_map(|(before, block, after)| [before.concat(), block, after.concat()].concat())
}

/// A varint that may be longer than it needs to be, or too long.
fn any_varint() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => any::<u64>().prop_map(|value| {
            let mut bytes = Vec::new();
            encode_varint(value, &mut bytes);
            bytes
        }),
        2 => (any::<u8>(), 0..10_usize).prop_map(|(first, more)| {
            let mut bytes = vec![0x80; more + 1];
            bytes[0] |= first;
            *bytes.last_mut().unwrap() &= 0x7F;
            bytes
        }),
        1 => vec(any::<u8>(), 0..12),
    ]
}

/// A field of any number and wire type, mostly with what its wire type asks for.
fn any_field() -> impl Strategy<Value = Vec<u8>> {
    (0..12_u8, 0..8_u8, any_varint(), vec(any::<u8>(), 8)).prop_map(|(number, wire_type, varint, bytes)| {
        let key = [number << 3 | wire_type];
        match wire_type {
            0 => [&key[..], &varint].concat(),
            1 => [&key[..], &bytes].concat(),
            2 => field(number, &bytes),
            3 => [&key[..], &[number << 3 | 4]].concat(),
            5 => [&key[..], &bytes[..4]].concat(),
            _ => key.to_vec(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_prost_encodes_is_taken(publish in any_publish()) {
        prop_assert!(differential(&publish.encode_to_vec()));
    }

    #[test]
    fn mutated_messages_mean_what_prost_reads(
        publish in any_publish(),
        mutations in vec(any_mutation(), 1..4),
    ) {
        let mut message = publish.encode_to_vec();
        for mutation in mutations {
            mutate(&mut message, mutation);
            differential(&message);
        }
    }

    #[test]
    fn messages_that_no_encoder_writes_mean_what_prost_reads(message in any_fields()) {
        differential(&message);
    }

    #[test]
    fn noise_never_panics(message in vec(any::<u8>(), 0..200)) {
        differential(&message);
    }
}
