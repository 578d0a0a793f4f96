//! The token that `sub` and `pub` show: where it comes from, whether another one is there by now, and what to do where it is not
//! taken. Never puts it into a message.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::terminal::Escaped;
use crate::auth::offered;
use crate::auth::token::TOKEN_BYTES_MAX;
use crate::client::{Client, Closed, ConnectError, SendError};
use crate::close::{CloseReason, Retry};
use crate::config::load::TOKEN_VARIABLE;
use crate::config::{Secret, file};

/// `id` of every `auth`: no other request of the commands has it.
pub(super) const AUTH_ID: u64 = 0;

/// How often the file is looked at while a token is about to end. Slower than a server checks tokens: two a second.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What helps where there is no token.
const GIVE_ONE: &str = "set TIDEWIRE_TOKEN, or give --token-file FILE";

#[derive(Debug)]
enum Source {
    Nowhere,
    Variable(Secret),
    File(PathBuf),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Bearer {
    source: Source,
    /// What the server was shown last.
    shown: Option<Secret>,
    /// When to look for another one; `None` while there is no need for it.
    look_at: Option<Instant>,
    /// What was wrong with the file when it was looked at last.
    wrong: Option<String>,
}

impl Bearer {
    /// The token of the file, or else that of the variable, if there is any.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn new(path: Option<&Path>, variable: Option<OsString>) -> Result<Self, String> {
        let source = match (path, variable) {
            (Some(path), _) => {
                // Whoever has typed the name is still there.
                read(path)?;
                Source::File(path.to_owned())
            }
            (None, Some(token)) => {
                let token = token.into_encoded_bytes();
                Source::Variable(sound(&token).map_err(|reason| format!("{TOKEN_VARIABLE}: {reason}"))?)
            }
            (None, None) => Source::Nowhere,
        };
        Ok(Self { source, shown: None, look_at: None, wrong: None })
    }

    /// What to show a server now: of a file, what is in it now.
    ///
    /// # Errors
    /// The file cannot be used any more.
    pub(super) fn show(&mut self) -> Result<Option<&Secret>, String> {
        self.settled();
        self.shown = match &self.source {
            Source::Nowhere => None,
            Source::Variable(token) => Some(token.clone()),
            Source::File(path) => Some(read(path)?),
        };
        Ok(self.shown.as_ref())
    }

