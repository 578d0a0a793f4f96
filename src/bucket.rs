//! A token bucket: so many a second. It is filled only when it runs low, so that most calls do no arithmetic on time; after
//! a pause it may give two seconds' worth at once. Pure.

use std::time::{Duration, Instant};

/// See the module's page.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens a second; 0 is no limit.
    rate: u64,
    tokens: u64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket of so many tokens a second; 0 is no limit.
    #[must_use]
    pub const fn new(rate: u64, now: Instant) -> Self {
        Self { rate, tokens: rate, filled_at: now }
    }

    /// Whether there are that many tokens. One that asks for more than a second's worth gets it from a full bucket.
    pub fn has(&mut self, tokens: u64, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        if self.tokens < tokens.min(self.rate) {
            self.fill(now);
        }
        self.tokens >= tokens.min(self.rate)
    }

    /// Takes that many tokens, or all that there are.
    pub const fn take(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        if passed >= Duration::from_secs(1) {
            self.tokens = self.rate;
            self.filled_at = now;
            return;
        }
        let earned = passed.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(self.rate);
            // The part of a token that the rest of the time has earned is not lost.
            let worth = u128::from(earned) * 1_000_000_000 / u128::from(self.rate);
            self.filled_at += Duration::from_nanos(u64::try_from(worth).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_its_rate_over_time_and_a_bounded_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        for _ in 0..10 {
            assert!(bucket.has(1, start));
            bucket.take(1);
        }
        assert!(!bucket.has(1, start));
        let later = start + Duration::from_millis(250);
        assert!(bucket.has(2, later));
        assert!(!bucket.has(3, later));
        assert!(bucket.has(10, start + Duration::from_secs(60)), "after a pause");
        assert!(bucket.has(1_000, start + Duration::from_secs(61)), "a large one takes the full bucket");
        bucket.take(1_000);
        assert!(bucket.has(10, start + Duration::from_secs(61)), "what the pause has earned");
        bucket.take(10);
        assert!(!bucket.has(1, start + Duration::from_secs(61)));
    }

    #[test]
    fn parts_of_a_token_add_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        bucket.take(10);
        let mut given = 0;
        for turn in 1..=20 {
            while bucket.has(1, start + Duration::from_millis(150) * turn) {
                bucket.take(1);
                given += 1;
            }
        }
        assert_eq!(given, 30, "3 seconds' worth");
    }

    #[test]
    fn zero_is_no_limit() {
        let start = Instant::now();
        let mut bucket = Bucket::new(0, start);
        bucket.take(1_000_000);
        assert!(bucket.has(u64::MAX, start));
    }
}
