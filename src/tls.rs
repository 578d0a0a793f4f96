//! What the server needs to speak TLS: its certificate and key, whom it lets in, and the newest of both for each new
//! handshake. Opens no socket; `server/socket.rs` shakes hands.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio::time::MissedTickBehavior;

use crate::config::TlsSettings;
use crate::metrics::TlsFailure;

mod clients;
mod files;
mod trial;

pub use clients::{COMMON_NAME_BYTES_MAX, NameError, common_name};
pub use files::TlsError;

use clients::NamedClients;
use files::Stamps;

/// Time between two looks at the files. What has changed is read at the second look that finds it the same, so that a
/// certificate is not paired with a key that is still to be written.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of plain text that a connection takes while its socket takes none: one record. Like what is unsent in the kernel they
/// can no longer be dropped, and only get old.
pub const BUFFER_BYTES_MAX: usize = 16 << 10;

/// The one application protocol (RFC 7301): the WebSocket of RFC 6455 needs HTTP/1.1.
const ALPN: &[u8] = b"http/1.1";

/// See the module's page.
pub struct Tls {
    settings: TlsSettings,
    /// Made by this server for a trial; its files do not change.
    trial: Option<Arc<CertifiedKey>>,
    /// The files as they were when the server started.
    started_with: Stamps,
    /// Only handshakes and changes of the files take this lock.
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// What the settings ask for; nothing where TLS is off. A trial certificate is made for this machine and `listen`.
    ///
    /// # Errors
    /// Names the setting, the file, what is wrong with it, and the remedy.
    pub fn from_settings(settings: &TlsSettings, listen: IpAddr) -> Result<Option<Self>, TlsError> {
        if !settings.is_on() {
            return Ok(None);
        }
        // Before they are read: a change meanwhile is then seen as one.
        let started_with = Stamps::of(settings);
        let trial = match settings.self_signed_file.get() {
            Some(path) => Some(Arc::new(trial::make(path, listen)?)),
            None => None,
        };
        let settings = settings.clone();
        let current = RwLock::new(Arc::new(build(&settings, trial.as_ref())?));
        Ok(Some(Self { settings, trial, started_with, current }))
    }

    /// What the next handshake goes by.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The SHA-256 fingerprint of a trial certificate, as browsers and openssl show it.
    #[must_use]
    pub fn trial_fingerprint(&self) -> Option<String> {
        files::fingerprint(self.trial.as_ref()?.cert.first()?)
    }

    /// Looks after the files for ever: what has changed is for the next handshakes, and what cannot be used is logged and
    /// changes nothing. Connections that are there stay as they are.
    pub async fn watch(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut in_use = self.started_with.clone();
        let mut seen = in_use.clone();
        let mut complained = None;
        loop {
            look.tick().await;
            let (this, used, before) = (Arc::clone(&self), in_use.clone(), seen.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let now = Stamps::of(&this.settings);
                let settled = now == before && now != used;
                let read = settled.then(|| build(&this.settings, this.trial.as_ref()));
                (now, read)
            });
            // It fails only while the runtime ends.
            let Ok((now, read)) = looked.await else { return };
            match read {
                None => {}
                Some(Ok(config)) => {
                    in_use = now.clone();
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    tracing::info!("new TLS files are in use for new connections");
                }
                // It is tried again each time: who may read them may come right without a new version.
                Some(Err(_)) if complained.as_ref() == Some(&now) => {}
                Some(Err(error)) => {
                    complained = Some(now.clone());
                    tracing::warn!(%error, "new TLS files cannot be used; the ones before stay");
                }
            }
            seen = now;
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn build(settings: &TlsSettings, trial: Option<&Arc<CertifiedKey>>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let own = match trial {
        Some(own) => Arc::clone(own),
        None => Arc::new(files::certified_key(settings, &provider)?),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        // The provider has suites for both.
        .map_err(|error| TlsError::new("tls", "", error.to_string()))?;
    let clients = clients(settings, &provider)?;
    let asked = clients.is_some();
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if !asked {
        // A client that comes back spares both sides the signature. Not where clients show certificates: a resumed session
        // would outlive its certificate, and a change of the CAs. The keys of the tickets are in memory, and new ones each time.
        config.ticketer = rustls::crypto::ring::Ticketer::new()
            .map_err(|error| TlsError::new("tls", "", format!("no keys for session tickets: {error}")))?;
        config.send_tls13_tickets = 1;
    }
    Ok(config)
}

/// Who is let in by a certificate; nothing where clients are not asked for one.
fn clients(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Option<NamedClients>, TlsError> {
    const SETTING: &str = "tls.client_ca_file";
    let Some(path) = settings.client_ca_file.get() else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for (position, certificate) in files::certificates(SETTING, path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            TlsError::new(SETTING, path, format!("certificate {} in it is no CA's: {error}", position + 1))
        })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder =
        if settings.client_certificate_required { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|error| TlsError::new(SETTING, path, error.to_string()))?;
    Ok(Some(NamedClients::new(verifier)))
}

/// Why a handshake failed, for the metrics.
#[must_use]
pub fn failure(error: &io::Error) -> TlsFailure {
    use rustls::Error as E;
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<E>()) else {
        return TlsFailure::Gone;
    };
    match error {
        E::InvalidMessage(_) | E::InappropriateMessage { .. } | E::PeerSentOversizedRecord => {
            TlsFailure::NotTls
        }
        E::PeerIncompatible(_) => TlsFailure::Incompatible,
        E::NoApplicationProtocol => TlsFailure::Alpn,
        E::NoCertificatesPresented => TlsFailure::NoCertificate,
        E::InvalidCertificate(CertificateError::Other(other)) if other.0.is::<NameError>() => {
            TlsFailure::CertificateName
        }
        E::InvalidCertificate(_) => TlsFailure::Certificate,
        E::AlertReceived(_) => TlsFailure::Alert,
        _ => TlsFailure::Other,
    }
}
