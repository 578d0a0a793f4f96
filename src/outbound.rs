//! From outbox to socket, as much as fits in one system call: the writer of a worker, and a connection's own loop for when its
//! socket is full or it ends. Never reads a socket, never sees a channel.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::clock::{Now, nanos};
use crate::close::CloseReason;
use crate::metrics::Stage;
use crate::outbox::handle::Writing;
use crate::outbox::{Outbox, Take};
use crate::wire::Frame;
use crate::worker::{Watched, Worker};

/// Bytes that one write offers to the kernel: about what it takes at once with `TCP_NOTSENT_LOWAT`; what it does not take
/// stays in the outbox, where it can still be dropped.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Messages up to this size are copied together into one buffer: cheaper than handing the kernel a list of small pieces.
/// Larger ones go out from where they are.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Pieces of one write: every second is larger than [`COPY_BYTES_MAX`], so these are more than a socket with the default
/// `outbox.notsent_lowat_bytes` takes.
const PIECES_MAX: usize = 12;

/// Writes that one turn makes before the other connections of the thread have theirs.
const WRITES_PER_TURN: u32 = 8;

/// Writes of the worker's writer before the sockets are looked at again. A write takes some 5 us and a large one 30, so a
/// publisher waits for a millisecond at the most, and its samples come in faster than they could go out to all: what is too
/// much then is dropped where it is counted, and does not grow old in the publisher. Looking costs about a fifth of a write.
const WRITES_PER_PASS: u32 = 32;

/// A piece of a write: a range of the worker's buffer, or a message where it is.
enum Piece<'a> {
    Copied(Range<usize>),
    Shared(&'a [u8]),
}

/// How far a turn of writing came.
#[derive(Debug)]
enum Turn {
    /// The outbox is empty, or holds nothing that may go yet.
    Done,
    /// There is more.
    More,
    /// The socket takes no more; it wakes whoever has polled it.
    Blocked,
    /// The connection has to end.
    End(CloseReason),
}

/// The writer of a worker: gives each connection that has something to write its turn, in the order in which that came.
/// One task for all of them, because waking a task for each would cost more than what is left of a write beside the system
/// call. Never ends.
pub async fn run_writer(worker: &Worker) {
    // A socket that is full is left to the connection's own loop, which polls it again with its own waker.
    let cx = &mut Context::from_waker(Waker::noop());
    loop {
        poll_fn(|cx| worker.ready().poll_ready(cx)).await;
        let mut now = worker.now();
        let mut first = true;
        let mut writes = 0;
        while writes < WRITES_PER_PASS
            && let Some(place) = worker.ready().pop()
        {
            worker.with_watched(place, |watched| {
                if watched.handle.writing() != Writing::Listed {
                    // It has left the list since, or the place is another connection's by now.
                    return;
                }
                if first && watched.handle.outbox().borrow().data_bytes() > 0 {
                    // One of each pass, from anywhere in a round.
                    first = false;
                    let waited = watched.handle.outbox().borrow().oldest_age(now);
                    worker.hub.borrow_mut().note_turn(waited);
                }
                // A bug in the work for one connection ends that one and not the writing for all.
                let turn =
                    catch_unwind(AssertUnwindSafe(|| turn(worker, watched, &mut now, &mut writes, cx)));
                match turn.unwrap_or(Turn::End(CloseReason::Internal)) {
                    Turn::Done => watched.handle.set_idle(),
                    Turn::More => watched.handle.list_again(),
                    Turn::Blocked => watched.handle.write_alone(),
                    Turn::End(reason) => watched.handle.end(reason),
                }
            });
        }
        if !worker.ready().is_empty() {
            // Publishers are read between two passes, however many there are to write to.
            tokio::task::yield_now().await;
        }
    }
}

/// The loop of a connection: writes while the socket is full, where its waker is needed, and when the connection ends; all
/// else is the worker's writer's. Ends with the connection, and says why. In a drain it first writes what the outbox holds.
pub async fn run(worker: &Worker, watched: &Watched) -> CloseReason {
    let handle = &watched.handle;
    poll_fn(|cx| {
        handle.register_task(cx);
        if handle.writing() != Writing::Own {
            return Poll::Pending;
        }
        match turn(worker, watched, &mut worker.now(), &mut 0, cx) {
            Turn::Done if handle.ending().is_none() => {
                handle.set_idle();
                Poll::Pending
            }
            Turn::Done | Turn::Blocked => Poll::Pending,
            Turn::More => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Turn::End(reason) => Poll::Ready(reason),
        }
    })
    .await
}

