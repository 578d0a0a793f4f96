//! `tidewire token`: makes keys and tokens, and looks into tokens. Secrets come from files and the environment and never from a
//! flag, which every user of the machine can read; nothing is printed of them, and of a token only the one that was made.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value, json};

use super::terminal::{Escaped, push_json_pretty};
use crate::auth::grants::{Claim, Denied, Grants};
use crate::auth::keyring::{Defaults, KeyError, Keyring};
use crate::auth::signer::{self, Signer};
use crate::auth::token::TOKEN_BYTES_MAX;
use crate::auth::{ID_BYTES_MAX, channel_token};
use crate::clock::Clock;
use crate::config::load::TOKEN_VARIABLE;
use crate::config::{Config, file};
use crate::server::keys;
use crate::worker::gate::Gate;

/// The variable with the server's `auth.secret`.
const SECRET_VARIABLE: &str = "TIDEWIRE_AUTH_SECRET";

/// The longest life of a token, in seconds: the most that `auth.token_lifetime_max_ms` can be.
const LIFETIME_S_MAX: u64 = 366 * 24 * 3_600;

/// Make keys and tokens for a server that lets only some in, and look into tokens.
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    Keygen(KeygenArgs),
    Mint(Box<MintArgs>),
    Inspect(InspectArgs),
}

/// Write a new secret key for HS256 into a file of its own, as a JWK set.
///
/// Only the file's owner can read it. A file that is there already is left as it is.
#[derive(Args, Debug)]
struct KeygenArgs {
    /// The file to make
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name of the key, which its tokens carry [default: a random one]
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    kid: Option<String>,
}

/// Print a new token.
///
/// Without --keys it is signed with the secret in the environment variable TIDEWIRE_AUTH_SECRET, for HS256. Patterns are those
/// of `tidewire sub`: `*` stands for one token of a name, `>` at the end for the rest. Quote them.
#[derive(Args, Debug)]
struct MintArgs {
    /// What to sign with: a JWK set with a secret, or a private key as PEM (PKCS #8)
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Which key of the set signs [default: its first secret]; with PEM, the name that the token carries
    #[arg(long, value_name = "ID", value_parser = parse_id, requires = "keys")]
    kid: Option<String>,
    /// Whose token it is
    #[arg(long, value_name = "NAME", value_parser = parse_subject)]
    sub: String,
    /// Channels that may be received
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    subscribe: Vec<String>,
    /// Channels that may be published to
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    publish: Vec<String>,
    /// Channels whose users may be seen, in a version to come
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    presence: Vec<String>,
    /// Channels that /api/channels may show; '>' for all pages about the server
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    admin: Vec<String>,
    /// Channels that may not be received, whatever else is said
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    deny_subscribe: Vec<String>,
    /// Channels that may not be published to, whatever else is said
    #[arg(long, value_name = "PATTERN", value_parser = super::sub::parse_pattern)]
    deny_publish: Vec<String>,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_lifetime)]
    expires: u64,
    /// Name of the token, to revoke it by
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    jti: Option<String>,
    /// Who issues it [default: the key's iss, if it has one]
    #[arg(long, value_name = "NAME")]
    iss: Option<String>,
    /// Whom it is for [default: the key's aud, if it has one]
    #[arg(long, value_name = "NAME")]
    aud: Option<String>,
}

/// Show what a token says, without its signature.
///
/// The token comes on standard input, or in the environment variable TIDEWIRE_TOKEN. What it says is printed as JSON; when it
/// ends, and whether it is taken, goes to standard error. The exit code is 1 if it is not.
#[derive(Args, Debug)]
struct InspectArgs {
    /// Check it as a server with these keys and otherwise its defaults would: a JWK set, or public keys as PEM [default: the
    /// secret in TIDEWIRE_AUTH_SECRET, if there is one]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

/// Runs the command.
#[must_use]
pub fn run(args: &TokenArgs) -> ExitCode {
    let outcome = match &args.command {
        TokenCommand::Keygen(args) => keygen(args).map(|text| super::print(&text)),
        TokenCommand::Mint(args) => mint(args).map(|token| super::print(&format!("{token}\n"))),
        TokenCommand::Inspect(args) => inspect(args),
    };
    outcome.unwrap_or_else(|words| {
        tell(&format!("error: {words}"));
        ExitCode::FAILURE
    })
}

/// A line on standard error.
fn tell(line: &str) {
    // Not `eprintln`, which panics where standard error is closed.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn parse_id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=ID_BYTES_MAX => Ok(text.to_owned()),
        _ => Err(format!("a name has 1 to {ID_BYTES_MAX} bytes")),
    }
}

