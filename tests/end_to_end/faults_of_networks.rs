//! What networks do to connections: ends in the middle, silence without an end, heads that never come whole.

use serde_json::json;

use crate::support::{
    Client, Handshake, Message, Options, Peer, Process, Relay, http, masked, publish_message, wait_for,
};

/// A publisher, and a subscriber that misses nothing.
struct Healthy {
    publisher: Client,
    channel: u32,
    viewer: Client,
    published: u64,
}

impl Healthy {
    fn new(server: &Process) -> Self {
        let mut publisher = Client::connect(server.address, &Options::default());
        let channel = publisher.advertise("healthy");
        let mut viewer = Client::connect(server.address, &Options::default());
        viewer.subscribe("healthy", &json!({"max_delay_ms": 0, "max_age_ms": 60_000}));
        Self { publisher, channel, viewer, published: 0 }
    }

    /// One more sample comes, and it is the next one.
    fn check(&mut self, what: &str) {
        self.published += 1;
        self.publisher.publish(self.channel, &[0.0]);
        let frame = self.viewer.frame();
        assert_eq!((frame.seq, frame.count), (self.published, 1), "{what}");
        assert!(self.viewer.take_events().iter().all(|event| event["type"] != "gap"), "{what}");
    }
}

/// Descriptors of a server when only those are there who stay.
fn settled(server: &Process, stay: usize) -> usize {
    wait_for("those who stay", || (server.connections().len() == stay).then(|| server.descriptors()))
}

#[test]
fn resets_in_the_middle_leave_nothing_and_hurt_nobody() {
    const TIMES: usize = 200;
    let mut server = Process::start(&["server.close_timeout_ms=200"]);
    let mut healthy = Healthy::new(&server);
    let base = settled(&server, 2);
    let head = Handshake::new("/ws").bytes();
    let publish = masked(0x82, &publish_message(healthy.channel, 1.0));
    for n in 0..TIMES {
        // At another byte each time.
        let mut in_head = Peer::connect(server.address);
        in_head.write(&head[..1 + n % (head.len() - 1)]);
        in_head.reset();
        let mut in_frame = Peer::upgraded(server.address, "/ws");
        in_frame.write(&publish[..1 + n % (publish.len() - 1)]);
        in_frame.reset();
        if n % 10 == 0 {
            healthy.check("while others reset");
        }
    }
    wait_for("the descriptors", || (settled(&server, 2) <= base).then_some(()));
    healthy.check("after all");
    assert_eq!((server.closed("internal"), server.status()), (0.0, None));
    // They were connections, each of them, and the server knows how they ended.
    wait_for("their ends", || (server.closed("peer_gone") >= TIMES as f64).then_some(()));
}

#[test]
fn a_wire_that_breaks_without_an_end_is_noticed() {
    let server = Process::start(&[
        "server.ping_interval_ms=200",
        "server.pong_timeout_ms=2000",
        "server.close_timeout_ms=100",
    ]);
    let relay = Relay::start(server.address);
    let mut far_publisher = Client::connect(relay.address, &Options::default());
    let far_channel = far_publisher.advertise("far");
    let mut far_viewer = Client::connect(relay.address, &Options::default());
    far_viewer.subscribe("far", &json!({"max_delay_ms": 0}));
    far_publisher.publish(far_channel, &[1.0]);
    assert_eq!(far_viewer.frame().seq, 1, "the wire is whole");
    let mut near = Client::connect(server.address, &Options::default());
    near.subscribe("far", &json!({"max_delay_ms": 0}));
    let pages = server.descriptors();
    relay.break_off();
    // Its last words go nowhere.
    far_publisher.publish(far_channel, &[2.0]);
    wait_for("the silence", || {
        // The near one answers pings all the while.
        near.round_trip();
        (server.closed("silent") == 2.0).then_some(())
    });
    // What the far ends held at the server is free, although the relay still holds its own.
    wait_for("the descriptors", || (server.descriptors() <= pages - 2).then_some(()));
    near.round_trip();
    assert_eq!(near.take_frame(), None, "nothing came of what was lost on the wire");
    let again = near.advertise("far");
    near.publish(again, &[3.0]);
    let frame = near.frame();
    assert_eq!((frame.seq, frame.channel), (2, far_channel), "the sequence goes on, without a hole");
    drop((far_publisher, far_viewer));
}

#[test]
fn heads_that_stall_delay_nobody() {
    const STALLED: usize = 300;
    let server =
        Process::start(&["server.handshake_timeout_ms=600000", "server.first_byte_timeout_ms=600000"]);
    let base =
        wait_for("a page", || (http(server.address, "/healthz").status == 200).then(|| server.descriptors()));
    let head = Handshake::new("/ws").bytes();
    let stalled: Vec<Peer> = (0..STALLED)
        .map(|n| {
            let mut peer = Peer::connect(server.address);
            // A third says nothing at all, a third half of it, a third all but the last byte.
            peer.write(&head[..[0, head.len() / 2, head.len() - 1][n % 3]]);
            peer
        })
        .collect();
    // The page's socket may have been counted.
    wait_for("all of them", || (server.descriptors() >= base + STALLED - 1).then_some(()));
    let mut healthy = Healthy::new(&server);
    healthy.check("beside heads that stall");
    assert_eq!(http(server.address, "/healthz").status, 200);
    // And they are served as soon as they go on.
    let mut last = stalled.into_iter().nth(STALLED - 1).unwrap();
    last.write(&head[head.len() - 1..]);
    assert_eq!(last.response().status, 101);
    assert!(matches!(last.message(), Message::Text(text) if text.contains("\"welcome\"")));
    healthy.check("after they have gone");
    drop((last, healthy));
    wait_for("the descriptors", || (settled(&server, 0) <= base).then_some(()));
}
