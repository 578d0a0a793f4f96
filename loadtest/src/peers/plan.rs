//! What is run against whom: the scenarios of the comparison, short, because there are many of them. Data only.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::scenario::{Behaviour, Group, Kind, Load, PhaseSpec, Scenario};

use super::{TIDEWIRE, TIDEWIRE_AT_ONCE};

/// The names that `targets` looks for.
pub(crate) const SATURATED: &str = "saturated";
pub(crate) const LIGHT: &str = "light";
pub(crate) const WIDE: &str = "wide";
pub(crate) const LATENCY: &str = "latency";
pub(crate) const WINDOW: &str = "window";
pub(crate) const FANIN_1: &str = "fanin_1";
pub(crate) const FANIN_32: &str = "fanin_32";
pub(crate) const IDLE: &str = "idle";
pub(crate) const SLOW_READER: &str = "slow_reader";
pub(crate) const FRESHNESS: &str = "freshness";
pub(crate) const OVERLOAD: &str = "overload";
pub(crate) const ACCEPT: &str = "accept";

/// Servers that have no protocol.
pub(crate) const LIMIT: &str = "limit";
pub(crate) const LIMIT_PER_MESSAGE: &str = "limit-per-message";

const PAYLOAD_BYTES: usize = 128;

/// Messages on the way in a closed loop, and in a fan-in, which spreads them over 50 publishers. More would not fit into the
/// queues for one subscriber that Tidewire and some peers have by default.
const OUTSTANDING: u64 = 512;
const OUTSTANDING_FANIN: u64 = 4096;

/// A scenario and who runs it how often.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// What is run.
    pub scenario: Scenario,
    /// How often.
    pub repetitions: u32,
    /// Whether the CPUs are kept from sleeping.
    pub keep_awake: bool,
    /// Whether the rate is what the contender could do in [`SATURATED`]; it is left out where that was not run.
    pub at_capacity: bool,
    whom: Whom,
}

/// Who takes part.
#[derive(Clone, Copy, Debug)]
enum Whom {
    /// All but these.
    Without(&'static [&'static str]),
    /// Only these.
    Only(&'static [&'static str]),
}

impl Trial {
    /// Whether the contender takes part.
    pub(crate) fn is_for(&self, name: &str) -> bool {
        match self.whom {
            Whom::Without(names) => !names.contains(&name),
            Whom::Only(names) => names.contains(&name),
        }
    }
}

/// The rate as the schedule takes it.
pub(crate) fn whole_rate(per_s: f64) -> Option<NonZeroU64> {
    // Duration does the conversion that `as` may not.
    let whole = Duration::try_from_secs_f64(per_s).ok()?.as_secs();
    NonZeroU64::new(whole)
}

/// The trials, or those whose names are given; the error names one that there is not.
pub(crate) fn trials(quick: bool, repetitions: u32, names: &[String]) -> Result<Vec<Trial>, String> {
    let mut all = all();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|it| it.scenario.name == **name)) {
        return Err(format!("--scenarios: there is no scenario {unknown:?}; --list prints them"));
    }
    all.retain(|it| names.is_empty() || names.contains(&it.scenario.name));
    for trial in &mut all {
        trial.repetitions = trial.repetitions.min(if quick { 1 } else { repetitions });
        if quick {
            let scenario = &mut trial.scenario;
            scenario.duration_s = scenario.duration_s.min(Duration::from_secs(1));
        }
    }
    Ok(all)
}

fn all() -> Vec<Trial> {
    let everybody = Whom::Without(&[LIMIT_PER_MESSAGE]);
    // Where Tidewire's window is not the subject, it runs as it does by default.
    let once = Whom::Without(&[LIMIT_PER_MESSAGE, TIDEWIRE_AT_ONCE]);
    let trial = |scenario, repetitions, whom| Trial {
        scenario,
        repetitions,
        keep_awake: false,
        at_capacity: false,
        whom,
    };
    let often = u32::MAX;
    vec![
        trial(
            closed(
                SATURATED,
                "1 publisher, 100 subscribers, as fast as it is taken, 512 messages on the way",
                (1, 100),
                1,
                OUTSTANDING,
            ),
            often,
            everybody,
        ),
        trial(
            open(LIGHT, "1 publisher of 1,000 messages/s, 100 subscribers", 100, 1_000),
            often,
            Whom::Without(&[]),
        ),
        trial(open(WIDE, "1 publisher of 1,000 messages/s, 1,000 subscribers", 1_000, 1_000), often, once),
        Trial {
            keep_awake: true,
            ..trial(
                open(LATENCY, "1 publisher of 1,000 messages/s, 10 subscribers, CPUs kept awake", 10, 1_000),
                often,
                Whom::Without(&[TIDEWIRE]),
            )
        },
        trial(
            open(WINDOW, "1 publisher of 10,000 messages/s, 100 subscribers", 100, 10_000),
            often,
            Whom::Only(&[TIDEWIRE]),
        ),
        trial(
            closed(
                FANIN_1,
                "50 publishers, 1 subscriber, as fast as it is taken",
                (50, 1),
                1,
                OUTSTANDING_FANIN,
            ),
            often,
            everybody,
        ),
        trial(
            closed(FANIN_32, "the same with 32 samples in a write", (50, 1), 32, OUTSTANDING_FANIN),
            often,
            everybody,
        ),
        trial(accept(), 3, Whom::Without(&[LIMIT, LIMIT_PER_MESSAGE, TIDEWIRE_AT_ONCE])),
        trial(idle(), 1, once),
        trial(slow_reader(), 2, once),
        trial(
            freshness(),
            1,
            Whom::Only(&[TIDEWIRE, "uws-deferred", "tung-batched", "nats-server", "mosquitto", "ws"]),
        ),
        Trial {
            at_capacity: true,
            ..trial(overload(), 1, Whom::Without(&[LIMIT, LIMIT_PER_MESSAGE, TIDEWIRE_AT_ONCE]))
        },
    ]
}

