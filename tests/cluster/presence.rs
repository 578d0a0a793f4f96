//! Who is on a channel, asked and watched on one server, where others have members, too.

use serde_json::{Value, json};
use tidewire::broker::Kind;
use tidewire::wire::proto::sample;

use crate::follower::Publisher;
use crate::rig::{Node, Rig};
use crate::support::{Client, Options, metric, samples, wait_for};

/// Its life, as it tells in its log.
fn life(node: &Node) -> String {
    let log = node.log();
    log.split("node=").nth(1).and_then(|rest| rest.get(..16)).expect("it says who it is").to_owned()
}

fn member(node: &Node, user: &str, channel: &str) -> Client {
    let options = Options { user: Some(user), ..Options::default() };
    let mut client = Client::connect(node.address(), &options);
    client.subscribe(channel, &json!({}));
    client
}

fn presence(client: &mut Client) -> Value {
    let answer = client.request(json!({"type": "presence", "channel": "room"}));
    assert_eq!(answer["type"], "presence", "{answer}");
    if let Some(members) = answer["members"].as_array() {
        assert_eq!(answer["count"], members.len(), "{answer}");
    }
    answer
}

/// What it answers once it has heard of all servers: one that has just come may not know them yet.
fn whole(client: &mut Client) -> Value {
    wait_for("an answer of all", || Some(presence(client)).filter(|answer| answer.get("partial").is_none()))
}

/// A member, as a server that it is not on tells of it.
fn far(node: &str, client: &Client, user: &str) -> Value {
    json!({"server": node, "connection": client.number(), "user": user})
}

fn near(client: &Client, user: &str) -> Value {
    json!({"connection": client.number(), "user": user})
}

fn event(kind: &str, who: &Value, count: u64) -> Value {
    let mut event = who.clone();
    event["event"] = kind.into();
    event["count"] = count.into();
    event
}

/// Somebody who watches `$presence.room`.
struct Watcher {
    client: Client,
    heard: Vec<Value>,
}

impl Watcher {
    fn new(node: &Node) -> Self {
        let mut client = node.client();
        client.subscribe("$presence.room", &json!({}));
        Self { client, heard: Vec::new() }
    }

    fn next(&mut self) -> Value {
        while self.heard.is_empty() {
            let frame = self.client.frame();
            self.heard.extend(samples(&frame).map(|(_, sample)| match &sample.value {
                Some(sample::Value::Text(text)) => serde_json::from_str::<Value>(text).unwrap(),
                value => panic!("{value:?}"),
            }));
        }
        self.heard.remove(0)
    }

    /// The next two, whichever comes first.
    fn next_two(&mut self) -> [Value; 2] {
        let mut two = [self.next(), self.next()];
        two.sort_by_key(|event| event["server"].is_string());
        two
    }
}

pub(crate) fn who_is_there_on_all_servers(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let [one_life, other_life] = [life(&one), life(&other)];
    let ada = member(&one, "ada", "room");
    let mut bob = member(&other, "bob", "*");
    let mut publisher = Publisher::new(one.client(), "room");
    publisher.publish(1);
    bob.frame();
    assert_eq!(ada.number(), bob.number(), "each server counts for itself");
    // Whoever was told to be subscribed is there for whoever asks afterwards, on any server.
    for (node, expected) in [
        (&one, json!([near(&ada, "ada"), far(&other_life, &bob, "bob")])),
        (&other, json!([near(&bob, "bob"), far(&one_life, &ada, "ada")])),
    ] {
        let mut asker = node.client();
        assert_eq!(whole(&mut asker)["members"], expected);
    }

    let mut watchers = [Watcher::new(&one), Watcher::new(&other)];
    let [here, there] = watchers[0].next_two();
    let counts = [&here, &there].map(|event| event["count"].as_u64().unwrap());
    assert_eq!(here, event("join", &near(&ada, "ada"), counts[0]));
    assert_eq!(there, event("join", &far(&other_life, &bob, "bob"), counts[1]));
    assert_eq!(counts.into_iter().max(), Some(2));
    drop(watchers[1].next_two());
    let answer = whole(&mut watchers[0].client);
    assert_eq!((&answer["seq"], &answer["count"]), (&json!(2), &json!(2)), "{answer}");

    let mut cleo = member(&other, "cleo", "room");
    let who = far(&other_life, &cleo, "cleo");
    assert_eq!(watchers[0].next(), event("join", &who, 3));
    assert_eq!(watchers[1].next(), event("join", &near(&cleo, "cleo"), 3));
    cleo.unsubscribe("room");
    assert_eq!(watchers[0].next(), event("leave", &who, 2));
    assert_eq!(watchers[1].next(), event("leave", &near(&cleo, "cleo"), 2));

    // One that ends says so: nobody waits for it, and nobody takes its members to be there.
    let third = rig.node();
    let third_life = life(&third);
    let dan = member(&third, "dan", "room");
    let who = far(&third_life, &dan, "dan");
    assert_eq!(watchers[0].next(), event("join", &who, 3));
    third.process.signal("TERM");
    assert_eq!(watchers[0].next(), event("leave", &who, 2));
    assert_eq!(whole(&mut watchers[0].client)["count"], 2);

    // One that is killed is missed after a while, and until then the answer says that it is not all.
    other.process.signal("KILL");
    let answer = presence(&mut watchers[0].client);
    assert_eq!((&answer["count"], &answer["partial"]), (&json!(2), &json!(true)), "{answer}");
    assert_eq!(watchers[0].next(), event("leave", &far(&other_life, &bob, "bob"), 1));
    assert_eq!(whole(&mut watchers[0].client)["members"], json!([near(&ada, "ada")]));
    "asked and watched on either; who ends leaves at once, who is killed when it is given up".into()
}

