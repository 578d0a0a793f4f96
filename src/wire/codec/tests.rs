//! What the two codecs refuse, and in which words. That they agree on what they take is in `tests/codecs.rs`.

use serde_json::{Value, json};

use super::*;

const SAMPLES_MAX: usize = 4;

fn msgpack(message: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(message).unwrap()
}

/// A publish in either codec: the JSON one with its type.
fn publish(block: Value) -> Value {
    json!({"type": "publish", "channel": 3, "block": block})
}

fn sample(sample: Value) -> Value {
    publish(json!({"samples": [sample]}))
}

/// An empty map inside so many arrays, in MessagePack.
fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = vec![0x91; depth];
    bytes.push(0x80);
    bytes
}

#[test]
fn wrong_messages_are_refused_in_both_codecs() {
    let number = json!({"number": 1});
    let table = [
        (json!([]), "a publish"),
        (json!(7), "a publish"),
        (json!({"type": "publish", "channel": 3}), "`block`"),
        (json!({"type": "publish", "block": {"samples": [number]}}), "`channel`"),
        (json!({"type": "publish", "channel": -1, "block": {"samples": [number]}}), "`channel`"),
        (
            json!({"type": "publish", "channel": 4_294_967_296_u64, "block": {"samples": [number]}}),
            "`channel`",
        ),
        (json!({"type": "publish", "channel": 1.5, "block": {"samples": [number]}}), "`channel`"),
        (json!({"type": "publish", "channel": 3, "block": {"samples": [number]}, "ack": -1}), "`ack`"),
        (publish(json!([])), "a block"),
        (publish(json!({})), "`samples`"),
        (publish(json!({"samples": []})), "send at least one"),
        (publish(json!({"samples": {}})), "`samples` as an array"),
        (publish(json!({"samples": [number, number, number, number, number]})), "limit of 4"),
        (publish(json!({"samples": [number], "received_ns": 0})), "leave it out"),
        (publish(json!({"samples": [number], "source_ns": -1})), "`source_ns`"),
        (publish(json!({"samples": [number], "source_ns": "yesterday"})), "`source_ns`"),
        (publish(json!({"samples": [number], "source_ns": "18446744073709551616"})), "`source_ns`"),
        (sample(json!(1)), "a sample"),
        (sample(json!({})), "set one of"),
        (sample(json!({"source_delta_ns": 1})), "set one of"),
        (sample(json!({"number": 1, "text": "one"})), "second value"),
        (sample(json!({"number": "one"})), "`number`"),
        (sample(json!({"number": null})), "`number`"),
        (sample(json!({"number": true})), "`number`"),
        (sample(json!({"integer": 1.0})), "`integer`"),
        (sample(json!({"integer": 9_223_372_036_854_775_808_u64})), "`integer`"),
        (sample(json!({"source_delta_ns": "x", "number": 1})), "`source_delta_ns`"),
        (sample(json!({"vector": 1})), "`vector`"),
        (sample(json!({"vector": ["one"]})), "`vector`"),
        (sample(json!({"vector": [[]]})), "`vector`"),
        (sample(json!({"vector": {"values": []}})), "`vector`"),
        (sample(json!({"text": 1})), "text"),
        (sample(json!({"bytes": 1})), "`bytes`"),
        (sample(json!({"bytes": [1, 2]})), "`bytes`"),
    ];
    for (message, expected) in table {
        let text = message.to_string();
        let error = decode_publish_json(&text, SAMPLES_MAX).expect_err(&text).to_string();
        assert!(error.contains(expected), "JSON {text}: {error}");
        let error = decode_publish_msgpack(&msgpack(&message), SAMPLES_MAX).expect_err(&text).to_string();
        assert!(error.contains(expected), "MessagePack {text}: {error}");
    }
}

