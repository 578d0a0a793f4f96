//! What the operating system counts for a run, at one instant and between two: CPU of both sides and of the machine,
//! memory. Reads; decides nothing.

use crate::clock::Clock;
use crate::measure::Counters;
use crate::proc::{Load, Machine, Memory, Usage, own_pid};
use crate::result::Core;

use std::sync::atomic::Ordering;

/// One instant.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// When it was to be taken.
    pub due_ns: u64,
    at_ns: u64,
    server: Option<Usage>,
    client: Option<Usage>,
    machine: Option<Machine>,
    /// Of the server.
    pub server_memory: Option<Memory>,
    /// Messages that had gone out.
    pub messages: u64,
    /// Samples that had been announced as lost.
    pub announced: u64,
}

/// What was used between two instants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    /// CPU of the server, if its process is known.
    pub server_cpu: Option<Load>,
    /// Its memory at the end.
    pub server_memory: Option<Memory>,
    /// CPU of this process.
    pub client_cpu: Option<Load>,
    /// Its memory at the end.
    pub client_memory: Option<Memory>,
    /// Shares of the machine's CPUs that were idle and stolen.
    pub machine: Option<(f64, f64)>,
    /// Each CPU.
    pub cores: Vec<Core>,
}

impl Snapshot {
    /// Takes one, for the instant `due_ns`.
    pub(crate) fn take(due_ns: u64, server_pid: Option<u32>, clock: Clock, counters: &Counters) -> Self {
        Self {
            due_ns,
            at_ns: clock.now_ns(),
            server: server_pid.and_then(Usage::of),
            client: Usage::of(own_pid()),
            machine: Machine::read(),
            server_memory: server_pid.and_then(Memory::of),
            messages: counters.messages.load(Ordering::Relaxed),
            announced: counters.announced.load(Ordering::Relaxed),
        }
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Used {
        let elapsed_ns = self.at_ns.saturating_sub(before.at_ns);
        let load = |now: &Option<Usage>, before: &Option<Usage>| {
            Some(now.as_ref()?.since(before.as_ref()?, elapsed_ns))
        };
        let (mut machine, mut cores) = (None, Vec::new());
        if let (Some(now), Some(before)) = (&self.machine, &before.machine) {
            machine = Some(now.all.since(&before.all));
            cores = now
                .cpus
                .iter()
                .zip(&before.cpus)
                .filter(|(now, before)| now.0 == before.0)
                .map(|(now, before)| {
                    let (idle, steal) = now.1.since(&before.1);
                    Core { cpu: now.0, busy: (1.0 - idle - steal).max(0.0), steal }
                })
                .collect();
        }
        Used {
            server_cpu: load(&self.server, &before.server),
            server_memory: self.server_memory,
            client_cpu: load(&self.client, &before.client),
            client_memory: Memory::of(own_pid()),
            machine,
            cores,
        }
    }
}
