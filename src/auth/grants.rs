//! What an identity may do: the one place where that is decided, for every way to ask. Pure.

use serde::{Deserialize, Serialize};

use crate::pattern::{Pattern, PatternError};

/// Something that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Receive samples.
    Subscribe,
    /// Publish samples.
    Publish,
    /// See who is on a channel.
    Presence,
    /// See what the server has, and end what others have.
    Admin,
}

/// Patterns of all lists of a token together, at the most: each message that opens a channel is compared with them.
pub const PATTERNS_MAX: usize = 128;

/// The longest pattern, in bytes: as long as a server can be told to take channel names.
const PATTERN_BYTES_MAX: usize = 512;

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// One for each [`Right`].
    lists: [List; 4],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
}

/// The claim `tidewire` of a token: for each right the patterns of channels that it is given for. What is not allowed is
/// denied, and what is denied is so whatever is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claim {
    /// For [`Right::Subscribe`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// For [`Right::Publish`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// For [`Right::Presence`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<String>,
    /// For [`Right::Admin`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admin: Vec<String>,
    /// What is denied.
    #[serde(skip_serializing_if = "Denied::is_empty")]
    pub deny: Denied,
}

/// The part `deny` of a [`Claim`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Denied {
    /// For [`Right::Subscribe`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// For [`Right::Publish`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// For [`Right::Presence`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<String>,
    /// For [`Right::Admin`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admin: Vec<String>,
}

impl Denied {
    const fn is_empty(&self) -> bool {
        self.subscribe.is_empty()
            && self.publish.is_empty()
            && self.presence.is_empty()
            && self.admin.is_empty()
    }
}

/// A claim that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantsError {
    /// More than [`PATTERNS_MAX`].
    #[error("{0} patterns; at most {PATTERNS_MAX}")]
    TooMany(usize),
    /// One is not a pattern.
    #[error("a pattern {0}")]
    Pattern(PatternError),
}

impl TryFrom<&Claim> for Grants {
    type Error = GrantsError;

    fn try_from(claim: &Claim) -> Result<Self, GrantsError> {
        let Claim { subscribe, publish, presence, admin, deny } = claim;
        let lists = [
            (subscribe, &deny.subscribe),
            (publish, &deny.publish),
            (presence, &deny.presence),
            (admin, &deny.admin),
        ];
        let count = lists.iter().map(|(allow, deny)| allow.len() + deny.len()).sum();
        if count > PATTERNS_MAX {
            return Err(GrantsError::TooMany(count));
        }
        let parse = |texts: &[String]| -> Result<Vec<Pattern>, GrantsError> {
            texts
                .iter()
                .map(|text| Pattern::parse(text, PATTERN_BYTES_MAX).map_err(GrantsError::Pattern))
                .collect()
        };
        let mut grants = Self::default();
        for (list, (allow, deny)) in grants.lists.iter_mut().zip(lists) {
            *list = List { allow: parse(allow)?, deny: parse(deny)? };
        }
        Ok(grants)
    }
}