/// Also as the last part of `$user.SUB`, with the server's default for the longest name.
fn parse_subject(text: &str) -> Result<String, String> {
    let most = Config::default().channel.channel_name_bytes_max - "$user.".len();
    let subject = parse_id(text)?;
    match channel_token(&subject).len() {
        bytes if bytes > most => Err(format!(
            "as a part of a channel name it has {bytes} bytes, at most {most}: each byte that such a name cannot have \
             takes three"
        )),
        _ => Ok(subject),
    }
}

/// Seconds.
fn parse_lifetime(text: &str) -> Result<u64, String> {
    let parsed = text.char_indices().next_back().and_then(|(at, unit)| {
        let unit_s = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 24 * 3_600,
            _ => return None,
        };
        let digits = &text[..at];
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?;
        number?.checked_mul(unit_s)
    });
    match parsed {
        Some(seconds @ 1..=LIFETIME_S_MAX) => Ok(seconds),
        Some(_) => Err("give a time from 1s to 366d".to_owned()),
        None => Err("give a whole number with its unit s, m, h or d, such as 90s, 15m, 1h or 1d".to_owned()),
    }
}

fn now_s() -> u64 {
    Clock::new().now().wall_ns / 1_000_000_000
}

fn keygen(args: &KeygenArgs) -> Result<String, String> {
    let (mut secret, mut id) = ([0; 32], [0; 4]);
    let random = SystemRandom::new();
    random
        .fill(&mut secret)
        .and_then(|()| random.fill(&mut id))
        .map_err(|_| "the operating system gives no random bytes".to_owned())?;
    let id = args.kid.clone().unwrap_or_else(|| format!("key-{:08x}", u32::from_be_bytes(id)));
    let name = shown(&args.out);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("--out {name}: it is there already, and a key that is lost locks everybody out; name another file")
            }
            _ => format!("--out {name}: it cannot be made: {error}"),
        },
    )?;
    let written = file.write_all(signer::new_jwks(&id, &secret).as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key is of no use to anybody.
        let _ = fs::remove_file(&args.out);
        return Err(format!("--out {name}: it cannot be written: {error}"));
    }
    let id = Escaped(&id);
    Ok(format!(
        "{name}: a new secret for HS256, its kid is {id}; only you can read it\n\
         next: tidewire serve --set auth.keys_file={name}\n\
         then: tidewire token mint --keys {name} --sub alice --subscribe '>' --expires 1h\n"
    ))
}

fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}

fn mint(args: &MintArgs) -> Result<String, String> {
    let signer = signer(args)?;
    let claim = Claim {
        subscribe: args.subscribe.clone(),
        publish: args.publish.clone(),
        presence: args.presence.clone(),
        admin: args.admin.clone(),
        deny: Denied {
            subscribe: args.deny_subscribe.clone(),
            publish: args.deny_publish.clone(),
            ..Denied::default()
        },
    };
    // Each is a pattern, as the flags were checked; not too long and not too many is the server's to say.
    Grants::try_from(&claim).map_err(|error| format!("the rights: {error}"))?;
    let now_s = now_s();
    let mut claims = Map::new();
    claims.insert("sub".into(), json!(args.sub));
    claims.insert("iat".into(), json!(now_s));
    claims.insert("exp".into(), json!(now_s.saturating_add(args.expires)));
    for (name, value) in [
        ("jti", args.jti.as_deref()),
        ("iss", args.iss.as_deref().or_else(|| signer.issuer())),
        ("aud", args.aud.as_deref().or_else(|| signer.audience())),
    ] {
        if let Some(value) = value {
            claims.insert(name.into(), json!(value));
        }
    }
    if claim != Claim::default() {
        claims.insert("tidewire".into(), json!(claim));
    }
    let token = signer.sign(&Value::Object(claims)).map_err(|error| error.to_string())?;
    if token.len() > TOKEN_BYTES_MAX {
        let bytes = token.len();
        return Err(format!(
            "the token has {bytes} bytes, at most {TOKEN_BYTES_MAX} are taken; give fewer patterns"
        ));
    }
    let usual_s = Config::default().auth.token_lifetime_max.as_secs();
    if args.expires > usual_s {
        let ms = u128::from(args.expires) * 1_000;
        tell(&format!(
            "warning: servers take a token for {} at the most, unless auth.token_lifetime_max_ms is {ms} or more",
            Words(usual_s)
        ));
    }
    Ok(token)
}

