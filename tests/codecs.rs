//! The three codecs carry one model: whatever goes through one comes out as it went in, and equal to what comes out of the
//! others. Only a NaN's payload is lost, in JSON alone.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use tidewire::wire::codec::{
    ChannelRef, decode_frame_json, decode_frame_msgpack, decode_publish_json, decode_publish_msgpack,
    encode_frame_json, encode_frame_msgpack, encode_publish_json, encode_publish_msgpack,
};
use tidewire::wire::decode::scan_publish;
use tidewire::wire::proto::sample::Value;
use tidewire::wire::proto::{Block, Frame, Publish, Sample, Vector};
use tidewire::wire::{ChannelId, Codec};

/// A NaN that is not the usual one: signalling, negative, with a payload.
const ODD_NAN: u64 = 0xfff4_0000_dead_beef;

/// 64 KiB, the largest message by default.
const LARGE: usize = 64 << 10;

fn edge_doubles() -> Vec<f64> {
    vec![
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.1 + 0.2,
        f64::MIN,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::from_bits(1), // the smallest subnormal
        f64::EPSILON,
        9_007_199_254_740_993.0,
        1e300,
        5e-324,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::from_bits(ODD_NAN),
    ]
}

fn edge_values() -> Vec<Value> {
    let vector = |values| Value::Vector(Vector { values });
    let mut values: Vec<_> = edge_doubles().into_iter().map(Value::Number).collect();
    values.extend([0, 1, -1, i64::MIN, i64::MAX, 1 << 53, (1 << 53) + 1].map(Value::Integer));
    values.extend([vec![], edge_doubles(), vec![0.1; LARGE / 8]].map(vector));
    let texts = ["", "21.5", "null", "\"\\\u{0}\u{7f}\n", "Füße 🦀 \u{2028}", "NaN"].map(str::to_owned);
    values.extend(texts.map(Value::Text));
    values.push(Value::Text("ä".repeat(LARGE / 2)));
    values.extend([vec![], vec![0], vec![0xFF; 3], b"text".to_vec(), (0..=255).collect()].map(Value::Bytes));
    values.push(Value::Bytes(vec![0xA5; LARGE]));
    values
}

fn sample(source_delta_ns: i64, value: &Value) -> Sample {
    Sample { source_delta_ns, value: Some(value.clone()) }
}

/// One of each value alone, and one message of them all.
fn edge_samples() -> Vec<Vec<Sample>> {
    let values = edge_values();
    let mut messages: Vec<_> = values.iter().map(|value| vec![sample(0, value)]).collect();
    let deltas = [0, 1, -1, i64::MAX, i64::MIN];
    messages.push(deltas.iter().cycle().zip(&values).map(|(&delta, value)| sample(delta, value)).collect());
    messages
}

fn publish_through(codec: Codec, publish: &Publish) -> Publish {
    let samples = publish.block.as_ref().map_or(0, |block| block.samples.len());
    let mut bytes = Vec::new();
    match codec {
        Codec::Protobuf => {
            bytes = publish.encode_to_vec();
            scan_publish(&bytes, samples, &mut Vec::new()).expect("the server takes what it relays");
            Publish::decode(bytes.as_slice()).expect("protobuf")
        }
        Codec::MessagePack => {
            encode_publish_msgpack(publish, &mut bytes);
            decode_publish_msgpack(&bytes, samples).expect("MessagePack")
        }
        Codec::Json => {
            let channel = ChannelRef::Id(ChannelId(publish.channel));
            encode_publish_json(&channel, publish, &mut bytes);
            let read =
                decode_publish_json(std::str::from_utf8(&bytes).expect("UTF-8"), samples).expect("JSON");
            assert_eq!(read.channel, channel);
            read.publish
        }
    }
}

fn frame_through(codec: Codec, frame: &Frame) -> Frame {
    let mut bytes = Vec::new();
    match codec {
        Codec::Protobuf => Frame::decode(frame.encode_to_vec().as_slice()).expect("protobuf"),
        Codec::MessagePack => {
            encode_frame_msgpack(frame, &mut bytes);
            decode_frame_msgpack(&bytes).expect("MessagePack")
        }
        Codec::Json => {
            encode_frame_json(frame, "robot.7.imu", &mut bytes);
            let read = decode_frame_json(std::str::from_utf8(&bytes).expect("UTF-8")).expect("JSON");
            assert_eq!(read.name, "robot.7.imu");
            read.frame
        }
    }
}

/// Every NaN the usual one, which is what JSON makes of it.
fn without_nan_payloads(block: &mut Block) {
    for sample in &mut block.samples {
        match &mut sample.value {
            Some(Value::Number(number)) => *number = usual_nan(*number),
            Some(Value::Vector(vector)) => {
                vector.values.iter_mut().for_each(|value| *value = usual_nan(*value))
            }
            _ => {}
        }
    }
}

fn usual_nan(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value }
}

