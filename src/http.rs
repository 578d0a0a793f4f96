//! HTTP beside the WebSocket: the strict handshake, health, metrics and lists. Every refusal is a JSON body that says what was
//! wrong. Never touches a sample.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::upgrade::UpgradeFut;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::close::{CloseReason, Retry};
use crate::config::{Origins, ServerLimits};
use crate::connection::Wanted;
use crate::hub::overload::STEPS;
use crate::hub::router::{ChannelRow, ConnectionRow, Listing, ToWorker, WorkerReport};
use crate::metrics::exposition::{self, Gauges};
use crate::metrics::{HandshakeRefusal, WorkerMetrics, latency};
use crate::pattern;
use crate::peer::Peer;
use crate::wire::Codec;
use crate::worker::{ConnectionSlot, EXPORTS_MAX, NoSlot, Shared, Worker};

/// A response with its whole body.
pub type Reply = Response<Full<Bytes>>;

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
    if path == "/ws" || (path == "/echo" && shared.config.enable_echo) {
        return upgrade(worker, peer, &mut request);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Outcome::Reply(method_not_allowed());
    }
    let mut reply = match path {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if shared.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/metrics" => {
            let text = |_: &Shared, metrics: &WorkerMetrics, gauges: &Gauges| {
                exposition::render(metrics, gauges).into_bytes()
            };
            render(shared, exposition::CONTENT_TYPE, text).await
        }
        "/api/latency" => {
            let json = |_: &Shared, metrics: &WorkerMetrics, gauges: &Gauges| {
                latency::render_json(metrics, gauges.uptime).into_bytes()
            };
            render(shared, "application/json", json).await
        }
        "/api/latency.hlog" => {
            let now = worker.now();
            let log = move |shared: &Shared, metrics: &WorkerMetrics, _: &Gauges| {
                shared.latency_log.lock().unwrap_or_else(PoisonError::into_inner).render(metrics, now)
            };
            render(shared, latency::LOG_CONTENT_TYPE, log).await
        }
        "/api/channels" => {
            let rows = |mut all: Listing| {
                all.channels.sort_by(|a, b| a.name.cmp(&b.name));
                serde_json::to_vec(&Channels { channels: all.channels })
            };
            list(shared, rows).await
        }
        "/api/connections" => {
            let rows = |mut all: Listing| {
                all.connections.sort_by_key(|row| row.connection);
                serde_json::to_vec(&Connections { connections: all.connections })
            };
            list(shared, rows).await
        }
        "/" => text(StatusCode::OK, INDEX),
        _ => refusal(StatusCode::NOT_FOUND, "not_found", "no such page; GET / lists them"),
    };
    share(&mut reply, &shared.config.server.origins, request.headers());
    Outcome::Reply(reply)
}

/// Lets pages of other origins that may connect read an answer, too (CORS). They send plain GETs, for which browsers ask nothing
/// before.
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

const INDEX: &str = "Tidewire
/ws                 the stream: WebSocket, subprotocols tidewire.v1, tidewire.v1.msgpack, tidewire.v1.json
/healthz            200 while the process serves
/readyz             200 while new connections are welcome
/metrics            Prometheus text
/api/latency        latency percentiles of each stage, JSON
/api/latency.hlog   the same as an HdrHistogram interval log
/api/channels       every channel, JSON
/api/connections    every connection with its outbox and ledgers, JSON
";

/// The handshake of RFC 6455 section 4.2.1, strictly: what is let through here becomes a WebSocket.
fn upgrade(worker: &Rc<Worker>, peer: &Peer, request: &mut Request<Incoming>) -> Outcome {
    match check_upgrade(worker, peer, request) {
        Ok((wanted, slot)) => accept(request, wanted, slot),
        Err(refused) => {
            let (reason, reply) = *refused;
            worker.hub.borrow_mut().metrics().counters.handshakes_refused[reason] += 1;
            Outcome::Reply(reply)
        }
    }
}

type Refusal = Box<(HandshakeRefusal, Reply)>;

