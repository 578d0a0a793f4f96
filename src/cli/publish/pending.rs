//! Samples on their way: those that wait for a connection, and those that wait for an `ack`. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use crate::client::event::{Ack, Limits};
use crate::wire::proto::{Block, Sample, sample::Value};

/// Samples that are kept without a connection.
pub(super) const SAMPLES_MAX: usize = 10_000;

/// Bytes that are kept without a connection: long lines reach this before [`SAMPLES_MAX`].
pub(super) const BYTES_MAX: usize = 16 << 20;

/// Publishes without an answer; then no more are sent. A round trip of 100 ms still allows 10,000 publishes a second.
pub(super) const IN_FLIGHT_MAX: usize = 1_024;

/// How long an answer to a publish may take.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a `Publish` around its samples: tags, the largest numbers, and the lengths of message and block.
const PUBLISH_OVERHEAD_BYTES: usize = 64;

/// Bytes of a sample beside its value, at the most: tags and lengths, and the source delta.
const SAMPLE_OVERHEAD_BYTES: usize = 32;

/// A value that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    /// Of its line.
    pub(super) line: u64,
    /// When it was read, by this machine's clock.
    pub(super) source_ns: u64,
    /// The value.
    pub(super) value: Value,
}

impl Read {
    fn bytes(&self) -> usize {
        let value = match &self.value {
            Value::Text(text) => text.len(),
            Value::Vector(vector) => vector.values.len() * size_of::<f64>(),
            Value::Bytes(bytes) => bytes.len(),
            Value::Number(_) | Value::Integer(_) => size_of::<f64>(),
        };
        value + SAMPLE_OVERHEAD_BYTES
    }
}

/// The samples that wait for a connection, oldest first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queue: VecDeque<Read>,
    bytes: usize,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes a sample; returns how many of the oldest had to go. The newest is the one that a viewer wants.
    #[must_use]
    pub(super) fn push(&mut self, read: Read) -> u64 {
        self.bytes += read.bytes();
        self.queue.push_back(read);
        let mut dropped = 0;
        while self.queue.len() > SAMPLES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.bytes -= oldest.bytes();
            dropped += 1;
        }
        dropped
    }

    /// As many of the oldest as one publish may carry. `Err` has the line of a sample that alone is over the limit.
    pub(super) fn block(&mut self, limits: &Limits) -> Option<Result<Block, u64>> {
        let base_ns = self.queue.front()?.source_ns;
        let bytes_max = limits.message_bytes_max.saturating_sub(PUBLISH_OVERHEAD_BYTES);
        let mut block = Block { source_ns: base_ns, ..Block::default() };
        let mut bytes = 0;
        while block.samples.len() < limits.message_samples_max.max(1) {
            let Some(read) = self.queue.pop_front() else { break };
            let kept = read.bytes();
            let Read { line, source_ns, value } = read;
            let source_delta_ns = i64::try_from(i128::from(source_ns) - i128::from(base_ns)).unwrap_or(0);
            let sample = Sample { source_delta_ns, value: Some(value) };
            // Its tag and length stand before it.
            let cost = 1 + prost::length_delimiter_len(sample.encoded_len()) + sample.encoded_len();
            if bytes + cost > bytes_max {
                if block.samples.is_empty() {
                    self.bytes -= kept;
                    return Some(Err(line));
                }
                if let Some(value) = sample.value {
                    self.queue.push_front(Read { line, source_ns, value });
                }
                break;
            }
            self.bytes -= kept;
            bytes += cost;
            block.samples.push(sample);
        }
        Some(Ok(block))
    }
}

/// A publish without an answer so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    id: u64,
    samples: u64,
    at: Instant,
}

