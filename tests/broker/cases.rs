//! The cases. Each is the same for every kind of broker, asserts what the kind's capabilities promise, and says what it saw.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use tidewire::broker::{Event, Keep, Outgoing, Side};

use crate::credentials::Credentials;
use crate::node::{Node, Rig, assert_run, assert_same, number, numbered, secret_file, topic};
use crate::relay::Relay;
use crate::servers::{Options, Program, Server, certificates};

pub(crate) async fn messages_of_a_topic_stay_in_order(rig: Rig) -> String {
    const EACH: u64 = 300;
    let names = [("a", Keep::Yes), ("a.b", Keep::Yes), ("$node-1", Keep::No)];
    let server = rig.server();
    let mut nodes = [rig.node(server.port).await, rig.node(server.port).await];
    for node in &mut nodes {
        for (name, keep) in names {
            assert!(node.subscribe(name, keep).await.is_empty());
        }
    }
    for round in 0..EACH {
        for (name, keep) in names {
            nodes[0].publish(name, keep, numbered(round, 8));
        }
    }
    for node in &mut nodes {
        let mut got: HashMap<String, Vec<u64>> = HashMap::new();
        for _ in 0..EACH * names.len() as u64 {
            let (name, number) = node
                .until(|event| match event {
                    Event::Message { topic, payload } => Some((topic.to_string(), number(&payload))),
                    Event::Lost(lost) => panic!("{lost:?}"),
                    _ => None,
                })
                .await;
            got.entry(name).or_default().push(number);
        }
        for (name, _) in names {
            assert_run(&got[name], 0, EACH - 1);
        }
    }
    "in order; the publisher's own come back, too".to_owned()
}

pub(crate) async fn what_was_published_before_is_the_backlog(rig: Rig) -> String {
    let server = rig.server();
    let publisher = rig.node(server.port).await;
    for number in 0..10 {
        publisher.publish("a", Keep::Yes, numbered(number, 8));
        publisher.publish("c", Keep::No, numbered(number, 8));
    }
    publisher.published(20).await;
    let mut node = rig.node(server.port).await;
    let backlog: Vec<_> =
        node.subscribe("a", Keep::Yes).await.iter().map(|payload| number(payload)).collect();
    assert!(node.subscribe("c", Keep::No).await.is_empty(), "nobody keeps it");
    publisher.publish("a", Keep::Yes, numbered(10, 8));
    let (next, _) = node.numbers_until("a", 10).await;
    assert_eq!(next, [10]);
    if !rig.keeps() {
        assert!(backlog.is_empty());
        return "no backlog".to_owned();
    }
    assert_run(&backlog, 0, 9);
    // Only so much of it as was asked for, and the newest of it.
    let mut settings = rig.settings(server.port);
    settings.keep_topic_bytes = 40;
    let mut node = Node::start(settings);
    node.up().await;
    let backlog: Vec<_> =
        node.subscribe("a", Keep::Yes).await.iter().map(|payload| number(payload)).collect();
    assert_run(&backlog, 6, 10);
    "all of it, as far back as bytes and age allow".to_owned()
}

pub(crate) async fn backlog_and_live_are_one_sequence(rig: Rig) -> String {
    const ALL: u64 = 4_000;
    let server = rig.server();
    let publisher = rig.node(server.port).await;
    let mut readers = Vec::new();
    for sent in 0..ALL {
        publisher.publish("a", Keep::Yes, numbered(sent, 100));
        if sent % 400 == 399 && readers.len() < 5 {
            publisher.published(sent / 2).await;
            let node = rig.node(server.port).await;
            // What is published from here on comes while it subscribes.
            assert!(node.broker.subscribe(topic("a"), Keep::Yes));
            readers.push(node);
        }
    }
    // On a busy machine all of it may have been published before one has looked.
    let mut backlogs = Vec::new();
    for node in &mut readers {
        let backlog = node.subscribed("a").await;
        backlogs.push(backlog.iter().map(|payload| number(payload)).collect::<Vec<_>>());
    }
    publisher.publish("a", Keep::Yes, numbered(ALL, 8));
    for (node, backlog) in readers.iter_mut().zip(backlogs) {
        let (live, losses) = node.numbers_until("a", ALL).await;
        assert_same(&losses, &[]);
        let whole = [backlog, live].concat();
        assert_run(&whole, if rig.keeps() { 0 } else { whole[0] }, ALL);
    }
    let from = if rig.keeps() { "from the first" } else { "from live on" };
    format!("none twice, none missing, {from}")
}

