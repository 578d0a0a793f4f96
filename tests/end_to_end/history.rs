//! Clients that come back: what they missed comes once, before what is live, and what is not kept any more is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidewire::wire::Codec;
use tidewire::wire::proto::sample;

use crate::support::{Client, Options, Tally, TestServer, samples, wait_for};

fn numbers(from: u64, to: u64) -> Vec<sample::Value> {
    (from..=to).map(|seq| sample::Value::Integer(seq.cast_signed())).collect()
}

/// Reads until the mark of a replay, and everything that came with it: the sequences, whose values are the same. Then the
/// sequence that the mark says.
fn replayed(client: &mut Client) -> (Vec<u64>, u64) {
    let live = client.event("live")["seq"].as_u64().unwrap();
    let mut seqs = Vec::new();
    while let Some(frame) = client.take_frame() {
        for (seq, sample) in samples(&frame) {
            assert_eq!(sample.value, Some(sample::Value::Integer(seq.cast_signed())));
            seqs.push(seq);
        }
    }
    assert!(seqs.is_sorted(), "{seqs:?}");
    (seqs, live)
}

#[test]
fn a_subscription_begins_where_it_is_asked_to() {
    for (workers, codec) in [(1, Codec::Protobuf), (2, Codec::Json), (3, Codec::MessagePack)] {
        let server = TestServer::start(|config| {
            config.workers = workers;
            config.history.samples_max = 50;
            // Each publish is a frame.
            config.batch.frame_samples_max = 10;
        });
        let mut publisher = server.client();
        let channel = publisher.advertise("a");
        for round in 0..10 {
            publisher.publish_acked(channel, numbers(round * 10 + 1, round * 10 + 10));
        }
        // All of it is in frames of the history when the last one is.
        let summary = wait_for("the history", || {
            let answer = publisher.request(json!({"type": "history", "channel": "a"}));
            let stream = answer["streams"][0].clone();
            (stream["last"] == 100).then_some(stream)
        });
        let first = summary["first"].as_u64().unwrap();
        assert_eq!((first, &summary["samples"]), (51, &json!(50)), "{summary}");
        let epoch = &summary["epoch"];
        let cursor = |seq: u64| format!("{epoch}:{seq}");
        let rows = [
            (json!({"since": cursor(100)}), 101, "replayed", 101),
            (json!({"since": cursor(73)}), 74, "replayed", 74),
            (json!({"since": cursor(20)}), 21, "partial", first),
            (json!({"since": cursor(200)}), first, "reset", first),
            (json!({"since": "1:73"}), first, "reset", first),
            (json!({"since": {}}), first, "reset", first),
            (json!({"last": 7}), 94, "replayed", 94),
            (json!({"last": 1_000}), 1, "partial", first),
            (json!({"last_ms": 3_600_000}), first, "replayed", first),
        ];
        let mut viewers = Vec::new();
        for (options, seq, outcome, begin) in rows {
            let mut viewer = server.client_with(&Options { codec, ..Options::default() });
            let entry = viewer.subscribe("a", &options)["channels"][0].clone();
            let replay = json!({"outcome": outcome, "samples": 101 - begin});
            assert_eq!((&entry["seq"], &entry["replay"]), (&json!(seq), &replay), "{options}");
            assert_eq!(entry["cursor"], cursor(seq - 1));
            assert_eq!(replayed(&mut viewer), ((begin..=100).collect(), 101), "{options}");
            if outcome == "partial" {
                let gap = viewer.event("gap");
                let told = ["from", "to", "count"].map(|field| gap[field].as_u64().unwrap());
                assert_eq!(told, [seq, begin - 1, begin - seq], "{gap}");
                assert_eq!(gap["reason"], "history");
            }
            viewers.push((viewer, seq, begin));
        }
        publisher.publish_acked(channel, numbers(101, 101));
        for (mut viewer, seq, begin) in viewers {
            assert_eq!(viewer.frame().seq, 101, "live goes on where the past ended");
            let ledger = viewer.unsubscribe("a")["channels"][0].clone();
            assert_eq!(ledger["published"], 102 - seq, "{ledger}");
            assert_eq!(ledger["delivered"], 102 - begin, "{ledger}");
        }
        for (outcome, count) in [("replayed", 4.0), ("partial", 2.0), ("reset", 3.0)] {
            assert_eq!(server.metric(&format!("tidewire_replays_total{{outcome=\"{outcome}\"}}")), count);
        }
        assert!(server.metric("tidewire_samples_replayed_total") > 0.0);
        assert!(server.metric("tidewire_history_bytes") > 0.0);
        assert!(server.metric("tidewire_history_evicted_total{cause=\"samples\"}") > 0.0);
        // Only the 101st sample of each was live: nothing of the past is in the latencies.
        assert_eq!(server.metric("tidewire_server_total_seconds_count"), 9.0);
    }
}

