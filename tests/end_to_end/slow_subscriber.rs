//! One subscriber stops reading its socket, another one beside it does not. What the slow one misses is counted and told to
//! the sample, what waits for it is bounded, and the other one gets everything.

use std::time::Duration;

use serde_json::{Value, json};
use tidewire::wire::proto::sample;

use crate::support::{Client, Options, Tally, TestServer};

/// A sample that fills buffers.
const SAMPLE_BYTES: usize = 4 << 10;

/// Samples of one round: published, and read by the healthy subscriber, before the server is asked how things are. Half
/// of what an outbox takes, so that the healthy one never loses any, however late it is scheduled.
const ROUND: u64 = 16;

/// More rounds than any kernel's buffers hold: 256 MiB.
const ROUNDS_MAX: u64 = 4_096;

/// Data that may wait for one connection.
const OUTBOX_BYTES_MAX: usize = 128 << 10;

fn text(seq: u64) -> sample::Value {
    sample::Value::Text(format!("{seq:0SAMPLE_BYTES$}"))
}

/// A publisher, a healthy subscriber that reads each round, and one that has stopped.
struct Scene {
    server: TestServer,
    publisher: Client,
    channel: u32,
    healthy: Client,
    healthy_tally: Tally,
    stalled: Client,
    published: u64,
}

impl Scene {
    fn new(policy: &str, change: impl FnOnce(&mut tidewire::config::Config)) -> Self {
        let server = TestServer::start(|config| {
            config.workers = 2;
            config.outbox.data_bytes_max = OUTBOX_BYTES_MAX;
            // It is the policy that is to be seen here, not the deadlines.
            config.outbox.write_deadline = Duration::from_mins(10);
            config.server.close_timeout = Duration::from_mins(10);
            config.server.pong_timeout = Duration::from_mins(10);
            change(config);
        });
        let mut publisher = server.client();
        let channel = publisher.advertise("a");
        let mut healthy = server.client();
        healthy.subscribe("a", &json!({"max_delay_ms": 0, "max_age_ms": 60_000}));
        let mut stalled = server.client_with(&Options { small: true, ..Options::default() });
        let options = json!({"policy": policy, "max_delay_ms": 0, "max_age_ms": 60_000});
        assert_eq!(stalled.subscribe("a", &options)["channels"][0]["seq"], 1);
        Self { server, publisher, channel, healthy, healthy_tally: Tally::default(), stalled, published: 0 }
    }

    fn publish_round(&mut self) {
        for _ in 0..ROUND {
            self.published += 1;
            self.publisher.publish_values(self.channel, [text(self.published)], 0);
        }
        while self.healthy_tally.accounted() < self.published {
            self.healthy_tally.take(&self.healthy.frame());
        }
    }

    /// Publishes until the stalled connection's row says so.
    fn publish_until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) {
        for _ in 0..ROUNDS_MAX {
            self.publish_round();
            let row = self.server.connection(self.stalled.number()).unwrap();
            assert!(row["outbox_bytes"].as_u64().unwrap() <= OUTBOX_BYTES_MAX as u64, "{row}");
            if wanted(&row) {
                return;
            }
        }
        panic!("no {what} after {} samples", self.published);
    }

    /// The slow one reads on: everything that was published came, or is told to be lost.
    fn read_on(&mut self) -> Tally {
        let mut tally = Tally::default();
        while tally.accounted() < self.published {
            assert!(self.stalled.step(), "closed");
            while let Some(frame) = self.stalled.take_frame() {
                tally.take(&frame);
            }
            for gap in self.stalled.take_events().iter().filter(|event| event["type"] == "gap") {
                tally.take_gap(gap);
            }
        }
        tally.assert_exact(1, self.published);
        tally
    }

    /// The healthy one has everything, and the server's ledger says what the slow one has seen.
    fn check_end(&mut self, tally: &Tally) -> Value {
        self.healthy_tally.assert_exact(1, self.published);
        assert_eq!(self.healthy_tally.lost(), 0);
        let ledger = self.stalled.unsubscribe("a")["channels"][0].clone();
        let lost = ledger["dropped"].as_u64().unwrap() + ledger["conflated"].as_u64().unwrap();
        assert_eq!(ledger["published"], self.published);
        assert_eq!((&ledger["delivered"], &ledger["queued"]), (&json!(tally.received.len()), &json!(0)));
        assert_eq!(lost, tally.lost());
        ledger
    }
}