impl Grants {
    /// Whether the right is given for the channel of this name.
    #[must_use]
    pub fn allow_name(&self, right: Right, name: &str) -> bool {
        let List { allow, deny } = &self.lists[right as usize];
        allow.iter().any(|pattern| pattern.matches(name)) && !deny.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether the right is given for every channel that the pattern can ever match: one that is allowed covers it, and it
    /// does not even overlap one that is denied.
    #[must_use]
    pub fn allow_pattern(&self, right: Right, wanted: &Pattern) -> bool {
        let List { allow, deny } = &self.lists[right as usize];
        allow.iter().any(|pattern| pattern.covers(wanted))
            && !deny.iter().any(|pattern| pattern.overlaps(wanted))
    }

    /// Whether the right is denied in words, not just not given.
    #[must_use]
    pub fn deny_name(&self, right: Right, name: &str) -> bool {
        self.lists[right as usize].deny.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether the right is given for anything at all.
    #[must_use]
    pub fn has_any(&self, right: Right) -> bool {
        !self.lists[right as usize].allow.is_empty()
    }

    /// Whether the right is given for every channel that is not the server's own, without exception.
    #[must_use]
    pub fn allow_all(&self, right: Right) -> bool {
        let List { allow, deny } = &self.lists[right as usize];
        deny.is_empty() && allow.iter().any(|pattern| pattern.as_str() == ">")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grants(claim: &serde_json::Value) -> Result<Grants, GrantsError> {
        let claim: Claim = serde_json::from_value(claim.clone()).expect("a claim");
        Grants::try_from(&claim)
    }

    #[test]
    fn one_place_decides_for_every_way_to_ask() {
        let grants = grants(&serde_json::json!({
            "subscribe": ["tenant-a.>", "public.*", "$sys.cpu"],
            "publish": ["tenant-a.robot.*.cmd"],
            "deny": { "subscribe": ["tenant-a.secret.>"] },
        }))
        .expect("sound");
        // (pattern or name, whether it may be subscribed)
        let rows = [
            ("tenant-a.x", true),
            ("tenant-a.robot.>", true),
            ("tenant-a.*", true),
            ("tenant-a.secret", true),
            ("tenant-a.secret.x", false),
            ("tenant-a.secret.>", false),
            // It merely overlaps what is denied.
            ("tenant-a.>", false),
            ("tenant-a.*.x", false),
            ("tenant-b.>", false),
            ("tenant-b.x", false),
            ("*.x", false),
            (">", false),
            ("public.x", true),
            ("public.>", false),
            ("$sys.cpu", true),
            ("$sys.>", false),
            ("$user.alice", false),
        ];
        for (text, allowed) in rows {
            let pattern = Pattern::parse(text, 255).expect("valid");
            assert_eq!(grants.allow_pattern(Right::Subscribe, &pattern), allowed, "{text}");
            if pattern.is_literal() {
                assert_eq!(grants.allow_name(Right::Subscribe, text), allowed, "{text}");
            }
        }
        assert!(grants.allow_name(Right::Publish, "tenant-a.robot.7.cmd"));
        assert!(!grants.allow_name(Right::Publish, "tenant-a.robot.7.imu"));
        for right in [Right::Presence, Right::Admin] {
            assert!(!grants.allow_name(right, "tenant-a.x"), "what is not listed is not allowed");
        }
        assert!(!Grants::default().allow_name(Right::Subscribe, "a"));
    }

    #[test]
    fn all_is_all() {
        let rows = [
            (serde_json::json!({"admin": [">"]}), true),
            (serde_json::json!({"admin": ["a", ">"]}), true),
            (serde_json::json!({"admin": ["*.>"]}), false),
            (serde_json::json!({"admin": [">"], "deny": {"admin": ["a"]}}), false),
            (serde_json::json!({"subscribe": [">"]}), false),
        ];
        for (claim, all) in rows {
            assert_eq!(grants(&claim).expect("sound").allow_all(Right::Admin), all, "{claim}");
        }
    }

    #[test]
    fn wrong_claims_are_refused_whole() {
        assert_eq!(
            grants(&serde_json::json!({"subscribe": ["a", "b..c"]})),
            Err(GrantsError::Pattern(PatternError::EmptyToken { at: 2 }))
        );
        let many: Vec<String> = (0..PATTERNS_MAX).map(|n| format!("a.{n}")).collect();
        assert!(grants(&serde_json::json!({ "publish": many })).is_ok());
        assert_eq!(
            grants(&serde_json::json!({ "publish": many, "deny": {"admin": ["x"]} })),
            Err(GrantsError::TooMany(PATTERNS_MAX + 1))
        );
        for text in [r#"{"subscribes": ["a"]}"#, r#"{"deny": {"all": ["a"]}}"#, r#"{"subscribe": "a"}"#] {
            assert!(serde_json::from_str::<Claim>(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Whoever may subscribe to a pattern gets by it no channel that they could not ask for by name.
        #[test]
        fn a_pattern_opens_nothing_that_its_names_do_not(
            allow in prop::collection::vec("(a|b|\\*)(\\.(a|b|\\*)){0,2}(\\.>)?", 1..4),
            deny in prop::collection::vec("(a|b|\\*)(\\.(a|b|\\*)){0,2}(\\.>)?", 0..3),
            wanted in "(a|b|\\*)(\\.(a|b|\\*)){0,2}(\\.>)?",
            names in prop::collection::vec("(a|b|c)(\\.(a|b|c)){0,3}", 50),
        ) {
            let grants = grants(&serde_json::json!({"subscribe": allow, "deny": {"subscribe": deny}})).expect("sound");
            let wanted = Pattern::parse(&wanted, 255).expect("valid");
            if grants.allow_pattern(Right::Subscribe, &wanted) {
                for name in names.iter().filter(|name| wanted.matches(name)) {
                    prop_assert!(grants.allow_name(Right::Subscribe, name), "{name}");
                }
            }
        }
    }
}
