//! `tidewire sub` and `tidewire pub` as processes: signals, closed pipes, exit codes, and tokens with a server that wants them,
//! which no test in the process can show. What they say to a server is tested beside them.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use serde_json::json;
use tidewire::wire::proto::{Block, Frame, Publish, Sample, sample::Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// A process that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

type Peer = WebSocketStream<TcpStream>;

/// Starts the command and greets it.
async fn start(arguments: &[&str]) -> (Child, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let child = Command::new(env!("CARGO_BIN_EXE_tidewire"))
        .args(arguments)
        .args(["--url", &url])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
    let agree = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", "tidewire.v1".parse().unwrap());
        Ok(response)
    };
    let mut peer = tokio_tungstenite::accept_hdr_async(stream, agree).await.unwrap();
    let welcome = json!({
        "type": "welcome", "protocol": "tidewire.v1", "connection": 1, "server_ns": "1",
        "limits": {"message_bytes_max": 65536, "message_samples_max": 4096}, "settings": {"ping_ms": 0},
    });
    peer.send(Message::text(welcome.to_string())).await.unwrap();
    (child, peer)
}

async fn send_sample(peer: &mut Peer, seq: u64) {
    let samples = vec![Sample { source_delta_ns: 0, value: Some(Value::Number(1.25)) }];
    let blocks = vec![Block { source_ns: 1, received_ns: 2, samples }];
    let frame = Frame { channel: 3, seq, count: 1, blocks, ..Frame::default() };
    peer.send(Message::binary(frame.encode_to_vec())).await.unwrap();
}

/// The code of the peer's close frame; reads on to the end of the socket, which sends the echo.
async fn closed(peer: &mut Peer) -> Option<u16> {
    let mut code = None;
    while let Some(Ok(message)) = peer.next().await {
        if let Message::Close(frame) = message {
            code = frame.map(|frame| frame.code.into());
        }
    }
    code
}

/// The code of the peer's close frame, if that comes before a pong.
async fn closed_or_pong(peer: &mut Peer) -> Option<u16> {
    loop {
        match peer.next().await.unwrap().unwrap() {
            Message::Close(frame) => return Some(frame.unwrap().code.into()),
            Message::Pong(_) => return None,
            _ => {}
        }
    }
}

async fn exit_code(mut child: Child) -> Option<i32> {
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("the process ends").unwrap().code()
}

