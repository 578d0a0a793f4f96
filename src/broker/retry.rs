//! When to connect again: exponential backoff with full jitter. Pure: the caller gives the random number and does the waiting.

use std::time::Duration;

/// Ceiling of the first delay: a broker that restarts is not asked by all its nodes at once, and a blink stays one.
const BASE: Duration = Duration::from_millis(200);

/// Ceiling of every delay: how long a broker that is back may be without its nodes.
const CAP: Duration = Duration::from_secs(5);

/// A connection that lasted this long was a working one. Shorter ones count as failures.
const LIVED: Duration = Duration::from_secs(5);

/// How many attempts have failed in a row.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
}

impl Retry {
    /// How long to wait after a connection that lasted `lifetime`: from half of `min(CAP, BASE * 2^n)` to all of it, by
    /// `random`, which is from 0 to 1. Half of it at least, so that a password that is refused makes no storm.
    pub(super) fn delay(&mut self, lifetime: Duration, random: f64) -> Duration {
        if lifetime >= LIVED {
            self.failures = 0;
        }
        let ceiling = BASE.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_only_a_connection_that_lived_resets() {
        let mut retry = Retry::default();
        let delays: Vec<_> = (0..7).map(|_| retry.delay(Duration::ZERO, 1.0).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(retry.delay(LIVED - Duration::from_millis(1), 0.0), CAP / 2);
        assert_eq!(retry.delay(LIVED, 0.0), BASE / 2);
        retry.failures = u32::MAX;
        assert_eq!(retry.delay(Duration::ZERO, 1.0), CAP);
    }
}
