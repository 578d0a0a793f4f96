//! What holds while nothing fails.

use std::time::{Duration, Instant};

use serde_json::json;
use tidewire::broker::Kind;
use tidewire::wire::Codec;

use crate::follower::{Follower, Publisher, numbers};
use crate::rig::Rig;
use crate::support::{Handshake, Options, Peer, ask, issuer, wait_for};

pub(crate) fn by_name_and_by_pattern(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let mut by_name = Follower::new(other.address(), "t.x");
    let mut by_pattern = Follower::new(other.address(), "t.*");
    let mut publisher = Publisher::new(one.client(), "t.x");
    publisher.publish(1);
    by_pattern.until("the channel", |all| all.of(publisher.epoch).is_some());
    for _ in 0..20 {
        publisher.publish(50);
    }
    let stream = by_name.close(publisher.epoch, publisher.last);
    assert_eq!((stream.first, &stream.values), (1, &numbers(1, 1_001)), "a name is subscribed to beforehand");
    let stream = by_pattern.close(publisher.epoch, publisher.last);
    assert_eq!(stream.values, numbers(stream.first, 1_001));
    assert_eq!((by_name.filled(), by_pattern.filled()), (1, 1));
    "1,001 of 1,001, in order".into()
}

pub(crate) fn two_publishers_are_two_streams(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, two, third] = [rig.node(), rig.node(), rig.node()];
    let mut follower = Follower::new(third.address(), "t.x");
    let mut publishers = [Publisher::new(one.client(), "t.x"), Publisher::new(two.client(), "t.x")];
    for _ in 0..20 {
        publishers.iter_mut().for_each(|publisher| publisher.publish(10));
    }
    for publisher in &publishers {
        assert_eq!(follower.close(publisher.epoch, 200).values, numbers(1, 200));
    }
    assert_eq!(follower.filled(), 2);
    "two streams of 200 each, each exact".into()
}

pub(crate) fn nothing_comes_back(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let [mut here, mut there] = [&one, &other].map(|node| Follower::new(node.address(), "t.x"));
    let mut publisher = Publisher::new(one.client(), "t.x");
    for _ in 0..20 {
        publisher.publish(10);
    }
    there.close(publisher.epoch, 200);
    here.close(publisher.epoch, 200);
    here.client.round_trip();
    assert_eq!((here.filled(), there.filled()), (1, 1));
    assert_eq!(one.metric("tidewire_relays_received_total"), 0.0);
    assert_eq!(other.metric("tidewire_relays_sent_total"), 0.0, "what comes is not passed on");
    "once".into()
}

pub(crate) fn interest_ends(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let mut follower = Follower::new(other.address(), "t.x");
    follower.subscribe("beacon", &json!({}));
    let mut publisher = Publisher::new(one.client(), "t.x");
    let mut beacon = Publisher::new(one.client(), "beacon");
    publisher.publish(1);
    follower.close(publisher.epoch, 1);
    follower.client.unsubscribe("t.x");
    wait_for("the end of interest", || {
        let [received, sent] = [&other, &one].map(|node| {
            let side = if std::ptr::eq(node, &other) { "received" } else { "sent" };
            node.metric(&format!("tidewire_relays_{side}_total"))
        });
        publisher.publish(1);
        wait_for("what goes out", || (one.metric("tidewire_relays_sent_total") > sent).then_some(()));
        beacon.publish(1);
        // Of one connection to the broker: what was published before is there before, if it comes.
        follower.close(beacon.epoch, beacon.last);
        (other.metric("tidewire_relays_received_total") == received + 1.0).then_some(())
    });
    follower.subscribe("t.x", &json!({}));
    publisher.publish(1);
    follower.until("what is published again", |all| {
        all.streams
            .values()
            .any(|stream| stream.values.last() == Some(&(publisher.last as f64)) && stream.name == "t.x")
    });
    "ended, and restored on the next `subscribe`".into()
}

pub(crate) fn inboxes_of_users(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let options = Options { user: Some("ada"), ..Options::default() };
    let mut ada = Follower::with(other.address(), &options, "$user.ada", &json!({}));
    let mut publisher = Publisher::new(one.client(), "$user.ada");
    publisher.publish(3);
    assert_eq!(ada.close(publisher.epoch, 3).values, [1.0, 2.0, 3.0]);
    "received".into()
}

pub(crate) fn revocations(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let auth = format!("[auth]\nsecret = \"{}\"\n", issuer::SECRET);
    let [one, other] = [(); 2].map(|()| rig.node_with(&auth, ""));
    one.wait_until_ready();
    other.wait_until_ready();
    let token = issuer::with_rights("mallory", &json!({"subscribe": ["t.>"]}));
    let options = Options { token: Some(&token), ..Options::default() };
    let mut follower = Follower::with(other.address(), &options, "t.x", &json!({}));
    let admin = format!("Bearer {}", issuer::with_rights("operator", &json!({"admin": [">"]})));
    let headers = [("Content-Type", "application/json"), ("Authorization", &*admin)];
    let answer = ask(one.address(), "POST", "/api/revoke", &headers, "{\"sub\":\"mallory\"}");
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8(answer.body));
    assert_eq!(follower.client.error(), "forbidden");
    assert_eq!(follower.client.close_code(), Some(4403));
    let late = rig.node_with(&auth, "");
    late.wait_until_ready();
    for node in [&other, &late] {
        wait_for("a refusal", || {
            let mut peer = Peer::connect(node.address());
            peer.write(&Handshake::new("/ws").with("Authorization", &format!("Bearer {token}")).bytes());
            (peer.response().status == 403).then_some(())
        });
    }
    "ended at once; refused by a server that started later".into()
}

