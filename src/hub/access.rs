//! Who each connection is, for how long, and what that lets it do: the one door of the hub that every `subscribe`, pattern and
//! `advertise` goes through. Never checks a signature; nothing here runs for a sample.

use std::rc::Rc;
use std::time::Duration;

use super::membership::Member;
use super::{Hub, Refused};
use crate::auth::Identity;
use crate::auth::grants::Right;
use crate::auth::revocations::Revoked;
use crate::clock::Now;
use crate::close::CloseReason;
use crate::config::Config;
use crate::pattern::{self, Pattern};
use crate::session::DeliveryOptions;
use crate::wire::ChannelId;
use crate::wire::control::{ErrorCode, Event, Policy};

/// How far the server knows who a connection is.
#[derive(Clone, Debug)]
pub enum Standing {
    /// There are no keys: everybody may do everything.
    Open {
        /// Who the client says it is.
        user: Option<Box<str>>,
    },
    /// It still has to say who it is.
    Waiting,
    /// It has shown a token.
    Known(Rc<Identity>),
}

impl Standing {
    /// The owner of `$user.ID`.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Open { user } => user.as_deref(),
            Self::Waiting => None,
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
                Self::Known(_) | Self::Waiting => {
                    Err(forbidden(format!("channel {name:?} is another user's inbox")))
                }
                Self::Open { .. } => Err(forbidden(format!(
                    "channel {name:?} is another user's inbox; connect with ?user=ID to receive $user.ID"
                ))),
            };
        }
        match self {
            Self::Open { .. } => Ok(()),
            Self::Known(identity) if identity.grants.allow_pattern(Right::Subscribe, pattern) => Ok(()),
            Self::Known(_) | Self::Waiting => Err(not_given("subscribe", name)),
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
            Self::Known(_) | Self::Waiting => Err(not_given("publish", name)),
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

fn due(member: &Member, config: &Config, now: Now) -> Option<Due> {
    let auth = &config.auth;
    match &member.standing {
        Standing::Open { .. } => None,
        Standing::Waiting => {
            let waited = now.at.saturating_duration_since(member.since.at);
            (waited >= auth.first_message_timeout).then_some(Due::Silent)
        }
        // By the wall clock, which the token speaks of.
        Standing::Known(identity) => {
            let left =
                Duration::from_secs(identity.expires_s).saturating_sub(Duration::from_nanos(now.wall_ns));
            let over =
                Duration::from_nanos(now.wall_ns).saturating_sub(Duration::from_secs(identity.expires_s));
            if left.is_zero() && over >= auth.leeway {
                return Some(Due::Expired);
            }
            (!member.told_expiring && left <= auth.expiry_warning).then_some(Due::Expiring)
        }
    }
}

impl Hub {
    /// A connection has shown a token: its first, or the next of the same subject. What the new one gives no right to any more
    /// is ended.
    ///
    /// # Errors
    /// It is another subject's; nothing has changed then.
    pub fn authenticate(
        &mut self,
        member: usize,
        id: Option<u64>,
        identity: Identity,
        now: Now,
    ) -> Result<(), Refused> {
        let this = &mut self.members[member];
        let first = match &this.standing {
            Standing::Known(known) if known.subject != identity.subject => {
                let message = "the token is another subject's; open another connection for it";
                return Err(forbidden(message.into()));
            }
            Standing::Known(_) => false,
            Standing::Open { .. } | Standing::Waiting => true,
        };
        let identity = Rc::new(identity);
        this.standing = Standing::Known(Rc::clone(&identity));
        this.told_expiring = false;
        let (user, expires_s) = (&*identity.subject, identity.expires_s);
        this.handle.push_event(&Event::Authenticated { id, user, expires_s });
        if first {
            self.open_inbox(member, now);
        } else {
            self.enforce(member, now);
        }
        Ok(())
    }

    /// Subscribes a user to the inbox that is the user's alone.
    pub(super) fn open_inbox(&mut self, member: usize, now: Now) {
        let inbox = self.members[member].standing.user().map(|user| format!("$user.{user}"));
        if let Some(Ok(inbox)) = inbox.map(|name| Pattern::parse(&name, name.len())) {
            // It is the first subscription, so within every limit but the server's; and a token may deny it.
            let _ = self.subscribe(member, None, &inbox, inbox_delivery(&self.config), now);
        }
    }

    /// Whether the connection may subscribe to this.
    pub(super) fn check_readable(&self, member: usize, pattern: &Pattern) -> Result<(), Refused> {
        self.members[member].standing.check_readable(pattern)
    }

    /// Whether the connection may publish to this.
    pub(super) fn check_writable(&self, member: usize, name: &str) -> Result<(), Refused> {
        self.members[member].standing.check_writable(name)
    }

    /// Ends what a connection has and may not have any more.
    fn enforce(&mut self, member: usize, now: Now) {
        let this = &self.members[member];
        let standing = this.standing.clone();
        let lost: Vec<(usize, Refused)> = this
            .subscriptions
            .iter()
            .filter_map(|(number, it)| Some((number, standing.check_readable(it.pattern()).err()?)))
            .collect();
        for (number, refused) in lost {
            let pattern = self.members[member].subscriptions[number].pattern().clone();
            let channels = self.end_subscription(member, number, now);
            let this = &self.members[member];
            this.refuse(None, &refused);
            let subscription = pattern.as_str();
            this.handle.push_event(&Event::Unsubscribed { id: None, subscription, channels });
        }
        let lost: Vec<(ChannelId, Refused)> = self.members[member]
            .advertised
            .iter()
            .filter_map(|(channel, info)| Some((*channel, standing.check_writable(&info.name).err()?)))
            .collect();
        for (channel, refused) in lost {
            self.members[member].advertised.remove(&channel);
            self.release_all([channel], now);
            self.members[member].refuse(None, &refused);
        }
    }

    /// Ends the connections that a revocation at `at_s` is about.
    pub(super) fn revoke(&self, revoked: &Revoked, at_s: u64) {
        for (_, member) in &self.members {
            if let Standing::Known(identity) = &member.standing
                && revoked.is_about(identity, at_s)
            {
                member.refuse(None, &forbidden("the token has been revoked".into()));
                member.handle.end(CloseReason::Forbidden);
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
            match due(member, &self.config, now) {
                None => {}
                Some(Due::Silent) => member.handle.end(CloseReason::Silent),
                Some(Due::Expired) => {
                    let message = "the token has ended; connect again with another".to_owned();
                    member.refuse(None, &Refused { code: ErrorCode::TokenExpired, message });
                    member.handle.end(CloseReason::Unauthenticated);
                }
                Some(Due::Expiring) => {
                    member.told_expiring = true;
                    if let Standing::Known(identity) = &member.standing {
                        let expires_s = identity.expires_s;
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
