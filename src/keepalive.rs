//! Whether a peer is still there, and when the server speaks into the silence: pings, heartbeats and every timeout of an open
//! connection. Pure; asked about ten times a second by the worker's one ticker, so that a connection needs no timer.

use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::config::Config;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a WebSocket ping.
    Ping,
    /// Send a `heartbeat`.
    Heartbeat,
    /// End the connection.
    Close(CloseReason),
}

/// See the module's page.
#[derive(Debug)]
pub struct Keepalive {
    ping_at: Instant,
    pong_due: Option<Instant>,
    message_since: Option<Instant>,
    blocked_since: Option<Instant>,
    idle_since: Instant,
    heartbeat_at: Instant,
    /// The server does not read the peer at the moment.
    not_reading: bool,
}

impl Keepalive {
    /// A connection that begins now. `phase` (0 to 1) spreads the pings of connections that began together over the second
    /// half of the first interval: a short connection is not pinged at all.
    #[must_use]
    pub fn new(config: &Config, now: Instant, phase: f64) -> Self {
        Self {
            ping_at: now + config.server.ping_interval.mul_f64(0.5 + phase.clamp(0.0, 1.0) / 2.0),
            pong_due: None,
            message_since: None,
            blocked_since: None,
            idle_since: now,
            heartbeat_at: now + config.outbox.heartbeat_interval,
            not_reading: false,
        }
    }

    /// The server has stopped reading the peer, because something has to be waited for: its silence says nothing now.
    pub const fn pause_reading(&mut self) {
        self.not_reading = true;
    }

    /// The server reads again. What the peer was waited for may lie in the socket.
    pub fn resume_reading(&mut self, config: &Config, now: Instant) {
        self.not_reading = false;
        self.pong_due = self.pong_due.map(|_| now + config.server.pong_timeout);
        self.message_since = self.message_since.map(|_| now);
    }

    /// Bytes came from the peer: it lives. `mid_message` tells whether they end inside a message.
    pub fn note_read(&mut self, mid_message: bool, now: Instant) {
        self.pong_due = None;
        self.message_since = mid_message.then(|| self.message_since.unwrap_or(now));
    }

    /// A whole message came: what follows it is another one.
    pub const fn note_message(&mut self) {
        self.message_since = None;
    }

    /// The kernel took bytes.
    pub const fn note_written(&mut self) {
        self.blocked_since = None;
    }

    /// The kernel took data frames: no heartbeat is needed for a while.
    pub fn note_data(&mut self, config: &Config, now: Instant) {
        self.heartbeat_at = now + config.outbox.heartbeat_interval;
    }

    /// The kernel takes nothing at the moment.
    pub fn note_blocked(&mut self, now: Instant) {
        self.blocked_since.get_or_insert(now);
    }

