//! The handshake of a WebSocket, strictly (RFC 6455 section 4.2.1), and who is let in. Never touches a socket.

use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::reply::{
    Reply, last, method_not_allowed, refusal, retry_later, unauthorized, unavailable, upgrade_required,
};
use super::{Outcome, only};
use crate::auth::offered;
use crate::close::CloseReason;
use crate::config::{self, Config, ServerLimits};
use crate::connection::Wanted;
use crate::hub::access::Standing;
use crate::metrics::HandshakeRefusal;
use crate::pattern;
use crate::peer::Peer;
use crate::wire::Codec;
use crate::worker::gate::Denied;
use crate::worker::{ConnectionSlot, NoSlot, Worker};

/// Answers a request for an upgrade: what is let through here becomes a WebSocket.
pub(super) fn upgrade(worker: &Rc<Worker>, peer: &Peer, request: &mut Request<Incoming>) -> Outcome {
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
        return Err(Box::new((R::Method, method_not_allowed("GET"))));
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
    let config = worker.config();
    // Where nobody says who they are, a page of another host could pass for one of this machine.
    let trusts_address = config.is_open() && config.listen.ip().is_loopback();
    let rebound = trusts_address && headers.contains_key(header::ORIGIN) && !names_this_server(config, host);
    let message = rebound.then_some(REBOUND).or_else(|| check_origin(&config.server, headers, host));
    if let Some(message) = message {
        return Err(Box::new((R::Origin, refusal(StatusCode::FORBIDDEN, "origin", message))));
    }
    if !worker.shared.readiness.is_serving() {
        return Err(Box::new((R::Drain, unavailable("the server is shutting down", CloseReason::Drain))));
    }
    // Before a token is checked, which costs more than everything else here.
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
    let wanted = if request.uri().path() == "/echo" {
        Wanted::Echo
    } else if worker.config().is_open() {
        let user = user(request.uri().query(), worker).map_err(|message| bad(&message))?;
        Wanted::Protocol { codec: codec(headers), standing: Standing::Open { user }, seat: None }
    } else {
        let standing = check_token(worker, peer, request)?;
        let seat = match &standing {
            Standing::Known(identity) => Some(worker.shared.gate.seat(identity).ok_or_else(|| {
                let message = "the subject has all the connections that one may have; end one first";
                let reply = last(refusal(StatusCode::TOO_MANY_REQUESTS, "subject", message));
                Box::new((R::Subject, retry_later(reply, CloseReason::Capacity)))
            })?),
            Standing::Open { .. } | Standing::Waiting(_) => None,
        };
        Wanted::Protocol { codec: codec(headers), standing, seat }
    };
    Ok((wanted, slot))
}

/// Who asks, by the token that the request carries.
fn check_token(worker: &Worker, peer: &Peer, request: &Request<Incoming>) -> Result<Standing, Refusal> {
    let settings = &worker.config().auth;
    let (headers, query) = (request.headers(), request.uri().query());
    let no = |given, message: &str| Box::new((HandshakeRefusal::Unauthorized, unauthorized(given, message)));
    let Ok(found) = offered::find(headers, query, settings) else {
        return Err(no(true, NOT_TAKEN));
    };
    let admitted = match (found, &peer.certificate) {
        (Some(offered), _) if offered.by_cookie && !headers.contains_key(header::ORIGIN) => {
            let message = "an Origin header is needed with a token in a cookie";
            let reply = refusal(StatusCode::FORBIDDEN, "origin", message);
            return Err(Box::new((HandshakeRefusal::Origin, reply)));
        }
        (Some(offered), _) => worker.shared.gate.admit(offered.token, worker.now()),
        (None, Some(name)) => worker.shared.gate.admit_certificate(name),
        (None, None) if worker.config().has_keys() && settings.first_message => {
            let full = || {
                let message = "the server has all the connections without a token that it takes";
                Box::new((HandshakeRefusal::Capacity, unavailable(message, CloseReason::Capacity)))
            };
            return worker.shared.gate.wait().map(Standing::Waiting).ok_or_else(full);
        }
        (None, None) => return Err(no(false, "a token is needed, such as Authorization: Bearer TOKEN")),
    };
    match admitted {
        Ok(identity) => Ok(Standing::Known(Rc::new(identity))),
        Err(denied) => {
            tracing::debug!(reason = %denied, remote = %peer.address, "a token was refused in a handshake");
            Err(match denied {
                Denied::Token(_) => no(true, NOT_TAKEN),
                Denied::Revoked => {
                    let message = "the token has been revoked";
                    let reply = last(refusal(StatusCode::FORBIDDEN, "forbidden", message));
                    Box::new((HandshakeRefusal::Revoked, reply))
                }
            })
        }
    }
}

/// What a wrong token gets, whatever is wrong with it.
const NOT_TAKEN: &str = "the token is not taken; ask its issuer for another";

/// What a page gets that came from a name which may have been made to point here.
pub(super) const REBOUND: &str = "on a loopback address the host has to be localhost, an address, or of an origin that server.origins lists";

/// Whether this `Host` can only mean this server.
pub(super) fn names_this_server(config: &Config, host: &HeaderValue) -> bool {
    let host = host.to_str().unwrap_or_default();
    config::is_local(host) || config.server.origins.list_host(host)
}

/// What speaks against the page that asks, if a page does.
pub(super) fn check_origin(
    limits: &ServerLimits,
    headers: &HeaderMap,
    host: &HeaderValue,
) -> Option<&'static str> {
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
    let bytes_max = worker.config().user_bytes_max();
    if user.contains(['.', '$']) {
        return Err("user has to be one token of a channel name: no '.' and no '$'".into());
    }
    pattern::check_name(user, bytes_max).map_err(|error| format!("user {error}"))?;
    Ok(Some(user.into()))
}
