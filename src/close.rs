//! Why a connection ends: the closed list, with the WebSocket close code, the metric label and the retry advice of each.
//! Never does I/O. `docs/PROTOCOL.md` shows this list as a table; a test keeps the two equal.

use std::time::Duration;

/// What a client should do after a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Reconnect with exponential backoff and full jitter.
    Backoff,
    /// Reconnect, but not before this long.
    After(Duration),
    /// Do not reconnect before something has been changed: the same attempt ends the same way.
    Never,
}

/// Why a connection ended. Every ending has exactly one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer sent a close frame; it gets the same code back (RFC 6455 section 5.5.1).
    PeerClosed,
    /// The socket ended or failed without a close frame. Nothing can be sent.
    PeerGone,
    /// The server is shutting down.
    Drain,
    /// The peer broke RFC 6455: mask, opcode, RSV, fragmentation, control frame or close code.
    Protocol,
    /// A kind of message that this connection does not take.
    WrongData,
    /// Text, or a close reason, that is not UTF-8.
    BadUtf8,
    /// Too many invalid messages within the interval.
    Abuse,
    /// A message over the size limit.
    TooBig,
    /// A bug in the server. Counted, and only this connection ends.
    Internal,
    /// The server is full.
    Capacity,
    /// No identity, or an expired one.
    Unauthenticated,
    /// The identity may not do this, or was revoked.
    Forbidden,
    /// No message within the idle timeout, or no pong within the pong timeout.
    Silent,
    /// The peer reads too slowly: policy `disconnect`, a full control lane, or no progress within the write deadline.
    SlowConsumer,
    /// Publishing above the rate limit for longer than the grace time.
    Rate,
}

impl CloseReason {
    /// Every reason, in the order of the table in `docs/PROTOCOL.md`.
    pub const ALL: [Self; 15] = [
        Self::PeerClosed,
        Self::PeerGone,
        Self::Drain,
        Self::Protocol,
        Self::WrongData,
        Self::BadUtf8,
        Self::Abuse,
        Self::TooBig,
        Self::Internal,
        Self::Capacity,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Silent,
        Self::SlowConsumer,
        Self::Rate,
    ];

    /// Position in [`CloseReason::ALL`], for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The code sent in the close frame (RFC 6455 section 7.4; 44xx are this protocol's own).
    /// `PeerGone` has 1006, which is never sent.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::PeerClosed => 1000,
            Self::PeerGone => 1006,
            Self::Drain => 1001,
            Self::Protocol => 1002,
            Self::WrongData => 1003,
            Self::BadUtf8 => 1007,
            Self::Abuse => 1008,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::Capacity => 1013,
            Self::Unauthenticated => 4401,
            Self::Forbidden => 4403,
            Self::Silent => 4408,
            Self::SlowConsumer => 4413,
            Self::Rate => 4429,
        }
    }

    /// The name in metrics, logs and the close frame's reason.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerGone => "peer_gone",
            Self::Drain => "drain",
            Self::Protocol => "protocol",
            Self::WrongData => "wrong_data",
            Self::BadUtf8 => "bad_utf8",
            Self::Abuse => "abuse",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::Capacity => "capacity",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Silent => "silent",
            Self::SlowConsumer => "slow_consumer",
            Self::Rate => "rate",
        }
    }

    /// What the client should do next.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::PeerClosed | Self::PeerGone | Self::Internal | Self::Silent | Self::SlowConsumer => {
                Retry::Backoff
            }
            Self::Drain => Retry::After(Duration::from_secs(1)),
            Self::Capacity => Retry::After(Duration::from_secs(5)),
            Self::Rate => Retry::After(Duration::from_secs(10)),
            Self::Protocol
            | Self::WrongData
            | Self::BadUtf8
            | Self::Abuse
            | Self::TooBig
            | Self::Unauthenticated
            | Self::Forbidden => Retry::Never,
        }
    }

    /// The retry advice for a close code that a client has received; codes of other servers and proxies mean backoff.
    #[must_use]
    pub fn retry_for_code(code: u16) -> Retry {
        Self::ALL.into_iter().find(|reason| reason.code() == code).map_or(Retry::Backoff, Self::retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn indices_follow_the_list_and_names_are_unique() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        let codes: HashSet<_> = CloseReason::ALL.map(CloseReason::code).into();
        let labels: HashSet<_> = CloseReason::ALL.map(CloseReason::label).into();
        assert_eq!(codes.len(), CloseReason::ALL.len());
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }

    #[test]
    fn every_code_may_be_sent_or_is_1006() {
        for reason in CloseReason::ALL {
            let code = reason.code();
            assert!(
                (1000..=1003).contains(&code)
                    || (1006..=1013).contains(&code)
                    || (4400..4500).contains(&code)
            );
        }
    }
}
