//! Certificates and keys on disk: read within bounds, checked for who else can read them, and told apart when they change.
//! Nothing of a key ever reaches an error.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ring::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::clock::Clock;
use crate::config::TlsSettings;
use crate::config::file::{FILE_BYTES_MAX, Stamp};

/// Permissions that nobody but the owner of a key may have: to read it and to write it.
const OTHERS_MAY: u32 = 0o066;

/// Why TLS cannot be spoken as the settings ask. One line, printable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}{path}: {what}")]
pub struct TlsError {
    setting: &'static str,
    /// With ` = ` before it, where there is one.
    path: String,
    what: String,
}

impl TlsError {
    /// A mistake in the file at `path`, which `setting` names.
    pub(super) fn new(setting: &'static str, path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        let path = path.as_ref();
        let path = if path.as_os_str().is_empty() { String::new() } else { format!(" = {path:?}") };
        Self { setting, path, what: what.into() }
    }
}

/// The certificate and key that the settings name.
pub(super) fn certified_key(
    settings: &TlsSettings,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    const CERTIFICATE: &str = "tls.certificate_file";
    const KEY: &str = "tls.key_file";
    let certificate_path = settings.certificate_file.get().unwrap_or_else(|| Path::new(""));
    let key_path = settings.key_file.get().unwrap_or_else(|| Path::new(""));
    let chain = certificates(CERTIFICATE, certificate_path)?;
    if let Some(certificate) = chain.first() {
        warn_of_time(certificate, certificate_path);
    }
    let pem = read(KEY, key_path, check_mode)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let what = "it holds no private key that can be read; give PEM with PKCS #8, PKCS #1 or SEC 1, without a passphrase";
        TlsError::new(KEY, key_path, what)
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let what = format!("the key does not belong to the certificate in {CERTIFICATE}; give the pair");
            TlsError::new(KEY, key_path, what)
        }
        Error::InvalidCertificate(error) => {
            TlsError::new(CERTIFICATE, certificate_path, format!("its certificate cannot be read: {error}"))
        }
        _ => TlsError::new(KEY, key_path, "its key cannot be used; give an RSA, ECDSA or Ed25519 key"),
    })
}

/// The certificates in a file: at least one.
pub(super) fn certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(setting, path, |_| Ok(()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => {
            let what = "it holds no certificate; give PEM, which begins with -----BEGIN CERTIFICATE-----";
            Err(TlsError::new(setting, path, what))
        }
        // Not the parser's words, which repeat a line of what may be the wrong file.
        Err(_) => Err(TlsError::new(setting, path, "it is broken PEM; give it whole, from BEGIN to END")),
    }
}

fn check_mode(metadata: &Metadata) -> Result<(), String> {
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS_MAY == 0 {
        return Ok(());
    }
    Err(format!("others can read or write the key (mode {mode:03o}); run chmod 600 on it"))
}

fn read(
    setting: &'static str,
    path: &Path,
    check: impl FnOnce(&Metadata) -> Result<(), String>,
) -> Result<Vec<u8>, TlsError> {
    let fail = |what: String| TlsError::new(setting, path, what);
    let unreadable = |error| fail(format!("the file cannot be read: {error}"));
    // To open a pipe would wait for somebody to write to it.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(fail("it is not a file; give the path of a PEM file".to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    check(&file.metadata().map_err(unreadable)?).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(format!("the file has more than {FILE_BYTES_MAX} bytes; give one with less")));
    }
    Ok(bytes)
}

/// Says aloud that clients will refuse the certificate. It is no reason not to start: a clock may be wrong, too.
fn warn_of_time(certificate: &CertificateDer<'_>, path: &Path) {
    let Ok(parsed) = Certificate::from_der(certificate) else { return };
    let validity = parsed.tbs_certificate.validity;
    let now = u128::from(Clock::new().now().wall_ns);
    if validity.not_after.to_unix_duration().as_nanos() <= now {
        tracing::warn!(?path, until = %validity.not_after, "the TLS certificate has expired");
    } else if validity.not_before.to_unix_duration().as_nanos() > now {
        tracing::warn!(?path, from = %validity.not_before, "the TLS certificate is not valid yet");
    }
}

/// SHA-256 of a certificate, as browsers and openssl show it.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Option<String> {
    let bytes = digest(&SHA256, certificate);
    let pairs: Vec<_> = bytes.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    Some(pairs.join(":"))
}

/// The state of each of the files, without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamps([Option<Stamp>; 3]);

impl Stamps {
    /// The files that the settings name, as they are now.
    pub(super) fn of(settings: &TlsSettings) -> Self {
        let files = [&settings.certificate_file, &settings.key_file, &settings.client_ca_file];
        Self(files.map(|file| Stamp::of(file.get()?)))
    }
}
