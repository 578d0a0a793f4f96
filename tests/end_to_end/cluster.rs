//! Several servers that share a broker, with the real brokers: what is published on one is received on the others, clients
//! come back to any of them, and a broker that fails is told and costs nobody his own server.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidewire::wire::proto::sample;

use super::servers::{Options as BrokerOptions, Program, Server};
use crate::support::{Client, Options, Process, http, metric, samples, wait_for};

/// Each kind, what serves it, and whether it keeps messages.
const KINDS: [(&str, Program, bool); 4] = [
    ("redis", Program::Redis, false),
    ("redis-streams", Program::Redis, true),
    ("nats", Program::Nats, false),
    ("jetstream", Program::JetStream, true),
];

fn url(kind: &str, broker: &Server) -> String {
    format!("broker.url={kind}://127.0.0.1:{}", broker.port)
}

fn is_ready(server: &Process) -> bool {
    http(server.address, "/readyz").status == 200
}

fn start(kind: &str, broker: &Server) -> Process {
    let server = Process::start(&[&url(kind, broker), "workers=2", "broker.timeout_ms=1000"]);
    wait_for("a server that is ready", || is_ready(&server).then_some(()));
    server
}

fn client(server: &Process) -> Client {
    Client::connect(server.address, &Options::default())
}

fn publish(publisher: &mut Client, channel: u32, from: u64, to: u64) {
    publisher.publish_acked(channel, (from..=to).map(|value| sample::Value::Integer(value.cast_signed())));
}

/// What a viewer has received of one channel's stream, and what it was told it has not.
#[derive(Debug, Default)]
struct Heard {
    values: BTreeMap<u64, i64>,
    missing: u64,
    reasons: Vec<String>,
}

impl Heard {
    /// Takes what there is until `done`.
    fn until(&mut self, viewer: &mut Client, channel: u64, what: &str, done: impl Fn(&Self) -> bool) {
        wait_for(what, || {
            if !done(self) {
                viewer.round_trip();
            }
            while let Some(frame) = viewer.take_frame() {
                for (seq, sample) in samples(&frame).filter(|_| u64::from(frame.channel) == channel) {
                    let Some(sample::Value::Integer(value)) = sample.value else { panic!("{sample:?}") };
                    assert!(self.values.insert(seq, value).is_none(), "{seq} came twice");
                }
            }
            for event in viewer.take_events() {
                if event["type"] == "gap" && event["channel"] == channel {
                    self.missing += event["count"].as_u64().unwrap();
                    self.reasons.push(event["reason"].as_str().unwrap().to_owned());
                }
            }
            done(self).then_some(())
        });
    }
}

/// The entry of the stream that another server publishes.
fn entry_of(answer: &Value, epoch: &Value) -> Value {
    let channels = answer["channels"].as_array().unwrap();
    channels.iter().find(|entry| entry["epoch"] == *epoch).unwrap_or_else(|| panic!("{answer}")).clone()
}

fn epoch_of(publisher: &mut Client, name: &str) -> Value {
    publisher.request(json!({"type": "history", "channel": name}))["streams"][0]["epoch"].clone()
}

