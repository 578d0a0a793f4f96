//! When to connect again: exponential backoff with full jitter, bounded by what the server asked for. Pure: the caller
//! gives the random number and does the waiting.

use std::time::Duration;

use crate::close::Retry;

/// Ceiling of the first delay.
pub const BASE: Duration = Duration::from_millis(250);

/// Ceiling of every delay.
pub const CAP: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a working one: the next failure starts from [`BASE`] again. Shorter ones count
/// as failures, or a server that accepts and closes at once would be asked several times a second.
pub const LIVED: Duration = Duration::from_secs(5);

/// The state of the backoff: how many attempts have failed in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconnect {
    failures: u32,
}

impl Reconnect {
    /// Nothing has failed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { failures: 0 }
    }

    /// Number of the attempt that the last delay leads to: 1 for the first one after a connection that lived.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.failures
    }

    /// A connection ended after `lifetime`. Call it before [`Reconnect::delay`].
    pub fn ended(&mut self, lifetime: Duration) {
        if lifetime >= LIVED {
            self.failures = 0;
        }
    }

    /// How long to wait before the next attempt: a random part of `min(CAP, BASE * 2^n)`, so that the clients of a server
    /// that restarts do not come back together; [`Retry::After`] is added to it. `None`: do not try again.
    ///
    /// `random` is from 0 up to 1.
    pub fn delay(&mut self, retry: Retry, random: f64) -> Option<Duration> {
        let at_least = match retry {
            Retry::Never => return None,
            Retry::Backoff => Duration::ZERO,
            Retry::After(at_least) => at_least,
        };
        let ceiling = 1_u32
            .checked_shl(self.failures)
            .and_then(|factor| BASE.checked_mul(factor))
            .map_or(CAP, |ceiling| ceiling.min(CAP));
        self.failures = self.failures.saturating_add(1);
        Some(at_least.saturating_add(ceiling.mul_f64(random.clamp(0.0, 1.0))))
    }
}

/// The stricter of a close code's advice and the time that a `goodbye` named.
#[must_use]
pub fn stricter(advice: Retry, goodbye: Option<Duration>) -> Retry {
    match (advice, goodbye) {
        (Retry::Never, _) => Retry::Never,
        (advice, None) => advice,
        (Retry::Backoff, Some(asked)) => Retry::After(asked),
        (Retry::After(advised), Some(asked)) => Retry::After(advised.max(asked)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let mut policy = Reconnect::new();
        let expected = [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
        for (attempt, ceiling) in (1..).zip(expected) {
            assert_eq!(policy.delay(Retry::Backoff, 1.0), Some(ms(ceiling)));
            assert_eq!(policy.attempt(), attempt);
        }
    }

    #[test]
    fn advice_is_honoured() {
        let rows = [
            (Retry::Never, 0.5, None),
            (Retry::Backoff, 0.0, Some(ms(0))),
            (Retry::Backoff, 0.5, Some(ms(125))),
            (Retry::After(ms(5_000)), 0.0, Some(ms(5_000))),
            (Retry::After(ms(5_000)), 0.5, Some(ms(5_125))),
            (Retry::After(Duration::MAX), 1.0, Some(Duration::MAX)),
        ];
        for (retry, random, expected) in rows {
            assert_eq!(Reconnect::new().delay(retry, random), expected, "{retry:?} {random}");
        }
    }

    #[test]
    fn only_a_connection_that_lived_resets() {
        let mut policy = Reconnect::new();
        for _ in 0..4 {
            let _ = policy.delay(Retry::Backoff, 1.0);
            policy.ended(LIVED - ms(1));
        }
        assert_eq!(policy.attempt(), 4);
        policy.ended(LIVED);
        assert_eq!(policy.delay(Retry::Backoff, 1.0), Some(BASE));
        assert_eq!(policy.attempt(), 1);
    }

    #[test]
    fn the_stricter_advice_wins() {
        let rows = [
            (Retry::Backoff, None, Retry::Backoff),
            (Retry::Backoff, Some(ms(7)), Retry::After(ms(7))),
            (Retry::After(ms(5)), None, Retry::After(ms(5))),
            (Retry::After(ms(5)), Some(ms(7)), Retry::After(ms(7))),
            (Retry::After(ms(9)), Some(ms(7)), Retry::After(ms(9))),
            (Retry::Never, Some(ms(7)), Retry::Never),
        ];
        for (advice, goodbye, expected) in rows {
            assert_eq!(stricter(advice, goodbye), expected, "{advice:?} {goodbye:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(failures in any::<u32>(), after_ms in 0_u64..100_000, random in 0.0..1.0_f64) {
            let mut policy = Reconnect { failures };
            let delay = policy.delay(Retry::After(ms(after_ms)), random).unwrap();
            prop_assert!(delay >= ms(after_ms));
            prop_assert!(delay <= ms(after_ms) + CAP);
            let mut policy = Reconnect { failures };
            prop_assert!(policy.delay(Retry::Backoff, random).unwrap() <= CAP);
        }
    }
}
