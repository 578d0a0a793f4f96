//! Bad input beside a client that behaves: whatever one peer sends, the other misses nothing, and memory stays where it was.

use serde_json::json;

use crate::support::{
    Client, Handshake, Message, Options, Peer, Process, TestServer, http, masked, wait_for,
};

/// What a crowd of bad peers may cost for a moment, in resident memory.
const GROWTH_BYTES_MAX: u64 = 10 << 20;

/// Bytes of a header that announces `length` in 64 bits, and nothing behind it.
fn announce(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xFF][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat()
}

/// A publisher that subscribes to itself.
struct Healthy {
    client: Client,
    channel: u32,
    published: u64,
}

impl Healthy {
    fn new(mut client: Client) -> Self {
        let channel = client.advertise("healthy");
        client.subscribe("healthy", &json!({"max_delay_ms": 0, "max_age_ms": 60_000}));
        Self { client, channel, published: 0 }
    }

    /// One more sample comes, and it is the next one.
    fn check(&mut self, what: &str) {
        self.published += 1;
        self.client.publish(self.channel, &[0.0]);
        assert_eq!(self.client.frame().seq, self.published, "{what}");
    }
}

/// What a peer says, and how that ends.
struct Row {
    what: &'static str,
    /// Whether it asks for the WebSocket first.
    upgrade: bool,
    bytes: Vec<u8>,
    /// Statuses that will do instead of an upgrade; 0 is the end without a word.
    statuses: &'static [u16],
    /// Close codes that will do after it.
    codes: &'static [u16],
}

fn http_row(what: &'static str, bytes: &[u8], statuses: &'static [u16]) -> Row {
    Row { what, upgrade: false, bytes: bytes.to_vec(), statuses, codes: &[] }
}

fn frame_row(what: &'static str, bytes: Vec<u8>, codes: &'static [u16]) -> Row {
    Row { what, upgrade: true, bytes, statuses: &[], codes }
}

#[test]
fn bad_input_ends_one_connection_and_touches_no_other() {
    let server = TestServer::start(|_| {});
    let mut healthy = Healthy::new(server.client());
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let body =
        |header: &str| [&Handshake::new("/ws").with("X", header).bytes()[..], smuggled.as_bytes()].concat();
    let nothing_behind = |head: &str| format!("{head}\r\n\r\n").into_bytes();
    let rows = [
        http_row("the preface of HTTP/2 in clear", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 400, 505]),
        http_row("SOCKS", b"\x05\x01\x00", &[0, 400]),
        http_row("only line ends", b"\r\n\r\n\r\n\r\n", &[0, 400]),
        http_row("a NUL in the path", b"GET /w\0s HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
        http_row(
            "a target of another form",
            &nothing_behind("GET ws://x/ws HTTP/1.1\r\nHost: x"),
            &[400, 404, 426],
        ),
        http_row("a method that is not one", &nothing_behind("G@T /ws HTTP/1.1\r\nHost: x"), &[400]),
        http_row("a version that is not one", &nothing_behind("GET /ws HTTP/9.9\r\nHost: x"), &[400, 505]),
        http_row("a head inside a value", &body("a\r\n\r\n"), &[101, 400]),
        http_row(
            "a chunked body of a page",
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
            &[200, 400],
        ),
        http_row(
            "a body that is promised to a page",
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
            &[200, 400, 413],
        ),
        frame_row(
            "a ping of 127 bytes in fragments",
            [masked(0x09, b"x"), masked(0x80, b"x")].concat(),
            &[1002],
        ),
        frame_row("a close of one byte", masked(0x88, b"\x03"), &[1002]),
        frame_row(
            "a close inside a message, with half a character",
            [masked(0x01, b"\xE2\x82"), masked(0x88, b"\x03\xE8\xE2\x82")].concat(),
            &[1007],
        ),
        frame_row(
            "a reserved bit in a continuation",
            [masked(0x01, b"a"), masked(0xC0, b"b")].concat(),
            &[1002],
        ),
        frame_row("a reserved bit in a pong", masked(0xAA, b""), &[1002]),
        frame_row("an unmasked pong", b"\x8A\x00".to_vec(), &[1002]),
        frame_row("an unmasked close", b"\x88\x02\x03\xE8".to_vec(), &[1002]),
        frame_row("a ping announced with 2^63 bytes", announce(0x89, 1 << 63), &[1002]),
        frame_row("a ping announced with 64 KiB", announce(0x89, 64 << 10), &[1002]),
        frame_row("all bits of the length", announce(0x82, u64::MAX), &[1002, 1009]),
        frame_row(
            "too much in a continuation",
            [masked(0x02, b"a"), announce(0x80, 64 << 10)].concat(),
            &[1009],
        ),
        frame_row(
            "two messages at once, the second bad",
            [masked(0x89, b"x"), b"\x83\x80".to_vec()].concat(),
            &[1002],
        ),
    ];
    for Row { what, upgrade, bytes, statuses, codes } in rows {
        let mut peer =
            if upgrade { Peer::upgraded(server.address, "/ws") } else { Peer::connect(server.address) };
        // The server may end it before all has been taken.
        drop(peer.try_write(&bytes));
        if upgrade {
            let code = peer.close_code();
            assert!(code.is_some_and(|code| codes.contains(&code)), "{what}: {code:?}");
        } else {
            if statuses.contains(&0) {
                // Or the server would wait for more.
                peer.finish();
            }
            let status = peer.try_response().map_or(0, |response| response.status);
            assert!(statuses.contains(&status), "{what}: {status}");
        }
        healthy.check(what);
        assert_eq!(http(server.address, "/healthz").status, 200, "{what}");
    }
    server.wait_for_metric("tidewire_connections", 1.0);
    assert_eq!(server.metric("tidewire_connections_closed_total{reason=\"internal\"}"), 0.0);
}

