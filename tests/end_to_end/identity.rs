//! Who is let in, as whom, for how long, and what that lets them do.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use tidewire::auth::signer::{self, Signer};
use tidewire::wire::Codec;
use tidewire::wire::proto::sample;

use crate::support::issuer::{SECRET, now_s, token, token_as, trust, with_rights};
use crate::support::{
    Client, Handshake, Message, Options, Peer, Process, Response, TestServer, ask, http, masked,
    publish_message, wait_for,
};

const ALL: &str = r#"{"subscribe":[">"],"publish":[">","$user.*"]}"#;

fn number(value: f64) -> sample::Value {
    sample::Value::Number(value)
}

/// A token that gives the right to everything but to receive the server's own.
fn all(sub: &str) -> String {
    with_rights(sub, &serde_json::from_str(ALL).unwrap())
}

fn client(server: &TestServer, token: &str) -> Client {
    server.client_with(&Options { token: Some(token), ..Options::default() })
}

/// A server that takes tokens, and shows its pages to everybody for the tests' sake.
fn guarded(change: impl FnOnce(&mut tidewire::config::Config)) -> TestServer {
    TestServer::start(|config| {
        trust(config);
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        change(config);
    })
}

fn refused(server: &TestServer, handshake: &Handshake) -> Response {
    let mut peer = Peer::connect(server.address);
    peer.write(&handshake.bytes());
    peer.response()
}

