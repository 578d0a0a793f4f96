//! A broadcast server on tokio-tungstenite, written as well as one can: each subscriber's task feeds every message that is
//! there and flushes once, and the library's buffers are small, so that a connection costs kilobytes and not a tenth of a
//! megabyte. What a subscriber loses when it is slow, nobody learns.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tidewire_peers::{arguments, listen};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// Messages that a subscriber may be behind: 2 MiB at 128 bytes, enough for a burst.
const CAPACITY: usize = 16 << 10;

/// The library zero-fills its read buffer, so a large one costs time as well as memory.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// One `write` for about 120 messages.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

// One thread: it is bound to one CPU, and a second one would only change places with the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    arguments("tokio-tungstenite 0.30", &[])?;
    let (sender, _) = broadcast::channel(CAPACITY);
    let listener = tokio::net::TcpListener::from_std(listen()?)?;
    loop {
        // An error is of a connection that is gone already.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, sender.clone()));
        }
    }
}

/// Ends, without a word, when the connection does.
async fn converse(stream: TcpStream, sender: Sender<Bytes>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut publishes = false;
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let on_request = |request: &Request, response: Response| {
        publishes = request.uri().path() == "/pub";
        Ok(response)
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES * 4);
    let receiver = sender.subscribe();
    let socket =
        tokio_tungstenite::accept_hdr_async_with_config(stream, on_request, Some(config)).await.ok()?;
    if publishes {
        drop(receiver);
        publish(socket, sender).await
    } else {
        drop(sender);
        deliver(socket, receiver).await.ok()
    }
}

async fn publish(mut socket: WebSocketStream<TcpStream>, sender: Sender<Bytes>) -> Option<()> {
    while let Some(message) = socket.next().await {
        if let Message::Binary(bytes) = message.ok()? {
            // Fails while nobody listens.
            let _ = sender.send(bytes);
        }
    }
    Some(())
}

async fn deliver(
    mut socket: WebSocketStream<TcpStream>,
    mut receiver: Receiver<Bytes>,
) -> Result<(), Box<Error>> {
    loop {
        tokio::select! {
            biased;
            message = receiver.recv() => match message {
                Ok(bytes) => {
                    socket.feed(Message::Binary(bytes)).await?;
                    loop {
                        match receiver.try_recv() {
                            Ok(bytes) => socket.feed(Message::Binary(bytes)).await?,
                            Err(TryRecvError::Lagged(_)) => {}
                            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        }
                    }
                    socket.flush().await?;
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
            message = socket.next() => match message {
                Some(message) => drop(message?),
                None => return Err(Box::new(Error::Io(io::ErrorKind::UnexpectedEof.into()))),
            },
        }
    }
}