pub(crate) async fn nothing_comes_after_unsubscribe(rig: Rig) -> String {
    let server = rig.server();
    let publisher = rig.node(server.port).await;
    let mut node = rig.node(server.port).await;
    for name in ["a", "b"] {
        node.subscribe(name, Keep::Yes).await;
    }
    publisher.publish("a", Keep::Yes, numbered(0, 8));
    assert_eq!(node.numbers_until("a", 0).await.0, [0]);
    publisher.publish("a", Keep::Yes, numbered(1, 8));
    publisher.published(2).await;
    // It may have come in already.
    node.broker.unsubscribe("a");
    publisher.publish("a", Keep::Yes, numbered(2, 8));
    publisher.publish("b", Keep::Yes, numbered(3, 8));
    let first =
        node.until(|event| if let Event::Message { topic, .. } = event { Some(topic) } else { None }).await;
    assert_eq!(&*first, "b");
    let again: Vec<_> = node.subscribe("a", Keep::Yes).await.iter().map(|payload| number(payload)).collect();
    if rig.keeps() {
        assert_run(&again, 0, 2);
    } else {
        assert!(again.is_empty());
    }
    publisher.publish("a", Keep::Yes, numbered(4, 8));
    assert_eq!(node.numbers_until("a", 4).await.0, [4]);
    "nothing; who subscribes again begins anew".to_owned()
}

pub(crate) async fn a_thousand_topics(rig: Rig) -> String {
    let server = rig.server();
    let publisher = rig.node(server.port).await;
    let mut node = rig.node(server.port).await;
    let names: Vec<_> = (0..1_000).map(|number| format!("rig-{number}.speed")).collect();
    let mut open: HashSet<_> = names.iter().cloned().collect();
    for name in &names {
        assert!(node.broker.subscribe(topic(name), Keep::Yes));
    }
    while !open.is_empty() {
        let name =
            node.until(|event| {
                if let Event::Subscribed { topic, .. } = event { Some(topic.to_string()) } else { None }
            })
            .await;
        assert!(open.remove(&name), "{name} twice");
    }
    for (number, name) in (0..).zip(&names) {
        publisher.publish(name, Keep::Yes, numbered(number, 8));
    }
    for _ in 0..names.len() {
        let (name, got) = node
            .until(|event| match event {
                Event::Message { topic, payload } => Some((topic.to_string(), number(&payload))),
                _ => None,
            })
            .await;
        assert_eq!(name, names[usize::try_from(got).unwrap()]);
    }
    assert_eq!(node.broker.counters().topics, 1_000);
    for name in &names {
        node.broker.unsubscribe(name);
    }
    assert_eq!(node.broker.counters().topics, 0);
    "each gets its own".to_owned()
}

pub(crate) async fn payloads_of_every_kind(rig: Rig) -> String {
    let server = rig.server();
    let mut node = rig.node(server.port).await;
    node.subscribe("a", Keep::Yes).await;
    node.subscribe("c", Keep::No).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = every_byte.iter().cycle().copied().take(1 << 20).collect();
    let payloads: [&[u8]; 5] = [b"", b"\0", b"\r\nPUB x 1\r\n*1\r\n$4\r\nQUIT\r\n", &every_byte, &large];
    for keep in [Keep::Yes, Keep::No] {
        let name = if keep == Keep::Yes { "a" } else { "c" };
        for payload in payloads {
            let (head, body) = payload.split_at(payload.len() / 3);
            let (head, body) = (Bytes::copy_from_slice(head), Bytes::copy_from_slice(body));
            node.broker.publish(Outgoing { topic: topic(name), keep, head, body });
            let got = node
                .until(|event| match event {
                    Event::Message { topic, payload } if &*topic == name => Some(payload),
                    Event::Lost(lost) => panic!("{lost:?}"),
                    _ => None,
                })
                .await;
            assert!(got == payload, "{} bytes came as {}", payload.len(), got.len());
        }
    }
    "as they were, up to 1 MiB".to_owned()
}

