//! The rules on which settings go together, as data. Floors between numbers are in `relation.rs`.

use super::{Config, Origins};

/// A rule about one setting, which others decide.
#[derive(Debug)]
pub(super) struct Rule {
    /// The full name of the setting; the rule holds for its default.
    pub(super) key: &'static str,
    /// The full names of the settings that decide.
    pub(super) of: &'static [&'static str],
    /// When it is broken, in words that follow "is refused".
    pub(super) when: &'static str,
    /// Whether it is broken.
    pub(super) broken: fn(&Config) -> bool,
    /// What is wrong, and the remedy.
    pub(super) remedy: &'static str,
}

/// Every rule.
pub(super) static RULES: &[Rule] = &[
    Rule {
        key: "listen",
        of: &["insecure_open", "auth.keys_file", "auth.secret"],
        when: "for an address that others can reach, without a key",
        broken: |config| !config.listen.ip().is_loopback() && config.is_open() && !config.insecure_open,
        remedy: "everybody who reaches this address could do everything; set auth.keys_file or auth.secret, or \
                 insecure_open = true",
    },
    Rule {
        key: "server.proxy_protocol",
        of: &["server.trusted_proxies"],
        when: "without trusted proxies",
        broken: |config| config.server.proxy_protocol && config.server.trusted_proxies.is_empty(),
        remedy: "a PROXY header is believed from known proxies alone; name them in server.trusted_proxies",
    },
    Rule {
        key: "auth.cookie",
        of: &["server.origins"],
        when: "where all origins are allowed",
        broken: |config| config.auth.cookie.is_some() && config.server.origins == Origins::Any,
        remedy: "any page could use the cookies of whoever visits it; list the pages in server.origins",
    },
    Rule {
        key: "admin.token",
        of: &[],
        when: "with other characters than a token has",
        broken: |config| !config.admin.token.expose().bytes().all(may_be_sent),
        remedy: "a token that no client can send (RFC 6750); use ASCII letters, digits and - . _ ~ + / =",
    },
    Rule {
        key: "admin.listen",
        of: &["insecure_open", "auth.keys_file", "auth.secret", "admin.token"],
        when: "for an address that others can reach, with neither a key nor an admin token",
        broken: |config| {
            let exposed = config.admin.listen.is_some_and(|listen| !listen.ip().is_loopback());
            exposed && config.is_open() && config.admin.token.is_empty() && !config.insecure_open
        },
        remedy: "everybody who reaches this address could see everything; set admin.token, or keys for tokens with the \
                 right admin, or insecure_open = true",
    },
    Rule {
        key: "tls.certificate_file",
        of: &["tls.key_file"],
        when: "without tls.key_file",
        broken: |config| config.tls.certificate_file.is_set() && !config.tls.key_file.is_set(),
        remedy: "needs tls.key_file, the private key that belongs to the certificate",
    },
    Rule {
        key: "tls.key_file",
        of: &["tls.certificate_file"],
        when: "without tls.certificate_file",
        broken: |config| config.tls.key_file.is_set() && !config.tls.certificate_file.is_set(),
        remedy: "needs tls.certificate_file, the certificate that belongs to the key",
    },
    Rule {
        key: "tls.self_signed_file",
        of: &["tls.certificate_file", "tls.key_file"],
        when: "beside a certificate",
        broken: |config| {
            let own = config.tls.certificate_file.is_set() || config.tls.key_file.is_set();
            config.tls.self_signed_file.is_set() && own
        },
        remedy: "a trial certificate stands in for tls.certificate_file and tls.key_file; leave out one or the other",
    },
    Rule {
        key: "tls.client_ca_file",
        of: &["tls.certificate_file", "tls.self_signed_file"],
        when: "without TLS",
        broken: |config| config.tls.client_ca_file.is_set() && !config.tls.is_on(),
        remedy: "needs TLS; set tls.certificate_file and tls.key_file, too",
    },
    Rule {
        key: "tls.client_certificate_required",
        of: &["tls.client_ca_file"],
        when: "without tls.client_ca_file",
        broken: |config| config.tls.client_certificate_required && !config.tls.client_ca_file.is_set(),
        remedy: "needs tls.client_ca_file, which names the CAs whose clients are let in",
    },
    Rule {
        key: "broker.prefix",
        of: &[],
        when: "with other characters than names have",
        broken: |config| !config.broker.prefix.split('.').all(is_token),
        remedy: "a prefix that a broker could read as more than a name; use ASCII letters, digits, _ and -, in tokens \
                 joined by dots",
    },
    Rule {
        key: "broker.password_file",
        of: &["broker.url"],
        when: NO_BROKER,
        broken: |config| config.broker.password_file.is_set() && !config.broker.url.is_set(),
        remedy: NEEDS_BROKER,
    },
    Rule {
        key: "broker.credentials_file",
        of: &["broker.url"],
        when: NO_BROKER,
        broken: |config| config.broker.credentials_file.is_set() && !config.broker.url.is_set(),
        remedy: NEEDS_BROKER,
    },
    Rule {
        key: "broker.ca_file",
        of: &["broker.url"],
        when: NO_BROKER,
        broken: |config| config.broker.ca_file.is_set() && !config.broker.url.is_set(),
        remedy: NEEDS_BROKER,
    },
];

const NO_BROKER: &str = "without a broker";
const NEEDS_BROKER: &str = "needs broker.url, the broker that it is for";

/// What a name is made of, as a broker takes it.
fn is_token(token: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !token.is_empty() && token.len() <= PREFIX_TOKEN_BYTES_MAX && token.bytes().all(sound)
}

/// A token of a prefix is a name that somebody typed.
const PREFIX_TOKEN_BYTES_MAX: usize = 64;

/// RFC 6750 section 2.1.
const fn may_be_sent(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
}