#[test]
fn json_has_rules_of_its_own() {
    let block = r#""block":{"samples":[{"number":1}]}"#;
    let table = [
        (String::new(), "EOF"),
        ("\u{feff}{}".to_owned(), "expected value"),
        (format!(r#"{{"channel":3,{block}}}"#), "`type`"),
        (format!(r#"{{"type":"frame","channel":3,{block}}}"#), "\"publish\""),
        (format!(r#"{{"type":"publish","channel":3,{block}}} x"#), "trailing"),
        (format!(r#"{{"type":"publish","channel":3,{block},"ack":1,"ack":2}}"#), "duplicate field `ack`"),
        (format!(r#"{{"type":"publish","channel":3,"acc":1,{block}}}"#), "unknown field `acc`"),
        (
            r#"{"type":"publish","channel":3,"block":{"sauce_ns":1}}"#.to_owned(),
            "unknown field `sauce_ns`, expected one of `source_ns`",
        ),
        (
            r#"{"type":"publish","channel":3,"block":{"samples":[{"nummer":1}]}}"#.to_owned(),
            "unknown field `nummer`",
        ),
        (sample(json!({"number": "nan"})).to_string(), "\"NaN\""),
        (sample(json!({"bytes": "a-_="})).to_string(), "base64"),
        (sample(json!({"bytes": "YQ"})).to_string(), "base64 with padding"),
        (sample(json!({"number": 1})).to_string().replace(":1", ":1e999"), "number out of range"),
        (sample(json!({"text": "@"})).to_string().replace('@', "\\ud800"), "hex escape"),
        (format!("{}{}", r#"{"type":"publish","channel":"#, "[".repeat(10_000)), "`channel`"),
    ];
    for (text, expected) in table {
        let error = decode_publish_json(&text, SAMPLES_MAX).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn message_pack_has_rules_of_its_own() {
    let good = msgpack(&sample(json!({"number": 1})));
    assert!(decode_publish_msgpack(&good, SAMPLES_MAX).is_ok());
    for end in 0..good.len() {
        assert!(decode_publish_msgpack(&good[..end], SAMPLES_MAX).is_err(), "{end} bytes");
    }
    // Of every kind that a further value could begin with.
    for more in 0..=u8::MAX {
        let error = decode_publish_msgpack(&[&good[..], &[more]].concat(), SAMPLES_MAX).unwrap_err();
        assert!(error.to_string().contains("bytes after the message"), "{more:#x}: {error}");
    }
    let name = json!({"channel": "a.b", "block": {"samples": [{"number": 1}]}});
    assert!(decode_publish_msgpack(&msgpack(&name), SAMPLES_MAX).is_err());
    let not_a_number = sample(json!({"number": "NaN"}));
    assert!(decode_publish_msgpack(&msgpack(&not_a_number), SAMPLES_MAX).is_err());
}

#[test]
fn message_pack_skips_unknown_fields_to_a_depth() {
    let with = |depth: usize| {
        let mut bytes = vec![0x83, 0xA5];
        bytes.extend_from_slice(b"later");
        bytes.extend_from_slice(&nested(depth));
        let rest =
            msgpack(&json!({"channel": 3, "block": {"samples": [{"number": 1, "unit": {"a": [null]}}]}}));
        bytes.extend_from_slice(&rest[1..]);
        decode_publish_msgpack(&bytes, SAMPLES_MAX)
    };
    assert_eq!(with(10).unwrap().channel, 3);
    assert!(with(MSGPACK_DEPTH_MAX).is_err());
    assert!(with(60_000).is_err());
}

#[test]
fn declared_lengths_reserve_nothing() {
    // What holds the array, map, bin or str that says how long it is: 2^32 - 1.
    let of = |parts: &[&[u8]]| parts.concat();
    let block = b"\x81\xA5block";
    let samples = b"\x81\xA7samples";
    let table = [
        of(&[b"\xDF\xFF\xFF\xFF\xFF"]),
        of(&[block, b"\xDF\xFF\xFF\xFF\xFF"]),
        of(&[block, samples, b"\xDD\xFF\xFF\xFF\xFF"]),
        of(&[block, samples, b"\xDD\xFF\xFF\xFF\xFF", &b"\x81\xA6number\x01".repeat(3)]),
        of(&[block, samples, b"\x91\x81\xA6vector\xDD\xFF\xFF\xFF\xFF", &[1; 100]]),
        of(&[block, samples, b"\x91\x81\xA5bytes\xC6\xFF\xFF\xFF\xFF\x01"]),
        of(&[block, samples, b"\x91\x81\xA4text\xDB\xFF\xFF\xFF\xFF\x01"]),
        of(&[b"\x81\xA5later\xC9\xFF\xFF\xFF\xFF\x01"]),
        of(&[b"\x81\xDB\xFF\xFF\xFF\xFFblock"]),
    ];
    for message in table {
        let memory = allocation_counter::measure(|| {
            assert!(decode_publish_msgpack(&message, usize::MAX).is_err(), "{message:x?}");
            assert!(decode_frame_msgpack(&message).is_err(), "{message:x?}");
        });
        assert!(memory.bytes_max < 16 << 10, "{message:x?}: {} bytes", memory.bytes_max);
    }
}

#[test]
fn publishes_are_told_from_control() {
    let table = [
        (r#"{"type":"publish","channel":3}"#, true),
        (" {\n\t\"type\" :\r \"publish\"}", true),
        (r#"{"channel":3,"type":"publish"}"#, true),
        (r#"{"type":"publi\u0073h"}"#, true),
        (r#"{"typ\u0065":"publish"}"#, true),
        (r#"{"type":"publish""#, true), // and the codec says what is wrong with it
        (r#"{"type":"ping"}"#, false),
        (r#"{"type":"publisher"}"#, false),
        (r#"{"type":"pu","channel":"publish"}"#, false),
        (r#"{"id":1,"type":"ping"}"#, false),
        (r#"{"id":1,"type":"publish""#, false),
        (r#"{"id":"\"type\":\"publish\""}"#, false),
        (r#"{"id":{"type":"publish"}}"#, false),
        (r#"{"type":7}"#, false),
        (r#"{"type"#, false),
        ("{}", false),
        ("", false),
        ("publish", false),
    ];
    for (text, expected) in table {
        assert_eq!(is_publish(text), expected, "{text}");
    }
    assert!(!is_publish(&"[".repeat(100_000)));
}

#[test]
fn errors_are_short_and_printable() {
    let long = "ß\u{1b}[31m".repeat(10_000);
    for text in [
        sample(json!({"number": long})).to_string(),
        json!({"type": "publish", long.as_str(): 1}).to_string(),
        publish(json!({"source_ns": "\u{0}"})).to_string(),
    ] {
        let error = decode_publish_json(&text, SAMPLES_MAX).unwrap_err().to_string();
        assert!(error.len() < 2_000, "{} bytes", error.len());
        assert!(!error.contains(char::is_control), "{error}");
        assert!(error.contains("line 1 column"), "{error}");
    }
}