#[test]
fn a_subscription_that_goes_on_begins_nowhere_else() {
    let server = TestServer::start(|config| config.workers = 2);
    let mut publisher = server.client();
    let channel = publisher.advertise("a.b");
    publisher.publish_acked(channel, numbers(1, 3));
    let mut viewer = server.client();
    viewer.subscribe("a.b", &json!({}));
    let refused = viewer.request(json!({"type": "subscribe", "channel": "a.b", "last": 3}));
    assert_eq!(refused["code"], "bad_request", "{refused}");
    // Of a channel that it receives already, a pattern brings nothing of the past; of others it does, also of later ones.
    let entry = viewer.subscribe("a.*", &json!({"since": {}}))["channels"][0].clone();
    assert_eq!((&entry["seq"], &entry["replay"]), (&json!(4), &Value::Null), "{entry}");
    let other = publisher.advertise("a.c");
    publisher.publish_acked(other, numbers(1, 2));
    let found = viewer.event("channel");
    assert_eq!((&found["name"], &found["replay"]["outcome"]), (&json!("a.c"), &json!("reset")), "{found}");
    let mut tally = Tally::default();
    while tally.accounted() < 2 {
        tally.take(&viewer.frame());
    }
    tally.assert_exact(1, 2);
    assert_eq!(viewer.event("live")["channel"], other);
}

#[test]
fn a_history_can_be_switched_off_by_pattern() {
    let server = TestServer::start(|config| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "history.channels = ['quiet.> off']").unwrap();
        config.history = tidewire::config::load::from_file(file.path()).unwrap().history;
    });
    let mut publisher = server.client();
    for (name, kept) in [("quiet.a", 0), ("a", 3)] {
        let channel = publisher.advertise(name);
        publisher.publish_acked(channel, numbers(1, 3));
        let answer = wait_for("the history", || {
            let answer = publisher.request(json!({"type": "history", "channel": name}));
            (answer["streams"][0]["last"] == 3).then_some(answer)
        });
        assert_eq!(answer["streams"][0]["samples"], kept, "{answer}");
        let mut viewer = server.client();
        let entry = viewer.subscribe(name, &json!({"last": 3}))["channels"][0].clone();
        assert_eq!(entry["replay"]["samples"], kept, "{entry}");
        assert_eq!(replayed(&mut viewer).0.len(), kept);
        if kept == 0 {
            assert_eq!(viewer.event("gap")["reason"], "history");
        }
    }
    let nothing = publisher.request(json!({"type": "history", "channel": "unheard.of"}));
    assert_eq!(nothing["streams"], json!([]));
}

