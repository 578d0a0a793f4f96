//! What cannot be run, and what to change. Pure.

use std::time::Duration;

use super::{Behaviour, Group, Kind, Load, Scenario};

/// Shortest measurement.
const DURATION_MIN: Duration = Duration::from_millis(100);

/// Shortest interval of a time series.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

impl Scenario {
    /// The error names the scenario, the key, the value and the remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.problem().map_or(Ok(()), |problem| Err(format!("{}: {problem}", self.name)))
    }

    fn problem(&self) -> Option<String> {
        let tokens = |text: &str| {
            !text.is_empty() && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"_-".contains(&it))
        };
        if !tokens(&self.name) {
            return Some(format!(
                "name = {:?}: it becomes part of channel names; use letters, digits, _ and -",
                self.name
            ));
        }
        if let Some(phase) = self.phases.iter().find(|it| !tokens(&it.name)) {
            return Some(format!("phases.name = {:?}: use letters, digits, _ and -", phase.name));
        }
        let twice = self
            .phases
            .iter()
            .enumerate()
            .find(|(at, it)| self.phases[..*at].iter().any(|other| other.name == it.name));
        if let Some((_, phase)) = twice {
            return Some(format!("phases.name = {:?} is there twice; give each phase its own", phase.name));
        }
        for part in self.parts() {
            if part.duration < DURATION_MIN {
                return Some(format!(
                    "duration_s = {}: it must be at least 0.1 s (--duration)",
                    part.duration.as_secs_f64()
                ));
            }
            if !(0.001..=1_000.0).contains(&part.rate_factor) {
                return Some(format!("phases.rate_factor = {}: give 0.001 to 1000", part.rate_factor));
            }
        }
        if self.interval_s < INTERVAL_MIN {
            return Some(format!("interval_s = {}: give at least 0.05", self.interval_s.as_secs_f64()));
        }
        match self.kind {
            Kind::Accept { in_flight } => self.problem_of_accept(in_flight),
            Kind::Stream => self.problem_of_stream(),
        }
    }

    fn problem_of_accept(&self, in_flight: usize) -> Option<String> {
        /// More wait in the server's backlog only.
        const IN_FLIGHT_MAX: usize = 1_000;
        if !(1..=IN_FLIGHT_MAX).contains(&in_flight) {
            return Some(format!("kind.accept.in_flight = {in_flight}: give 1 to {IN_FLIGHT_MAX}"));
        }
        if self.publishers > 0 || !self.groups.is_empty() || self.load != Load::Silent {
            return Some("kind.accept: nobody publishes or subscribes in it; set publishers = 0, and leave groups and load out".to_owned());
        }
        None
    }

    fn problem_of_stream(&self) -> Option<String> {
        if self.publishers == 0 {
            return Some("publishers = 0: it must be at least 1 (--publishers)".to_owned());
        }
        if self.healthy() == 0 {
            return Some(
                "groups: there is no healthy subscriber, whose latency would be the result; add a group with \
                 behaviour = \"healthy\", or set --subscribers to at least 1"
                    .to_owned(),
            );
        }
        if self.samples_per_message == 0 {
            return Some("samples_per_message = 0: it must be at least 1 (--samples-per-message)".to_owned());
        }
        let message_bytes = self.payload_bytes.saturating_mul(self.samples_per_message as usize);
        if message_bytes > crate::ws::MESSAGE_BYTES_MAX / 2 {
            return Some(format!(
                "payload_bytes = {} (--payload) times samples_per_message = {} (--samples-per-message) is more than a \
                 message holds ({} bytes)",
                self.payload_bytes,
                self.samples_per_message,
                crate::ws::MESSAGE_BYTES_MAX / 2
            ));
        }
        if self.load.is_closed()
            && (self.burst_ms.is_some()
                || self.phases.iter().any(|it| it.rate_factor.to_bits() != 1f64.to_bits()))
        {
            return Some(
                "load: burst_ms and phases.rate_factor are for a schedule; use load = { scheduled = { per_s = N } }"
                    .to_owned(),
            );
        }
        self.groups.iter().enumerate().find_map(|(at, group)| self.problem_of(at, group))
    }

    fn problem_of(&self, at: usize, group: &Group) -> Option<String> {
        let unknown = group.phases.iter().find(|name| !self.phases.iter().any(|it| it.name == **name));
        if let Some(name) = unknown {
            return Some(format!(
                "groups[{at}].phases has {name:?}, and there is no such phase; name one of [[scenario.phases]]"
            ));
        }
        if group.max_rate_hz.is_some_and(|it| !(0.1..=1e9).contains(&it)) {
            return Some(format!("groups[{at}].max_rate_hz: give at least 0.1, or leave it out"));
        }
        if group.comes_back && self.load.is_closed() {
            return Some(format!(
                "groups[{at}].comes_back: a closed loop would wait for samples that were lost with a connection; leave it out, \
                 or use load = {{ scheduled = {{ per_s = N }} }}"
            ));
        }
        if group.last_ms == Some(0) {
            return Some(format!("groups[{at}].last_ms = 0: give at least 1, or leave it out"));
        }
        let short = |time: Duration| time < DURATION_MIN;
        match group.behaviour {
            Behaviour::Healthy if !group.phases.is_empty() => Some(format!(
                "groups[{at}].phases: healthy subscribers are there in all phases; leave it out"
            )),
            Behaviour::Slow { read_bytes_per_s: 0 } => Some(format!(
                "groups[{at}].behaviour.slow.read_bytes_per_s = 0: give at least 1, or use \"stalled\""
            )),
            Behaviour::Paused { every_s, for_s } if short(every_s) || short(for_s) => {
                Some(format!("groups[{at}].behaviour.paused: every_s and for_s must be at least 0.1"))
            }
            Behaviour::Flaky { every_s, away_s } if short(every_s) || short(away_s) => {
                Some(format!("groups[{at}].behaviour.flaky: every_s and away_s must be at least 0.1"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{PhaseSpec, named};

    #[test]
    fn what_cannot_run_is_refused_with_its_key() {
        let good = named("steady").unwrap();
        let slow = named("slow_reader").unwrap();
        let with = |behaviour| {
            let unwell = Group { behaviour, ..Group::healthy(1) };
            Scenario { groups: vec![Group::healthy(1), unwell], ..good.clone() }
        };
        let phase = |name: &str| PhaseSpec {
            name: name.to_owned(),
            rate_factor: 1.0,
            warmup_s: None,
            duration_s: None,
        };
        let stray = Group { phases: vec!["never".to_owned()], ..slow.groups[1].clone() };
        let cases = [
            (Scenario { name: "a.b".to_owned(), ..good.clone() }, "name"),
            (Scenario { publishers: 0, ..good.clone() }, "--publishers"),
            (Scenario { groups: vec![Group::healthy(0)], ..good.clone() }, "--subscribers"),
            (Scenario { samples_per_message: 0, ..good.clone() }, "--samples-per-message"),
            (Scenario { duration_s: Duration::ZERO, ..good.clone() }, "--duration"),
            (Scenario { interval_s: Duration::ZERO, ..good.clone() }, "interval_s"),
            (Scenario { payload_bytes: 70_000, ..good.clone() }, "--payload"),
            (Scenario { phases: vec![phase("a"), phase("a")], ..good.clone() }, "twice"),
            (
                Scenario { phases: vec![PhaseSpec { rate_factor: 0.0, ..phase("a") }], ..good.clone() },
                "rate_factor",
            ),
            (Scenario { kind: Kind::Accept { in_flight: 1 }, ..good.clone() }, "kind.accept"),
            (Scenario { groups: vec![Group::healthy(1), stray], ..slow.clone() }, "never"),
            (
                Scenario {
                    groups: vec![Group { phases: vec!["with".to_owned()], ..Group::healthy(1) }],
                    ..slow
                },
                "healthy",
            ),
            (
                Scenario {
                    groups: vec![Group { last_ms: Some(0), ..Group::healthy(1) }],
                    ..named("steady").unwrap()
                },
                "last_ms",
            ),
            (
                Scenario {
                    groups: vec![Group { comes_back: true, ..Group::healthy(1) }],
                    ..named("saturate").unwrap()
                },
                "groups[0].comes_back",
            ),
            (with(Behaviour::Slow { read_bytes_per_s: 0 }), "read_bytes_per_s"),
            (with(Behaviour::Paused { every_s: Duration::ZERO, for_s: DURATION_MIN }), "paused"),
            (with(Behaviour::Flaky { every_s: DURATION_MIN, away_s: Duration::ZERO }), "flaky"),
        ];
        for (scenario, key) in cases {
            let problem = scenario.check().unwrap_err();
            assert!(problem.contains(key) && problem.starts_with(&scenario.name), "{key}: {problem}");
        }
    }
}