#[test]
fn a_token_may_come_in_five_ways() {
    let server = guarded(|config| {
        config.auth.query = true;
        config.auth.cookie = Some("tw".into());
    });
    let token = all("alice@example.org");
    let bearer = format!("tidewire.v1, bearer, {token}");
    let handshakes = [
        Handshake::new("/ws").with("Authorization", &format!("Bearer {token}")),
        Handshake::new("/ws").with("Sec-WebSocket-Protocol", &bearer),
        Handshake::new(&format!("/ws?token={token}")),
        Handshake::new("/ws").with("Cookie", &format!("a=b; tw={token}")).with("Origin", "http://localhost"),
    ];
    for handshake in handshakes {
        let mut peer = Peer::connect(server.address);
        peer.write(&handshake.bytes());
        let response = peer.response();
        assert_eq!(response.status, 101);
        let echoed = response.header("sec-websocket-protocol").unwrap_or("tidewire.v1");
        assert_eq!(echoed, "tidewire.v1", "what is secret is not echoed");
        let Message::Text(welcome) = peer.message() else { panic!("welcome comes first") };
        let welcome: Value = serde_json::from_str(&welcome).unwrap();
        assert_eq!(welcome["user"], "alice@example%2Eorg");
        assert!(welcome["expires_s"].as_u64().unwrap() > now_s());
        let Message::Text(subscribed) = peer.message() else { panic!("the inbox comes next") };
        assert!(subscribed.contains(r#""subscription":"$user.alice@example%2Eorg""#), "{subscribed}");
    }

    let mut client = server.client();
    assert_eq!(client.welcome["user"], Value::Null);
    assert_eq!(client.welcome["auth_timeout_ms"], 10_000);
    let answer = client.request(json!({"type": "auth", "token": token}));
    assert_eq!((&answer["type"], &answer["user"]), (&json!("authenticated"), &json!("alice@example%2Eorg")));
    assert_eq!(client.event("subscribed")["subscription"], "$user.alice@example%2Eorg");
    client.subscribe("a", &json!({}));
}

#[test]
fn wrong_tokens_get_the_same_answer_and_nothing_that_they_name_is_fetched() {
    let server = guarded(|_| {});
    let lure = TcpListener::bind("127.0.0.1:0").unwrap();
    lure.set_nonblocking(true).unwrap();
    let url = format!("http://{}/keys", lure.local_addr().unwrap());
    let hs = |more: Value| {
        let mut header = json!({"alg": "HS256"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        header
    };
    let good = token("a", &json!({}));
    let rows = [
        "garbage".to_owned(),
        "a.b.c".to_owned(),
        token_as(&json!({"alg": "none"}), "a", &json!({})),
        token_as(&json!({"alg": "nOnE"}), "a", &json!({})),
        token_as(&json!({"alg": "RS256"}), "a", &json!({})),
        token_as(&hs(json!({"kid": "../../etc/passwd"})), "a", &json!({})),
        token_as(&hs(json!({"kid": "x", "jku": url, "x5u": url})), "a", &json!({})),
        token_as(&hs(json!({"crit": ["exp"]})), "a", &json!({})),
        token("a", &json!({"exp": now_s() - 60})),
        token("a", &json!({"exp": "never"})),
        token("a", &json!({"exp": 13_569_465_600_u64})),
        token("a", &json!({"nbf": now_s() + 60})),
        token("a", &json!({"aud": "somebody else"})),
        token("", &json!({})),
        format!("{}x", &good[..good.len() - 1]),
        good[..good.rfind('.').unwrap() + 1].to_owned(),
        "A".repeat(9_000),
    ];
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for wrong in &rows {
        let response =
            refused(&server, &Handshake::new("/ws").with("Authorization", &format!("Bearer {wrong}")));
        assert_eq!(response.status, 401, "{wrong}");
        assert_eq!(response.error_code(), "unauthorized", "{wrong}");
        assert!(response.header("www-authenticate").unwrap().contains("invalid_token"));
        bodies.push(response.body);
    }
    for header in ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b"] {
        let response = refused(&server, &Handshake::new("/ws").with("Authorization", header));
        assert_eq!(response.status, 401, "{header:?}");
        bodies.push(response.body);
    }
    let twice = Handshake::new("/ws").with("Authorization", &format!("Bearer {good}"));
    bodies.push(refused(&server, &twice.with("Authorization", &format!("Bearer {good}"))).body);
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "the answer does not tell what is wrong");
    assert_eq!(lure.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody has come");
    let counted = server.metric("tidewire_handshakes_refused_total{reason=\"unauthorized\"}");
    assert!((counted - (rows.len() + 6) as f64).abs() < 0.5, "{counted}");
    // As large as a request head may be, and more.
    let huge = refused(
        &server,
        &Handshake::new("/ws").with("Authorization", &format!("Bearer {}", "A".repeat(1 << 20))),
    );
    assert!([401, 431].contains(&huge.status), "{}", huge.status);
    client(&server, &good);
}

#[test]
fn a_cookie_needs_a_known_page_and_the_query_has_to_be_allowed() {
    let server = guarded(|config| config.auth.cookie = Some("tw".into()));
    let cookie = Handshake::new("/ws").with("Cookie", &format!("tw={}", all("alice")));
    for (handshake, status, code) in [
        (cookie.clone(), 403, "origin"),
        (cookie.clone().with("Origin", "http://evil.example"), 403, "origin"),
        (cookie.with("Origin", "null"), 403, "origin"),
        (
            Handshake::new("/ws").with("Cookie", "tw=garbage").with("Origin", "http://localhost"),
            401,
            "unauthorized",
        ),
    ] {
        let response = refused(&server, &handshake);
        assert_eq!((response.status, &*response.error_code()), (status, code));
    }
    let mut client = Client::connect(server.address, &Options::default());
    assert_eq!(client.welcome["auth_timeout_ms"], 10_000, "?token= is off: nobody is known by it");
    client.text(&json!({"type": "ping"}).to_string());
    assert_eq!(client.error(), "unauthorized");
}

#[test]
fn nothing_is_served_before_the_first_message_says_who_it_is() {
    let server = guarded(|config| config.auth.first_message_timeout = Duration::from_millis(200));
    assert_eq!(server.client().close_code(), Some(4408), "silence");
    let wrong = token("a", &json!({"exp": 1}));
    for text in [
        json!({"type": "subscribe", "channel": "a"}).to_string(),
        json!({"type": "advertise", "channel": "a"}).to_string(),
        json!({"type": "ping"}).to_string(),
        json!({"type": "auth", "token": wrong}).to_string(),
        json!({"type": "auth", "token": all("alice"), "more": 1}).to_string(),
        "{".to_owned(),
        r#"{"type":"publish","channel":"a","block":{"samples":[{"number":1}]}}"#.to_owned(),
    ] {
        let mut client = server.client();
        client.text(&text);
        assert_eq!(client.error(), "unauthorized", "{text}");
        assert_eq!(client.close_code(), Some(4401), "{text}");
    }
    let mut client = server.client();
    client.binary(&publish_message(1, 1.0));
    assert_eq!(client.error(), "unauthorized");
    assert_eq!(client.close_code(), Some(4401));

    for codec in Codec::ALL {
        let mut client = server.client_with(&Options { codec, ..Options::default() });
        client.binary(&publish_message(1, 1.0));
        assert_eq!(client.error(), "unauthorized", "{codec:?}");
        assert_eq!(client.close_code(), Some(4401), "{codec:?}");
    }
    // Nobody who is not known has room for more than a token.
    let mut client = server.client();
    client.peer.write(&[0x81, 0xFE, 0x40, 0x00, 0, 0, 0, 0]);
    assert_eq!(client.close_code(), Some(1009));

    // A ping of WebSocket is no message.
    let mut client = server.client();
    client.peer.write(&masked(0x89, b"x"));
    client.request(json!({"type": "auth", "token": all("alice")}));
    client.subscribe("a", &json!({}));

    let strict = guarded(|config| config.auth.first_message = false);
    let response = refused(&strict, &Handshake::new("/ws"));
    assert_eq!((response.status, &*response.error_code()), (401, "unauthorized"));
    assert_eq!(response.header("www-authenticate"), Some("Bearer realm=\"tidewire\""));
}

#[test]
fn a_tenant_stays_within_what_its_token_says() {
    let server = guarded(|_| {});
    let rights = json!({
        "subscribe": ["tenant-a.>", "public.*"], "publish": ["tenant-a.cmd"],
        "deny": {"subscribe": ["tenant-a.secret.>"]},
    });
    let mut a = client(&server, &with_rights("a", &rights));
    a.event("subscribed");
    let denied = [
        "tenant-b.x",
        "tenant-b.*",
        "*",
        ">",
        "*.x",
        "tenant-a.>",
        "tenant-a.*.x",
        "tenant-a.secret.x",
        "public.>",
        "$sys.>",
        "$sys.cpu",
        "$user.b",
        "$user.*",
        "$user.>",
    ];
    for channel in denied {
        let answer = a.request(json!({"type": "subscribe", "channel": channel}));
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("forbidden")), "{channel}");
        if channel == "*" {
            // Ten errors in ten seconds are the end, and this is no attack.
            a = client(&server, &with_rights("a", &rights));
            a.event("subscribed");
        }
        if channel == "public.>" {
            a = client(&server, &with_rights("a", &rights));
            a.event("subscribed");
        }
    }
    for channel in ["tenant-a.y", "tenant-b.x", "$user.b", "$sys.cpu"] {
        let answer = a.request(json!({"type": "advertise", "channel": channel}));
        assert_eq!(answer["code"], "forbidden", "{channel}");
    }
    let mut a = client(&server, &with_rights("a", &rights));
    for channel in ["tenant-b.x", "$user.b", "$sys.cpu"] {
        let answer = a.request(json!({"type": "history", "channel": channel}));
        assert_eq!(answer["code"], "forbidden", "{channel}: also what is kept of it");
        let answer = a.request(json!({"type": "subscribe", "channel": channel, "last": 9}));
        assert_eq!(answer["code"], "forbidden", "{channel}");
    }
    assert_eq!(a.request(json!({"type": "history", "channel": "$user.a"}))["type"], "history");
    a = client(&server, &with_rights("a", &rights));
    a.event("subscribed");
    a.subscribe("tenant-a.*", &json!({"max_delay_ms": 0}));
    let mut b = client(&server, &all("b"));
    let (other, mine) = (b.advertise("tenant-b.x"), b.advertise("tenant-a.z"));
    b.publish_acked(other, [number(1.0)]);
    b.publish_acked(mine, [number(2.0)]);
    assert_eq!(u64::from(a.frame().channel), u64::from(mine), "what came first was another tenant's");
    let command = a.advertise("tenant-a.cmd");
    a.publish_acked(command, [number(1.0)]);
    let row = server.json("/api/connections");
    let delivered: Vec<_> =
        row["connections"].as_array().unwrap().iter().filter(|row| row["user"] == "a").collect();
    assert!(
        delivered.iter().all(|row| !row["channels"].to_string().contains(&format!("\"channel\":{other},")))
    );

    // A publish by name in JSON goes through the same door.
    let mut json_client = server.client_with(&Options {
        token: Some(&with_rights("a", &rights)),
        codec: Codec::Json,
        ..Options::default()
    });
    json_client.event("subscribed");
    json_client.text(r#"{"type":"publish","channel":"tenant-b.x","block":{"samples":[{"number":1}]}}"#);
    assert_eq!(json_client.error(), "forbidden");

    let mut nobody = client(&server, &token("nobody", &json!({})));
    nobody.event("subscribed");
    assert_eq!(nobody.request(json!({"type": "subscribe", "channel": "a"}))["code"], "forbidden");
    let inbox = b.advertise("$user.nobody");
    b.publish_acked(inbox, [number(7.0)]);
    assert_eq!(nobody.frame().seq, 1, "the inbox is its own");
}

#[test]
fn a_token_ends_with_a_warning_and_a_new_one_goes_on() {
    let server = guarded(|config| {
        config.auth.leeway = Duration::ZERO;
        config.auth.expiry_warning = Duration::from_secs(30);
    });
    let brief = |sub: &str| token(sub, &json!({"exp": now_s() + 2, "tidewire": {"subscribe": [">"]}}));
    let mut ends = client(&server, &brief("a"));
    let mut stays = client(&server, &brief("b"));
    for client in [&mut ends, &mut stays] {
        client.event("subscribed");
        assert!(client.event("token_expiring")["expires_s"].as_u64().unwrap() >= now_s());
    }
    let answer = stays.request(json!({"type": "auth", "token": all("b")}));
    assert_eq!(answer["type"], "authenticated");
    assert_eq!(ends.error(), "token_expired");
    assert_eq!(ends.close_code(), Some(4401));
    stays.subscribe("a", &json!({}));
    assert!(stays.take_events().is_empty(), "it goes on in peace");
}

#[test]
fn a_new_token_takes_away_what_it_does_not_give() {
    let server = guarded(|_| {});
    let rights = |patterns: &[&str]| json!({"subscribe": patterns, "publish": patterns});
    let mut client = client(&server, &with_rights("a", &rights(&["x.>", "y"])));
    client.event("subscribed");
    client.subscribe("x.>", &json!({}));
    client.subscribe("y", &json!({}));
    let (gone, kept) = (client.advertise("x.1"), client.advertise("y"));
    // More than two in a second are too many, so the wrong ones come first.
    let answer = client.request(json!({"type": "auth", "token": all("b")}));
    assert_eq!(answer["code"], "forbidden", "another subject");
    let answer = client.request(json!({"type": "auth", "token": with_rights("a", &rights(&["y"]))}));
    assert_eq!(answer["type"], "authenticated");
    assert_eq!(client.event("unsubscribed")["subscription"], "x.>");
    assert_eq!(client.error(), "forbidden", "the subscription");
    assert_eq!(client.error(), "forbidden", "the channel to publish to");
    client.publish(gone, &[1.0]);
    while client.error() != "not_advertised" {}
    client.publish_acked(kept, [number(1.0)]);
    assert_eq!(client.frame().channel, kept);
}

#[test]
fn tokens_in_a_rush_are_not_all_checked() {
    let server = guarded(|_| {});
    let mut client = client(&server, &all("a"));
    for _ in 0..20 {
        client.text(&json!({"type": "auth", "token": "garbage"}).to_string());
    }
    wait_for("a refusal for the rush", || (client.error() == "rate_limited").then_some(()));
}

#[test]
fn whoever_is_revoked_is_out_at_once_and_stays_out() {
    let server = guarded(|config| config.workers = 2);
    let with_id = |sub: &str, id: &str| token(sub, &json!({"jti": id, "tidewire": {"subscribe": [">"]}}));
    let mut clients: Vec<Client> = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")]
        .map(|(sub, id)| client(&server, &with_id(sub, id)))
        .into();
    let revoke = |body: &Value| {
        ask(server.pages, "POST", "/api/revoke", &[("Content-Type", "application/json")], &body.to_string())
    };
    assert_eq!(revoke(&json!({"sub": "a"})).status, 200);
    assert_eq!(revoke(&json!({"jti": "3"})).status, 200);
    for client in &mut clients[..3] {
        assert_eq!(client.error(), "forbidden");
        assert_eq!(client.close_code(), Some(4403));
    }
    clients[3].round_trip();
    for old in [with_id("a", "9"), with_id("b", "3")] {
        let response =
            refused(&server, &Handshake::new("/ws").with("Authorization", &format!("Bearer {old}")));
        assert_eq!((response.status, &*response.error_code()), (403, "forbidden"));
        let mut late = server.client();
        late.text(&json!({"type": "auth", "token": old}).to_string());
        assert_eq!(late.error(), "forbidden");
        assert_eq!(late.close_code(), Some(4403));
    }
    client(&server, &with_id("b", "5"));
    // By a clock that is a little ahead, before the revocation.
    let early = token("a", &json!({"iat": now_s() + 3}));
    let early = Handshake::new("/ws").with("Authorization", &format!("Bearer {early}"));
    assert_eq!(refused(&server, &early).status, 403);
    // As the lists show it.
    let mut shown = client(&server, &all("x@example.org"));
    shown.event("subscribed");
    assert_eq!(revoke(&json!({"sub": "x@example%2Eorg"})).status, 200);
    assert_eq!(shown.error(), "forbidden");

    for (body, status) in [
        ("{}", 400),
        ("{\"sub\":7}", 400),
        ("{\"sub\":\"a\",\"jti\":\"b\"}", 400),
        ("{\"sub\":\"\"}", 400),
        ("x", 400),
    ] {
        let response =
            ask(server.pages, "POST", "/api/revoke", &[("Content-Type", "application/json")], body);
        assert_eq!(response.status, status, "{body}");
    }
    assert_eq!(
        ask(server.pages, "POST", "/api/revoke", &[], "{\"sub\":\"c\"}").status,
        415,
        "a form of any page"
    );
    let with_charset = [("Content-Type", "application/json; charset=utf-8")];
    assert_eq!(ask(server.pages, "POST", "/api/revoke", &with_charset, "{\"sub\":\"z\"}").status, 200);
    let evil = [("Content-Type", "application/json"), ("Origin", "http://evil.example")];
    assert_eq!(ask(server.pages, "POST", "/api/revoke", &evil, "{\"sub\":\"c\"}").status, 403);
    assert_eq!(http(server.pages, "/api/revoke").status, 405);
    clients[3].round_trip();
}

#[test]
fn pages_about_the_server_are_for_those_who_run_it() {
    const ADMIN: &str = "a-token-that-nobody-guesses-at-all";
    const PAGES: [&str; 5] =
        ["/metrics", "/api/latency", "/api/latency.hlog", "/api/channels", "/api/connections"];
    let get = |server: &TestServer, path: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let header = bearer.as_deref().map(|value| ("Authorization", value));
        ask(server.address, "GET", path, header.as_slice(), "").status
    };
    let server = TestServer::start(|config| {
        trust(config);
        config.admin.token = ADMIN.into();
    });
    let (admin, part, none) = (
        with_rights("root", &json!({"admin": [">"]})),
        with_rights("part", &json!({"admin": ["a.>"]})),
        all("nobody"),
    );
    let mut publisher = client(&server, &all("p"));
    publisher.event("subscribed");
    let channels = [publisher.advertise("a.x"), publisher.advertise("b.x")];
    for channel in channels {
        publisher.publish_acked(channel, [number(1.0)]);
    }
    for path in PAGES {
        let partly = if path == "/api/channels" { 200 } else { 403 };
        for (token, status) in [
            (None, 401),
            (Some("garbage"), 401),
            (Some(&ADMIN[1..]), 401),
            (Some(ADMIN), 200),
            (Some(&*admin), 200),
            (Some(&*none), 403),
            (Some(&*part), partly),
        ] {
            assert_eq!(get(&server, path, token), status, "{path} {token:?}");
        }
    }
    let bearer = format!("Bearer {part}");
    let seen = ask(server.address, "GET", "/api/channels", &[("Authorization", &bearer)], "");
    let seen: Value = serde_json::from_slice(&seen.body).unwrap();
    let names: Vec<_> =
        seen["channels"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.x"], "what its right is for");
    for path in ["/healthz", "/readyz", "/"] {
        assert_eq!(get(&server, path, None), 200, "{path}");
    }
    assert_eq!(get(&server, "/nothing", None), 404);
    assert_eq!(get(&server, "/api/nothing", None), 401, "nobody learns what there is");

    let apart = guarded(|_| {});
    for path in PAGES {
        assert_eq!(http(apart.address, path).status, 404, "{path} has a listener of its own");
        assert_eq!(http(apart.pages, path).status, 200, "{path}");
    }
    let mut peer = Peer::connect(apart.pages);
    peer.write(&Handshake::new("/ws").bytes());
    assert_eq!(peer.response().status, 404, "and that one has no stream");

    let open = TestServer::start(|_| {});
    assert_eq!(http(open.address, "/metrics").status, 200);
    let json = [("Content-Type", "application/json")];
    assert_eq!(ask(open.address, "POST", "/api/revoke", &json, "{\"sub\":\"a\"}").status, 409);
}

#[test]
fn pages_of_listed_origins_may_send_a_token() {
    let server = TestServer::start(|config| config.server.origins = "https://good.example".parse().unwrap());
    let preflight = |origin| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "GET")];
        ask(server.address, "OPTIONS", "/metrics", &headers, "")
    };
    let good = preflight("https://good.example");
    assert_eq!(
        (good.status, good.header("access-control-allow-origin")),
        (204, Some("https://good.example"))
    );
    assert_eq!(good.header("access-control-allow-headers"), Some("authorization, content-type"));
    let evil = preflight("https://evil.example");
    assert_eq!((evil.status, evil.header("access-control-allow-origin")), (204, None));
}