pub(crate) async fn a_payload_over_the_limit(rig: Rig) -> String {
    let server = rig.server();
    let mut node = rig.node(server.port).await;
    for (name, keep) in [("a", Keep::Yes), ("c", Keep::No)] {
        node.subscribe(name, keep).await;
        node.publish(name, keep, numbered(0, 3 << 20));
        node.publish(name, keep, numbered(1, 8));
        let (numbers, losses) = node.numbers_until(name, 1).await;
        assert_eq!(numbers, [1]);
        let lost = match losses.into_iter().next() {
            Some(lost) => lost,
            None => node.lost(|_| true).await,
        };
        assert_eq!((lost.side, lost.messages), (Side::Outgoing, Some(1)));
        assert_eq!(lost.topic.as_deref(), Some(name));
        assert!(lost.why.contains("3145728 bytes"), "{}", lost.why);
    }
    assert_eq!(node.broker.counters().connections, 1, "the connection stayed");
    "lost, and told to the publisher; the rest goes on".to_owned()
}

pub(crate) async fn absent_at_the_start(rig: Rig) -> String {
    let mut server = Server::absent(rig.program, Options::default());
    let mut node = Node::start(rig.settings(server.port));
    let why = node.down().await;
    assert!(why.contains("refused"), "{why}");
    assert!(!node.broker.is_up());
    assert!(node.broker.subscribe(topic("a"), Keep::Yes));
    node.publish("a", Keep::Yes, numbered(7, 8));
    server.restart();
    // Subscriptions are live before anything is published, and the backlog may be looked at behind that.
    let backlog: Vec<_> = node.subscribed("a").await.iter().map(|payload| number(payload)).collect();
    if backlog.is_empty() {
        assert_eq!(node.numbers_until("a", 7).await, (vec![7], vec![]));
    } else {
        assert!(rig.keeps());
        assert_eq!(backlog, [7]);
    }
    "told with the reason; what was published meanwhile goes out later".to_owned()
}

pub(crate) async fn killed_and_started_again(rig: Rig) -> String {
    let mut server = rig.server();
    let mut publisher = rig.node(server.port).await;
    let mut node = rig.node(server.port).await;
    node.subscribe("a", Keep::Yes).await;
    node.subscribe("c", Keep::No).await;
    publisher.publish("a", Keep::Yes, numbered(0, 8));
    assert_eq!(node.numbers_until("a", 0).await.0, [0]);
    // What is not confirmed is published again, and may come twice.
    publisher.published(1).await;
    // JetStream writes to its disk every now and then; what was confirmed is in the kernel, and a kill leaves it there.
    server.kill();
    let why = node.down().await;
    publisher.down().await;
    for number in 1..=5 {
        publisher.publish("a", Keep::Yes, numbered(number, 8));
    }
    server.restart();
    publisher.up().await;
    publisher.published(6).await;
    node.counted(|node| node.broker.is_up()).await;
    publisher.publish("a", Keep::Yes, numbered(6, 8));
    let (numbers, losses) = node.numbers_until("a", 6).await;
    let of_topic: Vec<_> = losses.iter().filter(|lost| lost.topic.as_deref() == Some("a")).collect();
    publisher.publish("c", Keep::No, numbered(9, 8));
    assert_eq!(node.numbers_until("c", 9).await.0, [9], "the interest is restored");
    let told = match rig.program {
        Program::JetStream => {
            assert_run(&numbers, 1, 6);
            assert!(of_topic.is_empty(), "{of_topic:?}");
            "nothing is lost: it was on disk"
        }
        Program::Redis if rig.keeps() => {
            assert_run(&numbers, 1, 6);
            assert_eq!(of_topic.len(), 1, "{losses:?}");
            assert_eq!(of_topic[0].messages, None);
            "lost is told, since this server keeps nothing on disk; what was published meanwhile arrives"
        }
        _ => {
            let first = numbers[0];
            assert_run(&numbers, first, 6);
            "lost is told; what was published meanwhile arrives if the subscriber is back first"
        }
    };
    if !rig.keeps() {
        assert!(losses.iter().any(|lost| lost.topic.is_none() && lost.side == Side::Incoming), "{losses:?}");
    }
    format!("down ({why}), up, interest restored; {told}")
}

/// A node whose connection can be cut, and a publisher beside it that is not.
async fn apart(
    rig: &Rig,
    server: &Server,
    set: impl Fn(&mut tidewire::broker::BrokerSettings),
) -> (Node, Node, Relay) {
    let relay = Relay::start(server.port);
    let start = |port| {
        let mut settings = rig.settings(port);
        set(&mut settings);
        Node::start(settings)
    };
    let (mut publisher, mut node) = (start(server.port), start(relay.port));
    publisher.up().await;
    node.up().await;
    node.subscribe("a", Keep::Yes).await;
    publisher.publish("a", Keep::Yes, numbered(0, 8));
    assert_eq!(node.numbers_until("a", 0).await.0, [0]);
    (publisher, node, relay)
}