#[test]
fn what_a_slow_subscriber_misses_is_told_to_the_sample() {
    for policy in ["drop_oldest", "drop_newest", "latest"] {
        let mut scene = Scene::new(policy, |_| {});
        let lost = if policy == "latest" { "conflated" } else { "dropped" };
        scene.publish_until("loss", |row| row[lost].as_u64().unwrap() > 0);
        for _ in 0..4 {
            scene.publish_round();
        }
        let tally = scene.read_on();
        let ledger = scene.check_end(&tally);
        let other = if policy == "latest" { "dropped" } else { "conflated" };
        assert_eq!(ledger[other], 0, "{policy}: {ledger}");
        let newest_came = tally.received.last() == Some(&scene.published);
        assert_eq!(newest_came, policy != "drop_newest", "{policy}");
    }
}

#[test]
fn what_is_too_old_is_a_gap() {
    let mut scene = Scene::new("drop_oldest", |_| {});
    scene.stalled.subscribe("a", &json!({"max_delay_ms": 0, "max_age_ms": 1}));
    scene.publish_until("loss", |row| row["dropped"].as_u64().unwrap() > 0);
    let tally = scene.read_on();
    assert!(scene.check_end(&tally)["dropped"].as_u64().unwrap() > 0);
}

#[test]
fn policy_disconnect_ends_a_slow_subscriber() {
    let mut scene = Scene::new("disconnect", |_| {});
    let closed = "tidewire_connections_closed_total{reason=\"slow_consumer\"}";
    let rounds = (0..ROUNDS_MAX).find(|_| {
        scene.publish_round();
        scene.server.metric(closed) == 1.0
    });
    assert!(rounds.is_some(), "never closed");
    assert_eq!(scene.stalled.close_code(), Some(4413));
    // What came before is whole.
    let mut tally = Tally::default();
    while let Some(frame) = scene.stalled.take_frame() {
        tally.take(&frame);
    }
    assert_eq!(tally.received, (1..=tally.received.len() as u64).collect::<Vec<_>>());
    scene.publish_round();
    scene.healthy_tally.assert_exact(1, scene.published);
}

#[test]
fn a_write_without_progress_ends_the_connection() {
    let mut scene =
        Scene::new("drop_oldest", |config| config.outbox.write_deadline = Duration::from_millis(300));
    let closed = "tidewire_connections_closed_total{reason=\"slow_consumer\"}";
    let rounds = (0..ROUNDS_MAX).find(|_| {
        scene.publish_round();
        scene.server.metric(closed) == 1.0
    });
    assert!(rounds.is_some(), "never closed");
    assert_eq!(scene.stalled.close_code(), Some(4413));
    scene.publish_round();
    scene.healthy_tally.assert_exact(1, scene.published);
}

#[test]
fn notices_of_loss_do_not_pile_up_for_who_reads_nothing() {
    const CHANNELS: u32 = 200;
    let server = TestServer::start(|config| {
        config.outbox.data_frames_max = 1;
        config.outbox.control_bytes_max = 64 << 10;
        config.outbox.write_deadline = Duration::from_mins(10);
    });
    let mut publisher = server.client();
    let channels: Vec<_> = (0..CHANNELS).map(|n| publisher.advertise(&format!("a.{n}"))).collect();
    let filler = publisher.advertise("filler");
    let mut stalled = server.client_with(&Options { small: true, ..Options::default() });
    stalled.subscribe("filler", &json!({"max_delay_ms": 0, "policy": "drop_newest", "max_age_ms": 60_000}));
    stalled.subscribe("a.*", &json!({"max_delay_ms": 0, "policy": "drop_newest", "max_age_ms": 60_000}));
    let dropped = |minimum: u64| {
        server.connection(stalled.number()).expect("it is still there")["dropped"].as_u64().unwrap()
            >= minimum
    };
    // The first loss comes when the kernel takes no more.
    for _ in 0..ROUNDS_MAX {
        publisher.publish_acked(filler, [text(0)]);
        if dropped(10) {
            break;
        }
    }
    assert!(dropped(10));
    let mut published = 0;
    // Long enough for many rounds of notices, if they were made.
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        for &channel in &channels {
            publisher.publish(channel, &[0.0]);
        }
        publisher.round_trip();
        published += 1;
    }
    assert!(dropped(u64::from(CHANNELS) * published / 2));
    let mut told = std::collections::HashMap::new();
    while told.values().sum::<u64>() < u64::from(CHANNELS) * published {
        assert!(stalled.step(), "closed");
        while let Some(frame) = stalled.take_frame() {
            if frame.channel != filler {
                *told.entry(u64::from(frame.channel)).or_insert(0) += u64::from(frame.count);
            }
        }
        for gap in stalled.take_events().iter().filter(|event| event["type"] == "gap") {
            if gap["channel"] != filler {
                *told.entry(gap["channel"].as_u64().unwrap()).or_insert(0) += gap["count"].as_u64().unwrap();
            }
        }
    }
    assert!(told.values().all(|count| *count == published), "{told:?}");
}