#[test]
fn a_new_token_after_a_revocation_is_taken() {
    let server = guarded(|config| config.auth.leeway = Duration::ZERO);
    let json = [("Content-Type", "application/json")];
    let answer = ask(server.pages, "POST", "/api/revoke", &json, "{\"sub\":\"a\"}");
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    let until = answer["issued_until_s"].as_u64().unwrap();
    wait_for("the next second", || (now_s() > until).then_some(()));
    client(&server, &token("a", &json!({"iat": now_s()})));
}

#[test]
fn a_subject_has_so_many_connections_and_others_theirs() {
    let server = guarded(|config| config.server.connections_per_subject_max = 2);
    let (a, b) = (all("a"), all("b"));
    let mut first = client(&server, &a);
    let second = client(&server, &a);
    let third = Handshake::new("/ws").with("Authorization", &format!("Bearer {a}"));
    let response = refused(&server, &third);
    assert_eq!((response.status, &*response.error_code()), (429, "subject"));
    let mut late = server.client();
    assert_eq!(late.request(json!({"type": "auth", "token": a}))["code"], "limit_exceeded");
    assert_eq!(late.close_code(), Some(1013));
    client(&server, &b);
    // A new token needs no other place.
    assert_eq!(first.request(json!({"type": "auth", "token": all("a")}))["type"], "authenticated");
    drop(second);
    wait_for("a place", || (refused(&server, &third).status == 101).then_some(()));
    first.round_trip();
}

