//! What clients say to each other through the server: control and its answers, the three codecs, who gets which sample, and
//! what is refused.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use prost::Message as _;
use serde_json::{Value, json};
use tidewire::wire::proto::{Block, Publish, Sample, Vector, sample};
use tidewire::wire::{Codec, codec};

use crate::support::{Client, Options, Tally, TestServer, masked, publish_message, samples, wait_for};

fn number(value: f64) -> sample::Value {
    sample::Value::Number(value)
}

/// The numbers of the next frames, until there are so many.
fn numbers(client: &mut Client, count: usize) -> Vec<f64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let frame = client.frame();
        numbers.extend(samples(&frame).map(|(_, sample)| match sample.value {
            Some(sample::Value::Number(number)) => number,
            _ => panic!("not a number: {sample:?}"),
        }));
    }
    numbers
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn each_request_has_its_answer() {
    let server = TestServer::start(|_| {});
    let mut client = server.client_with(&Options { user: Some("alice"), ..Options::default() });
    assert_eq!(client.welcome["user"], "alice");
    assert!(client.number() > 0);
    assert!(
        client.welcome["server_ns"].as_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000_000_000_000
    );
    assert_eq!(client.welcome["limits"]["message_bytes_max"], 64 << 10);
    assert_eq!(client.welcome["settings"]["max_delay_ms"], 10);
    let inbox = client.event("subscribed");
    assert_eq!(inbox["subscription"], "$user.alice");
    assert_eq!(inbox["channels"][0]["name"], "$user.alice");

    let options = json!({"policy": "drop_newest", "max_delay_ms": 7, "max_age_ms": 250, "max_rate_hz": 33.3});
    let subscribed = client.subscribe("robot.7.imu", &options);
    assert_eq!(subscribed["policy"], "drop_newest");
    assert_eq!(subscribed["max_delay_ms"], 5, "rounded down to a class in use");
    assert_eq!(subscribed["max_age_ms"], 250);
    assert_eq!(subscribed["max_rate_hz"], 30.0);
    assert_eq!(subscribed["channels"].as_array().unwrap().len(), 1);
    assert_eq!(subscribed["channels"][0]["seq"], 1);
    let again = client.subscribe("robot.7.imu", &json!({}));
    assert_eq!(
        (&again["policy"], &again["max_delay_ms"], &again["max_age_ms"], &again["max_rate_hz"]),
        (&json!("drop_oldest"), &json!(10), &json!(1_000), &Value::Null)
    );
    assert_eq!(again["channels"], subscribed["channels"], "the same channel and the same life");

    let advertised = client.request(json!({"type": "advertise", "channel": "robot.7.imu"}));
    assert_eq!(keys(&advertised), ["channel", "epoch", "id", "name", "seq", "type"]);
    assert_eq!(advertised["channel"], subscribed["channels"][0]["channel"]);
    assert_eq!(advertised["epoch"], subscribed["channels"][0]["epoch"]);
    let channel = u32::try_from(advertised["channel"].as_u64().unwrap()).unwrap();
    assert_eq!(client.advertise("robot.7.imu"), channel);

    let ack = client.publish_acked(channel, [number(1.0), number(2.0)]);
    assert_eq!((&ack["channel"], &ack["seq"], &ack["count"]), (&json!(channel), &json!(1), &json!(2)));
    assert_eq!(client.publish_acked(channel, [number(3.0)])["seq"], 3);
    assert_eq!(numbers(&mut client, 3), [1.0, 2.0, 3.0], "a publisher may subscribe to itself");

    let pong = client.request(json!({"type": "ping", "client_ns": "1763864091123456789"}));
    assert_eq!(pong["client_ns"], "1763864091123456789");
    let [received, sent] =
        ["received_ns", "sent_ns"].map(|key| pong[key].as_str().unwrap().parse::<u64>().unwrap());
    assert!(received > 1_700_000_000_000_000_000 && received <= sent);
    assert_eq!(client.request(json!({"type": "ping"})).get("client_ns"), None);

    let stats = client.request(json!({"type": "stats", "arrival_ns": [120_000, 95_000]}));
    assert_eq!(keys(&stats), ["channels", "id", "outbox_bytes", "outbox_frames", "type"]);
    let ledger = stats["channels"].as_array().unwrap().iter().find(|ledger| ledger["channel"] == channel);
    assert_eq!((&ledger.unwrap()["published"], &ledger.unwrap()["delivered"]), (&json!(3), &json!(3)));
    let arrival = &server.json("/api/latency")["stages"]["arrival"];
    assert_eq!(arrival["count"], 2);
    assert!((120_000..121_000).contains(&arrival["max"].as_u64().unwrap()), "{arrival}");

    let unsubscribed = client.unsubscribe("robot.7.imu");
    let expected = json!({"channel": channel, "published": 3, "delivered": 3, "conflated": 0, "dropped": 0, "queued": 0});
    assert_eq!(unsubscribed["channels"], json!([expected]));
    client.publish_acked(channel, [number(4.0)]);
    client.round_trip();
    assert_eq!(client.take_frame(), None, "unsubscribed is the end of the data");

    let row = server.connection(client.number()).unwrap();
    assert_eq!((&row["user"], &row["advertised"]), (&json!("alice"), &json!(1)));
}

