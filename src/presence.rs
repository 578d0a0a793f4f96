//! Who is on a channel: what each worker says of its own connections, all of that put together, and what has changed since it
//! was told last. Pure: never knows a hub, a connection or a clock.
//!
//! A source says all that it knows each time, never a difference: what comes late, twice or not at all then corrects itself
//! with the next, and whatever has come and gone in between was never there.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::PRESENCE_MEMBERS_MAX;
use crate::pattern;
use crate::wire::control::Present;

/// Above [`PRESENCE_MEMBERS_MAX`] a channel tells its count this often at the most.
pub const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the channels begin that tell of others.
const PREFIX: &str = "$presence.";

/// The channel, or the pattern, that one of `$presence.` tells of.
#[must_use]
pub fn told_of(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

/// The channel that tells who is on another. Names of the server's own, which begin with `$`, have none that can be subscribed.
#[must_use]
pub fn teller_of(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The same, if it is a valid name of at most `bytes_max` bytes.
#[must_use]
pub fn valid_teller_of(name: &str, bytes_max: usize) -> Option<String> {
    let teller = teller_of(name);
    pattern::check_name(&teller, bytes_max).is_ok().then_some(teller)
}

/// What a source knows: how many connections receive the channel, and who they are if they are few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Connections.
    pub count: usize,
    /// All of them in order, unless they are more than [`PRESENCE_MEMBERS_MAX`], or somebody has not said who they are.
    pub members: Option<Vec<Present>>,
}

impl Part {
    /// Of a channel that nobody receives.
    #[must_use]
    pub const fn nobody() -> Self {
        Self { count: 0, members: Some(Vec::new()) }
    }

    /// Several together, which have no connection in common.
    #[must_use]
    pub fn sum<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::sum_up_to(PRESENCE_MEMBERS_MAX, parts)
    }

    fn sum_up_to<'a>(most: usize, parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut total = Self::nobody();
        for part in parts {
            total.count = total.count.saturating_add(part.count);
            match (&mut total.members, &part.members) {
                (Some(all), Some(members)) if total.count <= most => all.extend_from_slice(members),
                (all, _) => *all = None,
            }
        }
        if let Some(members) = &mut total.members {
            members.sort_unstable();
        }
        total
    }

    /// So many, and who they are, each once.
    #[must_use]
    pub fn of(count: usize, members: impl Iterator<Item = Present>) -> Self {
        Self::up_to(PRESENCE_MEMBERS_MAX, count, members)
    }

    fn up_to(most: usize, count: usize, members: impl Iterator<Item = Present>) -> Self {
        let members = (count <= most).then(|| {
            let mut members: Vec<_> = members.collect();
            members.sort_unstable();
            members
        });
        Self { count, members }
    }
}

/// What is told of a change: a sample of `$presence.NAME`, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Change<'a> {
    /// Somebody receives the channel now.
    Join {
        /// Who.
        #[serde(flatten)]
        who: &'a Present,
        /// Connections with it.
        count: usize,
    },
    /// Somebody does not any more.
    Leave {
        /// Who.
        #[serde(flatten)]
        who: &'a Present,
        /// Connections without it.
        count: usize,
    },
    /// So many receive it. Whatever was known of them is void.
    Count {
        /// Connections.
        count: usize,
    },
}

/// What those who watch a channel know.
#[derive(Debug)]
enum Told {
    /// Each connection, in order.
    Members(Vec<Present>),
    /// How many there are; nothing yet while the first count waits for its time. From here on only a count leads back to a list:
    /// whoever has been refused one meanwhile hears when to ask again.
    Count(Option<usize>),
}

/// The roll of a channel: what its sources say, and what of it was told.
#[derive(Debug)]
pub struct Roll {
    /// One for each source here, once it has said something.
    parts: Vec<Option<Part>>,
    /// Who is on the channel on other servers, as far as is known.
    elsewhere: Part,
    members_max: usize,
    told: Told,
    counted_at: Option<Instant>,
}

impl Roll {
    /// Of that many sources, none of which has said anything. Nobody is told to be there.
    #[must_use]
    pub fn new(sources: usize) -> Self {
        Self::up_to(PRESENCE_MEMBERS_MAX, sources)
    }

