//! RFC 6455 after the upgrade: each violation gets its close code and the end of the stream, and no way of leaving leaves
//! anything behind.

use std::time::Duration;

use tidewire::wire::ws::FRAGMENTS_MAX;

use crate::support::{Handshake, Message, Peer, Process, TestServer, close, http, masked, metric, wait_for};

/// The default limit of a message.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A masked frame's header that announces `length` in 64 bits.
fn announce(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xFF][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat()
}

#[test]
fn each_violation_has_its_code() {
    let server = TestServer::start(|_| {});
    let mut rows: Vec<(String, Vec<u8>, u16)> = Vec::new();
    let mut row = |what: &str, bytes: Vec<u8>, code: u16| rows.push((what.to_owned(), bytes, code));
    row("unmasked", b"\x81\x02hi".to_vec(), 1002);
    for bit in [0xC1, 0xA1, 0x91, 0xC9] {
        row(&format!("reserved bit in {bit:x}"), masked(bit, b"x"), 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        row(&format!("opcode {opcode}"), masked(0x80 | opcode, b"x"), 1002);
    }
    for opcode in [0x8, 0x9, 0xA] {
        row(&format!("long control {opcode}"), masked(0x80 | opcode, &[b'x'; 126]), 1002);
        row(&format!("fragmented control {opcode}"), masked(opcode, b""), 1002);
    }
    row("orphan end", masked(0x80, b"x"), 1002);
    row("orphan middle", masked(0x00, b"x"), 1002);
    row("message inside a message", [masked(0x01, b"a"), masked(0x81, b"b")].concat(), 1002);
    row("begin inside a message", [masked(0x01, b"a"), masked(0x02, b"b")].concat(), 1002);
    for (what, text) in [
        ("invalid", &b"a\xFFb"[..]),
        ("overlong", b"\xC0\xAF"),
        ("surrogate", b"\xED\xA0\x80"),
        ("too large", b"\xF4\x90\x80\x80"),
        ("half a character", b"a\xE2\x82"),
    ] {
        row(&format!("text, {what}"), masked(0x81, text), 1007);
        row(&format!("close reason, {what}"), close(1000, text), 1007);
    }
    row("invalid text in fragments", [masked(0x01, b"\xE2"), masked(0x80, b"x")].concat(), 1007);
    row("invalid text, the rest to come", masked(0x01, b"\xFF"), 1007);
    row("half a close code", masked(0x88, b"\x03"), 1002);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        row(&format!("close code {code}"), close(code, b""), 1002);
    }
    let over = MESSAGE_BYTES_MAX as u64 + 1;
    row("one byte too many announced", announce(0x82, over), 1009);
    row("a great many bytes announced", announce(0x82, u64::from(u32::MAX) * 1_000), 1009);
    row("length 2^63", announce(0x82, 1 << 63), 1002);
    row("a length that is longer than need be", announce(0x82, 5), 1002);
    row("a short length in 16 bits", b"\x82\xFE\x00\x05\x01\x02\x03\x04".to_vec(), 1002);
    let half = vec![b'x'; MESSAGE_BYTES_MAX / 2];
    let pieces = [masked(0x02, &half), masked(0x00, &half), masked(0x80, b"x")].concat();
    row("fragments of one byte too many", pieces, 1009);
    let empty = masked(0x00, b"").repeat(usize::from(FRAGMENTS_MAX));
    row("too many fragments", [masked(0x02, b""), empty].concat(), 1008);

    for path in ["/ws", "/echo"] {
        for (what, bytes, code) in &rows {
            let mut peer = Peer::upgraded(server.address, path);
            peer.write(bytes);
            assert_eq!(peer.close_code(), Some(*code), "{path}, {what}");
        }
    }
    server.wait_for_metric("tidewire_connections", 0.0);
    assert_eq!(http(server.address, "/healthz").status, 200);
}