#[test]
fn the_codecs_carry_the_same_samples() {
    let values = [
        number(21.5),
        number(-0.0),
        number(f64::NAN),
        number(f64::INFINITY),
        sample::Value::Integer(i64::MIN),
        sample::Value::Vector(Vector { values: vec![1.0, f64::NEG_INFINITY] }),
        sample::Value::Vector(Vector { values: vec![] }),
        sample::Value::Text("<b>\u{202e} \"\n".to_owned()),
        sample::Value::Bytes(vec![0, 255, 10]),
    ];
    let source = 1_763_864_091_123_456_789;
    let samples: Vec<_> =
        (0..).zip(values).map(|(n, v)| Sample { source_delta_ns: n * 1_000 - 500, value: Some(v) }).collect();
    for workers in [1, 2] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut publishers =
            Codec::ALL.map(|codec| server.client_with(&Options { codec, ..Options::default() }));
        let mut subscribers =
            Codec::ALL.map(|codec| server.client_with(&Options { codec, ..Options::default() }));
        for subscriber in &mut subscribers {
            subscriber.subscribe("robot.7.imu", &json!({}));
        }
        for (publisher, codec) in publishers.iter_mut().zip(Codec::ALL) {
            let channel = publisher.advertise("robot.7.imu");
            let block = Block { source_ns: source, received_ns: 0, samples: samples.clone() };
            let publish = Publish { channel, block: Some(block), ack: 7 };
            let mut message = Vec::new();
            match codec {
                Codec::Protobuf => publisher.binary(&publish.encode_to_vec()),
                Codec::MessagePack => {
                    codec::encode_publish_msgpack(&publish, &mut message);
                    publisher.binary(&message);
                }
                Codec::Json => {
                    let id = codec::ChannelRef::Id(tidewire::wire::ChannelId(channel));
                    codec::encode_publish_json(&id, &publish, &mut message);
                    publisher.text(std::str::from_utf8(&message).unwrap());
                }
            }
            let ack = publisher.event("ack");
            assert_eq!((&ack["id"], &ack["count"]), (&json!(7), &json!(samples.len())), "{codec:?}");
            for subscriber in &mut subscribers {
                let frame = subscriber.frame();
                assert_eq!(frame.seq, ack["seq"].as_u64().unwrap());
                let [block] = &frame.blocks[..] else { panic!("one message is one block: {frame:?}") };
                assert_eq!(block.source_ns, source);
                assert!(block.received_ns > source && block.received_ns <= frame.flushed_ns);
                // NaN is not equal to itself; its bits are.
                assert_eq!(format!("{:?}", block.samples), format!("{samples:?}"), "from {codec:?}");
            }
        }
    }
}

