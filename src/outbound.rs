//! The write loop of a connection: outbox to socket, as much as fits in one system call. Never reads the socket, never sees
//! a channel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::clock::{Now, nanos};
use crate::close::CloseReason;
use crate::metrics::Stage;
use crate::outbox::Take;
use crate::wire::Frame;
use crate::worker::{Watched, Worker};

/// Bytes that one write offers to the kernel: about what it takes at once with `TCP_NOTSENT_LOWAT`; what it does not take
/// stays in the outbox, where it can still be dropped.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Messages up to this size are copied together into one buffer: cheaper than handing the kernel a list of small pieces.
/// Larger ones go out from where they are.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Pieces of one write: at least two of three are larger than [`COPY_BYTES_MAX`], so this many fill it.
const PIECES_MAX: usize = 24;

/// Writes that one turn makes before the other connections of the thread have theirs.
const WRITES_PER_TURN: u32 = 8;

/// A piece of a write.
enum Piece {
    Copied(Range<usize>),
    Shared(Bytes),
}

/// Writes until the connection ends, and says why. In a drain it first writes what the outbox holds.
pub async fn run<S: AsyncWrite + Unpin>(worker: &Worker, watched: &Watched, io: &RefCell<S>) -> CloseReason {
    let mut pieces = Vec::new();
    poll_fn(|cx| {
        watched.handle.register_writer(cx);
        for _ in 0..WRITES_PER_TURN {
            if watched.handle.is_cut() {
                return Poll::Ready(CloseReason::Drain);
            }
            // Without output there is no reason to read the clock.
            let waiting = watched.handle.outbox().borrow().is_waiting();
            match watched.handle.ending() {
                Some(CloseReason::Drain) if waiting => {}
                Some(CloseReason::Drain) if watched.handle.outbox().borrow().is_held() => {
                    return Poll::Pending;
                }
                Some(reason) => return Poll::Ready(reason),
                None if waiting => {}
                None => return Poll::Pending,
            }
            let now = worker.now();
            let polled = watched.handle.outbox().borrow_mut().poll(now);
            if polled.is_err() {
                return Poll::Ready(CloseReason::SlowConsumer);
            }
            if !watched.handle.outbox().borrow().has_output() {
                // A gap notice that is not due yet: the ticker wakes for it.
                return Poll::Pending;
            }
            match write(worker, watched, &mut pieces, io, now, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::PeerGone),
                Poll::Pending => {
                    watched.keepalive.borrow_mut().note_blocked(now.at);
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Writes what the outbox holds, until it is empty.
///
/// # Errors
/// The socket's.
pub async fn flush<S: AsyncWrite + Unpin>(
    worker: &Worker,
    watched: &Watched,
    io: &RefCell<S>,
) -> io::Result<()> {
    let mut pieces = Vec::new();
    poll_fn(|cx| {
        while watched.handle.outbox().borrow().has_output() {
            std::task::ready!(write(worker, watched, &mut pieces, io, worker.now(), cx))?;
        }
        Pin::new(&mut *io.borrow_mut()).poll_flush(cx)
    })
    .await
}

/// One write.
fn write<S: AsyncWrite + Unpin>(
    worker: &Worker,
    watched: &Watched,
    pieces: &mut Vec<Piece>,
    io: &RefCell<S>,
    now: Now,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut outbox = watched.handle.outbox().borrow_mut();
    let mut buffer = worker.write_buffer.borrow_mut();
    buffer.clear();
    pieces.clear();
    let mut offered = 0;
    outbox.gather(now, |message, written| {
        let rest = message.len() - written;
        if rest > COPY_BYTES_MAX {
            pieces.push(Piece::Shared(message.slice(written..)));
        } else {
            let start = buffer.len();
            buffer.extend_from_slice(&message[written..]);
            match pieces.last_mut() {
                Some(Piece::Copied(range)) => range.end = buffer.len(),
                _ => pieces.push(Piece::Copied(start..buffer.len())),
            }
        }
        offered += rest;
        if offered >= WRITE_BYTES_MAX || pieces.len() == PIECES_MAX { Take::Stop } else { Take::More }
    });
    if pieces.is_empty() {
        // Everything that waited was too old.
        return Poll::Ready(Ok(()));
    }
    let depth = outbox.data_bytes();
    let age = outbox.oldest_age(now);

    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    for (slice, piece) in slices.iter_mut().zip(&*pieces) {
        *slice = IoSlice::new(match piece {
            Piece::Copied(range) => &buffer[range.clone()],
            Piece::Shared(bytes) => bytes,
        });
    }
    let written = {
        let mut io = io.borrow_mut();
        match Pin::new(&mut *io).poll_write_vectored(cx, &slices[..pieces.len()]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    };
    pieces.clear();

    // One reading of the clock for the whole write, however many samples were in it.
    let now = worker.now();
    let mut hub = worker.hub.borrow_mut();
    let metrics = hub.metrics();
    metrics.counters.writes += 1;
    let mut data = false;
    outbox.advance(written, |frame| {
        data = true;
        let waited = nanos(now.at.saturating_duration_since(frame.flushed_at));
        metrics.record(Stage::OutboxWait, waited, u64::from(frame.count));
        record_total(frame, now, |total, count| metrics.record(Stage::ServerTotal, total, count));
    });
    if data {
        metrics.record(Stage::OutboxDepthBytes, depth as u64, 1);
        metrics.record(Stage::OutboxAge, nanos(age), 1);
    }
    let mut keepalive = watched.keepalive.borrow_mut();
    keepalive.note_written();
    if data {
        keepalive.note_data(worker.config(), now.at);
    }
    Poll::Ready(Ok(()))
}

/// Gives each of the frame's timed samples an equal share of its samples.
fn record_total(frame: &Frame, now: Now, mut record: impl FnMut(u64, u64)) {
    let samples = u64::from(frame.count);
    let timed = frame.received_at.len() as u64;
    let (share, rest) = (samples / timed, samples % timed);
    for (position, received_at) in (0..).zip(frame.received_at) {
        let count = share + u64::from(position < rest);
        if count > 0 {
            record(nanos(now.at.saturating_duration_since(received_at)), count);
        }
    }
}
