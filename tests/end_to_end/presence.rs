//! Who is on a channel: whoever may know is told, as it is, and whoever may not is not.

use std::time::Duration;

use serde_json::{Value, json};
use tidewire::wire::Codec;
use tidewire::wire::proto::sample;

use crate::support::issuer::{now_s, token, trust, with_rights};
use crate::support::{Client, Options, TestServer, ask, samples, wait_for};

fn presence(client: &mut Client, channel: &str) -> Value {
    client.request(json!({"type": "presence", "channel": channel}))
}

/// The connections of an answer.
fn members(answer: &Value) -> Vec<u64> {
    let members = answer["members"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer["count"], members.len(), "{answer}");
    members.iter().map(|member| member["connection"].as_u64().unwrap()).collect()
}

/// The next event of a `$presence` channel.
fn change(client: &mut Client, waiting: &mut Vec<Value>) -> Value {
    while waiting.is_empty() {
        let frame = client.frame();
        waiting.extend(samples(&frame).map(|(_, sample)| match &sample.value {
            Some(sample::Value::Text(text)) => serde_json::from_str(text).unwrap(),
            value => panic!("{value:?}"),
        }));
    }
    waiting.remove(0)
}

fn known(server: &TestServer, token: &str) -> Client {
    let mut client = server.client_with(&Options { token: Some(token), ..Options::default() });
    client.event("subscribed");
    client
}

#[test]
fn whoever_receives_a_channel_is_there_once() {
    for workers in [1, 2, 3] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut asker = server.client();
        assert_eq!(members(&presence(&mut asker, "robot.7")), [0; 0]);
        assert_eq!(server.json("/api/channels")["channels"].to_string().matches("robot").count(), 0);

        let mut publisher = server.client();
        publisher.advertise("robot.7");
        let mut receivers: Vec<Client> = Codec::ALL
            .into_iter()
            .map(|codec| server.client_with(&Options { user: Some("alice"), codec, ..Options::default() }))
            .collect();
        receivers[0].subscribe("robot.7", &json!({}));
        receivers[0].subscribe("robot.*", &json!({"max_rate_hz": 1}));
        receivers[1].subscribe(">", &json!({}));
        receivers[2].subscribe("robot.7", &json!({"policy": "latest"}));
        // What another receives is no matter.
        asker.subscribe("robot.8", &json!({}));
        let all: Vec<u64> = receivers.iter().map(Client::number).collect();
        let answer = presence(&mut asker, "robot.7");
        assert_eq!(members(&answer), all, "and the publisher is not");
        assert_eq!(answer["members"][0]["user"], "alice");
        assert!(answer.get("seq").is_none() && answer.get("epoch").is_none(), "nobody watches: {answer}");
        assert_eq!(members(&presence(&mut asker, "robot.8")), [asker.number()]);

        receivers[0].unsubscribe("robot.7");
        assert_eq!(members(&presence(&mut asker, "robot.7")), all, "still by pattern");
        receivers[0].unsubscribe("robot.*");
        assert_eq!(members(&presence(&mut asker, "robot.7")), all[1..]);
        receivers.truncate(1);
        wait_for("the others to be gone", || (presence(&mut asker, "robot.7")["count"] == 0).then_some(()));
    }
}

#[test]
fn who_watches_hears_of_each_that_comes_and_goes() {
    for (workers, pattern) in [(1, "$presence.robot.7"), (2, "$presence.robot.*"), (3, "$presence.>")] {
        let server = TestServer::start(|config| config.workers = workers);
        let mut early = server.client_with(&Options { user: Some("bob"), ..Options::default() });
        early.subscribe("robot.7", &json!({}));
        let mut watcher = server.client();
        // It does not reach the server's own.
        watcher.subscribe(">", &json!({}));
        let subscribed = watcher.subscribe(pattern, &json!({}));
        let entry =
            subscribed["channels"].as_array().unwrap().iter().find(|e| e["name"] == "$presence.robot.7");
        let mut waiting = Vec::new();
        let expected = json!({"event": "join", "connection": early.number(), "user": "bob", "count": 1});
        assert_eq!(change(&mut watcher, &mut waiting), expected, "who is there already");
        let mut late = server.client();
        late.subscribe("robot.7", &json!({}));
        let expected = json!({"event": "join", "connection": late.number(), "count": 2});
        assert_eq!(change(&mut watcher, &mut waiting), expected);
        let answer = presence(&mut watcher, "robot.7");
        assert_eq!(members(&answer), [early.number(), late.number()]);
        assert_eq!((&answer["epoch"], &answer["seq"]), (&entry.unwrap()["epoch"], &json!(2)));
        let gone = early.number();
        drop(early);
        let expected = json!({"event": "leave", "connection": gone, "user": "bob", "count": 1});
        assert_eq!(change(&mut watcher, &mut waiting), expected);
        late.unsubscribe("robot.7");
        let expected = json!({"event": "leave", "connection": late.number(), "count": 0});
        assert_eq!(change(&mut watcher, &mut waiting), expected);
        assert_eq!(members(&presence(&mut watcher, "$presence.robot.7")), [watcher.number()]);
        if pattern != "$presence.robot.7" {
            // A channel that comes later.
            late.subscribe("robot.8", &json!({}));
            let found = watcher.event_where("the new channel", |event| event["name"] == "$presence.robot.8");
            assert_eq!((&found["type"], &found["seq"]), (&json!("channel"), &json!(1)));
            let expected = json!({"event": "join", "connection": late.number(), "count": 1});
            assert_eq!(change(&mut watcher, &mut waiting), expected);
        }
        assert!(server.metric("tidewire_presence_changes_total") >= 4.0);
    }
}