pub(crate) fn who_is_there_without_the_broker(kind: &'static Kind) -> String {
    let mut rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let mut ada = member(&one, "ada", "room");
    let bob = member(&other, "bob", "room");
    let mut watcher = Watcher::new(&one);
    drop(watcher.next_two());
    rig.broker.kill();
    one.wait_until_unready();
    other.wait_until_unready();
    ada.unsubscribe("room");
    assert_eq!(watcher.next(), event("leave", &near(&ada, "ada"), 1), "what is here goes on");
    let answer = presence(&mut watcher.client);
    assert_eq!(answer["partial"], json!(true), "{answer}");
    // Nobody can tell it from one that is gone.
    let other_life = life(&other);
    assert_eq!(watcher.next(), event("leave", &far(&other_life, &bob, "bob"), 0));
    let cleo = member(&other, "cleo", "room");
    rig.broker.restart();
    let joins = [watcher.next(), watcher.next()];
    let expected = [(&bob, "bob", 1), (&cleo, "cleo", 2)]
        .map(|(client, user, count)| event("join", &far(&other_life, client, user), count));
    assert_eq!(joins, expected);
    assert_eq!(whole(&mut watcher.client)["count"], 2);
    "local members go on, answers are `partial`, and others leave when they are given up and come back with the broker".into()
}

/// What no server of ours has said is refused, whatever it is, and what others say goes on.
pub(crate) fn foreign_words_about_who_is_there(kind: &'static Kind) -> String {
    let rig = Rig::start(kind);
    let [one, other] = [rig.node(), rig.node()];
    let mut watcher = Watcher::new(&one);
    let say = |message: Value| rig.publish_as_stranger("nodes", false, message.to_string().as_bytes());
    let said = |number: u64, said: Value| {
        say(json!({"node": "7", "type": "present", "number": number, "channels": {"room": said}}));
    };
    said(1, json!({"count": 1, "members": [{"connection": 1, "user": "a\nb"}]}));
    said(2, json!({"count": 3, "members": [{"connection": 1}]}));
    said(3, json!({"count": -1}));
    said(4, json!("everybody"));
    say(
        json!({"node": "7", "type": "who", "number": 1, "ask": ["", "a.*", "$sys.cpu", "$presence.x"], "keep": []}),
    );
    wait_for("the refusals", || (one.refused("malformed") >= 6.0).then_some(()));
    // Two of them are no message at all.
    let refused = || metric(one.address(), "tidewire_node_messages_refused_total");
    wait_for("the other refusals", || (refused() >= 2.0).then_some(()));
    // One that nobody has seen before, and that is never heard of again.
    said(5, json!({"count": 1, "members": [{"connection": 9}]}));
    let stranger = json!({"server": "0000000000000007", "connection": 9});
    assert_eq!(watcher.next(), event("join", &stranger, 1));
    let bob = member(&other, "bob", "room");
    assert_eq!(watcher.next(), event("join", &far(&life(&other), &bob, "bob"), 2));
    assert_eq!(watcher.next(), event("leave", &stranger, 1), "it is given up");
    "refused and counted; a server that nobody hears of again is given up".into()
}
