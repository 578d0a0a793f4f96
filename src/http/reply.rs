//! Answers of HTTP. A refusal is a JSON body that says what was wrong. Never looks at a request.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use crate::close::{CloseReason, Retry};

/// A response with its whole body.
pub type Reply = Response<Full<Bytes>>;

pub(super) fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "application/json", body)
}

/// An answer that refuses, and says why.
pub(super) fn refusal(status: StatusCode, code: &str, message: &str) -> Reply {
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    json(status, body.to_string())
}

/// `allowed` is the method to use instead.
pub(super) fn method_not_allowed(allowed: &'static str) -> Reply {
    let message = format!("only {allowed} is taken here");
    let mut reply = refusal(StatusCode::METHOD_NOT_ALLOWED, "method", &message);
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// RFC 6750 section 3: `given` tells whether a token came that is not taken. It is not said why, since whoever probes for one
/// would learn from it.
pub(super) fn unauthorized(given: bool, message: &str) -> Reply {
    let mut reply = refusal(StatusCode::UNAUTHORIZED, "unauthorized", message);
    let challenge = if given {
        "Bearer realm=\"tidewire\", error=\"invalid_token\""
    } else {
        "Bearer realm=\"tidewire\""
    };
    reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    last(reply)
}

/// Ends the socket with this answer, which came after the check of a token. That costs more than to ask for it: the next attempt
/// costs a socket, and those are limited.
pub(super) fn last(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

pub(super) fn upgrade_required(message: &str) -> Reply {
    let mut reply = refusal(StatusCode::UPGRADE_REQUIRED, "upgrade", message);
    let headers = reply.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    reply
}

pub(super) fn unavailable(message: &str, reason: CloseReason) -> Reply {
    retry_later(refusal(StatusCode::SERVICE_UNAVAILABLE, reason.label(), message), reason)
}

/// A client of a proxy asks for too many connections a second.
pub fn too_many_requests() -> Reply {
    let message =
        "this address asks for too many connections a second (server.accepts_per_address_per_s_max)";
    retry_later(refusal(StatusCode::TOO_MANY_REQUESTS, "rate", message), CloseReason::Capacity)
}

/// Adds when to come back, which is as after a close with this reason.
pub(super) fn retry_later(mut reply: Reply, reason: CloseReason) -> Reply {
    let after = match reason.retry() {
        Retry::After(delay) => delay,
        Retry::Backoff | Retry::Never => Duration::from_secs(1),
    };
    reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    reply
}
