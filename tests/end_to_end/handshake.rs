//! From the first byte to the upgrade: what is let in, what each mistake gets, and the pages beside it.

use std::time::Duration;

use serde_json::Value;
use tidewire::wire::Codec;

use crate::support::{Handshake, Message, Peer, TestServer, http, masked, wait_for};

/// What a head that is no handshake gets.
struct Row {
    what: &'static str,
    head: Vec<u8>,
    /// Statuses that will do.
    statuses: &'static [u16],
    /// The code in the JSON body; nothing where the head is not even HTTP.
    code: Option<&'static str>,
}

fn row(
    what: &'static str,
    handshake: &Handshake,
    statuses: &'static [u16],
    code: Option<&'static str>,
) -> Row {
    Row { what, head: handshake.bytes(), statuses, code }
}

#[test]
fn what_is_no_handshake_is_refused_with_a_reason() {
    let server = TestServer::start(|_| {});
    for path in ["/ws", "/echo"] {
        let good = || Handshake::new(path);
        let key = "Sec-WebSocket-Key";
        let version = "Sec-WebSocket-Version";
        let bad = Some("bad_request");
        let rows = [
            row("POST", &good().line(&format!("POST {path} HTTP/1.1")), &[405], Some("method")),
            row("PUT", &good().line(&format!("PUT {path} HTTP/1.1")), &[405], Some("method")),
            row("HTTP/1.0", &good().line(&format!("GET {path} HTTP/1.0")), &[400], bad),
            row("CONNECT", &good().line(&format!("CONNECT {path} HTTP/1.1")), &[400, 405], None),
            row("HTTP/2.0", &good().line(&format!("GET {path} HTTP/2.0")), &[400, 505], None),
            row("no Upgrade", &good().without("Upgrade"), &[426], Some("upgrade")),
            row("another Upgrade", &good().set("Upgrade", "h2c"), &[426], Some("upgrade")),
            row("no Connection", &good().without("Connection"), &[426], Some("upgrade")),
            row("another Connection", &good().set("Connection", "keep-alive"), &[426], Some("upgrade")),
            row("no version", &good().without(version), &[426], Some("upgrade")),
            row("version 8", &good().set(version, "8"), &[426], Some("upgrade")),
            row("two versions in one", &good().set(version, "13, 8"), &[426], Some("upgrade")),
            row("two versions", &good().with(version, "8"), &[426], Some("upgrade")),
            row("the version twice", &good().with(version, "13"), &[426], Some("upgrade")),
            row("no key", &good().without(key), &[400], bad),
            row("an empty key", &good().set(key, ""), &[400], bad),
            row("a short key", &good().set(key, "abc"), &[400], bad),
            row("a key of 15 bytes", &good().set(key, "dGhlIHNhbXBsZSBub25j"), &[400], bad),
            row("a key of other letters", &good().set(key, "dGhlIHNhbXBsZSBub25j*Q=="), &[400], bad),
            row("two keys", &good().with(key, "dGhlIHNhbXBsZSBub25jZQ=="), &[400], bad),
            row("no Host", &good().without("Host"), &[400], bad),
            row("two Hosts", &good().with("Host", "localhost"), &[400], bad),
            row("a body", &good().with("Content-Length", "5"), &[400], bad),
            row("an empty body", &good().with("Content-Length", "0"), &[400], bad),
            row("a chunked body", &good().with("Transfer-Encoding", "chunked"), &[400], bad),
            row(
                "a body of two lengths",
                &good().with("Content-Length", "5").with("Transfer-Encoding", "chunked"),
                &[400],
                None,
            ),
            row("two lengths", &good().with("Content-Length", "5").with("Content-Length", "6"), &[400], None),
            row("a negative length", &good().with("Content-Length", "-1"), &[400], None),
            row("64 KiB of header", &good().with("X-Large", &"x".repeat(64 << 10)), &[431], None),
            row(
                "300 headers",
                &(0..300).fold(good(), |head, n| head.with(&format!("X-{n}"), "x")),
                &[431],
                None,
            ),
            row(
                "a long target",
                &good().line(&format!("GET {path}?{} HTTP/1.1", "x".repeat(5 << 10))),
                &[414],
                Some("too_large"),
            ),
            row(
                "a very long target",
                &good().line(&format!("GET {path}?{} HTTP/1.1", "x".repeat(100 << 10))),
                &[414, 431],
                None,
            ),
            row("a folded header", &good().with("X-Folded", "a\r\n b"), &[400], None),
            row("a NUL", &good().with("X-Nul", "a\0b"), &[400], None),
            row("a bare CR", &good().with("X-Cr", "a\rb"), &[400], None),
            row("a space before the colon", &good().with("X-Space ", "a"), &[400], None),
        ];
        for Row { what, head, statuses, code } in rows {
            let mut peer = Peer::connect(server.address);
            // A head that is too long is refused before its end.
            drop(peer.try_write(&head));
            // Bytes behind a refused head are never a frame.
            drop(peer.try_write(&masked(0x89, b"smuggled")));
            peer.finish();
            let response = peer.response();
            assert!(statuses.contains(&response.status), "{path}, {what}: {response:?}");
            if let Some(code) = code {
                assert_eq!(response.error_code(), code, "{path}, {what}");
            }
            match response.status {
                405 => assert!(response.header("allow").is_some(), "{what}"),
                426 => assert_eq!(response.header("sec-websocket-version"), Some("13"), "{what}"),
                _ => {}
            }
            assert!(peer.try_response().is_none_or(|next| next.status == 400), "{path}, {what}");
        }
    }
    assert_eq!(server.metric("tidewire_connections"), 0.0);
    assert_eq!(http(server.address, "/healthz").status, 200);
}

