//! The TLS handshake of a socket, before HTTP. Never speaks HTTP, never sees a message.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::metrics::TlsFailure;
use crate::peer::Peer;
use crate::tls::{self, BUFFER_BYTES_MAX, Tls};
use crate::worker::Worker;

/// Bytes that are still read of a client whose handshake failed: what it had sent before it knew.
const IGNORED_BYTES_MAX: usize = 64 << 10;

/// Shakes hands, and adds to `peer` who its certificate says it is. Nothing if that failed: then it is counted and logged, and
/// the socket has ended. `opened` is when the socket was accepted.
pub(super) async fn shake_hands(
    worker: &Rc<Worker>,
    tls: &Tls,
    io: TcpStream,
    peer: &mut Peer,
    opened: Instant,
) -> Option<Box<TlsStream<TcpStream>>> {
    let limits = &worker.config().server;
    let set_up = |connection: &mut rustls::ServerConnection| {
        connection.set_buffer_limit(Some(BUFFER_BYTES_MAX));
    };
    let accept = TlsAcceptor::from(tls.current()).accept_with(io, set_up).into_fallible();
    let left = limits.handshake_timeout.saturating_sub(opened.elapsed());
    let (failure, error) = match tokio::time::timeout(left, accept).await {
        Ok(Ok(stream)) => match certificate(&stream) {
            Ok(name) => {
                peer.certificate = name;
                worker.hub.borrow_mut().metrics().counters.tls_handshakes += 1;
                return Some(Box::new(stream));
            }
            Err(error) => (TlsFailure::CertificateName, io::Error::other(error)),
        },
        Ok(Err((error, io))) => {
            let failure = tls::failure(&error);
            if failure != TlsFailure::Gone {
                // In vain where the peer has gone meanwhile.
                let _ = tokio::time::timeout(limits.close_timeout, take_leave(io)).await;
            }
            (failure, error)
        }
        Err(_) => (TlsFailure::Timeout, io::ErrorKind::TimedOut.into()),
    };
    worker.hub.borrow_mut().metrics().counters.tls_handshakes_failed[failure] += 1;
    tracing::debug!(remote = %peer.address, reason = failure.label(), %error, "a TLS handshake has failed");
    None
}

/// Who the client's certificate says it is, if it showed one.
fn certificate(stream: &TlsStream<TcpStream>) -> Result<Option<Box<str>>, tls::NameError> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    certificate.map(tls::common_name).transpose()
}

/// Ends a socket so that the alert, which has been written, arrives: one that is closed over unread bytes is reset, and the
/// peer would never know why.
async fn take_leave(mut io: TcpStream) -> io::Result<()> {
    io.shutdown().await?;
    let mut ignored = 0;
    while ignored < IGNORED_BYTES_MAX {
        io.readable().await?;
        match io.try_read(&mut [0; 4 << 10]) {
            Ok(0) => break,
            Ok(bytes) => ignored += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;
    use x509_cert::der::pem::{LineEnding, encode_string};

    use super::*;
    use crate::config::Config;
    use crate::hub::router::Router;
    use crate::peer::Listener;
    use crate::worker::Shared;

    #[tokio::test]
    async fn a_peer_is_who_its_certificate_says() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, label: &str, der: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, encode_string(label, LineEnding::LF, der).unwrap()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.to_str().unwrap().parse().unwrap()
        };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let ca = Issuer::new(params, key);
        let sign = |name: &str| {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &ca).unwrap().der().clone(), key.serialize_der())
        };
        let (certificate, key) = sign("server");
        let mut config = Config::default();
        config.tls.certificate_file = write("cert.pem", "CERTIFICATE", &certificate);
        config.tls.key_file = write("key.pem", "PRIVATE KEY", &key);
        config.tls.client_ca_file = write("ca.pem", "CERTIFICATE", root.der());
        let tls = Tls::from_settings(&config.tls, config.listen.ip()).unwrap().unwrap();
        let config = Arc::new(config);
        let (router, _inboxes) = Router::new(1, config.channel.channels_total_max);
        let worker = Rc::new(Worker::new(0, Arc::new(Shared::new(config, router))));

        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trusting = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let (certificate, key) = sign("robot 7");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let named = trusting.clone().with_client_auth_cert(vec![certificate], key).unwrap();
        for (client, expected) in [(named, Some("robot 7")), (trusting.with_no_client_auth(), None)] {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (far, address) = listener.accept().await.unwrap();
            let mut peer = Peer::at(address, Listener::Public);
            let connector = TlsConnector::from(Arc::new(client));
            let (connected, accepted) = tokio::join!(
                connector.connect(ServerName::try_from("localhost").unwrap(), near),
                shake_hands(&worker, &tls, far, &mut peer, Instant::now()),
            );
            connected.unwrap();
            assert!(accepted.is_some());
            assert_eq!(peer.certificate.as_deref(), expected);
        }
        assert_eq!(worker.hub.borrow_mut().metrics().counters.tls_handshakes, 2);
    }
}
