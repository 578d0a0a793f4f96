//! How a server of our own is spoken to: within TLS, with a token, both, or neither. Makes what that needs for a run; opens no
//! connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use clap::Args;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Bytes of a key for HS256: as many as the hash has (RFC 7518, section 3.2).
const KEY_BYTES: usize = 32;

/// How long a token is good for: longer than a run takes, and within the 24 hours that the server allows by default.
const TOKEN_S: u64 = 23 * 60 * 60;

/// How the server that is started is spoken to.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct AccessArgs {
    /// Speak TLS: the server makes a certificate for the run, and nothing else is trusted. Each connection shakes hands in full
    #[arg(long, help_heading = "Server", conflicts_with = "url")]
    pub tls: bool,
    /// Show a token (HS256) in each WebSocket handshake: the server gets a key that is made for the run
    #[arg(long, help_heading = "Server", conflicts_with = "url")]
    pub token: bool,
}

/// How a server is spoken to.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// Whom TLS trusts; none speaks without.
    pub tls: Option<Arc<ClientConfig>>,
    /// A header with its end of line, or nothing.
    authorization: Option<Arc<str>>,
}

impl Access {
    /// What its URLs begin with.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "wss://" } else { "ws://" }
    }

    /// The header that requests carry, with its end of line; empty without a token.
    pub(crate) fn authorization(&self) -> &str {
        self.authorization.as_deref().unwrap_or_default()
    }

    /// Within TLS, with nobody trusted but the owner of this certificate. Without resumption: what is measured is a
    /// handshake, as of a client that comes for the first time.
    pub(crate) fn trusting(certificate: CertificateDer<'static>) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self { tls: Some(Arc::new(config)), authorization: None })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No token.
        f.debug_struct("Access")
            .field("tls", &self.tls.is_some())
            .field("token", &self.authorization.is_some())
            .finish()
    }
}

/// What one server is started with, and clients will need.
#[derive(Debug)]
pub(crate) struct Trial {
    /// Settings of the server, by key.
    pub settings: Vec<(String, String)>,
    certificate: Option<Certificate>,
    token: Option<String>,
}

/// The file that the server writes its certificate to. Removed when dropped.
#[derive(Debug)]
struct Certificate(PathBuf);

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Trial {
    /// Makes it, for a server that starts at `now_s`, in seconds since 1970.
    pub(crate) fn new(args: AccessArgs, now_s: u64) -> Result<Self, String> {
        let mut trial = Self { settings: Vec::new(), certificate: None, token: None };
        if args.tls {
            let path = std::env::temp_dir().join(format!("loadtest-{:016x}.pem", fastrand::u64(..)));
            let text = path.to_str().ok_or_else(|| format!("--tls: {path:?} is no text; set TMPDIR"))?;
            trial.settings.push(("tls.self_signed_file".to_owned(), text.to_owned()));
            trial.certificate = Some(Certificate(path));
        }
        if args.token {
            let mut key = [0; KEY_BYTES];
            SystemRandom::new()
                .fill(&mut key)
                .map_err(|_| "--token: the system has no random numbers".to_owned())?;
            // The setting is a text, so the text is the key.
            let secret = BASE64URL.encode(key);
            trial.token = Some(token(secret.as_bytes(), now_s));
            trial.settings.push(("auth.secret".to_owned(), secret));
        }
        Ok(trial)
    }

    /// What clients need, once the server has started.
    pub(crate) fn access(&self) -> Result<Access, String> {
        let access = match &self.certificate {
            Some(Certificate(path)) => trust(path)?,
            None => Access::default(),
        };
        let header = |token: &String| Arc::from(format!("Authorization: Bearer {token}\r\n"));
        Ok(Access { authorization: self.token.as_ref().map(header), ..access })
    }
}

fn trust(path: &Path) -> Result<Access, String> {
    let failed = |why: &dyn fmt::Display| format!("--tls: the server's certificate cannot be used: {why}");
    let certificate = CertificateDer::from_pem_file(path).map_err(|error| failed(&error))?;
    Access::trusting(certificate).map_err(|error| failed(&error))
}

/// A token (RFC 7519) for everything, its pages included.
fn token(key: &[u8], now_s: u64) -> String {
    let claims = serde_json::json!({
        "sub": "loadtest",
        "exp": now_s + TOKEN_S,
        "tidewire": { "subscribe": [">"], "publish": [">"], "admin": [">"] },
    });
    let signed = format!(
        "{}.{}",
        BASE64URL.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        BASE64URL.encode(claims.to_string())
    );
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_and_says_when_it_ends() {
        let key = [7; KEY_BYTES];
        let token = token(&key, 1_000_000);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = BASE64URL.decode(signature).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        let claims = BASE64URL.decode(signed.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["exp"], 1_082_800);
        assert_eq!(claims["tidewire"]["subscribe"][0], ">");
    }

    #[test]
    fn what_is_made_follows_from_the_flags() {
        let keys = |args| {
            let trial = Trial::new(args, 0).unwrap();
            trial.settings.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        assert!(keys(AccessArgs::default()).is_empty());
        assert_eq!(keys(AccessArgs { tls: true, token: true }), ["tls.self_signed_file", "auth.secret"]);
        let trial = Trial::new(AccessArgs { tls: false, token: true }, 0).unwrap();
        let access = trial.access().unwrap();
        assert_eq!(access.scheme(), "ws://");
        assert!(access.authorization().starts_with("Authorization: Bearer ey"));
        assert!(access.authorization().ends_with("\r\n"));
        assert!(!format!("{access:?}").contains("ey"), "no token in a log");
        // No server has written a certificate.
        let refused = Trial::new(AccessArgs { tls: true, token: false }, 0).unwrap().access().unwrap_err();
        assert!(refused.contains("--tls"), "{refused}");
    }
}
