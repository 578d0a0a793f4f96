//! Whether a server has borne a soak: each promise with its figures, its tolerance and the reason for that. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::acts::{Act, Got};
use super::crowd::Tally;
use crate::ledger::Account;
use crate::result::Bottleneck;
use crate::units::{bytes, count, time};

/// What the server's memory may grow by from the end of the warm-up to the end of the run. It moves in steps of up to 5 MiB
/// that are no leak: outboxes of slow readers fill and empty, up to 1 MiB each; the log of latencies gets an interval every
/// few seconds, and a page of it is rendered at once; the allocator keeps what was there for a moment. A leak of 1 KiB for
/// each act of the crowd, 25 a second, passes this within the six minutes that are measured of a run of usual length.
pub(crate) const GROWTH_BYTES_MAX: f64 = 8.0 * 1024.0 * 1024.0;

/// How much of the healthy clients' p99 the crowd may cost: a factor, and an addend. Both are wide, because the generator,
/// the crowd and the server share the machine's CPUs and nobody reserved them: with two of them, and others at work on it, the
/// p99 of one window moves by several times. Medians of many windows forget single stalls. What this finds is a server
/// that lets the good ones wait for the bad ones: those timeouts are seconds.
pub(crate) const P99_FACTOR_MAX: f64 = 2.0;

/// See [`P99_FACTOR_MAX`]: two flush windows of 10 ms, since joins and leaves seal batches early and a busy worker widens its
/// window.
pub(crate) const P99_ADDEND_NS: f64 = 20e6;

/// How far the server's uptime may lag behind the generator's clock, in seconds: it is read over HTTP from a busy machine.
const UPTIME_SLACK_S: f64 = 2.0;

/// Acts of each kind of trouble that are named in the verdict; the table has all.
const NAMED_MAX: usize = 3;

/// What the server said of itself at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct State {
    /// Open file descriptors, if its process is known.
    pub descriptors: Option<usize>,
    /// Open connections.
    pub connections: f64,
    /// Connections that ended for a fault of its own.
    pub internal: f64,
    /// Seconds since its start.
    pub uptime_s: f64,
}

/// All that the verdict is made from.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// Resident memory of the server while the crowd was there, from the end of the warm-up on: seconds and bytes.
    pub memory: Vec<(f64, f64)>,
    /// Before anybody came.
    pub before: State,
    /// After everybody had gone, or when the time for that was over.
    pub after: State,
    /// Seconds between the two.
    pub elapsed_s: f64,
    /// The server's process number, and whether it was still there at the end.
    pub process: Option<(u32, bool)>,
    /// Whether `/healthz` said 200 at the end.
    pub is_healthy: bool,
    /// Lines of its standard error that tell of a panic, where that can be read.
    pub panics: Option<u64>,
    /// Books of the good subscribers.
    pub good: Account,
    /// Books of the slow ones, by behaviour.
    pub slow: &'a BTreeMap<String, Account>,
    /// Good and slow ones, and publishers, that were cut off.
    pub ended: &'a [String],
    /// p99 of the good ones by window, in nanoseconds, without the crowd.
    pub quiet_p99_ns: Vec<f64>,
    /// And with it.
    pub noisy_p99_ns: Vec<f64>,
    /// Which side was the limit with the crowd.
    pub bottleneck: Bottleneck,
    /// What the crowd did, and what came of it.
    pub acts: Vec<(&'a Act, Tally)>,
}

/// What is said of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It was kept.
    Pass,
    /// It was broken.
    Fail,
    /// It could not be seen, for a reason that stands in the figures.
    Open,
}

impl Verdict {
    /// For people.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Open => "open",
        }
    }

    const fn of(kept: bool) -> Self {
        if kept { Self::Pass } else { Self::Fail }
    }
}

/// One promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Which.
    pub name: &'static str,
    /// Whether it was kept.
    pub verdict: Verdict,
    /// By what.
    pub figures: String,
}

