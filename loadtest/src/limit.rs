//! `find-limit`: the highest rate at which a scenario still meets an objective. Doubles the rate until it does not, then
//! halves the gap, then confirms what it found with a longer run. The search is pure; the runs are `session`'s.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::args::LimitArgs;
use crate::clock::Clock;
use crate::figures::{is_generators, is_machines};
use crate::proc;
use crate::result::{PhaseResult, Repetition, ScenarioResult};
use crate::run::Progress;
use crate::scenario::{Kind, Load, Scenario};
use crate::session::{self, Bar};
use crate::source::Source;
use crate::table;
use crate::verdict;

/// Share of the messages asked for that have to go out for a step to count.
const SENT_MIN: f64 = 0.98;

/// Steps down that a confirmation may take before the search gives up.
const CONFIRMATIONS_MAX: u32 = 6;

/// The state of a search for the highest rate that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Search {
    next: u64,
    passed: Option<u64>,
    failed: Option<u64>,
    rate_max: u64,
}

impl Search {
    const fn new(from: u64, rate_max: u64) -> Self {
        Self { next: from, passed: None, failed: None, rate_max }
    }

    /// Takes the outcome of the rate `next`; whether another has to be tried. `precision` is a share of the rate.
    fn tell(&mut self, passes: bool, precision: f64) -> bool {
        if passes {
            self.passed = Some(self.next);
        } else {
            self.failed = Some(self.next);
        }
        match (self.passed, self.failed) {
            (Some(passed), None) => {
                self.next = passed.saturating_mul(2).min(self.rate_max);
                self.next > passed
            }
            (None, Some(failed)) => {
                self.next = failed / 2;
                self.next > 0
            }
            (Some(passed), Some(failed)) => {
                self.next = passed.midpoint(failed);
                self.next > passed && (failed - passed) as f64 > precision * passed as f64
            }
            (None, None) => true,
        }
    }
}

/// What a step showed.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passes,
    /// Why not.
    Fails(String),
    /// What else was the limit: the figures say little about the server.
    NotTheServer(&'static str),
}

fn judge(repetition: &Repetition, args: &LimitArgs) -> Verdict {
    let broken = args.slo.broken_by(repetition);
    let ended = repetition.ended.first();
    let short = repetition.phases.iter().find(|phase| {
        phase.asked_messages_per_s.is_some_and(|asked| phase.messages_per_s < SENT_MIN * asked)
    });
    if broken.is_empty() && ended.is_none() && short.is_none() {
        return Verdict::Passes;
    }
    let limit = |limit: fn(&PhaseResult) -> bool| repetition.phases.iter().any(limit);
    if limit(is_generators) {
        return Verdict::NotTheServer("the generator was the bottleneck");
    }
    if limit(is_machines) {
        return Verdict::NotTheServer("the machine was full");
    }
    let mut why: Vec<String> = broken.iter().map(|term| format!("not {term}")).collect();
    why.extend(ended.map(|it| format!("a connection ended: {it}")));
    why.extend(short.map(|phase| format!("only {:.0} messages/s went out", phase.messages_per_s)));
    Verdict::Fails(why.join(", "))
}

