//! The schedule of an open loop: when each message is due, from the rate and the start alone. Pure: it never reads a
//! clock and never learns how late its messages went out, so a slow server cannot thin out the load.

use std::num::NonZeroU64;

const NANOS_PER_S: u64 = 1_000_000_000;

/// Shortest sleep between two wake-ups. At rates whose period is shorter, the messages that fell due meanwhile go out
/// together, each late by at most this much; waking for each of them would cost a core.
pub(crate) const QUANTUM_NS: u64 = 100_000;

/// Instants at a fixed rate, from a start to an end.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    start_ns: u64,
    end_ns: u64,
    per_s: NonZeroU64,
    /// What falls due within this time is due at its start; 0 for an even schedule.
    burst_ns: u64,
    /// Index of the next message. Instants are computed from it, never added up, so no rounding error accumulates.
    next: u64,
}

impl Pacer {
    /// `per_s` messages a second, the first at `start_ns`, none at or after `end_ns`.
    pub(crate) fn new(start_ns: u64, end_ns: u64, per_s: NonZeroU64) -> Self {
        Self { start_ns, end_ns, per_s, burst_ns: 0, next: 0 }
    }

    /// The same number of messages, but those of each `burst_ns` at once, at its start.
    pub(crate) fn in_bursts(self, burst_ns: u64) -> Self {
        Self { burst_ns, ..self }
    }

    /// When the next message is due; `None` after the last.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let due = self.due(self.next);
        let into_burst = due.saturating_sub(self.start_ns).checked_rem(self.burst_ns).unwrap_or(0);
        (due < self.end_ns).then_some(due - into_burst)
    }

    /// Takes the next message if it is due: its scheduled instant.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_due().filter(|&due| due <= now_ns)?;
        self.next += 1;
        Some(due)
    }

    /// When to wake up after a turn at `now_ns`: at the next message, but not before [`QUANTUM_NS`] has passed where the
    /// period is shorter than that. `None` after the last message.
    pub(crate) fn wake_at(&self, now_ns: u64) -> Option<u64> {
        let due = self.next_due()?;
        let dense = self.burst_ns == 0 && NANOS_PER_S / self.per_s < QUANTUM_NS;
        Some(if dense { due.max(now_ns.saturating_add(QUANTUM_NS)) } else { due })
    }

    fn due(&self, index: u64) -> u64 {
        let offset = u128::from(index) * u128::from(NANOS_PER_S) / u128::from(self.per_s.get());
        self.start_ns.saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    }
}

/// Rates that follow one another.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// In order of time.
    pacers: Vec<Pacer>,
    current: usize,
}

impl Schedule {
    /// Each pacer begins where the one before ends.
    pub(crate) fn new(pacers: Vec<Pacer>) -> Self {
        Self { pacers, current: 0 }
    }

    /// Takes the next message if it is due: its scheduled instant.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<u64> {
        loop {
            let pacer = self.pacers.get_mut(self.current)?;
            if pacer.next_due().is_some() {
                return pacer.pop_due(now_ns);
            }
            self.current += 1;
        }
    }

    /// When to wake up after a turn at `now_ns`. `None` after the last message.
    pub(crate) fn wake_at(&self, now_ns: u64) -> Option<u64> {
        self.pacers.get(self.current..)?.iter().find_map(|pacer| pacer.wake_at(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pacer(start_ns: u64, end_ns: u64, per_s: u64) -> Pacer {
        Pacer::new(start_ns, end_ns, NonZeroU64::new(per_s).unwrap())
    }

    #[test]
    fn instants_follow_from_the_rate() {
        let cases = [
            (1, vec![0, 1_000_000_000, 2_000_000_000]),
            (3, vec![0, 333_333_333, 666_666_666, 1_000_000_000]),
            (1_000_000_000, vec![0, 1, 2, 3]),
        ];
        for (per_s, expected) in cases {
            let mut pacer = pacer(1_000, u64::MAX, per_s);
            let got: Vec<u64> =
                expected.iter().map(|_| pacer.pop_due(u64::MAX - 1).unwrap() - 1_000).collect();
            assert_eq!(got, expected, "{per_s} per second");
        }
    }

    #[test]
    fn nothing_is_due_early_or_after_the_end() {
        let mut pacer = pacer(100, 100 + 2 * NANOS_PER_S, 1);
        assert_eq!(pacer.pop_due(99), None);
        assert_eq!(pacer.pop_due(100), Some(100));
        assert_eq!(pacer.pop_due(100), None);
        assert_eq!(pacer.wake_at(100), Some(100 + NANOS_PER_S));
        assert_eq!(pacer.pop_due(u64::MAX), Some(100 + NANOS_PER_S));
        assert_eq!(pacer.pop_due(u64::MAX), None, "the end is exclusive");
        assert_eq!(pacer.wake_at(u64::MAX), None);
    }

    #[test]
    fn bursts_are_due_together() {
        let mut bursts = pacer(100, 100 + NANOS_PER_S, 10).in_bursts(300_000_000);
        let got: Vec<u64> = std::iter::from_fn(|| bursts.pop_due(u64::MAX)).map(|due| due - 100).collect();
        let ms = |burst: u64| burst * 1_000_000;
        assert_eq!(got, [0, 0, 0, 300, 300, 300, 600, 600, 600, 900].map(ms));
        let dense = pacer(0, u64::MAX, 1_000_000).in_bursts(1_000_000);
        assert_eq!(dense.wake_at(5), Some(0), "bursts do not wait for a quantum");
    }

    #[test]
    fn rates_follow_one_another() {
        let mut schedule =
            Schedule::new(vec![pacer(0, NANOS_PER_S, 2), pacer(NANOS_PER_S, 2 * NANOS_PER_S, 4)]);
        assert_eq!(schedule.pop_due(0), Some(0));
        assert_eq!((schedule.pop_due(1), schedule.wake_at(1)), (None, Some(NANOS_PER_S / 2)));
        let rest: Vec<u64> = std::iter::from_fn(|| schedule.pop_due(u64::MAX)).collect();
        assert_eq!(rest, [500, 1_000, 1_250, 1_500, 1_750].map(|ms| ms * 1_000_000));
        assert_eq!(schedule.wake_at(0), None);
    }

    #[test]
    fn a_dense_schedule_wakes_once_per_quantum() {
        let mut dense = pacer(0, u64::MAX, 1_000_000);
        while dense.pop_due(5_000).is_some() {}
        assert_eq!(dense.next_due(), Some(6_000));
        assert_eq!(dense.wake_at(5_000), Some(5_000 + QUANTUM_NS));
        let sparse = pacer(0, u64::MAX, 1_000);
        assert_eq!(sparse.wake_at(5_000), Some(0), "a late message is due at once");
    }

    proptest! {
        /// However the turns fall, the same messages come out, in order, none before its instant.
        #[test]
        fn turns_do_not_change_the_schedule(per_s in 1u64..2_000_000, steps in prop::collection::vec(1u64..50_000_000, 1..40)) {
            let end_ns = 300_000_000;
            let mut all = pacer(7, end_ns, per_s);
            let expected = std::iter::from_fn(|| all.pop_due(u64::MAX)).count();
            let mut paced = pacer(7, end_ns, per_s);
            let (mut now, mut last, mut count) = (0, 0, 0);
            for step in steps.into_iter().chain([end_ns]) {
                now += step;
                while let Some(due) = paced.pop_due(now) {
                    prop_assert!(due <= now && due >= last && due < end_ns);
                    last = due;
                    count += 1;
                }
            }
            prop_assert_eq!(count, expected);
        }
    }
}