    /// Nobody is told to be there: those who knew have gone, and others begin to watch. What the sources here said
    /// stays; other servers are asked anew.
    pub fn forget_told(&mut self) {
        self.told = Told::Members(Vec::new());
        self.counted_at = None;
        self.elsewhere = Part::nobody();
    }

    fn up_to(members_max: usize, sources: usize) -> Self {
        Self {
            parts: vec![None; sources],
            elsewhere: Part::nobody(),
            members_max,
            told: Told::Members(Vec::new()),
            counted_at: None,
        }
    }

    /// What a source here says now. Returns whether that is another thing than before; the first is not.
    pub fn note(&mut self, source: usize, part: Part) -> bool {
        let Some(place) = self.parts.get_mut(source) else { return false };
        let differs = place.as_ref().is_some_and(|before| *before != part);
        *place = Some(part);
        differs
    }

    /// What other servers say now, all of them together.
    pub fn note_elsewhere(&mut self, part: Part) {
        self.elsewhere = part;
    }

    /// All sources here together, once each has said something.
    #[must_use]
    pub fn here(&self) -> Option<Part> {
        self.sum([])
    }

    /// The same with other servers.
    #[must_use]
    pub fn total(&self) -> Option<Part> {
        self.sum([&self.elsewhere])
    }

    fn sum<'a>(&'a self, more: impl IntoIterator<Item = &'a Part>) -> Option<Part> {
        let parts: Vec<&Part> = self.parts.iter().map(Option::as_ref).collect::<Option<_>>()?;
        Some(Part::sum_up_to(self.members_max, parts.into_iter().chain(more)))
    }

    /// What an answer may say to those who watch: there is no list while they wait for a count, which would make it void, or might
    /// not come if the old count is back by then.
    #[must_use]
    pub fn told(&self) -> Option<Part> {
        let mut total = self.total()?;
        if matches!(self.told, Told::Count(_)) {
            total.members = None;
        }
        Some(total)
    }

    /// Tells what has changed since the last time. Returns whether something has still to wait for its time.
    pub fn tell(&mut self, now: Instant, mut tell: impl FnMut(&Change<'_>)) -> bool {
        let Some(Part { count, members }) = self.total() else { return false };
        let members = match (&self.told, members) {
            (Told::Members(before), Some(members)) => {
                tell_differences(before, &members, &mut tell);
                self.told = Told::Members(members);
                return false;
            }
            (Told::Count(before), None) if *before == Some(count) => return false,
            (_, members) => members,
        };
        if self.counted_at.is_some_and(|at| now.saturating_duration_since(at) < COUNT_INTERVAL) {
            if matches!(self.told, Told::Members(_)) {
                self.told = Told::Count(None);
            }
            return true;
        }
        self.counted_at = Some(now);
        tell(&Change::Count { count });
        self.told = members.map_or(Told::Count(Some(count)), Told::Members);
        false
    }
}

