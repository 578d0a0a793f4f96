//! What Redis says, without Redis.

use super::*;

#[test]
fn ids_are_read_and_what_is_none_is_a_payload() {
    let rows = [
        (b"1-0 x".as_slice(), Some((Position(1, 0), 4))),
        (b"18446744073709551615-18446744073709551615 ", Some((Position(u64::MAX, u64::MAX), 42))),
        (b"18446744073709551616-0 x", None),
        (b"1-0", None),
        (b"1 x", None),
        (b" 1-0", None),
        (b"", None),
        (b"\xff-1 x", None),
    ];
    for (text, expected) in rows {
        assert_eq!(split_id(text), expected, "{text:?}");
    }
}

#[test]
fn what_is_missing_is_counted_and_another_history_is_seen() {
    const EXPIRY: u64 = 600_000;
    let stream = |first: u64, last: u64, added: u64, length: u64| {
        let first = (length > 0).then_some(Position(first, 0));
        Some(Stream { first, last: Position(last, 0), added, length, ..Stream::default() })
    };
    let unknown = Some(None);
    // What there is, how many were known up to position 1,000,000, for how long it was down, what is missing, whether anew.
    let rows = [
        ("nothing new", stream(900_000, 1_000_000, 7, 3), Some(7), 0, None, false),
        ("new, and all there", stream(900_000, 1_100_000, 9, 5), Some(7), 0, None, false),
        ("trimmed exactly up to us", stream(1_050_000, 1_100_000, 9, 2), Some(7), 0, None, false),
        ("two were trimmed", stream(1_050_000, 1_100_000, 11, 2), Some(7), 0, Some(Some(2)), false),
        ("all were trimmed", stream(0, 1_100_000, 11, 0), Some(7), 0, Some(Some(4)), false),
        ("the count is unknown", stream(1_050_000, 1_100_000, 11, 2), None, 0, None, false),
        ("deleted, and as many new", stream(1_050_000, 1_100_000, 7, 7), Some(7), 0, unknown, true),
        ("deleted, and few new", stream(1_050_000, 1_100_000, 2, 2), Some(7), 0, unknown, true),
        ("older than what we know", stream(900_000, 950_000, 7, 7), Some(7), 0, unknown, true),
        ("deleted", None, Some(7), 0, unknown, true),
        ("never there", None, Some(0), 0, None, true),
        ("gone before we were, for nobody used it", None, Some(7), 100_000, None, true),
        ("used again after that", stream(1_650_000, 1_650_000, 1, 1), Some(7), 100_000, None, true),
        ("gone while we were away", None, Some(7), 200_000, unknown, true),
    ];
    for (name, stream, count, down_ms, missing, anew) in rows {
        // Of those that were away, the last message is old.
        let now_ms = if down_ms == 0 { 1_200_000 } else { 1_750_000 };
        let from = From::After { position: Position(1_000_000, 0), count, behind: false };
        let judged = Look { now_ms, stream }.judged(from, EXPIRY, down_ms);
        assert_eq!(judged.gap.map(|gap| gap.messages), missing, "{name}");
        assert_eq!(judged.anew, anew, "{name}");
    }
}

#[test]
fn a_part_of_what_there_is_goes_up_to_its_last_message() {
    let messages = vec![(Position(6, 0), Bytes::new()), (Position(7, 0), Bytes::new())];
    let first = Some(Position(1, 0));
    let stream = Stream { more: true, last: Position(9, 0), added: 9, length: 9, first, messages };
    let from = From::After { position: Position(5, 0), count: Some(5), behind: false };
    let judged = Look { now_ms: 10, stream: Some(stream) }.judged(from, 600_000, 0);
    assert_eq!((judged.upto, judged.end, judged.gap), (Position(7, 0), false, None));
}

#[test]
fn answers_that_are_none_are_refused() {
    let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let answer = |last: Value, found: Value| {
        vec![Value::Int(5), Value::Int(0), last, Value::Int(2), Value::Int(2), text("1-0"), found]
    };
    let found = || Value::Array(vec![text("2-0"), text("b"), text("1-0"), text("a")]);
    let look = Look::read(answer(text("2-0"), found()), From::Newest).expect("an answer");
    let stream = look.stream.expect("a stream");
    assert_eq!(stream.messages[0], (Position(1, 0), Bytes::from_static(b"a")));
    assert_eq!(stream.last, Position(2, 0));
    assert!(Look::read(vec![Value::Int(5)], From::Newest).expect("an answer").stream.is_none());
    for broken in [
        vec![],
        vec![text("5")],
        vec![Value::Int(-5)],
        vec![Value::Int(5), Value::Int(0)],
        answer(text("2"), found()),
        answer(text("2-0"), Value::Nil),
        answer(text("2-0"), Value::Array(vec![text("x"), text("b")])),
    ] {
        assert!(Look::read(broken.clone(), From::Newest).is_none(), "{broken:?}");
    }
}