pub(crate) async fn cut_off_for_a_while(rig: Rig) -> String {
    let server = rig.server();
    let (publisher, mut node, relay) = apart(&rig, &server, |_| {}).await;
    relay.cut();
    node.down().await;
    for number in 1..=500 {
        publisher.publish("a", Keep::Yes, numbered(number, 1_000));
    }
    publisher.published(501).await;
    relay.mend();
    if rig.keeps() {
        let (numbers, losses) = node.numbers_until("a", 500).await;
        assert_run(&numbers, 1, 500);
        assert_same(&losses, &[]);
        publisher.publish("a", Keep::Yes, numbered(501, 8));
        assert_eq!(node.numbers_until("a", 501).await, (vec![501], vec![]));
        return "goes on where it was: none twice, none missing".to_owned();
    }
    let lost = node.lost(|_| true).await;
    assert_eq!((lost.side, lost.topic, lost.messages), (Side::Incoming, None, None));
    node.counted(|node| node.broker.is_up()).await;
    publisher.publish("a", Keep::Yes, numbered(501, 8));
    assert_eq!(node.numbers_until("a", 501).await.0, [501]);
    "lost is told (nobody knows how many), goes on live".to_owned()
}

pub(crate) async fn trimmed_while_cut_off(rig: Rig) -> String {
    const ALL: u64 = 400;
    if !rig.keeps() {
        return "keeps nothing".to_owned();
    }
    let server = rig.server();
    let (publisher, mut node, relay) = apart(&rig, &server, |settings| {
        settings.keep_topic_bytes = 64 << 10;
        settings.keep_total_bytes = 256 << 10;
    })
    .await;
    relay.cut();
    node.down().await;
    for number in 1..=ALL {
        publisher.publish("a", Keep::Yes, numbered(number, 4 << 10));
    }
    publisher.published(ALL + 1).await;
    relay.mend();
    let (numbers, losses) = node.numbers_until("a", ALL).await;
    assert!(numbers.len() > 4, "{numbers:?}");
    let first = numbers[0];
    assert!(first > 1, "it was trimmed");
    assert_run(&numbers, first, ALL);
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(losses[0].topic.as_deref(), Some("a"));
    if rig.kind.capabilities.counts_losses {
        assert_eq!(losses[0].messages, Some(first - 1));
        "lost is told with the number, the rest arrives".to_owned()
    } else {
        assert_eq!(losses[0].messages, None);
        "lost is told, the rest arrives".to_owned()
    }
}

pub(crate) async fn history_deleted_while_cut_off(rig: Rig) -> String {
    if !rig.keeps() {
        return "keeps nothing".to_owned();
    }
    let server = rig.server();
    let (mut publisher, mut node, relay) = apart(&rig, &server, |_| {}).await;
    relay.cut();
    node.down().await;
    publisher.publish("a", Keep::Yes, numbered(1, 8));
    publisher.published(2).await;
    match rig.program {
        Program::Redis => drop(server.redis_command(&[b"DEL", b"tidewire.kept.a"])),
        _ => {
            let answer = server.nats_publish("$JS.API.STREAM.DELETE.tidewire_kept", Some("test.inbox"), b"");
            assert!(answer.contains("\"success\":true"), "{answer}");
        }
    }
    // The publisher finds out by itself that there is no stream any more, and makes one.
    publisher.publish("a", Keep::Yes, numbered(2, 8));
    publisher.published(3).await;
    if rig.program == Program::JetStream {
        publisher.down().await;
        publisher.up().await;
    }
    relay.mend();
    let (numbers, losses) = node.numbers_until("a", 2).await;
    assert_eq!(numbers, [2]);
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((losses[0].topic.as_deref(), losses[0].messages), (Some("a"), None));
    publisher.publish("a", Keep::Yes, numbered(3, 8));
    assert_eq!(node.numbers_until("a", 3).await, (vec![3], vec![]));
    "lost is told, goes on with the new history".to_owned()
}

