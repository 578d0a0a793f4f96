//! What the machine does to a server, by the machine's own means.

use serde_json::json;

use crate::support::{Client, Handshake, Options, Peer, Process, wait_for};

#[test]
fn a_server_without_descriptors_serves_on_and_recovers() {
    const DESCRIPTORS_MAX: usize = 64;
    let server = Process::start(&["workers=1"]);
    let mut publisher = Client::connect(server.address, &Options::default());
    let channel = publisher.advertise("a");
    let mut viewer = Client::connect(server.address, &Options::default());
    viewer.subscribe("a", &json!({"max_delay_ms": 0}));
    server.limit_descriptors(DESCRIPTORS_MAX);
    let crowd: Vec<Peer> = (0..100)
        .map(|_| {
            // Those that are not accepted wait in the kernel's queue, and so does what they write.
            let mut peer = Peer::connect(server.address);
            drop(peer.try_write(&Handshake::new("/ws").bytes()));
            peer
        })
        .collect();
    wait_for("the last descriptor", || (server.descriptors() >= DESCRIPTORS_MAX).then_some(()));
    for n in 1..=3 {
        publisher.publish(channel, &[f64::from(n)]);
        assert_eq!(viewer.frame().seq, u64::try_from(n).unwrap(), "who is in misses nothing");
    }
    drop(crowd);
    let mut late = Client::connect(server.address, &Options::default());
    late.subscribe("a", &json!({"max_delay_ms": 0}));
    publisher.publish(channel, &[4.0]);
    assert_eq!((late.frame().seq, viewer.frame().seq), (4, 4));
}