/// The publishes without an answer, oldest first. The server answers those of one channel in order.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    sent: VecDeque<Sent>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.sent.len() >= IN_FLIGHT_MAX
    }

    /// A publish is about to be sent.
    pub(super) fn push(&mut self, id: u64, samples: usize, at: Instant) {
        self.sent.push_back(Sent { id, samples: u64::try_from(samples).unwrap_or(u64::MAX), at });
    }

    /// An `ack`: how long it took, and how many samples of earlier publishes it passed over, which were not taken.
    /// `None` for one that was not asked for.
    pub(super) fn acked(&mut self, ack: &Ack, now: Instant) -> Option<(Duration, u64)> {
        let position = self.sent.iter().position(|sent| sent.id == ack.id)?;
        let passed = self.sent.drain(..position).map(|sent| sent.samples).sum();
        let sent = self.sent.pop_front()?;
        Some((now.saturating_duration_since(sent.at), passed))
    }

    /// An `error` for this id: how many samples were not taken.
    pub(super) fn refused(&mut self, id: u64) -> u64 {
        let position = self.sent.iter().position(|sent| sent.id == id);
        position.and_then(|position| self.sent.remove(position)).map_or(0, |sent| sent.samples)
    }

    /// When the oldest has waited too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sent.front().map(|sent| sent.at + ACK_TIMEOUT)
    }

    /// Gives up those that have waited too long: how many samples.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut samples = 0;
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            samples += self.sent.pop_front().map_or(0, |sent| sent.samples);
        }
        samples
    }

    /// The connection is lost: how many samples have no answer.
    pub(super) fn lost(&mut self) -> u64 {
        self.sent.drain(..).map(|sent| sent.samples).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::Publish;

    fn read(line: u64, value: Value) -> Read {
        Read { line, source_ns: 1_000 + line, value }
    }

    #[test]
    fn the_oldest_go_first_when_it_is_full() {
        let mut pending = Pending::default();
        let total = u64::try_from(SAMPLES_MAX).unwrap() + 5;
        let dropped: u64 = (1..=total).map(|line| pending.push(read(line, Value::Number(0.0)))).sum();
        assert_eq!((dropped, pending.len()), (5, SAMPLES_MAX));
        let limits = Limits { message_bytes_max: 1 << 20, message_samples_max: 1, channels_max: 1 };
        let block = pending.block(&limits).unwrap().unwrap();
        assert_eq!(block.source_ns, 1_006);
    }

    #[test]
    fn long_samples_are_bounded_in_bytes() {
        let mut pending = Pending::default();
        let text = "x".repeat(1 << 20);
        let dropped: u64 = (1..=20).map(|line| pending.push(read(line, Value::Text(text.clone())))).sum();
        assert_eq!(dropped, 5);
        assert!(pending.bytes <= BYTES_MAX);
    }

    #[test]
    fn publishes_keep_the_servers_limits() {
        /// Lengths of the samples, limit of samples, limit of bytes; the samples of each publish.
        type Row = (&'static [usize], usize, usize, &'static [Result<usize, u64>]);
        let rows: [Row; 5] = [
            (&[], 10, 1_000, &[]),
            (&[1; 25], 10, 10_000, &[Ok(10), Ok(10), Ok(5)]),
            (&[100; 5], 10, 64 + 220, &[Ok(2), Ok(2), Ok(1)]),
            (&[1, 500, 1], 10, 300, &[Ok(1), Err(2), Ok(1)]),
            (&[1], 0, 0, &[Err(1)]),
        ];
        for (lengths, message_samples_max, message_bytes_max, expected) in rows {
            let limits = Limits { message_bytes_max, message_samples_max, channels_max: 1 };
            let mut pending = Pending::default();
            for (line, &length) in (1..).zip(lengths) {
                assert_eq!(pending.push(read(line, Value::Text("x".repeat(length)))), 0);
            }
            let mut found = Vec::new();
            while let Some(block) = pending.block(&limits) {
                found.push(block.map(|block| {
                    let samples = block.samples.len();
                    let publish = Publish { channel: u32::MAX, block: Some(block), ack: u64::MAX };
                    assert!(publish.encoded_len() <= message_bytes_max);
                    samples
                }));
            }
            assert_eq!(found, expected);
            assert_eq!(pending.bytes, 0);
        }
    }

    #[test]
    fn answers_are_matched() {
        let start = Instant::now();
        let later = start + Duration::from_millis(3);
        let ack = |id| Ack { id, channel: 1, seq: 1, count: 1 };
        let filled = || {
            let mut in_flight = InFlight::default();
            for id in 2..6 {
                in_flight.push(id, 10, start);
            }
            in_flight
        };
        let mut in_flight = filled();
        assert_eq!(in_flight.acked(&ack(2), later), Some((Duration::from_millis(3), 0)));
        assert_eq!(in_flight.acked(&ack(2), later), None);
        assert_eq!(in_flight.acked(&ack(4), later), Some((Duration::from_millis(3), 10)));
        assert_eq!((in_flight.refused(3), in_flight.refused(5)), (0, 10));
        assert!(in_flight.is_empty());
        assert_eq!(filled().lost(), 40);
        let mut in_flight = filled();
        in_flight.push(6, 1, later);
        assert_eq!(in_flight.expire(later), 0);
        assert_eq!(in_flight.expire(start + ACK_TIMEOUT), 40);
        assert_eq!(in_flight.deadline(), Some(later + ACK_TIMEOUT));
    }
}