/// All promises.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Vec<Check> {
    vec![
        process(evidence),
        memory(&evidence.memory),
        leftovers(&evidence.before, &evidence.after),
        good(evidence.good, evidence.ended),
        slow(evidence.slow),
        p99(evidence),
        answers(&evidence.acts),
    ]
}

/// Whether nothing was broken.
pub(crate) fn is_sound(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Fail)
}

fn process(evidence: &Evidence<'_>) -> Check {
    let Evidence { before, after, elapsed_s, process, is_healthy, panics, .. } = evidence;
    let lived_on = after.uptime_s - before.uptime_s >= elapsed_s - UPTIME_SLACK_S;
    let internal = after.internal - before.internal;
    let is_there = process.is_none_or(|(_, is_there)| is_there);
    let kept = lived_on && *is_healthy && internal == 0.0 && is_there && panics.is_none_or(|it| it == 0);
    let named = process.map_or_else(|| "process unknown".to_owned(), |(pid, _)| format!("process {pid}"));
    let figures = format!(
        "{named}, {}; /healthz {}; {} closed as `internal`; {}",
        if lived_on && is_there { "the same to the end" } else { "not the same to the end" },
        if *is_healthy { "200" } else { "NOT 200" },
        count(internal),
        panics.map_or_else(|| "its log is not ours".to_owned(), |it| format!("{it} panics in its log")),
    );
    Check { name: "process", verdict: Verdict::of(kept), figures }
}

/// Growth is the slope by Theil and Sen, over the whole time: half of the points may be anything. And as the median of the
/// last third over that of the first: what grows in steps has no slope that most pairs agree on.
fn memory(points: &[(f64, f64)]) -> Check {
    let name = "memory";
    let (Some(first), Some(last), Some(per_s)) = (points.first(), points.last(), slope(points)) else {
        let figures = "the server's process is not known: name it with --server-pid".to_owned();
        return Check { name, verdict: Verdict::Open, figures };
    };
    let by_slope = per_s * (last.0 - first.0);
    let third = points.len().div_ceil(3);
    let level = |part: &[(f64, f64)]| median(part.iter().map(|point| point.1).collect()).unwrap_or(0.0);
    let by_thirds = level(&points[points.len() - third..]) - level(&points[..third]);
    let kept = by_slope <= GROWTH_BYTES_MAX && by_thirds <= GROWTH_BYTES_MAX;
    let figures = format!(
        "{} after the warm-up, {} at the end; growth {} by slope, {} by thirds, at most {}",
        bytes(first.1),
        bytes(last.1),
        bytes(by_slope),
        bytes(by_thirds),
        bytes(GROWTH_BYTES_MAX),
    );
    Check { name, verdict: Verdict::of(kept), figures }
}

fn leftovers(before: &State, after: &State) -> Check {
    let mut kept = after.connections <= before.connections;
    let mut figures =
        format!("connections {} before, {} after", count(before.connections), count(after.connections));
    match (before.descriptors, after.descriptors) {
        (Some(before), Some(after)) => {
            kept &= after <= before;
            figures.push_str(&format!("; descriptors {before} before, {after} after"));
        }
        _ => figures.push_str("; descriptors not known"),
    }
    Check { name: "leftovers", verdict: Verdict::of(kept), figures }
}

fn in_samples(account: &Account) -> String {
    format!(
        "published {}, received {}, announced as lost {}, lost without a word {}, twice {}, frames out of order {}",
        count(account.published as f64),
        count(account.received as f64),
        count(account.announced as f64),
        count(account.unannounced as f64),
        count(account.excess as f64),
        count(account.irregular as f64),
    )
}

fn good(account: Account, ended: &[String]) -> Check {
    let kept = account.is_exact() && account.announced == 0 && account.published > 0 && ended.is_empty();
    let mut figures = in_samples(&account);
    for why in ended {
        figures.push_str(&format!("; cut off: {why}"));
    }
    Check { name: "good books", verdict: Verdict::of(kept), figures }
}