#[test]
fn the_largest_message_is_taken_in_any_pieces() {
    let server = TestServer::start(|_| {});
    let message = vec![0xA5; MESSAGE_BYTES_MAX];
    let split = |pieces: usize| -> Vec<u8> {
        let pieces: Vec<_> = message.chunks(MESSAGE_BYTES_MAX / pieces).collect();
        let last = pieces.len() - 1;
        let first = |at: usize| (if at == 0 { 0x02 } else { 0x00 }) | (if at == last { 0x80 } else { 0x00 });
        pieces.iter().enumerate().flat_map(|(at, piece)| masked(first(at), piece)).collect()
    };
    let mut echo = Peer::upgraded(server.address, "/echo");
    for pieces in [1, 2, 64] {
        echo.write(&split(pieces));
        assert_eq!(echo.message(), Message::Binary(message.clone()), "{pieces} pieces");
    }
    // Control frames may come between the pieces.
    let text = "später".as_bytes();
    let pieces = [masked(0x01, &text[..3]), masked(0x89, b"ping"), masked(0x80, &text[3..])].concat();
    for byte in pieces {
        echo.write(&[byte]);
    }
    assert_eq!(echo.message(), Message::Pong(b"ping".to_vec()));
    assert_eq!(echo.message(), Message::Text("später".to_owned()));
    for empty in [Message::Text(String::new()), Message::Binary(Vec::new()), Message::Pong(Vec::new())] {
        echo.write(&masked(
            match empty {
                Message::Text(_) => 0x81,
                Message::Binary(_) => 0x82,
                _ => 0x89,
            },
            b"",
        ));
        assert_eq!(echo.message(), empty);
    }
    echo.write(&masked(0x8A, b"a pong that nobody asked for"));
    echo.write(&masked(0x89, &[b'x'; 125]));
    assert_eq!(echo.message(), Message::Pong(vec![b'x'; 125]));

    // The protocol takes it, too; that it means nothing is another matter.
    let mut client = server.client();
    client.binary(&message);
    assert_eq!(client.error(), "bad_payload");
    client.round_trip();
}

#[test]
fn a_close_is_answered_with_its_code() {
    let server = TestServer::start(|_| {});
    for path in ["/ws", "/echo"] {
        for code in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999] {
            let mut peer = Peer::upgraded(server.address, path);
            // What comes behind a close frame is not looked at.
            peer.write(&[close(code, b"bye"), masked(0xFF, b"x")].concat());
            assert_eq!(peer.close_code(), Some(code), "{path}");
        }
        let mut peer = Peer::upgraded(server.address, path);
        peer.write(&masked(0x88, b""));
        assert_eq!(peer.close_code(), None, "{path}");
    }
}

#[test]
fn a_peer_that_does_not_take_its_leave_is_cut_off() {
    let server = TestServer::start(|config| config.server.close_timeout = Duration::from_millis(50));
    let mut peer = Peer::upgraded(server.address, "/ws");
    peer.write(b"\xFF");
    // This side of the socket stays open all the while.
    assert_eq!(peer.close_code(), Some(1002));
    server.wait_for_metric("tidewire_connections", 0.0);
}

#[test]
fn a_flood_of_pings_to_nobody_is_ended() {
    // The rate of control ends the first, a full outbox the others: whichever comes first.
    let rows =
        [("/ws", 8 << 20, "abuse"), ("/ws", 32 << 10, "slow_consumer"), ("/echo", 32 << 10, "slow_consumer")];
    for (path, control_bytes_max, reason) in rows {
        let server = TestServer::start(|config| {
            config.outbox.control_bytes_max = control_bytes_max;
            // The kernel takes some before the outbox has to.
            config.inbound.control_messages_per_s_max = if reason == "abuse" { 1_000 } else { 1_000_000 };
            config.server.close_timeout = Duration::from_millis(50);
        });
        let mut healthy = server.client();
        let mut peer = Peer::connect_small(server.address);
        peer.write(&Handshake::new(path).bytes());
        let pings = masked(0x89, &[b'x'; 125]).repeat(1_000);
        wait_for("the end of the flood", || peer.try_write(&pings).is_err().then_some(()));
        server.wait_for_metric(&format!("tidewire_connections_closed_total{{reason=\"{reason}\"}}"), 1.0);
        healthy.round_trip();
    }
}