#[test]
fn json_publishes_by_name() {
    for workers in [1, 2] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut watchers: Vec<_> = (0..2).map(|_| server.client()).collect();
        for watcher in &mut watchers {
            watcher.subscribe("by.name.*", &json!({}));
        }
        let mut publisher = server.client_with(&Options { codec: Codec::Json, ..Options::default() });
        for n in 0..20 {
            for value in [1.0, 2.0] {
                let sample = json!({"number": value});
                let publish = json!({"type": "publish", "channel": format!("by.name.{n}"), "block": {"samples": [sample]}});
                publisher.text(&publish.to_string());
            }
        }
        for watcher in &mut watchers {
            let mut firsts: HashMap<u32, u64> = HashMap::new();
            let mut count = 0;
            while count < 40 {
                let frame = watcher.frame();
                count += frame.count;
                firsts.entry(frame.channel).or_insert(frame.seq);
            }
            assert!(firsts.values().all(|first| *first == 1), "{firsts:?}");
        }
        for (channel, code) in [
            ("a..b", "bad_channel"),
            ("a.*", "bad_channel"),
            ("$sys.x", "forbidden"),
            ("$user.bob.x", "forbidden"),
        ] {
            let publish =
                json!({"type": "publish", "channel": channel, "block": {"samples": [{"number": 1}]}});
            publisher.text(&publish.to_string());
            assert_eq!(publisher.error(), code, "{channel}");
        }
        publisher.round_trip();
    }
}

#[test]
fn patterns_find_new_channels_and_lose_no_first_sample() {
    const CHANNELS: usize = 60;
    for workers in [1, 2, 3] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut watchers: Vec<_> = (0..4).map(|_| server.client()).collect();
        let mut publishers: Vec<_> = (0..3).map(|_| server.client()).collect();
        for (watcher, pattern) in watchers.iter_mut().zip(["robot.*.imu", "robot.>", ">", "*.*.imu"]) {
            assert_eq!(watcher.subscribe(pattern, &json!({}))["channels"], json!([]));
        }
        for n in 0..CHANNELS {
            let publisher = &mut publishers[n % 3];
            let channel = publisher.advertise(&format!("robot.{n}.imu"));
            publisher.publish(channel, &[1.0, 2.0]);
            publisher.publish(channel, &[3.0]);
        }
        for watcher in &mut watchers {
            let mut tallies: BTreeMap<u32, Tally> = BTreeMap::new();
            while tallies.values().map(Tally::accounted).sum::<u64>() < 3 * CHANNELS as u64 {
                let frame = watcher.frame();
                tallies.entry(frame.channel).or_default().take(&frame);
            }
            assert_eq!(tallies.len(), CHANNELS);
            tallies.values().for_each(|tally| tally.assert_exact(1, 3));
            let found: Vec<_> =
                watcher.take_events().into_iter().filter(|event| event["type"] == "channel").collect();
            assert_eq!(found.len(), CHANNELS, "told once of each");
            assert!(found.iter().all(|channel| channel["seq"] == 1), "{found:?}");
        }
        // Who comes later is told of all of them at once.
        let mut late = server.client();
        let subscribed = late.subscribe("robot.*.imu", &json!({}));
        let channels = subscribed["channels"].as_array().unwrap();
        assert_eq!(channels.len(), CHANNELS);
        assert!(channels.iter().all(|channel| channel["seq"] == 4), "{channels:?}");
    }
}

#[test]
fn a_pattern_joins_running_channels_without_a_hole() {
    const CHANNELS: usize = 40;
    for workers in [1, 2, 3] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut publisher = server.client();
        let channels: Vec<_> = (0..CHANNELS).map(|n| publisher.advertise(&format!("run.{n}"))).collect();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let running = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for &channel in &channels {
                    publisher.publish(channel, &[0.0]);
                }
                // As fast as the server takes them, not faster.
                publisher.round_trip();
            }
            let last: BTreeMap<_, _> = channels
                .iter()
                .map(|&channel| {
                    (channel, publisher.publish_acked(channel, [number(0.0)])["seq"].as_u64().unwrap())
                })
                .collect();
            last
        });
        let mut joiners: Vec<_> = (0..6).map(|_| server.client()).collect();
        let mut starts = Vec::new();
        for (joiner, options) in joiners.iter_mut().zip([
            json!({}),
            json!({"max_delay_ms": 0}),
            json!({"max_delay_ms": 50}),
            json!({}),
            json!({"max_delay_ms": 0}),
            json!({}),
        ]) {
            // The client itself checks that no data comes before its channel's name.
            let subscribed = joiner.subscribe("run.*", &options);
            let channels = subscribed["channels"].as_array().unwrap();
            assert_eq!(channels.len(), CHANNELS);
            let start = |entry: &Value| {
                (u32::try_from(entry["channel"].as_u64().unwrap()).unwrap(), entry["seq"].as_u64().unwrap())
            };
            starts.push(channels.iter().map(start).collect::<BTreeMap<_, _>>());
            // Another delivery on the way: no sample is lost by that, and none comes twice.
            joiner.subscribe("run.*", &json!({"max_delay_ms": 20}));
        }
        stop.send(()).unwrap();
        let last = running.join().unwrap();
        for (joiner, starts) in joiners.iter_mut().zip(starts) {
            let mut tallies: BTreeMap<u32, Tally> = BTreeMap::new();
            let missing = |tallies: &BTreeMap<u32, Tally>| {
                starts.iter().any(|(channel, start)| {
                    tallies.get(channel).map_or(0, Tally::accounted) < last[channel] + 1 - start
                })
            };
            while missing(&tallies) {
                let frame = joiner.frame();
                tallies.entry(frame.channel).or_default().take(&frame);
                for gap in joiner.take_events().iter().filter(|event| event["type"] == "gap") {
                    let channel = u32::try_from(gap["channel"].as_u64().unwrap()).unwrap();
                    tallies.entry(channel).or_default().take_gap(gap);
                }
            }
            for (channel, start) in starts {
                tallies[&channel].assert_exact(start, last[&channel]);
            }
        }
    }
}