pub(crate) fn other_codecs_and_fewer_samples(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let json_codec = Options { codec: Codec::Json, ..Options::default() };
    let mut texts = Follower::with(other.address(), &json_codec, "t.x", &json!({}));
    let msgpack = Options { codec: Codec::MessagePack, ..Options::default() };
    let mut packs = Follower::with(other.address(), &msgpack, "t.x", &json!({}));
    let plain = Options::default();
    let mut thin = Follower::with(other.address(), &plain, "t.x", &json!({"max_rate_hz": 5.0}));
    let mut latest = Follower::with(other.address(), &json_codec, "t.x", &json!({"policy": "latest"}));
    let mut publisher = Publisher::new(one.client(), "t.x");
    for _ in 0..100 {
        publisher.publish(10);
    }
    for all in [&mut texts, &mut packs] {
        assert_eq!(all.close(publisher.epoch, 1_000).values, numbers(1, 1_000));
    }
    for few in [&mut thin, &mut latest] {
        few.until("a sample", |all| all.of(publisher.epoch).is_some_and(|stream| !stream.values.is_empty()));
        let stream = few.of(publisher.epoch).unwrap();
        let sent: Vec<f64> = stream.tally.received.iter().map(|seq| *seq as f64).collect();
        assert_eq!(stream.values, sent, "the samples that were chosen are the publisher's");
        assert!(stream.values.len() < 1_000);
    }
    "JSON and MessagePack exact, `max_rate_hz` and `latest` thinned".into()
}

pub(crate) fn few_messages_for_many_samples(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let mut follower = Follower::new(other.address(), "t.x");
    let mut publisher = Publisher::new(one.client(), "t.x");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        for _ in 0..10 {
            publisher.publish(10);
        }
        // About a flush window later.
        follower.close(publisher.epoch, publisher.last);
    }
    let seconds = start.elapsed().as_secs_f64();
    let sent = one.metric("tidewire_relays_sent_total");
    assert!(sent <= seconds * 130.0 + 10.0, "{sent} messages in {seconds} s");
    format!("{:.0} messages/s for {:.0} samples/s", sent / seconds, publisher.last as f64 / seconds)
}

pub(crate) fn resume_on_another_server(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other, third] = [rig.node(), rig.node(), rig.node()];
    let mut follower = Follower::new(other.address(), "t.x");
    let mut watcher = Follower::new(other.address(), "t.x");
    let mut publisher = Publisher::new(one.client(), "t.x");
    publisher.publish(20);
    let cursor = follower.close(publisher.epoch, 20).cursor();
    drop(follower);
    publisher.publish(30);
    // It has gone through the broker.
    watcher.close(publisher.epoch, 50);
    let since = json!({ "since": cursor });
    let plain = Options::default();
    let mut resumed = Follower::with(third.address(), &plain, "t.x", &since);
    publisher.publish(10);
    resumed.close(publisher.epoch, 60);
    let alive = told(&resumed, publisher.epoch, rig.keeps());
    watcher.close(publisher.epoch, 60);
    let epoch = publisher.epoch;
    drop(publisher);
    one.process.signal("KILL");
    let fourth = rig.node();
    let mut resumed = Follower::with(fourth.address(), &plain, "t.x", &since);
    if rig.keeps() {
        resumed.close(epoch, 60);
        let dead = told(&resumed, epoch, true);
        return format!("{alive}; with its publisher's server dead {dead}");
    }
    resumed.client.round_trip();
    assert!(resumed.of(epoch).is_none(), "nothing of it is left");
    format!("{alive}; with its publisher's server dead there is no such stream")
}

pub(crate) fn resume_ahead_of_the_other_server(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let [mut here, mut there] = [&one, &other].map(|node| Follower::new(node.address(), "t.x"));
    let mut publisher = Publisher::new(one.client(), "t.x");
    publisher.publish(10);
    there.close(publisher.epoch, 10);
    // What follows is on its way to the other server, for as long as the broker stands still.
    rig.broker.suspend();
    publisher.publish(50);
    let cursor = here.close(publisher.epoch, 60).cursor();
    let mut resumed =
        Follower::with(other.address(), &Options::default(), "t.x", &json!({ "since": cursor }));
    let stream = resumed.of(publisher.epoch).unwrap();
    assert_eq!((stream.outcome.as_deref(), stream.first), (Some("replayed"), 61));
    rig.broker.resume();
    one.wait_until_ready();
    other.wait_until_ready();
    publisher.publish(10);
    let stream = resumed.close(publisher.epoch, 70);
    assert_eq!(stream.values, numbers(61, 70), "nothing that it has comes again");
    there.close(publisher.epoch, 70);
    "`replayed`: nothing twice".into()
}

/// What a follower that had 20 of 60 was told and got.
fn told(resumed: &Follower, epoch: u64, keeps: bool) -> String {
    let stream = resumed.of(epoch).unwrap();
    let outcome = stream.outcome.clone().unwrap_or_else(|| "nothing".to_owned());
    if keeps {
        assert_eq!((&*outcome, stream.first, stream.tally.lost()), ("replayed", 21, 0), "{stream:?}");
        assert_eq!(stream.values, numbers(21, 60));
    } else {
        let honest = match &*outcome {
            "replayed" => stream.first == 21 && stream.tally.lost() == 0,
            "partial" => stream.first == 21 && stream.tally.lost() > 0,
            "reset" => true,
            _ => false,
        };
        assert!(honest, "{stream:?}");
    }
    format!("`{outcome}`, {} of 40, {} told lost", stream.values.len(), stream.tally.lost())
}