/// The server's memory when it has answered a few times: then the allocator has what it needs.
fn warm(server: &Process, field: &str) -> u64 {
    for _ in 0..20 {
        assert_eq!(http(server.address, "/metrics").status, 200);
    }
    server.memory(field)
}

#[test]
fn what_is_only_announced_costs_nothing() {
    const MESSAGE_BYTES_MAX: u64 = 8 << 20;
    const PEERS: usize = 100;
    let server = Process::start(&[
        &format!("inbound.message_bytes_max={MESSAGE_BYTES_MAX}"),
        "outbox.data_bytes_max=1073741824",
        "inbound.message_timeout_ms=600000",
    ]);
    let mut healthy = Healthy::new(Client::connect(server.address, &Options::default()));
    let mut peers: Vec<Peer> = (0..PEERS).map(|_| Peer::upgraded(server.address, "/ws")).collect();
    // Reserved memory: what nobody has written to yet is not resident, and still promised to a peer.
    let base = warm(&server, "VmData");
    for (n, peer) in peers.iter_mut().enumerate() {
        // A whole message, and the first piece of one; a pong says that the server has seen what came before it.
        peer.write(&masked(0x89, b"seen"));
        peer.write(&announce(if n % 2 == 0 { 0x82 } else { 0x02 }, MESSAGE_BYTES_MAX));
        // One byte, so that there is something to put somewhere.
        peer.write(b"x");
        assert_eq!(peer.answer(), Message::Pong(b"seen".to_vec()));
    }
    healthy.check("beside announcements");
    let grown = server.memory("VmData").saturating_sub(base);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes for {PEERS} announcements");
}

#[test]
fn fragments_without_end_cost_nothing_and_delay_nobody() {
    const FRAGMENTS: usize = 400_000;
    let server = Process::start(&["server.close_timeout_ms=100"]);
    let mut healthy = Healthy::new(Client::connect(server.address, &Options::default()));
    let base = warm(&server, "VmRSS");
    let mut ended = 0.0;
    for (what, payload) in [("empty", &b""[..]), ("of one byte", b"x")] {
        let mut peer = Peer::upgraded(server.address, "/ws");
        peer.write(&masked(0x02, payload));
        let many = masked(0x00, payload).repeat(1_000);
        for _ in 0..FRAGMENTS / 1_000 {
            // It is ended long before the last of them.
            if peer.try_write(&many).is_err() {
                break;
            }
            healthy.check(what);
        }
        ended += 1.0;
        wait_for(what, || (server.closed("abuse") == ended).then_some(()));
        healthy.check(what);
    }
    let grown = server.memory("VmRSS").saturating_sub(base);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes for fragments");
}

#[test]
fn a_dribble_that_goes_on_and_on_is_ended() {
    let server = TestServer::start(|config| {
        config.inbound.message_timeout = std::time::Duration::from_millis(300);
    });
    let mut healthy = Healthy::new(server.client());
    let mut peer = Peer::upgraded(server.address, "/ws");
    // Far more than comes in the time that a message has; each byte is some progress.
    peer.write(&announce(0x82, 64 << 10));
    let closed = "tidewire_connections_closed_total{reason=\"abuse\"}";
    wait_for("the end of the dribble", || {
        drop(peer.try_write(b"x"));
        healthy.check("beside a dribble");
        (server.metric(closed) == 1.0).then_some(())
    });
}

#[test]
fn many_come_and_go_and_nothing_stays() {
    const VISITS: usize = 10_000;
    let server = Process::start(&["server.close_timeout_ms=100"]);
    let mut healthy = Healthy::new(Client::connect(server.address, &Options::default()));
    let settled = || {
        wait_for("only the healthy one", || (server.connections().len() == 1).then(|| server.descriptors()))
    };
    let base = settled();
    for n in 0..VISITS {
        let peer = Peer::connect(server.address);
        // Without a TIME_WAIT for each here, or the machine runs out of ports.
        peer.reset();
        if n % 500 == 0 {
            healthy.check("beside those who come and go");
        }
    }
    wait_for("the descriptors", || (settled() <= base).then_some(()));
    healthy.check("after they have gone");
}

/// Names are the clients' to choose, so none of them may be a label.
#[test]
fn metrics_do_not_grow_with_names() {
    let server = TestServer::start(|_| {});
    let series = || String::from_utf8(http(server.pages, "/metrics").body).unwrap().lines().count();
    let before = series();
    let mut clients: Vec<Client> = (0..2).map(|_| server.client()).collect();
    for (c, client) in clients.iter_mut().enumerate() {
        for n in 0..500 {
            let channel = client.advertise(&format!("device-{c}-{n}.temperature"));
            client.publish(channel, &[1.0]);
        }
        client.round_trip();
    }
    let listed = server.json("/api/channels");
    // The server's own are there, too, once it has had the time to publish them.
    let names =
        listed["channels"].as_array().unwrap().iter().map(|channel| channel["name"].as_str().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("device-")).count(), 1_000);
    assert_eq!(series(), before);
}