#[tokio::test]
async fn signals_end_sub_with_a_close_frame() {
    for signal in ["-INT", "-TERM"] {
        let (mut child, mut peer) = start(&["sub", "a"]).await;
        send_sample(&mut peer, 1).await;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        assert!(line.contains(" channel-3 #1 1.25 ("), "{line}");
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
        assert_eq!(closed(&mut peer).await, Some(1000), "{signal}");
        assert_eq!(exit_code(child).await, Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_closed_output_ends_sub_quietly() {
    let (mut child, mut peer) = start(&["sub", "a"]).await;
    drop(child.stdout.take());
    // A process that another test is starting may hold the other end for a moment more: not the first line need fail.
    let mut seq = 1;
    let code = loop {
        send_sample(&mut peer, seq).await;
        peer.send(Message::Ping(Bytes::new())).await.unwrap();
        seq += 1;
        if let Some(code) = closed_or_pong(&mut peer).await {
            break code;
        }
    };
    assert_eq!(code, 1000);
    assert_eq!(closed(&mut peer).await, None);
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(exit_code(child).await, Some(0));
    assert_eq!(errors.next_line().await.unwrap(), None);
}

#[tokio::test]
async fn a_signal_ends_pub_while_its_input_is_open() {
    let (mut child, mut peer) = start(&["pub", "a"]).await;
    let advertise = peer.next().await.unwrap().unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(advertise.to_text().unwrap()).unwrap()["type"],
        "advertise"
    );
    let advertised = json!({"type": "advertised", "id": 1, "channel": 3, "name": "a", "epoch": 1, "seq": 1});
    peer.send(Message::text(advertised.to_string())).await.unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"1.25\n").await.unwrap();
    let publish = Publish::decode(peer.next().await.unwrap().unwrap().into_data()).unwrap();
    assert_eq!(publish.block.unwrap().samples[0].value, Some(Value::Number(1.25)));
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(closed(&mut peer).await, Some(1000));
    assert_eq!(exit_code(child).await, Some(0));
    drop(input);
}

/// A server with keys, and the files of those who use it.
struct Guarded {
    folder: tempfile::TempDir,
    keys: String,
    url: String,
    server: Child,
    /// What the server logs, at the most that it can.
    log: BufReader<tokio::process::ChildStderr>,
}

impl Guarded {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys.json").to_str().unwrap().to_owned();
        let made = tidewire(&["token", "keygen", "--out", &keys]).output().await.unwrap();
        assert!(made.status.success());
        let setting = format!("auth.keys_file={keys}");
        let mut server = tidewire(&["serve", "--listen", "127.0.0.1:0", "--no-host-telemetry"])
            .args(["--log-filter", "trace", "--set", "auth.leeway_ms=0", "--set", &setting])
            .spawn()
            .unwrap();
        let first = BufReader::new(server.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
        let url = first.split(' ').next_back().unwrap().to_owned();
        let log = BufReader::new(server.stderr.take().unwrap());
        Self { folder, keys, url, server, log }
    }

    async fn mint(&self, more: &[&str]) -> String {
        let output = tidewire(&["token", "mint", "--keys", &self.keys]).args(more).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Puts a token into the file that `--token-file` names, at once and whole.
    fn replace(&self, token: &str) -> String {
        let (new, path) = (self.folder.path().join("new"), self.folder.path().join("token"));
        std::fs::write(&new, token).unwrap();
        std::fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, &path).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a client command to its end; its exit code and what it said on standard error.
    async fn run(&self, arguments: &[&str], token: Option<&str>) -> (Option<i32>, String) {
        let mut command = tidewire(arguments);
        command.args(["--url", &self.url]).envs(token.map(|token| ("TIDEWIRE_TOKEN", token)));
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // For `pub`, which has nothing to do without; one that was refused at once reads nothing.
        drop(child.stdin.take().unwrap().write_all(b"1\n").await);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = output.expect("the process ends").unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(token.is_none_or(|token| token.is_empty() || !said.contains(token)), "{said}");
        (output.status.code(), said)
    }

    /// What the server has logged up to now and until it is killed.
    async fn logged(mut self) -> String {
        self.server.kill().await.unwrap();
        let mut log = String::new();
        self.log.read_to_string(&mut log).await.unwrap();
        log
    }
}

/// A command without an environment.
fn tidewire(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    command.args(arguments).env_clear().kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The lines of a command as JSON, up to the first that is wanted.
async fn until(
    lines: &mut Lines<BufReader<tokio::process::ChildStdout>>,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> Vec<serde_json::Value> {
    let mut seen = Vec::new();
    let look = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the command goes on");
            seen.push(serde_json::from_str(&line).unwrap());
            if seen.last().is_some_and(&wanted) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("the line comes");
    seen
}

#[tokio::test]
async fn a_server_with_keys_lets_in_who_has_a_token() {
    let server = Guarded::start().await;
    let both = server.mint(&["--sub", "alice", "--subscribe", "a", "--publish", "a"]).await;
    let mut sub = tidewire(&["sub", "a", "--json", "--count", "1"])
        .args(["--url", &server.url])
        .env("TIDEWIRE_TOKEN", &both)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sub.stdout.take().unwrap()).lines();
    until(&mut lines, |line| line["subscription"] == "a").await;
    let mut publisher = tidewire(&["pub", "a", "--url", &server.url])
        .env("TIDEWIRE_TOKEN", &both)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    publisher.stdin.take().unwrap().write_all(b"1.25\n").await.unwrap();
    assert_eq!(exit_code(publisher).await, Some(0));
    assert_eq!(until(&mut lines, |line| line["type"] == "sample").await.last().unwrap()["number"], 1.25);
    assert_eq!(exit_code(sub).await, Some(0));

    let forged = format!("{}AAAA", &both[..both.len() - 4]);
    let other = server.mint(&["--sub", "bob", "--subscribe", "b"]).await;
    let rows: [(&[&str], Option<&str>, &str); 7] = [
        (
            &["sub", "a"],
            None,
            "error: this server wants a token; set TIDEWIRE_TOKEN, or give --token-file FILE; not",
        ),
        (
            &["pub", "a"],
            None,
            "error: this server wants a token; set TIDEWIRE_TOKEN, or give --token-file FILE; not",
        ),
        (
            &["sub", "a"],
            Some(&forged),
            "error: refused with HTTP status 401: the token is not taken; ask its issuer for another; `tidewire token \
             inspect` shows what is in it; not connecting again\n",
        ),
        (
            &["sub", "a"],
            Some(&other),
            "error: forbidden: channel \"a\": the token gives no right to subscribe",
        ),
        (&["pub", "a"], Some(&other), "error: forbidden: channel \"a\": the token gives no right to publish"),
        (&["sub", "a"], Some(""), "error: TIDEWIRE_TOKEN: it is empty"),
        (&["sub", "a", "--token-file", &server.keys], None, "it is not a token alone"),
    ];
    for (arguments, token, words) in rows {
        let (code, said) = server.run(arguments, token).await;
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }

    let secret = std::fs::read_to_string(&server.keys).unwrap();
    let secret: serde_json::Value = serde_json::from_str(&secret).unwrap();
    let k = secret["keys"][0]["k"].as_str().unwrap().to_owned();
    let log = server.logged().await;
    assert!(log.contains("a token was refused in a handshake"), "it logs what it can: {log}");
    for token in [&k, &both, &forged, &other].map(|token| token.rsplit('.').next().unwrap()) {
        assert!(!log.contains(token), "{log}");
    }
}

#[tokio::test]
async fn a_token_file_that_is_replaced_in_time_keeps_the_connection() {
    let server = Guarded::start().await;
    // A server tells a minute before the end, so at once.
    let path = server.replace(&server.mint(&["--sub", "alice", "--subscribe", "a", "--expires", "6s"]).await);
    let mut sub =
        tidewire(&["sub", "a", "--json", "--token-file", &path, "--url", &server.url]).spawn().unwrap();
    let mut lines = BufReader::new(sub.stdout.take().unwrap()).lines();
    let mut seen = until(&mut lines, |line| line["type"] == "token_expiring").await;
    let end_ns = seen.last().unwrap()["expires_s"].as_u64().unwrap() * 1_000_000_000;
    server.replace(&server.mint(&["--sub", "alice", "--subscribe", "a", "--expires", "1h"]).await);
    seen.extend(until(&mut lines, |line| line["type"] == "authenticated").await);
    assert!(seen.last().unwrap()["expires_s"].as_u64().unwrap() * 1_000_000_000 > end_ns);

    // Samples, until the first token has ended by the server's clock.
    let publisher = server.mint(&["--sub", "bob", "--publish", "a"]).await;
    let mut publisher = tidewire(&["pub", "a", "--rate", "20", "--url", &server.url])
        .env("TIDEWIRE_TOKEN", publisher)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    publisher.stdin.as_mut().unwrap().write_all("1\n".repeat(10_000).as_bytes()).await.unwrap();
    let after = |line: &serde_json::Value| {
        let received_ns = line["received_ns"].as_str().and_then(|ns| ns.parse::<u64>().ok());
        received_ns.is_some_and(|ns| ns > end_ns + 1_000_000_000)
    };
    seen.extend(until(&mut lines, after).await);
    let of = |kind: &str| seen.iter().filter(|line| line["type"] == kind).count();
    let inbox = 1;
    assert_eq!((of("subscribed"), of("reconnecting"), of("error"), of("gap")), (1 + inbox, 0, 0, 0));
    let pid = sub.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(exit_code(sub).await, Some(0));
}

#[tokio::test]
async fn a_token_that_ends_without_another_ends_the_command() {
    let server = Guarded::start().await;
    let path = server.replace(&server.mint(&["--sub", "alice", "--subscribe", "a", "--expires", "4s"]).await);
    let (code, said) = server.run(&["sub", "a", "--token-file", &path], None).await;
    assert_eq!(code, Some(1), "{said}");
    let words = "error: token_expired: the token has ended; connect again with another\n\
                 error: unauthenticated (4401); another token is needed; not connecting again\n";
    assert!(said.ends_with(words), "{said}");
}

/// A server on this address; its URL, and its first line is out.
async fn serve(listen: &str) -> (Child, String) {
    let mut server = tidewire(&["serve", "--listen", listen, "--no-host-telemetry"]).spawn().unwrap();
    let first = BufReader::new(server.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    (server, first.split(' ').next_back().unwrap().to_owned())
}

async fn publish(url: &str, lines: &str) {
    let mut publisher = tidewire(&["pub", "rig.1", "--url", url]).stdin(Stdio::piped()).spawn().unwrap();
    publisher.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
    assert_eq!(exit_code(publisher).await, Some(0));
}

/// The numbers of the samples among these lines.
fn numbers(lines: &[serde_json::Value]) -> Vec<f64> {
    lines.iter().filter_map(|line| line["number"].as_f64()).collect()
}

#[tokio::test]
async fn sub_outlives_its_server_and_goes_on_with_the_next() {
    let (mut server, url) = serve("127.0.0.1:0").await;
    let address = url.strip_prefix("ws://").unwrap().strip_suffix("/ws").unwrap().to_owned();
    publish(&url, "1\n2\n3\n").await;
    let sub =
        |more: &[&str]| tidewire(&["sub", "rig.*", "--json", "--url", &url]).args(more).spawn().unwrap();
    // Two of the past, and then what is live.
    let mut first = sub(&["--last", "2"]);
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let mut seen = until(&mut lines, |line| line["number"] == 3.0).await;
    publish(&url, "4\n").await;
    seen.extend(until(&mut lines, |line| line["number"] == 4.0).await);
    assert_eq!(numbers(&seen), [2.0, 3.0, 4.0]);
    let replayed = |line: &&serde_json::Value| line["replayed"] == true;
    assert_eq!(seen.iter().filter(replayed).count(), 2);
    let epoch = seen.last().unwrap()["epoch"].as_u64().unwrap();

    // Somebody else goes on where this one is: behind what it has, all that is kept and nothing twice.
    let place = format!("rig.1={epoch}:1");
    let other = sub(&["--since", &place, "--count", "3"]).wait_with_output().await.unwrap();
    let other: Vec<serde_json::Value> = String::from_utf8(other.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(numbers(&other), [2.0, 3.0, 4.0]);
    let past = other.iter().find(|line| line["type"] == "past").unwrap();
    assert_eq!((&past["replayed"], &past["samples"]), (&json!(1), &json!(3)));

    // SIGKILL: nobody says goodbye.
    server.kill().await.unwrap();
    until(&mut lines, |line| line["type"] == "reconnecting").await;
    let (_server, again) = serve(&address).await;
    assert_eq!(again, url);
    publish(&url, "5\n6\n").await;
    let seen = until(&mut lines, |line| line["number"] == 6.0).await;
    assert_eq!(numbers(&seen), [5.0, 6.0]);
    // It keeps nothing beyond its life, and says so.
    let restarted = seen.iter().find(|line| line["type"] == "restarted").unwrap();
    assert_eq!((&restarted["epoch_before"], &restarted["seq"]), (&json!(epoch), &json!(1)));
    assert!(seen.iter().any(|line| line["type"] == "past" && line["reset"] == 1), "{seen:?}");
    let pid = first.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(exit_code(first).await, Some(0));
}