fn check_upgrade(
    worker: &Worker,
    peer: &Peer,
    request: &Request<Incoming>,
) -> Result<(Wanted, ConnectionSlot), Refusal> {
    use HandshakeRefusal as R;
    let bad =
        |message: &str| Box::new((R::BadRequest, refusal(StatusCode::BAD_REQUEST, "bad_request", message)));
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Box::new((R::Method, method_not_allowed())));
    }
    if request.version() != Version::HTTP_11 {
        return Err(bad("a WebSocket needs HTTP/1.1"));
    }
    let Some(host) = only(headers, &header::HOST) else {
        return Err(bad("exactly one Host header is needed"));
    };
    let has_body = !request.body().is_end_stream()
        || headers.contains_key(header::CONTENT_LENGTH)
        || headers.contains_key(header::TRANSFER_ENCODING);
    if has_body {
        return Err(bad("a handshake has no body"));
    }
    if !fastwebsockets::upgrade::is_upgrade_request(request) {
        let message = "this is a WebSocket endpoint: Connection: Upgrade and Upgrade: websocket are needed";
        return Err(Box::new((R::Upgrade, upgrade_required(message))));
    }
    if only(headers, &header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Box::new((R::Upgrade, upgrade_required("Sec-WebSocket-Version has to be 13, once"))));
    }
    if !only(headers, &header::SEC_WEBSOCKET_KEY).is_some_and(|key| is_key(key.as_bytes())) {
        return Err(bad("exactly one Sec-WebSocket-Key of 16 bytes in base64 is needed"));
    }
    if let Some(message) = check_origin(&worker.config().server, headers, host) {
        return Err(Box::new((R::Origin, refusal(StatusCode::FORBIDDEN, "origin", message))));
    }
    let wanted = if request.uri().path() == "/echo" {
        Wanted::Echo
    } else {
        Wanted::Protocol {
            codec: codec(headers),
            user: user(request.uri().query(), worker).map_err(|m| bad(&m))?,
        }
    };
    if !worker.shared.ready.load(Ordering::Relaxed) {
        return Err(Box::new((R::Drain, unavailable("the server is shutting down", CloseReason::Drain))));
    }
    let slot = worker.shared.take_slot(peer.address.ip()).map_err(|none| {
        Box::new(match none {
            NoSlot::Server => {
                let message = "the server has all the connections that it takes";
                (R::Capacity, unavailable(message, CloseReason::Capacity))
            }
            NoSlot::Address => {
                let message = "this address has all the connections that one may have; end one first";
                let reply = refusal(StatusCode::TOO_MANY_REQUESTS, "address", message);
                (R::Address, retry_later(reply, CloseReason::Capacity))
            }
        })
    })?;
    Ok((wanted, slot))
}

/// What speaks against the page that asks, if a page does.
fn check_origin(limits: &ServerLimits, headers: &HeaderMap, host: &HeaderValue) -> Option<&'static str> {
    if !headers.contains_key(header::ORIGIN) {
        let message = "an Origin header is needed here (server.origin_required)";
        return limits.origin_required.then_some(message);
    }
    let origin = only(headers, &header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let host = host.to_str().unwrap_or_default();
    let allowed = origin.is_some_and(|origin| limits.origins.allow(origin, host));
    (!allowed).then_some("pages of this origin may not connect; server.origins lists those that may")
}

fn accept(request: &mut Request<Incoming>, wanted: Wanted, slot: ConnectionSlot) -> Outcome {
    let Ok((response, socket)) = fastwebsockets::upgrade::upgrade(&mut *request) else {
        // What it checks was checked before.
        return Outcome::Reply(refusal(StatusCode::BAD_REQUEST, "bad_request", "not a WebSocket handshake"));
    };
    let (mut parts, _) = response.into_parts();
    if let Wanted::Protocol { codec, .. } = &wanted
        && request.headers().contains_key(header::SEC_WEBSOCKET_PROTOCOL)
        && offers(request.headers(), *codec)
    {
        let name = HeaderValue::from_static(codec.subprotocol());
        parts.headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    Outcome::Upgrade { reply: Response::from_parts(parts, Full::default()), wanted, socket, slot }
}

/// The header's value, if it is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// RFC 6455 section 4.1: 16 bytes in base64 are 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(base64)
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok())
}

/// The first subprotocol that is known; the protobuf one where there is none.
fn codec(headers: &HeaderMap) -> Codec {
    offered(headers).find_map(Codec::negotiate).unwrap_or_default()
}

fn offers(headers: &HeaderMap, codec: Codec) -> bool {
    offered(headers).any(|list| Codec::negotiate(list) == Some(codec))
}

/// `?user=ID`: who the client says it is. A token of a channel name, since `$user.ID` is one.
fn user(query: Option<&str>, worker: &Worker) -> Result<Option<Box<str>>, String> {
    let given = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("user="));
    let Some(user) = given else { return Ok(None) };
    let bytes_max = worker.config().channel.channel_name_bytes_max - "$user.".len();
    if user.contains(['.', '$']) {
        return Err("user has to be one token of a channel name: no '.' and no '$'".into());
    }
    pattern::check_name(user, bytes_max).map_err(|error| format!("user {error}"))?;
    Ok(Some(user.into()))
}

/// The metrics of all workers together, and the gauges. The workers copy, another thread adds up: neither takes a worker long.
pub async fn collect(shared: &Arc<Shared>) -> (Box<WorkerMetrics>, Gauges) {
    // It is never closed.
    let _turn = shared.exports.acquire().await;
    let buffer = || {
        let mut buffers = shared.metrics_buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.pop().unwrap_or_default()
    };
    let reports = ask(shared, |reply| ToWorker::Report { buffer: buffer(), reply }).await;
    let add = {
        let shared = Arc::clone(shared);
        move || add_up(&shared, reports)
    };
    // It fails only while the runtime ends.
    tokio::task::spawn_blocking(add).await.unwrap_or_default()
}

