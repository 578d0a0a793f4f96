//! Clients that are not ours: a WebSocket library that knows nothing of this server, and decoders that share no code with it.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use serde_json::{Value, json};
use tidewire::wire::proto::{Block, Frame, Publish, Sample, sample};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{DEADLINE, TestServer};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const SUBPROTOCOLS: [&str; 3] = ["tidewire.v1", "tidewire.v1.msgpack", "tidewire.v1.json"];

async fn connect(server: &TestServer, subprotocol: &str) -> Socket {
    let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.parse().unwrap());
    let (mut socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], subprotocol);
    assert_eq!(event(&mut socket, "welcome").await["protocol"], subprotocol);
    socket
}

async fn message(socket: &mut Socket) -> Message {
    let next = tokio::time::timeout(DEADLINE, socket.next()).await;
    next.expect("a message in time").expect("a message before the end").expect("a message without a fault")
}

/// The next event of this type; other messages are skipped.
async fn event(socket: &mut Socket, kind: &str) -> Value {
    loop {
        if let Message::Text(text) = message(socket).await {
            let event: Value = serde_json::from_str(&text).unwrap();
            if event["type"] == kind {
                return event;
            }
        }
    }
}

async fn send(socket: &mut Socket, request: Value) {
    socket.send(Message::text(request.to_string())).await.unwrap();
}

/// The next frame as JSON, whatever the codec: channel, sequence and numbers.
async fn frame(socket: &mut Socket) -> Value {
    let of = |seq: u64, channel: u64, numbers: Vec<f64>| json!({"seq": seq, "channel": channel, "numbers": numbers});
    loop {
        let frame: Value = match message(socket).await {
            Message::Binary(bytes) => match Frame::decode(&*bytes) {
                Ok(frame) => {
                    let samples = frame.blocks.iter().flat_map(|block| &block.samples);
                    let number = |sample: &Sample| match sample.value {
                        Some(sample::Value::Number(number)) => number,
                        _ => panic!("{sample:?}"),
                    };
                    return of(frame.seq, frame.channel.into(), samples.map(number).collect());
                }
                Err(_) => rmp_serde::from_slice(&bytes).unwrap(),
            },
            Message::Text(text) if text.contains("\"frame\"") => serde_json::from_str(&text).unwrap(),
            _ => continue,
        };
        let blocks = frame["blocks"].as_array().unwrap();
        let numbers = blocks
            .iter()
            .flat_map(|block| block["samples"].as_array().unwrap())
            .map(|sample| sample["number"].as_f64().unwrap())
            .collect();
        return of(frame["seq"].as_u64().unwrap(), frame["channel"].as_u64().unwrap(), numbers);
    }
}

#[tokio::test]
async fn the_same_samples_come_in_every_codec() {
    let server = TestServer::start(|config| config.workers = 2);
    let mut publisher = connect(&server, "tidewire.v1").await;
    let mut viewers = Vec::new();
    for subprotocol in SUBPROTOCOLS {
        let mut viewer = connect(&server, subprotocol).await;
        send(&mut viewer, json!({"type": "subscribe", "id": 1, "channel": "robot.*.imu", "max_delay_ms": 0}))
            .await;
        assert_eq!(event(&mut viewer, "subscribed").await["id"], 1);
        viewers.push(viewer);
    }
    send(&mut publisher, json!({"type": "advertise", "id": 2, "channel": "robot.7.imu"})).await;
    let channel = event(&mut publisher, "advertised").await["channel"].as_u64().unwrap();
    for round in 0..10_u32 {
        let sample = |value| Sample { source_delta_ns: 1, value: Some(sample::Value::Number(value)) };
        let samples = vec![sample(f64::from(round)), sample(-0.5)];
        let block = Block { source_ns: 1_763_864_091_123_456_789, received_ns: 0, samples };
        let id = u32::try_from(channel).unwrap();
        let publish = Publish { channel: id, block: Some(block), ack: 9 }.encode_to_vec();
        publisher.send(Message::binary(publish)).await.unwrap();
        assert_eq!(event(&mut publisher, "ack").await["seq"], 1 + 2 * round);
        let expected = json!({"seq": 1 + 2 * round, "channel": channel, "numbers": [f64::from(round), -0.5]});
        for viewer in &mut viewers {
            assert_eq!(frame(viewer).await, expected);
        }
    }
}

#[tokio::test]
async fn a_library_takes_its_leave() {
    let server = TestServer::start(|config| config.server.ping_interval = Duration::from_millis(100));
    let mut socket = connect(&server, "tidewire.v1.json").await;
    // Answers the server's pings by itself, while it reads.
    assert!(matches!(message(&mut socket).await, Message::Ping(_)));
    assert!(matches!(message(&mut socket).await, Message::Ping(_)));
    let frame = CloseFrame { code: CloseCode::Away, reason: "bye".into() };
    socket.close(Some(frame)).await.unwrap();
    loop {
        match tokio::time::timeout(DEADLINE, socket.next()).await.expect("the end in time") {
            Some(Ok(Message::Close(answer))) => assert_eq!(answer.unwrap().code, CloseCode::Away),
            Some(Ok(_)) => {}
            None => break,
            Some(Err(error)) => panic!("{error}"),
        }
    }
    drop(socket);
    server.wait_for_metric("tidewire_connections", 0.0);
}