    /// The next thing that is due, if any; ask again until there is none. `idle` tells whether the connection neither
    /// receives nor publishes anything.
    pub fn poll(&mut self, config: &Config, idle: bool, now: Instant) -> Option<Due> {
        let over = |since: Option<Instant>, limit: Duration| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
        };
        if !idle {
            self.idle_since = now;
        }
        let idle_timeout = config.server.idle_timeout;
        if self.pong_due.is_some_and(|due| due <= now && !self.not_reading)
            || (!idle_timeout.is_zero() && over(Some(self.idle_since), idle_timeout))
        {
            return Some(Due::Close(CloseReason::Silent));
        }
        if over(self.message_since, config.inbound.message_timeout) && !self.not_reading {
            return Some(Due::Close(CloseReason::Abuse));
        }
        if over(self.blocked_since, config.outbox.write_deadline) {
            return Some(Due::Close(CloseReason::SlowConsumer));
        }
        if self.ping_at <= now {
            self.ping_at = now + config.server.ping_interval;
            self.pong_due.get_or_insert(now + config.server.pong_timeout);
            return Some(Due::Ping);
        }
        // A peer that reads nothing at the moment is not helped by one more message.
        if self.heartbeat_at <= now && self.blocked_since.is_none() {
            self.heartbeat_at = now + config.outbox.heartbeat_interval;
            return (!idle).then_some(Due::Heartbeat);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polled(keepalive: &mut Keepalive, idle: bool, now: Instant) -> Vec<Due> {
        let config = Config::default();
        let mut due = Vec::new();
        while let Some(next) = keepalive.poll(&config, idle, now) {
            due.push(next);
            if matches!(next, Due::Close(_)) {
                break;
            }
        }
        due
    }

    #[test]
    fn who_is_not_read_is_not_called_silent() {
        let (config, start) = (Config::default(), Instant::now());
        let mut keepalive = Keepalive::new(&config, start, 1.0);
        let ping = start + config.server.ping_interval;
        keepalive.note_read(true, ping);
        assert!(polled(&mut keepalive, false, ping).contains(&Due::Ping));
        keepalive.pause_reading();
        let resumed = ping + 2 * config.server.pong_timeout.max(config.inbound.message_timeout);
        let closes = |due: &[Due]| due.iter().any(|due| matches!(due, Due::Close(_)));
        assert!(!closes(&polled(&mut keepalive, false, resumed)));
        keepalive.resume_reading(&config, resumed);
        let timeout = config.server.pong_timeout.min(config.inbound.message_timeout);
        assert!(!closes(&polled(&mut keepalive, false, resumed + timeout - Duration::from_millis(1))));
        assert!(closes(&polled(&mut keepalive, false, resumed + timeout)));
    }

    #[test]
    fn a_ghost_is_gone_within_ping_interval_and_pong_timeout() {
        let (config, start) = (Config::default(), Instant::now());
        let mut keepalive = Keepalive::new(&config, start, 1.0);
        let ping = start + config.server.ping_interval;
        assert!(!polled(&mut keepalive, false, ping - Duration::from_millis(1)).contains(&Due::Ping));
        assert!(polled(&mut keepalive, false, ping).contains(&Due::Ping));
        let end = ping + config.server.pong_timeout;
        assert_eq!(polled(&mut keepalive, false, end), [Due::Close(CloseReason::Silent)]);
    }

    #[test]
    fn any_byte_is_a_sign_of_life() {
        let (config, start) = (Config::default(), Instant::now());
        let mut keepalive = Keepalive::new(&config, start, 0.0);
        let first = start + config.server.ping_interval / 2;
        let early = first - Duration::from_millis(1);
        assert!(!polled(&mut keepalive, false, early).contains(&Due::Ping));
        assert!(polled(&mut keepalive, false, first).contains(&Due::Ping));
        keepalive.note_read(false, first);
        let later = first + config.server.pong_timeout;
        assert!(!polled(&mut keepalive, false, later).contains(&Due::Close(CloseReason::Silent)));
    }

    #[test]
    fn each_timeout_has_its_reason() {
        let (config, start) = (Config::default(), Instant::now());
        let new = || Keepalive::new(&config, start, 1.0);

        let mut idle = new();
        let mut now = start;
        while now < start + config.server.idle_timeout {
            assert!(!polled(&mut idle, true, now).iter().any(|due| matches!(due, Due::Close(_))));
            idle.note_read(false, now);
            now += Duration::from_secs(1);
        }
        assert_eq!(polled(&mut idle, true, now), [Due::Close(CloseReason::Silent)]);

        let mut dribble = new();
        dribble.note_read(true, start);
        let half = config.inbound.message_timeout / 2;
        dribble.note_read(true, start + half);
        assert_eq!(polled(&mut dribble, false, start + half), []);
        assert_eq!(polled(&mut dribble, false, start + half * 2), [Due::Close(CloseReason::Abuse)]);

        let mut stalled = new();
        stalled.note_blocked(start);
        stalled.note_blocked(start + Duration::from_secs(1));
        let deadline = start + config.outbox.write_deadline;
        assert_eq!(polled(&mut stalled, false, deadline), [Due::Close(CloseReason::SlowConsumer)]);
        stalled.note_written();
        assert!(!polled(&mut stalled, false, deadline).iter().any(|due| matches!(due, Due::Close(_))));
    }

    #[test]
    fn heartbeats_come_in_silence_only() {
        let (config, start) = (Config::default(), Instant::now());
        let mut keepalive = Keepalive::new(&config, start, 1.0);
        let interval = config.outbox.heartbeat_interval;
        keepalive.note_data(&config, start + interval / 2);
        assert_eq!(polled(&mut keepalive, false, start + interval), []);
        assert_eq!(polled(&mut keepalive, false, start + interval / 2 + interval), [Due::Heartbeat]);
        assert_eq!(polled(&mut keepalive, false, start + interval * 2), []);
    }
}