fn add_up(shared: &Shared, reports: Vec<WorkerReport>) -> (Box<WorkerMetrics>, Gauges) {
    let mut metrics = Box::new(WorkerMetrics::new());
    let mut gauges = Gauges {
        connections: shared.connections.load(Ordering::Relaxed) as u64,
        channels: shared.router.directory(|directory| directory.len()) as u64,
        workers: shared.router.workers() as u64,
        uptime: shared.started.elapsed(),
        ready: shared.ready.load(Ordering::Relaxed),
        flush_window: shared.config.batch.window,
        ..Gauges::default()
    };
    for WorkerReport {
        metrics: worker,
        subscriptions,
        outbox_bytes,
        outbox_frames,
        memory_bytes,
        widening,
    } in reports
    {
        metrics.merge(&worker);
        gauges.subscriptions += subscriptions as u64;
        gauges.outbox_bytes += outbox_bytes as u64;
        gauges.outbox_frames += outbox_frames as u64;
        gauges.outbox_memory_bytes += memory_bytes as u64;
        let window = (shared.config.batch.window * widening / STEPS).min(shared.config.batch.window_max);
        gauges.flush_window = gauges.flush_window.max(window);
        let mut buffers = shared.metrics_buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < EXPORTS_MAX * shared.router.workers() {
            buffers.push(worker);
        }
    }
    metrics.counters.sockets_refused.add(&shared.door.refused());
    (metrics, gauges)
}

/// Renders on another thread: it walks every histogram, and the worker has connections to serve.
async fn render(
    shared: &Arc<Shared>,
    content_type: &'static str,
    render: impl FnOnce(&Shared, &WorkerMetrics, &Gauges) -> Vec<u8> + Send + 'static,
) -> Reply {
    let (metrics, gauges) = collect(shared).await;
    let shared = Arc::clone(shared);
    let body = tokio::task::spawn_blocking(move || render(&shared, &metrics, &gauges)).await;
    reply(StatusCode::OK, content_type, body.unwrap_or_default())
}

#[derive(Serialize)]
struct Channels {
    channels: Vec<ChannelRow>,
}

#[derive(Serialize)]
struct Connections {
    connections: Vec<ConnectionRow>,
}

/// Lists what all workers have; sorts and writes it on another thread.
async fn list(
    shared: &Arc<Shared>,
    write: impl FnOnce(Listing) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Reply {
    let _turn = shared.exports.acquire().await;
    let listings = ask(shared, ToWorker::List).await;
    let write = move || {
        let mut all = Listing::default();
        for listing in listings {
            all.connections.extend(listing.connections);
            all.channels.extend(listing.channels);
        }
        // Rows of numbers and strings always serialize.
        write(all).unwrap_or_default()
    };
    json(StatusCode::OK, tokio::task::spawn_blocking(write).await.unwrap_or_default())
}

/// Asks every worker, then waits for all: they answer side by side. One that has ended says nothing.
async fn ask<T>(shared: &Shared, question: impl Fn(oneshot::Sender<T>) -> ToWorker) -> Vec<T> {
    let waiting: Vec<_> = (0..shared.router.workers())
        .map(|worker| {
            let (reply, answer) = oneshot::channel();
            shared.router.send(worker, question(reply));
            answer
        })
        .collect();
    let mut answers = Vec::with_capacity(waiting.len());
    for answer in waiting {
        answers.extend(answer.await.ok());
    }
    answers
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "application/json", body)
}

/// An answer that refuses, and says why.
pub fn refusal(status: StatusCode, code: &str, message: &str) -> Reply {
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    json(status, body.to_string())
}

fn method_not_allowed() -> Reply {
    let mut reply = refusal(StatusCode::METHOD_NOT_ALLOWED, "method", "only GET is taken here");
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    reply
}

fn upgrade_required(message: &str) -> Reply {
    let mut reply = refusal(StatusCode::UPGRADE_REQUIRED, "upgrade", message);
    let headers = reply.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    reply
}

fn unavailable(message: &str, reason: CloseReason) -> Reply {
    retry_later(refusal(StatusCode::SERVICE_UNAVAILABLE, reason.label(), message), reason)
}

/// A client of a proxy asks for too many connections a second.
pub fn too_many_requests() -> Reply {
    let message =
        "this address asks for too many connections a second (server.accepts_per_address_per_s_max)";
    retry_later(refusal(StatusCode::TOO_MANY_REQUESTS, "rate", message), CloseReason::Capacity)
}

/// Adds when to come back, which is as after a close with this reason.
fn retry_later(mut reply: Reply, reason: CloseReason) -> Reply {
    let after = match reason.retry() {
        Retry::After(delay) => delay,
        Retry::Backoff | Retry::Never => Duration::from_secs(1),
    };
    reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    reply
}
