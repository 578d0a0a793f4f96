//! What a page is about: the results of all its files by scenario, each with a label and a look that it keeps throughout. Pure.

use hdrhistogram::Histogram;

use crate::result::{PhaseResult, Repetition, RunFile, ScenarioResult};
use crate::units::visible;

/// A file with its name.
#[derive(Debug)]
pub(crate) struct Source {
    /// What tells it from the others: the file's name without its folder and suffix.
    pub name: String,
    /// What is in it.
    pub file: RunFile,
}

/// One result, as the page calls it.
#[derive(Clone, Debug)]
pub(crate) struct Run<'a> {
    /// Its name in legends and tables.
    pub label: String,
    /// Which look it has: the same wherever the label is.
    pub look: usize,
    /// What was found.
    pub result: &'a ScenarioResult,
}

/// The results of one scenario.
#[derive(Clone, Debug)]
pub(crate) struct Group<'a> {
    /// Its name.
    pub name: &'a str,
    /// One for each subject and file.
    pub runs: Vec<Run<'a>>,
}

impl Group<'_> {
    /// Labels of the phases that any of the runs has, in order.
    pub(crate) fn phases(&self) -> Vec<&str> {
        let mut labels = Vec::new();
        for run in &self.runs {
            for phase in run.result.repetitions.iter().flat_map(|it| &it.phases) {
                if !labels.contains(&phase.label.as_str()) {
                    labels.push(phase.label.as_str());
                }
            }
        }
        labels
    }
}

impl Run<'_> {
    /// The repetition to draw by second: that whose p99, over its phases, is the middle one.
    pub(crate) fn typical(&self) -> Option<(usize, &Repetition)> {
        let key = |repetition: &Repetition| repetition.phases.iter().map(|it| it.latency.p99).sum::<u64>();
        let mut order: Vec<(usize, &Repetition)> = self.result.repetitions.iter().enumerate().collect();
        order.sort_by_key(|(_, repetition)| key(repetition));
        order.get(order.len().saturating_sub(1) / 2).copied()
    }

    /// A phase in every repetition.
    pub(crate) fn phase(&self, label: &str) -> Vec<&PhaseResult> {
        let phases = self.result.repetitions.iter().flat_map(|it| &it.phases);
        phases.filter(|phase| phase.label == label).collect()
    }

    /// The latencies of a phase, all repetitions together; nothing where none were recorded.
    pub(crate) fn histogram(&self, label: &str) -> Option<Histogram<u64>> {
        let mut sum: Option<Histogram<u64>> = None;
        for phase in self.phase(label) {
            // What cannot be decoded was refused when the file was read.
            let Ok(one) = phase.latency_histogram.decode() else { continue };
            match &mut sum {
                Some(sum) => {
                    sum.auto(true);
                    // With resizing on, adding cannot fail.
                    let _ = sum.add(&one);
                }
                None => sum = Some(one),
            }
        }
        sum.filter(|it| !it.is_empty())
    }
}

/// Groups the results of all files by scenario, in the order of their first appearance.
pub(crate) fn groups(sources: &[Source]) -> Vec<Group<'_>> {
    let all = || sources.iter().flat_map(|source| source.file.results.iter().map(move |it| (source, it)));
    let first = all().next().map(|(_, it)| it.subject.name.as_str());
    let one_subject = all().all(|(_, it)| Some(it.subject.name.as_str()) == first);
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    for (source, result) in all() {
        let subject = visible(&result.subject.name);
        let base = match (sources.len(), one_subject) {
            (1, _) => subject,
            (_, true) => visible(&source.name),
            (_, false) => format!("{subject}, {}", visible(&source.name)),
        };
        let name: &str = &result.scenario.name;
        let place = groups.iter().position(|it| it.name == name).unwrap_or_else(|| {
            groups.push(Group { name, runs: Vec::new() });
            groups.len() - 1
        });
        let runs = &mut groups[place].runs;
        let taken = |label: &str| runs.iter().any(|it| it.label == label);
        let label = if taken(&base) {
            let again = (2..).map(|number| format!("{base} #{number}")).find(|label| !taken(label));
            again.unwrap_or(base)
        } else {
            base
        };
        let look = labels.iter().position(|it| *it == label).unwrap_or_else(|| {
            labels.push(label.clone());
            labels.len() - 1
        });
        runs.push(Run { label, look, result });
    }
    groups
}

/// The subjects that a page tells apart, in order of appearance.
pub(crate) fn labels(groups: &[Group<'_>]) -> Vec<String> {
    let mut labels: Vec<(usize, &str)> = Vec::new();
    for run in groups.iter().flat_map(|it| &it.runs) {
        if !labels.iter().any(|it| it.0 == run.look) {
            labels.push((run.look, &run.label));
        }
    }
    labels.sort_unstable();
    labels.into_iter().map(|(_, label)| label.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;

    fn source(name: &str, sample: &Sample) -> Source {
        Source { name: name.to_owned(), file: sample.run(name) }
    }

    fn names(sources: &[Source]) -> Vec<String> {
        labels(&groups(sources))
    }

    #[test]
    fn labels_are_as_short_as_they_can_be() {
        let one = Sample::default();
        let two = Sample { subjects: vec!["a".to_owned(), "b".to_owned()], ..Sample::default() };
        let same = Sample { subjects: vec!["a".to_owned(), "a".to_owned()], ..Sample::default() };
        assert_eq!(names(&[source("x", &one)]), ["tidewire"]);
        assert_eq!(names(&[source("x", &one), source("y", &one)]), ["x", "y"]);
        assert_eq!(names(&[source("x", &two)]), ["a", "b"]);
        assert_eq!(names(&[source("x", &two), source("y", &one)]), ["a, x", "b, x", "tidewire, y"]);
        assert_eq!(names(&[source("x", &same)]), ["a", "a #2"]);
    }

    #[test]
    fn repetitions_are_merged_and_the_middle_one_is_drawn() {
        let mut sources = [source("x", &Sample::default())];
        for (repetition, p99) in sources[0].file.results[0].repetitions.iter_mut().zip([30, 10, 20]) {
            repetition.phases[0].latency.p99 = p99;
        }
        let groups = groups(&sources);
        let run = &groups[0].runs[0];
        assert_eq!(run.typical().unwrap().0, 2);
        assert_eq!(run.histogram("steady").unwrap().len(), 3 * 60_000);
        assert!(run.histogram("nonsense").is_none());
        let idle = groups.iter().find(|it| it.name == "idle").unwrap();
        assert!(idle.runs[0].histogram("idle").is_none());
        let slow = groups.iter().find(|it| it.name == "slow_reader").unwrap();
        assert_eq!(slow.phases(), ["slow_reader/without", "slow_reader/with"]);
    }
}