#[test]
fn a_ghost_is_gone_and_who_answers_stays() {
    let server = TestServer::start(|config| {
        config.server.ping_interval = Duration::from_millis(200);
        config.server.pong_timeout = Duration::from_secs(2);
        config.server.close_timeout = Duration::from_millis(50);
    });
    let paths = ["/ws", "/echo"];
    let mut alive = paths.map(|path| Peer::upgraded(server.address, path));
    let mut ghosts = paths.map(|path| Peer::upgraded(server.address, path));
    let mut answered = [0; 2];
    while server.metric("tidewire_connections") > 2.0 {
        for (peer, answered) in alive.iter_mut().zip(&mut answered) {
            if let Message::Ping(payload) = peer.message() {
                peer.write(&masked(0x8A, &payload));
                *answered += 1;
            }
        }
    }
    for ghost in &mut ghosts {
        assert_eq!(ghost.close_code(), Some(4408));
    }
    assert!(answered.iter().all(|answered| *answered > 1), "{answered:?}");
    for peer in &mut alive {
        peer.write(&masked(0x89, b"still here"));
        assert_eq!(peer.answer(), Message::Pong(b"still here".to_vec()));
        peer.write(&close(1000, b""));
        assert_eq!(peer.close_code(), Some(1000));
    }
    server.wait_for_metric("tidewire_connections", 0.0);
}

#[test]
fn a_dribble_is_ended() {
    let server = TestServer::start(|config| config.inbound.message_timeout = Duration::from_millis(200));
    for (what, first) in [
        ("a header", &masked(0x81, b"never whole")[..3]),
        ("a payload", &masked(0x81, b"never whole")[..9]),
        ("a fragment", &masked(0x01, b"never whole")[..]),
    ] {
        let mut peer = Peer::upgraded(server.address, "/ws");
        peer.write(first);
        assert_eq!(peer.close_code(), Some(1008), "{what}");
    }
}

#[test]
fn pings_do_not_prolong_a_message() {
    /// Far more round trips than there are in the time that a message has.
    const PINGS_MAX: usize = 1_000_000;
    let server = TestServer::start(|config| config.inbound.message_timeout = Duration::from_millis(200));
    let mut peer = Peer::upgraded(server.address, "/echo");
    peer.write(&masked(0x01, b"never whole"));
    let end = (0..PINGS_MAX).find_map(|_| {
        // The socket may be closed by now.
        let _ = peer.try_write(&masked(0x89, b""));
        match peer.message() {
            Message::Pong(_) => None,
            end => Some(end),
        }
    });
    assert!(matches!(end, Some(Message::Close(Some(1008), _))), "{end:?}");
}

#[test]
fn who_asks_for_pages_and_does_not_read_is_ended() {
    let server = Process::start(&[
        "server.plain_timeout_ms=300",
        "server.first_byte_timeout_ms=200",
        "server.handshake_timeout_ms=300",
    ]);
    metric(server.address, "tidewire_connections");
    let base = server.descriptors();
    let mut peers: Vec<_> = (0..3).map(|_| Peer::connect_small(server.address)).collect();
    for peer in &mut peers {
        peer.write("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200).as_bytes());
    }
    wait_for("the sockets", || (server.descriptors() > base).then_some(()));
    wait_for("the descriptors", || (server.descriptors() <= base).then_some(()));
    drop(peers);
}

#[test]
fn who_needs_nothing_for_long_is_closed() {
    let server = TestServer::start(|config| config.server.idle_timeout = Duration::from_millis(200));
    let mut busy = server.client();
    busy.advertise("a");
    assert_eq!(server.client().close_code(), Some(4408));
    busy.round_trip();
}

#[test]
fn nothing_is_left_behind_by_those_who_leave() {
    let server = Process::start(&["server.close_timeout_ms=200"]);
    let settled = || {
        wait_for("no connections", || {
            (metric(server.address, "tidewire_connections") == 0.0).then(|| server.descriptors())
        })
    };
    let base = settled();
    let half = &masked(0x82, &[0; 100])[..50];
    for round in 0..300 {
        let mut peer = Peer::upgraded(server.address, if round % 2 == 0 { "/ws" } else { "/echo" });
        peer.write(half);
        match round % 3 {
            0 => peer.reset(),
            1 => peer.finish(),
            _ => drop(peer),
        }
    }
    for round in 0..2_000 {
        let peer = Peer::connect(server.address);
        if round % 2 == 0 {
            peer.reset();
        }
    }
    for _ in 0..100 {
        // Leaves before the answer.
        let mut peer = Peer::connect(server.address);
        peer.write(&Handshake::new("/ws").bytes());
        peer.reset();
    }
    wait_for("the descriptors", || (settled() <= base).then_some(()));
    let mut peer = Peer::upgraded(server.address, "/echo");
    peer.write(&masked(0x81, b"all is well"));
    assert_eq!(peer.message(), Message::Text("all is well".to_owned()));
}
