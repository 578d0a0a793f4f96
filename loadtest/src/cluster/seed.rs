//! The way of one message per sample, as guides to chat servers have it: a server of WebSockets publishes each message that it
//! gets to Redis as JSON and waits for the answer; each server subscribes, and sends what comes to each of its own
//! clients as a text message. Nothing is gathered, numbered or announced. In Rust, so that the way is measured and not an interpreter.

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender, error::RecvError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::dialect::JsonSample;

/// The one channel of Redis.
const CHANNEL: &str = "broadcast";

/// Messages that a client may be behind; more are lost to it, and nobody says so.
const CAPACITY: usize = 16 << 10;

/// A server of the seed's way, for `loadtest cluster`
#[derive(Debug, Parser)]
pub(crate) struct SeedNodeArgs {
    /// Where Redis listens
    #[arg(long, value_name = "ADDRESS")]
    pub redis: SocketAddr,
}

/// Runs it until it is ended.
pub(crate) fn run(args: &SeedNodeArgs) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(serve(args.redis)).map_err(|error| error.to_string())
}

async fn serve(redis: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let client = redis::Client::open(format!("redis://{redis}/"))?;
    let publisher = client.get_multiplexed_async_connection().await?;
    let mut subscriber = client.get_async_pubsub().await?;
    subscriber.subscribe(CHANNEL).await?;
    let (sender, _) = broadcast::channel(CAPACITY);
    let fan_out = sender.clone();
    tokio::spawn(async move {
        let mut messages = subscriber.into_on_message();
        while let Some(message) = messages.next().await {
            if let Ok(text) = message.get_payload::<String>() {
                // Fails while nobody listens.
                let _ = fan_out.send(Utf8Bytes::from(text));
            }
        }
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("listening ws://{}/", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        // An error is of a connection that is gone already.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, sender.clone(), publisher.clone()));
        }
    }
}

/// Ends, without a word, when the connection does.
async fn converse(stream: TcpStream, sender: Sender<Utf8Bytes>, redis: MultiplexedConnection) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut publishes = false;
    // Before the handshake is answered: from then on the client counts what it misses.
    let receiver = sender.subscribe();
    drop(sender);
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let on_request = |request: &Request, response: Response| {
        publishes = request.uri().path() == "/pub";
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(stream, on_request).await.ok()?;
    if publishes {
        drop(receiver);
        publish(socket, redis).await
    } else {
        deliver(socket, receiver).await
    }
}

async fn publish(mut socket: WebSocketStream<TcpStream>, mut redis: MultiplexedConnection) -> Option<()> {
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message.ok()? {
            // Read and written again, as a server does that checks what it gets.
            let sample: JsonSample = serde_json::from_str(&text).ok()?;
            let () = redis.publish(CHANNEL, serde_json::to_string(&sample).ok()?).await.ok()?;
        }
    }
    Some(())
}

async fn deliver(mut socket: WebSocketStream<TcpStream>, mut receiver: Receiver<Utf8Bytes>) -> Option<()> {
    loop {
        tokio::select! {
            message = receiver.recv() => match message {
                Ok(text) => socket.send(Message::Text(text)).await.ok()?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Some(()),
            },
            message = socket.next() => drop(message?.ok()?),
        }
    }
}