#[test]
fn a_sample_comes_once_however_many_subscriptions_match() {
    let server = TestServer::start(|config| config.workers = 2);
    let mut publisher = server.client();
    let channel = publisher.advertise("robot.7.imu");
    let mut viewer = server.client();
    for name in ["robot.*.imu", "robot.7.imu", "robot.>", "robot.7.imu"] {
        assert_eq!(viewer.subscribe(name, &json!({}))["channels"][0]["channel"], channel);
    }
    publisher.publish_acked(channel, [number(1.0), number(2.0)]);
    assert_eq!(numbers(&mut viewer, 2), [1.0, 2.0]);
    // One subscription less is no end, as long as another one matches.
    for name in ["robot.7.imu", "robot.*.imu"] {
        assert_eq!(viewer.unsubscribe(name)["channels"], json!([]), "{name}");
        publisher.publish_acked(channel, [number(3.0)]);
        assert_eq!(numbers(&mut viewer, 1), [3.0]);
    }
    assert_eq!(viewer.unsubscribe("robot.>")["channels"][0]["published"], 4);
    publisher.publish_acked(channel, [number(4.0)]);
    viewer.round_trip();
    assert_eq!(viewer.take_frame(), None);
}

#[test]
fn a_name_has_one_number_and_one_life_for_everybody() {
    let server = TestServer::start(|config| config.workers = 2);
    let mut numbers: HashMap<String, (Value, Value)> = HashMap::new();
    for _ in 0..4 {
        let mut client = server.client();
        for name in ["a", "b.c", "d"] {
            let subscribed = client.subscribe(name, &json!({}));
            let channel = &subscribed["channels"][0];
            let life = (channel["channel"].clone(), channel["epoch"].clone());
            assert_eq!(*numbers.entry(name.to_owned()).or_insert_with(|| life.clone()), life);
            assert_ne!(life.1, 0);
        }
    }
    let other = TestServer::start(|_| {}).client().subscribe("a", &json!({}));
    assert_ne!(numbers["a"].1, other["channels"][0]["epoch"], "another server, another life");
}

#[test]
fn the_sequence_goes_on_when_the_publisher_comes_back() {
    let server = TestServer::start(|config| config.workers = 2);
    let mut viewer = server.client();
    viewer.subscribe("a.b", &json!({}));
    let mut next = 1;
    for _ in 0..3 {
        let mut publisher = server.client();
        let channel = publisher.advertise("a.b");
        for _ in 0..3 {
            assert_eq!(publisher.publish_acked(channel, [number(0.0)])["seq"], next);
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.count), (next, 1));
            next += 1;
        }
    }
    // Two publishers of one channel share its sequence.
    let mut both = [server.client(), server.client()];
    let channels = [both[0].advertise("a.b"), both[1].advertise("a.b")];
    assert_eq!(channels[0], channels[1]);
    for turn in 0..6 {
        assert_eq!(both[turn % 2].publish_acked(channels[0], [number(0.0)])["seq"], next);
        next += 1;
    }
}

