//! The pages for those who run the server: who may see them, and what changes something. Never touches a sample.

use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::handshake::{REBOUND, check_origin, names_this_server};
use super::reply::{Reply, json, last, method_not_allowed, refusal, unauthorized};
use super::{not_found, only};
use crate::auth::grants::{Grants, Right};
use crate::auth::offered;
use crate::auth::revocations::{RevokeError, Revoked};
use crate::config::{Config, ServerLimits};
use crate::hub::router::ToWorker;
use crate::peer::{Listener, Peer};
use crate::worker::Worker;
use crate::worker::gate::Denied;

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
    let listen = match peer.listener {
        Listener::Public => config.listen,
        Listener::Admin => config.admin.listen.unwrap_or(config.listen),
    };
    // Whoever reaches a loopback address is on this machine, unless a proxy for others stands there.
    let private = listen.ip().is_loopback();
    let own_door = peer.listener == Listener::Admin;
    if config.admin.token.is_empty() && (config.is_open() || (own_door && private)) {
        return if private { check_page(config, headers).map(|()| Access::All) } else { Ok(Access::All) };
    }
    let missing = || Box::new(unauthorized(false, "an admin token is needed: Authorization: Bearer TOKEN"));
    let wrong = || Box::new(unauthorized(true, "the token is not taken"));
    let gate = &worker.shared.gate;
    let admitted = match offered::authorization(headers).map_err(|_| wrong())? {
        Some(token) if gate.is_admin_token(token) => return Ok(Access::All),
        Some(token) if config.has_keys() => gate.admit(token, worker.now()),
        Some(_) => return Err(wrong()),
        None => match &peer.certificate {
            Some(name) => gate.admit_certificate(name),
            None => return Err(missing()),
        },
    };
    let identity = admitted.map_err(|denied| {
        tracing::debug!(reason = %denied, remote = %peer.address, "a token was refused on an admin page");
        match denied {
            Denied::Token(_) => wrong(),
            Denied::Revoked => {
                Box::new(last(refusal(StatusCode::FORBIDDEN, "forbidden", "the token has been revoked")))
            }
        }
    })?;
    let grants = identity.grants;
    if grants.allow_all(Right::Admin) {
        return Ok(Access::All);
    }
    if grants.has_any(Right::Admin) {
        return Ok(Access::Channels(grants));
    }
    let message = "the token does not give the right admin";
    Err(Box::new(last(refusal(StatusCode::FORBIDDEN, "forbidden", message))))
}

/// Where the address alone lets somebody in, a page that a browser has from elsewhere must not come with it.
fn check_page(config: &Config, headers: &HeaderMap) -> Result<(), Box<Reply>> {
    let no = |message| Box::new(refusal(StatusCode::FORBIDDEN, "origin", message));
    let Some(host) = only(headers, &header::HOST) else {
        let message = "exactly one Host header is needed";
        return Err(Box::new(refusal(StatusCode::BAD_REQUEST, "bad_request", message)));
    };
    if !names_this_server(config, host) {
        return Err(no(REBOUND));
    }
    match page_of(headers, &config.server, host) {
        Some(message) => Err(no(message)),
        None => Ok(()),
    }
}

/// What speaks against the page that asks, if one does: a program needs no `Origin` here.
fn page_of(headers: &HeaderMap, limits: &ServerLimits, host: &HeaderValue) -> Option<&'static str> {
    headers.contains_key(header::ORIGIN).then(|| check_origin(limits, headers, host)).flatten()
}

/// Shuts out a subject or a token: `POST` with `{"sub": "..."}` or `{"jti": "..."}`.
pub(super) async fn revoke(worker: &Rc<Worker>, peer: &Peer, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    match access(worker, peer, &parts.headers) {
        Ok(Access::All) => {}
        Ok(Access::Channels(_)) => {
            let message = "to revoke takes the right admin for all channels (\">\")";
            return refusal(StatusCode::FORBIDDEN, "forbidden", message);
        }
        Err(refused) => return *refused,
    }
    if parts.method != Method::POST {
        return method_not_allowed("POST");
    }
    // A page of another origin can send a plain form here without being asked who it is.
    let given = only(&parts.headers, &header::CONTENT_TYPE).and_then(|given| given.to_str().ok());
    let media = given.map(|given| given.split(';').next().unwrap_or_default().trim_ascii());
    if media.is_none_or(|media| !media.eq_ignore_ascii_case("application/json")) {
        let message = "Content-Type has to be application/json";
        return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message);
    }
    let Some(host) = only(&parts.headers, &header::HOST) else {
        let message = "exactly one Host header is needed";
        return refusal(StatusCode::BAD_REQUEST, "bad_request", message);
    };
    if let Some(message) = page_of(&parts.headers, &worker.config().server, host) {
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
        Ok(issued_s) => {
            let revoked = Arc::new(revoked);
            let router = &worker.shared.router;
            for worker in 0..router.workers() {
                router.send(worker, ToWorker::Revoke(Arc::clone(&revoked), issued_s));
            }
            if let Some(outlet) = router.outlet() {
                outlet.tell_revoked(&revoked, issued_s);
            }
            // The id is printed with what it holds escaped.
            tracing::info!(?revoked, remote = %peer.address, "shut out");
            json(
                StatusCode::OK,
                serde_json::json!({ "revoked": &*revoked, "issued_until_s": issued_s }).to_string(),
            )
        }
        Err(error) => {
            let (status, code) = match error {
                RevokeError::Id => (StatusCode::BAD_REQUEST, "bad_request"),
                RevokeError::Full => (StatusCode::INSUFFICIENT_STORAGE, "limit_exceeded"),
            };
            refusal(status, code, &error.to_string())
        }
    }
}
