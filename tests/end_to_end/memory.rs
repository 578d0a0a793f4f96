//! Many subscribers stop reading at once: what all of them make the server hold stays below the one ceiling, what goes is the
//! oldest, is counted and is told, and a subscriber that reads misses nothing.

use std::time::Duration;

use serde_json::json;
use tidewire::wire::proto::sample;

use crate::support::{Client, Options, Tally, TestServer, masked, wait_for};

/// A sample that fills buffers.
const SAMPLE_BYTES: usize = 4 << 10;

/// Samples of a round in each channel: less than an eighth of the ceiling in all, so that what the healthy one has not read yet
/// is never among the oldest.
const ROUND: u64 = 4;

/// More rounds than any kernel's buffers hold.
const ROUNDS_MAX: u64 = 4_096;

const TOTAL_BYTES_MAX: usize = 2 << 20;

/// Each of them could have the half of it.
const STALLED: usize = 8;

const MEMORY: &str = "tidewire_samples_dropped_total{reason=\"memory\"}";

struct Scene {
    server: TestServer,
    publisher: Client,
    channels: Vec<u32>,
    healthy: Client,
    tallies: Vec<Tally>,
    stalled: Vec<Client>,
    published: u64,
}

impl Scene {
    /// A publisher of a channel for each policy, a subscriber to all of them, and one to each that does not read.
    fn new(policies: [&str; STALLED]) -> Self {
        let server = TestServer::start(|config| {
            config.outbox.total_bytes_max = TOTAL_BYTES_MAX;
            config.outbox.data_bytes_max = TOTAL_BYTES_MAX / 2;
            config.outbox.write_deadline = Duration::from_mins(10);
            config.server.close_timeout = Duration::from_mins(10);
            config.server.pong_timeout = Duration::from_mins(10);
        });
        let mut publisher = server.client();
        let channels = (0..STALLED).map(|n| publisher.advertise(&format!("a.{n}"))).collect();
        let mut healthy = server.client();
        healthy.subscribe("a.*", &json!({"max_delay_ms": 0, "max_age_ms": 60_000}));
        let stall = |(n, policy): (usize, &str)| {
            let mut client = server.client_with(&Options { small: true, ..Options::default() });
            let options = json!({"policy": policy, "max_delay_ms": 0, "max_age_ms": 60_000});
            client.subscribe(&format!("a.{n}"), &options);
            client
        };
        let stalled = policies.into_iter().enumerate().map(stall).collect();
        let tallies = (0..STALLED).map(|_| Tally::default()).collect();
        Self { server, publisher, channels, healthy, tallies, stalled, published: 0 }
    }

    fn publish_round(&mut self) {
        for _ in 0..ROUND {
            self.published += 1;
            let text = format!("{:0SAMPLE_BYTES$}", self.published);
            for &channel in &self.channels {
                self.publisher.publish_values(channel, [sample::Value::Text(text.clone())], 0);
            }
        }
        while self.tallies.iter().any(|tally| tally.accounted() < self.published) {
            let frame = self.healthy.frame();
            let channel = self.channels.iter().position(|channel| *channel == frame.channel).unwrap();
            self.tallies[channel].take(&frame);
        }
        let held = self.server.metric("tidewire_outbox_memory_bytes");
        assert!(held <= TOTAL_BYTES_MAX as f64, "{held} bytes");
    }

    fn publish_until(&mut self, what: &str, mut wanted: impl FnMut(&TestServer) -> bool) {
        for _ in 0..ROUNDS_MAX {
            self.publish_round();
            if wanted(&self.server) {
                return;
            }
        }
        panic!("no {what} after {} samples", self.published);
    }

    fn check_healthy(&self) {
        for tally in &self.tallies {
            tally.assert_exact(1, self.published);
            assert_eq!(tally.lost(), 0);
        }
        assert!(self.published > 0);
    }
}

