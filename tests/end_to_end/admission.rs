//! Who may open how much: rates and handshakes under way, of one address and of all, and whose address counts behind a proxy.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tidewire::admission::{PLAIN_SOCKETS_MAX, PLAIN_SOCKETS_PER_ADDRESS_MAX};
use tidewire::config::Config;

use crate::support::{Client, Handshake, Message, Peer, Response, TestServer, http, masked, wait_for};

/// A server behind a proxy on this machine.
fn behind_proxy(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::start(|config| {
        config.server.trusted_proxies = "127.0.0.1".parse().unwrap();
        change(config);
    })
}

/// The header of the PROXY protocol that a proxy sends for this client.
fn proxy_header(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let mut rest = Vec::new();
    let kind = match client {
        SocketAddr::V4(client) => {
            rest.extend(client.ip().octets());
            rest.extend([10, 0, 0, 1]);
            0x11
        }
        SocketAddr::V6(client) => {
            rest.extend(client.ip().octets());
            rest.extend([0; 16]);
            0x21
        }
    };
    rest.extend(client.port().to_be_bytes());
    rest.extend([0, 80]);
    // A TLV that nobody knows.
    rest.extend([0xEE, 0, 2, 1, 2]);
    header(0x21, kind, &rest)
}

fn header(version: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[version, kind], &length.to_be_bytes(), rest].concat()
}

/// Shakes hands over a new socket with this before it.
fn shake(server: &TestServer, before: &[u8], handshake: &Handshake) -> (Peer, Response) {
    let mut peer = Peer::connect(server.address);
    // A server that refuses may have ended the socket by now.
    drop(peer.try_write(&[before, &handshake.bytes()].concat()));
    let response = peer.response();
    (peer, response)
}

/// What `/api/connections` says about where this connection comes from; it has read its `welcome` here.
fn remote(server: &TestServer, peer: &mut Peer) -> String {
    let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
    let welcome: Value = serde_json::from_str(&welcome).unwrap();
    let row = server.connection(welcome["connection"].as_u64().unwrap()).unwrap();
    row["remote"].as_str().unwrap().to_owned()
}

/// A client that goes on while others are refused.
fn check_untouched(client: &mut Client, turn: u64) {
    let channel = client.advertise("untouched");
    client.publish(channel, &[0.0]);
    assert_eq!(client.frame().seq, turn);
}

