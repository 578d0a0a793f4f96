//! The one place where the core's time comes from. Everything below the loops takes [`Now`] as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One instant on both clocks: the monotonic one for deadlines and ages, the wall clock for stamps on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Nanoseconds since the Unix epoch.
    pub wall_ns: u64,
}

impl Now {
    /// The same instant, later: virtual time for tests.
    #[must_use]
    pub fn plus(self, delay: Duration) -> Self {
        Self { at: self.at + delay, wall_ns: self.wall_ns + nanos(delay) }
    }
}

/// A clock that costs one read: the wall time is the monotonic time plus an offset, taken anew by [`Clock::resync`], so
/// a step of the system's clock reaches the stamps within one resync and never reaches a deadline.
#[derive(Clone, Debug)]
pub struct Clock {
    anchor: Instant,
    anchor_wall_ns: u64,
}

impl Clock {
    /// A clock that agrees with the system's now.
    #[must_use]
    pub fn new() -> Self {
        Self { anchor: Instant::now(), anchor_wall_ns: system_wall_ns() }
    }

    /// Reads the clock.
    #[must_use]
    pub fn now(&self) -> Now {
        self.at(Instant::now())
    }

    /// The wall time that belongs to a monotonic instant.
    #[must_use]
    pub fn at(&self, at: Instant) -> Now {
        let since = at.saturating_duration_since(self.anchor);
        Now { at, wall_ns: self.anchor_wall_ns.saturating_add(nanos(since)) }
    }

    /// Follows the system's wall clock again; call it about once a second.
    pub fn resync(&mut self) {
        *self = Self::new();
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// A duration in nanoseconds, saturating: 584 years fit.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn system_wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos)
}
