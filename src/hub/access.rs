//! Who each connection is, for how long, and what that lets it do: the one door of the hub that every `subscribe`, pattern and
//! `advertise` goes through. Never checks a signature; nothing here runs for a sample.

use std::rc::Rc;
use std::time::Duration;

use super::{Hub, Refused};
use crate::auth::grants::Right;
use crate::auth::revocations::Revoked;
use crate::auth::seats::{Seat, Waiting};
use crate::auth::{Identity, KeyId, whole_seconds};
use crate::clock::Now;
use crate::close::CloseReason;
use crate::config::{AuthSettings, Config};
use crate::pattern::{self, Pattern};
use crate::presence;
use crate::session::DeliveryOptions;
use crate::wire::ChannelId;
use crate::wire::control::{ErrorCode, Event, Policy};

/// How far the server knows who a connection is.
#[derive(Debug)]
pub enum Standing {
    /// There are no keys: everybody may do everything.
    Open {
        /// Who the client says it is.
        user: Option<Box<str>>,
    },
    /// It still has to say who it is.
    Waiting(Waiting),
    /// It has shown a token, or a certificate.
    Known(Rc<Identity>),
}

impl Standing {
    /// The owner of `$user.ID`.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Open { user } => user.as_deref(),
            Self::Waiting(_) => None,
            Self::Known(identity) => Some(&identity.subject),
        }
    }

    /// Whether the connection may receive every channel of the pattern.
    fn check_readable(&self, pattern: &Pattern) -> Result<(), Refused> {
        let name = pattern.as_str();
        if let Some(inbox) = name.strip_prefix("$user.") {
            return match self {
                Self::Known(identity) if *inbox == *identity.subject => {
                    let denied = identity.grants.deny_name(Right::Subscribe, name);
                    if denied { Err(not_given("subscribe", name)) } else { Ok(()) }
                }
                Self::Open { user } if user.as_deref() == Some(inbox) => Ok(()),
                Self::Known(_) | Self::Waiting(_) => {
                    Err(forbidden(format!("channel {name:?} is another user's inbox")))
                }
                Self::Open { .. } => Err(forbidden(format!(
                    "channel {name:?} is another user's inbox; connect with ?user=ID to receive $user.ID"
                ))),
            };
        }
        if let Some(Ok(told_of)) = presence::told_of(name).map(|inner| Pattern::parse(inner, inner.len())) {
            return match self {
                Self::Open { .. } => Ok(()),
                Self::Known(identity) if identity.grants.allow_pattern(Right::Presence, &told_of) => Ok(()),
                Self::Known(_) | Self::Waiting(_) => Err(not_given("presence", told_of.as_str())),
            };
        }
        match self {
            Self::Open { .. } => Ok(()),
            Self::Known(identity) if identity.grants.allow_pattern(Right::Subscribe, pattern) => Ok(()),
            Self::Known(_) | Self::Waiting(_) => Err(not_given("subscribe", name)),
        }
    }

    /// Whether the connection may know who receives the channel.
    fn check_present(&self, name: &str) -> Result<(), Refused> {
        let inbox = name.strip_prefix("$user.");
        match self {
            Self::Known(identity) if identity.grants.deny_name(Right::Presence, name) => {
                Err(not_given("presence", name))
            }
            // Of one's own inbox: how many of one's own connections there are.
            Self::Known(_) | Self::Open { .. } if inbox.is_some() && inbox == self.user() => Ok(()),
            Self::Open { .. } if inbox.is_some() => {
                Err(forbidden(format!("channel {name:?} is another user's inbox")))
            }
            Self::Open { .. } => Ok(()),
            Self::Known(identity) if identity.grants.allow_name(Right::Presence, name) => Ok(()),
            Self::Known(_) | Self::Waiting(_) => Err(not_given("presence", name)),
        }
    }

    /// Whether the connection may publish to the channel.
    fn check_writable(&self, name: &str) -> Result<(), Refused> {
        if pattern::is_reserved(name) && !is_inbox(name) {
            let message = format!("channel {name:?} belongs to the server; only $user.ID takes publishes");
            return Err(forbidden(message));
        }
        match self {
            Self::Open { .. } => Ok(()),
            Self::Known(identity) if identity.grants.allow_name(Right::Publish, name) => Ok(()),
            Self::Known(_) | Self::Waiting(_) => Err(not_given("publish", name)),
        }
    }
}

/// What time does to a standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The time to say who it is has passed.
    Silent,
    /// The token has ended.
    Expired,
    /// It will soon.
    Expiring,
}

