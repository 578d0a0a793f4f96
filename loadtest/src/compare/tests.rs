//! Verdicts, from whole files.

use super::*;
use crate::report::sample::Sample;
use crate::result::Bottleneck;

/// A run whose p99 in `steady` has these values, one for each repetition.
fn run(p99: &[u64]) -> RunFile {
    let sample = Sample { repetitions: p99.len(), scenarios: vec!["steady"], ..Sample::default() };
    let mut run = sample.run("x");
    for (repetition, p99) in run.results[0].repetitions.iter_mut().zip(p99) {
        repetition.phases[0].latency.p99 = *p99;
    }
    run
}

fn line<'a>(comparison: &'a Comparison, figure: &str) -> &'a Line {
    comparison.lines.iter().find(|it| it.figure == figure).unwrap()
}

#[test]
fn a_verdict_needs_a_difference_and_certainty() {
    use Verdict::{Better, OneRepetition, Same, Worse};
    // (what it shows, before, after, verdict)
    let cases: [(&str, &[u64], &[u64], Verdict); 10] = [
        ("the same values", &[100, 101, 102], &[100, 101, 102], Same),
        ("apart, but less than the threshold", &[1_000, 1_001, 1_002], &[1_030, 1_031, 1_032], Same),
        ("more than the threshold, but the ranges meet", &[100, 150, 160], &[140, 200, 210], Same),
        ("three apart", &[100, 101, 102], &[110, 111, 112], Worse),
        ("three apart, downwards", &[110, 111, 112], &[100, 101, 102], Better),
        ("five with one outlier", &[100, 101, 102, 103, 131], &[120, 121, 122, 123, 124], Same),
        ("five, one of them inside", &[100, 101, 102, 103, 120], &[119, 121, 122, 123, 124], Worse),
        ("one repetition before", &[100], &[200, 201, 202], OneRepetition),
        ("one repetition after", &[100, 101, 102], &[200], OneRepetition),
        ("two apart", &[100, 101], &[200, 201], Worse),
    ];
    for (name, before, after, expected) in cases {
        let comparison = compare(&run(before), &run(after), 0.05);
        assert_eq!(line(&comparison, "p99_ns").verdict, expected, "{name}");
        assert_eq!(comparison.is_regression(), expected == Worse, "{name}: {comparison:?}");
        assert!(comparison.cannot.is_empty(), "{name}");
    }
}

#[test]
fn more_is_better_for_some_figures() {
    let with = |per_s: f64| {
        let mut run = run(&[100, 101, 102]);
        run.results[0].repetitions.iter_mut().for_each(|it| it.phases[0].deliveries_per_s = per_s);
        run
    };
    let verdict =
        |before, after| line(&compare(&with(before), &with(after), 0.05), "deliveries_per_s").verdict;
    assert_eq!(verdict(100.0, 120.0), Verdict::Better);
    assert_eq!(verdict(120.0, 100.0), Verdict::Worse);
    assert_eq!(verdict(0.0, 100.0), Verdict::Better, "from 0");
}

#[test]
fn a_limit_other_than_the_server_is_no_verdict_but_a_loss_is() {
    let before = run(&[100, 101, 102]);
    let mut after = run(&[200, 201, 202]);
    after.results[0].repetitions[1].phases[0].bottleneck = Bottleneck::Machine;
    assert_eq!(line(&compare(&before, &after, 0.05), "p99_ns").verdict, Verdict::Machine);
    after.results[0].repetitions[1].phases[0].bottleneck = Bottleneck::Generator;
    let comparison = compare(&before, &after, 0.05);
    assert_eq!(line(&comparison, "p99_ns").verdict, Verdict::Generator);
    assert!(!comparison.is_regression());
    after.results[0].repetitions[2].account.unannounced = 1;
    assert_eq!(line(&compare(&before, &after, 0.05), "unannounced").verdict, Verdict::Worse);
    assert_eq!(line(&compare(&after, &before, 0.05), "unannounced").verdict, Verdict::Better);
}

#[test]
fn what_does_not_match_is_named() {
    let before = run(&[100, 101, 102]);
    // (change, what is said, whether it forbids the comparison, whether figures are left)
    type Change = fn(&mut RunFile);
    let cases: [(Change, &str, bool, bool); 6] = [
        (
            |it| it.results[0].scenario.payload_bytes = 7,
            "steady: scenario: payload_bytes was 128, is 7",
            true,
            false,
        ),
        (|it| it.generator.profile = "debug".into(), "profile was release, is debug", true, true),
        (|it| it.machine.cpus = 64, "machine: cpus was 2, is 64", false, true),
        (|it| it.results[0].subject.workers = Some(9), "server: workers was 1, is 9", false, true),
        (|it| it.results[0].subject.name = "other".into(), "no subject and scenario in common", true, false),
        (|it| it.results[0].scenario.about = "in other words".into(), "", false, true),
    ];
    for (change, said, is_fatal, has_lines) in cases {
        let mut after = before.clone();
        change(&mut after);
        let comparison = compare(&before, &after, 0.05);
        let found = if is_fatal { &comparison.cannot } else { &comparison.warnings };
        assert!(said.is_empty() || found.iter().any(|it| it.contains(said)), "{said}: {comparison:?}");
        assert_eq!(comparison.cannot.is_empty(), !is_fatal, "{said}: {:?}", comparison.cannot);
        assert_eq!(comparison.lines.is_empty(), !has_lines, "{said}");
    }
}

#[test]
fn the_text_fits_a_terminal() {
    let sample = Sample::default();
    let (before, mut after) = (sample.run("before"), sample.run("after"));
    for repetition in &mut after.results[0].repetitions {
        repetition.phases[0].latency.p99 *= 2;
    }
    let comparison = compare(&before, &after, 0.05);
    let names = ["a.json".to_owned(), "b\u{1b}[2J.json".to_owned()];
    let options = text::Options { threshold: 0.05, all: true };
    let text = text::print(&comparison, [&before, &after], &names, options);
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    assert!(text.contains("WORSE") && text.contains("+100.0 %"), "{text}");
    assert!(!text.contains('\u{1b}'), "what a terminal obeys is spelled out");
    assert!(text.contains("1 worse, 0 better"), "{text}");
}

#[test]
fn thresholds() {
    for (text, expected) in
        [("5%", Some(0.05)), ("0.05", Some(0.05)), ("0", Some(0.0)), ("-1%", None), ("x", None)]
    {
        assert_eq!(share(text).ok(), expected, "{text}");
    }
}
