//! Credentials as NATS knows them: an operator, an account that it vouches for, and a user of that account, each by a signed token
//! (<https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt>). Made anew for each test.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// What a server is told, and what its user has.
pub(crate) struct Credentials {
    /// For the server's configuration.
    pub(crate) server: String,
    /// The file of the user.
    pub(crate) user: String,
}

impl Credentials {
    pub(crate) fn new() -> Self {
        let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
        // JetStream wants an account for the server itself.
        let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
        let any = json!(-1);
        let limits = json!({
            "subs": any, "data": any, "payload": any, "imports": any, "exports": any, "wildcards": true,
            "conn": any, "leaf": any, "mem_storage": 64 << 20, "disk_storage": 1 << 30, "streams": any,
            "consumer": any,
        });
        let of_operator = token(&operator, &operator, &json!({"type": "operator", "version": 2}));
        let says = json!({"type": "account", "version": 2, "limits": limits});
        let account_of =
            |of: &KeyPair, says: &Value| format!("{}: {}", of.public_key(), token(&operator, of, says));
        let accounts =
            [account_of(&account, &says), account_of(&system, &json!({"type": "account", "version": 2}))];
        let of_user = token(
            &account,
            &user,
            &json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": any, "data": any, "payload": any}),
        );
        let block =
            |title: &str, text: &str| format!("-----BEGIN {title}-----\n{text}\n------END {title}------\n");
        Self {
            server: format!(
                "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {} }}\n",
                system.public_key(),
                accounts.join(", "),
            ),
            user: block("NATS USER JWT", &of_user)
                + &block("USER NKEY SEED", &user.seed().expect("a new pair has one")),
        }
    }
}

/// What `issuer` says of `subject`.
fn token(issuer: &KeyPair, subject: &KeyPair, says: &Value) -> String {
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({
        "jti": subject.public_key(), "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": says,
    });
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = issuer.sign(signed.as_bytes()).expect("a new pair signs");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