fn slow(books: &BTreeMap<String, Account>) -> Check {
    let mut sum = Account::default();
    for account in books.values() {
        sum += *account;
    }
    // Had they lost nothing, they would not have been slow, and this would have shown nothing.
    let kept = books.values().all(Account::is_exact) && sum.announced > 0;
    Check { name: "slow books", verdict: Verdict::of(kept), figures: in_samples(&sum) }
}

fn p99(evidence: &Evidence<'_>) -> Check {
    let name = "good p99";
    let (quiet, noisy) = (&evidence.quiet_p99_ns, &evidence.noisy_p99_ns);
    let (Some(before), Some(with)) = (median(quiet.clone()), median(noisy.clone())) else {
        let figures = "nothing was measured".to_owned();
        return Check { name, verdict: Verdict::Fail, figures };
    };
    let most = P99_FACTOR_MAX * before + P99_ADDEND_NS;
    let kept = with <= most;
    let mut figures = format!(
        "{} without the crowd, {} with it (medians of {} and {} windows), at most {}",
        time(before),
        time(with),
        quiet.len(),
        noisy.len(),
        time(most),
    );
    let verdict = match evidence.bottleneck {
        Bottleneck::Generator | Bottleneck::Both | Bottleneck::Machine if !kept => {
            figures.push_str(&format!("; the limit was not the server: {}", evidence.bottleneck.label()));
            Verdict::Open
        }
        _ => Verdict::of(kept),
    };
    Check { name, verdict, figures }
}

fn answers(acts: &[(&Act, Tally)]) -> Check {
    let mut wrong: Vec<String> = Vec::new();
    let (mut begun, mut ended) = (0, 0);
    for (act, tally) in acts {
        begun += tally.begun;
        ended += tally.got.values().sum::<u64>();
        let unexpected = tally.got.iter().filter(|(got, _)| !act.expected.contains(got));
        wrong.extend(unexpected.map(|(got, times)| format!("{}: {} x {times}", act.name, got.label())));
    }
    // An act that nobody has ended is a server that lets it stay.
    let without_end = acts.iter().filter(|(_, tally)| tally.got.values().sum::<u64>() == 0);
    wrong.extend(without_end.map(|(act, tally)| format!("{}: none of {} ended", act.name, tally.begun)));
    let kept = wrong.is_empty();
    let mut figures = format!(
        "{} acts of {} kinds, {} ended as they must",
        count(begun as f64),
        acts.iter().filter(|(_, tally)| tally.begun > 0).count(),
        if wrong.is_empty() { format!("all {}", count(ended as f64)) } else { "not all".to_owned() },
    );
    for it in wrong.iter().take(NAMED_MAX) {
        figures.push_str(&format!("; {it}"));
    }
    Check { name: "answers", verdict: Verdict::of(kept), figures }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len().is_multiple_of(2) { upper.midpoint(values[values.len() / 2 - 1]) } else { upper })
}

/// The median of the slopes of all pairs (Theil and Sen): what most of them agree on. `None` without two instants.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let slopes = points.iter().enumerate().flat_map(|(index, &(x, y))| {
        points[index + 1..]
            .iter()
            .filter(move |later| later.0 > x)
            .map(move |later| (later.1 - y) / (later.0 - x))
    });
    median(slopes.collect())
}