pub(crate) async fn suspended_for_a_while(rig: Rig) -> String {
    const BOUND: usize = 1 << 20;
    let server = rig.server();
    let mut settings = rig.settings(server.port);
    settings.outgoing_bytes_max = BOUND;
    let mut publisher = Node::start(settings);
    publisher.up().await;
    let mut node = rig.node(server.port).await;
    node.subscribe("a", Keep::Yes).await;
    server.suspend();
    for number in 0..500 {
        publisher.publish("a", Keep::Yes, numbered(number, 16 << 10));
        assert!(publisher.broker.counters().outgoing_bytes <= BOUND);
    }
    let lost = publisher.lost(|lost| lost.side == Side::Outgoing).await;
    assert_eq!(lost.topic.as_deref(), Some("a"));
    let why = publisher.down().await;
    assert!(why.contains("did not answer"), "{why}");
    node.down().await;
    server.resume();
    node.up().await;
    publisher.counted(|publisher| publisher.broker.is_up()).await;
    publisher.publish("a", Keep::Yes, numbered(500, 8));
    let (numbers, _) = node.numbers_until("a", 500).await;
    let mut sorted = numbers.clone();
    sorted.dedup();
    // A batch may have been taken by the server and not confirmed: it goes again, in order.
    assert!(numbers.len() <= 2 * sorted.len());
    "down is told after the timeout, memory is bounded, what did not fit is told, goes on".to_owned()
}

pub(crate) async fn a_reader_that_is_slow(rig: Rig) -> String {
    const ALL: u64 = 3_000;
    const BOUND: usize = 256 << 10;
    let server = rig.server();
    let mut settings = rig.settings(server.port);
    settings.incoming_bytes_max = BOUND;
    settings.keep_topic_bytes = 64 << 20;
    let publisher = Node::start(settings.clone());
    let mut node = Node::start(settings);
    node.up().await;
    node.subscribe("a", Keep::Yes).await;
    for number in 0..ALL {
        publisher.publish("a", Keep::Yes, numbered(number, 1_000));
    }
    publisher.published(ALL).await;
    if !rig.keeps() {
        node.counted(|node| {
            let counters = node.broker.counters();
            counters.received_messages == ALL && counters.lost_incoming > 0
        })
        .await;
    }
    let waiting = node.broker.counters().incoming_bytes;
    assert!(waiting <= 2 * BOUND + (1 << 20), "{waiting}");
    let (numbers, losses) = node.numbers_until("a", ALL - 1).await;
    if rig.keeps() {
        assert_run(&numbers, 0, ALL - 1);
        assert_same(&losses, &[]);
        return "nothing is lost: the rest waits with the broker".to_owned();
    }
    let lost: u64 = losses.iter().map(|lost| lost.messages.unwrap()).sum();
    assert_run(&numbers, lost, ALL - 1);
    "the oldest are lost and counted".to_owned()
}

pub(crate) async fn a_connection_that_is_slow(rig: Rig) -> String {
    const ALL: u64 = 2_000;
    let server = rig.server();
    let (publisher, mut node, relay) = apart(&rig, &server, |settings| {
        settings.keep_topic_bytes = 128 << 20;
        settings.outgoing_bytes_max = 64 << 20;
    })
    .await;
    relay.stall();
    for number in 1..=ALL {
        publisher.publish("a", Keep::Yes, numbered(number, 16 << 10));
    }
    publisher.published(ALL + 1).await;
    let why = node.down().await;
    relay.mend();
    if rig.keeps() {
        let (numbers, losses) = node.numbers_until("a", ALL).await;
        assert_run(&numbers, 1, ALL);
        assert_same(&losses, &[]);
        return format!("down ({why}), then goes on where it was");
    }
    node.lost(|lost| lost.topic.is_none() && lost.side == Side::Incoming).await;
    node.counted(|node| node.broker.is_up()).await;
    publisher.publish("a", Keep::Yes, numbered(ALL + 1, 8));
    node.numbers_until("a", ALL + 1).await;
    format!("down ({why}), lost is told")
}