/// `since` is when the connection began; `told` whether it was told that its token ends soon.
fn due(standing: &Standing, since: Now, told: bool, auth: &AuthSettings, now: Now) -> Option<Due> {
    match standing {
        Standing::Open { .. } => None,
        Standing::Waiting(_) => {
            let waited = now.at.saturating_duration_since(since.at);
            (waited >= auth.first_message_timeout).then_some(Due::Silent)
        }
        // By the wall clock, which the token speaks of.
        Standing::Known(identity) => {
            let (end, wall) = (Duration::from_secs(identity.expires_s?), Duration::from_nanos(now.wall_ns));
            if wall >= end + Duration::from_secs(whole_seconds(auth.leeway)) {
                return Some(Due::Expired);
            }
            (!told && wall + auth.expiry_warning >= end).then_some(Due::Expiring)
        }
    }
}

impl Hub {
    /// A connection has shown a token: its first, or the next of the same subject. What the new one gives no right to any more
    /// is ended. The first comes with a `seat` among the subject's connections.
    ///
    /// # Errors
    /// It is another subject's; nothing has changed then.
    pub fn authenticate(
        &mut self,
        member: usize,
        id: Option<u64>,
        identity: Identity,
        seat: Option<Seat>,
        now: Now,
    ) -> Result<(), Refused> {
        let this = &mut self.members[member];
        let before = match &this.standing {
            Standing::Known(known) if known.subject != identity.subject => {
                let message = "the token is another subject's; open another connection for it";
                return Err(forbidden(message.into()));
            }
            Standing::Known(known) => Some(Rc::clone(known)),
            Standing::Open { .. } | Standing::Waiting(_) => None,
        };
        let identity = Rc::new(identity);
        this.standing = Standing::Known(Rc::clone(&identity));
        this.told_expiring = false;
        this.seat = seat.or_else(|| this.seat.take());
        let (user, expires_s) = (&*identity.subject, identity.expires_s);
        this.handle.push_event(&Event::Authenticated { id, user, expires_s });
        // The same again is not looked through.
        if before.is_some_and(|before| before.grants == identity.grants) {
            return Ok(());
        }
        self.enforce(member, now);
        self.open_inbox(member, now);
        Ok(())
    }

    /// Subscribes a user to the inbox that is the user's alone, unless the token denies it.
    pub(super) fn open_inbox(&mut self, member: usize, now: Now) {
        let this = &self.members[member];
        let inbox = this.standing.user().map(|user| format!("$user.{user}"));
        let Some(Ok(inbox)) = inbox.map(|name| Pattern::parse(&name, name.len())) else { return };
        if this.standing.check_readable(&inbox).is_err() || this.number_of(&inbox).is_some() {
            return;
        }
        if let Err(refused) = self.subscribe(member, None, &inbox, inbox_delivery(&self.config), None, now) {
            self.members[member].refuse(None, &refused);
        }
    }

    /// Whether the connection may subscribe to this.
    pub(super) fn check_readable(&self, member: usize, pattern: &Pattern) -> Result<(), Refused> {
        self.members[member].standing.check_readable(pattern)
    }

    /// Whether the connection may know who receives this.
    pub(super) fn check_present(&self, member: usize, name: &str) -> Result<(), Refused> {
        self.members[member].standing.check_present(name)
    }

    /// Whether the connection may publish to this.
    pub(super) fn check_writable(&self, member: usize, name: &str) -> Result<(), Refused> {
        self.members[member].standing.check_writable(name)
    }

    /// Ends what a connection has and may not have any more.
    fn enforce(&mut self, member: usize, now: Now) {
        let this = &self.members[member];
        let lost: Vec<(usize, Refused)> = this
            .subscriptions
            .iter()
            .filter_map(|(number, it)| Some((number, this.standing.check_readable(it.pattern()).err()?)))
            .collect();
        for (number, refused) in lost {
            let pattern = self.members[member].subscriptions[number].pattern().clone();
            let channels = self.end_subscription(member, number, now);
            let this = &self.members[member];
            this.refuse(None, &refused);
            let subscription = pattern.as_str();
            this.handle.push_event(&Event::Unsubscribed { id: None, subscription, channels });
        }
        let this = &self.members[member];
        let lost: Vec<(ChannelId, Refused)> = this
            .advertised
            .iter()
            .filter_map(|(channel, info)| Some((*channel, this.standing.check_writable(&info.name).err()?)))
            .collect();
        for (channel, refused) in lost {
            self.members[member].advertised.remove(&channel);
            self.release_all([channel], now);
            self.members[member].refuse(None, &refused);
        }
    }

    /// Ends the connections that a revocation of tokens that were issued until `issued_s` is about.
    pub(super) fn revoke(&self, revoked: &Revoked, issued_s: u64) {
        let refused = forbidden("the token has been revoked".into());
        let is_about = |identity: &Identity| revoked.is_about(identity, issued_s);
        self.shut_out(&refused, CloseReason::Forbidden, is_about);
    }

    /// Ends the connections that have shown a token of a key that is gone.
    pub(super) fn keep_keys(&self, keys: &[KeyId]) {
        let gone = |identity: &Identity| identity.key.is_some_and(|key| !keys.contains(&key));
        let message = "the key of the token has been taken away; connect again with another token".to_owned();
        let refused = Refused { code: ErrorCode::Unauthorized, message };
        self.shut_out(&refused, CloseReason::Unauthenticated, gone);
    }