#[test]
fn what_is_published_on_one_server_is_received_on_the_other_from_the_first_sample() {
    for (kind, program, _) in KINDS {
        let broker = Server::start(program, BrokerOptions::default());
        let (one, other) = (start(kind, &broker), start(kind, &broker));
        let (mut by_name, mut by_pattern) = (client(&other), client(&other));
        by_pattern.subscribe("rig.*", &json!({}));
        by_name.subscribe("rig.imu", &json!({"max_rate_hz": null}));
        let mut publisher = client(&one);
        let channel = publisher.advertise("rig.imu");
        for round in 0..20 {
            publish(&mut publisher, channel, round * 5 + 1, round * 5 + 5);
        }
        for viewer in [&mut by_name, &mut by_pattern] {
            let found = viewer.event("channel");
            assert_eq!((&found["name"], &found["seq"]), (&json!("rig.imu"), &json!(1)), "{kind}");
            let mut heard = Heard::default();
            let number = found["channel"].as_u64().unwrap();
            heard.until(viewer, number, "100 samples", |heard| heard.values.len() == 100);
            assert!(heard.values.iter().all(|(seq, value)| *seq == value.cast_unsigned()), "{kind}");
            assert_eq!(heard.missing, 0, "{kind}");
        }
        // Nothing comes back to its server, and one that publishes the same name has a stream of its own.
        let mut local = client(&one);
        assert_eq!(local.subscribe("rig.imu", &json!({}))["channels"].as_array().unwrap().len(), 1);
        let mut second = client(&other);
        let channel = second.advertise("rig.imu");
        publish(&mut second, channel, 1, 3);
        let found = local.event("channel");
        let mut heard = Heard::default();
        heard.until(&mut local, found["channel"].as_u64().unwrap(), "3 samples", |heard| {
            heard.values.len() == 3
        });
        // A message to a user finds the user wherever it is.
        let mut user = Client::connect(other.address, &Options { user: Some("ada"), ..Options::default() });
        user.event("subscribed");
        let inbox = publisher.advertise("$user.ada");
        publish(&mut publisher, inbox, 7, 7);
        let found = user.event_where("the inbox of another server", |event| {
            event["name"] == "$user.ada" && event["type"] == "channel"
        });
        let number = found["channel"].as_u64().unwrap();
        Heard::default().until(&mut user, number, "a message", |heard| heard.values.len() == 1);
    }
}

#[test]
fn a_client_resumes_on_another_server_also_after_the_first_one_died() {
    for (kind, program, keeps) in KINDS {
        let broker = Server::start(program, BrokerOptions::default());
        let (mut one, other) = (start(kind, &broker), start(kind, &broker));
        let mut publisher = client(&one);
        let channel = publisher.advertise("a");
        publish(&mut publisher, channel, 1, 50);
        let epoch = epoch_of(&mut publisher, "a");
        wait_for("the frame on its way", || {
            let answer = publisher.request(json!({"type": "history", "channel": "a"}));
            (answer["streams"][0]["last"] == 50).then_some(())
        });
        // What is behind is with the broker.
        wait_for("frames sent", || (metric(one.address, "tidewire_relays_sent_total") > 0.0).then_some(()));
        if keeps {
            // A server that reads the topic shows that it is there.
            let mut reader = client(&other);
            wait_for("the broker to have it", || {
                let answer = reader.subscribe("a", &json!({"last": 100}));
                reader.unsubscribe("a");
                let mut streams = answer["channels"].as_array().unwrap().iter();
                streams.any(|entry| entry["epoch"] == epoch).then_some(())
            });
        }
        one.signal("KILL");
        one.wait();
        let mut viewer = client(&other);
        let answer = viewer.subscribe("a", &json!({"since": format!("{epoch}:20")}));
        if keeps {
            let entry = entry_of(&answer, &epoch);
            assert_eq!(entry["replay"]["outcome"], "replayed", "{kind}: {entry}");
            let mut heard = Heard::default();
            let number = entry["channel"].as_u64().unwrap();
            heard.until(&mut viewer, number, "30 samples", |heard| heard.values.len() == 30);
            assert_eq!((heard.values[&21], heard.missing), (21, 0), "{kind}");
        } else {
            let outcomes: Vec<_> =
                answer["channels"].as_array().unwrap().iter().map(|e| &e["replay"]["outcome"]).collect();
            assert!(outcomes.iter().all(|outcome| *outcome == "reset"), "{kind}: {answer}");
        }
    }
}

#[test]
fn a_broker_that_dies_is_told_and_costs_nobody_his_own_server() {
    for (kind, program, _) in KINDS {
        let mut broker = Server::start(program, BrokerOptions::default());
        let (one, other) = (start(kind, &broker), start(kind, &broker));
        let mut publisher = client(&one);
        let channel = publisher.advertise("a");
        let epoch = epoch_of(&mut publisher, "a");
        let (mut local, mut remote) = (client(&one), client(&other));
        local.subscribe("a", &json!({}));
        let number = entry_of(&remote.subscribe("a", &json!({})), &epoch)["channel"].as_u64().unwrap();
        let (mut here, mut there) = (Heard::default(), Heard::default());
        publish(&mut publisher, channel, 1, 10);
        there.until(&mut remote, number, "10 samples", |heard| heard.values.len() == 10);
        broker.kill();
        for server in [&one, &other] {
            wait_for("a server that is not ready", || (!is_ready(server)).then_some(()));
        }
        let mut published = 10;
        for _ in 0..20 {
            publish(&mut publisher, channel, published + 1, published + 5);
            published += 5;
        }
        here.until(&mut local, channel.into(), "all on its own server", |heard| {
            heard.values.len() as u64 == published
        });
        assert_eq!(here.missing, 0, "{kind}");
        broker.restart();
        for server in [&one, &other] {
            wait_for("a server that is ready again", || is_ready(server).then_some(()));
        }
        publish(&mut publisher, channel, published + 1, published + 1);
        published += 1;
        there.until(&mut remote, number, "all received or told", |heard| {
            heard.values.len() as u64 + heard.missing == published
        });
        assert!(there.reasons.iter().all(|reason| reason == "broker"), "{kind}: {:?}", there.reasons);
        assert!(there.values.contains_key(&published) || there.missing > 0, "{kind}");
    }
}