pub(crate) async fn a_wrong_password(rig: Rig) -> String {
    let server = Server::start(rig.program, Options { password: Some("r1ght-s3cret"), ..Options::default() });
    let file = server.dir.path().join("password");
    secret_file(&file, "wr0ng-s3cret\n");
    let mut settings = rig.settings(server.port);
    let user = if rig.program == Program::Redis { "" } else { "tide@" };
    settings.url = (&*format!("{}://{user}127.0.0.1:{}", rig.kind.scheme, server.port)).into();
    settings.password_file = Some(file.clone());
    let mut node = Node::start(settings);
    let why = node.down().await;
    assert!(why.contains("refuses this user and password"), "{why}");
    assert!(!why.contains("s3cret"), "{why}");
    node.counted(|node| node.broker.counters().failures >= 3).await;
    assert_eq!(node.events.try_recv(), None, "it is told once");
    // The file is read for each connection.
    secret_file(&file, "r1ght-s3cret\n");
    node.up().await;
    assert!(node.subscribe("a", Keep::Yes).await.is_empty());
    "down (it refuses this user and password), tried again with growing delays".to_owned()
}

pub(crate) async fn a_file_of_credentials(rig: Rig) -> String {
    if rig.program == Program::Redis {
        return "has passwords only".to_owned();
    }
    let (theirs, others) = (Credentials::new(), Credentials::new());
    let server = Server::start(rig.program, Options { more: Some(theirs.server), ..Options::default() });
    let file = server.dir.path().join("user.creds");
    let mut settings = rig.settings(server.port);
    settings.credentials_file = Some(file.clone());
    secret_file(&file, &others.user);
    let mut node = Node::start(settings);
    let why = node.down().await;
    assert!(why.contains("refuses"), "{why}");
    secret_file(&file, &theirs.user);
    node.up().await;
    node.subscribe("a", Keep::Yes).await;
    node.publish("a", Keep::Yes, numbered(1, 8));
    assert_eq!(node.numbers_until("a", 1).await.0, [1]);
    "taken; another account's are refused, and why is told".to_owned()
}

pub(crate) async fn the_second_of_two_hosts(rig: Rig) -> String {
    let mut first = Server::absent(rig.program, Options::default());
    let mut second = rig.server();
    let mut settings = rig.settings(second.port);
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", first.port, second.port);
    settings.url = (&*format!("{}://{hosts}", rig.kind.scheme)).into();
    let mut node = Node::start(settings);
    node.up().await;
    node.subscribe("a", Keep::Yes).await;
    first.restart();
    second.kill();
    node.down().await;
    node.up().await;
    node.publish("a", Keep::Yes, numbered(1, 8));
    assert_eq!(node.numbers_until("a", 1).await.0, [1]);
    "the one that is there, then the other".to_owned()
}

pub(crate) async fn over_tls(rig: Rig) -> String {
    let ours = tempfile::tempdir().unwrap();
    let theirs = tempfile::tempdir().unwrap();
    certificates(ours.path());
    certificates(theirs.path());
    let tls = Some(ours.path().to_owned());
    let server = Server::start(rig.program, Options { tls, ..Options::default() });
    let settings = |ca: &std::path::Path, scheme: &str| {
        let mut settings = rig.settings(server.port);
        settings.url = (&*format!("{scheme}://127.0.0.1:{}", server.port)).into();
        settings.ca_file = Some(ca.join("ca.pem"));
        settings
    };
    let mut stranger = Node::start(settings(theirs.path(), rig.kind.scheme_tls));
    let why = stranger.down().await;
    assert!(why.contains("certificate is not trusted") && why.contains("broker.ca_file"), "{why}");
    let mut node = Node::start(settings(ours.path(), rig.kind.scheme_tls));
    node.up().await;
    node.subscribe("a", Keep::Yes).await;
    node.publish("a", Keep::Yes, numbered(1, 100_000));
    assert_eq!(node.numbers_until("a", 1).await.0, [1]);
    "with a CA file; another CA's server is refused, and why is told".to_owned()
}

pub(crate) async fn full(rig: Rig) -> String {
    if !rig.keeps() {
        return "keeps nothing".to_owned();
    }
    let server = Server::start(rig.program, Options { small: true, ..Options::default() });
    let mut settings = rig.settings(server.port);
    settings.keep_topic_bytes = 64 << 20;
    settings.keep_total_bytes = 64 << 20;
    let mut node = Node::start(settings.clone());
    if rig.program == Program::JetStream {
        // It is asked for the room when the stream is made.
        let why = node.down().await;
        assert!(why.contains("cannot be made") && why.contains("insufficient"), "{why}");
        settings.keep_total_bytes = 2 << 20;
        node = Node::start(settings);
        node.up().await;
        node.subscribe("a", Keep::Yes).await;
        for number in 0..1_000 {
            node.publish("a", Keep::Yes, numbered(number, 16 << 10));
        }
        let (numbers, losses) = node.numbers_until("a", 999).await;
        assert_run(&numbers, 0, 999);
        assert_same(&losses, &[]);
        return "down, if there is no room for the stream; else the oldest go, and it is never full"
            .to_owned();
    }
    node.up().await;
    node.subscribe("c", Keep::No).await;
    for number in 0..1_000 {
        node.publish("a", Keep::Yes, numbered(number, 16 << 10));
    }
    let lost = node.lost(|lost| lost.side == Side::Outgoing).await;
    assert!(lost.why.contains("the broker is full"), "{lost:?}");
    node.publish("c", Keep::No, numbered(1, 8));
    assert_eq!(node.numbers_until("c", 1).await.0, [1]);
    assert_eq!(node.broker.counters().connections, 1, "the connection stayed");
    "lost is told to the publisher with the reason; what is not kept goes on".to_owned()
}