    fn shut_out(&self, refused: &Refused, reason: CloseReason, whom: impl Fn(&Identity) -> bool) {
        for (_, member) in &self.members {
            if let Standing::Known(identity) = &member.standing
                && member.handle.ending().is_none()
                && whom(identity)
            {
                member.refuse(None, refused);
                member.handle.end(reason);
            }
        }
    }

    /// Ends those who have not said in time who they are, or whose token has ended; tells those whose token ends soon.
    pub(super) fn check_standings(&mut self, now: Now) {
        if self.config.is_open() {
            return;
        }
        for (_, member) in &mut self.members {
            if member.handle.ending().is_some() {
                continue;
            }
            match due(&member.standing, member.since, member.told_expiring, &self.config.auth, now) {
                None => {}
                Some(Due::Silent) => member.handle.end(CloseReason::Silent),
                Some(Due::Expired) => {
                    let message = "the token has ended; connect again with another".to_owned();
                    member.refuse(None, &Refused { code: ErrorCode::TokenExpired, message });
                    member.handle.end(CloseReason::Unauthenticated);
                }
                Some(Due::Expiring) => {
                    member.told_expiring = true;
                    if let Standing::Known(identity) = &member.standing
                        && let Some(expires_s) = identity.expires_s
                    {
                        member.handle.push_event(&Event::TokenExpiring { expires_s });
                    }
                }
            }
        }
    }
}

/// A message to one user is not part of a stream: it does not wait for more.
fn inbox_delivery(config: &Config) -> DeliveryOptions {
    DeliveryOptions {
        policy: Policy::DropOldest,
        max_delay_ms: 0,
        max_age_ms: u32::try_from(config.outbox.max_age.as_millis()).unwrap_or(u32::MAX),
        max_rate_hz: None,
    }
}

fn is_inbox(name: &str) -> bool {
    name.strip_prefix("$user.").is_some_and(|user| !user.contains('.'))
}

fn not_given(right: &str, name: &str) -> Refused {
    forbidden(format!("channel {name:?}: the token gives no right to {right}; ask for one that does"))
}

const fn forbidden(message: String) -> Refused {
    Refused { code: ErrorCode::Forbidden, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::auth::grants::Grants;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_clock_that_jumps_ends_nobody_but_by_the_token() {
        let auth = AuthSettings::default();
        let began = Now { at: Instant::now(), wall_ns: 1_800_000_000_000_000_000 };
        let identity = |expires_s| Identity {
            subject: "a".into(),
            token_id: None,
            issued_s: None,
            expires_s,
            key: None,
            grants: Grants::default(),
        };
        let known = |expires_s| Standing::Known(Rc::new(identity(expires_s)));
        let waiting = || Standing::Waiting(Waiting::begin(&Arc::default(), 1).expect("a place"));
        let hour_ns = i64::try_from(HOUR.as_nanos()).expect("fits");
        for jump_ns in [hour_ns, -hour_ns] {
            let now = Now { wall_ns: began.wall_ns.saturating_add_signed(jump_ns), ..began };
            let due = |standing: &Standing| due(standing, began, false, &auth, now);
            assert_eq!(due(&Standing::Open { user: None }), None);
            assert_eq!(due(&waiting()), None, "its time is not of the wall clock");
            assert_eq!(due(&known(None)), None, "a certificate");
            assert_eq!(due(&known(Some(1_800_007_300))), None, "two hours and a bit more than the warning");
            let half_an_hour = known(Some(1_800_001_800));
            assert_eq!(due(&half_an_hour), (jump_ns > 0).then_some(Due::Expired));
        }
        let late = Now { at: began.at + auth.first_message_timeout, ..began };
        assert_eq!(due(&waiting(), began, false, &auth, late), Some(Due::Silent));
    }

    #[test]
    fn a_token_is_warned_of_once_and_ends_with_the_leeway() {
        let auth = AuthSettings { leeway: Duration::from_millis(4_100), ..AuthSettings::default() };
        let identity = Identity {
            subject: "a".into(),
            token_id: None,
            issued_s: None,
            expires_s: Some(1_000),
            key: None,
            grants: Grants::default(),
        };
        let standing = Standing::Known(Rc::new(identity));
        let at = Instant::now();
        let due_at = |wall_ms: u64, told| {
            let now = Now { at, wall_ns: wall_ms * 1_000_000 };
            due(&standing, now, told, &auth, now)
        };
        assert_eq!(due_at(939_999, false), None);
        assert_eq!(due_at(940_000, false), Some(Due::Expiring));
        assert_eq!(due_at(1_004_999, true), None);
        assert_eq!(due_at(1_005_000, true), Some(Due::Expired));
    }
}
