//! Clients that show a certificate: a CA of theirs has to be trusted, and the certificate has to say in so many words who they
//! are. Knows no connection and no rights.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode as _, Tag, Tagged as _};

/// Longest common name that is taken, in bytes: three times the 64 characters of RFC 5280 (appendix A.1), and room in any log
/// line.
pub const COMMON_NAME_BYTES_MAX: usize = 200;

/// `id-at-commonName` (RFC 5280 appendix A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Why a certificate does not say who its owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It cannot be taken apart.
    #[error("the client's certificate cannot be read")]
    Unreadable,
    /// It has a subject without a common name.
    #[error("the client's certificate has no common name")]
    Absent,
    /// It has more than one: nothing says which counts.
    #[error("the client's certificate has more than one common name")]
    Ambiguous,
    /// Empty, longer than [`COMMON_NAME_BYTES_MAX`], of another type than UTF-8 or ASCII, or with characters that cannot be seen.
    #[error(
        "the common name of the client's certificate is empty, not printable, or longer than {COMMON_NAME_BYTES_MAX} bytes"
    )]
    Unfit,
}

/// The common name of a certificate's subject.
///
/// # Errors
/// There is not exactly one, or none that can be shown.
pub fn common_name(certificate: &CertificateDer<'_>) -> Result<Box<str>, NameError> {
    let parsed = Certificate::from_der(certificate).map_err(|_| NameError::Unreadable)?;
    let attributes = parsed.tbs_certificate.subject.0.iter().flat_map(|set| set.0.iter());
    let mut names = attributes.filter(|attribute| attribute.oid == COMMON_NAME);
    let value = &names.next().ok_or(NameError::Absent)?.value;
    if names.next().is_some() {
        return Err(NameError::Ambiguous);
    }
    let name = match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().map(|name| name.as_str().to_owned()),
        Tag::PrintableString => {
            value.decode_as::<PrintableStringRef<'_>>().map(|name| name.as_str().to_owned())
        }
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().map(|name| name.as_str().to_owned()),
        _ => return Err(NameError::Unfit),
    };
    name.ok().filter(|name| is_fit(name)).map(String::into_boxed_str).ok_or(NameError::Unfit)
}

/// Whether a name can stand in a log, and is what it looks like.
fn is_fit(name: &str) -> bool {
    let seen = |char: char| matches!(char, '"' | '\'' | '\\') || char.escape_debug().count() == 1;
    !name.is_empty() && name.len() <= COMMON_NAME_BYTES_MAX && name.trim() == name && name.chars().all(seen)
}

/// Lets in whom another verifier lets in, if the certificate has a [`common_name`]: in the handshake, where the client is told.
pub(super) struct NamedClients {
    inner: Arc<dyn ClientCertVerifier>,
}

impl NamedClients {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>) -> Self {
        Self { inner }
    }
}

impl fmt::Debug for NamedClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedClients").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for NamedClients {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(certificate, intermediates, now)?;
        common_name(certificate)
            .map_err(|error| Error::from(CertificateError::Other(OtherError(Arc::new(error)))))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, DnValue)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_common_name_is_taken_as_it_is_or_not_at_all() {
        use NameError as E;
        let utf8 = |name: &str| DnValue::Utf8String(name.to_owned());
        let long = "\u{e9}".repeat(COMMON_NAME_BYTES_MAX / 2);
        let rows: &[(DnValue, Result<&str, E>)] = &[
            (utf8("robot 7"), Ok("robot 7")),
            (utf8("J\u{fc}rgen \"J\" O'Neil"), Ok("J\u{fc}rgen \"J\" O'Neil")),
            (utf8(&long), Ok(&long)),
            (DnValue::PrintableString("robot-7".try_into().unwrap()), Ok("robot-7")),
            (DnValue::Ia5String("robot@7".try_into().unwrap()), Ok("robot@7")),
            (DnValue::TeletexString("robot".try_into().unwrap()), Err(E::Unfit)),
            (DnValue::BmpString("robot".try_into().unwrap()), Err(E::Unfit)),
            (utf8(&format!("{long}x")), Err(E::Unfit)),
            (utf8(""), Err(E::Unfit)),
            (utf8(" robot"), Err(E::Unfit)),
            (utf8("a\nb"), Err(E::Unfit)),
            (utf8("a\0"), Err(E::Unfit)),
            (utf8("a\u{202E}b"), Err(E::Unfit)),
            (utf8("a\u{200B}b"), Err(E::Unfit)),
        ];
        for (value, expected) in rows {
            let found = common_name(&certificate(&[(DnType::CommonName, value.clone())]));
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{value:?}");
        }
    }

    #[test]
    fn nobody_is_guessed() {
        let unit = (DnType::OrganizationalUnitName, DnValue::from("robots"));
        let name = |kind| (kind, DnValue::from("robot"));
        type Row<'a> = (&'a [(DnType, DnValue)], Result<&'a str, NameError>);
        let rows: &[Row<'_>] = &[
            (&[], Err(NameError::Absent)),
            (std::slice::from_ref(&unit), Err(NameError::Absent)),
            (&[unit.clone(), name(DnType::CommonName)], Ok("robot")),
            (
                &[name(DnType::CommonName), name(DnType::CustomDnType(vec![2, 5, 4, 3]))],
                Err(NameError::Ambiguous),
            ),
        ];
        for (names, expected) in rows {
            let found = common_name(&certificate(names));
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{names:?}");
        }
        for bytes in [&b""[..], b"\x30\x03\x02\x01\x01", &[0xFF; 64]] {
            assert_eq!(common_name(&CertificateDer::from(bytes)), Err(NameError::Unreadable));
        }
    }
}
