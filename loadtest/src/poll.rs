//! Waits for sockets: epoll, level-triggered, so that one read per turn is enough and every connection gets its turn.
//! Timeouts have the resolution of the system's timers (`epoll_pwait2`, Linux 5.11), which a schedule of 10,000 messages a
//! second needs: whole milliseconds, as most runtimes' timers have, would send ten at a time.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// Sockets per turn. More wait for the next one.
const EVENTS_MAX: usize = 512;

/// How much later than asked the kernel may wake a thread; its default is 50 us.
const TIMER_SLACK_NS: u64 = 1_000;

/// A set of sockets, each with a token.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
    /// Events of the last wait.
    ready: usize,
}

impl Poll {
    /// An empty set, for the calling thread.
    pub(crate) fn new() -> io::Result<Self> {
        // Best effort: with the default slack the schedule is only less even.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        let none = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: vec![none; EVENTS_MAX], ready: 0 })
    }

    /// Watches the socket for something to read.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token as u64), EventFlags::IN)?)
    }

    /// Stops watching.
    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits until a socket can be read, at most `timeout`: how many can, their [`token`](Self::token)s from 0 on.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        self.ready = match epoll::wait(&self.epoll, self.events.as_mut_slice(), Some(&timeout)) {
            Err(Errno::INTR) => 0,
            other => other?,
        };
        Ok(self.ready)
    }

    /// The token of a socket that the last wait found.
    pub(crate) fn token(&self, index: usize) -> usize {
        debug_assert!(index < self.ready, "{index} of {} sockets", self.ready);
        // Copied first: the kernel's event is packed, and cannot be borrowed from.
        let data = self.events[index].data;
        usize::try_from(data.u64()).unwrap_or(usize::MAX)
    }
}