#[test]
fn who_comes_back_again_and_again_under_full_load_misses_nothing_unsaid() {
    for (workers, codec, policy) in [
        (1, Codec::Protobuf, "drop_oldest"),
        (2, Codec::Json, "drop_oldest"),
        (3, Codec::Protobuf, "drop_newest"),
    ] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut publisher = server.client();
        let channel = publisher.advertise("a");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            // As fast as it can; its socket is what slows it down.
            let mut publishing = Some(scope.spawn(move || {
                let mut published = 0;
                while !stop.load(Ordering::Relaxed) {
                    publisher.publish_values(channel, numbers(published + 1, published + 8), 0);
                    published += 8;
                }
                publisher.publish_acked(channel, numbers(published + 1, published + 1));
                published + 1
            }));
            let mut seen: BTreeSet<u64> = BTreeSet::new();
            let mut cursor: Option<String> = None;
            let mut last = 0;
            let mut lives = 0;
            let published = loop {
                let done = lives == 12;
                let mut client = server.client_with(&Options { codec, ..Options::default() });
                let mut options = json!({"policy": policy, "max_age_ms": 60_000});
                if let Some(cursor) = &cursor {
                    options["since"] = json!(cursor);
                }
                let entry = client.subscribe("a", &options)["channels"][0].clone();
                let begin = entry["seq"].as_u64().unwrap();
                if cursor.is_some() {
                    assert_eq!(begin, last + 1, "{entry}");
                    assert_ne!(entry["replay"]["outcome"], "reset", "{entry}");
                }
                // This life has its own account: all from its beginning to its last sample came or was told.
                let mut tally = Tally::default();
                let mut told: Vec<(u64, u64)> = Vec::new();
                if done {
                    stop.store(true, Ordering::Relaxed);
                }
                let published = publishing.take_if(|_| done).map(|publishing| publishing.join().unwrap());
                loop {
                    assert!(client.step(), "closed");
                    while let Some(frame) = client.take_frame() {
                        tally.take(&frame);
                    }
                    for event in client.take_events() {
                        if event["type"] == "gap" {
                            tally.take_gap(&event);
                            told.push((event["from"].as_u64().unwrap(), event["to"].as_u64().unwrap()));
                        }
                    }
                    if let Some(published) = published {
                        if tally.accounted() == published + 1 - begin {
                            tally.assert_exact(begin, published);
                            break;
                        }
                    } else if tally.received.len() > 500 && holes_are_told(begin, &tally.received, &told) {
                        break;
                    }
                }
                last = *tally.received.last().unwrap();
                for seq in &tally.received {
                    assert!(seen.insert(*seq), "{seq} came twice");
                }
                cursor = Some(format!("{}:{last}", entry["epoch"]));
                lives += 1;
                if let Some(published) = published {
                    break published;
                }
            };
            assert_eq!(last, published);
        });
    }
}

/// Whether each hole up to the last sample lies in a span that was told.
fn holes_are_told(begin: u64, received: &[u64], told: &[(u64, u64)]) -> bool {
    let mut next = begin;
    received.iter().all(|&seq| {
        let hole = next..seq;
        next = seq + 1;
        hole.is_empty() || told.iter().any(|(from, to)| *from <= hole.start && hole.end - 1 <= *to)
    })
}

