//! HTTP beside the WebSocket: which page answers what, and to whom. Never touches a sample.

use std::rc::Rc;
use std::sync::PoisonError;

use fastwebsockets::upgrade::UpgradeFut;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};

use crate::config::Origins;
use crate::connection::Wanted;
use crate::metrics::exposition::{self, Gauges};
use crate::metrics::{WorkerMetrics, latency};
use crate::peer::{Listener, Peer};
use crate::worker::{ConnectionSlot, Shared, Worker};

mod admin;
mod export;
mod handshake;
mod reply;

use admin::Access;
use reply::{json, method_not_allowed, refusal, text};

pub use export::collect;
pub use reply::{Reply, too_many_requests};

/// What a request leads to.
#[derive(Debug)]
pub enum Outcome {
    /// An answer.
    Reply(Reply),
    /// A WebSocket, once the answer with status 101 is written.
    Upgrade {
        /// The answer.
        reply: Reply,
        /// The endpoint that was asked for.
        wanted: Wanted,
        /// Resolves to the socket.
        socket: UpgradeFut,
        /// Its place among the connections.
        slot: ConnectionSlot,
    },
}

/// Longest request target that is taken, in bytes.
const TARGET_BYTES_MAX: usize = 4 << 10;

const INDEX: &str = "Tidewire
/ws                 the stream: WebSocket, subprotocols tidewire.v1, tidewire.v1.msgpack, tidewire.v1.json
/healthz            200 while the process serves
/readyz             200 while new connections are welcome
/metrics            Prometheus text
/api/latency        latency percentiles of each stage, JSON
/api/latency.hlog   the same as an HdrHistogram interval log
/api/channels       every channel, JSON
/api/connections    every connection with its outbox and ledgers, JSON
/api/revoke         POST: shuts out a subject or a token, and ends its connections
";

/// Answers a request.
pub async fn answer(worker: &Rc<Worker>, peer: &Peer, mut request: Request<Incoming>) -> Outcome {
    let shared = &worker.shared;
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return Outcome::Reply(refusal(
            StatusCode::URI_TOO_LONG,
            "too_large",
            "the request target is too long",
        ));
    }
    let path = request.uri().path();
    let streams = path == "/ws" || (path == "/echo" && shared.config.enable_echo);
    if streams && peer.listener == Listener::Public {
        return handshake::upgrade(worker, peer, &mut request);
    }
    let origins = &shared.config.server.origins;
    if let Some(reply) = preflight(&request, origins) {
        return Outcome::Reply(reply);
    }
    let headers = request.headers().clone();
    let mut reply = page(worker, peer, request).await;
    share(&mut reply, origins, &headers);
    Outcome::Reply(reply)
}

/// Answers a request for something other than a WebSocket.
async fn page(worker: &Rc<Worker>, peer: &Peer, request: Request<Incoming>) -> Reply {
    let shared = &worker.shared;
    let path = request.uri().path();
    if path == "/api/revoke" {
        return admin::revoke(worker, peer, request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return method_not_allowed("GET");
    }
    match path {
        "/healthz" => return text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            return match shared.readiness.check(worker.now().at) {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            };
        }
        "/" => return text(StatusCode::OK, INDEX),
        _ => {}
    }
    if path != "/metrics" && !path.starts_with("/api/") {
        return not_found("no such page; GET / lists them");
    }
    let access = match admin::access(worker, peer, request.headers()) {
        Ok(access) => access,
        Err(refused) => return *refused,
    };
    match (path, access) {
        ("/api/channels", access) => {
            export::list(shared, move |mut all| {
                all.channels.retain(|row| access.sees(&row.name));
                all.channels.sort_by(|a, b| a.name.cmp(&b.name));
                serde_json::to_vec(&export::Channels { channels: all.channels })
            })
            .await
        }
        (_, Access::Channels(_)) => refusal(
            StatusCode::FORBIDDEN,
            "forbidden",
            "this page is about all channels, and the token gives the right admin for some",
        ),
        ("/metrics", Access::All) => {
            let text = |_: &Shared, metrics: &WorkerMetrics, gauges: &Gauges| {
                exposition::render(metrics, gauges).into_bytes()
            };
            export::render(shared, exposition::CONTENT_TYPE, text).await
        }
        ("/api/latency", Access::All) => {
            let json = |_: &Shared, metrics: &WorkerMetrics, gauges: &Gauges| {
                latency::render_json(metrics, gauges.uptime).into_bytes()
            };
            export::render(shared, "application/json", json).await
        }
        ("/api/latency.hlog", Access::All) => {
            let now = worker.now();
            let log = move |shared: &Shared, metrics: &WorkerMetrics, _: &Gauges| {
                shared.latency_log.lock().unwrap_or_else(PoisonError::into_inner).render(metrics, now)
            };
            export::render(shared, latency::LOG_CONTENT_TYPE, log).await
        }
        ("/api/connections", Access::All) => {
            export::list(shared, |mut all| {
                all.connections.sort_by_key(|row| row.connection);
                serde_json::to_vec(&export::Connections { connections: all.connections })
            })
            .await
        }
        (_, Access::All) => not_found("no such page; GET / lists them"),
    }
}

fn not_found(message: &str) -> Reply {
    refusal(StatusCode::NOT_FOUND, "not_found", message)
}

/// What a browser asks before it sends a page's request with a token to another origin (CORS).
fn preflight(request: &Request<Incoming>, origins: &Origins) -> Option<Reply> {
    if request.method() != Method::OPTIONS
        || !request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return None;
    }
    let mut reply = json(StatusCode::NO_CONTENT, "");
    share(&mut reply, origins, request.headers());
    let headers = reply.headers_mut();
    if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        let allowed = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ];
        headers.extend(allowed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    }
    Some(reply)
}

/// Lets pages of other origins that may connect read an answer, too (CORS).
fn share(reply: &mut Reply, origins: &Origins, headers: &HeaderMap) {
    if *origins == Origins::Same {
        return;
    }
    reply.headers_mut().insert(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = only(headers, &header::ORIGIN) else { return };
    if origin.to_str().is_ok_and(|origin| origins.share_with(origin)) {
        reply.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
}

/// The header's value, if it is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}
