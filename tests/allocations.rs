//! What memory deliveries and connections take. A delivery allocates nothing: a frame may (its buffer, its counts), but with
//! twice the subscribers it is the same. Counted on this thread, through the hub, the outboxes and the writer.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tidewire::config::Config;
use tidewire::connection::{self, Upgraded, Wanted};
use tidewire::hub::router::Router;
use tidewire::peer::{Listener, Peer};
use tidewire::worker::{Shared, Worker};

#[path = "../benches/fanout/room.rs"]
mod room;

use room::{Drain, Room};

#[test]
fn a_delivery_does_not_allocate() {
    for drain in Drain::ALL {
        for samples in [1, 32] {
            let count = |subscribers| {
                let mut room = Room::new(subscribers, samples);
                let deliveries = room.deliveries();
                assert_eq!(deliveries, (samples * subscribers) as u64);
                allocation_counter::measure(|| (0..10).for_each(|_| room.round(drain))).count_total
            };
            let counts = [1, 20, 40].map(count);
            assert!(counts[0] > 0, "the frames themselves are counted");
            assert_eq!(counts, [counts[0]; 3], "{drain:?}, {samples} samples");
        }
    }
}

/// Every connection has one for life. What only its beginning or its end needs must not be in it, such as a buffer.
#[test]
fn the_future_of_a_connection_is_small() {
    const BYTES_MAX: usize = 1_024;
    let config = Arc::new(Config::default());
    let (router, _) = Router::new(1, config.channel.channels_total_max);
    let worker = Rc::new(Worker::new(0, Arc::new(Shared::new(config, router))));
    let (io, _peer) = tokio::io::duplex(1);
    let peer = Rc::new(Peer::at(([127, 0, 0, 1], 1).into(), Listener::Public));
    let upgraded = Upgraded { peer, wanted: Wanted::Echo, answer: Vec::new(), leftover: Bytes::new() };
    let bytes = size_of_val(&connection::run(worker, io, upgraded));
    assert!(bytes <= BYTES_MAX, "{bytes} bytes, at most {BYTES_MAX}");
}