#[test]
fn delivery_options_take_effect() {
    let server = TestServer::start(|_| {});
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    let mut thin = server.client();
    thin.subscribe("a", &json!({"max_rate_hz": 10, "max_delay_ms": 0}));
    let mut newest = server.client();
    newest.subscribe("a", &json!({"policy": "latest", "max_delay_ms": 0}));
    // Of a message with many samples, the newest comes, and the count of the others.
    let many: Vec<_> = (0..50).map(|n| number(f64::from(n))).collect();
    publisher.publish_acked(channel, many);
    for (viewer, reason) in [(&mut thin, "rate"), (&mut newest, "conflated")] {
        let mut tally = Tally::default();
        while tally.received.last() != Some(&50) {
            tally.take(&viewer.frame());
        }
        while tally.accounted() < 50 {
            let gap = viewer.event("gap");
            assert_eq!(gap["reason"], reason, "{gap}");
            tally.take_gap(&gap);
        }
        tally.assert_exact(1, 50);
        let ledger = &viewer.unsubscribe("a")["channels"][0];
        assert_eq!((&ledger["published"], &ledger["dropped"]), (&json!(50), &json!(0)));
        assert_eq!(ledger["conflated"], tally.lost());
    }
}

#[test]
fn silence_is_broken_by_heartbeats_with_the_heads() {
    let server = TestServer::start(|config| {
        config.workers = 2;
        config.outbox.heartbeat_interval = Duration::from_millis(100);
    });
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    publisher.publish_acked(channel, [number(1.0)]);
    let mut viewer = server.client();
    let subscribed = viewer.subscribe("a", &json!({}));
    let cursor = &subscribed["channels"][0]["cursor"];
    let beat = viewer.event("heartbeat");
    assert_eq!(beat["heads"], json!([{"channel": channel, "seq": 1, "cursor": cursor}]));
    assert!(beat["server_ns"].as_str().unwrap().parse::<u64>().is_ok());
    publisher.publish_acked(channel, [number(2.0), number(3.0)]);
    numbers(&mut viewer, 2);
    viewer.take_events();
    assert_eq!(viewer.event("heartbeat")["heads"][0]["seq"], 3);
    assert!(
        publisher.take_events().iter().all(|event| event["type"] != "heartbeat"),
        "no heads, no heartbeat"
    );
}

#[test]
fn a_message_to_a_user_reaches_that_user_everywhere_and_nobody_else() {
    let server = TestServer::start(|config| config.workers = 2);
    let connect = |user| server.client_with(&Options { user: Some(user), ..Options::default() });
    // On both workers: each takes the next connection in turn.
    let mut bobs: Vec<_> = (0..3).map(|_| connect("bob")).collect();
    let mut carol = connect("carol");
    let mut bobby = connect("bobby");
    let mut nobody = server.client();
    for client in [&mut carol, &mut bobby, &mut nobody] {
        client.subscribe(">", &json!({}));
        for channel in ["$user.bob", "$user.>", "$user.*", "$user.bob.x"] {
            let refused = client.request(json!({"type": "subscribe", "channel": channel}));
            assert_eq!(
                (&refused["type"], &refused["code"]),
                (&json!("error"), &json!("forbidden")),
                "{channel}"
            );
        }
    }
    for client in &mut bobs {
        assert_eq!(client.event("subscribed")["subscription"], "$user.bob");
    }
    let mut alice = connect("alice");
    let inbox = alice.advertise("$user.bob");
    alice.publish_acked(inbox, [number(7.0)]);
    for bob in &mut bobs {
        assert_eq!(numbers(bob, 1), [7.0]);
    }
    // An answer goes the same way.
    let back = bobs[0].advertise("$user.alice");
    bobs[0].publish_acked(back, [number(8.0)]);
    assert_eq!(numbers(&mut alice, 1), [8.0]);
    // What comes later has come to all of these by then.
    let open = alice.advertise("open");
    alice.publish_acked(open, [number(9.0)]);
    for client in [&mut carol, &mut bobby, &mut nobody] {
        assert_eq!(numbers(client, 1), [9.0]);
    }
    for client in [&mut bobs[1], &mut carol] {
        client.round_trip();
        assert_eq!(client.take_frame(), None);
    }
}

