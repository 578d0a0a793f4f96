//! What does it cost to take one message of 128 bytes off a busy connection: this server's [`Reader`], and fastwebsockets'
//! `WebSocketRead`, which it is used instead of?
//!
//! Both get the same endless stream of masked binary messages from memory, in reads of up to 16 KiB which are copied into
//! their buffer, as a socket would. 136 bytes a frame do not divide 16 KiB, so one message in 120 is cut by a read.
//! Allocations per message are printed first.
//!
//! What would make it lie:
//! - No system call and a warm cache: the figures say what framing costs, not what a server can take.
//! - Mask, payload and length never change, so every branch is predicted.
//! - fastwebsockets asks for as much as its own buffer has room for, 8 KiB at first, so it reads more often. That is its
//!   design, but a read is cheaper here than on a socket.
//! - The two do not do the same work: ours checks all of RFC 6455, refuses unmasked frames and assembles fragments within
//!   the limit, and is not a future. fastwebsockets hands out payloads that may be kept, as counted shares of its buffer.
//! - Here no payload is kept, which is why fastwebsockets does not allocate: it gets its buffer back each time. Ours
//!   allocates for each message that a read cut, so that it needs no buffer of its own between messages. What that buffer
//!   costs with many connections, 8 KiB or more for each, is the reason for ours and does not show here.

use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastwebsockets::{Frame, Role, WebSocketError, WebSocketRead};
use futures_util::FutureExt as _;
use tidewire::wire::ws::{Event, Reader};
use tokio::io::{AsyncRead, ReadBuf};

const PAYLOAD_BYTES: usize = 128;
const READ_BYTES: usize = 16 << 10;
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Messages in one measurement, long enough that its ends do not count: 83 reads.
const MESSAGES: usize = 10_000;

/// The same frame again and again, cut into reads without regard to where it ends.
struct Stream {
    /// Frames enough for one read from any place in the first.
    frames: Vec<u8>,
    frame_bytes: usize,
    at: usize,
}

impl Stream {
    fn new() -> Self {
        let mut frame = vec![0x82, 0xFE, 0, 128, 0x11, 0x22, 0x33, 0x44];
        frame.resize(frame.len() + PAYLOAD_BYTES, 0x55);
        Self { frames: frame.repeat(READ_BYTES / frame.len() + 2), frame_bytes: frame.len(), at: 0 }
    }

    fn read(&mut self, bytes: usize) -> &[u8] {
        let begin = self.at;
        self.at = (begin + bytes) % self.frame_bytes;
        &self.frames[begin..begin + bytes]
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = self.read(buf.remaining().min(READ_BYTES));
        buf.put_slice(bytes);
        Poll::Ready(Ok(()))
    }
}

struct Ours {
    stream: Stream,
    buffer: Box<[u8]>,
    reader: Reader,
}

impl Ours {
    fn new() -> Self {
        let buffer = vec![0; READ_BYTES].into();
        Self { stream: Stream::new(), buffer, reader: Reader::new(MESSAGE_BYTES_MAX) }
    }

    /// Reads [`MESSAGES`] or a few more, up to the end of a read; returns how many.
    fn read_messages(&mut self) -> usize {
        let mut messages = 0;
        while messages < MESSAGES {
            self.buffer.copy_from_slice(self.stream.read(READ_BYTES));
            let mut input = &mut self.buffer[..];
            while let Some(event) = self.reader.next(&mut input).expect("the stream is valid") {
                let Event::Binary(payload) = event else { unreachable!("all messages are binary") };
                assert_eq!(black_box(payload).len(), PAYLOAD_BYTES);
                messages += 1;
            }
        }
        messages
    }
}

struct Theirs {
    reader: WebSocketRead<Stream>,
}

impl Theirs {
    fn new() -> Self {
        let (mut reader, _) =
            fastwebsockets::after_handshake_split(Stream::new(), tokio::io::sink(), Role::Server);
        reader.set_auto_close(false);
        reader.set_auto_pong(false);
        reader.set_max_message_size(MESSAGE_BYTES_MAX + 1);
        Self { reader }
    }

    fn read_messages(&mut self) -> usize {
        for _ in 0..MESSAGES {
            let frame = self
                .reader
                .read_frame(&mut |_: Frame<'_>| async { Ok::<(), WebSocketError>(()) })
                .now_or_never()
                .expect("the stream is always ready")
                .expect("the stream is valid");
            assert_eq!(black_box(&frame.payload).len(), PAYLOAD_BYTES);
        }
        MESSAGES
    }
}

fn print_allocations(name: &str, mut read_messages: impl FnMut() -> usize) {
    read_messages();
    let mut messages = 0;
    let allocations = allocation_counter::measure(|| messages = read_messages()).count_total;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let per_message = allocations as f64 / messages as f64;
    println!("{name}: {per_message:.3} allocations per message");
}

fn reader(criterion: &mut Criterion) {
    let (mut ours, mut theirs) = (Ours::new(), Theirs::new());
    print_allocations("tidewire", || ours.read_messages());
    print_allocations("fastwebsockets", || theirs.read_messages());

    let mut group = criterion.benchmark_group("reader/128_bytes");
    group.throughput(Throughput::Elements(1));
    // Time per message: as many batches as make up the iterations asked for, scaled to them.
    for (name, read_messages) in [
        ("tidewire", &mut (|| ours.read_messages()) as &mut dyn FnMut() -> usize),
        ("fastwebsockets", &mut || theirs.read_messages()),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut messages = 0;
                let begin = std::time::Instant::now();
                while messages < iterations {
                    messages += read_messages() as u64;
                }
                begin.elapsed().mul_f64(iterations as f64 / messages as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reader);
criterion_main!(benches);