pub(crate) async fn foreign_messages(rig: Rig) -> String {
    let server = rig.server();
    let publisher = rig.node(server.port).await;
    let mut node = rig.node(server.port).await;
    node.subscribe("a", Keep::Yes).await;
    node.subscribe("c", Keep::No).await;
    let payloads: [&[u8]; 4] = [b"", b"not ours", b"\xff\0 1-1 \r\n", &[b'9'; 300]];
    let kept = match rig.kind.scheme {
        "redis-streams" => "tidewire.kept.a",
        // Where the stream publishes.
        "jetstream" => "tidewire.live.a",
        _ => "tidewire.plain.a",
    };
    for (name, channel) in [("a", kept), ("c", "tidewire.plain.c")] {
        for payload in payloads {
            match rig.program {
                Program::Redis => drop(server.redis_command(&[b"PUBLISH", channel.as_bytes(), payload])),
                _ => drop(server.nats_publish(channel, None, payload)),
            }
            let got = node
                .until(|event| match event {
                    Event::Message { topic, payload } if &*topic == name => Some(payload),
                    _ => None,
                })
                .await;
            assert!(got == payload, "{payload:?} came as {got:?}");
        }
    }
    // What others put into the history.
    match rig.kind.scheme {
        "redis-streams" => {
            drop(server.redis_command(&[b"XADD", b"tidewire.kept.b", b"*", b"x", b"not ours", b"y", b"z"]));
            drop(server.redis_command(&[b"SET", b"tidewire.kept.d", b"no stream"]));
        }
        "jetstream" => drop(server.nats_publish("tidewire.kept.b", None, b"not ours")),
        _ => {}
    }
    if rig.keeps() {
        assert_eq!(node.subscribe("b", Keep::Yes).await, [Bytes::from_static(b"not ours")]);
    }
    if rig.kind.scheme == "redis-streams" {
        assert!(node.broker.subscribe(topic("d"), Keep::Yes));
        let refused = node
            .until(|event| if let Event::Refused { topic, why } = event { Some((topic, why)) } else { None })
            .await;
        assert_eq!(&*refused.0, "d");
        assert!(refused.1.contains("WRONGTYPE"), "{}", refused.1);
        publisher.publish("d", Keep::Yes, numbered(1, 8));
        publisher.counted(|publisher| publisher.broker.counters().lost_outgoing == 1).await;
    }
    publisher.publish("a", Keep::Yes, numbered(7, 8));
    assert_eq!(node.numbers_until("a", 7).await, (vec![7], vec![]));
    assert_eq!(node.broker.counters().connections, 1, "the connection stayed");
    "delivered as the bytes that they are, and nothing else happens".to_owned()
}

pub(crate) async fn stopped_with_messages_waiting(rig: Rig) -> String {
    const ALL: u64 = 2_000;
    let server = rig.server();
    let mut node = rig.node(server.port).await;
    node.subscribe("a", Keep::Yes).await;
    let mut publisher = rig.node(server.port).await;
    for number in 0..ALL {
        publisher.publish("a", Keep::Yes, numbered(number, 100));
    }
    publisher.broker.stop();
    while publisher.events.recv().await.is_some() {}
    publisher.broker.join();
    assert_eq!(publisher.broker.counters().published_messages, ALL);
    assert!(!publisher.broker.is_up());
    let (numbers, losses) = node.numbers_until("a", ALL - 1).await;
    assert_run(&numbers, 0, ALL - 1);
    assert_same(&losses, &[]);
    "all of it goes out first".to_owned()
}