/// Compares encodings, since they tell every bit, and a NaN is not equal to itself.
fn assert_publish_survives(publish: &Publish) {
    for codec in Codec::ALL {
        let mut expected = publish.clone();
        if codec == Codec::Json {
            expected.block.iter_mut().for_each(without_nan_payloads);
        }
        let actual = publish_through(codec, publish);
        assert!(
            actual.encode_to_vec() == expected.encode_to_vec(),
            "{codec:?}: {actual:?}, not {expected:?}"
        );
    }
}

fn assert_frame_survives(frame: &Frame) {
    for codec in Codec::ALL {
        let mut expected = frame.clone();
        if codec == Codec::Json {
            expected.blocks.iter_mut().for_each(without_nan_payloads);
        }
        let actual = frame_through(codec, frame);
        assert!(
            actual.encode_to_vec() == expected.encode_to_vec(),
            "{codec:?}: {actual:?}, not {expected:?}"
        );
    }
}

#[test]
fn every_publish_comes_out_as_it_went_in() {
    for (channel, ack, source_ns) in
        [(3, 0, 1_763_864_091_123_456_789), (0, 1, 0), (u32::MAX, u64::MAX, u64::MAX)]
    {
        for samples in edge_samples() {
            let block = Some(Block { source_ns, received_ns: 0, samples });
            assert_publish_survives(&Publish { channel, block, ack });
        }
    }
}

#[test]
fn every_frame_comes_out_as_it_went_in() {
    let small = Frame { channel: 1, seq: 1, ..Frame::default() };
    let large = Frame {
        channel: u32::MAX,
        epoch: u32::MAX,
        seq: u64::MAX,
        count: u32::MAX,
        flushed_ns: u64::MAX,
        ..Frame::default()
    };
    let block = |samples: Vec<Sample>, ns| Block { source_ns: ns, received_ns: ns, samples };
    for head in [small, large] {
        assert_frame_survives(&head);
        for samples in edge_samples() {
            for seq_deltas in [vec![], vec![1], vec![0, 1, 300, u32::MAX]] {
                let one = block(samples.clone(), u64::MAX);
                let two = block(vec![sample(-3, &Value::Text("second".to_owned()))], 0);
                let three = block(samples.clone(), 1);
                assert_frame_survives(&Frame { blocks: vec![one, two, three], seq_deltas, ..head.clone() });
            }
        }
    }
}

#[test]
fn json_reads_as_the_protocol_shows_it() {
    let block = Block {
        source_ns: 1_763_864_091_123_456_789,
        received_ns: 1_763_864_091_123_999_999,
        samples: vec![
            sample(0, &Value::Number(21.5)),
            sample(-1, &Value::Number(f64::NAN)),
            sample(2, &Value::Integer(i64::MIN)),
            sample(3, &Value::Vector(Vector { values: vec![-0.0, f64::NEG_INFINITY] })),
            sample(4, &Value::Text("a\"b".to_owned())),
            sample(5, &Value::Bytes(vec![0xFB, 0xFF])),
        ],
    };
    let mut out = Vec::new();
    let publish = Publish { channel: 3, block: Some(Block { received_ns: 0, ..block.clone() }), ack: 7 };
    encode_publish_json(&ChannelRef::Name("robot.7.imu".to_owned()), &publish, &mut out);
    let samples = concat!(
        r#""samples":[{"source_delta_ns":"0","number":21.5},{"source_delta_ns":"-1","number":"NaN"},"#,
        r#"{"source_delta_ns":"2","integer":"-9223372036854775808"},"#,
        r#"{"source_delta_ns":"3","vector":[-0.0,"-Infinity"]},"#,
        r#"{"source_delta_ns":"4","text":"a\"b"},{"source_delta_ns":"5","bytes":"+/8="}]"#,
    );
    let expected = [
        r#"{"type":"publish","channel":"robot.7.imu","block":{"source_ns":"1763864091123456789","#,
        samples,
        r#"},"ack":7}"#,
    ];
    assert_eq!(String::from_utf8_lossy(&out), expected.concat());

    let frame = Frame {
        channel: 3,
        epoch: 9,
        seq: 17,
        count: 6,
        flushed_ns: u64::MAX,
        blocks: vec![block],
        seq_deltas: vec![1, 1, 1, 1, 2],
    };
    out.clear();
    encode_frame_json(&frame, "robot.7.imu", &mut out);
    let expected = [
        r#"{"type":"frame","channel":3,"name":"robot.7.imu","epoch":9,"seq":17,"count":6,"#,
        r#""flushed_ns":"18446744073709551615","blocks":[{"source_ns":"1763864091123456789","#,
        r#""received_ns":"1763864091123999999","#,
        samples,
        r#"}],"seq_deltas":[1,1,1,1,2]}"#,
    ];
    assert_eq!(String::from_utf8_lossy(&out), expected.concat());
}

