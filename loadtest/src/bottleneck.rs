//! Which side limited a phase, from what both used. Pure.

use crate::proc::Load;
use crate::result::{Bottleneck, PhaseResult, Side};

/// Share of a CPU from which a thread, or a set of CPUs, counts as full.
const FULL: f64 = 0.9;

/// Share of its CPUs that a side that is not full may have waited for. Two threads of one side that share a CPU wait a little,
/// too.
const STARVED: f64 = 0.25;

/// Share of the latency, both at p99, from which the lateness of the generator's own schedule makes the figures its own.
const LATE_SHARE: f64 = 0.25;

/// Lateness, at p99, that is never blamed: timers and wake-ups of a virtual machine.
const LATENESS_NS_ALLOWED: u64 = 500_000;

impl Bottleneck {
    /// As the table shows it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Neither => "-",
            Self::Server => "server",
            Self::Generator => "GENERATOR",
            Self::Both => "both",
            Self::Machine => "machine",
        }
    }
}

/// What speaks for one side or the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    /// CPU of the server.
    pub server: Option<Load>,
    /// CPUs that the server can use.
    pub server_cpus: usize,
    /// CPU of the generator.
    pub client: Option<Load>,
    /// CPUs that the generator can use.
    pub client_cpus: usize,
    /// p99 of its lateness.
    pub lateness_p99_ns: u64,
    /// p99 of the latency.
    pub latency_p99_ns: u64,
    /// Share of the machine's CPUs that was idle.
    pub idle: Option<f64>,
}

impl Evidence {
    /// Weighs it.
    pub(crate) fn weigh(&self) -> Bottleneck {
        let full = |load: Option<Load>, cpus: usize| load.is_some_and(|load| load.cpus >= FULL * cpus as f64);
        // With what it was kept waiting for it would have been full: others had its CPU.
        let starved = |load: Option<Load>, cpus: usize| {
            load.is_some_and(|load| {
                let all = cpus as f64;
                load.cpus < FULL * all
                    && load.waiting > STARVED * all
                    && load.cpus + load.waiting >= FULL * all
            })
        };
        let robbed = starved(self.server, self.server_cpus) || starved(self.client, self.client_cpus);
        let server = full(self.server, self.server_cpus);
        // One full thread is enough: the subscribers of a thread cannot move to another.
        let thread = self.client.is_some_and(|load| load.busiest >= FULL);
        let client = thread || full(self.client, self.client_cpus);
        let late = self.lateness_p99_ns > LATENESS_NS_ALLOWED
            && self.lateness_p99_ns as f64 > LATE_SHARE * self.latency_p99_ns as f64;
        match (server, client) {
            (true, true) => Bottleneck::Both,
            (true, false) if late => Bottleneck::Both,
            (true, false) => Bottleneck::Server,
            (false, true) => Bottleneck::Generator,
            (false, false) if robbed || self.idle.is_some_and(|idle| idle < 1.0 - FULL) => {
                Bottleneck::Machine
            }
            (false, false) if late => Bottleneck::Generator,
            (false, false) => Bottleneck::Neither,
        }
    }
}

/// Weighs the evidence of a result again, after some of it has changed.
pub(crate) fn weigh_again(phase: &PhaseResult, server_cpus: usize, client_cpus: usize) -> Bottleneck {
    let load = |side: Side| {
        Some(Load { cpus: side.cpus?, busiest: side.busiest_thread?, waiting: side.waiting.unwrap_or(0.0) })
    };
    let evidence = Evidence {
        server: load(phase.server),
        server_cpus,
        client: load(phase.client),
        client_cpus,
        lateness_p99_ns: phase.lateness.p99,
        latency_p99_ns: phase.latency.p99,
        idle: phase.machine_idle,
    };
    evidence.weigh()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::fixture::load;

    #[test]
    fn who_was_the_bottleneck() {
        let evidence = |server: f64, busiest: f64, late_us: u64, idle: f64| Evidence {
            server: Some(load(server, server)),
            server_cpus: 1,
            client: Some(load(busiest, busiest)),
            client_cpus: 2,
            lateness_p99_ns: late_us * 1_000,
            latency_p99_ns: 12_000_000,
            idle: Some(idle),
        };
        let waiting = |cpus: f64, waiting: f64| Some(Load { waiting, ..load(cpus, cpus) });
        let cases = [
            (evidence(0.2, 0.3, 50, 0.7), Bottleneck::Neither),
            (evidence(0.95, 0.3, 50, 0.3), Bottleneck::Server),
            (evidence(0.5, 0.95, 50, 0.2), Bottleneck::Generator),
            (evidence(0.95, 0.95, 50, 0.0), Bottleneck::Both),
            (evidence(0.95, 0.5, 5_000, 0.2), Bottleneck::Both),
            (evidence(0.2, 0.3, 5_000, 0.7), Bottleneck::Generator),
            (evidence(0.2, 0.3, 2_900, 0.7), Bottleneck::Neither),
            (Evidence { latency_p99_ns: 2_000_000, ..evidence(0.2, 0.3, 600, 0.7) }, Bottleneck::Generator),
            (Evidence { latency_p99_ns: 200_000, ..evidence(0.2, 0.3, 400, 0.7) }, Bottleneck::Neither),
            (evidence(0.4, 0.4, 50, 0.01), Bottleneck::Machine),
            (Evidence { server: waiting(0.6, 0.4), ..evidence(0.0, 0.3, 50, 0.4) }, Bottleneck::Machine),
            (Evidence { server: waiting(0.6, 0.2), ..evidence(0.0, 0.3, 50, 0.4) }, Bottleneck::Neither),
            (Evidence { server: waiting(0.2, 0.4), ..evidence(0.0, 0.3, 50, 0.4) }, Bottleneck::Neither),
            (Evidence { client_cpus: 1, ..evidence(0.4, 0.91, 50, 0.3) }, Bottleneck::Generator),
            (Evidence { server: None, ..evidence(0.0, 0.2, 50, 0.5) }, Bottleneck::Neither),
        ];
        for (evidence, expected) in cases {
            assert_eq!(evidence.weigh(), expected, "{evidence:?}");
        }
    }
}
