//! The scenarios that come with the program. Data only.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use super::{Behaviour, Codec, Group, Kind, Load, PhaseSpec, Policy, Scenario};

/// What a run without scenario names does: 30 seconds.
pub(crate) const SELECTION: [&str; 5] = ["steady", "fanout", "wide", "fanin", "slow_reader"];

/// Half of the server's default outbox.
const OUTSTANDING_BYTES_MAX: u64 = 512 << 10;

/// Samples in a message of `saturate`: a publisher that packs, as one at such rates does.
const PACKED_SAMPLES: u32 = 16;

/// `SO_RCVBUF` of a stalled subscriber: small, so that the backlog is the server's to deal with within a fraction of a
/// second, and not the kernel's.
const STALLED_RECEIVE_BUFFER_BYTES: usize = 16 << 10;

/// What a slow reader of `freshness` reads: a tenth of the stream.
const THIN_BYTES_PER_S: u64 = 130_000;

fn base(name: &str, about: &str, publishers: usize, subscribers: usize, per_s: u64) -> Scenario {
    Scenario {
        name: name.to_owned(),
        about: about.to_owned(),
        publishers,
        samples_per_message: 1,
        payload_bytes: super::payload_bytes(),
        burst_ms: None,
        churn_per_s: None,
        stop_server_ms: None,
        warmup_s: super::warmup(),
        duration_s: super::duration(),
        interval_s: super::interval(),
        kind: Kind::Stream,
        load: NonZeroU64::new(per_s).map_or(Load::Silent, |per_s| Load::Scheduled { per_s }),
        server: BTreeMap::new(),
        groups: vec![Group::healthy(subscribers)],
        phases: Vec::new(),
    }
}

impl Default for Scenario {
    /// As a file that has a name only.
    fn default() -> Self {
        Self { groups: Vec::new(), ..base("", "", 1, 0, 0) }
    }
}

fn phase(name: &str, rate_factor: f64) -> PhaseSpec {
    PhaseSpec { name: name.to_owned(), rate_factor, warmup_s: None, duration_s: None }
}

fn one(behaviour: Behaviour) -> Group {
    Group { behaviour, ..Group::healthy(1) }
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Every scenario, in the order of the documentation.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = streams();
    all.extend(troubles());
    all.extend(connections());
    all
}

/// Healthy subscribers only.
fn streams() -> Vec<Scenario> {
    let prompt = |count| Group { max_delay_ms: Some(0), ..Group::healthy(count) };
    vec![
        base("steady", "one publisher, 10 subscribers", 1, 10, 1_000),
        Scenario {
            groups: vec![prompt(10)],
            ..base("prompt", "the same without batching: max_delay_ms 0", 1, 10, 1_000)
        },
        base("fanout", "one fast publisher, 100 subscribers", 1, 100, 10_000),
        base("wide", "one publisher, 1,000 subscribers", 1, 1_000, 1_000),
        base("fanin", "50 publishers, each on its own channel, one subscriber to all", 50, 1, 20_000),
        Scenario {
            load: Load::Saturating { outstanding_bytes_max: OUTSTANDING_BYTES_MAX },
            samples_per_message: PACKED_SAMPLES,
            ..base("saturate", "one publisher, 100 subscribers, as fast as it is taken", 1, 100, 0)
        },
        Scenario {
            burst_ms: NonZeroU64::new(100),
            ..base("burst", "10,000 messages a second, sent 1,000 at once every 100 ms", 1, 100, 10_000)
        },
        Scenario {
            groups: vec![
                Group::healthy(20),
                Group { codec: Codec::Msgpack, ..Group::healthy(5) },
                Group { codec: Codec::Json, ..Group::healthy(5) },
                prompt(5),
                Group { policy: Some(Policy::Latest), max_rate_hz: Some(60.0), ..Group::healthy(5) },
            ],
            ..base("mixed", "40 subscribers of three codecs and four kinds of delivery", 2, 0, 2_000)
        },
    ]
}

