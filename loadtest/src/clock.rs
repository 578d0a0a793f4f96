//! The generator's clock: wall-clock nanoseconds that never step. Anchored once for a whole run and copied to every
//! thread, so that a stamp of one thread and an arrival of another can be subtracted.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch, advanced by the monotonic clock alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    anchor: Instant,
    anchor_ns: u64,
}

impl Clock {
    /// Agrees with the system's wall clock now; a later step of that clock does not reach this one.
    pub(crate) fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos);
        Self { anchor: Instant::now(), anchor_ns: wall }
    }

    /// Reads the clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.anchor_ns.saturating_add(nanos(self.anchor.elapsed()))
    }
}

/// A duration in nanoseconds; 584 years fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
