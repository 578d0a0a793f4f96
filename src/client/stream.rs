//! The byte stream of a connection, bare or within TLS, and whom TLS trusts. Knows no HTTP and no WebSocket.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ConnectError, Url};
use crate::config::file::FILE_BYTES_MAX;

/// What a WebSocket needs (RFC 6455), as an application protocol of TLS (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// Whose certificates a client trusts. The default is nobody, which is enough for `ws://`.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    config: Option<Arc<ClientConfig>>,
}

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("--ca {path}: the file cannot be read: {error}")]
    Unreadable {
        /// Its path, quoted.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The file holds no certificate, or one that cannot be used.
    #[error("--ca {path}: {what}; give a file with PEM certificates")]
    Useless {
        /// Its path, quoted.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no certificate where there is no TLS.
    #[error("--ca is for wss:// addresses, and {0} is not encrypted; use wss://, or leave out --ca")]
    Plain(Url),
    /// The machine has no list of CAs.
    #[error("this machine trusts no certificate; install its CAs (ca-certificates), or give --ca FILE")]
    NoRoots,
    /// The cryptography does not work on this machine.
    #[error("TLS cannot be spoken here: {0}")]
    Unusable(String),
}

impl Trust {
    /// What a connection to `url` needs: nothing without TLS; else the certificates in the file `ca` and no others, or those
    /// that this machine trusts. The file may hold CAs, or a server's own self-signed certificate. Reads files.
    ///
    /// # Errors
    /// Names what cannot be used, and the remedy.
    pub fn new(url: &Url, ca: Option<&Path>) -> Result<Self, TrustError> {
        if !url.is_secure() {
            return match ca {
                Some(_) => Err(TrustError::Plain(url.clone())),
                None => Ok(Self::default()),
            };
        }
        let roots = match ca {
            Some(path) => roots_in(path)?,
            None => roots_of_machine()?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| TrustError::Unusable(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Some(Arc::new(config)) })
    }
}

fn roots_in(path: &Path) -> Result<RootCertStore, TrustError> {
    let shown = format!("{path:?}");
    let useless = |what: String| TrustError::Useless { path: shown.clone(), what };
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut pem))
        .map_err(|error| TrustError::Unreadable { path: shown.clone(), error })?;
    if pem.len() as u64 > FILE_BYTES_MAX {
        return Err(useless(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| useless("it is broken PEM".to_owned()))?;
        roots.add(certificate).map_err(|error| useless(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(useless("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Some of a machine's many may be of no use: the rest counts.
fn roots_of_machine() -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TrustError::NoRoots) } else { Ok(roots) }
}

/// See the module's page.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to the server, up to where HTTP begins.
pub(super) async fn connect(url: &Url, trust: &Trust) -> Result<Stream, ConnectError> {
    let stream = TcpStream::connect((url.host(), url.port())).await?;
    stream.set_nodelay(true)?;
    if !url.is_secure() {
        return Ok(Stream::Plain(stream));
    }
    // Made for another address.
    let config =
        trust.config.as_ref().ok_or(ConnectError::Handshake("nobody is trusted for this address"))?;
    let name = ServerName::try_from(url.host().to_owned())
        .map_err(|_| ConnectError::Handshake("a certificate cannot be for this host"))?;
    match TlsConnector::from(Arc::clone(config)).connect(name, stream).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => Err(refusal(url, error)),
    }
}

/// What to do about a handshake that failed.
fn refusal(url: &Url, error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(certificate)) => {
            ConnectError::Certificate(format!("{}; {}", reason(certificate), remedy(url, certificate)))
        }
        Some(Error::InvalidMessage(_)) => {
            ConnectError::Handshake("the server does not speak TLS here; use ws://")
        }
        Some(error) => ConnectError::Tls(error.to_string()),
        None => ConnectError::Io(error),
    }
}

const fn reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => "it is signed by nobody who is trusted",
        CertificateError::BadSignature => "it is not signed with the key that is trusted",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::Other(_) => "it is a CA's own, and not a server's",
        _ => "it is not fit for a server",
    }
}

fn remedy(url: &Url, error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "give its CA, or a self-signed certificate itself, with --ca FILE".to_owned()
        }
        CertificateError::BadSignature => "give --ca FILE with the newest certificate".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            // From the server's certificate, which nobody vouches for.
            let names: Vec<_> = presented.iter().take(NAMES_SHOWN_MAX).map(|name| shown(name)).collect();
            format!("connect by a name that it has: {}", names.join(", "))
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server needs one for {}", shown(url.host()))
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "the server needs a new one, unless this machine's clock is wrong".to_owned()
        }
        CertificateError::Other(_) => "the server needs one with basicConstraints CA:FALSE".to_owned(),
        error => format!("the server needs another one: {}", Error::from(error.clone())),
    }
}

/// Names of a certificate that a message repeats, and characters of each.
const NAMES_SHOWN_MAX: usize = 4;
const NAME_CHARS_MAX: usize = 80;

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).flat_map(char::escape_debug).collect()
}

macro_rules! with_inner {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Plain($inner) => {
                let $inner = Pin::new($inner);
                $call
            }
            Stream::Tls($inner) => {
                let $inner = Pin::new($inner);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with_inner!(self, inner => inner.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with_inner!(self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_inner!(self, inner => inner.poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_inner!(self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_inner!(self, inner => inner.poll_shutdown(cx))
    }
}
