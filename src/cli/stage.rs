//! What a command's test puts around it: outputs to look at, a stop to give, and luck that is none.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::sync::watch;

use super::terminal::{Shell, Stop};

/// A script that is not done by then has gone wrong.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes that were written, to look at afterwards; clones share them.
#[derive(Clone, Default)]
pub(super) struct Written {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Every write fails as if nobody read.
    pub(super) broken: bool,
}

impl Written {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncWrite for Written {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(io::Write::write(self.get_mut(), bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A command's surroundings and what it leaves in them.
pub(super) struct Stage {
    pub(super) out: Written,
    pub(super) log: Written,
    pub(super) stop: watch::Sender<bool>,
    stopped: Stop,
}

impl Stage {
    pub(super) fn new() -> Self {
        let (stop, stopped) = Stop::new();
        Self { out: Written::default(), log: Written::default(), stop, stopped }
    }

    /// A shell without luck: the backoff takes no time.
    pub(super) fn shell(&self) -> Shell<Written> {
        Shell {
            out: self.out.clone(),
            log: Box::new(self.log.clone()),
            stop: self.stopped.clone(),
            random: || 0.0,
            variable: |_| None,
        }
    }
}

/// A file with a token, gone with the test.
pub(super) struct TokenFile {
    _folder: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl TokenFile {
    pub(super) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let this = Self { _folder: folder, path };
        this.write(text, 0o600);
        this
    }

    pub(super) fn write(&self, text: &str, mode: u32) {
        fs::write(&self.path, text).unwrap();
        fs::set_permissions(&self.path, Permissions::from_mode(mode)).unwrap();
    }
}

/// Runs a command and the script of its server to the end of both.
pub(super) async fn play(
    command: impl Future<Output = ExitCode>,
    script: impl Future<Output = ()>,
) -> ExitCode {
    tokio::time::timeout(SCRIPT_TIMEOUT, async { tokio::join!(command, script).0 }).await.unwrap()
}

/// `ExitCode` cannot be compared.
pub(super) fn assert_exit(found: ExitCode, expected: ExitCode) {
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
}
