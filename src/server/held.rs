//! A socket whose writes can be held back: the answer to a handshake waits in memory, so that it leaves in one write with the
//! first message of the WebSocket. A write costs the kernel, and its peer's kernel, as much as all the rest of an accept.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether a [`Held`] socket holds back what is written. Shared with whoever decides that.
pub(super) type Hold = Arc<AtomicBool>;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Held<S> {
    io: S,
    hold: Hold,
    held: Vec<u8>,
}

impl<S> Held<S> {
    /// Writes go through until `hold` is set.
    pub(super) const fn new(io: S, hold: Hold) -> Self {
        Self { io, hold, held: Vec::new() }
    }

    /// The socket, and what was written to it since it holds back.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.io, self.held)
    }

    fn holds(&self) -> bool {
        self.hold.load(Ordering::Relaxed)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.holds() {
            this.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.holds() {
            pieces.iter().for_each(|piece| this.held.extend_from_slice(piece));
            return Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()));
        }
        Pin::new(&mut this.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_is_held_back_reaches_nobody_and_is_not_lost() {
        let (near, mut far) = tokio::io::duplex(64);
        let hold = Hold::default();
        let mut held = Held::new(near, Arc::clone(&hold));
        held.write_all(b"before").await.unwrap();
        hold.store(true, Ordering::Relaxed);
        held.write_all(b"after").await.unwrap();
        let more = [IoSlice::new(b", in"), IoSlice::new(b" two")];
        assert_eq!(held.write_vectored(&more).await.unwrap(), 8);
        held.flush().await.unwrap();
        let (near, rest) = held.into_parts();
        drop(near);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!((&got[..], &rest[..]), (&b"before"[..], &b"after, in two"[..]));
    }
}
