//! A server that follows a test's script, on another WebSocket implementation (tokio-tungstenite): it checks what the
//! client sends and answers what the script says.

use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::wire::proto;

pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    pub(crate) async fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/ws", self.listener.local_addr().unwrap())
    }

    /// The next client, greeted.
    pub(crate) async fn accept(&self) -> Peer {
        self.accept_with(&json!({})).await
    }

    /// The next client, greeted with these members of the welcome beside the usual ones.
    pub(crate) async fn accept_with(&self, more: &Value) -> Peer {
        let mut peer = self.accept_silently().await;
        let mut welcome = json!({
            "type": "welcome", "protocol": "tidewire.v1", "connection": 17, "server_ns": "1763864091123456789",
            "limits": {"message_bytes_max": 65536, "message_samples_max": 4, "later": 1},
            "settings": {"max_delay_ms": 10, "ping_ms": 25000, "pong_timeout_ms": 10000},
        });
        welcome.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        peer.say(&welcome).await;
        peer
    }

    /// The next client, without the welcome.
    pub(crate) async fn accept_silently(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        let (mut target, mut authorization) = (String::new(), None);
        #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
        let check = |request: &Request, mut response: Response| {
            target = request.uri().to_string();
            let bearer = request.headers().get("authorization");
            authorization = bearer.map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(request.headers()["sec-websocket-protocol"], "tidewire.v1");
            assert!(!request.headers().contains_key("sec-websocket-extensions"));
            response.headers_mut().insert("sec-websocket-protocol", "tidewire.v1".parse().unwrap());
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap();
        Peer { socket, target, authorization }
    }
}

pub(crate) struct Peer {
    socket: WebSocketStream<TcpStream>,
    /// What the request line asked for.
    pub(crate) target: String,
    /// The `Authorization` that it came with.
    pub(crate) authorization: Option<String>,
}

impl Peer {
    pub(crate) async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// A message that the client may refuse before it has been sent whole.
    pub(crate) async fn try_send(&mut self, message: Message) -> bool {
        self.socket.send(message).await.is_ok()
    }

    /// The end of the socket, whatever comes before it.
    pub(crate) async fn gone(mut self) {
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    pub(crate) async fn say(&mut self, control: &Value) {
        self.send(Message::text(control.to_string())).await;
    }

    pub(crate) async fn frame(&mut self, frame: &proto::Frame) {
        self.send(Message::binary(frame.encode_to_vec())).await;
    }

    /// The next control message.
    pub(crate) async fn request(&mut self) -> Value {
        match self.socket.next().await.unwrap().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("not a control message: {other:?}"),
        }
    }

    /// The next publish.
    pub(crate) async fn publish(&mut self) -> proto::Publish {
        match self.socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => proto::Publish::decode(bytes).unwrap(),
            other => panic!("not a publish: {other:?}"),
        }
    }

    /// A ping goes out and its pong comes back: the client has handled everything before it.
    pub(crate) async fn fence(&mut self) {
        self.send(Message::Ping("fence".into())).await;
        assert_eq!(self.socket.next().await.unwrap().unwrap(), Message::Pong("fence".into()));
    }

    /// Closes, and waits for the echo with the same code.
    pub(crate) async fn close(mut self, code: u16) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "bye".into() }))).await;
        assert_eq!(self.closed().await, Some(code));
    }

    /// The code of the client's close frame, and then the end of the socket.
    pub(crate) async fn closed(mut self) -> Option<u16> {
        let mut code = None;
        while let Some(message) = self.socket.next().await {
            match message {
                Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code.into()),
                Ok(other) => panic!("not a close frame: {other:?}"),
                Err(_) => break,
            }
        }
        code
    }
}
