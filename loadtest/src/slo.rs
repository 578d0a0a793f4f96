//! Service level objectives, as `find-limit` takes them: `p99<20ms,loss=0`. Pure.

use std::fmt;
use std::str::FromStr;

use crate::result::Repetition;

/// All of its terms have to hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slo(Vec<Term>);

#[derive(Clone, Debug, PartialEq)]
struct Term {
    figure: Figure,
    relation: Relation,
    /// Nanoseconds, samples, or CPUs.
    bound: f64,
    /// As it was written.
    text: String,
}

/// What a term is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    P50,
    P90,
    P99,
    P999,
    Max,
    /// Samples lost without a word.
    Loss,
    /// Samples announced as lost to healthy subscribers.
    Gaps,
    /// CPUs of the server.
    Cpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    AtMost,
    Equal,
}

const FIGURES: [(&str, Figure); 8] = [
    ("p50", Figure::P50),
    ("p90", Figure::P90),
    ("p99", Figure::P99),
    ("p999", Figure::P999),
    ("max", Figure::Max),
    ("loss", Figure::Loss),
    ("gaps", Figure::Gaps),
    ("cpu", Figure::Cpu),
];

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|term| term.trim().parse()).collect::<Result<Vec<Term>, _>>().map(Self)
    }
}

impl FromStr for Term {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?}: {why}; want terms such as p99<20ms, loss=0, cpu<0.8");
        let at = text.find(['<', '=']).ok_or_else(|| wrong("it has no <, <= or ="))?;
        let (name, rest) = text.split_at(at);
        let (relation, value) = match rest.strip_prefix("<=").map(|value| (Relation::AtMost, value)) {
            Some(pair) => pair,
            None => match rest.strip_prefix('<') {
                Some(value) => (Relation::Less, value),
                None => (Relation::Equal, &rest[1..]),
            },
        };
        let figure =
            FIGURES.iter().find(|(known, _)| *known == name.trim()).map(|it| it.1).ok_or_else(|| {
                let known: Vec<&str> = FIGURES.iter().map(|it| it.0).collect();
                wrong(&format!("{:?} is not one of {}", name.trim(), known.join(", ")))
            })?;
        let value = value.trim();
        let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
        let number: f64 =
            digits.parse().map_err(|_| wrong(&format!("{value:?} does not begin with a number")))?;
        let unit = match (figure, &value[digits.len()..]) {
            (Figure::Loss | Figure::Gaps, "") | (Figure::Cpu, "") => 1.0,
            (Figure::Cpu, "%") => 0.01,
            (Figure::Loss | Figure::Gaps, unit) => {
                return Err(wrong(&format!("samples have no unit {unit:?}")));
            }
            (Figure::Cpu, unit) => return Err(wrong(&format!("{unit:?} is not %, or nothing for CPUs"))),
            (_, "us") => 1e3,
            (_, "ms") => 1e6,
            (_, "s") => 1e9,
            (_, unit) => return Err(wrong(&format!("{unit:?} is not one of us, ms, s"))),
        };
        if !number.is_finite() || number < 0.0 {
            return Err(wrong("the bound must be 0 or more"));
        }
        Ok(Self { figure, relation, bound: number * unit, text: text.to_owned() })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<&str> = self.0.iter().map(|term| term.text.as_str()).collect();
        f.write_str(&terms.join(","))
    }
}

impl Term {
    /// The worst of all phases; `None` where it was not measured.
    fn of(&self, repetition: &Repetition) -> Option<f64> {
        let phases = repetition.phases.iter();
        let worst = |figures: &mut dyn Iterator<Item = f64>| figures.reduce(f64::max);
        let account = repetition.account;
        match self.figure {
            Figure::P50 => worst(&mut phases.map(|it| it.latency.p50 as f64)),
            Figure::P90 => worst(&mut phases.map(|it| it.latency.p90 as f64)),
            Figure::P99 => worst(&mut phases.map(|it| it.latency.p99 as f64)),
            Figure::P999 => worst(&mut phases.map(|it| it.latency.p999 as f64)),
            Figure::Max => worst(&mut phases.map(|it| it.latency.max as f64)),
            Figure::Loss => Some((account.unannounced + account.excess + account.irregular) as f64),
            Figure::Gaps => Some(account.announced as f64),
            Figure::Cpu => worst(&mut phases.filter_map(|it| it.server.cpus)),
        }
    }

    fn holds(&self, figure: f64) -> bool {
        match self.relation {
            Relation::Less => figure < self.bound,
            Relation::AtMost => figure <= self.bound,
            Relation::Equal => figure.total_cmp(&self.bound).is_eq(),
        }
    }
}

impl Slo {
    /// The terms that do not hold, as they were written. A figure that was not measured does not hold.
    pub(crate) fn broken_by(&self, repetition: &Repetition) -> Vec<&str> {
        let broken = |term: &&Term| !term.of(repetition).is_some_and(|figure| term.holds(figure));
        self.0.iter().filter(broken).map(|term| term.text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Account;
    use crate::verdict::fixture::{file, outcome, phase};

    fn repetition(latency_ns: u64, account: Account) -> Repetition {
        let mut file = file(&[outcome("steady", vec![phase("steady", 1_000), phase("steady", latency_ns)])]);
        Repetition { account, ..file.results.remove(0).repetitions.remove(0) }
    }

    #[test]
    fn terms_hold_or_not() {
        let account = Account { announced: 3, ..Account::default() };
        let once = repetition(5_000_000, account);
        let cases: [(&str, &[&str]); 9] = [
            ("p99<20ms,loss=0", &[]),
            ("p99<4ms", &["p99<4ms"]),
            ("p50 < 5100us , max<=0.006s", &[]),
            ("gaps=0, loss=0", &["gaps=0"]),
            ("gaps<=3", &[]),
            ("cpu<19%", &["cpu<19%"]),
            ("cpu<0.2", &[]),
            ("p999<1us,p90<1us", &["p999<1us", "p90<1us"]),
            ("loss<1", &[]),
        ];
        for (text, broken) in cases {
            assert_eq!(text.parse::<Slo>().unwrap().broken_by(&once), broken, "{text}");
        }
        let lost = repetition(1, Account { unannounced: 1, ..Account::default() });
        assert_eq!("loss=0".parse::<Slo>().unwrap().broken_by(&lost), ["loss=0"]);
        assert_eq!("p99<20ms, loss=0".parse::<Slo>().unwrap().to_string(), "p99<20ms,loss=0");
    }

    #[test]
    fn mistakes_name_the_term() {
        for (text, expected) in [
            ("", "no <"),
            ("p99<20ms,", "no <"),
            ("p98<20ms", "p98"),
            ("p99>20ms", "no <"),
            ("p99<20", "us, ms, s"),
            ("p99<20min", "min"),
            ("p99<fastms", "number"),
            ("loss=0ms", "no unit"),
            ("cpu<2s", "CPUs"),
            ("p99<-1ms", "0 or more"),
        ] {
            let problem = text.parse::<Slo>().unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