#[test]
fn strangers_leave_room_for_others() {
    let server = guarded(|config| config.server.connections_max = 8);
    let waiting: Vec<Client> = (0..2).map(|_| server.client()).collect();
    let response = refused(&server, &Handshake::new("/ws"));
    assert_eq!((response.status, &*response.error_code()), (503, "capacity"));
    client(&server, &all("a"));
    drop(waiting);
    let mut next = wait_for("a place", || {
        let mut peer = Peer::connect(server.address);
        peer.write(&Handshake::new("/ws").bytes());
        (peer.response().status == 101).then_some(peer)
    });
    assert!(matches!(next.message(), Message::Text(_)));
}

#[test]
fn a_page_whose_host_was_made_to_point_here_gets_nothing() {
    let open = TestServer::start(|_| {});
    let listed = TestServer::start(|config| config.server.origins = "https://panel.example".parse().unwrap());
    let guarded = guarded(|_| {});
    let get = |address, host: &str, origin: Option<&str>| {
        let mut peer = Peer::connect(address);
        let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let head = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n\r\n");
        peer.write(head.as_bytes());
        peer.response().status
    };
    for (address, host, origin, status) in [
        (open.address, "localhost:9400", None, 200),
        (open.address, "127.0.0.1", None, 200),
        (open.address, "evil.example", None, 403),
        (open.address, "evil.example", Some("http://evil.example"), 403),
        (open.address, "localhost", Some("http://evil.example"), 403),
        (listed.address, "panel.example", None, 200),
        (listed.address, "evil.example", None, 403),
        (guarded.pages, "localhost", None, 200),
        (guarded.pages, "evil.example", None, 403),
    ] {
        assert_eq!(get(address, host, origin), status, "{host} {origin:?}");
    }
    let page = |host: &str| Handshake::new("/ws").set("Host", host).with("Origin", &format!("http://{host}"));
    assert_eq!(refused(&open, &page("evil.example")).status, 403);
    assert_eq!(refused(&open, &page("localhost")).status, 101);
    let program = Handshake::new("/ws").set("Host", "proxied.example");
    assert_eq!(refused(&open, &program).status, 101, "a program is no page");
    let token = all("a");
    let known = page("public.example").with("Authorization", &format!("Bearer {token}"));
    assert_eq!(refused(&guarded, &known).status, 101, "a token is what counts where there are keys");
}