    /// A token that the server wants and has not seen in the handshake: something on the way has taken it out.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn demanded(&self) -> Result<Secret, String> {
        self.shown.clone().ok_or_else(|| format!("this server wants a token; {GIVE_ONE}"))
    }

    /// The token ends soon: [`Bearer::look`] begins. Whether there is anything to look at.
    pub(super) fn expiring(&mut self) -> bool {
        let is_file = matches!(self.source, Source::File(_));
        self.look_at = is_file.then(Instant::now);
        is_file
    }

    /// No other token is needed for now.
    pub(super) fn settled(&mut self) {
        self.look_at = None;
        self.wrong = None;
    }

    /// Waits until there is another token than the one shown, which counts as shown then, or until something else is wrong with
    /// its file than before. Forever, unless the token ends soon. Cancel-safe.
    pub(super) async fn look(&mut self) -> Result<Secret, String> {
        loop {
            match (self.look_at, &self.source) {
                (Some(at), Source::File(path)) => {
                    sleep_until(at).await;
                    self.look_at = Some(Instant::now() + LOOK_INTERVAL);
                    match read(path) {
                        Ok(token) if self.shown.as_ref() != Some(&token) => {
                            self.shown = Some(token.clone());
                            return Ok(token);
                        }
                        Ok(_) => self.wrong = None,
                        Err(reason) if self.wrong.as_ref() != Some(&reason) => {
                            self.wrong = Some(reason.clone());
                            return Err(reason);
                        }
                        Err(_) => {}
                    }
                }
                _ => std::future::pending().await,
            }
        }
    }

    /// Why a connection ended, and whether to make another.
    pub(super) fn lost(&self, closed: &Closed) -> (String, Retry) {
        let advice = match closed.code {
            code if code == CloseReason::Unauthenticated.code() => "another token is needed",
            code if code == CloseReason::Forbidden.code() => "the token was revoked",
            _ => return (closed.to_string(), closed.retry),
        };
        self.denied(closed.to_string(), advice)
    }

    /// Why there is no connection, and whether to try again.
    pub(super) fn failed(&self, error: &ConnectError) -> (String, Retry) {
        let advice = match error {
            ConnectError::Closed(closed) => return self.lost(closed),
            ConnectError::Refused { status: 401, .. } if self.shown.is_none() => GIVE_ONE,
            ConnectError::Refused { status: 401, .. } => "`tidewire token inspect` shows what is in it",
            ConnectError::Refused { status: 403, .. } => "",
            _ => return (error.to_string(), error.retry()),
        };
        self.denied(error.to_string(), advice)
    }

    /// The same token is not taken the next time either; but another may be there by now, which gets one attempt.
    fn denied(&self, why: String, advice: &str) -> (String, Retry) {
        let replaced = match &self.source {
            Source::File(path) => read(path).is_ok_and(|token| self.shown.as_ref() != Some(&token)),
            Source::Nowhere | Source::Variable(_) => false,
        };
        match (replaced, advice) {
            (true, _) => (format!("{why}; the token file has another one by now"), Retry::Backoff),
            (false, "") => (why, Retry::Never),
            (false, advice) => (format!("{why}; {advice}"), Retry::Never),
        }
    }
}

