//! The pages for those who run the server: who may see them, and what changes something. Never touches a sample.

use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode};

use super::handshake::check_origin;
use super::reply::{Reply, json, method_not_allowed, refusal, unauthorized};
use super::{not_found, only};
use crate::auth::grants::{Grants, Right};
use crate::auth::offered;
use crate::auth::revocations::{RevokeError, Revoked};
use crate::hub::router::ToWorker;
use crate::peer::{Listener, Peer};
use crate::worker::Worker;

/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 4 << 10;

/// How much somebody may see.
#[derive(Debug)]
pub(super) enum Access {
    /// Everything.
    All,
    /// The channels that these give the right [`Right::Admin`] for.
    Channels(Grants),
}

impl Access {
    /// Whether a channel may be shown.
    pub(super) fn sees(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Channels(grants) => grants.allow_name(Right::Admin, name),
        }
    }
}

/// What somebody may see of the pages.
///
/// # Errors
/// The answer to whoever may not.
pub(super) fn access(worker: &Worker, peer: &Peer, headers: &HeaderMap) -> Result<Access, Box<Reply>> {
    let config = worker.config();
    if config.admin.listen.is_some() && peer.listener == Listener::Public {
        return Err(Box::new(not_found("this page is on the admin listener (admin.listen)")));
    }
    let own = config.admin.listen.filter(|_| peer.listener == Listener::Admin);
    // Whoever reaches a loopback address is on this machine, unless a proxy for others stands there.
    let private = own.is_some_and(|listen| listen.ip().is_loopback());
    if config.admin.token.is_empty() && (config.is_open() || private) {
        return Ok(Access::All);
    }
    let missing = || Box::new(unauthorized(false, "an admin token is needed: Authorization: Bearer TOKEN"));
    let wrong = || Box::new(unauthorized(true, "the token is not taken"));
    let token = offered::authorization(headers).map_err(|_| wrong())?.ok_or_else(missing)?;
    if worker.shared.gate.is_admin_token(token) {
        return Ok(Access::All);
    }
    if config.is_open() {
        return Err(wrong());
    }
    let identity = worker.shared.gate.admit(token, worker.now()).map_err(|denied| {
        tracing::debug!(reason = %denied, remote = %peer.address, "a token was refused on an admin page");
        wrong()
    })?;
    let grants = identity.grants;
    if grants.allow_all(Right::Admin) {
        return Ok(Access::All);
    }
    if grants.has_any(Right::Admin) {
        return Ok(Access::Channels(grants));
    }
    let message = "the token does not give the right admin";
    Err(Box::new(refusal(StatusCode::FORBIDDEN, "forbidden", message)))
}

/// Shuts out a subject or a token: `POST` with `{"sub": "..."}` or `{"jti": "..."}`.
pub(super) async fn revoke(worker: &Rc<Worker>, peer: &Peer, request: Request<Incoming>) -> Reply {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    let (parts, body) = request.into_parts();
    match access(worker, peer, &parts.headers) {
        Ok(Access::All) => {}
        Ok(Access::Channels(_)) => {
            let message = "to revoke takes the right admin for all channels (\">\")";
            return refusal(StatusCode::FORBIDDEN, "forbidden", message);
        }
        Err(refused) => return *refused,
    }
    // A page of another origin can send a plain form here without being asked who it is.
    if only(&parts.headers, &header::CONTENT_TYPE).is_none_or(|given| given != "application/json") {
        let message = "Content-Type has to be application/json";
        return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message);
    }
    let host = only(&parts.headers, &header::HOST);
    if let Some(message) = host.and_then(|host| check_origin(&worker.config().server, &parts.headers, host)) {
        return refusal(StatusCode::FORBIDDEN, "origin", message);
    }
    if worker.config().is_open() {
        let message = "this server has no keys, so it knows nobody who could be shut out";
        return refusal(StatusCode::CONFLICT, "unsupported", message);
    }
    let limits = &worker.config().server;
    let read = Limited::new(body, BODY_BYTES_MAX).collect();
    let Ok(Ok(read)) = tokio::time::timeout(limits.handshake_timeout, read).await else {
        let message = "the body did not come whole, in time and within 4096 bytes";
        return refusal(StatusCode::BAD_REQUEST, "bad_request", message);
    };
    let Ok(revoked) = serde_json::from_slice::<Revoked>(&read.to_bytes()) else {
        let message = "the body has to be {\"sub\": \"...\"} or {\"jti\": \"...\"}";
        return refusal(StatusCode::BAD_REQUEST, "bad_request", message);
    };
    match worker.shared.gate.revoke(&revoked, worker.now()) {
        Ok(at_s) => {
            let revoked = Arc::new(revoked);
            let router = &worker.shared.router;
            for worker in 0..router.workers() {
                router.send(worker, ToWorker::Revoke(Arc::clone(&revoked), at_s));
            }
            let what = match &*revoked {
                Revoked::Subject(_) => "sub",
                Revoked::Token(_) => "jti",
            };
            tracing::info!(what, remote = %peer.address, "revoked");
            json(StatusCode::OK, serde_json::json!({ "revoked": &*revoked, "at_s": at_s }).to_string())
        }
        Err(error) => {
            let status = match error {
                RevokeError::Id => StatusCode::BAD_REQUEST,
                RevokeError::Full => StatusCode::INSUFFICIENT_STORAGE,
            };
            refusal(status, "limit_exceeded", &error.to_string())
        }
    }
}