#[test]
fn what_all_outboxes_hold_is_bounded_and_every_loss_is_told() {
    let policies = ["drop_oldest", "drop_newest"].repeat(STALLED / 2);
    let mut scene = Scene::new(policies.try_into().unwrap());
    scene.publish_until("loss", |server| server.metric(MEMORY) > 0.0);
    for _ in 0..16 {
        scene.publish_round();
    }
    scene.check_healthy();
    assert!(scene.server.metric("tidewire_outbox_memory_bytes") > (TOTAL_BYTES_MAX / 2) as f64, "it is used");
    let mut told = 0;
    for stalled in &mut scene.stalled {
        let mut tally = Tally::default();
        while tally.accounted() < scene.published {
            assert!(stalled.step(), "closed");
            while let Some(frame) = stalled.take_frame() {
                tally.take(&frame);
            }
            for gap in stalled.take_events().iter().filter(|event| event["type"] == "gap") {
                assert_eq!(gap["reason"], "slow");
                tally.take_gap(gap);
            }
        }
        tally.assert_exact(1, scene.published);
        told += tally.lost();
    }
    let dropped =
        |reason: &str| scene.server.metric(&format!("tidewire_samples_dropped_total{{reason=\"{reason}\"}}"));
    assert_eq!(dropped("overflow"), 0.0, "no outbox was full by itself");
    assert_eq!(dropped("ended"), 0.0);
    assert_eq!(dropped("memory") + dropped("age"), told as f64);
    for client in [&mut scene.healthy].into_iter().chain(&mut scene.stalled) {
        client.round_trip();
    }
    wait_for("everything to be let go", || {
        (scene.server.metric("tidewire_outbox_memory_bytes") == 0.0).then_some(())
    });
}

#[test]
fn policy_disconnect_ends_who_holds_what_is_oldest() {
    let mut policies = ["drop_oldest"; STALLED];
    policies[3] = "disconnect";
    let mut scene = Scene::new(policies);
    let closed = "tidewire_connections_closed_total{reason=\"slow_consumer\"}";
    scene.publish_until("end", |server| server.metric(closed) == 1.0);
    assert_eq!(scene.stalled[3].close_code(), Some(4413));
    let mut tally = Tally::default();
    while let Some(frame) = scene.stalled[3].take_frame() {
        tally.take(&frame);
    }
    assert_eq!(
        tally.received,
        (1..=tally.received.len() as u64).collect::<Vec<_>>(),
        "what came before is whole"
    );
    scene.publish_round();
    scene.check_healthy();
    assert_eq!(scene.server.metric(closed), 1.0, "nobody else has ended");
}

#[test]
fn control_messages_that_nobody_reads_are_bounded_too() {
    const CLIENTS: usize = 12;
    let server = TestServer::start(|config| {
        config.outbox.total_bytes_max = 1 << 20;
        config.outbox.data_bytes_max = 1 << 20;
        // It is not the lane of one that is full.
        config.outbox.control_bytes_max = 1 << 30;
        config.outbox.write_deadline = Duration::from_mins(10);
        config.inbound.control_messages_per_s_max = 1_000_000;
    });
    let mut healthy = server.client();
    let mut others: Vec<Client> =
        (0..CLIENTS).map(|_| server.client_with(&Options { small: true, ..Options::default() })).collect();
    let closed = "tidewire_connections_closed_total{reason=\"slow_consumer\"}";
    let asked = (0..ROUNDS_MAX).find(|_| {
        for client in &mut others {
            let request = json!({"type": "ping", "client_ns": "1", "id": 1}).to_string();
            for _ in 0..64 {
                // It may have ended.
                drop(client.peer.try_write(&masked(0x81, request.as_bytes())));
            }
        }
        healthy.round_trip();
        server.metric(closed) > 0.0
    });
    assert!(asked.is_some(), "nobody was ended");
    assert!(server.metric(closed) < CLIENTS as f64, "as many as need be");
    healthy.round_trip();
}