/// Shows a token on a connection that is there.
pub(super) async fn send(client: &mut Client, token: &Secret) -> Result<(), SendError> {
    #[derive(Serialize)]
    struct Auth<'a> {
        r#type: &'static str,
        id: u64,
        token: &'a str,
    }
    client.send_control(&Auth { r#type: "auth", id: AUTH_ID, token: token.expose() }).await
}

fn read(path: &Path) -> Result<Secret, String> {
    let wrong = |reason: &str| format!("--token-file {}: {reason}", Escaped(&path.to_string_lossy()));
    let (text, mode) = file::read(path).map_err(|error| wrong(&format!("it cannot be read: {error}")))?;
    if let Some(reason) = file::open_to_others(mode) {
        return Err(wrong(&reason));
    }
    sound(text.as_bytes()).map_err(wrong)
}

/// The token that a text consists of, without space around it.
fn sound(text: &[u8]) -> Result<Secret, &'static str> {
    match std::str::from_utf8(text.trim_ascii()) {
        Ok("") => Err("it is empty; give a token, or leave it out"),
        Ok(token) if token.len() > TOKEN_BYTES_MAX => Err("it is longer than a token can be (8192 bytes)"),
        Ok(token) if offered::sound(token).is_ok() => Ok(token.into()),
        _ => Err("it is not a token alone; `tidewire token mint` makes one"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::stage::TokenFile;

    impl TokenFile {
        fn bearer(&self) -> Bearer {
            Bearer::new(Some(&self.path), Some("from.the.variable".into())).unwrap()
        }
    }

    fn closed(code: u16) -> Closed {
        Closed { code, reason: "bye".into(), retry: CloseReason::retry_for_code(code) }
    }

    fn refused(status: u16) -> ConnectError {
        ConnectError::Refused { status, message: "no".into(), retry_after: None }
    }

    #[test]
    fn a_token_comes_from_the_file_before_the_variable() {
        let shown = |mut bearer: Bearer| bearer.show().unwrap().map(|token| token.expose().to_owned());
        let file = TokenFile::new(" a.b.c\n");
        assert_eq!(shown(file.bearer()).as_deref(), Some("a.b.c"));
        assert_eq!(shown(Bearer::new(None, Some("d.e.f".into())).unwrap()).as_deref(), Some("d.e.f"));
        assert_eq!(shown(Bearer::new(None, None).unwrap()), None);
        for wrong in ["", " \n", "a b", "a\r\nX: y", "a\u{e9}", "{\"keys\": []}", &"a".repeat(8_193)] {
            let reason = Bearer::new(None, Some(wrong.into())).unwrap_err();
            assert!(reason.starts_with("TIDEWIRE_TOKEN: it is "), "{reason}");
            file.write(wrong, 0o600);
            let reason = Bearer::new(Some(&file.path), None).unwrap_err();
            assert!(reason.starts_with("--token-file /") && reason.contains(": it is "), "{reason}");
        }
        file.write("a.b.c", 0o640);
        let reason = Bearer::new(Some(&file.path), None).unwrap_err();
        assert!(
            reason.ends_with("others can read the secret in it (mode 640); chmod 600 the file"),
            "{reason}"
        );
        fs::remove_file(&file.path).unwrap();
        assert!(Bearer::new(Some(&file.path), None).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn only_another_token_gets_another_attempt() {
        let file = TokenFile::new("a.b.c");
        let mut bearer = file.bearer();
        bearer.show().unwrap();
        let outcomes = |bearer: &Bearer| {
            [4401, 4403]
                .map(|code| bearer.lost(&closed(code)).1)
                .into_iter()
                .chain([401, 403].map(|status| bearer.failed(&refused(status)).1))
                .collect::<Vec<_>>()
        };
        assert_eq!(outcomes(&bearer), [Retry::Never; 4]);
        file.write("d.e.f", 0o600);
        assert_eq!(outcomes(&bearer), [Retry::Backoff; 4]);
        bearer.show().unwrap();
        assert_eq!(outcomes(&bearer), [Retry::Never; 4], "it has had its attempt");
        for useless in ["", "not a token"] {
            file.write(useless, 0o600);
            assert_eq!(outcomes(&bearer), [Retry::Never; 4], "{useless:?}");
        }
        assert_eq!(bearer.lost(&closed(1011)), ("bye (1011)".to_owned(), Retry::Backoff));
        assert_eq!(bearer.failed(&refused(404)).1, Retry::Never);
        assert_eq!(bearer.failed(&refused(503)).1, Retry::Backoff);
        let nobody = Bearer::new(None, None).unwrap();
        assert!(nobody.failed(&refused(401)).0.ends_with(GIVE_ONE));
        assert!(nobody.demanded().unwrap_err().ends_with(GIVE_ONE));
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_is_looked_at_until_there_is_another_token() {
        let file = TokenFile::new("a.b.c");
        let mut bearer = file.bearer();
        bearer.show().unwrap();
        let long = Duration::from_secs(3_600);
        file.write("d.e.f", 0o600);
        assert!(tokio::time::timeout(long, bearer.look()).await.is_err(), "nothing ends");
        file.write("a.b.c", 0o600);
        assert!(bearer.expiring());
        assert!(tokio::time::timeout(long, bearer.look()).await.is_err(), "the same");
        file.write("d.e.f", 0o644);
        assert!(bearer.look().await.unwrap_err().contains("chmod 600"));
        assert!(tokio::time::timeout(long, bearer.look()).await.is_err(), "told once");
        file.write("d.e.f", 0o600);
        let began = Instant::now();
        assert_eq!(bearer.look().await.unwrap().expose(), "d.e.f");
        assert!(began.elapsed() <= LOOK_INTERVAL);
        assert!(tokio::time::timeout(long, bearer.look()).await.is_err(), "it has been shown");
        bearer.settled();
        file.write("g.h.i", 0o600);
        assert!(tokio::time::timeout(long, bearer.look()).await.is_err(), "it was taken");
        assert!(!Bearer::new(None, Some("a.b.c".into())).unwrap().expiring(), "a variable does not change");
    }
}
