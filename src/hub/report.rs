//! What a worker tells about itself: metrics for the exports, lists for people.

use std::time::Duration;

use super::Hub;
use super::router::{ChannelRow, ConnectionRow, Listing, WorkerReport};
use crate::clock::Now;
use crate::metrics::{ConflationCause, DropReason, WorkerMetrics};
use crate::outbox::Totals;

impl Hub {
    pub(super) fn report(&mut self, mut metrics: Box<WorkerMetrics>) -> WorkerReport {
        let mut totals = Totals::default();
        let mut outbox_bytes = 0;
        let mut control_bytes = 0;
        let mut outbox_frames = 0;
        let mut subscriptions = 0;
        for (_, member) in &self.members {
            for code in member.handle.take_errors() {
                self.metrics.counters.errors_sent[code] += 1;
            }
            let outbox = member.handle.outbox().borrow();
            totals.add(outbox.totals());
            outbox_bytes += outbox.data_bytes();
            control_bytes += outbox.control_bytes();
            outbox_frames += outbox.data_frames();
            subscriptions += member.subscriptions.len();
        }
        metrics.as_mut().clone_from(&self.metrics);
        count_totals(&mut metrics, &totals);
        metrics.counters.history_evicted.clone_from(self.history.evicted());
        WorkerReport {
            metrics,
            history: self.history.size(),
            subscriptions,
            outbox_frames,
            outbox_bytes,
            memory_bytes: self.memory.bytes() + control_bytes,
            widening: self.widening.widening(),
        }
    }

    pub(super) fn list(&self, now: Now) -> Listing {
        let since = |at| millis(now.at.saturating_duration_since(at));
        let connections = self.members.iter().map(|(_, member)| {
            let outbox = member.handle.outbox().borrow();
            let totals = outbox.totals();
            ConnectionRow {
                connection: member.id.0,
                worker: self.worker,
                remote: member.remote.to_string(),
                user: member.standing.user().map(str::to_owned),
                protocol: member.codec.subprotocol(),
                age_ms: since(member.since.at),
                subscriptions: member.subscriptions.len(),
                advertised: member.advertised.len(),
                outbox_frames: outbox.data_frames(),
                outbox_bytes: outbox.data_bytes(),
                lag_ms: millis(outbox.oldest_age(now)),
                delivered: totals.samples_delivered,
                dropped: totals.dropped(),
                conflated: totals.conflated + totals.rate_limited,
                bytes: totals.bytes,
                channels: outbox.ledgers().collect(),
            }
        });
        let channels = self.channels.values().map(|channel| ChannelRow {
            channel: channel.info().id.0,
            name: channel.info().name.to_string(),
            epoch: channel.info().epoch,
            worker: self.worker,
            published: channel.next_seq() - 1,
            idle_ms: channel.last_published().map(since),
            receivers: channel.receivers(),
            classes: channel.classes().len(),
        });
        Listing { connections: connections.collect(), channels: channels.collect() }
    }

    /// Counts what a connection wrote after it was removed: its last words.
    pub const fn count_farewell(&mut self, before: &Totals, after: &Totals) {
        let counters = &mut self.metrics.counters;
        counters.control_messages_sent += after.control_messages - before.control_messages;
        counters.bytes_written += after.bytes - before.bytes;
    }
}

/// Adds what an outbox has done to a worker's counters.
pub(super) fn count_totals(metrics: &mut WorkerMetrics, totals: &Totals) {
    let counters = &mut metrics.counters;
    counters.frames_delivered += totals.frames_delivered;
    counters.samples_delivered += totals.samples_delivered;
    counters.samples_dropped[DropReason::Overflow] += totals.dropped_overflow;
    counters.samples_dropped[DropReason::Age] += totals.dropped_age;
    counters.samples_dropped[DropReason::Memory] += totals.dropped_memory;
    counters.samples_dropped[DropReason::Ended] += totals.dropped_other;
    counters.samples_conflated[ConflationCause::Latest] += totals.conflated;
    counters.samples_conflated[ConflationCause::Rate] += totals.rate_limited;
    counters.gaps_sent += totals.gap_notices;
    counters.control_messages_sent += totals.control_messages;
    counters.bytes_written += totals.bytes;
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