#[test]
fn sockets_over_the_rate_of_all_are_refused_and_others_untouched() {
    const PER_S: u32 = 3;
    let server = TestServer::start(|config| config.server.accepts_per_s_max = PER_S);
    let mut inside = server.client();
    inside.subscribe("untouched", &serde_json::json!({"max_delay_ms": 0}));
    let mut refused = 0;
    while refused == 0 {
        let (mut peer, response) = shake(&server, b"", &Handshake::new("/ws"));
        if response.status == 101 {
            continue;
        }
        refused += 1;
        assert_eq!((response.status, response.error_code().as_str()), (503, "capacity"));
        assert!(response.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        peer.read_to_end();
    }
    check_untouched(&mut inside, 1);
    // A bucket fills again.
    let name = "tidewire_sockets_refused_total{reason=\"rate\"}";
    let counted = wait_for("the page", || {
        let mut peer = Peer::connect(server.address);
        drop(peer.try_write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let response = peer.response();
        refused += u32::from(response.status == 503);
        let text = String::from_utf8(response.body).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
    });
    assert_eq!(counted, refused);
}

#[test]
fn a_client_of_a_proxy_has_a_rate_of_its_own() {
    const PER_S: u32 = 3;
    for header in [false, true] {
        let server = behind_proxy(|config| {
            config.server.accepts_per_address_per_s_max = PER_S;
            config.server.proxy_protocol = header;
        });
        let ask = |client: &str| {
            if header {
                shake(&server, &proxy_header(&format!("{client}:7")), &Handshake::new("/ws"))
            } else {
                shake(&server, b"", &Handshake::new("/ws").with("X-Forwarded-For", client))
            }
        };
        let refused = wait_for("a refusal", || {
            let (_, response) = ask("203.0.113.9");
            (response.status != 101).then_some(response)
        });
        assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate"), "{header}");
        assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        let (mut other, response) = ask("203.0.113.10");
        assert_eq!(response.status, 101, "{header}");
        other.write(&masked(0x89, b"here"));
        assert_eq!(other.answer(), Message::Pong(b"here".to_vec()));
        if header {
            // The page would be the proxy's own, without a header.
            let mut peer = Peer::connect(server.address);
            let page = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
            peer.write(&[&proxy_header("203.0.113.11:1"), &page[..]].concat());
            let text = String::from_utf8(peer.response().body).unwrap();
            assert!(text.contains("tidewire_sockets_refused_total{reason=\"address_rate\"} 1\n"), "{text}");
        } else {
            assert_eq!(server.metric("tidewire_handshakes_refused_total{reason=\"rate\"}"), 1.0);
        }
    }
}

#[test]
fn one_address_cannot_hold_all_handshakes() {
    let server = behind_proxy(|config| {
        config.server.proxy_protocol = true;
        config.server.accepts_per_address_per_s_max = 0;
        config.server.first_byte_timeout = Duration::from_mins(10);
        config.server.handshake_timeout = Duration::from_mins(10);
    });
    let silent = |n: u16| {
        let mut peer = Peer::connect(server.address);
        peer.write(&proxy_header(&format!("203.0.113.9:{}", n + 1)));
        peer
    };
    let held: Vec<Peer> = (0..u16::try_from(PLAIN_SOCKETS_PER_ADDRESS_MAX).unwrap()).map(silent).collect();
    // One more is refused without a word from it, once all of them are in.
    let mut refused = wait_for("a refusal", || {
        let (_, response) = shake(&server, &proxy_header("203.0.113.9:1"), &Handshake::new("/ws"));
        (response.status == 429).then_some(response)
    });
    assert_eq!(refused.error_code(), "address");
    let (_peer, response) = shake(&server, &proxy_header("203.0.113.10:1"), &Handshake::new("/ws"));
    assert_eq!(response.status, 101, "there is room for others");
    drop(held);
    refused = wait_for("room", || {
        let (_, response) = shake(&server, &proxy_header("203.0.113.9:1"), &Handshake::new("/ws"));
        (response.status == 101).then_some(response)
    });
    assert_eq!(refused.status, 101);
}

#[test]
fn a_full_table_of_handshakes_says_so() {
    let server = TestServer::start(|config| {
        config.server.first_byte_timeout = Duration::from_mins(10);
        config.server.handshake_timeout = Duration::from_mins(10);
    });
    let held: Vec<Peer> = (0..PLAIN_SOCKETS_MAX).map(|_| Peer::connect(server.address)).collect();
    let refused = wait_for("a refusal", || {
        let (_, response) = shake(&server, b"", &Handshake::new("/ws"));
        (response.status != 101).then_some(response)
    });
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "capacity"));
    drop(held);
    wait_for("room", || (http(server.address, "/healthz").status == 200).then_some(()));
    assert!(server.metric("tidewire_sockets_refused_total{reason=\"sockets\"}") >= 1.0);
}

#[test]
fn the_client_of_a_trusted_proxy_is_the_one_that_counts() {
    let server = behind_proxy(|config| config.server.connections_per_address_max = 1);
    // (X-Forwarded-For lines, how the address begins)
    let rows: [(&[&str], &str); 8] = [
        (&["203.0.113.1"], "203.0.113.1:0"),
        (&["203.0.113.2:4660"], "203.0.113.2:4660"),
        (&["2001:db8::3"], "[2001:db8::3]:0"),
        (&["198.51.100.1, 203.0.113.4, 127.0.0.1"], "203.0.113.4:0"),
        (&["198.51.100.1", "203.0.113.5", "127.0.0.1"], "203.0.113.5:0"),
        (&["\u{1b}[31m\"<, 203.0.113.6"], "203.0.113.6:0"),
        (&["203.0.113.7, \u{1b}[31m"], "127.0.0.1:"),
        (&[], "127.0.0.1:"),
    ];
    for (lines, expected) in rows {
        // What no header may hold is refused before anybody looks at it.
        let lines: Vec<String> = lines.iter().map(|line| line.replace('\u{1b}', "\u{e9}")).collect();
        let handshake =
            lines.iter().fold(Handshake::new("/ws"), |head, line| head.with("X-Forwarded-For", line));
        let (mut peer, response) = shake(&server, b"", &handshake);
        assert_eq!(response.status, 101, "{lines:?}");
        let remote = remote(&server, &mut peer);
        assert!(remote.starts_with(expected), "{remote}: {lines:?}");
        if !expected.starts_with("127") {
            let (_, second) = shake(&server, b"", &handshake);
            assert_eq!((second.status, second.error_code().as_str()), (429, "address"), "{lines:?}");
        }
    }
    assert_eq!(server.metric("tidewire_forwarded_unreadable_total"), 2.0);
}

