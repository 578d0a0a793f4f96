//! Widens the flush windows of a worker that is short of time, and narrows them again: fewer and larger frames cost less, so
//! latency grows by a bounded amount and not without end. Pure.
//!
//! The measure is how long what was sealed waits for its turn to be written, at the worst, while its socket would take it: the
//! time of a round through all who have output. A round that takes more than half of a window leaves too little for
//! everything else, so a window is at least two rounds long.

use std::time::{Duration, Instant};

use crate::config::BatchLimits;

/// Windows are widened in steps of this part of themselves: the lengths in use at a time stay few.
pub const STEPS: u32 = 8;

/// What a single observation weighs: a hiccup of the machine is not overload, and eight windows tell.
const WEIGHT: u32 = 8;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Widening {
    window: Duration,
    widening: u32,
    widening_max: u32,
    /// The longest wait since `since`, and what such waits have been lately.
    worst: Duration,
    lately: Duration,
    since: Option<Instant>,
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
            worst: Duration::ZERO,
            lately: Duration::ZERO,
            since: None,
        }
    }

    /// By how many parts of [`STEPS`] windows are multiplied; [`STEPS`] is not widened.
    #[must_use]
    pub const fn widening(&self) -> u32 {
        self.widening
    }

    /// Something was sealed, or was written, `waited` after it could have been.
    pub fn observe(&mut self, waited: Duration, now: Instant) {
        // What would widen beyond the limit would only delay the way back.
        self.worst = self.worst.max(waited.min(self.window * self.widening_max / STEPS / 2));
        self.adapt(now);
    }

    /// To be called now and then, also when there is nothing to observe.
    pub fn adapt(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        // The effect of a change shows only after a window.
        if now.saturating_duration_since(since) < self.window * self.widening / STEPS {
            return;
        }
        self.since = Some(now);
        self.lately = (self.lately * (WEIGHT - 1) + std::mem::take(&mut self.worst)) / WEIGHT;
        let parts = (2 * self.lately * STEPS).as_micros().div_ceil(self.window.as_micros());
        self.widening = u32::try_from(parts).unwrap_or(u32::MAX).clamp(STEPS, self.widening_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(10);

    /// The widening after each of so many windows in which the longest wait was `waited`.
    fn run(widening: &mut Widening, now: &mut Instant, waited: Duration, windows: u32) -> Vec<u32> {
        let one = |_| {
            widening.observe(waited / 2, *now);
            widening.observe(waited, *now);
            *now += WINDOW * widening.widening().div_ceil(STEPS);
            widening.adapt(*now);
            widening.widening()
        };
        (0..windows).map(one).collect()
    }

    #[test]
    fn a_window_becomes_two_rounds_long_and_narrows_again() {
        let limits = BatchLimits { window: WINDOW, window_max: 10 * WINDOW, ..BatchLimits::default() };
        // (how long a round takes, the widening that follows)
        let rows = [(0, 8), (4_900, 8), (5_000, 8), (7_500, 12), (9_900, 16), (30_000, 48), (400_000, 80)];
        for (round_us, expected) in rows {
            let (mut widening, mut now) = (Widening::new(&limits), Instant::now());
            let steps = run(&mut widening, &mut now, Duration::from_micros(round_us), 100);
            assert_eq!(steps.last(), Some(&expected), "{round_us}");
            assert!(steps.is_sorted(), "{steps:?}");
            let steps = run(&mut widening, &mut now, Duration::ZERO, 60);
            assert_eq!(steps.last(), Some(&STEPS), "{steps:?}");
            assert!(steps.is_sorted_by(|a, b| a >= b), "{steps:?}");
        }
    }

    #[test]
    fn a_hiccup_is_not_overload() {
        let limits = BatchLimits { window: WINDOW, window_max: 10 * WINDOW, ..BatchLimits::default() };
        let (mut widening, mut now) = (Widening::new(&limits), Instant::now());
        assert_eq!(run(&mut widening, &mut now, 4 * WINDOW, 1), [STEPS]);
        assert_eq!(run(&mut widening, &mut now, WINDOW / 10, 50), [STEPS; 50]);
    }
}
