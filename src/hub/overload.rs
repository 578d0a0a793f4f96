//! Widens the flush windows of a worker that is short of time, and narrows them again: fewer and larger frames cost less, so
//! latency grows by a bounded amount and not without end. Pure.
//!
//! The measure is how long what was sealed waits for its turn to be written while its socket would take it. In a round
//! through all who have output, waits lie evenly between nothing and the time of the round, so their mean is half of it. A
//! window is at least a round long, two such means: then the worker is not full, and publishers are read in time. A longer
//! one would save more time and cost as much latency (docs/PERFORMANCE.md).

use std::time::{Duration, Instant};

use crate::config::BatchLimits;

/// Windows are widened in steps of this part of themselves: the lengths in use at a time stay few.
pub const STEPS: u32 = 8;

/// What a mean is taken over, at the least: about ten windows. A little less than the time between two calls of
/// [`Widening::adapt`], which come early and late.
const INTERVAL: Duration = Duration::from_millis(90);

/// Intervals of which the calmest counts: a machine that stops for a moment is not short of time, and it does so for less
/// than this.
const INTERVALS: usize = 3;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Widening {
    window: Duration,
    widening: u32,
    widening_max: u32,
    /// Sum and number of the waits since `since`.
    waited: Duration,
    waits: u32,
    since: Option<Instant>,
    /// The mean waits of the last intervals.
    means: [Duration; INTERVALS],
}

impl Widening {
    /// Not widened.
    #[must_use]
    pub fn new(limits: &BatchLimits) -> Self {
        let window = limits.window.max(Duration::from_millis(1));
        let most = limits.window_max.as_micros() * u128::from(STEPS) / window.as_micros();
        Self {
            window,
            widening: STEPS,
            widening_max: u32::try_from(most).unwrap_or(u32::MAX).max(STEPS),
            waited: Duration::ZERO,
            waits: 0,
            since: None,
            means: [Duration::ZERO; INTERVALS],
        }
    }

    /// By how many parts of [`STEPS`] windows are multiplied; [`STEPS`] is not widened.
    #[must_use]
    pub const fn widening(&self) -> u32 {
        self.widening
    }

    /// Something had its turn, `waited` after it could have been written.
    pub const fn observe(&mut self, waited: Duration) {
        self.waited = self.waited.saturating_add(waited);
        self.waits += 1;
    }

    /// Ends an interval if it is over. To be called about ten times a second, also when there was nothing to observe.
    pub fn adapt(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < INTERVAL {
            return;
        }
        self.since = Some(now);
        self.means.rotate_left(1);
        self.means[INTERVALS - 1] = self.waited / self.waits.max(1);
        (self.waited, self.waits) = (Duration::ZERO, 0);
        let calmest = self.means.iter().min().copied().unwrap_or_default();
        let parts = (2 * calmest * STEPS).as_micros().div_ceil(self.window.as_micros());
        self.widening = u32::try_from(parts).unwrap_or(u32::MAX).clamp(STEPS, self.widening_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(10);

    /// A widening that has been running for a moment.
    fn running(now: Instant) -> Widening {
        let limits = BatchLimits { window: WINDOW, window_max: 10 * WINDOW, ..BatchLimits::default() };
        let mut widening = Widening::new(&limits);
        widening.adapt(now);
        widening
    }

    /// The widening after each of so many intervals with rounds as long as this.
    fn run(widening: &mut Widening, now: &mut Instant, round: Duration, intervals: u32) -> Vec<u32> {
        let one = |_| {
            for part in 0..=10 {
                widening.observe(round * part / 10);
            }
            *now += INTERVAL;
            widening.adapt(*now);
            widening.widening()
        };
        (0..intervals).map(one).collect()
    }

    #[test]
    fn a_window_becomes_a_round_long_and_narrows_at_once() {
        // (how long a round takes, the widening that follows)
        let rows = [(0, 8), (9_900, 8), (10_000, 8), (15_000, 12), (19_900, 16), (60_000, 48), (400_000, 80)];
        for (round_us, expected) in rows {
            let mut now = Instant::now();
            let mut widening = running(now);
            let steps = run(&mut widening, &mut now, Duration::from_micros(round_us), 5);
            assert_eq!(steps, [STEPS, STEPS, expected, expected, expected], "{round_us}");
            assert_eq!(run(&mut widening, &mut now, Duration::from_millis(1), 1), [STEPS]);
        }
    }

    #[test]
    fn nothing_to_write_is_calm() {
        let mut now = Instant::now();
        let mut widening = running(now);
        run(&mut widening, &mut now, 6 * WINDOW, 3);
        assert_eq!(widening.widening(), 48);
        widening.adapt(now + INTERVAL / 2);
        assert_eq!(widening.widening(), 48, "the interval is not over");
        widening.adapt(now + INTERVAL);
        assert_eq!(widening.widening(), STEPS);
    }

    #[test]
    fn a_hiccup_is_not_overload() {
        let mut now = Instant::now();
        let mut widening = running(now);
        assert_eq!(run(&mut widening, &mut now, 20 * WINDOW, 2), [STEPS; 2]);
        assert_eq!(run(&mut widening, &mut now, WINDOW / 10, 5), [STEPS; 5]);
    }
}
