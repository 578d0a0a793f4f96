//! `tidewire sub` and `tidewire pub` as processes: signals, closed pipes and exit codes, which no test in the process can
//! show. What they say to a server is tested beside them.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use serde_json::json;
use tidewire::wire::proto::{Block, Frame, Publish, Sample, sample::Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
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
    send_sample(&mut peer, 1).await;
    assert_eq!(closed(&mut peer).await, Some(1000));
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
