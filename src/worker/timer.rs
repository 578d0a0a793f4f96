//! The worker's timer for flush deadlines. Tokio's timers count in milliseconds and round up, which would add up to a tenth to
//! a flush window of ten; the kernel's timer descriptor is exact to some microseconds.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sleeps until an instant that can be changed at will.
#[derive(Debug)]
pub struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

impl Timer {
    /// A timer of the runtime that this is called in.
    ///
    /// # Errors
    /// The system gives none.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for descriptors that may change hands; an OwnedFd does not"
        )]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { descriptor })
    }

    /// Sets the timer; what it was set to before is forgotten.
    ///
    /// # Errors
    /// The system's.
    pub fn set(&self, at: Instant, now: Instant) -> io::Result<()> {
        // Zero would switch it off.
        let wait = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Waits until the instant that it was set to has come.
    ///
    /// # Errors
    /// The system's.
    pub async fn expired(&self) -> io::Result<()> {
        poll_fn(|cx| {
            loop {
                let mut ready = ready!(self.descriptor.poll_read_ready(cx))?;
                let mut expirations = [0; 8];
                match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut expirations)?)) {
                    Ok(read) => return Poll::Ready(read.map(drop)),
                    // It was set anew since it was last ready.
                    Err(_would_block) => {}
                }
            }
        })
        .await
    }
}
