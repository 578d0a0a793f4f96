//! TLS to a broker: whom it trusts, and the stream. Reads files; the certificate's reasons in words.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::driver::{Port, Why};
use super::words;
use crate::config::file;

/// A stream of bytes, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What a connection needs: the CAs of the file and no others, or those that this machine trusts.
pub(super) fn config(ca: Option<&Path>) -> Result<ClientConfig, Why> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let (pem, _) = file::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| "it is broken PEM".to_owned())?;
                roots.add(certificate).map_err(|error| words::foreign(&error))?;
            }
            if roots.is_empty() {
                return Err("it holds no certificate (PEM)".to_owned());
            }
        }
        None => {
            // Some of a machine's many may be of no use: the rest counts.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "this machine trusts no certificate; install its CAs, or set broker.ca_file".to_owned()
                );
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| words::foreign(&error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Connects to the port's server.
pub(super) async fn connect(port: &Port) -> Result<Box<dyn Stream>, Why> {
    let (host, number) = port.host();
    let stream = TcpStream::connect((host, number))
        .await
        .map_err(|error| format!("{host}:{number}: {}", words::foreign(&error)))?;
    stream.set_nodelay(true).map_err(|error| words::foreign(&error))?;
    if !port.url.tls {
        return Ok(Box::new(stream));
    }
    let config = config(port.settings.ca_file.as_deref())
        .map_err(|why| format!("the file of broker.ca_file cannot be used: {why}"))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("a certificate cannot be for the host {host}"))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(format!("{host}:{number}: {}", refusal(&error))),
    }
}

/// Why a handshake failed.
pub(super) fn refusal(error: &io::Error) -> Why {
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) => {
            "the server does not speak TLS here; use the URL's scheme without".to_owned()
        }
        Some(error @ Error::InvalidCertificate(_)) => {
            format!("the server's certificate is not trusted ({}); see broker.ca_file", words::foreign(error))
        }
        Some(error) => format!("the TLS handshake failed: {}", words::foreign(error)),
        None => words::foreign(error),
    }
}
