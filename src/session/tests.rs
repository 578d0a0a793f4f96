//! What a client may say, and what it gets for everything else.

use super::*;
use crate::clock::Clock;

const PUBLISH: &str = r#"{"type":"publish","channel":"a.b","block":{"samples":[{"number":1}]}}"#;

fn session(change: impl FnOnce(&mut Config)) -> (Session, Now) {
    let mut config = Config::default();
    // Tables have more rows than a client has messages in a second.
    config.inbound.control_messages_per_s_max = 1_000_000;
    change(&mut config);
    let now = Clock::new().now();
    (Session::new(Arc::new(config), Codec::Json, false, now), now)
}

fn ask(text: &str) -> Result<Action, Refusal> {
    let (mut session, now) = session(|_| {});
    session.handle_text(text, now)
}

/// The id, the code and the message of a refusal; the message is fit for a log line.
fn refused(outcome: Result<Action, Refusal>) -> (Option<u64>, ErrorCode, String) {
    match outcome {
        Err(Refusal::Error { id, code, message }) => {
            assert!(message.bytes().all(|b| (b' '..=b'~').contains(&b)), "{message:?}");
            assert!(message.len() <= 10 * 4 * QUOTED_CHARS_MAX, "{} bytes: {message}", message.len());
            (id, code, message)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_request_is_understood() {
    let rows = [
        (r#"{"type":"subscribe","channel":"a"}"#, "Subscribe { id: None, pattern: \"a\""),
        (r#"{"id":7,"channel":"a.>","type":"subscribe"}"#, "Subscribe { id: Some(7), pattern: \"a.>\""),
        (
            " {\"type\":\"subscribe\",\"id\":null,\"channel\":\"\\u0061.*\",\"max_rate_hz\":null}\n",
            "Subscribe { id: None, pattern: \"a.*\"",
        ),
        (r#"{"type":"unsubscribe","id":0,"channel":"a.*"}"#, "Unsubscribe { id: Some(0), pattern: \"a.*\" }"),
        (
            r#"{"type":"advertise","id":9007199254740991,"channel":"$user.a"}"#,
            "Advertise { id: Some(9007199254740991), name: \"$user.a\" }",
        ),
        (r#"{"type":"ping"}"#, "Ping { id: None, client_ns: None }"),
        (
            r#"{"type":"ping","id":1,"client_ns":"18446744073709551615"}"#,
            "Ping { id: Some(1), client_ns: Some(Digits(18446744073709551615)) }",
        ),
        (r#"{"type":"ping","client_ns":5}"#, "Ping { id: None, client_ns: Some(Digits(5)) }"),
        (r#"{"type":"stats"}"#, "Stats { id: None, arrival_ns: [] }"),
        (r#"{"type":"stats","id":2,"arrival_ns":[1,2]}"#, "Stats { id: Some(2), arrival_ns: [1, 2] }"),
        (PUBLISH, "Publish { channel: Name(\"a.b\")"),
        (
            r#"{"type":"publish","channel":4,"block":{"samples":[{"number":1}]}}"#,
            "Publish { channel: Id(ChannelId(4))",
        ),
    ];
    for (text, expected) in rows {
        let action = format!("{:?}", ask(text).expect(text));
        assert!(action.starts_with(expected), "{text}: {action}");
    }
}

#[test]
fn wrong_requests_get_their_code_and_id_and_a_remedy() {
    use ErrorCode::{BadChannel, BadPayload, BadRequest, LimitExceeded, Unsupported};
    let deep = format!("{{\"type\":\"ping\",\"id\":1,\"client_ns\":{}}}", "[".repeat(10_000));
    let deep_closed =
        format!("{{\"type\":\"ping\",\"id\":1,\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let huge_field = format!("{{\"type\":\"ping\",\"id\":1,\"{}\":1}}", "\\u001b[2J".repeat(1_000));
    let many = format!("{{\"type\":\"stats\",\"id\":1,\"arrival_ns\":[{}0]}}", "0,".repeat(ARRIVALS_MAX));
    let rows: &[(&str, Option<u64>, ErrorCode, &[&str])] = &[
        ("", None, BadRequest, &["JSON object"]),
        ("hello", None, BadRequest, &["JSON object"]),
        ("null", None, BadRequest, &["JSON object"]),
        ("[]", None, BadRequest, &["JSON object"]),
        (r#"["ping",1,"5"]"#, None, BadRequest, &["JSON object"]),
        ("[7]", None, BadRequest, &["JSON object"]),
        ("\u{feff}{\"type\":\"ping\",\"id\":1}", None, BadRequest, &["JSON object"]),
        ("\0{\"type\":\"ping\",\"id\":1}", None, BadRequest, &["JSON object"]),
        ("{}", None, BadRequest, &["type"]),
        (r#"{"id":3}"#, Some(3), BadRequest, &["type"]),
        (r#"{"type":"ping","id":1}{"#, None, BadRequest, &["trailing"]),
        (r#"{"type":"ping","id":1"#, None, BadRequest, &["EOF"]),
        ("{\"type\":\"ping\",\"id\":1,\"client_ns\":\"\0\"}", None, BadRequest, &["control character"]),
        (r#"{"type":"pong","id":3}"#, Some(3), BadRequest, &["pong", "subscribe"]),
        (r#"{"type":7,"id":3}"#, Some(3), BadRequest, &["7"]),
        (r#"{"type":"ping","id":3,"idd":4}"#, Some(3), BadRequest, &["idd", "client_ns"]),
        (r#"{"type":"ping","id":3,"id":4}"#, None, BadRequest, &["duplicate", "id"]),
        (
            r#"{"type":"ping","id":3,"client_ns":1,"client_ns":1}"#,
            Some(3),
            BadRequest,
            &["duplicate", "client_ns"],
        ),
        (r#"{"type":"ping","type":"ping","id":3}"#, Some(3), BadRequest, &["duplicate", "type"]),
        (&deep, None, BadRequest, &["recursion"]),
        (&deep_closed, Some(1), BadRequest, &["recursion"]),
        (&huge_field, Some(1), BadRequest, &["unknown field", "\\u{1b}"]),
        (r#"{"type":"ping","id":1,"client_ns":1e999}"#, Some(1), BadRequest, &["out of range"]),
        (r#"{"type":"ping","id":1,"client_ns":"\ud800"}"#, Some(1), BadRequest, &["hex escape"]),
        (r#"{"type":"ping","id":1,"client_ns":"-5"}"#, Some(1), BadRequest, &["-5", "digits"]),
        (r#"{"type":"ping","id":1,"client_ns":-5}"#, Some(1), BadRequest, &["-5"]),
        (r#"{"type":"ping","id":1,"client_ns":true}"#, Some(1), BadRequest, &["true"]),
        (r#"{"type":"ping","id":{"a":1}}"#, None, BadRequest, &["map", "u64"]),
        (r#"{"type":"ping","id":"1"}"#, None, BadRequest, &["u64"]),
        (r#"{"type":"ping","id":-1}"#, None, BadRequest, &["-1"]),
        (r#"{"type":"ping","id":1.5}"#, None, BadRequest, &["1.5"]),
        (
            r#"{"type":"ping","id":9007199254740992}"#,
            None,
            BadRequest,
            &["9007199254740992", "9007199254740991"],
        ),
        (r#"{"type":"ping","id":1e400}"#, None, BadRequest, &["out of range"]),
        (r#"{"type":"ping","id":99999999999999999999}"#, None, BadRequest, &["u64"]),
        (r#"{"type":"auth","id":4,"token":"x"}"#, Some(4), Unsupported, &["auth"]),
        (r#"{"type":"presence","id":4}"#, Some(4), BadRequest, &["channel"]),
        (r#"{"type":"presence","id":4,"channel":"a","users":true}"#, Some(4), BadRequest, &["users"]),
        (r#"{"type":"presence","id":4,"channel":"a.*"}"#, Some(4), BadChannel, &["a.*", "byte 2"]),
        (r#"{"type":"history","id":4}"#, Some(4), BadRequest, &["channel"]),
        (r#"{"type":"history","id":4,"channel":"a.*"}"#, Some(4), BadChannel, &["a.*", "wildcard"]),
        (r#"{"type":"history","id":4,"channel":"a","last":1}"#, Some(4), BadRequest, &["last"]),
        (r#"{"type":"subscribe","id":5}"#, Some(5), BadRequest, &["channel"]),
        (r#"{"type":"subscribe","id":5,"channel":["a","b"]}"#, Some(5), BadRequest, &["string"]),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","policy":"keep"}"#,
            Some(5),
            BadRequest,
            &["keep", "drop_oldest"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","since":"1:2","last":1}"#,
            Some(5),
            BadRequest,
            &["since, last and last_ms", "at most one"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","last_ms":1,"last":1}"#,
            Some(5),
            BadRequest,
            &["at most one"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a.*","since":"1:2"}"#,
            Some(5),
            BadRequest,
            &["since", "\"a.*\" is a pattern", "an object"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","since":"1-2"}"#,
            Some(5),
            BadRequest,
            &["since of channel \"a\"", "\"1-2\"", "EPOCH:SEQ"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","since":7}"#,
            Some(5),
            BadRequest,
            &["since 7", "give a string"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","since":[1]}"#,
            Some(5),
            BadRequest,
            &["since [1]", "give a string"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a.*","since":{"a.b":1}}"#,
            Some(5),
            BadRequest,
            &["since of channel \"a.b\" is 1", "a string"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a.*","since":{"b.b":"1:1"}}"#,
            Some(5),
            BadRequest,
            &["channel \"b.b\" is none of \"a.*\"", "leave it out"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":">","since":{"a\u001b*":"1:1"}}"#,
            Some(5),
            BadRequest,
            &["\\u{1b}*", "leave it out"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a.*","since":{"a.b":"1:1","a.b":"1:2"}}"#,
            Some(5),
            BadRequest,
            &["\"a.b\" twice", "keep one"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","last":0}"#,
            Some(5),
            BadRequest,
            &["last 0", "1 or more"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","last":"1"}"#,
            Some(5),
            BadRequest,
            &["last \"1\"", "a whole number"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","last_ms":-1}"#,
            Some(5),
            BadRequest,
            &["last_ms -1", "1 or more"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_age_ms":0}"#,
            Some(5),
            BadRequest,
            &["max_age_ms 0", "1 to 60000"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_age_ms":60001}"#,
            Some(5),
            BadRequest,
            &["60001", "60000"],
        ),
        (r#"{"type":"subscribe","id":5,"channel":"a","max_age_ms":1.5}"#, Some(5), BadRequest, &["1.5"]),
        (r#"{"type":"subscribe","id":5,"channel":"a","max_delay_ms":-1}"#, Some(5), BadRequest, &["-1"]),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_delay_ms":4294967296}"#,
            Some(5),
            BadRequest,
            &["4294967296"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_rate_hz":0}"#,
            Some(5),
            BadRequest,
            &["max_rate_hz 0", "0.1"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_rate_hz":0.09}"#,
            Some(5),
            BadRequest,
            &["0.09", "0.1"],
        ),
        (
            r#"{"type":"subscribe","id":5,"channel":"a","max_rate_hz":-1e300}"#,
            Some(5),
            BadRequest,
            &["max_rate_hz"],
        ),
        (r#"{"type":"subscribe","id":5,"channel":"a","max_rate_hz":"50"}"#, Some(5), BadRequest, &["50"]),
        (r#"{"type":"unsubscribe","id":5,"channel":"a..b"}"#, Some(5), BadChannel, &["a..b", "byte 2"]),
        (
            r#"{"type":"unsubscribe","id":5,"channel":"a","policy":"latest"}"#,
            Some(5),
            BadRequest,
            &["policy"],
        ),
        (
            r#"{"type":"advertise","id":5,"channel":"a.*"}"#,
            Some(5),
            BadChannel,
            &["a.*", "byte 2", "not a pattern"],
        ),
        (&many, Some(1), LimitExceeded, &["arrival_ns", "1001", "1000"]),
        (
            r#"{"type":"publish","channel":"a b","block":{"samples":[{"number":1}]}}"#,
            None,
            BadChannel,
            &["a b"],
        ),
        (
            r#"{"type":"publish","channel":"a.*","block":{"samples":[{"number":1}]}}"#,
            None,
            BadChannel,
            &["a.*"],
        ),
        (r#"{"type":"publish","channel":1,"block":{"samples":[{}]}}"#, None, BadPayload, &["sample"]),
        (r#"{"type":"publish","channel":1}"#, None, BadPayload, &["block"]),
    ];
    for (text, id, code, words) in rows {
        let short: String = text.chars().take(100).collect();
        let (found_id, found_code, message) = refused(ask(text));
        assert_eq!((found_id, found_code), (*id, *code), "{short}: {message}");
        for word in *words {
            assert!(message.contains(word), "{short}: {word:?} is not in {message:?}");
        }
    }
}

#[test]
fn channel_names_outside_the_grammar_come_back_escaped_and_short() {
    let long = "x".repeat(10 << 10);
    let stars = "*".repeat(1_000);
    let many = format!("{}b", "a*".repeat(1_000));
    let names = [
        "",
        ".",
        "..",
        "a..b",
        "a//b",
        "a b",
        "a\r\nb",
        "a\0",
        "\u{1b}[31mred",
        "\u{202e}gpj.exe",
        "<img src=x>",
        "a\"b",
        "a\\b",
        "a'b",
        "ä",
        "🦀",
        ">.a",
        "a.>.b",
        "a.#",
        "a.b*",
        "$",
        &long,
        &stars,
        &many,
    ];
    for name in names {
        for kind in ["subscribe", "unsubscribe", "advertise"] {
            let name_json = serde_json::to_string(name).unwrap();
            let text = format!("{{\"type\":\"{kind}\",\"id\":8,\"channel\":{name_json}}}");
            let (id, code, message) = refused(ask(&text));
            assert_eq!((id, code), (Some(8), ErrorCode::BadChannel), "{name:?}");
            assert!(message.starts_with("channel \""), "{message}");
        }
    }
    let (_, _, message) = refused(ask(r#"{"type":"advertise","channel":"\u001b[31m"}"#));
    assert!(message.contains(r"\u{1b}[31m"), "{message}");
}

#[test]
fn options_are_rounded_to_what_can_be_shared() {
    // Of delays: the flush window, what was asked, what takes effect.
    let delays: [(u32, Option<u32>, u32); 17] = [
        (10, None, 10),
        (10, Some(0), 0),
        (10, Some(1), 1),
        (10, Some(9), 5),
        (10, Some(10), 10),
        (10, Some(19), 10),
        (10, Some(999), 500),
        (10, Some(u32::MAX), 1_000),
        (7, None, 7),
        (7, Some(6), 5),
        (7, Some(7), 7),
        (7, Some(9), 7),
        (7, Some(10), 10),
        (3_000, Some(2_999), 1_000),
        (3_000, Some(3_000), 3_000),
        (0, None, 0),
        (0, Some(1), 1),
    ];
    for (window_ms, asked, expected) in delays {
        let (mut session, now) =
            session(|config| config.batch.window = Duration::from_millis(u64::from(window_ms)));
        let option = asked.map_or_else(String::new, |asked| format!(",\"max_delay_ms\":{asked}"));
        let text = format!("{{\"type\":\"subscribe\",\"channel\":\"a\"{option}}}");
        let Ok(Action::Subscribe { delivery, .. }) = session.handle_text(&text, now) else {
            panic!("{text}")
        };
        assert_eq!(delivery.max_delay_ms, expected, "{asked:?} with a window of {window_ms}");
    }
    let rates = [
        ("0.1", 0.1),
        ("0.19", 0.1),
        ("1", 1.0),
        ("29.97", 25.0),
        ("60", 60.0),
        ("143.9", 120.0),
        ("9999.9", 5_000.0),
        ("1e300", 10_000.0),
    ];
    for (asked, expected) in rates {
        let text = format!("{{\"type\":\"subscribe\",\"channel\":\"a\",\"max_rate_hz\":{asked}}}");
        let Ok(Action::Subscribe { delivery, .. }) = ask(&text) else { panic!("{text}") };
        assert_eq!(delivery.max_rate_hz, Some(expected), "{asked}");
    }
    for (asked, expected) in [(1, 1), (60_000, 60_000)] {
        let text = format!("{{\"type\":\"subscribe\",\"channel\":\"a\",\"max_age_ms\":{asked}}}");
        let Ok(Action::Subscribe { delivery, .. }) = ask(&text) else { panic!("{text}") };
        assert_eq!(delivery.max_age_ms, expected);
    }
    let Ok(Action::Subscribe { delivery, .. }) = ask(r#"{"type":"subscribe","channel":"a"}"#) else {
        panic!()
    };
    let Config { outbox, .. } = Config::default();
    let defaults = DeliveryOptions {
        policy: Policy::DropOldest,
        max_delay_ms: 10,
        max_age_ms: millis(outbox.max_age),
        max_rate_hz: None,
    };
    assert_eq!(delivery, defaults);
    assert!(DELAYS_MS.is_sorted() && RATES_HZ.is_sorted());
}

#[test]
fn publishing_above_the_rate_is_told_once_a_second_and_ends_after_the_grace() {
    let (mut session, start) = session(|config| {
        config.inbound.publish_messages_per_s_max = 100;
        config.inbound.rate_grace = Duration::from_secs(3);
    });
    // 1,000 messages a second, ten times what is allowed.
    let (mut taken, mut told, mut closed) = (0, Vec::new(), None);
    for at_ms in 0..10_000 {
        match session.handle_text(PUBLISH, start.plus(Duration::from_millis(at_ms))) {
            Ok(_) => taken += 1,
            Err(Refusal::Silence) => {}
            Err(Refusal::Close(reason)) => {
                closed = Some((at_ms, reason));
                break;
            }
            refusal => {
                let (id, code, message) = refused(refusal);
                assert_eq!((id, code), (None, ErrorCode::RateLimited));
                assert!(message.contains("100 messages"), "{message}");
                told.push(at_ms);
            }
        }
    }
    let (closed_ms, reason) = closed.expect("the end");
    assert_eq!(reason, CloseReason::Rate);
    assert_eq!(closed_ms - told[0], 3_000);
    assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= 1_000), "{told:?}");
    assert_eq!(told.len(), 3, "{told:?}");
    assert!((300..=450).contains(&taken), "{taken}");
}

#[test]
fn whoever_slows_down_in_time_goes_on() {
    let (mut session, start) = session(|config| {
        config.inbound.publish_bytes_per_s_max = 1_000;
        config.inbound.rate_grace = Duration::from_secs(3);
    });
    let mut now = start;
    for _ in 0..20 {
        // A burst of three seconds' worth, then a pause.
        let refusals = (0..30)
            .filter(|_| session.check_publish_rate(100, now).is_err_and(|e| e != Refusal::Silence))
            .count();
        assert_eq!(refusals, 1);
        now = now.plus(Duration::from_millis(2_500));
        assert_eq!(session.check_publish_rate(100, now), Ok(()));
        now = now.plus(Duration::from_secs(1));
    }
    // A message larger than a second's worth is taken from a full bucket, or none ever would be.
    assert_eq!(session.check_publish_rate(5_000, now), Ok(()));
    assert!(session.check_publish_rate(5_000, now).is_err());
}

#[test]
fn a_publish_over_one_limit_does_not_use_up_the_other() {
    let (mut session, now) = session(|config| {
        config.inbound.publish_messages_per_s_max = 2;
        config.inbound.publish_bytes_per_s_max = 100;
    });
    assert_eq!(session.check_publish_rate(60, now), Ok(()));
    for _ in 0..10 {
        assert!(session.check_publish_rate(60, now).is_err());
    }
    assert_eq!(session.check_publish_rate(40, now), Ok(()), "the second message and the rest of the bytes");
    assert!(session.check_publish_rate(0, now).is_err());
}

#[test]
fn too_many_samples_are_told_and_ended_like_too_many_bytes() {
    let (mut session, start) = session(|config| {
        config.inbound.publish_samples_per_s_max = 100;
        config.inbound.rate_grace = Duration::from_secs(3);
    });
    let mut told = 0;
    for tenth in 0_u32..60 {
        let now = start.plus(Duration::from_millis(100) * tenth);
        assert_eq!(session.check_publish_rate(10, now), Ok(()), "bytes and messages are few");
        match session.check_samples_rate(20, now) {
            Ok(()) | Err(Refusal::Silence) => {}
            Err(Refusal::Error { code, message, .. }) => {
                assert!(code == ErrorCode::RateLimited && message.contains("100 samples"), "{message}");
                told += 1;
            }
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Close(CloseReason::Rate));
                assert!(told >= 3 && tenth >= 30, "{told} in {tenth} tenths");
                return;
            }
        }
    }
    panic!("twice the rate for six seconds");
}

#[test]
fn control_above_the_rate_is_told_and_then_abuse() {
    let (mut session, now) = session(|config| config.inbound.control_messages_per_s_max = 5);
    let ping = r#"{"type":"ping","id":1}"#;
    for _ in 0..5 {
        assert!(session.handle_text(ping, now).is_ok());
    }
    assert_eq!(refused(session.handle_text(ping, now)).1, ErrorCode::RateLimited);
    for _ in 0..9 {
        assert!(matches!(session.handle_text(ping, now), Err(Refusal::Silence)));
    }
    let end = session.handle_text(ping, now);
    assert!(matches!(end, Err(Refusal::Close(CloseReason::Abuse))), "{end:?}");
}

#[test]
fn a_stream_of_invalid_messages_is_abuse_and_a_few_are_not() {
    let (mut session, start) = session(|_| {});
    let inbound = Config::default().inbound;
    let mut now = start;
    for _ in 0..3 {
        for _ in 0..inbound.invalid_messages_max {
            assert_eq!(session.count_invalid(now), Ok(()));
        }
        now = now.plus(inbound.invalid_interval);
    }
    for _ in 0..inbound.invalid_messages_max {
        assert_eq!(session.count_invalid(now), Ok(()));
    }
    assert_eq!(session.count_invalid(now), Err(Refusal::Close(CloseReason::Abuse)));
}

#[test]
fn each_codec_takes_its_own_publishes() {
    let now = Clock::new().now();
    for codec in [Codec::Protobuf, Codec::MessagePack] {
        let mut session = Session::new(Arc::new(Config::default()), codec, false, now);
        let (_, code, message) = refused(session.handle_text(PUBLISH, now));
        assert_eq!(code, ErrorCode::BadRequest, "{message}");
    }
    let session = Session::new(Arc::new(Config::default()), Codec::MessagePack, false, now);
    for message in [&b""[..], b"\xc1", b"\x80", b"\x93\x01\x02\x03", &[0x91; 200]] {
        let (id, code, _) = refused(session.handle_msgpack(message));
        assert_eq!((id, code), (None, ErrorCode::BadPayload), "{message:?}");
    }
}