/// Up to [`WRITES_PER_TURN`] writes, which are added to `writes`. `now` is what the clock said last, and is moved on by each
/// write.
fn turn(worker: &Worker, watched: &Watched, now: &mut Now, writes: &mut u32, cx: &mut Context<'_>) -> Turn {
    let handle = &watched.handle;
    for _ in 0..WRITES_PER_TURN {
        if handle.is_cut() {
            return Turn::End(CloseReason::Drain);
        }
        let mut outbox = handle.outbox().borrow_mut();
        match handle.ending() {
            Some(CloseReason::Drain) if outbox.is_waiting() || watched.unflushed.get() => {}
            Some(CloseReason::Drain) if outbox.is_held() => return Turn::Done,
            Some(reason) => return Turn::End(reason),
            None if outbox.is_waiting() || watched.unflushed.get() => {}
            None => return Turn::Done,
        }
        if watched.unflushed.get() {
            match flush_rest(watched, cx) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(_)) => return Turn::End(CloseReason::PeerGone),
                Poll::Pending => {
                    watched.keepalive.borrow_mut().note_blocked(now.at);
                    return Turn::Blocked;
                }
            }
        }
        if outbox.poll(*now).is_err() {
            return Turn::End(CloseReason::SlowConsumer);
        }
        if !outbox.has_output() {
            // A gap notice that is not due yet: the ticker wakes for it.
            return Turn::Done;
        }
        *writes += 1;
        match write(worker, watched, &mut outbox, now, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Turn::End(CloseReason::PeerGone),
            Poll::Pending => {
                watched.keepalive.borrow_mut().note_blocked(now.at);
                return Turn::Blocked;
            }
        }
    }
    Turn::More
}

/// Gives the kernel what the last write has left behind: bytes that were encrypted while the socket was full.
fn flush_rest(watched: &Watched, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let flushed = Pin::new(&mut *watched.io.borrow_mut()).poll_flush(cx);
    watched.unflushed.set(flushed.is_pending());
    if matches!(flushed, Poll::Ready(Ok(()))) {
        watched.keepalive.borrow_mut().note_written();
    }
    flushed
}

/// Writes what the outbox holds, until it is empty.
///
/// # Errors
/// The socket's.
pub async fn flush(worker: &Worker, watched: &Watched) -> io::Result<()> {
    poll_fn(|cx| {
        let mut now = worker.now();
        let mut outbox = watched.handle.outbox().borrow_mut();
        while outbox.has_output() {
            std::task::ready!(write(worker, watched, &mut outbox, &mut now, cx))?;
        }
        Pin::new(&mut *watched.io.borrow_mut()).poll_flush(cx)
    })
    .await
}

/// One write. Moves `now` on to its end.
fn write(
    worker: &Worker,
    watched: &Watched,
    outbox: &mut Outbox,
    now: &mut Now,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut buffer = worker.write_buffer.borrow_mut();
    buffer.clear();
    let (depth, age) = (outbox.data_bytes(), outbox.oldest_age(*now));
    let mut pieces = [const { Piece::Copied(0..0) }; PIECES_MAX];
    let (mut count, mut offered) = (0_usize, 0);
    outbox.gather(|message| {
        let last = count.checked_sub(1).map(|last| &mut pieces[last]);
        if message.len() > COPY_BYTES_MAX {
            pieces[count] = Piece::Shared(message);
            count += 1;
        } else {
            let start = buffer.len();
            buffer.extend_from_slice(message);
            if let Some(Piece::Copied(range)) = last {
                range.end = buffer.len();
            } else {
                pieces[count] = Piece::Copied(start..buffer.len());
                count += 1;
            }
        }
        offered += message.len();
        if offered >= WRITE_BYTES_MAX || count == PIECES_MAX { Take::Stop } else { Take::More }
    });
    if count == 0 {
        // Everything that waited was too old.
        return Poll::Ready(Ok(()));
    }
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    for (slice, piece) in slices.iter_mut().zip(&pieces[..count]) {
        *slice = IoSlice::new(match piece {
            Piece::Copied(range) => &buffer[range.clone()],
            Piece::Shared(message) => message,
        });
    }
    let written = {
        let mut io = watched.io.borrow_mut();
        let mut io = Pin::new(&mut *io);
        let polled = match &slices[..count] {
            // A list of one costs the kernel more than the piece itself.
            [piece] => io.as_mut().poll_write(cx, piece),
            list => io.as_mut().poll_write_vectored(cx, list),
        };
        let written = match std::task::ready!(polled)? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => written,
        };
        // TLS takes what a full socket does not take yet, and nobody would wake for it. A bare socket has nothing to flush.
        match io.poll_flush(cx) {
            Poll::Ready(flushed) => flushed?,
            Poll::Pending => watched.unflushed.set(true),
        }
        written
    };

    // One reading of the clock for the whole write, however many samples were in it.
    *now = worker.now();
    let now = *now;
    let mut hub = worker.hub.borrow_mut();
    let metrics = hub.metrics();
    metrics.counters.writes += 1;
    let (mut data, mut live) = (false, false);
    outbox.advance(written, |frame| {
        data = true;
        if frame.replayed {
            return;
        }
        live = true;
        let waited = nanos(now.at.saturating_duration_since(frame.flushed_at));
        metrics.record(Stage::OutboxWait, waited, u64::from(frame.count));
        record_total(frame, now, |total, count| metrics.record(Stage::ServerTotal, total, count));
    });
    if live {
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