#[test]
fn wildcards_do_not_reach_the_servers_own_channels() {
    let server = TestServer::start(|_| {});
    let mut own = server.client();
    own.subscribe("$sys.>", &json!({}));
    let mut all = server.client();
    for pattern in [">", "*.*", "*.latency", "*"] {
        all.subscribe(pattern, &json!({}));
    }
    // The server publishes about itself once a second.
    let name = own.event("channel")["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("$sys."), "{name}");
    own.frame();
    all.round_trip();
    assert_eq!(all.take_frame(), None);
    assert!(all.take_events().iter().all(|event| event["type"] != "channel"));
}

#[test]
fn what_is_refused_leaves_the_connection_alive() {
    let server = TestServer::start(|config| config.inbound.invalid_messages_max = 1_000);
    let mut client = server.client();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let rows = [
        ("not JSON", "hello", None, "bad_request"),
        ("an array", "[]", None, "bad_request"),
        ("an empty object", "{}", None, "bad_request"),
        ("nothing", "", None, "bad_request"),
        ("too deep", &deep, None, "bad_request"),
        ("a byte order mark", "\u{feff}{\"type\":\"ping\",\"id\":1}", None, "bad_request"),
        ("a NUL", "{\"type\":\"ping\",\"id\":1}\0", None, "bad_request"),
        ("half a surrogate", r#"{"type":"subscribe","id":2,"channel":"\ud800"}"#, Some(2), "bad_request"),
        ("an unknown type", r#"{"type":"dance","id":3}"#, Some(3), "bad_request"),
        ("an unknown field", r#"{"type":"ping","id":4,"colour":1}"#, Some(4), "bad_request"),
        ("a field twice", r#"{"type":"ping","id":5,"id":6}"#, None, "bad_request"),
        ("an id that is an object", r#"{"type":"ping","id":{}}"#, None, "bad_request"),
        ("an id that is too large", r#"{"type":"ping","id":9007199254740992}"#, None, "bad_request"),
        (
            "an infinite number",
            r#"{"type":"subscribe","id":7,"channel":"a","max_rate_hz":1e999}"#,
            Some(7),
            "bad_request",
        ),
        (
            "an unknown policy",
            r#"{"type":"subscribe","id":8,"channel":"a","policy":"x"}"#,
            Some(8),
            "bad_request",
        ),
        (
            "a rate of nothing",
            r#"{"type":"subscribe","id":9,"channel":"a","max_rate_hz":0}"#,
            Some(9),
            "bad_request",
        ),
        (
            "an age of nothing",
            r#"{"type":"subscribe","id":10,"channel":"a","max_age_ms":0}"#,
            Some(10),
            "bad_request",
        ),
        ("a frame", r#"{"type":"frame","id":11}"#, Some(11), "bad_request"),
        (
            "JSON data in another codec",
            r#"{"type":"publish","channel":1,"block":{"samples":[{"number":1}]}}"#,
            None,
            "bad_request",
        ),
        ("a bad name", r#"{"type":"subscribe","id":12,"channel":"a..b"}"#, Some(12), "bad_channel"),
        ("a bad pattern", r#"{"type":"subscribe","id":13,"channel":"a*"}"#, Some(13), "bad_channel"),
        ("a pattern to publish", r#"{"type":"advertise","id":14,"channel":"a.*"}"#, Some(14), "bad_channel"),
        (
            "an escape sequence",
            r#"{"type":"subscribe","id":15,"channel":"a\u001b[31m\r\n"}"#,
            Some(15),
            "bad_channel",
        ),
        ("not subscribed", r#"{"type":"unsubscribe","id":16,"channel":"a"}"#, Some(16), "not_subscribed"),
        ("the server's", r#"{"type":"advertise","id":17,"channel":"$sys.x"}"#, Some(17), "forbidden"),
        ("no cursor", r#"{"type":"subscribe","id":18,"channel":"a","since":"x"}"#, Some(18), "bad_request"),
        ("no channel", r#"{"type":"history","id":19,"channel":"a.*"}"#, Some(19), "bad_channel"),
        ("auth", r#"{"type":"auth","id":20,"token":"secret"}"#, Some(20), "unsupported"),
        ("nobody's presence", r#"{"type":"presence","id":21}"#, Some(21), "bad_request"),
        ("a pattern's presence", r#"{"type":"presence","id":22,"channel":"a.>"}"#, Some(22), "bad_channel"),
    ];
    for (what, text, id, code) in rows {
        client.text(text);
        let error = client.event("error");
        assert_eq!((&error["id"], &error["code"]), (&json!(id), &json!(code)), "{what}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.len() < 1_000, "{what}: {message}");
        assert!(!message.contains(char::is_control) && !message.contains("secret"), "{what}: {message}");
    }
    let many = json!({"type": "stats", "arrival_ns": vec![1; 1_001]});
    assert_eq!(client.request(many)["code"], "limit_exceeded");

    let channel = client.advertise("mine");
    let sample = |value| Sample { source_delta_ns: 0, value };
    let with = |channel, samples, received_ns| {
        Publish { channel, block: Some(Block { source_ns: 0, received_ns, samples }), ack: 0 }.encode_to_vec()
    };
    let one = || vec![sample(Some(number(1.0)))];
    let whole = with(channel, one(), 0);
    let rows = [
        ("nothing", vec![], "bad_payload"),
        ("what is no protobuf", vec![0xFF; 20], "bad_payload"),
        ("half a message", whole[..whole.len() - 1].to_vec(), "bad_payload"),
        ("no block", Publish { channel, block: None, ack: 0 }.encode_to_vec(), "bad_payload"),
        ("no samples", with(channel, vec![], 0), "bad_payload"),
        ("a sample without a value", with(channel, vec![sample(None)], 0), "bad_payload"),
        ("the server's clock", with(channel, one(), 5), "bad_payload"),
        ("too many samples", with(channel, vec![sample(Some(number(1.0))); 4_097], 0), "bad_payload"),
        ("not advertised", with(channel + 1_000, one(), 0), "not_advertised"),
        ("no channel", with(0, one(), 0), "not_advertised"),
    ];
    for (what, message, code) in rows {
        client.binary(&message);
        assert_eq!(client.error(), code, "{what}");
    }
    // Unknown fields are the future, and skipped.
    client.subscribe("mine", &json!({}));
    client.binary(&[&whole[..], &[0xF8, 0x07, 0x01]].concat());
    assert_eq!(numbers(&mut client, 1), [1.0]);

    let mut json = server.client_with(&Options { codec: Codec::Json, ..Options::default() });
    json.binary(&whole);
    assert_eq!(json.error(), "unsupported");
    for block in [
        json!(null),
        json!({}),
        json!({"samples": []}),
        json!({"samples": [{}]}),
        json!({"samples": [{"number": 1, "text": "x"}]}),
    ] {
        json.text(&json!({"type": "publish", "channel": "j", "block": block}).to_string());
        assert_eq!(json.error(), "bad_payload", "{block}");
    }
    let mut msgpack = server.client_with(&Options { codec: Codec::MessagePack, ..Options::default() });
    for message in [&b""[..], b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x81", b"\x80\x80"] {
        msgpack.binary(message);
        assert_eq!(msgpack.error(), "bad_payload", "{message:x?}");
    }
    for client in [&mut client, &mut json, &mut msgpack] {
        client.round_trip();
    }
}

#[test]
fn limits_hold_and_what_was_before_them_works() {
    let server = TestServer::start(|config| {
        config.workers = 2;
        config.channel.subscriptions_max = 3;
        config.channel.channels_max = 4;
        config.channel.channels_total_max = 12;
        config.channel.classes_max = 2;
        config.channel.channel_name_bytes_max = 20;
    });
    let mut client = server.client();
    let refuse = |client: &mut Client, request: Value| {
        let answer = client.request(request.clone());
        assert_eq!(answer["code"], "limit_exceeded", "{request}: {answer}");
    };
    for name in ["s.1", "s.2", "s.3"] {
        client.subscribe(name, &json!({}));
    }
    refuse(&mut client, json!({"type": "subscribe", "channel": "s.4"}));
    client.subscribe("s.3", &json!({"max_delay_ms": 0}));
    client.unsubscribe("s.2");
    client.subscribe("s.4", &json!({}));
    for channel in ["123456789.1234567890", "1.2.3"] {
        server.client().subscribe(channel, &json!({}));
    }
    let long = client.request(json!({"type": "subscribe", "channel": "123456789.12345678901"}));
    assert_eq!(long["code"], "bad_channel");

    let mut publisher = server.client();
    let channels: Vec<_> = (0..4).map(|n| publisher.advertise(&format!("p.{n}"))).collect();
    refuse(&mut publisher, json!({"type": "advertise", "channel": "p.4"}));
    assert_eq!(publisher.advertise("p.3"), channels[3]);
    // Two channels are free, and three patterns would find four more.
    refuse(&mut client, json!({"type": "subscribe", "channel": "p.*"}));
    client.unsubscribe("s.4");
    client.subscribe("p.0", &json!({}));
    publisher.publish_acked(channels[0], [number(1.0)]);
    assert_eq!(numbers(&mut client, 1), [1.0]);

    // The channel p.0 has one class by now.
    let mut second = server.client();
    second.subscribe("p.0", &json!({"max_delay_ms": 1}));
    let mut third = server.client();
    refuse(&mut third, json!({"type": "subscribe", "channel": "p.0", "max_delay_ms": 2}));
    third.subscribe("p.0", &json!({"max_delay_ms": 1}));
    refuse(&mut third, json!({"type": "subscribe", "channel": "p.0", "max_delay_ms": 2}));
    third.subscribe("p.0", &json!({}));
    publisher.publish_acked(channels[0], [number(2.0)]);
    for viewer in [&mut client, &mut second, &mut third] {
        assert_eq!(numbers(viewer, 1), [2.0]);
    }

    let mut filler = server.client();
    let full = wait_for("a full server", || {
        let name = format!("f.{}", server.json("/api/channels")["channels"].as_array().unwrap().len());
        let answer = filler.request(json!({"type": "subscribe", "channel": name}));
        filler.request(json!({"type": "unsubscribe", "channel": name}));
        (answer["type"] == "error").then_some(answer)
    });
    assert_eq!(full["code"], "limit_exceeded", "{full}");
}

#[test]
fn who_publishes_too_much_is_told_and_then_ended() {
    let server = TestServer::start(|config| {
        config.inbound.publish_messages_per_s_max = 10;
        config.inbound.rate_grace = Duration::from_millis(300);
        config.server.close_timeout = Duration::from_millis(50);
    });
    let mut viewer = server.client();
    viewer.subscribe("a", &json!({}));
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    for value in 0..30 {
        publisher.publish(channel, &[f64::from(value)]);
    }
    assert_eq!(publisher.error(), "rate_limited");
    assert_eq!(numbers(&mut viewer, 10)[..10], (0..10).map(f64::from).collect::<Vec<_>>());
    // Goes on above the rate all through the time of grace.
    let flood = publish_message(channel, 1.0);
    wait_for("the end", || publisher.peer.try_write(&masked(0x82, &flood).repeat(20)).is_err().then_some(()));
    server.wait_for_metric("tidewire_connections_closed_total{reason=\"rate\"}", 1.0);
    viewer.round_trip();

    // In bytes, too.
    let server = TestServer::start(|config| {
        config.inbound.publish_bytes_per_s_max = 1_000;
        config.inbound.rate_grace = Duration::ZERO;
    });
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    publisher.publish_acked(channel, vec![number(1.0); 80]);
    publisher.publish(channel, &[1.0; 80]);
    assert_eq!(publisher.close_code(), Some(4429));
}

#[test]
fn who_talks_nonsense_is_ended() {
    let server = TestServer::start(|config| config.inbound.invalid_messages_max = 5);
    for kind in ["text", "binary", "refused"] {
        let mut client = server.client();
        for _ in 0..6 {
            match kind {
                "text" => client.text("nonsense"),
                "binary" => client.binary(b"nonsense"),
                _ => client.text(&json!({"type": "unsubscribe", "channel": "a"}).to_string()),
            }
        }
        assert_eq!(client.close_code(), Some(1008), "{kind}");
        assert_eq!(client.take_events().iter().filter(|event| event["type"] == "error").count(), 6, "{kind}");
    }
}

#[test]
fn who_asks_too_often_is_told_and_then_ended() {
    let server = TestServer::start(|config| config.inbound.control_messages_per_s_max = 20);
    let mut client = server.client();
    for _ in 0..25 {
        client.text(&json!({"type": "ping"}).to_string());
    }
    assert_eq!(client.error(), "rate_limited");
    for _ in 0..200 {
        // The server may have ended it by now.
        drop(client.peer.try_write(&masked(0x81, br#"{"type":"ping"}"#)));
    }
    server.wait_for_metric("tidewire_connections_closed_total{reason=\"abuse\"}", 1.0);
}