#[test]
fn a_reader_that_stalls_while_it_catches_up_holds_nobody_up() {
    let server = TestServer::start(|config| {
        config.outbox.write_deadline = Duration::from_mins(10);
        config.history.bytes_max = 4 << 20;
        config.history.age_max = Duration::from_mins(10);
    });
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    // More than sockets and an outbox take.
    let text = |seq: u64| sample::Value::Text(format!("{seq:04096}"));
    for seq in 1..=900 {
        publisher.publish_values(channel, [text(seq)], 0);
    }
    publisher.publish_acked(channel, [text(901)]);
    let mut stalled = server.client_with(&Options { small: true, ..Options::default() });
    let entry = stalled.subscribe("a", &json!({"last": 900, "max_age_ms": 60_000}))["channels"][0].clone();
    let first = entry["seq"].as_u64().unwrap();
    // Others come, catch up and go on meanwhile.
    for _ in 0..3 {
        let mut other = server.client();
        other.subscribe("a", &json!({"last": 5, "max_age_ms": 60_000}));
        other.event("live");
    }
    let row = server.connection(stalled.number()).unwrap();
    assert!(row["outbox_bytes"].as_u64().unwrap() <= 1 << 20, "{row}");
    // It reads on: all that was kept comes, and then the mark.
    let mut tally = Tally::default();
    let mut live = None;
    while live.is_none() || tally.accounted() < 902 - first {
        assert!(stalled.step(), "closed");
        while let Some(frame) = stalled.take_frame() {
            tally.take(&frame);
        }
        for event in stalled.take_events() {
            match event["type"].as_str().unwrap() {
                "gap" => tally.take_gap(&event),
                "live" => live = event["seq"].as_u64(),
                _ => {}
            }
        }
    }
    tally.assert_exact(first, 901);
    assert_eq!(live, Some(902));
}

#[test]
fn a_drain_ends_a_replay_with_a_cursor_that_goes_on() {
    let mut server = TestServer::start(|config| {
        config.server.drain_timeout = Duration::from_secs(20);
        config.history.bytes_max = 4 << 20;
        config.history.age_max = Duration::from_mins(10);
    });
    let mut publisher = server.client();
    let channel = publisher.advertise("a");
    for seq in 1..=900 {
        publisher.publish_values(channel, [sample::Value::Text(format!("{seq:04096}"))], 0);
    }
    publisher.publish_acked(channel, [sample::Value::Text("901".into())]);
    let mut viewer = server.client_with(&Options { small: true, ..Options::default() });
    let entry = viewer.subscribe("a", &json!({"last": 900, "max_age_ms": 60_000}))["channels"][0].clone();
    let first = entry["seq"].as_u64().unwrap();
    server.shut_down();
    assert_eq!(viewer.close_code(), Some(1001));
    let mut tally = Tally::default();
    while let Some(frame) = viewer.take_frame() {
        tally.take(&frame);
    }
    for gap in viewer.take_events() {
        match gap["type"].as_str().unwrap() {
            "gap" => tally.take_gap(&gap),
            // Everything up to the cursor came or was told, and nothing behind it.
            "goodbye" => {
                let position = &gap["positions"][0];
                let last = position["seq"].as_u64().unwrap();
                assert_eq!(position["cursor"], format!("{}:{last}", entry["epoch"].as_u64().unwrap()));
                assert_eq!(position["name"], "a");
                assert!(last < 901, "the drain came before the end");
                if last >= first {
                    tally.assert_exact(first, last);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn cursors_are_bounded() {
    let server = TestServer::start(|config| config.channel.channels_max = 4);
    let mut client = server.client();
    let names = |from: usize, count: usize| -> BTreeMap<String, &str> {
        (from..from + count).map(|n| (format!("a.{n}"), "1:1")).collect()
    };
    let since = |names| json!({"type": "subscribe", "channel": "a.*", "since": names});
    assert_eq!(client.request(since(names(0, 5)))["code"], "limit_exceeded");
    let many = (0..40).map(|n| format!("{n}:1")).collect::<Vec<_>>().join(",");
    let answer = client.request(json!({"type": "subscribe", "channel": "a.b", "since": many}));
    assert_eq!(answer["code"], "bad_request", "{answer}");
    assert_eq!(client.request(since(names(0, 4)))["type"], "subscribed");
    // They are kept for channels that come later, so all subscriptions share the bound.
    let another = |names| json!({"type": "subscribe", "channel": "*.b", "since": names});
    let one: BTreeMap<&str, &str> = [("x.b", "1:1")].into();
    let answer = client.request(another(one.clone()));
    assert_eq!(answer["code"], "limit_exceeded", "{answer}");
    client.unsubscribe("a.*");
    assert_eq!(client.request(another(one))["type"], "subscribed");
}
