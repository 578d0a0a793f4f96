//! What is done to processes: a client that is stopped, a server that is told to end under load, or killed and started again.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tidewire::wire::proto::sample;

use crate::support::{Client, Command, Options, Process, Tally, http, masked, publish_message, wait_for};

/// Bytes of a sample that fills buffers.
const SAMPLE_BYTES: usize = 32 << 10;

/// More rounds of samples than any kernel's buffers hold: 512 MiB.
const ROUNDS_MAX: u64 = 1_024;

/// Samples of a round. Half of what an outbox takes, so that who reads each round loses none.
const ROUND: u64 = 16;

fn text(seq: u64) -> sample::Value {
    sample::Value::Text(format!("{seq:0SAMPLE_BYTES$}"))
}

/// Settings with which only the reader's slowness counts, and no deadline.
const PATIENT: &[&str] = &[
    "outbox.write_deadline_ms=600000",
    "server.pong_timeout_ms=600000",
    "server.ping_interval_ms=600000",
    "outbox.heartbeat_interval_ms=600000",
];

/// A publisher, a subscriber that reads each round, and a `tidewire sub` that can be stopped.
struct Scene {
    server: Process,
    publisher: Client,
    channel: u32,
    healthy: Client,
    tally: Tally,
    sub: Command,
    published: u64,
}

impl Scene {
    fn new(settings: &[&str]) -> Self {
        let server = Process::start(settings);
        let mut publisher = Client::connect(server.address, &Options::default());
        let channel = publisher.advertise("a");
        let mut healthy = Client::connect(server.address, &Options::default());
        healthy.subscribe("a", &json!({"max_delay_ms": 0, "max_age_ms": 60_000}));
        let sub = Command::start(
            &["sub", "--json", "--max-delay-ms", "0", "--max-age-ms", "60000", "a"],
            server.address,
        );
        assert_eq!(sub.line_of("subscribed")["channels"], 1);
        Self { server, publisher, channel, healthy, tally: Tally::default(), sub, published: 0 }
    }

    fn publish_round(&mut self) {
        for _ in 0..ROUND {
            self.published += 1;
            self.publisher.publish_values(self.channel, [text(self.published)], 0);
        }
        while self.tally.accounted() < self.published {
            self.tally.take(&self.healthy.frame());
        }
    }

    /// Publishes until the server says so of itself.
    fn publish_until(&mut self, what: &str, wanted: impl Fn(&Process) -> bool) {
        for _ in 0..ROUNDS_MAX {
            self.publish_round();
            if wanted(&self.server) {
                return;
            }
        }
        panic!("no {what} after {} samples", self.published);
    }

    /// The healthy one has every sample.
    fn check_healthy(&mut self) {
        self.healthy.round_trip();
        let events = self.healthy.take_events();
        assert!(events.iter().all(|event| event["type"] != "gap"), "{events:?}");
        self.tally.assert_exact(1, self.published);
        assert_eq!(self.tally.lost(), 0);
    }
}