/// What the token is signed with.
fn signer(args: &MintArgs) -> Result<Signer, String> {
    let Some(path) = &args.keys else {
        let secret = secret_variable()?;
        let secret = secret.ok_or_else(|| {
            format!("there is no key to sign with: give --keys FILE, or set {SECRET_VARIABLE}")
        })?;
        return Ok(Signer::from_secret(secret.as_bytes()));
    };
    let wrong = |reason: String| format!("--keys {}: {reason}", shown(path));
    let (text, mode) = file::read(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
    let signer = Signer::parse(&text, args.kid.as_deref()).map_err(|error| {
        wrong(match error {
            KeyError::Form => {
                "neither a JWK set (a JSON object with keys) nor a private key as PEM".to_owned()
            }
            error => error.to_string(),
        })
    })?;
    if let Some(reason) = file::open_to_others(mode) {
        return Err(wrong(reason));
    }
    if text.trim_start().starts_with('{') {
        // No server would start with it otherwise.
        Keyring::parse(&text, Defaults::default()).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(signer)
}

/// The server's secret, if it is in the environment.
fn secret_variable() -> Result<Option<String>, String> {
    let Some(secret) = std::env::var_os(SECRET_VARIABLE) else { return Ok(None) };
    let wrong = |reason: &str| format!("{SECRET_VARIABLE}: {reason}");
    let secret = secret.into_string().map_err(|_| wrong("it is not UTF-8"))?;
    Keyring::default()
        .add_secret(&secret, Defaults::default())
        .map_err(|_| wrong("give a text of at least 32 bytes, as HS256 needs"))?;
    Ok(Some(secret))
}

fn inspect(args: &InspectArgs) -> Result<ExitCode, String> {
    let keys = keyring(args.keys.as_deref())?;
    let input = io::stdin();
    let from_variable = std::env::var_os(TOKEN_VARIABLE);
    // Whoever has typed the command at a terminal has nothing on standard input.
    let token = match from_variable {
        Some(token) if input.is_terminal() => inspected(&[], Some(token)),
        variable => inspected(&read_token(input.lock())?, variable),
    }?;
    let [header, claims] = signer::parts(&token).map_err(str::to_owned)?;
    let mut lines = String::new();
    push_json_pretty(&mut lines, &json!({ "header": header, "claims": claims }))
        .map_err(|error| error.to_string())?;
    let code = super::print(&lines);
    let clock = Clock::new().now();
    tell(&end_of(&claims, clock.wall_ns / 1_000_000_000));
    let Some(keys) = keys else {
        tell("not checked: with --keys FILE it says whether a server with these keys takes it");
        return Ok(code);
    };
    // What a server asks; nobody is revoked here.
    let gate = Gate::new(Arc::new(Config::default()));
    gate.replace_keys(keys);
    match gate.admit(&token, clock) {
        Ok(identity) => {
            tell(&format!("taken: a server with these keys lets it in as {}", identity.subject));
            Ok(code)
        }
        Err(reason) => {
            tell(&format!(
                "refused: a server with these keys does not take it: {}",
                Escaped(&reason.to_string())
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The keys to check with, if there are any.
fn keyring(path: Option<&Path>) -> Result<Option<Keyring>, String> {
    if let Some(path) = path {
        let keys = keys::read(path, Defaults::default());
        return keys.map(Some).map_err(|reason| format!("--keys {}: {reason}", shown(path)));
    }
    let Some(secret) = secret_variable()? else { return Ok(None) };
    let mut keys = Keyring::default();
    keys.add_secret(&secret, Defaults::default()).map_err(|error| error.to_string())?;
    Ok(Some(keys))
}

/// Reads no more than tells that it is too long.
fn read_token(input: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    input
        .take(2 * TOKEN_BYTES_MAX as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("standard input cannot be read: {error}"))?;
    Ok(bytes)
}

/// The token that was on standard input, or else the one of the variable.
fn inspected(input: &[u8], variable: Option<OsString>) -> Result<String, String> {
    let input = input.trim_ascii();
    let token = if input.is_empty() {
        let variable = variable.filter(|token| !token.is_empty());
        variable.map_or_else(Vec::new, OsString::into_encoded_bytes)
    } else {
        input.to_vec()
    };
    if token.is_empty() {
        return Err(format!("there is no token: give it on standard input, or set {TOKEN_VARIABLE}"));
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(format!("that is no token: it is longer than {TOKEN_BYTES_MAX} bytes"));
    }
    String::from_utf8(token).map_err(|_| "that is no token: it is not UTF-8".to_owned())
}

/// When a token ends, in words.
fn end_of(claims: &Value, now_s: u64) -> String {
    /// The last second that has a date of four digits for its year.
    const DATE_S_MAX: u64 = 253_402_300_799;
    let Some(end_s) = claims["exp"].as_u64() else {
        return "it does not say when it ends (exp, in whole seconds), so no server takes it".to_owned();
    };
    let date = match end_s {
        0..=DATE_S_MAX => httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(end_s)),
        _ => format!("{end_s} s of Unix time"),
    };
    if end_s > now_s {
        format!("it ends in {}: {date}", Words(end_s - now_s))
    } else {
        format!("it has ended {} ago: {date}", Words(now_s - end_s))
    }
}

/// Seconds as a person says them: the two largest units.
struct Words(u64);

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0;
        let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {} s", seconds % 60),
            (0, ..) => write!(f, "{hours} h {} min", minutes % 60),
            _ => write!(f, "{days} d {} h", hours % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_have_a_unit_and_bounds() {
        let rows = [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3_600)),
            ("1d", Some(86_400)),
            ("366d", Some(LIFETIME_S_MAX)),
            ("367d", None),
            ("0s", None),
            ("", None),
            ("h", None),
            ("1", None),
            ("+1h", None),
            ("-1h", None),
            ("1.5h", None),
            ("1 h", None),
            ("1w", None),
            ("1\u{e9}", None),
            ("18446744073709551616s", None),
            ("18446744073709551615d", None),
        ];
        for (text, seconds) in rows {
            assert_eq!(parse_lifetime(text).ok(), seconds, "{text}");
        }
    }

    #[test]
    fn subjects_fit_a_channel_name() {
        for (text, fits) in [("alice@example.org", true), ("", false), (&"a".repeat(128), true)] {
            assert_eq!(parse_subject(text).is_ok(), fits, "{text}");
        }
        for (bytes, fits) in [(83, true), (84, false)] {
            assert_eq!(parse_subject(&".".repeat(bytes)).is_ok(), fits, "{bytes}");
        }
        assert!(parse_subject(&"a".repeat(129)).is_err());
    }

    #[test]
    fn the_end_is_told_in_words() {
        let rows = [
            (json!({"exp": 1_059}), "it ends in 59 s: Thu, 01 Jan 1970 00:17:39 GMT"),
            (json!({"exp": 1_120}), "it ends in 2 min 0 s: Thu, 01 Jan 1970 00:18:40 GMT"),
            (json!({"exp": 8_260}), "it ends in 2 h 1 min: Thu, 01 Jan 1970 02:17:40 GMT"),
            (json!({"exp": 1_000 + 90_000}), "it ends in 1 d 1 h: Fri, 02 Jan 1970 01:16:40 GMT"),
            (json!({"exp": 1_000}), "it has ended 0 s ago: Thu, 01 Jan 1970 00:16:40 GMT"),
            (
                json!({"exp": u64::MAX}),
                "it ends in 213503982334601 d 6 h: 18446744073709551615 s of Unix time",
            ),
        ];
        for (claims, words) in rows {
            assert_eq!(end_of(&claims, 1_000), words);
        }
        for claims in [json!({}), json!({"exp": "1059"}), json!({"exp": 1.5}), json!([1])] {
            assert!(end_of(&claims, 1_000).contains("no server takes it"), "{claims}");
        }
    }

    #[test]
    fn what_is_on_the_input_goes_before_the_variable() {
        let variable = || Some(OsString::from("b"));
        assert_eq!(inspected(b" a\n", variable()).as_deref(), Ok("a"));
        assert_eq!(inspected(b" \n", variable()).as_deref(), Ok("b"));
        for (input, variable) in
            [(&b""[..], None), (b"\n", Some(OsString::new())), (&[0xFF], None), (&[b'a'; 8_193], None)]
        {
            assert!(inspected(input, variable).is_err());
        }
        let endless = read_token(io::repeat(b'a')).unwrap();
        assert!(inspected(&endless, None).unwrap_err().contains("longer"));
    }
}