#[test]
fn a_person_may_leave_out_and_write_plainly() {
    let text = r#" {"block":{"samples":[{"number":21},{"integer":-5,"source_delta_ns":-7},{"vector":[1,-2,"NaN"]}],
        "source_ns":1763864091123456789},"channel":"robot.7.imu","type":"publish"} "#;
    let read = decode_publish_json(text, 3).expect("valid");
    assert_eq!(read.channel, ChannelRef::Name("robot.7.imu".to_owned()));
    assert_eq!((read.publish.channel, read.publish.ack), (0, 0));
    let block = read.publish.block.expect("required");
    assert_eq!(block.source_ns, 1_763_864_091_123_456_789);
    assert_eq!(block.samples[0], sample(0, &Value::Number(21.0)));
    assert_eq!(block.samples[1], sample(-7, &Value::Integer(-5)));
    assert!(matches!(&block.samples[2].value, Some(Value::Vector(vector)) if vector.values[2].is_nan()));
}

#[test]
fn message_pack_takes_numbers_as_any_encoder_writes_them() {
    // {"channel": 3 as int64, "block": {"source_ns": 5 as int8, "samples": [{"number": X}]}}
    let message = |number: &[u8]| {
        let head =
            b"\x82\xA7channel\xD3\0\0\0\0\0\0\0\x03\xA5block\x82\xA9source_ns\xD0\x05\xA7samples\x91\x81";
        [head, &b"\xA6number"[..], number].concat()
    };
    let table: [(&[u8], f64); 8] = [
        (b"\x15", 21.0),
        (b"\xFF", -1.0),
        (b"\xCC\xFF", 255.0),
        (b"\xCF\x00\x20\x00\x00\x00\x00\x00\x00", 9_007_199_254_740_992.0),
        (b"\xD3\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFE", -2.0),
        (b"\xCA\x41\xAC\x00\x00", 21.5),
        (b"\xCB\x40\x35\x80\x00\x00\x00\x00\x00", 21.5),
        (b"\xCB\x80\x00\x00\x00\x00\x00\x00\x00", -0.0),
    ];
    for (number, expected) in table {
        let publish = decode_publish_msgpack(&message(number), 1).expect("valid");
        assert_eq!(publish.channel, 3);
        let block = publish.block.expect("required");
        assert_eq!(block.source_ns, 5);
        let Some(Value::Number(actual)) = block.samples[0].value else { panic!("not a number") };
        assert_eq!(actual.to_bits(), expected.to_bits());
    }
}

#[test]
fn clients_skip_what_they_do_not_know() {
    let text = r#"{"type":"frame","later":{"deep":[1]},"channel":1,"seq":2,"blocks":[{"later":1,"samples":[{"unit":"m","integer":4}]}]}"#;
    let expected = Frame {
        channel: 1,
        seq: 2,
        blocks: vec![Block { samples: vec![sample(0, &Value::Integer(4))], ..Block::default() }],
        ..Frame::default()
    };
    assert_eq!(decode_frame_json(text).expect("valid").frame, expected);
    let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let bytes = rmp_serde::to_vec_named(&value).expect("MessagePack");
    assert_eq!(decode_frame_msgpack(&bytes).expect("valid"), expected);
}

fn any_value() -> impl Strategy<Value = Value> {
    let double = || any::<u64>().prop_map(f64::from_bits);
    prop_oneof![
        double().prop_map(Value::Number),
        any::<i64>().prop_map(Value::Integer),
        vec(double(), 0..8).prop_map(|values| Value::Vector(Vector { values })),
        any::<String>().prop_map(Value::Text),
        vec(any::<u8>(), 0..80).prop_map(Value::Bytes),
    ]
}

fn any_block() -> impl Strategy<Value = Block> {
    let samples = vec((any::<i64>(), any_value()).prop_map(|(delta, value)| sample(delta, &value)), 1..6);
    (any::<u64>(), any::<u64>(), samples).prop_map(|(source_ns, received_ns, samples)| Block {
        source_ns,
        received_ns,
        samples,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_publish_comes_out_as_it_went_in(channel: u32, ack: u64, block in any_block()) {
        let block = Some(Block { received_ns: 0, ..block });
        assert_publish_survives(&Publish { channel, block, ack });
    }

    #[test]
    fn any_frame_comes_out_as_it_went_in(
        (channel, epoch, seq, count, flushed_ns) in any::<(u32, u32, u64, u32, u64)>(),
        blocks in vec(any_block(), 0..4),
        seq_deltas in vec(any::<u32>(), 0..4),
    ) {
        assert_frame_survives(&Frame { channel, epoch, seq, count, flushed_ns, blocks, seq_deltas });
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200), text: String) {
        let _ = decode_publish_msgpack(&bytes, 4);
        let _ = decode_frame_msgpack(&bytes);
        let _ = decode_publish_json(&text, 4);
        let _ = decode_frame_json(&text);
    }

    #[test]
    fn a_changed_byte_never_panics(block in any_block(), at: usize, byte: u8) {
        let publish = Publish { channel: 3, block: Some(Block { received_ns: 0, ..block }), ack: 1 };
        let mut bytes = Vec::new();
        encode_publish_msgpack(&publish, &mut bytes);
        let place = at % bytes.len();
        bytes[place] = byte;
        let _ = decode_publish_msgpack(&bytes, 4);
        bytes.clear();
        encode_publish_json(&ChannelRef::Id(ChannelId(3)), &publish, &mut bytes);
        let place = at % bytes.len();
        bytes[place] = byte;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = decode_publish_json(text, 4);
        }
    }
}