/// A server that takes tokens.
fn guarded(change: impl FnOnce(&mut tidewire::config::Config)) -> TestServer {
    TestServer::start(|config| {
        trust(config);
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        change(config);
    })
}

#[test]
fn whatever_ends_the_receiving_ends_the_presence() {
    let server = guarded(|config| {
        config.workers = 2;
        config.auth.leeway = Duration::ZERO;
    });
    let mut watcher = known(&server, &with_rights("w", &json!({"presence": ["room"]})));
    watcher.subscribe("$presence.room", &json!({}));
    let rights = json!({"subscribe": ["room"]});
    let mut waiting = Vec::new();
    type End = fn(&TestServer, &mut Client);
    let ends: [(&str, End); 4] = [
        ("it unsubscribes", |_, client| drop(client.unsubscribe("room"))),
        ("its token ends", |_, client| assert_eq!(client.error(), "token_expired")),
        ("it is revoked", |server, client| {
            let (header, body) = ([("Content-Type", "application/json")], r#"{"sub":"m2"}"#);
            assert_eq!(ask(server.pages, "POST", "/api/revoke", &header, body).status, 200);
            assert_eq!(client.close_code(), Some(4403));
        }),
        ("its new token gives no right", |_, client| {
            let token = with_rights("m3", &json!({"subscribe": ["elsewhere"]}));
            client.request(json!({"type": "auth", "token": token}));
            assert_eq!(client.event("unsubscribed")["subscription"], "room");
        }),
    ];
    for (n, (what, end)) in ends.into_iter().enumerate() {
        let user = format!("m{n}");
        let lifetime_s = if what == "its token ends" { 2 } else { 600 };
        let token = token(&user, &json!({"exp": now_s() + lifetime_s, "tidewire": rights}));
        let mut member = known(&server, &token);
        member.subscribe("room", &json!({}));
        let who = |event, count| json!({"event": event, "connection": member.number(), "user": user, "count": count});
        let (join, leave) = (who("join", 1), who("leave", 0));
        assert_eq!(change(&mut watcher, &mut waiting), join, "{what}");
        end(&server, &mut member);
        assert_eq!(change(&mut watcher, &mut waiting), leave, "{what}");
        assert_eq!(presence(&mut watcher, "room")["count"], 0, "{what}");
    }
}

#[test]
fn presence_is_a_right_of_its_own() {
    let server = guarded(|config| config.workers = 2);
    // (rights, channel, whether who is on it may be asked, whether `$presence.` of it may be watched)
    let all = json!({"subscribe": [">", "$presence.>"], "publish": [">", "$presence.>"]});
    let some = json!({"presence": ["room.*", "$user.*", "$sys.>"], "deny": {"presence": ["room.7", "$user.carol"], "subscribe": [">"]}});
    let rows = [
        (&all, "room.1", false, false),
        (&all, "$user.bob", false, false),
        (&all, "$user.alice", true, false),
        (&all, "$presence.room.1", false, false),
        (&some, "room.1", true, true),
        (&some, "room.7", false, false),
        (&some, "room.1.x", false, false),
        (&some, "$user.bob", true, false),
        (&some, "$user.carol", false, false),
        (&some, "$sys.connections", true, false),
        (&some, "$presence.room.1", false, false),
        (&some, "room.*", false, false),
        (&some, ">", false, false),
    ];
    for (rights, channel, may_ask, may_watch) in rows {
        let mut client = known(&server, &with_rights("alice", rights));
        let code = |answer: Value| answer.get("code").map(|code| code.as_str().unwrap().to_owned());
        let asked = code(presence(&mut client, channel));
        let is_name = !channel.contains(['*', '>']);
        let refusal = if is_name { "forbidden" } else { "bad_channel" };
        assert_eq!(asked.as_deref(), (!may_ask).then_some(refusal), "{channel} with {rights}");
        let watch = json!({"type": "subscribe", "channel": format!("$presence.{channel}")});
        let watched = code(client.request(watch));
        // Names of the server's own have no place behind another token.
        let refusal = if channel.starts_with('$') { "bad_channel" } else { "forbidden" };
        assert_eq!(watched.as_deref(), (!may_watch).then_some(refusal), "{channel} with {rights}");
    }

    let mut client = known(&server, &with_rights("alice", &all));
    let publish = json!({"type": "advertise", "channel": "$presence.room.1"});
    assert_eq!(client.request(publish)["code"], "forbidden", "nobody says who is there but the server");
    // A right that is taken away ends what it was for.
    let mut client = known(&server, &with_rights("alice", &some));
    client.subscribe("$presence.room.1", &json!({}));
    let token = with_rights("alice", &json!({"presence": ["elsewhere"]}));
    assert_eq!(client.request(json!({"type": "auth", "token": token}))["type"], "authenticated");
    assert_eq!(client.event("unsubscribed")["subscription"], "$presence.room.1");
    assert_eq!(client.error(), "forbidden");
}

#[test]
fn without_keys_everybody_may_know_but_of_inboxes() {
    let server = TestServer::start(|_| {});
    let mut alice = server.client_with(&Options { user: Some("alice"), ..Options::default() });
    alice.event("subscribed");
    assert_eq!(members(&presence(&mut alice, "$user.alice")), [alice.number()]);
    assert_eq!(presence(&mut alice, "$user.bob")["code"], "forbidden");
    assert_eq!(members(&presence(&mut alice, "$sys.connections")), [0; 0]);
    alice.subscribe("$presence.>", &json!({}));
    assert_eq!(alice.request(json!({"type": "advertise", "channel": "$presence.a"}))["code"], "forbidden");
}
