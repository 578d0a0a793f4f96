//! A broadcast server on axum as its documentation and most tutorials write it: a tokio broadcast channel, a task for each
//! subscriber, one `send` for each message. What a subscriber loses when it is slow, nobody learns.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::any;
use tidewire_peers::{arguments, listen};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Sender};

/// Messages that a subscriber may be behind: twice what the closed loops have on the way.
const CAPACITY: usize = 8192;

// One thread: it is bound to one CPU, and a second one would only change places with the first.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    arguments("axum 0.8", &[])?;
    let (sender, _) = broadcast::channel(CAPACITY);
    let app = Router::new().route("/pub", any(publish)).route("/sub", any(subscribe)).with_state(sender);
    let listener = tokio::net::TcpListener::from_std(listen()?)?;
    // Without it a message waits for the acknowledgement of the last one.
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

async fn publish(upgrade: WebSocketUpgrade, State(sender): State<Sender<Bytes>>) -> Response {
    upgrade.on_upgrade(move |mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Binary(bytes) = message {
                // Fails while nobody listens.
                let _ = sender.send(bytes);
            }
        }
    })
}

async fn subscribe(upgrade: WebSocketUpgrade, State(sender): State<Sender<Bytes>>) -> Response {
    let receiver = sender.subscribe();
    upgrade.on_upgrade(move |socket| deliver(socket, receiver))
}

async fn deliver(mut socket: WebSocket, mut receiver: broadcast::Receiver<Bytes>) {
    loop {
        tokio::select! {
            message = receiver.recv() => match message {
                Ok(bytes) => if socket.send(Message::Binary(bytes)).await.is_err() { return },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}
