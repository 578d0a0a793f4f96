//! Widens the flush windows of a worker that does not keep up, and narrows them again: fewer and larger frames cost less,
//! so latency grows by a bounded amount and not without end. Pure.

use std::time::{Duration, Instant};

use crate::config::BatchLimits;

/// How long flushes have to be on time before the windows narrow by one step.
const CALM: Duration = Duration::from_secs(1);

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Widening {
    factor: u32,
    factor_max: u32,
    window: Duration,
    changed_at: Option<Instant>,
    late_at: Option<Instant>,
}

impl Widening {
    /// Not widened.
    #[must_use]
    pub fn new(limits: &BatchLimits) -> Self {
        let window = limits.window.max(Duration::from_millis(1));
        let factor_max = limits.window_max.as_micros() / window.as_micros();
        Self {
            factor: 1,
            factor_max: u32::try_from(factor_max.max(1)).unwrap_or(1),
            window,
            changed_at: None,
            late_at: None,
        }
    }

    /// By how much windows are multiplied; 1 is not widened.
    #[must_use]
    pub const fn factor(&self) -> u32 {
        self.factor
    }

    /// A batch was sealed `late` after its deadline. Later than a window means that the worker has fallen behind.
    pub fn observe(&mut self, late: Duration, now: Instant) {
        if late <= self.window {
            return;
        }
        self.late_at = Some(now);
        // One step for each window at the present width: the effect of a step shows only after that.
        let settled =
            self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= self.window * self.factor);
        if settled && self.factor < self.factor_max {
            self.factor = (self.factor * 2).min(self.factor_max);
            self.changed_at = Some(now);
        }
    }

    /// Narrows by one step after a time without lateness.
    pub fn relax(&mut self, now: Instant) {
        let calm = |since: Option<Instant>| since.is_none_or(|at| now.saturating_duration_since(at) >= CALM);
        if self.factor > 1 && calm(self.late_at) && calm(self.changed_at) {
            self.factor /= 2;
            self.changed_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_widen_under_overload_to_a_limit_and_narrow_again() {
        let limits = BatchLimits::default();
        let mut widening = Widening::new(&limits);
        let start = Instant::now();
        let mut now = start;
        widening.observe(limits.window, now);
        assert_eq!(widening.factor(), 1, "lateness within a window is not overload");
        let mut factors = Vec::new();
        for _ in 0..6 {
            widening.observe(limits.window * 3, now);
            widening.observe(limits.window * 3, now);
            factors.push(widening.factor());
            now += limits.window_max;
        }
        assert_eq!(factors, [2, 4, 8, 10, 10, 10], "one step at a time, to the limit");
        widening.relax(now);
        assert_eq!(widening.factor(), 10, "not calm for long enough");
        let mut factors = Vec::new();
        for _ in 0..4 {
            now += CALM;
            widening.relax(now);
            widening.relax(now);
            factors.push(widening.factor());
        }
        assert_eq!(factors, [5, 2, 1, 1]);
    }
}