/// Finds the limit, prints every step, and writes the confirmation: whether there is one.
pub(crate) fn find(args: &LimitArgs) -> Result<bool, String> {
    let mut scenarios = crate::args::find(std::slice::from_ref(&args.scenario))?;
    let Some(scenario) = scenarios.pop().filter(|_| scenarios.is_empty()) else {
        return Err(format!(
            "{}: find-limit takes one scenario, and there are several; name one",
            args.scenario
        ));
    };
    let scenario = args.changes.apply(scenario);
    scenario.check()?;
    let from = match scenario.load {
        Load::Scheduled { per_s } if scenario.kind == Kind::Stream => per_s,
        _ => {
            return Err(format!(
                "{}: find-limit needs a scenario with a rate; use one with load = {{ scheduled = {{ per_s = N }} }}, or --rate",
                scenario.name
            ));
        }
    };
    let run = Run {
        args,
        scenario: &scenario,
        source: Source::new(&args.server, args.access)?,
        clock: Clock::new(),
    };
    if let Some(cpu) = args.generator.pin_client {
        proc::bind(cpu).map_err(|error| format!("--pin-client: {error}"))?;
    }
    println!("{}: the highest rate with {}", scenario.name, args.slo);
    let mut search = Search::new(from.get().min(args.max_rate.get()), args.max_rate.get());
    let mut is_lower_bound = false;
    loop {
        let (_, verdict) = run.step(search.next, args.step_duration, "step")?;
        let is_bound = matches!(verdict, Verdict::NotTheServer(_));
        is_lower_bound |= is_bound;
        if is_bound && search.passed.is_some() {
            // Higher rates say nothing about the server.
            break;
        }
        if !search.tell(verdict == Verdict::Passes, args.precision) {
            break;
        }
    }
    let Some(mut rate) = search.passed else {
        let bound = if is_lower_bound {
            ", and in some step something else than the server was the limit"
        } else {
            ""
        };
        println!("no rate meets it{bound}");
        return Ok(false);
    };
    if search.failed.is_none() {
        is_lower_bound = true;
    }
    for _ in 0..CONFIRMATIONS_MAX {
        let (result, verdict) = run.step(rate, 2 * args.step_duration, "confirm")?;
        if verdict == Verdict::Passes {
            let at_least = if is_lower_bound { "at least " } else { "" };
            let samples = rate.saturating_mul(u64::from(scenario.samples_per_message));
            println!("limit: {at_least}{rate} messages/s, {samples} samples/s in, with {}", args.slo);
            if is_lower_bound {
                println!(
                    "(above it something else than the server is the limit, or --max-rate ends the search)"
                );
            }
            let mut file = session::new_file();
            file.results.push(result);
            print!("\n{}", table::text(&file));
            session::save_json(&args.json, &file)?;
            return Ok(true);
        }
        // A limit that holds for one short run only is none.
        rate = rate - rate / 20 - 1;
        if rate == 0 {
            break;
        }
    }
    println!("no rate meets it twice: the figures vary more than the objective allows");
    Ok(false)
}

struct Run<'a> {
    args: &'a LimitArgs,
    scenario: &'a Scenario,
    source: Source,
    clock: Clock,
}

impl Run<'_> {
    fn step(&self, rate: u64, duration: Duration, what: &str) -> Result<(ScenarioResult, Verdict), String> {
        let per_s = NonZeroU64::new(rate).unwrap_or(NonZeroU64::MIN);
        let mut scenario =
            Scenario { load: Load::Scheduled { per_s }, duration_s: duration, ..self.scenario.clone() };
        scenario.phases.iter_mut().for_each(|phase| phase.duration_s = None);
        let interrupted = session::interruption()?;
        let bar = Bar::new(scenario.total());
        let mut on_progress = |it: &Progress<'_>| bar.show(it.at, &format!("{what} {rate}/s  "), it);
        let started_s = session::now_s();
        let outcome =
            session::run_once(&scenario, &self.source, &self.args.generator, &interrupted, &mut on_progress);
        bar.end();
        let subject = self.source.subject(&self.args.generator, None);
        let once = verdict::repetition(&outcome?, &scenario, started_s, subject.cpus);
        let verdict = judge(&once, self.args);
        let at_s = Duration::from_nanos(self.clock.now_ns()).as_secs().saturating_sub(started_s);
        println!(
            "{what:<8} {rate:>9}/s  {}  {}  ({at_s} s)",
            table::in_short(&once),
            match &verdict {
                Verdict::Passes => "meets it".to_owned(),
                Verdict::Fails(why) => why.clone(),
                Verdict::NotTheServer(limit) => (*limit).to_owned(),
            }
        );
        Ok((ScenarioResult { subject, scenario, repetitions: vec![once] }, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate found against a server that passes up to `limit`, and the steps it took.
    fn found(from: u64, limit: u64, rate_max: u64, precision: f64) -> (Option<u64>, u32) {
        let mut search = Search::new(from, rate_max);
        for steps in 1..100 {
            let rate = search.next;
            if !search.tell(rate <= limit, precision) {
                return (search.passed, steps);
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn the_search_finds_the_limit() {
        for limit in [1, 7, 1_000, 1_001, 15_999, 123_456] {
            for from in [1, 999, 1_000, 50_000] {
                let (rate, steps) = found(from, limit, u64::MAX, 0.05);
                let rate = rate.unwrap();
                assert!(rate <= limit && rate as f64 >= limit as f64 * 0.95 - 1.0, "{from} {limit}: {rate}");
                assert!(steps < 30, "{steps}");
            }
        }
    }

    #[test]
    fn the_search_ends_where_there_is_no_limit_or_nothing_passes() {
        assert_eq!(found(1_000, u64::MAX, 10_000, 0.05).0, Some(10_000));
        assert_eq!(found(1_000, 0, 10_000, 0.05).0, None);
        assert_eq!(found(10_000, 10_000, 10_000, 0.05), (Some(10_000), 1));
    }
}
