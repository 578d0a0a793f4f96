//! The rules on which settings go together, as data. Floors between numbers are in `relation.rs`.

use super::Config;

/// A setting that means nothing without others, or beside them.
#[derive(Debug)]
pub(super) struct Rule {
    /// The setting. Where the rule is broken, it does not have its default.
    pub(super) key: &'static str,
    /// The others.
    pub(super) of: &'static [&'static str],
    /// Whether the rule is kept.
    pub(super) holds: fn(&Config) -> bool,
    /// What is wrong where it is not, and the remedy.
    pub(super) reason: &'static str,
}

/// Every rule.
pub(super) static RULES: &[Rule] = &[
    Rule {
        key: "tls.certificate_file",
        of: &["tls.key_file"],
        holds: |config| !config.tls.certificate_file.is_set() || config.tls.key_file.is_set(),
        reason: "needs tls.key_file, the private key that belongs to the certificate",
    },
    Rule {
        key: "tls.key_file",
        of: &["tls.certificate_file"],
        holds: |config| !config.tls.key_file.is_set() || config.tls.certificate_file.is_set(),
        reason: "needs tls.certificate_file, the certificate that belongs to the key",
    },
    Rule {
        key: "tls.self_signed_file",
        of: &["tls.certificate_file", "tls.key_file"],
        holds: |config| {
            let own = config.tls.certificate_file.is_set() || config.tls.key_file.is_set();
            !config.tls.self_signed_file.is_set() || !own
        },
        reason: "a trial certificate stands in for tls.certificate_file and tls.key_file; leave out one or the other",
    },
    Rule {
        key: "tls.client_ca_file",
        of: &["tls.certificate_file", "tls.self_signed_file"],
        holds: |config| !config.tls.client_ca_file.is_set() || config.tls.is_on(),
        reason: "needs TLS; set tls.certificate_file and tls.key_file, too",
    },
    Rule {
        key: "tls.client_certificate_required",
        of: &["tls.client_ca_file"],
        holds: |config| !config.tls.client_certificate_required || config.tls.client_ca_file.is_set(),
        reason: "needs tls.client_ca_file, which names the CAs whose clients are let in",
    },
];