#[test]
fn a_client_that_is_stopped_is_told_what_it_missed_when_it_goes_on() {
    let mut scene = Scene::new(PATIENT);
    scene.publish_round();
    let mut seen = 0;
    while seen < scene.published {
        seen += u64::from(scene.sub.line()["type"] == "sample");
    }
    scene.sub.signal("STOP");
    let dropped = |server: &Process| {
        server.connections().iter().map(|row| row["dropped"].as_u64().unwrap()).sum::<u64>()
    };
    scene.publish_until("loss", |server| dropped(server) > 0);
    scene.check_healthy();
    scene.sub.signal("CONT");
    let (mut gaps, mut newest) = (0, seen);
    while seen + gaps < scene.published {
        let line = scene.sub.line();
        match line["type"].as_str() {
            Some("sample") => {
                let seq = line["seq"].as_u64().unwrap();
                assert!(seq > newest, "{seq} after {newest}");
                (seen, newest) = (seen + 1, seq);
            }
            Some("gap") => {
                assert_eq!(line["reason"], "slow");
                gaps += line["count"].as_u64().unwrap();
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!((seen + gaps, gaps), (scene.published, dropped(&scene.server)), "to the sample");
    // And it goes on as if nothing had been.
    scene.publisher.publish_values(scene.channel, [sample::Value::Number(1.0)], 0);
    assert_eq!(scene.sub.line_of("sample")["seq"], scene.published + 1);
}

#[test]
fn a_client_that_is_stopped_for_too_long_is_ended_and_comes_back() {
    // (what ends it, which settings make that soon)
    let rows: [(&str, &[&str]); 2] = [
        ("slow_consumer", &["outbox.write_deadline_ms=300", "server.close_timeout_ms=100"]),
        (
            "silent",
            &[
                "server.ping_interval_ms=200",
                "server.pong_timeout_ms=3000",
                "server.close_timeout_ms=100",
                "outbox.write_deadline_ms=600000",
            ],
        ),
    ];
    for (reason, settings) in rows {
        let mut scene = Scene::new(settings);
        scene.publish_round();
        scene.sub.signal("STOP");
        if reason == "silent" {
            // Nothing is published: it is the ping that is not answered.
            wait_for("the end", || {
                scene.healthy.round_trip();
                scene.publisher.round_trip();
                (scene.server.closed(reason) == 1.0).then_some(())
            });
        } else {
            scene.publish_until("end", |server| server.closed(reason) == 1.0);
        }
        scene.publish_round();
        scene.check_healthy();
        scene.sub.signal("CONT");
        scene.publisher.publish_values(scene.channel, [sample::Value::Number(1.0)], 0);
        // It goes on where it was: each sample comes once, or lies in a gap.
        let (mut seen, mut told, mut past) = (BTreeSet::new(), Vec::new(), Value::Null);
        while !seen.contains(&(scene.published + 1)) {
            let line = scene.sub.line();
            let number = |key: &str| line[key].as_u64().unwrap();
            match line["type"].as_str() {
                Some("sample") => assert!(seen.insert(number("seq")), "{reason}: {} twice", line["seq"]),
                Some("gap") => told.push(number("from")..=number("to")),
                Some("past") => past = line,
                _ => assert_ne!(line["type"], "missed", "{reason}: {line}"),
            }
        }
        let parts = ["replayed", "partial", "reset"].map(|part| past[part].as_u64().unwrap());
        assert!([[1, 0, 0], [0, 1, 0]].contains(&parts), "{reason}: {past}");
        let lost = |seq: &u64| !seen.contains(seq) && !told.iter().any(|span| span.contains(seq));
        assert_eq!((1..=scene.published).find(lost), None, "{reason}: {told:?}");
        assert_eq!(scene.server.closed("internal"), 0.0);
    }
}

#[test]
fn a_signal_under_load_with_stuck_peers_drains_who_reads_and_ends_in_time() {
    // All deadlines but the drain's are far away: that it ends at all is the drain's doing.
    let mut server = Process::start(&[
        "workers=2",
        "server.drain_timeout_ms=1500",
        "server.close_timeout_ms=600000",
        "outbox.write_deadline_ms=600000",
        "server.pong_timeout_ms=600000",
    ]);
    let mut publisher = Client::connect(server.address, &Options::default());
    let channel = publisher.advertise("a");
    let slow = json!({"max_delay_ms": 0, "policy": "drop_newest", "max_age_ms": 60_000});
    let stuck: Vec<Client> = (0..4)
        .map(|_| {
            let mut stuck = Client::connect(server.address, &Options { small: true, ..Options::default() });
            stuck.subscribe("a", &slow);
            stuck
        })
        .collect();
    wait_for("four full outboxes", || {
        for _ in 0..ROUND {
            publisher.publish_acked(channel, [text(0)]);
        }
        let full = |row: &Value| row["dropped"].as_u64().unwrap() > 0;
        (server.connections().iter().filter(|row| full(row)).count() == 4).then_some(())
    });
    let mut reader = Client::connect(server.address, &Options::default());
    let first = reader.subscribe("a", &json!({"max_delay_ms": 100, "max_age_ms": 60_000}));
    let first = first["channels"][0]["seq"].as_u64().unwrap();
    // The load goes on until the server ends it.
    let load = std::thread::spawn(move || {
        let small = masked(0x82, &publish_message(channel, 1.0));
        let mut sent: u64 = 0;
        while publisher.peer.try_write(&small).is_ok() {
            sent += 1;
        }
        sent
    });
    let mut tally = Tally::default();
    tally.take(&reader.frame());
    server.signal("TERM");
    assert_eq!(reader.close_code(), Some(1001));
    while let Some(frame) = reader.take_frame() {
        tally.take(&frame);
    }
    let mut said = None;
    for event in reader.take_events() {
        match event["type"].as_str() {
            Some("gap") => tally.take_gap(&event),
            Some("goodbye") => said = Some(event),
            _ => {}
        }
    }
    let said = said.expect("a goodbye before the close");
    let last = said["positions"][0]["seq"].as_u64().unwrap();
    tally.assert_exact(first, last);
    assert_eq!(tally.received.last(), Some(&last), "what was taken in before the goodbye was sent");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("cut off"), "the stuck ones were: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(load.join().unwrap() > 0);
    drop(stuck);
}

#[test]
fn a_second_sigterm_does_not_wait_for_a_stuck_peer() {
    let mut server = Process::start(&["server.drain_timeout_ms=600000", "server.close_timeout_ms=600000"]);
    let _stuck = Client::connect(server.address, &Options { small: true, ..Options::default() });
    server.signal("TERM");
    wait_for("the drain", || (http(server.address, "/readyz").status == 503).then_some(()));
    assert_eq!(server.status(), None, "it waits for the peer");
    server.signal("TERM");
    let (status, log) = server.wait();
    // As after a second SIGINT; what matters is that it is no success.
    assert_eq!(status.code(), Some(130), "{log}");
}

#[test]
fn who_reconnects_by_itself_survives_a_server_that_is_killed() {
    // Not 127.0.0.1: its ports are also handed out to clients, and this one is wanted twice.
    let server = Process::start_at("127.0.0.2:0", &[]);
    let address: SocketAddr = server.address;
    let sub = Command::start(&["sub", "--json", "--max-delay-ms", "0", "a"], address);
    sub.line_of("subscribed");
    let mut publisher = Command::start(&["pub", "a"], address);
    publisher.say("1");
    publisher.say("2");
    let before: Vec<Value> = (0..2).map(|_| sub.line_of("sample")).collect();
    assert_eq!([&before[0]["seq"], &before[1]["seq"]], [1, 2]);
    // SIGKILL.
    drop(server);
    sub.line_of("reconnecting");
    let server = Process::start_at(&address.to_string(), &[]);
    assert_eq!(http(server.address, "/healthz").status, 200);
    // What is said meanwhile waits in the publisher; whoever subscribes first, the epoch is told before any sample.
    let restarted = sub.line_of("restarted");
    assert_eq!(restarted["channel"], "a");
    assert_eq!(restarted["epoch_before"], before[0]["epoch"]);
    assert_ne!(restarted["epoch"], before[0]["epoch"]);
    publisher.say("3");
    let after = sub.line_of("sample");
    assert_eq!((&after["epoch"], &after["seq"]), (&restarted["epoch"], &json!(1)));
    let value = |line: &Value| line["number"].as_f64().or_else(|| line["integer"].as_str()?.parse().ok());
    assert_eq!([value(&before[0]), value(&before[1]), value(&after)], [Some(1.0), Some(2.0), Some(3.0)]);
}
