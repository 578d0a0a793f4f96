//! A history on the disk: clients go on after a restart, whatever ended the server, and an `ack` says what it promises.

use serde_json::json;
use tidewire::wire::proto::sample::Value;

use crate::support::{Client, Options, Process, metric, samples, wait_for};

fn start(dir: &std::path::Path, more: &[&str]) -> Process {
    let dir = format!("history.dir={}", dir.display());
    let age = "history.age_max_ms=600000";
    Process::start(&[&[dir.as_str(), age, "workers=2"], more].concat())
}

fn client(server: &Process) -> Client {
    Client::connect(server.address, &Options::default())
}

fn publish(publisher: &mut Client, channel: u32, from: u64, to: u64) -> serde_json::Value {
    publisher.publish_acked(channel, (from..=to).map(|value| Value::Integer(value.cast_signed())))
}

/// What a client gets that has everything up to a cursor: the answer's entry, and the values.
fn resume(server: &Process, cursor: &str) -> (serde_json::Value, Vec<i64>) {
    let mut viewer = client(server);
    let entry = viewer.subscribe("a", &json!({"since": cursor}))["channels"][0].clone();
    viewer.event("live");
    let mut values = Vec::new();
    while let Some(frame) = viewer.take_frame() {
        for (_, sample) in samples(&frame) {
            let Some(Value::Integer(value)) = sample.value else { panic!("{sample:?}") };
            values.push(value);
        }
    }
    (entry, values)
}

#[test]
fn a_restart_is_no_outage() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &[]);
    let mut publisher = client(&server);
    let channel = publisher.advertise("a");
    let ack = publish(&mut publisher, channel, 1, 5);
    assert_eq!((&ack["guarantee"], &ack["seq"]), (&json!("durable"), &json!(1)), "{ack}");
    let epoch = publisher.request(json!({"type": "history", "channel": "a"}))["streams"][0]["epoch"].clone();
    server.signal("TERM");
    assert!(server.wait().0.success());

    let server = start(dir.path(), &[]);
    let (entry, values) = resume(&server, &format!("{epoch}:2"));
    assert_eq!((&entry["epoch"], &entry["replay"]["outcome"]), (&epoch, &json!("replayed")), "{entry}");
    assert_eq!(values, [3, 4, 5]);
    let mut publisher = client(&server);
    let channel = publisher.advertise("a");
    let ack = publish(&mut publisher, channel, 6, 6);
    assert_eq!((&ack["guarantee"], &ack["seq"]), (&json!("durable"), &json!(6)), "{ack}");
}

#[test]
fn a_killed_server_uses_no_sequence_twice_and_remembers_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut cursor: Option<String> = None;
    let mut next = 1;
    for round in 0..4 {
        let mut server = start(dir.path(), &[]);
        if let Some(cursor) = &cursor {
            let (entry, values) = resume(&server, cursor);
            assert_eq!(entry["replay"]["outcome"], "replayed", "{round}: {entry}");
            let acknowledged: Vec<_> = (next - 2..next).map(u64::cast_signed).collect();
            assert_eq!(values[..2], acknowledged, "{round}");
        }
        let mut publisher = client(&server);
        let channel = publisher.advertise("a");
        let mut epoch = 0;
        for value in next..next + 3 {
            let ack = publish(&mut publisher, channel, value, value);
            assert_eq!(
                (&ack["guarantee"], &ack["seq"]),
                (&json!("durable"), &json!(value)),
                "{round}: {ack}"
            );
            let answer = publisher.request(json!({"type": "history", "channel": "a"}));
            epoch = answer["streams"][0]["epoch"].as_u64().unwrap();
        }
        let old = cursor.replace(format!("{epoch}:{next}"));
        assert!(!old.is_some_and(|old| old.starts_with(&format!("{epoch}:"))), "another life");
        next += 3;
        server.signal("KILL");
        server.wait();
    }
}

#[test]
fn a_disk_that_is_full_is_told_and_costs_no_subscriber_anything() {
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("history.dir={}", dir.path().display());
    let server = Process::start_without_size_signal(&[&folder, "workers=2"]);
    let mut publisher = client(&server);
    let channel = publisher.advertise("a");
    assert_eq!(publish(&mut publisher, channel, 1, 1)["guarantee"], "durable");
    let mut viewer = client(&server);
    viewer.subscribe("a", &json!({}));
    // No file may grow any more.
    server.limit_files(1);
    let mut value = 1;
    wait_for("an ack that promises less", || {
        value += 1;
        let ack = publish(&mut publisher, channel, value, value);
        (ack["guarantee"] == "accepted").then_some(())
    });
    let mut seen = 1;
    while seen < value {
        seen += samples(&viewer.frame()).count() as u64;
    }
    assert!(metric(server.address, "tidewire_history_store_degraded") > 0.0);
    server.limit_files(1 << 40);
    wait_for("an ack that promises all again", || {
        value += 1;
        let ack = publish(&mut publisher, channel, value, value);
        (ack["guarantee"] == "durable").then_some(())
    });
    assert!(metric(server.address, "tidewire_history_store_degraded") < 1.0);
}

#[test]
fn a_folder_that_cannot_be_used_is_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidewire"))
        .args(["--listen", "127.0.0.1:0", "--set", &format!("history.dir={}", file.path().display())])
        .env_clear()
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = error.lines().filter(|line| line.contains("history.dir")).collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(!output.status.success() && !error.contains("panicked"), "{error}");
}