#[test]
fn nobody_else_says_who_it_is() {
    for trusted in ["", "10.0.0.0/8"] {
        let server = TestServer::start(|config| {
            config.server.trusted_proxies = trusted.parse().unwrap();
            config.server.proxy_protocol = !trusted.is_empty();
        });
        let handshake = Handshake::new("/ws").with("X-Forwarded-For", "203.0.113.9");
        let (mut peer, response) = shake(&server, b"", &handshake);
        assert_eq!(response.status, 101);
        let remote = remote(&server, &mut peer);
        assert!(remote.starts_with("127.0.0.1:"), "{remote}");
        let mut peer = Peer::connect(server.address);
        peer.write(&proxy_header("203.0.113.9:4660"));
        drop(peer.try_write(&Handshake::new("/ws").bytes()));
        assert!(peer.try_response().is_none_or(|response| response.status == 400), "a header is no request");
        assert_eq!(server.metric("tidewire_forwarded_unreadable_total"), 0.0);
    }
}

#[test]
fn a_proxy_header_is_needed_from_a_trusted_proxy() {
    let server = behind_proxy(|config| {
        config.server.proxy_protocol = true;
        config.server.first_byte_timeout = Duration::from_millis(300);
    });
    let refused = || {
        let mut peer = Peer::connect(server.address);
        peer.write(
            &[&proxy_header("203.0.113.1:1"), &b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"[..]]
                .concat(),
        );
        let text = String::from_utf8(peer.response().body).unwrap();
        let name = "tidewire_sockets_refused_total{reason=\"proxy_header\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)?.parse::<u32>().ok()).unwrap()
    };
    for (client, remote_is) in [
        ("203.0.113.9:4660", "203.0.113.9:4660"),
        ("[2001:db8::9]:4660", "[2001:db8::9]:4660"),
        ("[::ffff:203.0.113.9]:4660", "203.0.113.9:4660"),
    ] {
        let mut peer = Peer::connect(server.address);
        // In two parts, and with the request right behind: nothing of it may be lost.
        let bytes = [proxy_header(client), Handshake::new("/ws").bytes(), masked(0x89, b"early")].concat();
        let (first, second) = bytes.split_at(20);
        peer.write(first);
        peer.write(second);
        assert_eq!(peer.response().status, 101, "{client}");
        let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
        assert_eq!(peer.message(), Message::Pong(b"early".to_vec()));
        let number = serde_json::from_str::<Value>(&welcome).unwrap()["connection"].clone();
        let mut page = Peer::connect(server.address);
        page.write(
            &[header(0x20, 0, &[]), b"GET /api/connections HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()]
                .concat(),
        );
        let body: Value = serde_json::from_slice(&page.response().body).unwrap();
        let row = body["connections"].as_array().unwrap().iter().find(|row| row["connection"] == number);
        assert_eq!(row.unwrap()["remote"], remote_is);
    }
    assert_eq!(refused(), 0);
    // (what, bytes)
    let whole = proxy_header("203.0.113.9:4660");
    let rows = [
        ("nothing", vec![]),
        ("half a header", whole[..whole.len() - 3].to_vec()),
        ("half a start", whole[..9].to_vec()),
        ("a request", Handshake::new("/ws").bytes()),
        ("version 1", b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec()),
        ("version 3", header(0x31, 0x11, &[0; 12])),
        ("an unknown command", header(0x22, 0x11, &[0; 12])),
        ("an unknown family", header(0x21, 0x51, &[0; 12])),
        ("too short for its address", header(0x21, 0x21, &[0; 35])),
        ("too long", header(0x21, 0x11, &[0; 60_000])),
    ];
    for (turn, (what, bytes)) in (1..).zip(rows) {
        let mut peer = Peer::connect(server.address);
        drop(peer.try_write(&bytes));
        assert!(peer.try_response().is_none(), "{what}");
        assert_eq!(refused(), turn, "{what}");
    }
}