/// Something goes wrong.
fn troubles() -> Vec<Scenario> {
    let stalled = Group {
        receive_buffer_bytes: Some(STALLED_RECEIVE_BUFFER_BYTES),
        phases: vec!["with".to_owned()],
        ..one(Behaviour::Stalled)
    };
    let thin = Group {
        receive_buffer_bytes: Some(64 << 10),
        ..one(Behaviour::Slow { read_bytes_per_s: THIN_BYTES_PER_S })
    };
    let paused = Group {
        receive_buffer_bytes: Some(64 << 10),
        ..one(Behaviour::Paused { every_s: seconds(2), for_s: seconds(3) })
    };
    let flaky = one(Behaviour::Flaky { every_s: seconds(2), away_s: seconds(1) });
    let stop = |name, about, load| Scenario {
        load,
        stop_server_ms: NonZeroU64::new(200),
        duration_s: seconds(4),
        groups: vec![Group { max_delay_ms: Some(0), ..Group::healthy(1) }],
        ..base(name, about, 1, 1, 1_000)
    };
    let per_s = NonZeroU64::MIN.saturating_add(999);
    vec![
        Scenario {
            groups: vec![Group::healthy(99), stalled],
            phases: vec![phase("without", 1.0), phase("with", 1.0)],
            ..base(
                "slow_reader",
                "99 healthy subscribers, without and with one that stops reading",
                1,
                0,
                5_000,
            )
        },
        Scenario {
            groups: vec![Group::healthy(1), thin],
            phases: vec![
                PhaseSpec {
                    warmup_s: Some(Duration::ZERO),
                    duration_s: Some(seconds(20)),
                    ..phase("first_20_s", 1.0)
                },
                PhaseSpec { warmup_s: Some(Duration::ZERO), ..phase("after", 1.0) },
            ],
            ..base(
                "freshness",
                "1.3 MB/s to a reader of a tenth of it: how old is what it reads",
                1,
                0,
                10_000,
            )
        },
        Scenario {
            groups: vec![Group::healthy(20), paused, flaky],
            ..base("rough", "a tab that pauses and a network that fails, beside 20 healthy", 1, 0, 5_000)
        },
        Scenario {
            samples_per_message: PACKED_SAMPLES,
            interval_s: Duration::from_millis(100),
            phases: vec![
                phase("half", 0.5),
                PhaseSpec { warmup_s: Some(Duration::ZERO), ..phase("twice", 2.0) },
                PhaseSpec { warmup_s: Some(Duration::ZERO), ..phase("half_again", 0.5) },
            ],
            duration_s: seconds(5),
            ..base(
                "overload",
                "half of the rate, twice the rate, half: set --rate to what the server can",
                1,
                100,
                37_500,
            )
        },
        Scenario {
            churn_per_s: NonZeroU64::new(100),
            ..base("churn", "a steady stream while others connect, subscribe and leave", 1, 10, 1_000)
        },
        stop(
            "stop",
            "the server stands still for 200 ms; counted from the schedule",
            Load::Scheduled { per_s },
        ),
        stop("stop_closed", "the same, measured as a closed loop does", Load::Closed { per_s }),
    ]
}

/// Connections more than data.
fn connections() -> Vec<Scenario> {
    vec![
        Scenario {
            duration_s: seconds(3),
            ..base("idle", "5,000 subscribed connections, none publishing", 1, 5_000, 0)
        },
        base("big", "10,000 subscribers of 100 messages a second", 1, 10_000, 100),
        Scenario {
            kind: Kind::Accept { in_flight: 32 },
            groups: Vec::new(),
            publishers: 0,
            duration_s: seconds(5),
            ..base(
                "accept",
                "connections opened and dropped, 32 at a time, as fast as they are taken",
                0,
                0,
                0,
            )
        },
    ]
}

/// The scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_scenario_is_sound_and_found_by_name() {
        let names: HashSet<String> = all().into_iter().map(|it| it.name).collect();
        assert_eq!(names.len(), all().len());
        for scenario in all() {
            assert_eq!(scenario.check(), Ok(()), "{}", scenario.name);
            assert_eq!(named(&scenario.name), Some(scenario));
        }
        assert_eq!(named("nonsense"), None);
    }

    #[test]
    fn the_selection_has_names_only() {
        for name in SELECTION {
            assert!(named(name).is_some(), "{name}");
        }
    }
}
