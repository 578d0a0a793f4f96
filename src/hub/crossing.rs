//! What of a channel waits to go to other servers. A frame goes at once, unless the last message has gone less than [`WINDOW`] ago:
//! then it shares the next one with what is sealed until then. Most frames are sealed at the end of a flush window and go at once; those
//! that were full before, or that somebody's joining has sealed, share messages, so a broker has no more of them where more is
//! published. Never reads the clock, never knows a broker.

use std::time::{Duration, Instant};

use crate::wire::Frame;

/// Shortest time between two messages of a channel, but for what [`MESSAGE_BYTES_MAX`] does not hold: 100 a second. What shares a
/// message comes to others so much later at the most.
pub const WINDOW: Duration = Duration::from_millis(10);

/// Bytes of frames that share a message: a quarter of what NATS takes, and of what brokers keep of a channel, by their defaults.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Samples of frames that share a message: what a receiver is ready to look at, whatever its own frames may hold.
pub const MESSAGE_SAMPLES_MAX: u32 = 1 << 16;

/// Frames that a channel keeps room for.
const HELD_KEPT_MAX: usize = 32;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Crossing {
    /// In order, without a gap.
    held: Vec<Frame>,
    bytes: usize,
    samples: u32,
    /// When the current window began, if there was one.
    sent_at: Option<Instant>,
}

impl Crossing {
    /// Takes the next frame of the stream; calls `send` with frames that are to go as one message now. Returns when
    /// [`Crossing::release_due`] has to be called, if that was not known.
    pub fn take(&mut self, frame: Frame, now: Instant, mut send: impl FnMut(&[Frame])) -> Option<Instant> {
        let window_ends = self.sent_at.map(|at| at + WINDOW).filter(|at| *at > now);
        if self.held.is_empty() && window_ends.is_none() {
            self.sent_at = Some(now);
            send(std::slice::from_ref(&frame));
            return None;
        }
        let is_first = self.held.is_empty();
        let (bytes, samples) = (self.bytes + frame.bytes.len(), self.samples.saturating_add(frame.count));
        if !is_first && (bytes > MESSAGE_BYTES_MAX || samples > MESSAGE_SAMPLES_MAX) {
            // The window goes on: what follows waits no longer for it.
            self.send_held(&mut send);
        }
        self.bytes += frame.bytes.len();
        self.samples = self.samples.saturating_add(frame.count);
        self.held.push(frame);
        window_ends.filter(|_| is_first)
    }

    /// Calls `send` with what waits, if its window is over.
    pub fn release_due(&mut self, now: Instant, send: impl FnMut(&[Frame])) {
        if self.sent_at.is_none_or(|at| at + WINDOW <= now) {
            self.release(now, send);
        }
    }

    /// Calls `send` with what waits.
    pub fn release(&mut self, now: Instant, mut send: impl FnMut(&[Frame])) {
        if !self.held.is_empty() {
            self.sent_at = Some(now);
            self.send_held(&mut send);
        }
    }

    fn send_held(&mut self, send: &mut impl FnMut(&[Frame])) {
        send(&self.held);
        self.held.clear();
        // Frames of usual size have filled a message long before.
        self.held.shrink_to(HELD_KEPT_MAX);
        self.bytes = 0;
        self.samples = 0;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{ChannelId, TIMED_SAMPLES};

    fn frame(first: u64, count: u32, bytes: usize, at: Instant) -> Frame {
        Frame {
            bytes: Bytes::from(vec![0; bytes]),
            channel: ChannelId(1),
            first,
            last: first + u64::from(count) - 1,
            count,
            head_bytes: 0,
            replayed: false,
            flushed_at: at,
            received_at: [at; TIMED_SAMPLES],
        }
    }

    proptest! {
        /// Frames of any size at any time: each goes once, in order; none waits longer than the window, and messages come no more
        /// often than windows, but for full ones.
        #[test]
        fn messages_are_as_many_as_windows_and_full_ones(
            steps in proptest::collection::vec((0_u64..15_000, 1_u32..40_000, 1_usize..200_000), 1..60),
        ) {
            let start = Instant::now();
            let mut crossing = Crossing::default();
            let mut due: Option<Instant> = None;
            // Of each message: when, its frames.
            let mut sent: Vec<(Instant, Vec<Frame>)> = Vec::new();
            let (mut at, mut next) = (start, 1);
            for (after_us, count, bytes) in steps {
                at += Duration::from_micros(after_us);
                if let Some(then) = due.take_if(|then| *then <= at) {
                    crossing.release_due(then, |frames| sent.push((then, frames.to_vec())));
                    prop_assert!(crossing.held.is_empty());
                }
                let taken = frame(next, count, bytes, at);
                next += u64::from(count);
                let then = crossing.take(taken, at, |frames| sent.push((at, frames.to_vec())));
                prop_assert!(then.is_none() || due.is_none(), "a deadline is told once");
                due = due.or(then);
                prop_assert_eq!(due.is_some(), !crossing.held.is_empty(), "what waits has a deadline");
            }
            crossing.release(at, |frames| sent.push((at, frames.to_vec())));
            let mut expected = 1;
            for (then, frames) in &sent {
                for frame in frames {
                    prop_assert_eq!(frame.first, expected);
                    prop_assert!(then.saturating_duration_since(frame.flushed_at) <= WINDOW);
                    expected = frame.last + 1;
                }
                let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
                let samples: u32 = frames.iter().map(|frame| frame.count).sum();
                let is_one = frames.len() == 1;
                prop_assert!(is_one || (bytes <= MESSAGE_BYTES_MAX && samples <= MESSAGE_SAMPLES_MAX));
            }
            prop_assert_eq!(expected, next);
            // The last went before its time.
            let (mut window, timely) = (None::<Instant>, &sent[..sent.len() - 1]);
            for (index, (then, frames)) in timely.iter().enumerate() {
                let follower = &sent[index + 1].1[0];
                let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
                let samples: u32 = frames.iter().map(|frame| frame.count).sum();
                let had_no_room = bytes + follower.bytes.len() > MESSAGE_BYTES_MAX
                    || samples + follower.count > MESSAGE_SAMPLES_MAX;
                let is_new_window = window.is_none_or(|began| *then >= began + WINDOW);
                prop_assert!(is_new_window || had_no_room, "message {index}");
                if is_new_window {
                    window = Some(*then);
                }
            }
        }
    }

    #[test]
    fn a_frame_of_each_window_goes_at_once() {
        let start = Instant::now();
        let mut crossing = Crossing::default();
        for window in 0..5 {
            let at = start + WINDOW * window;
            let mut sent = 0;
            assert_eq!(crossing.take(frame(1 + u64::from(window), 1, 9, at), at, |_| sent += 1), None);
            assert_eq!(sent, 1);
        }
    }
}