/// What an act got, most often first: `closed 1002 x 12`.
pub(crate) fn tally_text(tally: &Tally) -> String {
    let mut got: Vec<(Got, u64)> = tally.got.iter().map(|(got, times)| (*got, *times)).collect();
    got.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let mut parts: Vec<String> =
        got.iter().map(|(got, times)| format!("{} x {times}", got.label())).collect();
    let there = tally.begun - got.iter().map(|(_, times)| times).sum::<u64>();
    if there > 0 {
        parts.push(format!("still there at the end x {there}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::acts::ACTS;
    use proptest::prelude::*;

    const MIB: f64 = 1024.0 * 1024.0;

    fn state(descriptors: usize, uptime_s: f64) -> State {
        State { descriptors: Some(descriptors), connections: 0.0, internal: 0.0, uptime_s }
    }

    fn books(announced: u64) -> Account {
        Account { published: 100, received: 100 - announced, announced, ..Account::default() }
    }

    fn tally(begun: u64, got: &[(Got, u64)]) -> Tally {
        Tally { begun, got: got.iter().copied().collect() }
    }

    fn slow_books() -> BTreeMap<String, Account> {
        [("slow".to_owned(), books(60)), ("flaky".to_owned(), books(0))].into()
    }

    fn sound(slow: &BTreeMap<String, Account>) -> Evidence<'_> {
        Evidence {
            memory: (0..60).map(|at| (f64::from(at), 20.0 * MIB)).collect(),
            before: state(12, 5.0),
            after: state(12, 64.0),
            elapsed_s: 60.0,
            process: Some((7, true)),
            is_healthy: true,
            panics: Some(0),
            good: books(0),
            slow,
            ended: &[],
            quiet_p99_ns: vec![11e6; 10],
            noisy_p99_ns: vec![12e6; 40],
            bottleneck: Bottleneck::Neither,
            acts: ACTS.iter().map(|act| (act, tally(2, &[(act.expected[0], 1)]))).collect(),
        }
    }

    /// What is not `pass`, and what is said of it.
    fn not_passed(evidence: &Evidence<'_>) -> Vec<(&'static str, Verdict)> {
        let checks = judge(evidence);
        assert_eq!(is_sound(&checks), checks.iter().all(|it| it.verdict != Verdict::Fail));
        let not = checks.into_iter().filter(|it| it.verdict != Verdict::Pass);
        not.map(|it| (it.name, it.verdict)).collect()
    }

    #[test]
    fn each_promise_can_be_broken() {
        let slow = slow_books();
        let sound = || sound(&slow);
        assert_eq!(not_passed(&sound()), []);

        let lost = Account { unannounced: 1, received: 99, ..books(0) };
        let silent: BTreeMap<_, _> = [("slow".to_owned(), Account { unannounced: 1, ..books(50) })].into();
        let twice: BTreeMap<_, _> = [("slow".to_owned(), Account { excess: 1, ..books(50) })].into();
        let not_slow: BTreeMap<_, _> = [("slow".to_owned(), books(0))].into();
        let gone = ["the server closed the connection: 4413".to_owned()];
        let wrong = |got| vec![(&ACTS[0], tally(3, &[(Got::Closed(1000), 2), (got, 1)]))];
        let grows = |by: f64| (0..60).map(|at| (f64::from(at), 20.0 * MIB + by * f64::from(at))).collect();
        let rows: [(&str, &str, Evidence<'_>); 21] = [
            ("another process", "process", Evidence { after: state(12, 40.0), ..sound() }),
            ("no process", "process", Evidence { process: Some((7, false)), ..sound() }),
            ("not healthy", "process", Evidence { is_healthy: false, ..sound() }),
            ("a panic", "process", Evidence { panics: Some(1), ..sound() }),
            (
                "a fault of its own",
                "process",
                Evidence { after: State { internal: 1.0, ..state(12, 64.0) }, ..sound() },
            ),
            ("it grows", "memory", Evidence { memory: grows(0.2 * MIB), ..sound() }),
            (
                "it grows in a step",
                "memory",
                Evidence {
                    memory: (0..60)
                        .map(|at| (f64::from(at), if at < 25 { 20.0 } else { 29.0 } * MIB))
                        .collect(),
                    ..sound()
                },
            ),
            ("a descriptor", "leftovers", Evidence { after: state(13, 64.0), ..sound() }),
            (
                "a connection",
                "leftovers",
                Evidence { after: State { connections: 1.0, ..state(12, 64.0) }, ..sound() },
            ),
            ("a loss", "good books", Evidence { good: lost, ..sound() }),
            ("a loss that was told", "good books", Evidence { good: books(1), ..sound() }),
            ("nothing published", "good books", Evidence { good: Account::default(), ..sound() }),
            ("one cut off", "good books", Evidence { ended: &gone, ..sound() }),
            ("a silent loss of a slow one", "slow books", Evidence { slow: &silent, ..sound() }),
            ("one told of what came", "slow books", Evidence { slow: &twice, ..sound() }),
            ("nobody was slow", "slow books", Evidence { slow: &not_slow, ..sound() }),
            ("late", "good p99", Evidence { noisy_p99_ns: vec![43e6; 40], ..sound() }),
            ("not measured", "good p99", Evidence { noisy_p99_ns: vec![], ..sound() }),
            ("another answer", "answers", Evidence { acts: wrong(Got::Closed(1011)), ..sound() }),
            ("no answer", "answers", Evidence { acts: wrong(Got::Silence), ..sound() }),
            (
                "an act that never was",
                "answers",
                Evidence { acts: vec![(&ACTS[0], Tally::default())], ..sound() },
            ),
        ];
        for (what, name, evidence) in &rows {
            assert_eq!(not_passed(evidence), [(*name, Verdict::Fail)], "{what}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_open() {
        let slow = slow_books();
        let rows = [
            ("memory", Evidence { memory: vec![], ..sound(&slow) }),
            (
                "good p99",
                Evidence { noisy_p99_ns: vec![90e6; 40], bottleneck: Bottleneck::Machine, ..sound(&slow) },
            ),
        ];
        for (name, evidence) in rows {
            assert_eq!(not_passed(&evidence), [(name, Verdict::Open)]);
        }
        // A limit that held is held, whoever was the limit.
        let full = Evidence { bottleneck: Bottleneck::Generator, ..sound(&slow) };
        assert_eq!(not_passed(&full), []);
        // And a server that was the limit itself has no excuse.
        let server =
            Evidence { noisy_p99_ns: vec![90e6; 40], bottleneck: Bottleneck::Server, ..sound(&slow) };
        assert_eq!(not_passed(&server), [("good p99", Verdict::Fail)]);
    }

    #[test]
    fn single_stalls_are_forgotten() {
        let slow = slow_books();
        let mut evidence = sound(&slow);
        for window in &mut evidence.noisy_p99_ns[..19] {
            *window = 900e6;
        }
        // And so are moments of much memory.
        for point in evidence.memory.iter_mut().skip(40).step_by(3) {
            point.1 *= 4.0;
        }
        assert_eq!(not_passed(&evidence), []);
    }

    #[test]
    fn medians_and_slopes() {
        assert_eq!(median(vec![]), None);
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (Some(2.0), Some(2.5)));
        assert_eq!((slope(&[]), slope(&[(1.0, 2.0)]), slope(&[(1.0, 2.0), (1.0, 3.0)])), (None, None, None));
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 1_000.0), (3.0, 7.0), (4.0, 9.0)]), Some(2.0));
    }

    proptest! {
        /// The slope is found whatever a quarter of the points say.
        #[test]
        fn the_slope_is_robust(per_s in -1e6f64..1e6, wild in prop::collection::vec((0usize..80, -1e12f64..1e12), 0..12)) {
            let mut points: Vec<(f64, f64)> = (0..80).map(|at| (f64::from(at), per_s * f64::from(at))).collect();
            for (at, value) in wild {
                points[at].1 = value;
            }
            let found = slope(&points).unwrap();
            // Wild points shift the median among slopes that are all the same.
            prop_assert!((found - per_s).abs() <= 1e-3 * (1.0 + per_s.abs()), "{found} for {per_s}");
        }
    }

    #[test]
    fn tallies_in_words() {
        let some = tally(9, &[(Got::CutOff, 1), (Got::Closed(1008), 5), (Got::Refused(401), 2)]);
        assert_eq!(
            tally_text(&some),
            "closed 1008 x 5, HTTP 401 x 2, cut off x 1, still there at the end x 1"
        );
    }
}