fn base(name: &str, about: &str, publishers: usize, groups: Vec<Group>, load: Load) -> Scenario {
    Scenario {
        name: name.to_owned(),
        about: about.to_owned(),
        publishers,
        payload_bytes: PAYLOAD_BYTES,
        warmup_s: Duration::from_millis(500),
        duration_s: Duration::from_secs(2),
        interval_s: Duration::from_millis(500),
        load,
        groups,
        ..Scenario::default()
    }
}

fn scheduled(per_s: u64) -> Load {
    NonZeroU64::new(per_s).map_or(Load::Silent, |per_s| Load::Scheduled { per_s })
}

fn open(name: &str, about: &str, subscribers: usize, per_s: u64) -> Scenario {
    base(name, about, 1, vec![Group::healthy(subscribers)], scheduled(per_s))
}

fn closed(
    name: &str,
    about: &str,
    (publishers, subscribers): (usize, usize),
    samples_per_message: u32,
    outstanding: u64,
) -> Scenario {
    let load = Load::Saturating { outstanding_bytes_max: outstanding * PAYLOAD_BYTES as u64 };
    Scenario { samples_per_message, ..base(name, about, publishers, vec![Group::healthy(subscribers)], load) }
}

fn accept() -> Scenario {
    Scenario {
        kind: Kind::Accept { in_flight: 32 },
        publishers: 0,
        ..base(ACCEPT, "connections opened and dropped, 32 at a time", 0, Vec::new(), Load::Silent)
    }
}

fn idle() -> Scenario {
    let about = "5,000 subscribed connections, none publishing: resident memory for each";
    Scenario {
        duration_s: Duration::from_secs(1),
        ..base(IDLE, about, 1, vec![Group::healthy(5_000)], Load::Silent)
    }
}

fn phase(name: &str, rate_factor: f64, warmup: Duration) -> PhaseSpec {
    PhaseSpec { name: name.to_owned(), rate_factor, warmup_s: Some(warmup), duration_s: None }
}

fn slow_reader() -> Scenario {
    let stalled = Group {
        behaviour: Behaviour::Stalled,
        receive_buffer_bytes: Some(16 << 10),
        phases: vec!["with".to_owned()],
        ..Group::healthy(1)
    };
    let about = "99 healthy subscribers of 5,000 messages/s, without and with one that stops reading";
    Scenario {
        // The kernel's buffers take what the first seconds bring; only then is it the server's to deal with.
        phases: vec![
            phase("without", 1.0, Duration::from_millis(500)),
            phase("with", 1.0, Duration::from_secs(4)),
        ],
        duration_s: Duration::from_secs(3),
        ..base(SLOW_READER, about, 1, vec![Group::healthy(99), stalled], scheduled(5_000))
    }
}

fn freshness() -> Scenario {
    let thin = Group {
        behaviour: Behaviour::Slow { read_bytes_per_s: 130_000 },
        // The kernel makes 64 KiB of it.
        receive_buffer_bytes: Some(32 << 10),
        ..Group::healthy(1)
    };
    let about = "1.3 MB/s to a reader of a tenth of it: how old is what it reads after 20 s";
    Scenario {
        warmup_s: Duration::from_secs(18),
        ..base(FRESHNESS, about, 1, vec![Group::healthy(1), thin], scheduled(10_000))
    }
}

fn overload() -> Scenario {
    let about = "half of what it could in `saturated`, twice that, half again, to 100 subscribers";
    let load = scheduled(1_000);
    Scenario {
        samples_per_message: 16,
        interval_s: Duration::from_millis(100),
        phases: vec![
            phase("half", 0.5, Duration::from_millis(500)),
            phase("twice", 2.0, Duration::ZERO),
            // Normal within a second after.
            phase("half_again", 0.5, Duration::from_secs(1)),
        ],
        ..base(OVERLOAD, about, 1, vec![Group::healthy(100)], load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trial_can_run() {
        for trial in trials(false, 5, &[]).unwrap() {
            assert_eq!(trial.scenario.check(), Ok(()), "{}", trial.scenario.name);
            assert!((1..=5).contains(&trial.repetitions));
        }
        for trial in trials(true, 5, &[]).unwrap() {
            assert_eq!(trial.repetitions, 1);
            assert!(trial.scenario.duration_s <= Duration::from_secs(1));
        }
    }

    #[test]
    fn scenarios_are_chosen_by_name() {
        let names = ["light".to_owned(), "window".to_owned()];
        let chosen = trials(false, 2, &names).unwrap();
        assert_eq!(
            chosen.iter().map(|it| it.scenario.name.as_str()).collect::<Vec<_>>(),
            ["light", "window"]
        );
        assert!(!chosen[1].is_for("ws") && chosen[1].is_for(TIDEWIRE) && chosen[0].is_for("ws"));
        assert!(trials(false, 2, &["lihgt".to_owned()]).unwrap_err().contains("lihgt"));
    }

    #[test]
    fn rates_are_whole() {
        assert_eq!(whole_rate(12.9).map(NonZeroU64::get), Some(12));
        assert_eq!([whole_rate(0.5), whole_rate(-1.0), whole_rate(f64::NAN)], [None; 3]);
    }
}
