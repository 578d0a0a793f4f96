//! A certificate that the server makes for itself, so that a newcomer can try `wss` at once. Its key never leaves memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::der::pem::{LineEnding, encode_string};

use super::files::TlsError;
use crate::clock::Clock;

/// The first line of the file. A file that begins otherwise is somebody else's, and is not written over.
const FIRST_LINE: &str = "Tidewire trial certificate, made anew at each start";

/// How long it is valid: longer than a trial takes, and short enough for every browser.
const VALID: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Clocks differ: it is valid from this long ago.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

const SETTING: &str = "tls.self_signed_file";

/// Makes a certificate for this machine and `listen`, and writes it, without its key, to `path`.
pub(super) fn make(path: &Path, listen: IpAddr) -> Result<CertifiedKey, TlsError> {
    let (certificate, key) = generate(listen)
        .map_err(|error| TlsError::new(SETTING, path, format!("a certificate cannot be made: {error}")))?;
    let own = CertifiedKey::from_der(
        vec![certificate.der().clone()],
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        &rustls::crypto::ring::default_provider(),
    )
    .map_err(|error| TlsError::new(SETTING, path, format!("the certificate made is of no use: {error}")))?;
    write(path, certificate.der())
        .map_err(|error| TlsError::new(SETTING, path, format!("the file cannot be written: {error}")))?;
    Ok(own)
}

fn generate(listen: IpAddr) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), listen];
    let mut names = vec!["localhost".to_owned()];
    for address in own {
        let name = address.to_string();
        if !address.is_unspecified() && !names.contains(&name) {
            names.push(name);
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Tidewire trial certificate");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = date_time_ymd(1970, 1, 1) + Duration::from_nanos(Clock::new().now().wall_ns);
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + VALID;
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?, key))
}

/// What stands before `-----BEGIN` is no part of PEM.
fn write(path: &Path, certificate: &[u8]) -> io::Result<()> {
    match std::fs::metadata(path) {
        // To open a pipe would wait for somebody at its other end.
        Ok(metadata) if !metadata.is_file() => {
            return Err(io::Error::other("it is not a file; name another one"));
        }
        Ok(_) => {
            let mut begin = Vec::new();
            File::open(path)?.take(FIRST_LINE.len() as u64).read_to_end(&mut begin)?;
            if !begin.is_empty() && begin != FIRST_LINE.as_bytes() {
                return Err(io::Error::other("it holds something else; name another file, or remove it"));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let pem = encode_string("CERTIFICATE", LineEnding::LF, certificate)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(format!("{FIRST_LINE}\n{pem}").as_bytes())
}
