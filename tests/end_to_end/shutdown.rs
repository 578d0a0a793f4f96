//! The end of the real binary by a signal: everybody is told, what was taken in is sent, and it ends in time.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewire::wire::proto::sample;

use crate::support::{Client, Handshake, Message, Options, Peer, Process, Tally, TestServer, http, wait_for};

#[test]
fn a_signal_drains_the_server() {
    for signal in ["TERM", "INT"] {
        let mut server = Process::start(&[
            "server.drain_timeout_ms=60000",
            "server.close_timeout_ms=60000",
            "workers=2",
            "batch.window_ms=5000",
            "batch.window_max_ms=5000",
        ]);
        let mut publisher = Client::connect(server.address, &Options::default());
        let channel = publisher.advertise("a");
        let mut viewers: Vec<_> =
            (0..4).map(|_| Client::connect(server.address, &Options::default())).collect();
        let mut epoch = Value::Null;
        for viewer in &mut viewers {
            let subscribed = viewer.subscribe("a", &json!({"max_delay_ms": 5_000}));
            epoch = subscribed["channels"][0]["epoch"].clone();
        }
        let mut echo = Peer::upgraded(server.address, "/echo");
        // The first sample goes at once, the others would wait for the window.
        let mut last = 0;
        for n in 0..50 {
            let ack = publisher.publish_acked(channel, [sample::Value::Number(f64::from(n))]);
            last = ack["seq"].as_u64().unwrap();
        }
        // Does not read what it is told, so the drain has to wait for it.
        let stays = Client::connect(server.address, &Options::default());
        assert_eq!(http(server.address, "/readyz").status, 200);
        server.signal(signal);
        wait_for("the drain", || (http(server.address, "/readyz").status == 503).then_some(()));
        assert_eq!(http(server.address, "/healthz").status, 200, "it is alive all the while");
        let mut late = Peer::connect(server.address);
        late.write(&Handshake::new("/ws").bytes());
        let refused = late.response();
        assert_eq!((refused.status, &*refused.error_code()), (503, "drain"));
        assert!(refused.header("retry-after").is_some());
        for viewer in &mut viewers {
            assert_eq!(viewer.close_code(), Some(1001));
            let mut tally = Tally::default();
            while let Some(frame) = viewer.take_frame() {
                tally.take(&frame);
            }
            tally.assert_exact(1, last);
            let goodbye = viewer.event("goodbye");
            assert_eq!(goodbye["reason"], "drain");
            assert!((1_000..=2_000).contains(&goodbye["reconnect_after_ms"].as_u64().unwrap()));
            let cursor = format!("{epoch}:{last}");
            assert_eq!(
                goodbye["positions"],
                json!([{"channel": channel, "name": "a", "epoch": epoch, "seq": last, "cursor": cursor}])
            );
        }
        assert_eq!(publisher.close_code(), Some(1001));
        assert_eq!(
            echo.message(),
            Message::Close(Some(1001), "drain".to_owned()),
            "and nothing of the protocol"
        );
        drop((viewers, publisher, echo, stays));
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("cut off"), "{log}");
    }
}

#[test]
fn a_stuck_peer_does_not_stop_the_end() {
    let mut server = Process::start(&[
        "server.drain_timeout_ms=500",
        "server.close_timeout_ms=60000",
        "outbox.write_deadline_ms=60000",
    ]);
    let mut publisher = Client::connect(server.address, &Options::default());
    let channel = publisher.advertise("a");
    let mut stuck = Client::connect(server.address, &Options { small: true, ..Options::default() });
    stuck.subscribe("a", &json!({"max_delay_ms": 0, "policy": "drop_newest", "max_age_ms": 60_000}));
    wait_for("a full outbox", || {
        for _ in 0..20 {
            publisher.publish_acked(channel, [sample::Value::Text("x".repeat(32 << 10))]);
        }
        let rows: Value = serde_json::from_slice(&http(server.address, "/api/connections").body).unwrap();
        let rows = rows["connections"].as_array().unwrap();
        rows.iter().any(|row| row["dropped"].as_u64().unwrap() > 0).then_some(())
    });
    let start = Instant::now();
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("cut off"), "{log}");
    assert!(start.elapsed() < Duration::from_secs(20), "the peer was waited for");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Process::start(&["server.drain_timeout_ms=600000", "server.close_timeout_ms=600000"]);
    let _stays = Client::connect(server.address, &Options::default());
    server.signal("TERM");
    wait_for("the drain", || (http(server.address, "/readyz").status == 503).then_some(()));
    assert_eq!(server.status(), None);
    server.signal("INT");
    let (status, _) = server.wait();
    assert_eq!(status.code(), Some(130));
}

#[test]
fn a_server_in_a_program_ends_like_the_binary() {
    let mut server = TestServer::start(|config| config.workers = 2);
    let mut client = server.client();
    let mut echo = Peer::upgraded(server.address, "/echo");
    server.shut_down();
    assert_eq!(client.close_code(), Some(1001));
    assert_eq!(echo.close_code(), Some(1001));
}