#[test]
fn keys_are_read_again_and_whoever_came_with_one_that_is_gone_has_to_leave() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let write = |text: &str, mode: u32| {
        let new = directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    let [old, new] = [("old", 1_u8), ("new", 2)].map(|(id, byte)| signer::new_jwks(id, &[byte; 32]));
    write(&old, 0o600);
    let server = TestServer::start(|config| {
        config.auth.keys_file = path.to_str().unwrap().parse().unwrap();
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    });
    let mint = |keys: &str| {
        let claims = json!({"sub": "a", "exp": now_s() + 60, "tidewire": {"subscribe": [">"]}});
        Signer::parse(keys, None).unwrap().sign(&claims).unwrap()
    };
    let status = |keys: &str| {
        let bearer = format!("Bearer {}", mint(keys));
        refused(&server, &Handshake::new("/ws").with("Authorization", &bearer)).status
    };
    let mut with_old = client(&server, &mint(&old));
    assert_eq!(status(&new), 401);
    // What cannot be used changes nothing, and is tried again once it can.
    write("garbage", 0o600);
    write(&new, 0o640);
    with_old.round_trip();
    assert_eq!((status(&old), status(&new)), (101, 401));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    wait_for("the new key", || (status(&new) == 101).then_some(()));
    assert_eq!(status(&old), 401);
    assert_eq!(with_old.error(), "unauthorized");
    assert_eq!(with_old.close_code(), Some(4401));
}