#[test]
fn what_is_a_handshake_is_taken() {
    let server = TestServer::start(|_| {});
    let good = || Handshake::new("/ws");
    let rows = [
        ("as it should be", good()),
        ("Connection as browsers send it", good().set("Connection", "keep-alive, Upgrade")),
        ("in other cases", good().set("Upgrade", "WebSocket").set("Connection", "upgrade")),
        ("from a page of its own", good().with("Origin", "https://localhost")),
        (
            "with compression offered",
            good().with("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ),
    ];
    for (what, handshake) in rows {
        let mut peer = Peer::connect(server.address);
        peer.write(&handshake.bytes());
        let response = peer.response();
        assert_eq!(response.status, 101, "{what}");
        // The example of RFC 6455 section 1.3.
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(response.header("sec-websocket-extensions"), None, "{what}");
        assert_eq!(response.header("sec-websocket-protocol"), None, "{what}");
        assert!(matches!(peer.message(), Message::Text(text) if text.contains("\"welcome\"")));
        if what.contains("compression") {
            peer.write(&masked(0xC1, b"compressed"));
            assert_eq!(peer.close_code(), Some(1002));
        }
    }
}

#[test]
fn pages_from_elsewhere_are_refused() {
    // (server.origins, server.origin_required, Origin headers, whether they may connect)
    let rows: [(&str, bool, &[&str], bool); 15] = [
        ("same", false, &[], true),
        ("same", false, &["http://localhost"], true),
        ("same", false, &["https://evil.example"], false),
        ("same", false, &["null"], false),
        ("same", false, &["http://localhost", "http://localhost"], false),
        ("same", true, &[], false),
        ("https://good.example", false, &["https://good.example"], true),
        ("https://good.example", false, &["https://good.example.evil.example"], false),
        ("https://good.example", false, &["https://good.example:8443"], false),
        ("https://good.example", false, &["http://good.example"], false),
        ("https://good.example", false, &["http://localhost"], false),
        ("https://good.example", false, &[], true),
        ("https://good.example", true, &[], false),
        ("*", true, &["https://any.example"], true),
        ("*", false, &["\u{ff}"], false),
    ];
    for (origins, required, sent, taken) in rows {
        let server = TestServer::start(|config| {
            config.server.origins = origins.parse().unwrap();
            config.server.origin_required = required;
        });
        for path in ["/ws", "/echo"] {
            let handshake = sent.iter().fold(Handshake::new(path), |head, it| head.with("Origin", it));
            let mut peer = Peer::connect(server.address);
            peer.write(&handshake.bytes());
            let response = peer.response();
            let what = format!("{origins}, {required}, {sent:?}, {path}: {response:?}");
            if taken {
                assert_eq!(response.status, 101, "{what}");
            } else {
                assert_eq!((response.status, response.error_code().as_str()), (403, "origin"), "{what}");
            }
        }
        let refused = if taken { 0.0 } else { 2.0 };
        assert_eq!(server.metric("tidewire_handshakes_refused_total{reason=\"origin\"}"), refused);
    }
}

#[test]
fn pages_that_may_connect_may_read_answers() {
    let read = |origins: &str, origin: &str| {
        let server = TestServer::start(|config| config.server.origins = origins.parse().unwrap());
        let mut peer = Peer::connect(server.address);
        peer.write(format!("GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n\r\n").as_bytes());
        let response = peer.response();
        assert_eq!(response.status, 200, "who asks changes nothing about the page");
        response.header("access-control-allow-origin").map(ToOwned::to_owned)
    };
    assert_eq!(read("same", "https://good.example"), None);
    assert_eq!(read("https://good.example", "https://good.example").as_deref(), Some("https://good.example"));
    assert_eq!(read("https://good.example", "https://evil.example"), None);
}

#[test]
fn a_known_subprotocol_is_echoed_and_nothing_else() {
    let server = TestServer::start(|_| {});
    let rows: [(&[&str], Option<&str>, &str); 8] = [
        (&["tidewire.v1"], Some("tidewire.v1"), "tidewire.v1"),
        (&["tidewire.v1.msgpack"], Some("tidewire.v1.msgpack"), "tidewire.v1.msgpack"),
        (&["tidewire.v1.json"], Some("tidewire.v1.json"), "tidewire.v1.json"),
        (&["chat, tidewire.v1.json, tidewire.v1"], Some("tidewire.v1.json"), "tidewire.v1.json"),
        (&["chat", "tidewire.v1.msgpack"], Some("tidewire.v1.msgpack"), "tidewire.v1.msgpack"),
        (&["chat"], None, "tidewire.v1"),
        (&["bearer.eyJhbGciOiJIUzI1NiJ9.e30.secret"], None, "tidewire.v1"),
        (&["TIDEWIRE.V1"], None, "tidewire.v1"),
    ];
    for (offered, echoed, spoken) in rows {
        let mut peer = Peer::connect(server.address);
        let handshake = offered
            .iter()
            .fold(Handshake::new("/ws"), |handshake, list| handshake.with("Sec-WebSocket-Protocol", list));
        peer.write(&handshake.bytes());
        let response = peer.response();
        assert_eq!(response.header("sec-websocket-protocol"), echoed, "{offered:?}");
        let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
        let welcome: Value = serde_json::from_str(&welcome).unwrap();
        assert_eq!(welcome["protocol"], spoken, "{offered:?}");
    }
    assert!(Codec::ALL.iter().all(|codec| rows.iter().any(|row| row.1 == Some(codec.subprotocol()))));
}

#[test]
fn what_comes_behind_the_head_is_not_lost() {
    let server = TestServer::start(|_| {});
    for path in ["/ws", "/echo"] {
        let mut peer = Peer::connect(server.address);
        // The last byte of the second frame comes on its own.
        let frames = [masked(0x89, b"early"), masked(0x89, b"late")].concat();
        let (first, last) = frames.split_at(frames.len() - 1);
        peer.write(&[&Handshake::new(path).bytes(), first].concat());
        assert_eq!(peer.response().status, 101);
        assert_eq!(peer.answer(), Message::Pong(b"early".to_vec()), "{path}");
        peer.write(last);
        assert_eq!(peer.answer(), Message::Pong(b"late".to_vec()), "{path}");
    }
}

#[test]
fn a_user_is_one_token() {
    let server = TestServer::start(|_| {});
    let long = "x".repeat(300);
    let rows = [
        ("alice", true),
        ("alice@home", true),
        ("", false),
        ("a.b", false),
        ("*", false),
        (">", false),
        ("$sys", false),
        ("a%20b", true),
        ("a/b", false),
        (&*long, false),
    ];
    for (user, taken) in rows {
        let mut peer = Peer::connect(server.address);
        peer.write(&Handshake::new(&format!("/ws?token=x&user={user}")).bytes());
        let response = peer.response();
        assert_eq!(response.status, if taken { 101 } else { 400 }, "{user}");
        if taken {
            let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
            assert_eq!(serde_json::from_str::<Value>(&welcome).unwrap()["user"], user);
        } else {
            // A character that no target may hold is refused before the server sees it.
            assert!(user == ">" || response.error_code() == "bad_request", "{user}");
        }
    }
}

#[test]
fn a_full_server_refuses_connections_and_serves_pages() {
    let server = TestServer::start(|config| config.server.connections_max = 2);
    let mut first = server.client();
    let _second = Peer::upgraded(server.address, "/echo");
    let mut third = Peer::connect(server.address);
    third.write(&Handshake::new("/ws").bytes());
    let refused = third.response();
    assert_eq!((refused.status, refused.error_code()), (503, "capacity".to_owned()));
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(http(server.address, "/healthz").status, 200);
    assert_eq!(server.metric("tidewire_connections"), 2.0);
    first.round_trip();
    drop(first);
    // The same socket may ask again.
    wait_for("a free slot", || {
        third.write(&Handshake::new("/ws").bytes());
        (third.response().status == 101).then_some(())
    });
}

#[test]
fn pages_are_served() {
    let server = TestServer::start(|_| {});
    let pages = [
        ("/", "text/plain"),
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "text/plain; version=0.0.4"),
        ("/api/latency", "application/json"),
        ("/api/latency.hlog", "text/plain"),
        ("/api/channels", "application/json"),
        ("/api/connections?x=y", "application/json"),
    ];
    wait_for("readiness", || (http(server.address, "/readyz").status == 200).then_some(()));
    // All of them over one socket.
    let mut peer = Peer::connect(server.address);
    for (path, content_type) in pages {
        peer.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let response = peer.response();
        assert_eq!(response.status, 200, "{path}");
        assert!(response.header("content-type").unwrap().starts_with(content_type), "{path}");
        assert!(!response.body.is_empty(), "{path}");
        if content_type == "application/json" {
            serde_json::from_slice::<Value>(&response.body).unwrap();
        }
    }
    for (line, status, code) in [
        ("GET /nothing HTTP/1.1", 404, "not_found"),
        ("GET /ws/ HTTP/1.1", 404, "not_found"),
        ("POST /metrics HTTP/1.1", 405, "method"),
        ("DELETE / HTTP/1.1", 405, "method"),
    ] {
        peer.write(format!("{line}\r\nHost: localhost\r\n\r\n").as_bytes());
        let response = peer.response();
        assert_eq!((response.status, &*response.error_code()), (status, code), "{line}");
    }
    let hidden = TestServer::start(|config| config.enable_echo = false);
    let mut peer = Peer::connect(hidden.address);
    peer.write(&Handshake::new("/echo").bytes());
    assert_eq!(peer.response().status, 404, "the reflector is there only if it is asked for");
}

#[test]
fn who_does_not_ask_is_closed() {
    let server = TestServer::start(|config| {
        config.server.first_byte_timeout = Duration::from_millis(50);
        config.server.handshake_timeout = Duration::from_millis(100);
    });
    let rows: [(&str, &[u8]); 4] = [
        ("nothing", b""),
        ("half a line", b"GET /ws HT"),
        ("half a head", b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"),
        ("what is no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ];
    let peers = rows.map(|(what, bytes)| {
        let mut peer = Peer::connect(server.address);
        peer.write(bytes);
        (what, peer)
    });
    // Many of them delay nobody.
    let silent: Vec<_> = (0..100).map(|_| Peer::connect(server.address)).collect();
    server.client().round_trip();
    for (_, mut peer) in peers {
        peer.read_to_end();
    }
    for mut peer in silent {
        peer.read_to_end();
    }
}