#[test]
fn a_server_without_its_broker_serves_its_own_clients_and_says_what_is_wrong() {
    for (kind, program, _) in KINDS {
        let mut broker = Server::absent(program, BrokerOptions::default());
        let one = Process::start(&[&url(kind, &broker), "broker.timeout_ms=1000"]);
        let answer = http(one.address, "/readyz");
        let why = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, 503, "{kind}: {why}");
        assert!(why.starts_with("broker: "), "{kind}: {why}");
        let (mut publisher, mut viewer) = (client(&one), client(&one));
        viewer.subscribe("a", &json!({}));
        let channel = publisher.advertise("a");
        publish(&mut publisher, channel, 1, 3);
        Heard::default().until(&mut viewer, channel.into(), "3 samples", |heard| heard.values.len() == 3);
        broker.restart();
        wait_for("a server that is ready", || is_ready(&one).then_some(()));
    }
}

#[test]
fn what_strangers_publish_at_the_broker_is_counted_and_nothing_else() {
    let broker = Server::start(Program::Redis, BrokerOptions::default());
    let (one, other) = (start("redis", &broker), start("redis", &broker));
    let mut publisher = client(&one);
    let channel = publisher.advertise("a");
    let epoch = epoch_of(&mut publisher, "a");
    let mut viewer = client(&other);
    let number = entry_of(&viewer.subscribe("a", &json!({})), &epoch)["channel"].as_u64().unwrap();
    let mut heard = Heard::default();
    publish(&mut publisher, channel, 1, 1);
    heard.until(&mut viewer, number, "a sample", |heard| heard.values.len() == 1);
    let (of_channel, of_servers) = ("tidewire.plain.c.a", "tidewire.plain.nodes");
    let heard_by =
        |topic: &str, payload: &[u8]| broker.redis_command(&[b"PUBLISH", topic.as_bytes(), payload]);
    let huge = vec![0x32; 1 << 20];
    let junk: [&[u8]; 6] = [
        b"",
        b"\x00\xff\x00",
        b"hello",
        br#"{"type":"publish"}"#,
        b"\x09\x01\x00\x00\x00\x00\x00\x00\x00",
        &huge,
    ];
    for payload in junk {
        assert_ne!(heard_by(of_channel, payload), ":0\r\n", "somebody has subscribed to it");
        assert_ne!(heard_by(of_servers, payload), ":0\r\n", "somebody has subscribed to it");
    }
    // So many streams under one name that no servers can have made them: each says where it stands.
    for epoch in 1..=200_u32 {
        let mut relay = vec![0x09, 0xEE, 0, 0, 0, 0, 0, 0, 0x11, 0x15];
        relay.extend_from_slice(&epoch.to_le_bytes());
        relay.extend_from_slice(&[0x18, 1, 0x20, 0]);
        heard_by(of_channel, &relay);
    }
    publish(&mut publisher, channel, 2, 3);
    heard.until(&mut viewer, number, "good samples", |heard| heard.values.len() == 3);
    assert_eq!(heard.missing, 0);
    let refused = |reason: &str| {
        metric(other.address, &format!("tidewire_relays_refused_total{{reason=\"{reason}\"}}"))
    };
    assert!(refused("malformed") >= 5.0, "{}", refused("malformed"));
    assert!(refused("full") >= 100.0, "{}", refused("full"));
}
