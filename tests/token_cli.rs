//! `tidewire token` as those meet it who run a server: the real binary, its files, exit codes and what it prints.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// The exit code of a wrong command line: `EX_USAGE`.
const USAGE: i32 = 64;

/// A secret that no output may hold.
const SECRET: &str = "a key that nobody guesses, at all";

const SECRET_VARIABLE: &str = "TIDEWIRE_AUTH_SECRET";
const TOKEN_VARIABLE: &str = "TIDEWIRE_TOKEN";

/// Runs the binary with no environment but `variables`, and `input` on its standard input.
fn run(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidewire"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that reads nothing may have ended by now.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What the run said on both streams.
fn all(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The token that the run printed, alone.
fn token(output: &Output) -> String {
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let token = text(&output.stdout).strip_suffix('\n').unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");
    assert!(!token.contains(char::is_whitespace), "{token}");
    token.to_owned()
}

/// Asserts that the run ended with this code, printed nothing, and said all of these.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), ""), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

/// A folder for the files of a test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        shown(&path)
    }

    /// A new secret by `keygen`.
    fn keygen(&self) -> String {
        let path = shown(&self.path("keys.json"));
        let output = run(&["token", "keygen", "--out", &path, "--kid", "dev"], &[], "");
        assert_eq!(output.status.code(), Some(0), "{}", all(&output));
        path
    }
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The JSON of a run of `inspect`.
fn inspected(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", all(output)))
}

#[test]
fn keygen_makes_a_key_for_its_owner_and_never_another_in_its_place() {
    let folder = Folder::new();
    let path = shown(&folder.path("keys.json"));
    let output = run(&["token", "keygen", "--out", &path], &[], "");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert!(text(&output.stdout).contains(&format!("next: tidewire serve --set auth.keys_file={path}\n")));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read_to_string(&path).unwrap();
    let set: Value = serde_json::from_str(&written).unwrap();
    let key = &set["keys"][0];
    assert_eq!((&key["kty"], &key["alg"]), (&json!("oct"), &json!("HS256")));
    assert!(text(&output.stdout).contains(key["kid"].as_str().unwrap()));
    assert!(!all(&output).contains(key["k"].as_str().unwrap()), "the secret stays in its file");

    let again = run(&["token", "keygen", "--out", &path], &[], "");
    assert_refused(&again, 1, &[&path, "there already"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), written);
    let other = shown(&folder.path("other.json"));
    assert_eq!(run(&["token", "keygen", "--out", &other], &[], "").status.code(), Some(0));
    let other: Value = serde_json::from_str(&fs::read_to_string(other).unwrap()).unwrap();
    assert_ne!(other["keys"][0]["k"], key["k"]);
    assert_ne!(other["keys"][0]["kid"], key["kid"]);

    let nowhere = run(&["token", "keygen", "--out", "/no/such/folder/keys.json"], &[], "");
    assert_refused(&nowhere, 1, &["--out /no/such/folder/keys.json: it cannot be made"]);
    assert_refused(&run(&["token", "keygen"], &[], ""), USAGE, &["--out"]);
}

#[test]
fn what_is_minted_is_what_was_asked_for() {
    let folder = Folder::new();
    let keys = folder.keygen();
    let mut arguments = vec!["token", "mint", "--keys", &keys, "--sub", "alice@example.org", "--jti", "t1"];
    arguments.extend(["--subscribe", "robot.>", "--subscribe", "$sys.cpu", "--publish", "robot.7.cmd"]);
    arguments.extend(["--presence", "robot.*", "--admin", ">", "--expires", "15m"]);
    arguments.extend(["--deny-subscribe", "robot.*.secret", "--deny-publish", "a", "--deny-publish", "b.>"]);
    let token = token(&run(&arguments, &[], ""));
    let output = run(&["token", "inspect", "--keys", &keys], &[], &token);
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    let Value::Object(seen) = inspected(&output) else { panic!("an object") };
    assert_eq!(seen["header"], json!({"alg": "HS256", "typ": "JWT", "kid": "dev"}));
    let mut claims = seen["claims"].clone();
    let issued = claims["iat"].take().as_u64().unwrap();
    assert_eq!(claims["exp"].take().as_u64(), Some(issued + 15 * 60));
    let rights = json!({
        "subscribe": ["robot.>", "$sys.cpu"], "publish": ["robot.7.cmd"], "presence": ["robot.*"], "admin": [">"],
        "deny": {"subscribe": ["robot.*.secret"], "publish": ["a", "b.>"]},
    });
    let expected =
        json!({"sub": "alice@example.org", "iat": null, "exp": null, "jti": "t1", "tidewire": rights});
    assert_eq!(claims, expected);
    let words = text(&output.stderr);
    assert!(words.starts_with("it ends in 1"), "{words}");
    assert!(words.ends_with("lets it in as alice@example%2Eorg\n"), "{words}");
    let signature = token.rsplit('.').next().unwrap();
    assert!(!all(&output).contains(signature), "whoever sees the screen cannot use it");
}

#[test]
fn every_kind_of_key_signs_what_its_public_half_takes() {
    let folder = Folder::new();
    for (kind, algorithm) in [("ed25519", "EdDSA"), ("p256", "ES256"), ("rsa", "RS256")] {
        let read = |suffix: &str| {
            fs::read_to_string(format!("{}/tests/keys/{kind}{suffix}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let private = folder.file(&format!("{kind}.pem"), &read(".pem"), 0o600);
        let public = folder.file(&format!("{kind}.pub.pem"), &read(".pub.pem"), 0o644);
        let minted = token(&run(&["token", "mint", "--keys", &private, "--sub", "a"], &[], ""));
        let output = run(&["token", "inspect", "--keys", &public], &[(TOKEN_VARIABLE, &minted)], "");
        assert_eq!(output.status.code(), Some(0), "{}", all(&output));
        assert_eq!(inspected(&output)["header"]["alg"], algorithm);
        assert_eq!(inspected(&output)["claims"].get("tidewire"), None, "no rights were asked for");

        // The right claims under another signature.
        let (claims, _) = minted.rsplit_once('.').unwrap();
        let output = run(&["token", "inspect", "--keys", &public], &[], &format!("{claims}.AAAA"));
        assert_eq!(output.status.code(), Some(1), "{}", all(&output));
        assert!(text(&output.stderr).contains("its signature is wrong"), "{}", all(&output));

        let named = token(&run(&["token", "mint", "--keys", &private, "--kid", "k", "--sub", "a"], &[], ""));
        let output = run(&["token", "inspect", "--keys", &public], &[], &named);
        assert_eq!(
            output.status.code(),
            Some(0),
            "a key of PEM is called what its issuer calls it: {}",
            all(&output)
        );

        let output = run(&["token", "mint", "--keys", &public, "--sub", "a"], &[], "");
        assert_refused(&output, 1, &[&public, "not a private key"]);
        assert_refused(
            &run(&["token", "inspect", "--keys", &private], &[], &minted),
            1,
            &["the server needs the public one alone"],
        );
    }
}

#[test]
fn a_key_of_a_set_says_from_whom_and_for_whom() {
    let folder = Folder::new();
    let k = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tr";
    let set = json!({"keys": [
        {"kty": "oct", "kid": "one", "alg": "HS256", "k": k},
        {"kty": "oct", "kid": "two", "alg": "HS512", "k": k, "iss": "issuer", "aud": "robots"},
    ]});
    let keys = folder.file("keys.json", &set.to_string(), 0o600);
    let mint = |more: &[&str]| {
        token(&run(&[&["token", "mint", "--keys", &keys, "--sub", "a"], more].concat(), &[], ""))
    };
    let rows: [(&[&str], Value, Value, &str); 4] = [
        (&[], json!("one"), Value::Null, "taken"),
        (&["--kid", "two"], json!("two"), json!(["issuer", "robots"]), "taken"),
        (&["--kid", "two", "--iss", "x"], json!("two"), json!(["x", "robots"]), "its iss is not its key's"),
        (&["--kid", "two", "--aud", "x"], json!("two"), json!(["issuer", "x"]), "its aud is not this server"),
    ];
    for (more, kid, from_and_for, verdict) in rows {
        let output = run(&["token", "inspect", "--keys", &keys], &[], &mint(more));
        let seen = inspected(&output);
        assert_eq!(seen["header"]["kid"], kid);
        let claims = &seen["claims"];
        let found = claims.get("iss").map_or(Value::Null, |iss| json!([iss, claims["aud"]]));
        assert_eq!(found, from_and_for);
        assert!(text(&output.stderr).contains(verdict), "{}", all(&output));
        assert_eq!(output.status.code(), Some(i32::from(verdict != "taken")));
    }
    let output = run(&["token", "mint", "--keys", &keys, "--sub", "a", "--kid", "three"], &[], "");
    assert_refused(&output, 1, &[&keys, "no key of the set"]);
    assert!(!all(&output).contains(k));
}

#[test]
fn the_secret_may_come_from_the_environment() {
    let variables = [(SECRET_VARIABLE, SECRET)];
    let minted = token(&run(&["token", "mint", "--sub", "a", "--expires", "1d"], &variables, ""));
    let output = run(&["token", "inspect"], &variables, &format!("{minted}\n"));
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    assert!(text(&output.stderr).ends_with("lets it in as a\n"), "{}", all(&output));
    let output = run(&["token", "inspect"], &[(SECRET_VARIABLE, &SECRET.to_uppercase())], &minted);
    assert_eq!(output.status.code(), Some(1), "{}", all(&output));

    let short = "too short, and never shown";
    let output = run(&["token", "mint", "--sub", "a"], &[(SECRET_VARIABLE, short)], "");
    assert_refused(&output, 1, &[SECRET_VARIABLE, "at least 32 bytes"]);
    assert!(!all(&output).contains(short));
    let output = run(&["token", "mint", "--sub", "a"], &[], "");
    assert_refused(&output, 1, &["--keys FILE", SECRET_VARIABLE]);
}

#[test]
fn a_file_that_others_can_read_is_refused_where_there_is_a_secret_in_it() {
    let folder = Folder::new();
    let keys = folder.keygen();
    let secret = fs::read_to_string(&keys).unwrap();
    let minted = token(&run(&["token", "mint", "--keys", &keys, "--sub", "a"], &[], ""));
    let pem = include_str!("keys/ed25519.pem");
    for mode in [0o640, 0o604, 0o660] {
        let words = ["others can read the secret in it", &format!("(mode {mode:o})"), "chmod 600"];
        let open = folder.file("open.json", &secret, mode);
        assert_refused(&run(&["token", "mint", "--keys", &open, "--sub", "a"], &[], ""), 1, &words);
        assert_refused(&run(&["token", "inspect", "--keys", &open], &[], &minted), 1, &words);
        let open = folder.file("open.pem", pem, mode);
        assert_refused(&run(&["token", "mint", "--keys", &open, "--sub", "a"], &[], ""), 1, &words);
    }
    let gone = shown(&folder.path("gone.json"));
    assert_refused(
        &run(&["token", "mint", "--keys", &gone, "--sub", "a"], &[], ""),
        1,
        &[&gone, "cannot be read"],
    );
}

#[test]
fn wrong_requests_are_refused_and_name_what_is_wrong() {
    let folder = Folder::new();
    let keys = folder.keygen();
    let rows: &[(&[&str], &[&str])] = &[
        (&["--subscribe", "robot..imu"], &["'robot..imu'", "--subscribe", "empty token at byte 6"]),
        (&["--publish", "a.>.b"], &["'a.>.b'", "--publish"]),
        (&["--presence", ""], &["--presence"]),
        (&["--admin", "a b"], &["'a b'", "--admin"]),
        (&["--deny-subscribe", "a*"], &["'a*'", "--deny-subscribe"]),
        (&["--deny-publish", "."], &["'.'", "--deny-publish"]),
        (&["--expires", "1w"], &["'1w'", "--expires", "90s, 15m, 1h or 1d"]),
        (&["--expires", "367d"], &["'367d'", "from 1s to 366d"]),
        (&["--jti", ""], &["--jti", "1 to 128 bytes"]),
        (&["--secret", "x"], &["--secret"]),
        (&["a.b.c"], &["a.b.c"]),
    ];
    for (more, words) in rows {
        let arguments = [&["token", "mint", "--keys", &keys, "--sub", "a"], *more].concat();
        assert_refused(&run(&arguments, &[], ""), USAGE, words);
    }
    assert_refused(&run(&["token", "mint", "--keys", &keys], &[], ""), USAGE, &["--sub"]);
    assert_refused(&run(&["token", "mint", "--kid", "k", "--sub", "a"], &[], ""), USAGE, &["--keys"]);
    assert_refused(&run(&["token", "inspect", "a.b.c"], &[], ""), USAGE, &[]);
    assert_refused(&run(&["token"], &[], ""), USAGE, &["keygen", "mint", "inspect"]);

    let many: Vec<String> = (0..129).flat_map(|n| ["--publish".to_owned(), format!("a.{n}")]).collect();
    let base = ["token", "mint", "--keys", &keys, "--sub", "a"];
    let arguments: Vec<&str> = base.into_iter().chain(many.iter().map(String::as_str)).collect();
    assert_refused(&run(&arguments, &[], ""), 1, &["129 patterns; at most 128"]);
    let long = vec!["x".repeat(400); 20];
    let arguments: Vec<&str> =
        base.into_iter().chain(long.iter().flat_map(|name| ["--publish", name])).collect();
    assert_refused(&run(&arguments, &[], ""), 1, &["at most 8192"]);

    for (garbage, words) in [
        ("garbage", "neither a JWK set (a JSON object with keys) nor a private key as PEM"),
        ("{\"keys\": []}", "no key of the set"),
        (
            r#"{"keys": [{"kty": "oct", "alg": "HS256", "k": "c2hvcnQtc2hvcnQ"}]}"#,
            "a secret shorter than its hash",
        ),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key of"),
    ] {
        let path = folder.file("wrong", garbage, 0o600);
        let output = run(&["token", "mint", "--keys", &path, "--sub", "a"], &[], "");
        assert_refused(&output, 1, &[&path, words]);
        assert!(!all(&output).contains("c2hvcnQtc2hvcnQ"));
    }
}

#[test]
fn a_life_longer_than_servers_take_is_warned_of() {
    let variables = [(SECRET_VARIABLE, SECRET)];
    let output = run(&["token", "mint", "--sub", "a", "--expires", "2d"], &variables, "");
    assert_eq!(output.status.code(), Some(0));
    let words = "1 d 0 h at the most, unless auth.token_lifetime_max_ms is 172800000 or more";
    assert!(text(&output.stderr).contains(words), "{}", all(&output));
    let output = run(&["token", "inspect"], &variables, text(&output.stdout));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("auth.token_lifetime_max"), "{}", all(&output));
}

#[test]
fn a_token_is_looked_into_without_believing_it() {
    let variables = [(SECRET_VARIABLE, SECRET)];
    let minted = token(&run(&["token", "mint", "--sub", "a", "--expires", "1s"], &variables, ""));
    let without_keys = run(&["token", "inspect"], &[(TOKEN_VARIABLE, &minted)], "");
    assert_eq!(without_keys.status.code(), Some(0));
    assert!(text(&without_keys.stderr).contains("not checked"), "{}", all(&without_keys));

    // {"alg":"\u001b[31m"} and {"sub":"\u202e"}, with keys that it is not from.
    let wild = "eyJhbGciOiJcdTAwMWJbMzFtIn0.eyJzdWIiOiJcdTIwMmUifQ.AAAA";
    let output = run(&["token", "inspect"], &variables, wild);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(r#""alg": "\u001b[31m""#), "{}", all(&output));
    assert!(text(&output.stdout).contains(r#""sub": "\u202e""#), "{}", all(&output));
    assert!(text(&output.stderr).contains("does not say when it ends"), "{}", all(&output));
    assert!(all(&output).chars().all(|c| c == '\n' || !c.is_control()));

    let long = "A".repeat(100_000);
    for (input, words) in [
        ("", "there is no token"),
        ("garbage", "no"),
        ("a.b", "base64url"),
        ("e30.e30", "three parts"),
        ("e30.e30.x.y", "three parts"),
        (&long, "longer than 8192 bytes"),
    ] {
        let output = run(&["token", "inspect"], &[], input);
        assert_refused(&output, 1, &[words]);
        assert!(input.is_empty() || !all(&output).contains(input), "what may be a token is not repeated");
    }
}

/// Whatever goes wrong, and however much is logged.
#[test]
fn nothing_secret_is_in_any_output() {
    let folder = Folder::new();
    let keys = folder.keygen();
    let set: Value = serde_json::from_str(&fs::read_to_string(&keys).unwrap()).unwrap();
    let k = set["keys"][0]["k"].as_str().unwrap();
    let minted = token(&run(&["token", "mint", "--keys", &keys, "--sub", "a"], &[], ""));
    let signature = minted.rsplit('.').next().unwrap();
    let pem = include_str!("keys/p256.pem");
    let broken_pem = folder.file("broken.pem", &pem.replace("PRIVATE", "PRIVAT"), 0o600);
    let broken_set =
        folder.file("broken.json", &fs::read_to_string(&keys).unwrap().replace("oct", "OCT"), 0o600);
    let serve = ["--listen", "127.0.0.1:0", "--log-filter", "trace", "--set"];
    let broken = format!("auth.keys_file={broken_set}");
    let runs: [&[&str]; 8] = [
        &["token", "mint", "--keys", &broken_pem, "--sub", "a"],
        &["token", "mint", "--keys", &broken_set, "--sub", "a"],
        &["token", "inspect", "--keys", &broken_set],
        &["token", "inspect", "--keys", &keys],
        &["token", "inspect", "--keys", &broken_pem],
        &["sub", "a", "--token-file", &keys],
        &["pub", "a", "--token-file", &broken_pem],
        &["serve", serve[0], serve[1], serve[2], serve[3], serve[4], &broken],
    ];
    for arguments in runs {
        let variables = [("RUST_LOG", "trace"), (TOKEN_VARIABLE, &*minted)];
        let output = run(arguments, &variables, "");
        let said = all(&output);
        assert!(!said.is_empty(), "{arguments:?}");
        for secret in [k, signature].into_iter().chain(pem.lines().filter(|line| !line.starts_with('-'))) {
            assert!(!said.contains(secret), "{arguments:?}: {said}");
        }
    }
}