/// However a token comes, and whatever becomes of it: neither it nor its signature nor a key is in a log at the most verbose
/// level, on a page, or in an answer.
#[test]
fn no_secret_is_in_any_output() {
    const ADMIN: &str = "admin-token-that-nobody-guesses-at-all";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidewire.toml");
    let toml = format!(
        "[auth]\nsecret = \"{SECRET}\"\ncookie = \"tw\"\nquery = true\n[admin]\ntoken = \"{ADMIN}\"\n"
    );
    std::fs::write(&path, toml).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let log = directory.path().join("log");
    let arguments = ["--config", path.to_str().unwrap(), "--log-filter", "trace"];
    let mut server = Process::start_logging("127.0.0.1:0", &arguments, &log);
    let rights = json!({"tidewire": {"subscribe": [">"], "admin": [">"]}});
    let good = token("alice", &rights);
    let tokens = [good.clone(), token("bob", &json!({"exp": 1})), format!("{}x", &good[..good.len() - 1])];
    let mut seen = String::new();
    for token in &tokens {
        let handshakes = [
            Handshake::new("/ws").with("Authorization", &format!("Bearer {token}")),
            Handshake::new("/ws").with("Authorization", &format!("Basic {token}")),
            Handshake::new("/ws").with("Sec-WebSocket-Protocol", &format!("tidewire.v1, bearer, {token}")),
            Handshake::new(&format!("/ws?token={token}")),
            Handshake::new("/ws").with("Cookie", &format!("tw={token}")).with("Origin", "http://localhost"),
            Handshake::new(&format!("/{token}")),
        ];
        for handshake in handshakes {
            let mut peer = Peer::connect(server.address);
            peer.write(&handshake.bytes());
            let response = peer.response();
            seen.push_str(&format!("{:?} {}", response, String::from_utf8_lossy(&response.body)));
            if response.status == 101 {
                seen.push_str(&format!("{:?}", peer.message()));
            }
        }
        let mut client = Client::connect(server.address, &Options::default());
        client.text(&json!({"type": "auth", "token": token, "id": 1}).to_string());
        let answer = client.event_where("an answer", |event| event["id"] == 1);
        seen.push_str(&answer.to_string());
        let mut mistaken = Client::connect(server.address, &Options::default());
        mistaken.text(&json!({"type": "auth", "tokn": token}).to_string());
        seen.push_str(&mistaken.event("error").to_string());
        for secret in [token.as_str(), ADMIN, &ADMIN[1..]] {
            for path in ["/metrics", "/api/connections", "/api/channels", "/api/latency", "/nothing"] {
                let bearer = format!("Bearer {secret}");
                let page = ask(server.address, "GET", path, &[("Authorization", &bearer)], "");
                seen.push_str(&String::from_utf8_lossy(&page.body));
            }
        }
    }
    server.signal("TERM");
    let status = wait_for("its end", || server.status());
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(status.success() && log.contains("a token was refused"), "it has logged what there was: {log}");
    seen.push_str(&log);
    for token in &tokens {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!seen.contains(token.as_str()) && !seen.contains(signature), "{seen}");
        assert!(!seen.contains(&signature[..20]), "{seen}");
    }
    for secret in [SECRET, ADMIN, &ADMIN[1..]] {
        assert!(!seen.contains(secret), "{seen}");
    }
}