/// Who has left, then who has joined.
fn tell_differences(before: &[Present], after: &[Present], tell: &mut impl FnMut(&Change<'_>)) {
    let mut count = before.len();
    for who in before.iter().filter(|who| after.binary_search(who).is_err()) {
        count -= 1;
        tell(&Change::Leave { who, count });
    }
    for who in after.iter().filter(|who| before.binary_search(who).is_err()) {
        count += 1;
        tell(&Change::Join { who, count });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use crate::wire::relay::NodeId;

    const MOST: usize = 4;

    fn present(connection: u64) -> Present {
        Present { server: None, connection, user: connection.is_multiple_of(2).then(|| "alice".into()) }
    }

    fn part(connections: &BTreeSet<u64>) -> Part {
        Part::up_to(MOST, connections.len(), connections.iter().rev().map(|connection| present(*connection)))
    }

    #[test]
    fn names_and_what_tells_of_them_lead_to_each_other() {
        assert_eq!(told_of(&teller_of("robot.7")), Some("robot.7"));
        for name in ["presence.a", "$presence", "$presences.a", "robot.$presence.a"] {
            assert_eq!(told_of(name), None, "{name}");
        }
        assert_eq!(valid_teller_of("a", 11).as_deref(), Some("$presence.a"));
        let deep = ["a"; pattern::TOKENS_MAX].join(".");
        for (name, bytes_max) in [("a", 10), ("$sys.cpu", 255), (&deep, 255)] {
            assert_eq!(valid_teller_of(name, bytes_max), None, "{name}");
        }
    }

    #[test]
    fn a_change_is_json_with_the_count_after_it() {
        let texts = [
            (
                Change::Join { who: &present(2), count: 1 },
                r#"{"event":"join","connection":2,"user":"alice","count":1}"#,
            ),
            (Change::Leave { who: &present(3), count: 0 }, r#"{"event":"leave","connection":3,"count":0}"#),
            (
                Change::Join {
                    who: &Present { server: Some(NodeId(0xabc)), connection: 2, user: None },
                    count: 2,
                },
                r#"{"event":"join","server":"0000000000000abc","connection":2,"count":2}"#,
            ),
            (Change::Count { count: 500 }, r#"{"event":"count","count":500}"#),
        ];
        for (change, text) in texts {
            assert_eq!(serde_json::to_string(&change).expect("it is plain"), text);
        }
    }

    /// What somebody knows who follows the changes.
    #[derive(Debug, Default)]
    struct Follower {
        members: Option<BTreeSet<u64>>,
        count: usize,
        counts: Vec<Instant>,
        /// It has asked and got no list, and so waits for the count that says when to ask again.
        refused: bool,
    }

    impl Follower {
        fn hear(&mut self, change: &Change<'_>, now: Instant) {
            match change {
                Change::Join { who, count } => {
                    self.count = *count;
                    if let Some(members) = &mut self.members {
                        assert!(members.insert(who.connection), "{change:?}: twice");
                        assert_eq!(members.len(), *count, "{change:?}");
                    }
                }
                Change::Leave { who, count } => {
                    self.count = *count;
                    if let Some(members) = &mut self.members {
                        assert!(members.remove(&who.connection), "{change:?}: it was not there");
                        assert_eq!(members.len(), *count, "{change:?}");
                    }
                }
                Change::Count { count } => {
                    self.count = *count;
                    self.members = None;
                    self.refused = false;
                    self.counts.push(now);
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Flip { source: usize, connection: u64 },
        Say { source: usize },
        Pass { ms: u64 },
        Ask,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_usize, 0..4_u64).prop_map(|(source, n)| {
                // Each source has connections of its own.
                Step::Flip { source, connection: n * 3 + source as u64 }
            }),
            4 => (0..3_usize).prop_map(|source| Step::Say { source }),
            1 => prop_oneof![Just(10), Just(100), Just(1_000)].prop_map(|ms| Step::Pass { ms }),
            2 => Just(Step::Ask),
        ]
    }

    /// The last of three sources stands for other servers.
    fn note(roll: &mut Roll, source: usize, connections: &BTreeSet<u64>) {
        if source == 2 {
            roll.note_elsewhere(part(connections));
        } else {
            roll.note(source, part(connections));
        }
    }

    proptest! {
        /// Whoever has a list at some moment, and follows the changes after it, has the list of every later moment, or knows that it
        /// has none.
        #[test]
        fn a_list_and_the_changes_after_it_are_the_list_of_later(steps in prop::collection::vec(step(), 1..120)) {
            let mut now = Instant::now();
            let mut roll = Roll::up_to(MOST, 2);
            let mut there = vec![BTreeSet::new(); 3];
            let mut said = there.clone();
            let mut follower = Follower { members: Some(BTreeSet::new()), ..Follower::default() };
            for (source, connections) in there.iter().enumerate() {
                note(&mut roll, source, connections);
            }
            let mut settle = steps;
            settle.extend((0..3).map(|source| Step::Say { source }));
            settle.extend([Step::Pass { ms: 1_000 }, Step::Ask]);
            for step in settle {
                let mut asks = false;
                match step {
                    Step::Flip { source, connection } => {
                        if !there[source].remove(&connection) {
                            there[source].insert(connection);
                        }
                    }
                    Step::Say { source } => {
                        said[source].clone_from(&there[source]);
                        note(&mut roll, source, &there[source]);
                    }
                    Step::Pass { ms } => now += Duration::from_millis(ms),
                    Step::Ask => asks = true,
                }
                let all: BTreeSet<u64> = said.iter().flatten().copied().collect();
                let waits = roll.tell(now, |change| follower.hear(change, now));
                let total = roll.total().expect("each has said something");
                prop_assert_eq!(total.count, all.len());
                prop_assert_eq!(total.members.is_some(), all.len() <= MOST);
                let listed = total.members.map(|m| m.iter().map(|who| who.connection).collect::<BTreeSet<_>>());
                prop_assert!(listed.as_ref().is_none_or(|listed| *listed == all));
                if !waits {
                    prop_assert_eq!(follower.count, all.len());
                    if let Some(members) = &follower.members {
                        prop_assert_eq!(members, &all);
                    }
                }
                if asks && let Some(members) = roll.told().expect("each has said something").members {
                    let listed = Some(members.iter().map(|who| who.connection).collect());
                    prop_assert!(follower.members.is_none() || follower.members == listed);
                    follower.members = listed;
                } else {
                    follower.refused |= asks;
                }
                prop_assert!(waits || listed.is_none() || !follower.refused, "who was refused has to hear of the list");
            }
            prop_assert!(follower.counts.windows(2).all(|two| two[1] - two[0] >= COUNT_INTERVAL));
        }
    }

    #[test]
    fn what_other_servers_say_is_in_the_total_and_not_in_what_is_here() {
        let mut roll = Roll::new(1);
        let part = |server, connections: std::ops::Range<u64>| {
            let members = connections.map(|connection| Present { server, connection, user: None });
            Part::of(members.clone().count(), members)
        };
        roll.note_elsewhere(part(Some(NodeId(9)), 1..3));
        assert_eq!((roll.here(), roll.total()), (None, None), "nobody here has said anything");
        assert!(!roll.note(0, part(None, 1..2)), "the first is no change");
        assert!(!roll.note(0, part(None, 1..2)));
        assert_eq!(roll.here(), Some(part(None, 1..2)));
        let total = roll.total().expect("all have said something");
        // One number on two servers is two connections; those here come first.
        let all: Vec<_> = total.members.iter().flatten().map(|who| (who.server, who.connection)).collect();
        assert_eq!(all, [(None, 1), (Some(NodeId(9)), 1), (Some(NodeId(9)), 2)]);
        roll.note_elsewhere(Part { count: 2, members: None });
        assert_eq!(roll.total(), Some(Part { count: 3, members: None }), "few, but nobody says who");
        roll.note_elsewhere(Part { count: usize::MAX, members: None });
        assert_eq!(roll.total().map(|part| part.count), Some(usize::MAX));
        assert!(roll.note(0, part(None, 1..1)));
        roll.forget_told();
        assert_eq!(roll.total(), Some(Part::nobody()));
    }

    #[test]
    fn a_crowd_is_a_count_and_a_list_again_when_it_has_gone() {
        let mut now = Instant::now();
        let mut roll = Roll::new(1);
        let crowd = |count: usize| Part::of(count, (0..count as u64).map(present));
        let mut told = Vec::new();
        assert!(!roll.tell(now, |_| panic!("nobody has said anything")));
        roll.note(0, crowd(10_000));
        assert!(!roll.tell(now, |change| told.push(format!("{change:?}"))));
        assert_eq!(told, ["Count { count: 10000 }"], "one, however many");
        roll.note(0, crowd(1));
        assert!(roll.tell(now, |_| panic!("not twice in a second")));
        now += COUNT_INTERVAL;
        told.clear();
        assert!(!roll.tell(now, |change| told.push(format!("{change:?}"))));
        assert_eq!(told, ["Count { count: 1 }"], "and now there is a list to ask for");
        roll.note(0, crowd(0));
        assert!(!roll.tell(now, |change| assert!(matches!(change, Change::Leave { count: 0, .. }))));
    }
}
